"""States with several energies that are no one law: the others are those of nodes beside, on chains, as autograd's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyromancy as pyro
from pyromancy import methods
from pyromancy.capture.apart import apart
from pyromancy.capture.capture import capture
from pyromancy.capture.chains import NotAChain
from pyromancy.capture.joined import joined
from pyromancy.capture.lowering import lower
from pyromancy.capture.normal import normal
from pyromancy.functional import (
    bernoulli_energy,
    categorical_energy,
    gaussian_energy,
    laplace_energy,
    multivariate_energy,
    student_energy,
)

BATCH, WIDTH = 7, 4
RATE, STEPS = 0.05, 6


class Net(nn.Module):
    """Two hidden states, of which the second predicts the first, too, between data."""

    def __init__(self):
        super().__init__()
        self.up, self.side, self.top = nn.Linear(5, WIDTH), nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3)
        self.one, self.other, self.third = (nn.Parameter(0.3 * torch.randn(WIDTH)) for _ in range(3))
        self.out_side, self.of_out = nn.Linear(6, 3), nn.Parameter(torch.tensor([0.1, -0.2, 0.3]))
        self.double()
        self.x, self.y, self.w = (torch.rand(BATCH, *n, dtype=torch.float64) + 0.1 for n in ((5,), (3,), ()))
        self.known = torch.rand(BATCH, WIDTH) < 0.4
        self.factor = torch.eye(WIDTH, dtype=torch.float64) + 0.2 * torch.ones(WIDTH, WIDTH).double().tril()
        self.z, self.h = (nn.Parameter(torch.randn(BATCH, n, dtype=torch.float64)) for n in (WIDTH, 6))

    @property
    def states(self):
        return [self.z, self.h]

    @property
    def learned(self):
        return [p for p in self.parameters() if p is not self.z and p is not self.h]

    @property
    def first(self):
        return gaussian_energy(self.z, self.up(self.x), self.one)

    @property
    def mu(self):
        return self.side(torch.tanh(self.h))

    def second(self, theta=None):
        return gaussian_energy(self.z, self.mu, theta)

    @property
    def rest(self):
        return gaussian_energy(self.y, self.top(self.z)) + gaussian_energy(self.h, torch.zeros_like(self.h))


ENERGIES = {
    "two predictions": lambda n: n.first + n.second(),
    "precisions that learn": lambda n: n.first + n.second(n.other),
    "three": lambda n: n.first + n.second(n.other) + gaussian_energy(n.z, n.up(2 * n.x), n.third),
    "a prior": lambda n: n.first + gaussian_energy(n.z, torch.zeros_like(n.z), n.other),
    "a prior of numbers": lambda n: n.first + 0.5 * ((n.z - 0.7) ** 2 * torch.exp(-n.other)).sum(1),
    "of every element": lambda n: n.first + gaussian_energy(n.z, n.third, n.other),
    "an activation first": lambda n: gaussian_energy(n.z, torch.tanh(n.up(n.x))) + n.second(n.other),
    "an activation last": lambda n: n.second(n.other) + gaussian_energy(n.z, torch.tanh(n.up(n.x)), n.one),
    "an activation of states": lambda n: n.first + gaussian_energy(n.z, torch.tanh(n.mu), n.other),
    "a state as it is": lambda n: n.first + gaussian_energy(n.z, n.h[:, :WIDTH], n.other),
    "weights of samples": lambda n: n.first + n.w * n.second(n.other),
    "an L1 penalty with weights of samples": lambda n: n.first + n.w * n.z.abs().sum(1),
    "another law": lambda n: n.first + student_energy(n.z, n.mu, n.other, 3.0),
    "Laplace": lambda n: n.first + laplace_energy(n.z, n.mu, n.other),
    "a law of one's own": lambda n: n.first + (torch.exp(n.z - n.mu) - (n.z - n.mu)).sum(1),
    "full covariances": lambda n: (
        multivariate_energy(n.z, n.up(n.x), n.factor) + multivariate_energy(n.z, n.mu, n.factor.mT.contiguous().tril())
    ),
    "of the output": lambda n: n.first + gaussian_energy(n.y, n.out_side(n.h), n.of_out),
    "cross-entropies": lambda n: (
        n.first + categorical_energy(n.y, n.out_side(n.h)) + bernoulli_energy(n.y, n.out_side(torch.tanh(n.h)))
    ),
    "cross-entropies of classes": lambda n: (
        n.first + F.cross_entropy(n.out_side(n.h), n.y.argmax(1), reduction="none") + n.second(n.other)
    ),
}  # fmt: skip


def outcome(net, energy, starts, **options):
    for state, start in zip(net.states, starts, strict=True):
        state.data = start.clone()
    net.zero_grad()
    loop = pyro.InferenceLoop(energy, net.states, **options)
    energies = loop.run(STEPS, record=True).energies
    loop.backward(net.learned)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.learned]
    return [*(z.detach().clone() for z in net.states), *gradients, energies.sum(1)], loop.explain()


@pytest.mark.parametrize("name", ENERGIES)
def test_states_gradients_and_energies_are_autograds(name):
    net = Net()
    starts = [z.detach().clone() for z in net.states]
    energy = lambda: ENERGIES[name](net) + net.rest  # noqa: E731
    found, told = outcome(net, energy, starts, lr=RATE)
    expected, _ = outcome(net, energy, starts, lr=RATE, executor="autograd")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    assert told.startswith("executor: chain"), told
    assert "autograd" not in told


METHODS = {
    "quasi-newton": lambda: methods.Accelerated(coordinates="states"),
    "lbfgs": lambda: methods.LBFGS(coordinates="states"),
    "adam": lambda: methods.Adam(0.1),
    "heun": lambda: methods.Heun(0.05),
}


@pytest.mark.usefixtures("native_backend")
@pytest.mark.parametrize("method", METHODS)
def test_methods_are_those_of_the_graph(method):
    net = Net()
    starts = [z.detach().clone() for z in net.states]
    energy = lambda: net.first + net.second(net.other) + net.rest  # noqa: E731
    found, told = outcome(net, energy, starts, method=METHODS[method]())
    expected, _ = outcome(net, energy, starts, method=METHODS[method](), executor="graph")
    for a, b in zip(found[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert "fused: all sweeps in one operator" in told


def test_there_is_no_one_error():
    """Not on chains either, where only one of two predictions would count."""
    net = Net()
    energy = lambda: net.first + net.second(net.other) + net.rest  # noqa: E731
    loop = pyro.InferenceLoop(energy, net.states, method=methods.Accelerated())
    with pytest.raises(ValueError, match=r"net.z is predicted by two energies"):
        loop.run(2)


@pytest.mark.usefixtures("native_backend")
def test_fixed_predictions_are_those_of_the_graph():
    """Which holds those of both energies, where zeros predicted by a state would hold that as well."""
    net = Net()
    starts = [z.detach().clone() for z in net.states]
    energy = lambda: net.first + net.second(net.other) + net.rest  # noqa: E731
    found, told = outcome(net, energy, starts, method=methods.FixedPrediction(0.1))
    expected, _ = outcome(net, energy, starts, method=methods.FixedPrediction(0.1), executor="graph")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert "not fused: net.z is predicted by two energies" in told


def test_entries_that_are_data():
    net = Net()

    def energy():
        z = torch.where(net.known, torch.full_like(net.z, 0.3), net.z)
        second = gaussian_energy(z, net.mu, net.other)
        rest = gaussian_energy(net.y, net.top(z)) + gaussian_energy(net.h, torch.zeros_like(net.h))
        return gaussian_energy(z, net.up(net.x), net.one) + second + rest

    starts = [z.detach().clone() for z in net.states]
    found, told = outcome(net, energy, starts, lr=RATE)
    expected, _ = outcome(net, energy, starts, lr=RATE, executor="autograd")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    assert told.startswith("executor: chain"), told


def test_the_least_energy_of_two_predictions():
    """In closed form: each pulls by its precision, and what is above does."""
    net = Net()
    energy = lambda: net.first + gaussian_energy(net.z, net.side(net.x[:, :1].expand(-1, 6)), net.other)  # noqa: E731
    loop = pyro.InferenceLoop(energy, [net.z], lr=0.4)
    loop.run(300)
    p, q = torch.exp(-net.one), torch.exp(-net.other)
    mean = (p * net.up(net.x) + q * net.side(net.x[:, :1].expand(-1, 6))) / (p + q)
    torch.testing.assert_close(net.z.detach(), mean.detach(), rtol=1e-10, atol=1e-10)
    assert loop.explain().startswith("executor: chain")


class Model(nn.Module):
    """A hidden state that the input and the labels' own code predict, each with a variance that learns."""

    def __init__(self):
        super().__init__()
        self.x, self.h, self.y = pyro.nodes.FixedNode(6), pyro.nodes.FactorizedGaussianNode(5), pyro.nodes.FixedNode(3)
        self.up, self.down, self.logvar = nn.Linear(6, 5), nn.Linear(3, 5), nn.Parameter(torch.zeros(5))
        self.top = nn.Linear(5, 3)
        self.double()

    def energy(self):
        second = gaussian_energy(self.h.value, self.down(self.y.value), self.logvar)
        return self.h.energy(self.up(self.x.value)) + second + gaussian_energy(self.y.value, self.top(self.h.value))

    def start(self, x, y):
        self.x.init(x), self.y.init(y)
        self.h.init(self.up(self.x.value))


def test_batches_are_one_call_and_their_lines():
    nets = [Model() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    ems, data = [], [(torch.randn(8, 6).double(), torch.randn(8, 3).double()) for _ in range(3)]
    for net in nets:
        net.start(*data[0])
        optimizer = torch.optim.Adam(list(pyro.get_mstep_params(net)), lr=0.01)
        ems.append(pyro.EM(net.energy, [net.h.value], optimizer, start=net.start, steps=4, lr=0.1))
    before = nets[0].logvar.detach().clone()
    for x, y in data:
        ems[0].step(x, y)
        ems[1]._step_unfused((x, y))
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert "a batch: one call" in ems[0].explain()
    assert (nets[0].logvar != before).all()
    x, y = (torch.cat(of) for of in zip(*data, strict=True))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    for _ in ems[0].epoch(x, y, batch_size=8, generator=torch.Generator().manual_seed(3)):
        pass
    for rows in order.split(8):
        ems[1]._step_unfused((x[rows], y[rows]))
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


APART = {
    "activations around both": (
        lambda n: gaussian_energy(n.z, torch.tanh(n.mu)) + gaussian_energy(n.z, torch.tanh(n.up(n.x) + n.side(n.h))),
        "more where all but one are laws of z - mu, with no activation around mu",
    ),
    "a law of one's own": (
        lambda n: bernoulli_energy(n.z, n.mu) + (torch.exp(n.z) * n.up(n.x).square() + n.z**2).sum(1),
        "and one by a law of one's own (",
    ),
    "laws of no distance": (
        lambda n: bernoulli_energy(n.z, n.mu) + bernoulli_energy(n.z, n.up(n.x)),
        "has two energies, a Bernoulli one",
    ),
}


@pytest.mark.parametrize("name", APART)
def test_what_chains_do_not_take_is_told(name):
    net = Net()
    make, reason = APART[name]
    starts = [z.detach().clone() for z in net.states]
    energy = lambda: make(net) + net.rest  # noqa: E731
    found, told = outcome(net, energy, starts, lr=RATE)
    expected, _ = outcome(net, energy, starts, lr=RATE, executor="autograd")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    assert reason in told


def test_where_nodes_have_one_parent():
    """As on a GPU, two energies of a clamped state are two chains, and of a free one are told."""
    net = Net()
    hidden = gaussian_energy, laplace_energy
    program = capture(lambda: hidden[0](net.z, net.up(net.x)) + hidden[1](net.z, net.up(net.x)) * net.w, net.states[:1])
    with pytest.raises(NotAChain, match="has two energies, a Gaussian one"):
        lower(apart(joined(normal(program, BATCH)), differences=False), "no sums here")

    def energy():
        both = gaussian_energy(net.y, net.top(net.z)) + laplace_energy(net.y, net.out_side(net.h))
        return net.first + gaussian_energy(net.h, torch.zeros_like(net.h)) + both

    written = apart(joined(normal(capture(energy, net.states), BATCH)), differences=False)
    assert len(lower(written, "no sums here")) == 2
