"""Nodes with a law of one's own."""

import copy

import pytest
import torch
from torch import nn

import pyromancy as pyro
from pyromancy.nodes import FixedNode, LawNode, StandardGaussianNode


def log_cosh(z, mu):
    return torch.log(torch.cosh(z - mu))


def test_energy_and_error():
    node, z, mu = LawNode(3, None, law=log_cosh).double(), torch.randn(5, 3, 2).double(), torch.randn(5, 3, 2).double()
    node.init(z)
    torch.testing.assert_close(node.energy(mu), ((z - mu).exp() / 2 + (mu - z).exp() / 2).log().sum((1, 2)))
    torch.testing.assert_close(node.error(mu), torch.tanh(z - mu))
    assert not node.error(mu).requires_grad
    assert node.error(node.value).eq(0).all()


REFUSED = {
    "no-function": (3.0, TypeError, "law must be a function of a state and a prediction, got float"),
    "no-elements": (lambda z, mu: (z - mu).sum(1), ValueError, "[2, 3] of a state [2, 3], got [2]"),
    "no-tensor": (lambda z, mu: 1.0, ValueError, "of a state [2, 3], got float"),
    "no-primitive": (lambda z, mu: torch.erf(z - mu), ValueError, "law of one's own has no erf"),
    "no-elementwise-one": (lambda z, mu: (z - mu) ** 2 + torch.softmax(z, 1), ValueError, "one's own has no softmax"),
    "no-state": (lambda z, mu: mu * mu, ValueError, "a law of one's own does not depend on the state"),
    "noise": (lambda z, mu: (z - mu) * torch.rand(3), ValueError, "draws random numbers"),
    "no-fitting-tensor": (
        lambda z, mu: (z - mu) ** 2 * torch.ones(4), ValueError, "law must take a state and a prediction [2, 3], and",
    ),
    "too-long": (
        lambda z, mu: torch.exp(sum(torch.tanh(z - mu - 0.1 * i) ** 2 for i in range(9))), ValueError, "at most 40 in",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_laws_that_are_none(name):
    law, error, told = REFUSED[name]
    with pytest.raises(error) as raised:
        LawNode(3, law=law)
    assert told in str(raised.value)


class Logistic(nn.Module):
    """A law with a log-scale for every element, or for all."""

    def __init__(self, *shape):
        super().__init__()
        self.logscale = nn.Parameter(torch.full(shape, 0.2))

    def forward(self, z, mu):
        d = (z - mu) * torch.exp(-self.logscale)
        return d + 2 * nn.functional.softplus(-d) + self.logscale


class Net(nn.Module):
    def __init__(self, law=log_cosh):
        super().__init__()
        self.below, self.hidden = FixedNode(4), StandardGaussianNode(9)
        self.above = LawNode(3, law=law)
        self.up, self.top = nn.Linear(4, 9), nn.Linear(9, 3)

    def energy(self):
        return self.hidden.energy(self.up(self.below.value)) + self.above.energy(self.top(self.hidden.value.tanh()))

    @torch.no_grad()
    def start(self, x, y):
        self.hidden.init(self.up(self.below.init(x))), self.above.init(y)


@pytest.mark.parametrize(
    "law", [lambda: log_cosh, Logistic, lambda: Logistic(1), lambda: Logistic(3)], ids=["none", "()", "1", "n"]
)
def test_an_output_with_a_law_trains_as_autograd_would(law):
    """Its own scales, too, where it has some, in the same call."""
    torch.manual_seed(0)
    ours = Net(law()).double()
    theirs, (x, y) = copy.deepcopy(ours), (torch.randn(11, 4).double(), torch.randn(11, 3).double())
    states = list(pyro.get_estep_params(ours, exclude=[ours.above]))
    learned = list(pyro.get_mstep_params(ours))
    em = pyro.EM(ours.energy, states, torch.optim.SGD(learned, lr=0.1), start=ours.start, steps=7, lr=0.1)
    m_opt = torch.optim.SGD(pyro.get_mstep_params(theirs), lr=0.1)
    for _ in range(4):
        em.step(x, y)
        theirs.start(x, y)
        for _ in range(7):
            (gradient,) = torch.autograd.grad(theirs.energy().sum(), theirs.hidden.value)
            theirs.hidden.value.data -= 0.1 * gradient
        m_opt.zero_grad()
        theirs.energy().mean().backward()
        m_opt.step()
    assert "not one call" not in em.explain()
    for a, b in zip(learned, pyro.get_mstep_params(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_its_repr_tells_the_law():
    assert repr(LawNode(3, None, law=log_cosh)) == "LawNode(3, None, law=log_cosh)"
    assert "(law): Logistic()" in repr(LawNode(3, law=Logistic(3)))
