"""Edges that take columns of a state, and that pass an activation on, in one operator: what autograd makes of them."""

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import pyromancy as pyro
from pyromancy.functional import gaussian_energy
from pyromancy.nodes import FixedNode, FloatNode

pytestmark = pytest.mark.usefixtures("native_backend")
STEPS, RATE = 4, 0.1
WAYS = {
    "indexing": lambda z: (z[:, :3], z[..., 3:]),
    "narrow": lambda z: (z.narrow(1, 0, 3), torch.narrow(z, 1, 3, 4)),
    "split": lambda z: z.split([3, 4], dim=1),
    "tensor_split": lambda z: torch.tensor_split(z, (3,), dim=1),
    "chunk": lambda z: (z.chunk(3, 1)[0], torch.cat(z.chunk(3, 1)[1:], 1)),
    "a part of a part": lambda z: (z[:, :5][:, :3], z[:, 1:][:, 2:]),
}


def by_hand(energy, states, learned):
    for _ in range(STEPS):
        gradients = torch.autograd.grad(energy().sum(), states)
        with torch.no_grad():
            for z, g in zip(states, gradients, strict=True):
                z.sub_(RATE * g)
    return torch.autograd.grad(energy().mean(), learned)


def assert_fused(energy, states, learned, **options):
    """One operator, whose states and gradients are autograd's."""
    first = [z.detach().clone() for z in states]
    expected = by_hand(energy, states, learned)
    moved = [z.detach().clone() for z in states]
    for z, before in zip(states, first, strict=True):
        z.data = before
    loop = pyro.InferenceLoop(energy, states, lr=RATE, **options)
    loop.run(STEPS)
    loop.backward(learned)
    told = loop.explain()
    assert told.startswith("executor: chain"), told
    assert "not fused" not in told
    for a, b in zip((*states, *(p.grad for p in learned)), (*moved, *expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def free(*shape):
    return nn.Parameter(torch.randn(shape, dtype=torch.float64))


@pytest.mark.parametrize("batch", [1, 33])
@pytest.mark.parametrize("way", WAYS)
def test_a_linear_of_columns(way, batch):
    """Before and after an activation, of one state into several and of several into one."""
    x, y, u = (torch.randn(batch, n).double() for n in (5, 4, 2))
    z, w = free(batch, 7), free(batch, 4)
    up, a, b, top = (nn.Linear(*n).double() for n in ((5, 7), (3, 4), (4, 4), (4, 2)))

    def energy():
        left, right = WAYS[way](z)
        of_w = a(torch.tanh(left)) + b(right)
        own = gaussian_energy(z, up(x)) + gaussian_energy(w, of_w) + gaussian_energy(y, w)
        return own + gaussian_energy(u, top(WAYS[way](torch.tanh(z))[1]))

    assert_fused(energy, [z, w], [p for m in (up, a, b, top) for p in m.parameters()])


def test_columns_with_masks_and_transposed():
    x, y = torch.randn(6, 5).double(), torch.randn(6, 4).double()
    z, up, weight = free(6, 70), nn.Linear(5, 70).double(), free(40, 4)
    other, mask = free(4, 33), (torch.rand(4, 33) < 0.5).double()

    def energy():
        mu = torch.tanh(z[:, 30:]) @ weight + F.linear(z[:, 2:35], other * mask)
        return gaussian_energy(z, up(x)) + gaussian_energy(y, mu)

    assert_fused(energy, [z], [*up.parameters(), weight, other])


@pytest.mark.parametrize("after", [lambda x: x, torch.tanh], ids=["identity", "tanh"])
def test_activations_are_passed_on(after):
    """Of a state, scaled, beside products of others and of the same, and of columns."""
    x, y = torch.randn(6, 5).double(), torch.randn(6, 5).double()
    z, w = free(6, 5), free(6, 9)
    up, across, top = (nn.Linear(*n).double() for n in ((5, 5), (5, 9), (9, 5)))

    def energy():
        mu = after(top(torch.relu(w)) + 0.5 * torch.tanh(z) - 0.3 * w[:, 2:7] + 2 * torch.tanh(w[:, :5]) + z)
        return gaussian_energy(z, up(x)) + gaussian_energy(w, across(z)) + gaussian_energy(y, mu)

    assert_fused(energy, [z, w], [p for m in (up, across, top) for p in m.parameters()])


def test_nothing_but_columns_predicts():
    x, y, u = (torch.randn(6, n).double() for n in (5, 3, 2))
    z, up = free(6, 5), nn.Linear(5, 5).double()

    def energy():
        left, right = z.split([3, 2], 1)
        return gaussian_energy(z, up(x)) + gaussian_energy(y, left) + gaussian_energy(u, torch.sigmoid(right))

    assert_fused(energy, [z], [*up.parameters()])


def test_columns_of_data_are_what_they_are():
    """Few of many that do not change are a clamped node of their own: no product is as wide as the data."""
    x, z, y = torch.randn(6, 500).double(), free(6, 4), torch.randn(6, 3).double()
    up, top = nn.Linear(7, 4).double(), nn.Linear(4, 3).double()

    def energy():
        return gaussian_energy(z, up(x[:, 3:10])) + gaussian_energy(y, top(z))

    loop = pyro.InferenceLoop(energy, [z], lr=RATE)
    loop.run(1)
    assert "chain 7-4-3" in loop.explain()
    assert_fused(energy, [z], [*up.parameters(), *top.parameters()])


@pytest.mark.parametrize("take", [lambda z: z[:, ::2], lambda z: z[:, [0, 2, 4]]], ids=["steps", "indices"])
def test_other_columns_go_by_the_graph(take):
    x, y = torch.randn(6, 5).double(), torch.randn(6, 2).double()
    z, up, top = free(6, 5), nn.Linear(5, 5).double(), nn.Linear(3, 2).double()
    loop = pyro.InferenceLoop(lambda: gaussian_energy(z, up(x)) + gaussian_energy(y, top(take(z))), [z], lr=RATE)
    loop.run(1)
    assert loop.explain().startswith("executor: graph")


class Parts(nn.Module):
    """A state whose halves predict two others, one of them through an activation that is passed on."""

    def __init__(self):
        super().__init__()
        self.x, self.z, self.w, self.y = FixedNode(5), FloatNode(8), FloatNode(4), FixedNode(3)
        self.up, self.across, self.top = nn.Linear(5, 8), nn.Linear(4, 4), nn.Linear(4, 3)

    def of_w(self):
        left, right = self.z.value.chunk(2, 1)
        return self.across(torch.tanh(left)) + 0.5 * torch.tanh(right)

    def energy(self):
        own = gaussian_energy(self.z.value, self.up(self.x.value)) + gaussian_energy(self.w.value, self.of_w())
        return own + gaussian_energy(self.y.value, self.top(self.w.value))

    def start(self, x, y):
        self.x.init(x)
        self.z.init(self.up(self.x.value))
        self.w.init(self.of_w())
        self.y.init(y)


def test_a_batch_is_one_call():
    net = Parts().double()
    batches = [(torch.randn(6, 5).double(), torch.randn(6, 3).double()) for _ in range(4)]
    net.start(*batches[0])
    other = copy.deepcopy(net)
    ours, theirs = ([*m.up.parameters(), *m.across.parameters(), *m.top.parameters()] for m in (net, other))
    em = pyro.EM(net.energy, [net.z.value, net.w.value], torch.optim.Adam(ours, 0.01), start=net.start, steps=STEPS,
                 lr=RATE)  # fmt: skip
    adam = torch.optim.Adam(theirs, 0.01)
    for batch in batches:
        em.step(*batch)
        with torch.no_grad():
            other.start(*batch)
        for p, g in zip(theirs, by_hand(other.energy, [other.z.value, other.w.value], theirs), strict=True):
            p.grad = g
        adam.step()
    assert "a batch: one call of an operator\n" in em.explain()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_sweep_leaves_no_errors():
    net = Parts()
    x, y = torch.randn(6, 5), torch.randn(6, 3)
    net.start(x, y)
    learned = [*net.up.parameters(), *net.across.parameters(), *net.top.parameters()]
    first = [p.detach().clone() for p in learned]
    em = pyro.EM(net.energy, [net.z.value, net.w.value], torch.optim.SGD(learned, 1.0), start=net.start, steps=0,
                 lr=RATE)  # fmt: skip
    em.step(x, y)
    assert all(torch.equal(a, b) for a, b in zip(learned[:4], first[:4], strict=True))
    assert not torch.equal(net.top.weight, first[4])
