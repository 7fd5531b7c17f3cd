"""Laws of one's own whose prediction is a sum of edges: chains take the sum for the prediction, as autograd does."""

import pytest
import torch
from torch import nn

import pyromancy as pyro
from pyromancy.functional import gaussian_energy

B, RATE, STEPS = 7, 0.05, 5


class Net(nn.Module):
    """A state that two others predict."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.top = nn.Linear(5, 4), nn.Linear(6, 4), nn.Linear(4, 3)
        self.u = nn.Parameter(torch.rand(4) + 0.5)
        self.double()
        self.x, self.y, self.w = (torch.rand(B, n, dtype=torch.float64) for n in (5, 3, 4))
        self.z, self.h, self.k = (nn.Parameter(torch.randn(B, n, dtype=torch.float64)) for n in (4, 6, 5))

    @property
    def states(self):
        return [self.z, self.h, self.k]

    @property
    def learned(self):
        return [*self.a.parameters(), *self.b.parameters(), *self.top.parameters(), self.u]

    @property
    def rest(self):
        priors = gaussian_energy(self.h, torch.zeros_like(self.h)) + gaussian_energy(self.k, self.x)
        return priors + gaussian_energy(self.y, self.top(self.z))

    @property
    def mu(self):
        return self.a(self.k) + self.b(torch.tanh(self.h))


def log_cosh(d):
    return torch.log(torch.cosh(d)).sum(1)


class LogCosh(nn.Module):
    def forward(self, z, mu):
        return torch.log(torch.cosh(z - mu))


LAWS = {
    "two parents": lambda n: log_cosh(n.z - n.mu),
    "an activation": lambda n: log_cosh(n.z - torch.tanh(n.mu)),
    "a skip": lambda n: log_cosh(n.z - (n.h[:, :4] + n.b(torch.tanh(n.h)))),
    "a part that is passed on": lambda n: log_cosh(n.z - (torch.tanh(n.h[:, 1:5]) + n.b(n.h))),
    "a multiple": lambda n: log_cosh(n.z - 0.5 * n.mu),
    "one of data": lambda n: log_cosh(n.z - (n.a(n.x) + n.b(n.h))),
    "a weight for every element": lambda n: (n.w * (n.z - n.mu) ** 2).sum(1),
    "a weight that learns": lambda n: (n.u.square() * (n.z - n.mu) ** 2).sum(1),
    "a weight and data": lambda n: (n.w * (n.z - (n.a(n.x) + n.b(n.h))) ** 2).sum(1),
    "a log-variance": lambda n: 0.5 * ((n.z - n.mu) ** 2 * torch.exp(-n.u) + n.u).sum(1),
    "two weights": lambda n: (n.w * (n.z - n.mu).abs() + torch.exp(n.u) * (n.z - n.mu) ** 2).sum(1),
    "differences": lambda n: (n.w * (n.z - n.a(n.k) - n.b(n.h)) ** 2).sum(1),
    "asymmetric": lambda n: (torch.exp(n.z - n.mu) - n.z + n.mu).sum(1),
    "no distance": lambda n: (torch.exp(n.z) * n.mu.square() + n.z**2).sum(1),
}


def outcome(net, energy, starts, executor):
    for state, start in zip(net.states, starts, strict=True):
        state.data = start.clone()
    net.zero_grad()
    loop = pyro.InferenceLoop(energy, net.states, lr=RATE, executor=executor)
    energies = loop.run(STEPS, record=True).energies
    loop.backward(net.learned)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.learned]
    return [*(z.detach().clone() for z in net.states), *gradients, energies.sum(1)], loop.explain()


@pytest.mark.parametrize("law", LAWS)
def test_states_gradients_and_energies_are_autograds(law):
    net = Net()
    starts = [z.detach().clone() for z in net.states]
    energy = lambda: LAWS[law](net) + net.rest  # noqa: E731
    found, told = outcome(net, energy, starts, None)
    expected, _ = outcome(net, energy, starts, "autograd")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    assert told.startswith("executor: chain"), told


def test_a_node_of_such_a_law():
    net, node = Net(), pyro.nodes.LawNode(4, law=LogCosh()).double()
    node.init(net.z.detach().clone())
    energy = lambda: (  # noqa: E731
        node.energy(net.mu)
        + gaussian_energy(net.h, torch.zeros_like(net.h))
        + gaussian_energy(net.y, net.top(node.value))
    )
    loop = pyro.InferenceLoop(energy, [node.value, net.h], lr=RATE)
    states = [node.value, net.h]
    expected = [z.detach().clone() for z in states]
    for _ in range(STEPS):
        gradients = torch.autograd.grad(energy().sum(), states)
        with torch.no_grad():
            for z, g in zip(states, gradients, strict=True):
                z.sub_(RATE * g)
    after = [z.detach().clone() for z in states]
    for z, first in zip(states, expected, strict=True):
        z.data = first
    loop.run(STEPS)
    for z, b in zip(states, after, strict=True):
        torch.testing.assert_close(z.detach(), b, rtol=1e-10, atol=1e-11)
    assert loop.explain().startswith("executor: chain")


def test_what_is_of_two_predictions_is_told():
    """Which no sum has in it: nothing is rewritten."""
    net = Net()
    loop = pyro.InferenceLoop(lambda: log_cosh(net.z - net.a(net.k) - net.b(net.h)) + net.rest, net.states, lr=RATE)
    told = loop.explain()
    assert told.startswith("executor: graph")
    assert "one of a state and one prediction, and this is of 2: write them as one sum, z - (a + b)" in told


@pytest.mark.usefixtures("native_backend")
@pytest.mark.parametrize("what", ["a sum with data", "a multiple"])
def test_what_a_node_predicts_is_no_part_of_its_law(what):
    """Predictions of a sweep rest: what they were left of by rounding, a Laplace node below would take for its pull."""
    below, above = pyro.nodes.LaplaceNode(64).double(), pyro.nodes.LawNode(4, law=LogCosh()).double()
    first, second, more = (nn.Linear(n, m, dtype=torch.float64) for n, m in ((2, 64), (64, 4), (2, 4)))
    x = torch.randn(B, 2, dtype=torch.float64)

    def mu():
        return -0.7 * second(below.value) if what == "a multiple" else more(x) + second(below.value)

    with torch.no_grad():
        below.init(first(x)), above.init(mu())
    before = below.value.detach().clone()
    loop = pyro.InferenceLoop(lambda: below.energy(first(x)) + above.energy(mu()), [below.value, above.value], lr=0.05)
    loop.run(5)
    torch.testing.assert_close(below.value.detach(), before, rtol=1e-13, atol=1e-13)
    learned = [second.weight, *([] if what == "a multiple" else [more.weight])]
    loop.backward(learned)
    assert "fused M-step gradients" not in loop.explain()
    assert not any(p.grad.any() for p in learned)
