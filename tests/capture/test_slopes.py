"""The slope of a PReLU is an activation's parameter that is looked up at every run, whoever changes it, and however."""

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import pyromancy as pyro
from descent import assert_as_autograd
from pyromancy import native
from pyromancy.functional import gaussian_energy
from pyromancy.nodes import LaplaceNode, StandardGaussianNode
from twins import Net, assert_same, batches, plainly, twins


class Chain:
    """Two free states between data and a target, in float64, a PReLU before the one product and after the other."""

    def __init__(self, slope):
        torch.manual_seed(0)
        self.states = [nn.Parameter(torch.randn(4, n).double()) for n in (6, 5)]
        self.edges = nn.ModuleList([nn.Linear(6, 5), nn.Linear(5, 3)]).double()
        self.x, self.y = torch.randn(4, 6).double(), torch.randn(4, 3).double()
        self.act = nn.PReLU(init=slope).double().requires_grad_(False)

    def energy(self):
        (z, h), (up, top) = self.states, self.edges
        within = gaussian_energy(z, self.x) + gaussian_energy(h, up(self.act(z)))
        return within + gaussian_energy(self.y, self.act(top(h)))


def in_place(chain):
    with torch.no_grad():
        chain.act.weight.fill_(0.6)


def by_data(chain):
    chain.act.weight.data.fill_(-0.5)  # which leaves the version of the weight alone


def by_numpy(chain):
    chain.act.weight.detach().numpy()[:] = 0.7


def other_memory(chain):
    chain.act.weight.data = torch.tensor([1.5]).double()


def another(chain):
    chain.act.weight = nn.Parameter(torch.tensor([0.9]).double(), requires_grad=False)


@pytest.mark.parametrize("change", [in_place, by_data, by_numpy, other_memory, another])
def test_changes_are_followed_without_another_capture(change):
    chain = Chain(0.25)
    loop = pyro.InferenceLoop(chain.energy, chain.states, lr=0.1)
    for _ in range(8):
        loop.run(1)
    assert native.MODULE is None or "run dry" not in loop.explain()
    change(chain)
    for _ in range(2):
        gradients = torch.autograd.grad(chain.energy().sum(), chain.states)
        expected = [z.detach() - 0.1 * g for z, g in zip(chain.states, gradients, strict=True)]
        loop.run(1)
        for z, exact in zip(chain.states, expected, strict=True):
            torch.testing.assert_close(z.detach(), exact, rtol=1e-12, atol=1e-12)
    assert loop.explain().startswith("executor: chain")
    assert "captured" not in loop.explain()


@pytest.mark.parametrize("slope", [0.25, -0.4, 0.0, 2.0])
def test_as_autograd(slope):
    chain = Chain(slope)
    explained = assert_as_autograd(chain.energy, chain.states, list(chain.edges.parameters()))
    assert explained.startswith("executor: chain")
    assert "not fused" not in explained


def test_a_learned_slope_is_no_chain():
    chain = Chain(0.25)
    chain.act.requires_grad_()
    learned = [*chain.edges.parameters(), chain.act.weight]
    explained = assert_as_autograd(chain.energy, chain.states, learned)
    assert explained.startswith("executor: graph")
    assert "requires no gradient, and act.weight is [1] on cpu, and requires one" in explained


@pytest.mark.parametrize("slope", [float("nan"), float("-inf")], ids=str)
def test_one_that_is_not_finite_is_named(slope):
    chain = Chain(0.25)
    loop = pyro.InferenceLoop(chain.energy, chain.states, lr=0.1)
    loop.run(1)
    before = [z.detach().clone() for z in chain.states]
    chain.act.weight.data.fill_(slope)
    with pytest.raises(FloatingPointError, match=f"act.weight, the slope of a PReLU, must be finite, got {slope}"):
        loop.run(1)
    assert all(torch.equal(z, start) for z, start in zip(chain.states, before, strict=True))


def test_one_for_each_feature_is_named():
    chain, act = Chain(0.25), nn.PReLU(6).double()
    z, h = chain.states
    explained = assert_as_autograd(
        lambda: gaussian_energy(z, chain.x) + gaussian_energy(h, chain.edges[0](act(z))), chain.states
    )
    assert explained.startswith("executor: graph")
    assert "that depends on no free state and requires no gradient, and act.weight is [6] on cpu" in explained


@pytest.mark.parametrize("way", ["step", "epoch"])
def test_batches_of_one_call_follow_a_frozen_slope(way):
    net, plain = twins(activation=nn.PReLU)
    for n in (net, plain):
        for module in n.modules():
            if isinstance(module, nn.PReLU):
                module.requires_grad_(False)
    learned = [[p for p in n.m_params() if p.requires_grad] for n in (net, plain)]
    ours, theirs = (torch.optim.Adam(m, 1e-2, eps=1e-2) for m in learned)
    em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=2, lr=0.1)
    for i, (x, y) in enumerate(batches(16, 7)):
        if i > 12:
            for n in (net, plain):
                n.edges[1][0].weight.data.fill_(0.1 * i)
        if way == "step":
            em.step(x, y)
        else:
            list(em.epoch(x, y, batch_size=7, shuffle=False))
        plainly(plain, theirs, x, y, steps=2, lr=0.1)
        assert_same(net.m_params() + net.e_params(), plain.m_params() + plain.e_params())
    assert "a batch: one call of an operator" in em.explain()


class OfData(Net):
    """The slope is computed from the batch."""

    def __init__(self):
        super().__init__(activation=nn.Identity)

    def predicted(self, edge, z):
        return edge(F.prelu(z, self.below.value.mean().reshape(1) - 0.3))

    def start(self, *states):
        for node, state in zip((self.below, *self.nodes), states, strict=True):
            node.init(state)

    def energy(self):
        values = [self.below.value, *(n.value for n in self.nodes)]
        return sum(n.energy(self.predicted(e, v)) for n, e, v in zip(self.nodes, self.edges, values, strict=False))


def test_one_that_is_computed_from_the_batch_is_that_of_every_batch_of_an_epoch():
    torch.manual_seed(0)
    net = OfData().double()
    plain = copy.deepcopy(net)
    ours, theirs = (torch.optim.SGD(n.m_params(), 0.1) for n in (net, plain))
    em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=2, lr=0.1)
    x, *hidden, y = (torch.rand(30, n).double() for n in (8, 32, 16, 3))
    x *= torch.linspace(0, 1, 30).double()[:, None]
    for _ in range(3):
        list(em.epoch(x, *hidden, y, batch_size=5, shuffle=False))
        for rows in torch.arange(30).split(5):
            between = [z[rows] for z in hidden]
            plain.start = lambda x, y, between=between: OfData.start(plain, x, *between, y)
            plainly(plain, theirs, x[rows], y[rows], steps=2, lr=0.1)
        assert_same(net.m_params() + net.e_params(), plain.m_params() + plain.e_params())
    assert "executor: chain" in em.explain()


def test_errors_that_a_sweep_leaves_are_zero():
    """Adam, which scales rounding up, then leaves alone what no error has reached."""
    torch.manual_seed(0)
    net = Net(activation=nn.PReLU)
    for edge in net.edges:
        edge[0].requires_grad_(False)
    before = copy.deepcopy(net.edges[0][1].weight)
    learned = [p for p in net.m_params() if p.requires_grad]
    em = pyro.EM(net.energy, net.e_params(), torch.optim.Adam(learned, 0.1), start=net.start, steps=1, lr=0.1)
    em.step(torch.rand(20, 8), torch.rand(20, 3))
    assert torch.equal(net.edges[0][1].weight, before)


def test_a_start_of_another_slope_is_no_sweep():
    net, plain = twins(activation=nn.PReLU)
    for n in (net, plain):
        n.requires_grad_(False).edges[1][1].requires_grad_()
        for node in n.nodes:
            node.value.requires_grad_()
        n.other = nn.PReLU(init=-0.5).double().requires_grad_(False)

    def start(n, x, y):
        z = n.nodes[0].init(n.edges[0](n.below.init(x)))
        n.nodes[1].init(n.edges[1][1](n.other(z)))
        n.nodes[2].init(y)

    for n in (net, plain):
        n.start = lambda x, y, n=n: start(n, x, y)
    ours, theirs = (torch.optim.SGD([n.edges[1][1].weight], 0.1) for n in (net, plain))
    em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=2, lr=0.1)
    for x, y in batches(3, 7):
        em.step(x, y)
        plainly(plain, theirs, x, y, steps=2, lr=0.1)
        assert_same(net.m_params() + net.e_params(), plain.m_params() + plain.e_params())
    assert "a batch: one call of an operator" in em.explain()


def test_a_slope_that_learns_is_done_by_parts():
    net, plain = twins(activation=nn.PReLU)
    ours, theirs = (torch.optim.SGD(n.m_params(), 0.1) for n in (net, plain))
    em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=3, lr=0.1)
    for x, y in batches(4, 7):
        em.step(x, y)
        plainly(plain, theirs, x, y, steps=3, lr=0.1)
        assert_same(net.m_params() + net.e_params(), plain.m_params() + plain.e_params())
    assert "not one call: the energy is no chain" in em.explain()


@pytest.mark.parametrize("kind", [StandardGaussianNode, LaplaceNode])
def test_a_slope_that_learns_moves_no_weight_that_no_error_has_reached(kind):
    torch.manual_seed(0)
    net = Net((8, 32, 32, 3), (kind, kind, StandardGaussianNode), nn.PReLU)
    before = copy.deepcopy(net.edges[0][1].weight)
    em = pyro.EM(net.energy, net.e_params(), torch.optim.Adam(net.m_params(), 0.1), start=net.start, steps=1, lr=0.1)
    em.step(torch.rand(20, 8), torch.rand(20, 3))
    assert torch.equal(net.edges[0][1].weight, before)
