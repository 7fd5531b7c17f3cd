"""Parameters that several edges share, and masked ones, learn in a plan as they do by autograd and torch.optim."""

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import pyromancy as pyro
from pyromancy.functional import gaussian_energy
from pyromancy.nodes import FixedNode, FloatNode

STEPS, RATE = 4, 0.1
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
}
pytestmark = pytest.mark.usefixtures("native_backend")


class Unrolled(nn.Module):
    """Moments of hidden states, each predicted by the last and the input, and outputs by the input's weights.

    One matrix leads from every moment to the next, through a mask; one leads up, and its transpose down; biases and a
    variance are shared, and a factor of rows.
    """

    def __init__(self, moments=3, width=5, inputs=4):
        super().__init__()
        self.xs = nn.ModuleList([FixedNode(inputs) for _ in range(moments)])
        self.hs = nn.ModuleList([FloatNode(width) for _ in range(moments)])
        self.ys = nn.ModuleList([FixedNode(inputs) for _ in range(moments)])
        self.up, self.along = nn.Linear(inputs, width), nn.Linear(width, width)
        self.bias, self.logvar = nn.Parameter(torch.randn(inputs)), nn.Parameter(0.3 * torch.randn(()))
        self.register_buffer("mask", torch.rand(width, width) < 0.5)
        self.register_buffer("rows", torch.rand(width, 1) + 0.5)

    def hidden(self, t):
        mu = F.linear(self.xs[t].value, self.rows * self.up.weight, self.up.bias)
        if t:
            weight = self.along.weight * self.mask
            mu = mu + F.linear(torch.tanh(self.hs[t - 1].value), 0.5 * weight, self.along.bias)
        return mu

    def output(self, t):
        return F.linear(torch.tanh(self.hs[t].value), self.up.weight.T, self.bias)

    def energy(self):
        total = 0.0
        for t, (h, y) in enumerate(zip(self.hs, self.ys, strict=True)):
            total = total + gaussian_energy(h.value, self.hidden(t), self.logvar)
            total = total + gaussian_energy(y.value, self.output(t), self.logvar)
        return total

    def start(self, x, y):
        for t in range(len(self.hs)):
            self.xs[t].init(x[:, t])
            self.ys[t].init(y[:, t])
            self.hs[t].init(self.hidden(t))

    @property
    def states(self):
        return [h.value for h in self.hs]

    @property
    def learned(self):
        return [*self.up.parameters(), *self.along.parameters(), self.bias, self.logvar]


def trained(net, optimizer, batches, incremental=False):
    """What autograd and the optimizer make of a network."""
    for x, y in batches:
        with torch.no_grad():
            net.start(x, y)
        for step in range(STEPS):
            grads = torch.autograd.grad(net.energy().sum(), net.states)
            joint = torch.autograd.grad(net.energy().mean(), net.learned)
            with torch.no_grad():
                for z, g in zip(net.states, grads, strict=True):
                    z.sub_(RATE * g)
            if incremental != "joint" and (incremental or step == STEPS - 1):
                joint = torch.autograd.grad(net.energy().mean(), net.learned)
            if incremental or step == STEPS - 1:
                for p, g in zip(net.learned, joint, strict=True):
                    p.grad = g
                optimizer.step()


def drawn(batch, moments, inputs, count=3, dtype=torch.float64):
    return [tuple(torch.randn(batch, moments, inputs, dtype=dtype) for _ in range(2)) for _ in range(count)]


def made(net, optimizer, **options):
    return pyro.EM(net.energy, net.states, optimizer, start=net.start, steps=STEPS, lr=RATE, **options)


@pytest.mark.parametrize("incremental", [False, True, "joint"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_batch_is_one_call(optimizer, incremental):
    net = Unrolled().double()
    net.start(*drawn(6, 3, 4)[0])
    other = copy.deepcopy(net)
    em = made(net, OPTIMIZERS[optimizer](net.learned), incremental=incremental)
    batches = drawn(6, 3, 4, 6)  # of which the last are repetitions
    for batch in batches:
        em.step(*batch)
        told = em.explain()
        assert "a batch: one call of an operator\n" in told, told
        assert "the optimizer is called" not in told
        assert "start is run dry" not in told
    trained(other, OPTIMIZERS[optimizer](other.learned), batches, incremental)
    for a, b in zip(net.learned, other.learned, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend_name", ["native", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sizes(backend_name, dtype):
    """Wider than a task of a gradient has columns, over threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pyro.backends.use(backend_name):
            net = Unrolled(2, 150, 131).double()
            batches = drawn(9, 2, 131)
            net.start(*batches[0])
            other = copy.deepcopy(net)
            net = copy.deepcopy(net).to(dtype)
            em = made(net, torch.optim.SGD(net.learned, lr=0.01, momentum=0.5))
            for x, y in batches:
                em.step(x.to(dtype), y.to(dtype))
            assert "a batch: one call of an operator\n" in em.explain()
    finally:
        torch.set_num_threads(before)
    trained(other, torch.optim.SGD(other.learned, lr=0.01, momentum=0.5), batches)
    limit = 1e-10 if dtype is torch.float64 else 2e-5
    for a, b in zip(net.learned, other.learned, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=limit, atol=limit)


def test_masked_entries_stay():
    """Without a decay no rule moves what a mask has put out of use."""
    net = Unrolled().double()
    net.start(*drawn(6, 3, 4)[0])
    first = net.along.weight.detach().clone()
    em = made(net, torch.optim.Adam(net.learned, lr=0.1))
    for batch in drawn(6, 3, 4):
        em.step(*batch)
    assert torch.equal(net.along.weight[~net.mask], first[~net.mask])
    assert (net.along.weight[net.mask] != first[net.mask]).all()


def test_a_changed_mask_counts_at_once():
    net = Unrolled().double()
    batches = drawn(6, 3, 4, 8)
    net.start(*batches[0])
    other = copy.deepcopy(net)
    em, sgd = made(net, torch.optim.SGD(net.learned, lr=0.05)), torch.optim.SGD(other.learned, lr=0.05)
    for i, batch in enumerate(batches):
        if i == 6:
            net.mask.logical_not_()
            other.mask.logical_not_()
        em.step(*batch)
        trained(other, sgd, [batch])
    for a, b in zip(net.learned, other.learned, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_mask_that_learns_is_autograds():
    """The product is computed then, and its gradient led back to both."""
    z, y, x = (torch.randn(5, 3, dtype=torch.float64) for _ in range(3))
    state = nn.Parameter(z)
    w, m = (nn.Parameter(torch.randn(3, 3, dtype=torch.float64)) for _ in range(2))

    def energy():
        return gaussian_energy(state, F.linear(x, w * m)) + gaussian_energy(y, F.linear(state, w))

    loop = pyro.InferenceLoop(energy, [state], lr=RATE)
    loop.run(STEPS)
    expected = torch.autograd.grad(energy().mean(), [w, m])
    loop.backward([w, m])
    assert loop.explain().startswith("executor: chain")
    for p, g in zip((w, m), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-10)


def test_an_epoch_is_few_calls():
    """Batches that go through one operator see the weights that those before them have made."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.x, self.h, self.y = FixedNode(4), FloatNode(5), FixedNode(4)
            self.up, self.b = nn.Linear(4, 5), nn.Parameter(torch.randn(4))
            self.register_buffer("mask", (torch.rand(5, 4) < 0.7).double())

        def energy(self):
            weight = self.up.weight * self.mask
            out = F.linear(torch.tanh(self.h.value), weight.T, self.b)
            return gaussian_energy(self.h.value, self.up(self.x.value)) + gaussian_energy(self.y.value, out)

        def start(self, x, y):
            self.x.init(x)
            self.h.init(self.up(self.x.value))
            self.y.init(y)

        states = property(lambda self: [self.h.value])
        learned = property(lambda self: [*self.up.parameters(), self.b])

    net = Tied().double()
    x, y = torch.randn(40, 4).double(), torch.randn(40, 4).double()
    net.start(x[:8], y[:8])
    other = copy.deepcopy(net)
    em = made(net, torch.optim.Adam(net.learned, lr=0.01))
    adam = torch.optim.Adam(other.learned, lr=0.01)
    for _ in range(2):
        for _ in em.epoch(x, y, batch_size=8, shuffle=False):
            pass
        trained(other, adam, zip(x.split(8), y.split(8), strict=True))
    assert "a batch: one call of an operator\n" in em.explain()
    for a, b in zip(net.learned, other.learned, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_use_as_it_is_beside_one_that_is_computed():
    """Of which a plan would miss the second: the optimizer is called, with all of the gradient."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.x, self.h, self.y = FixedNode(4), FloatNode(4), FixedNode(4)
            self.up = nn.Linear(4, 4)

        def energy(self):
            out = F.linear(torch.tanh(self.h.value), self.up.weight.exp(), self.up.bias)
            return gaussian_energy(self.h.value, self.up(self.x.value)) + gaussian_energy(self.y.value, out)

        def start(self, x, y):
            self.x.init(x)
            self.h.init(self.up(self.x.value))
            self.y.init(y)

        states = property(lambda self: [self.h.value])
        learned = property(lambda self: [*self.up.parameters()])

    net = Twice().double()
    batches = [(torch.randn(6, 4).double(), torch.randn(6, 4).double()) for _ in range(3)]
    net.start(*batches[0])
    other = copy.deepcopy(net)
    em = made(net, torch.optim.SGD(net.learned, lr=0.05))
    for batch in batches:
        em.step(*batch)
    trained(other, torch.optim.SGD(other.learned, lr=0.05), batches)
    assert "the optimizer is called" in em.explain()
    for a, b in zip(net.learned, other.learned, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
