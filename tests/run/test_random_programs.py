"""Random networks, ways to train and data: `EM` and the loop learn what plain autograd and `torch.optim` learn."""

import copy
import itertools

import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st

import pyromancy as pyro
from networks import KINDS, node
from pyromancy.nodes import FloatNode

ACTIVATIONS = (nn.Identity, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Softplus, lambda: nn.LeakyReLU(0.3))
# Adam divides a gradient by its own size: with the usual epsilon it would multiply rounding by up to 1e8.
EPSILON = 1e-2
OPTIMIZERS = {
    "sgd": lambda ps, **o: torch.optim.SGD(ps, 0.03, weight_decay=o["decay"]),
    "momentum": lambda ps, **o: torch.optim.SGD(ps, 0.03, momentum=0.8, nesterov=o["flag"], weight_decay=o["decay"]),
    "adam": lambda ps, **o: torch.optim.Adam(ps, 0.01, eps=EPSILON, amsgrad=o["flag"], weight_decay=o["decay"]),
    "adamw": lambda ps, **o: torch.optim.AdamW(ps, 0.01, eps=EPSILON, maximize=o["flag"], weight_decay=o["decay"]),
}
LAWS = (*KINDS, "LaplaceNode")
BATCHES = 4


class Random(nn.Module):
    """A chain with an activation before every edge, or after it, biases, skips or neither, of nodes of any kind."""

    def __init__(self, widths, kinds, activations, after, biases, skips, weight):
        super().__init__()
        self.nodes = nn.ModuleList([FloatNode(widths[0]).double(), *map(node, kinds, widths[1:])])
        self.edges = nn.ModuleList(
            nn.Linear(a, b, bias, dtype=torch.float64)
            for (a, b), bias in zip(itertools.pairwise(widths), biases, strict=True)
        )
        self.activations = nn.ModuleList(activation() for activation in activations)
        self.after, self.weight = after, weight
        self.skips = [skip if a == b else 0.0 for skip, (a, b) in zip(skips, itertools.pairwise(widths), strict=True)]

    def predict(self, i):
        z, edge, f, skip = self.nodes[i].value, self.edges[i], self.activations[i], self.skips[i]
        product = edge(z) if self.after[i] else edge(f(z))
        if skip:
            product = skip * z + product
        return f(product) if self.after[i] else product

    def start(self, x, y):
        self.nodes[0].init(x)
        for i, n in enumerate(self.nodes[1:-1]):
            n.init(self.predict(i).detach())
        self.nodes[-1].init(y)

    def energy(self):
        energies = [n.energy(self.predict(i)) for i, n in enumerate(self.nodes[1:])]
        return self.weight * energies[0] + sum(energies[1:])

    def learned(self):
        return list(pyro.get_mstep_params(self))

    def free(self):
        return list(pyro.get_estep_params(self, exclude=[self.nodes[-1]]))


@st.composite
def cases(draw):
    depth = draw(st.integers(2, 4))
    widths = [draw(st.sampled_from((1, 2, 3, 5, 9))) for _ in range(depth + 1)]
    if draw(st.booleans()):
        widths[1:-1] = [widths[1]] * (depth - 1)
    pick = lambda options: [draw(st.sampled_from(options)) for _ in range(depth)]  # noqa: E731
    after, biases, skips = (False, False, True), (True, False), (0.0, 1.0, 0.3)
    network = (
        widths, pick(LAWS), pick(ACTIVATIONS), pick(after), pick(biases), pick(skips),
        draw(st.sampled_from((1.0, 0.5, 2))),
    )  # fmt: skip
    how = {
        "optimizer": draw(st.sampled_from(sorted(OPTIMIZERS))), "flag": draw(st.booleans()),
        "decay": draw(st.sampled_from((0.0, 0.1))), "momentum": draw(st.sampled_from((0.0, 0.5))),
        "steps": draw(st.integers(0, 6)), "batch": draw(st.integers(1, 19)), "seed": draw(st.integers(0, 2**20)),
    }  # fmt: skip
    return network, how


def by_autograd(net, optimizer, how, batches):
    for x, y in batches:
        net.start(x, y)
        inner = torch.optim.SGD(net.free(), 0.02, momentum=how["momentum"])
        for _ in range(how["steps"]):
            inner.zero_grad()
            net.energy().sum().backward(inputs=net.free())
            inner.step()
        optimizer.zero_grad()
        net.energy().mean().backward(inputs=net.learned())
        optimizer.step()


def by_the_loop(net, optimizer, how, batches):
    loop = pyro.InferenceLoop(net.energy, net.free(), lr=0.02, momentum=how["momentum"], executor="chain")
    for x, y in batches:
        net.start(x, y)
        loop.run(how["steps"])
        optimizer.zero_grad()
        loop.backward(net.learned())
        optimizer.step()


def em_of(net, optimizer, how):
    return pyro.EM(
        net.energy, net.free(), optimizer, start=net.start, steps=how["steps"], lr=0.02, momentum=how["momentum"]
    )


def by_steps(net, optimizer, how, batches):
    em = em_of(net, optimizer, how)
    for x, y in batches:
        em.step(x, y)


def by_an_epoch(net, optimizer, how, batches):
    xs, ys = (torch.cat(ts) for ts in zip(*batches, strict=True))
    for _ in em_of(net, optimizer, how).epoch(xs, ys, batch_size=how["batch"], shuffle=False):
        pass


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@given(cases())
@settings(max_examples=40)
def test_all_ways_learn_the_same(case):
    network, how = case
    torch.manual_seed(how["seed"])
    first = Random(*network)
    widths = network[0]
    batches = [
        tuple(torch.randn(how["batch"], n, dtype=torch.float64) for n in (widths[0], widths[-1]))
        for _ in range(BATCHES)
    ]
    first.start(*batches[0])
    results = []
    for way in (by_autograd, by_the_loop, by_steps, by_an_epoch):
        net = copy.deepcopy(first)
        optimizer = OPTIMIZERS[how["optimizer"]](net.learned(), **how)
        way(net, optimizer, how, batches)
        results.append((net, optimizer))
    plain, of_plain = results[0]
    for net, optimizer in results[1:]:
        close(dict(net.named_parameters()), dict(plain.named_parameters()))
        close(net.energy(), plain.energy())
        states, wanted = optimizer.state_dict()["state"], of_plain.state_dict()["state"]
        assert states.keys() == wanted.keys()
        for i, state in wanted.items():
            assert states[i].keys() == state.keys()
            for key, value in state.items():
                close(torch.as_tensor(states[i][key]), torch.as_tensor(value))
