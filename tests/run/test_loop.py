"""InferenceLoop against the autograd loop that it replaces, on every kind of program."""

import copy
import pickle
import re
import threading

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import pyromancy as pyro
from networks import (
    KINDS,
    Chain,
    Convolutional,
    Program,
    autograd_loop,
    convolutional,
    covariance_of,
    randomize,
    standard,
    states_of,
)
from pyromancy.nodes import BiasNode, FixedNode, FloatNode, MultivariateGaussianNode

ACTIVATIONS = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.2),
    "elu": lambda: nn.ELU(0.7),
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu-tanh": lambda: nn.GELU(approximate="tanh"),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": lambda: nn.Softplus(beta=1.5),
    "relu6": nn.ReLU6,
    "hardtanh": lambda: nn.Hardtanh(-0.7, 0.7),
    "selu": nn.SELU,
}


def assert_same_inference(network, states, learned, steps=100, lr=0.02, executor=None, **options):
    """Loop and autograd end in the same states and gradients, to 1e-10; returns the loop."""
    twin = copy.deepcopy(network)
    index = {id(p): i for i, p in enumerate(network.parameters())}
    parameters = list(twin.parameters())
    twin_states = [parameters[index[id(p)]] for p in states]
    twin_learned = [parameters[index[id(p)]] for p in learned]

    loop = pyro.InferenceLoop(network.energy, states, lr=lr, executor=executor, **options)
    reduction = options.pop("reduction", "sum")
    loop.run(steps)
    loop.backward(learned)
    autograd_loop(twin.energy, twin_states, steps, lr, torch.sum if reduction == "sum" else torch.mean, **options)
    twin.zero_grad()
    twin.energy().mean().backward(inputs=twin_learned)
    for mine, theirs in zip(states, twin_states, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(learned, twin_learned, strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-10)
    return loop


class Ordered(Chain):
    """A chain whose activation comes before or after the product, some of whose energies are weighted."""

    def __init__(self, kinds, widths, activation, after, bias=True, weights=None):
        super().__init__(kinds, widths, activation=activation, bias=bias)
        self.after, self.weights = after, weights

    def predict(self, state, edge):
        return self.activation(edge(state)) if self.after else edge(self.activation(state))

    def energy(self):
        terms = [
            node.energy(self.predict(above.value, edge))
            for above, edge, node in zip(self.nodes[:-1], self.edges, self.nodes[1:], strict=True)
        ]
        if self.weights is not None:
            terms = [w * t for w, t in zip(self.weights, terms, strict=True)]
        return sum(terms)


@st.composite
def chains(draw):
    depth = draw(st.integers(2, 5))
    widths = draw(st.lists(st.integers(1, 19), min_size=depth, max_size=depth))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=depth, max_size=depth))
    activation = ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))]()
    weights = draw(st.none() | st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=depth - 1, max_size=depth - 1))
    network = Ordered(kinds, widths, activation, draw(st.booleans()), draw(st.booleans()), weights)
    clamped = draw(st.sets(st.integers(0, depth - 1), max_size=depth - 1))
    return network, sorted(clamped), draw(st.integers(1, 40))


@pytest.mark.slow
@pytest.mark.usefixtures("backend")
@given(chains())
@settings(max_examples=40)
def test_random_chains(case):
    network, clamped, batch = case
    randomize(network, batch)
    states = states_of(network, clamped)
    loop = assert_same_inference(network, states, list(pyro.get_mstep_params(network)), lr=0.01)
    assert loop.explain().startswith("executor: chain")


@pytest.mark.parametrize("executor", ["graph", "autograd"])
@given(chains())
@settings(max_examples=8)
def test_random_chains_on_the_other_executors(executor, case):
    network, clamped, batch = case
    randomize(network, batch)
    states = states_of(network, clamped)
    assert_same_inference(network, states, list(pyro.get_mstep_params(network)), 20, 0.01, executor)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "gelu", "softplus", "silu", "elu"])
def test_float32_is_as_good_as_autograd(activation):
    exact = Ordered(["StandardGaussianNode"] * 4, (17, 65, 31, 5), ACTIVATIONS[activation](), after=False)
    randomize(exact, 33)
    single, plain = copy.deepcopy(exact).float(), copy.deepcopy(exact).float()
    autograd_loop(exact.energy, states_of(exact, (0, 3)), 100, 0.05)
    autograd_loop(plain.energy, states_of(plain, (0, 3)), 100, 0.05)
    pyro.InferenceLoop(single.energy, states_of(single, (0, 3)), lr=0.05).run(100)
    for e, s, p in zip(exact.nodes, single.nodes, plain.nodes, strict=True):
        mine = (s.value.double() - e.value).abs().max()
        theirs = (p.value.double() - e.value).abs().max()
        assert mine <= 4 * theirs + 4 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("condition", [1e2, 1e6])
def test_float32_gradients_of_a_covariance_are_as_good_as_autograds(condition):
    n = 32
    basis, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))
    spectrum = condition ** -torch.linspace(0, 1, n, dtype=torch.float64)
    node = MultivariateGaussianNode(n, covariance=basis * spectrum @ basis.T)
    edge, x = nn.Linear(10, n), torch.rand(16, 10)
    node.init(torch.randn(16, n))
    learned = [node.covar_cf_logdiag, node.covar_cf_offtril, *edge.parameters()]
    exact_node, exact_edge = copy.deepcopy(node).double(), copy.deepcopy(edge).double()
    exact_node.init(node.value)
    exact_learned = [exact_node.covar_cf_logdiag, exact_node.covar_cf_offtril, *exact_edge.parameters()]
    exact = torch.autograd.grad(exact_node.energy(exact_edge(x.double())).mean(), exact_learned)
    plain = torch.autograd.grad(node.energy(edge(x)).mean(), learned)
    loop = pyro.InferenceLoop(lambda: node.energy(edge(x)), [node.value], lr=0.1, executor="chain")
    loop.backward(learned)
    assert "M-step" not in loop.explain()
    for p, theirs, expected in zip(learned, plain, exact, strict=True):
        scale = expected.abs().max()
        error, bound = (p.grad - expected).abs().max() / scale, (theirs - expected).abs().max() / scale
        assert error <= 4 * bound + 16 * torch.finfo(torch.float32).eps


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("executor", ["chain", "graph", "autograd"])
@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.9},
        {"momentum": 0.8, "nesterov": True},
        {"momentum": 0.5, "dampening": 0.3},
        {"reduction": "mean"},
    ],
    ids=["momentum", "nesterov", "dampening", "mean"],
)
def test_options(executor, options):
    network = Chain(KINDS, (7, 9, 8, 5))
    randomize(network, 6)
    states = states_of(network, (0, 3))
    assert_same_inference(network, states, list(pyro.get_mstep_params(network)), 30, 0.01, executor, **options)


@pytest.mark.parametrize("executor", ["chain", "graph", "autograd"])
def test_momentum_goes_on_between_runs_and_starts_anew_with_new_states(executor):
    network = Chain(["StandardGaussianNode"] * 3, (7, 9, 5))
    randomize(network, 4)
    start, states = network.nodes[1].value.detach().clone(), states_of(network, (0, 2))
    loop = pyro.InferenceLoop(network.energy, states, lr=0.05, momentum=0.9, executor=executor)
    for _ in range(2):
        network.nodes[1].init(start)
        for _ in range(6):
            loop.run(1)
        stepwise = network.nodes[1].value.detach().clone()
        network.nodes[1].init(start)
        loop.run(6)
        torch.testing.assert_close(network.nodes[1].value, stepwise, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("executor", ["chain", "graph", "autograd"])
def test_a_velocity_outlasts_runs_without_momentum_but_not_new_states(executor):
    network = Chain(["StandardGaussianNode"] * 3, (7, 9, 5))
    randomize(network, 4)
    start, states = network.nodes[1].value.detach().clone(), states_of(network, (0, 2))
    loop = pyro.InferenceLoop(network.energy, states, lr=0.05, momentum=0.9, executor=executor)

    def after(*momenta):
        network.nodes[1].init(start)
        for loop.momentum in momenta:
            loop.run(2)
        return network.nodes[1].value.detach().clone()

    def plainly(*momenta):
        network.nodes[1].init(start)
        optimizer = torch.optim.SGD(states, lr=0.05, momentum=0.9)
        for optimizer.param_groups[0]["momentum"] in momenta:
            for _ in range(2):
                optimizer.zero_grad()
                network.energy().sum().backward(inputs=states)
                optimizer.step()
        return network.nodes[1].value.detach().clone()

    for momenta in ((0.9, 0.0, 0.9), (0.0, 0.9), (0.9, 0.9)):  # one after another: each starts with new states
        torch.testing.assert_close(after(*momenta), plainly(*momenta), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("executor", ["chain", "graph", "autograd"])
def test_recorded_energies(executor):
    network = Chain(KINDS, (7, 9, 8, 5))
    randomize(network, 6)
    twin = copy.deepcopy(network)
    trace = pyro.InferenceLoop(network.energy, states_of(network, (0, 3)), lr=0.01, executor=executor).run(
        9, record=True
    )
    expected = torch.stack([e.mean() for e in autograd_loop(twin.energy, states_of(twin, (0, 3)), 9, 0.01)])
    assert trace.energies.shape == (10, 1 if executor == "autograd" else 3)
    torch.testing.assert_close(trace.energies[:-1].sum(1), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(trace.energies[-1].sum(), network.energy().detach().mean(), rtol=1e-10, atol=1e-10)


def test_recording_changes_nothing_where_the_gram_serves():
    network = Chain(["StandardGaussianNode"] * 3, (3, 5, 90))
    randomize(network, 50)
    twin = copy.deepcopy(network)
    loop = pyro.InferenceLoop(network.energy, states_of(network, (0, 2)), lr=0.01)
    loop.run(30)
    assert "W^T W chosen" in loop.explain()
    trace = pyro.InferenceLoop(twin.energy, states_of(twin, (0, 2)), lr=0.01).run(30, record=True)
    assert trace.energies.shape == (31, 2)
    torch.testing.assert_close(network.nodes[1].value, twin.nodes[1].value, rtol=1e-10, atol=1e-10)


class Skip(Program):
    def energy(self):
        x, a, b, _ = (n.value for n in self.nodes)
        return (
            self.nodes[1].energy(self.first(x))
            + self.nodes[2].energy(self.second(torch.tanh(a)) + self.over(x))
            + self.nodes[3].energy(self.third(torch.relu(b)) + a[:, :3])
        )


class TwoParents(Program):
    def energy(self):
        x, a, b, y = self.nodes
        return a.energy(self.first(x.value)) + b.energy(self.second(x.value)) + y.energy(self.third(a.value * b.value))


class Tied(Program):
    def energy(self):
        x, a, y = self.nodes
        return a.energy(F.linear(torch.tanh(x.value), self.first.weight)) + y.energy(
            F.linear(torch.tanh(a.value), self.first.weight.t())
        )


class Attention(Program):
    def energy(self):
        x, a, y = self.nodes
        heads = self.first(x.value)
        mixed = F.scaled_dot_product_attention(a.value, heads, heads)
        return a.energy(heads) + y.energy(self.norm(mixed + a.value))


class Unsupervised(Program):
    """A BiasNode above, no input; the last node observes."""

    def energy(self):
        bias, a, y = self.nodes
        return a.energy(bias(a.value)) + 0.5 * y.energy(self.first(torch.tanh(a.value)))


class Floating(Program):
    """A FloatNode that starts as a guess and a FixedNode that stays."""

    def energy(self):
        fixed, floating, a, y = self.nodes
        return a.energy(self.first(floating.value)) + y.energy(self.second(a.value) + self.third(fixed.value))


def skip():
    edges = {"first": nn.Linear(4, 6), "second": nn.Linear(6, 5), "over": nn.Linear(4, 5), "third": nn.Linear(5, 3)}
    return Skip(*standard(4, 6, 5, 3), **edges), (0, 3), "chain"


def two_parents():
    edges = {"first": nn.Linear(4, 6), "second": nn.Linear(4, 6), "third": nn.Linear(6, 3)}
    return TwoParents(*standard(4, 6, 6, 3), **edges), (0, 3), "graph"


def tied():
    return Tied(*standard(4, 6, 4), first=nn.Linear(4, 6, bias=False)), (0, 2), "chain"


def attention():
    network = Attention(*standard((5, 8), (5, 8), (5, 8)), first=nn.Linear(8, 8), norm=nn.LayerNorm(8))
    return network, (0, 2), "graph"


def unsupervised():
    return Unsupervised(BiasNode(6), *standard(6, 4), first=nn.Linear(6, 4)), (2,), "chain"


def floating():
    edges = {"first": nn.Linear(4, 6), "second": nn.Linear(6, 5), "third": nn.Linear(3, 5)}
    return Floating(FixedNode(3), FloatNode(4), *standard(6, 5), **edges), (3,), "chain"


PROGRAMS = [skip, two_parents, tied, convolutional, attention, unsupervised, floating]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_programs(program):
    network, clamped, executor = program()
    for node in network.nodes:
        if not isinstance(node, BiasNode):
            shape = [8 if d is None else d for d in node.shape]
            node.init(torch.randn(3, *shape, dtype=torch.float64))
    loop = assert_same_inference(network, states_of(network, clamped), list(pyro.get_mstep_params(network)), 50)
    assert loop.explain().startswith(f"executor: {executor}")
    assert "energy = %" in str(loop.program)


class Viewing(Convolutional):
    """Takes a view of an image that only exists where its channels come first."""

    def energy(self):
        x, a, b, y = self.nodes
        pooled = F.max_pool2d(self.second(F.relu(a.value)), 2)
        first, second = a.energy(self.first(F.relu(x.value))), b.energy(pooled)
        return first + second + y.energy(self.third(b.value.view(b.value.shape[0], 48)))


@pytest.mark.parametrize("momentum", [{}, {"momentum": 0.8}, {"momentum": 0.8, "nesterov": True}], ids=str)
@pytest.mark.parametrize("kind", [Convolutional, Viewing])
def test_convolutions(kind, momentum):
    network, clamped, _ = convolutional()
    network.__class__ = kind
    for node in network.nodes:
        node.init(torch.randn(3, *[8 if d is None else d for d in node.shape], dtype=torch.float64))
    states, before = states_of(network, clamped), [n.value.detach().clone() for n in network.nodes]
    loop = pyro.InferenceLoop(network.energy, states, lr=0.02, **momentum)
    energies = loop.run(7, record=True).energies
    loop.run(6)  # with the velocities of the first run
    assert ("channels last" in loop.explain()) == (kind is Convolutional)
    found = [z.detach().clone() for z in states]
    for node, z in zip(network.nodes, before, strict=True):
        node.init(z)
    expected = autograd_loop(network.energy, states, 13, 0.02, **momentum)
    for a, b in zip(found, states, strict=True):
        assert a.stride() == b.stride()
        torch.testing.assert_close(a, b.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(energies.sum(1), torch.stack(expected).mean(1)[:8], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mstep_of_a_chain_needs_no_autograd(kind):
    network = Chain(["StandardGaussianNode", kind, kind], (4, 6, 3))
    randomize(network, 5)
    learned = list(pyro.get_mstep_params(network))
    loop = assert_same_inference(network, states_of(network, (0, 2)), learned, 10)
    assert loop.explain().startswith("executor: chain")
    assert "M-step" not in loop.explain()


def test_invariant_calls_are_hoisted():
    network, clamped, _ = convolutional()
    for node in network.nodes:
        node.init(torch.randn(3, *[8 if d is None else d for d in node.shape], dtype=torch.float64))
    loop = pyro.InferenceLoop(network.energy, states_of(network, clamped), lr=0.01)
    loop.run(1)
    lines = str(loop.program).splitlines()
    assert "once a run" in next(line for line in lines if "conv2d" in line)
    assert "every step" in [line for line in lines if "conv2d" in line][1]


class Odd(Chain):
    """A chain with something in it that cannot be captured."""

    def __init__(self, oddity):
        super().__init__(["StandardGaussianNode"] * 3, (4, 6, 3))
        self.oddity = oddity

    def energy(self):
        return super().energy() + self.oddity(self.nodes[1].value)


class StraightThrough(torch.autograd.Function):
    """Rounds, and passes the gradient as if it had not: no trace of its forward tells that."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


ODDITIES = {
    "value-dependent": (lambda z: z.sum(1) * (0.1 if z.sum().item() > 1e9 else 0.2), "reads values"),
    "in-place": (lambda z: (z * 1.0).view(-1).mul_(0.1).view(z.shape).sum(1), "in place"),
    "no-grad": (lambda z: _without_grad(z), "autograd itself"),
    "own-function": (lambda z: 0.1 * StraightThrough.apply(z).sum(1), "StraightThrough is an autograd function"),
}


def _without_grad(z):
    with torch.no_grad():
        constant = z.sum(1)
    return 0.0 * constant


@pytest.mark.parametrize("oddity", ODDITIES)
def test_what_cannot_be_captured_runs_on_autograd_and_says_why(oddity):
    function, reason = ODDITIES[oddity]
    network = Odd(function)
    randomize(network, 5)
    loop = assert_same_inference(network, states_of(network, (0, 2)), list(pyro.get_mstep_params(network)), 20)
    assert loop.explain().startswith("executor: autograd")
    assert reason in loop.explain()
    with pytest.raises(RuntimeError, match=reason):
        pyro.InferenceLoop(network.energy, states_of(network, (0, 2)), lr=0.1, executor="chain").run(1)


def test_dropout_in_training_mode_is_left_to_autograd():
    network = Odd(lambda z: z.sum(1) * 0)
    network.activation = nn.Dropout(0.5)
    randomize(network, 5)
    loop = pyro.InferenceLoop(network.energy, states_of(network, (0, 2)), lr=0.1)
    loop.run(2)
    assert "random" in loop.explain()
    network.eval()
    loop.run(2)
    assert loop.explain().startswith("executor: graph")


@pytest.mark.parametrize(
    "total",
    [
        lambda terms: sum(terms),
        lambda terms: terms[0] + terms[1] + terms[2],
        lambda terms: torch.stack(terms).sum(0),
        lambda terms: torch.stack(terms, dim=0).sum(dim=0),
        lambda terms: 2 * terms[0] + terms[1] / 2 + terms[2] * 0.5,
    ],
    ids=["sum", "add", "stack", "stack-dim", "weighted"],
)
def test_every_way_to_add_up_is_a_chain(total):
    class Summed(Chain):
        def energy(self):
            above, terms = self.nodes[0].value, []
            for edge, node in zip(self.edges, self.nodes[1:], strict=True):
                terms.append(node.energy(self.predict(above, edge)))
                above = node.value
            return total(terms)

    network = Summed(KINDS, (6, 9, 8, 5))
    randomize(network, 4)
    loop = assert_same_inference(network, states_of(network, (0, 3)), list(pyro.get_mstep_params(network)), 20)
    assert loop.explain().startswith("executor: chain")
    assert len(loop.program.terms) == 3


class Changing:
    """A network and its twin that go through the same changes; the twin runs the plain loop."""

    def __init__(self, kinds=("StandardGaussianNode",) * 4, widths=(6, 9, 8, 5)):
        self.mine = Chain(kinds, widths)
        randomize(self.mine, 7)
        self.loop = pyro.InferenceLoop(self.mine.energy, states_of(self.mine, (0, 3)), lr=0.02)
        self.loop.run(3)
        self.loop.backward(pyro.get_mstep_params(self.mine))
        self.mine.zero_grad()

    def check(self, change):
        change(self.mine)
        self.mine.zero_grad()
        twin = copy.deepcopy(self.mine)
        self.loop.run(10)
        self.loop.backward(pyro.get_mstep_params(self.mine))
        autograd_loop(twin.energy, states_of(twin, (0, 3)), 10, 0.02)
        twin.zero_grad()
        twin.energy().mean().backward(inputs=list(pyro.get_mstep_params(twin)))
        close = (
            {"rtol": 1e-4, "atol": 1e-5}
            if self.mine.nodes[1].value.dtype == torch.float32
            else {"rtol": 1e-9, "atol": 1e-10}
        )
        for mine, theirs in zip(states_of(self.mine, (0, 3)), states_of(twin, (0, 3)), strict=True):
            torch.testing.assert_close(mine, theirs, **close)
        for mine, theirs in zip(pyro.get_mstep_params(self.mine), pyro.get_mstep_params(twin), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, **close)


def replace_weight(network):
    network.edges[1].weight = nn.Parameter(torch.randn_like(network.edges[1].weight))


def update_weights(network):
    with torch.no_grad():
        for p in pyro.get_mstep_params(network):
            p.add_(0.1 * torch.randn_like(p))


def update_data(network):
    for p in pyro.get_mstep_params(network):
        p.data.mul_(1.1)


def assign_data(network):
    network.edges[0].weight.data = torch.randn_like(network.edges[0].weight)


def new_batch(network):
    for node in network.nodes:
        node.init(torch.randn(11, *node.bshape, dtype=node.value.dtype))


def new_activation(network):
    network.activation = torch.sigmoid


def new_input(network):
    network.nodes[0].init(torch.randn_like(network.nodes[0].value))


def load(network):
    network.load_state_dict({k: torch.randn_like(v) for k, v in network.state_dict().items()})


CHANGES = [replace_weight, update_weights, update_data, assign_data, new_batch, new_activation, new_input, load]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_changes_are_noticed(change):
    changing = Changing()
    changing.check(change)
    changing.check(lambda _: None)


def test_a_changed_covariance_is_noticed():
    changing = Changing(KINDS)
    changing.check(lambda network: [setattr(n, "covariance", covariance_of(n.size)) for n in network.nodes[1:]])


def test_a_changed_dtype_is_noticed():
    changing = Changing()
    changing.check(lambda network: network.float())


def test_two_loops_in_two_threads():
    pairs = []
    for _ in range(2):
        network = Chain(["StandardGaussianNode"] * 4, (6, 9, 8, 5))
        randomize(network, 40)
        pairs.append((network, copy.deepcopy(network)))

    def work(network):
        loop = pyro.InferenceLoop(network.energy, states_of(network, (0, 3)), lr=0.02)
        for _ in range(5):
            loop.run(20)

    threads = [threading.Thread(target=work, args=(mine,)) for mine, _ in pairs]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for mine, twin in pairs:
        autograd_loop(twin.energy, states_of(twin, (0, 3)), 100, 0.02)
        torch.testing.assert_close(mine.nodes[1].value, twin.nodes[1].value, rtol=1e-10, atol=1e-10)


def test_the_network_is_unharmed():
    network = Chain(KINDS, (6, 9, 8, 5), activation=torch.tanh)
    randomize(network, 4)
    before = set(vars(network))
    loop = pyro.InferenceLoop(network.energy, states_of(network, (0, 3)), lr=0.02)
    loop.run(2)
    assert set(vars(network)) == before
    copy.deepcopy(network)
    again = pickle.loads(pickle.dumps(loop))
    assert again.lr == loop.lr
    again.run(1)


def test_backward_accumulates():
    network = Chain(["StandardGaussianNode"] * 3, (6, 9, 5))
    randomize(network, 4)
    loop = pyro.InferenceLoop(network.energy, states_of(network, (0, 2)), lr=0.02)
    loop.run(2)
    learned = list(pyro.get_mstep_params(network))
    loop.backward(learned)
    once = [p.grad.clone() for p in learned]
    loop.backward(learned)
    for p, g in zip(learned, once, strict=True):
        torch.testing.assert_close(p.grad, 2 * g)


def test_energy_is_that_of_the_states_at_hand():
    network = Chain(["StandardGaussianNode"] * 3, (6, 9, 5))
    randomize(network, 4)
    loop = pyro.InferenceLoop(network.energy, states_of(network, (0, 2)), lr=0.02)
    before = loop.energy()
    loop.run(50)
    assert not loop.energy().requires_grad
    assert (loop.energy() < before).all()
    torch.testing.assert_close(loop.energy(), network.energy().detach())


def test_hand_value():
    # x = 1, W = (2, 3), y = 1: z* = (2 + 3) / (1 + 9) = 0.5, F* = 1/2 (0.5 - 2)^2 + 1/2 (1 - 1.5)^2 = 1.25
    network = Chain(["StandardGaussianNode"] * 3, (1, 1, 1), activation=lambda z: z, bias=False)
    with torch.no_grad():
        network.edges[0].weight.fill_(2.0)
        network.edges[1].weight.fill_(3.0)
    network.init(torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    loop = pyro.InferenceLoop(network.energy, states_of(network, (0, 2)), lr=0.1)
    loop.run(400)
    torch.testing.assert_close(network.nodes[1].value.item(), 0.5, rtol=0, atol=1e-10)
    torch.testing.assert_close(loop.energy().item(), 1.25, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"energy": 3}, TypeError, "energy must be callable, got int"),
        (
            {"energy": torch.nn.Linear(2, 2)},
            TypeError,
            "energy must be callable without arguments, got a Linear, .* takes input;",
        ),
        ({"params": []}, ValueError, "params must hold at least one tensor"),
        ({"params": torch.zeros(2)}, TypeError, "params must be an iterable"),
        ({"params": ["value"]}, TypeError, "params must hold tensors, as .*, got str"),
        ({"params": torch.nn.Linear(2, 2)}, TypeError, "params must be an iterable of tensors, as .*, got Linear"),
        ({"lr": -0.1}, ValueError, "lr must be finite and not negative, got -0.1"),
        ({"lr": float("nan")}, ValueError, "lr must be finite and not negative, got nan"),
        ({"lr": "0.1"}, TypeError, "lr must be a number, got '0.1'"),
        ({"momentum": -1.0}, ValueError, "momentum must be finite and not negative, got -1.0"),
        ({"dampening": float("inf")}, ValueError, "dampening must be finite, got inf"),
        ({"nesterov": True}, ValueError, "nesterov needs a momentum"),
        ({"reduction": "max"}, ValueError, "reduction must be 'sum' or 'mean', got 'max'"),
        ({"executor": "fast"}, ValueError, "executor must be one of chain, graph, autograd or None, got 'fast'"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else None,
)
def test_bad_arguments(arguments, error, message):
    network = Chain(["StandardGaussianNode"] * 3, (1, 1, 1))
    given = {"energy": network.energy, "params": states_of(network, (0, 2)), "lr": 0.1} | arguments
    with pytest.raises(error, match=message):
        pyro.InferenceLoop(**given)


def small_loop():
    network = Chain(["StandardGaussianNode"] * 3, (1, 1, 1))
    randomize(network, 2)
    return pyro.InferenceLoop(network.energy, states_of(network, (0, 2)), lr=0.1)


@pytest.mark.parametrize(("steps", "error"), [(-1, ValueError), (2.5, TypeError), ("3", TypeError)])
def test_bad_steps(steps, error):
    with pytest.raises(error, match=f"steps must (be an integer|not be negative), got {steps!r}"):
        small_loop().run(steps)


def test_steps_may_be_any_integer():
    assert small_loop().run(torch.tensor(3)).steps == 3


@pytest.mark.parametrize(("name", "value"), [("lr", float("nan")), ("momentum", -1.0), ("nesterov", True)])
def test_an_option_changed_to_a_bad_value_is_refused(name, value):
    loop = small_loop()
    loop.run(1)
    setattr(loop, name, value)
    with pytest.raises(ValueError, match=name):
        loop.run(1)


def test_one_state_twice_is_refused():
    network = Chain(["StandardGaussianNode"] * 3, (1, 1, 1))
    with pytest.raises(ValueError, match="params must hold every state once"):
        pyro.InferenceLoop(network.energy, states_of(network, (0, 2)) * 2, lr=0.1)


@pytest.mark.parametrize("executor", ["graph", "autograd"])
def test_an_energy_of_the_whole_batch_is_not_recorded(executor):
    z = nn.Parameter(torch.ones(3, 2))
    loop = pyro.InferenceLoop(lambda: z.square().sum().reshape(()), [z], lr=0.1, executor=executor)
    with pytest.warns(UserWarning, match="one number"):
        loop.run(2)
    with pytest.raises(
        ValueError, match=r"energy must return one value per sample, \[B\], to be recorded, got shape \(\)"
    ):
        loop.run(1, record=True)


@pytest.mark.parametrize("executor", ["graph", "autograd"])
def test_an_energy_of_the_whole_batch_is_told(executor):
    """Its mean moves the states of 4 samples by a quarter of a step: z - 0.1 z / 4."""
    z = nn.Parameter(torch.ones(4, 2, dtype=torch.float64))
    loop = pyro.InferenceLoop(lambda: 0.5 * z.square().sum(1).mean(), [z], lr=0.1, executor=executor)
    told = "the energy is one number for states of 4 samples, not one per sample"
    with pytest.warns(UserWarning, match=told) as caught:
        loop.run(1)
    assert [w.filename for w in caught] == [__file__]
    torch.testing.assert_close(z.detach(), torch.full_like(z, 1 - 0.1 / 4))
    assert f"  {told}" in loop.explain()
    assert "at 1/4 of the rate" in loop.explain()


@pytest.mark.parametrize("executor", ["graph", "autograd"])
def test_a_state_that_samples_share_is_told(executor):
    """It descends the sum of all: z - 0.1 * sum over 4 samples of (z - y)."""
    z, y = nn.Parameter(torch.ones(1, 2, dtype=torch.float64)), torch.rand(4, 2, dtype=torch.float64)
    loop = pyro.InferenceLoop(lambda: 0.5 * (z - y).square().sum(1), [z], lr=0.1, executor=executor)
    told = "the energy is of 4 samples, which share z [1, 2], without a row of their own"
    with pytest.warns(UserWarning, match=re.escape(told)) as caught:
        loop.run(1)
    assert [w.filename for w in caught] == [__file__]
    torch.testing.assert_close(z.detach(), 1 - 0.1 * (1 - y).sum(0, keepdim=True))
    assert f"  {told}" in loop.explain()


@pytest.mark.parametrize("shape", [(1, 2), (3,)], ids=str)
@pytest.mark.parametrize("executor", ["graph", "autograd"])
def test_one_number_for_one_sample_is_no_news(executor, shape):
    z = nn.Parameter(torch.ones(shape))
    loop = pyro.InferenceLoop(lambda: z.square().sum(), [z], lr=0.1, executor=executor)
    loop.run(1)
    assert "one number" not in loop.explain()


@pytest.mark.parametrize("executor", ["chain", "graph"])
def test_a_state_that_predicts_nothing_is_named(executor):
    network = Chain(["StandardGaussianNode"] * 3, (3, 4, 2))
    randomize(network, 2)
    told = "nodes.2.value predicts nothing and moves to its prediction: exclude a target"
    for clamped, names in (((0, 2), 0), ((0,), 1)):
        loop = pyro.InferenceLoop(network.energy, states_of(network, clamped), lr=0.1, executor=executor)
        loop.run(1)
        assert loop.explain().count("predicts nothing") == loop.explain().count(told) == names


@pytest.mark.parametrize("with_another", [False, True])
def test_a_state_that_the_energy_does_not_use_is_refused(with_another):
    z, unused = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 5))
    states = [z, unused] if with_another else [unused]
    loop = pyro.InferenceLoop(lambda: z.square().sum(1), states, lr=0.1)
    with pytest.raises(ValueError, match=r"params must hold states that the energy uses, got one of shape \(3, 5\)"):
        loop.run(1)
    assert torch.equal(z, torch.ones(3, 2))


def test_a_state_frozen_between_runs_is_refused():
    network = Chain(["StandardGaussianNode"] * 3, (3, 4, 2))
    randomize(network, 2)
    loop = pyro.InferenceLoop(network.energy, states_of(network, (0, 2)), lr=0.1)
    loop.run(1)
    network.nodes[1].value.requires_grad_(False)
    before = network.nodes[1].value.clone()
    with pytest.raises(ValueError, match=r"params must require gradients, got one of shape \(2, 4\)"):
        loop.run(1)
    assert torch.equal(network.nodes[1].value, before)


def test_no_steps_change_nothing():
    network = Chain(["StandardGaussianNode"] * 3, (3, 4, 2))
    randomize(network, 2)
    before = network.nodes[1].value.detach().clone()
    trace = pyro.InferenceLoop(network.energy, states_of(network, (0, 2)), lr=0.1).run(0, record=True)
    assert trace.energies.shape == (1, 2)
    torch.testing.assert_close(trace.energies.sum(1), network.energy().detach().mean(0, keepdim=True))
    assert torch.equal(network.nodes[1].value, before)


def test_energy_before_init_names_the_node():
    network = Chain(["StandardGaussianNode"] * 3, (3, 4, 2))
    network.nodes[0].init(torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match=r"StandardGaussianNode\(4\)\.energy\(\) needs a state"):
        pyro.InferenceLoop(network.energy, states_of(network, (0, 2)), lr=0.1).run(1)
