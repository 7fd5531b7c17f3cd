"""What `EM` says of a batch that is not one call, by the names of the user's own."""

import copy

import pytest
import torch
import torch.nn as nn

import pyromancy as pyro
from pyromancy import native
from pyromancy.functional import gaussian_energy
from pyromancy.nodes import FixedNode, MultivariateGaussianNode, StandardGaussianNode


class Net(nn.Module):
    """A hidden node between data and a target, in float64."""

    def __init__(self, kind=StandardGaussianNode):
        super().__init__()
        self.below, self.hidden, self.out = FixedNode(6), StandardGaussianNode(5), kind(3)
        self.up, self.top = nn.Linear(6, 5), nn.Linear(5, 3)
        self.double()

    def start(self, x, y):
        self.hidden.init(self.up(self.below.init(x)) + 0.1)
        self.out.init(y)

    def energy(self):
        return self.hidden.energy(self.up(self.below.value)) + self.out.energy(self.top(self.hidden.value))

    def learned(self):
        return [*pyro.get_mstep_params(self)]


def twice(net, x, y):
    net.start(x, y)
    net.hidden.init(net.hidden.value * 0.5)


def forgotten(net, x, y):
    net.start(x, y)
    net.spare.reset()


def read_before(net, x, y):
    before = net.out.value.sum() if net.out.value.numel() else 0.0
    net.start(x, y + 0.0 * before)


STARTS = {
    "twice": (twice, "start cannot be captured: it sets the state of StandardGaussianNode(5) twice"),
    "forgotten": (forgotten, "start cannot be captured: it resets FixedNode(2) and does not set its state"),
    "read-before": (
        read_before, "start cannot be captured: it reads the state of StandardGaussianNode(3) before it sets it, by",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STARTS)
def test_starts_that_cannot_be_captured(name):
    start, told = STARTS[name]
    net = Net()
    net.spare = FixedNode(2)
    x, y = torch.randn(4, 6).double(), torch.randn(4, 3).double()
    net.start(x, y)
    states = [*pyro.get_estep_params(net, exclude=[net.out])]
    em = pyro.EM(
        net.energy, states, torch.optim.SGD(net.learned(), 0.1), start=lambda *xy: start(net, *xy), steps=2, lr=0.1
    )
    em.step(x, y)
    assert f"  not one call: {told}" in em.explain()


def storing(net, x, y):
    net.start(x, y)
    net.target = 2.0 * y


def asking(net, x, y):
    net.start(x, y if x.is_contiguous() else -y)


def of_a_set(net, x, y):
    net.start(x, y * len(MEMBERS))


def of_a_list(net, x, y):
    net.start(x, y[0])


MEMBERS = {1, 2}


def own(t):
    t.weight = 1.0
    return t


# A start, what it is given, and why it is run dry before every batch, or that it is not
DRY = {
    "stores": (storing, lambda x, y: (x, y), "it stores what it computes, such as mul of a tensor [4, 3]"),
    "layout": (asking, lambda x, y: (x, y), "it asks a tensor for is_contiguous, which is not looked at"),
    "a-list": (of_a_list, lambda x, y: (x, [y]), "it is given a list, which may be changed in place"),
    "attributes": (
        Net.start, lambda x, y: (x, own(y)), "it is given a tensor of a type of its own, or with attributes",
    ),
    "unknown": (of_a_set, lambda x, y: (x, y), "set, which may hold more than can be looked at"),
    "watched": (Net.start, lambda x, y: (x, y), None),
}  # fmt: skip


@pytest.mark.skipif(native.MODULE is None, reason="nothing is watched without the compiled module")
@pytest.mark.parametrize("name", DRY)
def test_why_a_start_is_run_dry_before_every_batch(name):
    start, given, told = DRY[name]
    net = Net()
    batch = given(torch.randn(4, 6).double(), torch.randn(4, 3).double())
    start(net, *batch)
    states = [*pyro.get_estep_params(net, exclude=[net.out])]
    em = pyro.EM(
        net.energy, states, torch.optim.SGD(net.learned(), 0.1), start=lambda *xy: start(net, *xy), steps=2, lr=0.1
    )
    for _ in range(7):
        em.step(*batch)
    lines = [line for line in em.explain().splitlines() if "start is run dry" in line]
    assert len(lines) == (told is not None)
    assert told is None or lines[0].startswith(f"  start is run dry before every batch: {told}")


def of_the_batch(net):
    return net.energy().sum()


def with_decay(net):
    return net.energy() + 0.1 * net.top.weight.square().sum()


def with_another_term(net):
    return net.energy() + net.hidden.value.abs().sum(1)


def of_a_computed_target(net):
    target = net.out.value.abs()
    return net.hidden.energy(net.up(net.below.value)) + gaussian_energy(target, net.top(net.hidden.value))


# The energy, the kind of the last node, and what is said, where it is not one call
ENERGIES = {
    "one-number": (of_the_batch, StandardGaussianNode, "the energy is one number for the whole batch"),
    "decay": (
        with_decay, StandardGaussianNode,
        "a term of the energy, sum of net.top.weight, depends on parameters and on no free state",
    ),
    "covariance": (Net.energy, MultivariateGaussianNode, "the full covariance of net.out.value is learned"),
    "computed-target": (of_a_computed_target, StandardGaussianNode, None),
    "no-chain": (with_another_term, StandardGaussianNode, "the energy is no chain, as is told below"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:the energy is one number:UserWarning")
@pytest.mark.parametrize("name", ENERGIES)
def test_energies_that_are_done_by_parts_or_could_be(name):
    """To the same weights as by hand."""
    energy, kind, told = ENERGIES[name]
    torch.manual_seed(0)
    net = Net(kind)
    twin = copy.deepcopy(net)
    x, y = torch.randn(4, 6).double(), torch.randn(4, 3).double()
    net.start(x, y)
    states = [*pyro.get_estep_params(net, exclude=[net.out])]
    optimizer = torch.optim.SGD(net.learned(), 0.1)
    em = pyro.EM(lambda: energy(net), states, optimizer, start=net.start, steps=2, lr=0.1)
    em.step(x, y)
    assert (f"  not one call: {told}" if told else "a batch: one call of an operator") in em.explain()

    with torch.no_grad():
        twin.start(x, y)
    for _ in range(2):
        (gradient,) = torch.autograd.grad(energy(twin).sum(), twin.hidden.value)
        with torch.no_grad():
            twin.hidden.value -= 0.1 * gradient
    gradients = torch.autograd.grad(energy(twin).mean(), twin.learned())
    for mine, other, gradient in zip(net.learned(), twin.learned(), gradients, strict=True):
        torch.testing.assert_close(mine.detach(), other.detach() - 0.1 * gradient, rtol=1e-12, atol=1e-12)
