"""Parameters that are frozen and thawed after the capture: E-steps, M-steps and EM go by what they require now."""

import copy
import functools

import pytest
import torch
from torch import nn

import pyromancy as pyro
from pyromancy.nodes import FactorizedGaussianNode, LaplaceNode, StandardGaussianNode
from twins import assert_same, batches, plainly, twins

LAWS = (LaplaceNode, FactorizedGaussianNode, StandardGaussianNode)
PARTS = {
    "slope": lambda net: net.edges[1][0].weight,
    "weight": lambda net: net.edges[1][1].weight,
    "bias": lambda net: net.edges[2][1].bias,
    "scale": lambda net: net.nodes[0].logscale,
    "variance": lambda net: net.nodes[1].logvar,
}
# whether the part learns, batch after batch
TIMES = {"frozen": [True, True, False, False], "thawed": [False, False, True, True], "in turns": [True, False] * 3}


def pair():
    both = twins(kinds=LAWS, activation=functools.partial(nn.PReLU, init=0.3))
    for net in both:
        for edge in net.edges:  # a chain takes slopes that nothing learns
            edge[0].requires_grad_(False)
    return both


@pytest.fixture(params=PARTS)
def part(request):
    return PARTS[request.param]


@pytest.fixture(params=TIMES)
def times(request):
    return TIMES[request.param]


def test_runs_and_gradients(part, times):
    net, plain = pair()
    ((x, y),) = batches(1)
    for n in (net, plain):
        n.start(x, y)
    loop = pyro.InferenceLoop(net.energy, net.e_params(), lr=0.1)
    descent = torch.optim.SGD(plain.e_params(), 0.1)
    for learns in times:
        for n in (net, plain):
            part(n).requires_grad_(learns)
            for p in n.parameters():
                p.grad = None
        loop.run(2)
        for _ in range(2):
            descent.zero_grad()
            plain.energy().sum().backward(inputs=plain.e_params())
            descent.step()
        assert_same(net.e_params(), plain.e_params())
        loop.backward(net.m_params())
        wanted = [p for p in plain.m_params() if p.requires_grad]
        plain.energy().mean().backward(inputs=wanted)
        assert (part(net).grad is None) == (not learns)
        assert_same([p.grad for p in net.m_params() if p.requires_grad], [p.grad for p in wanted])
        fresh = pyro.InferenceLoop(net.energy, net.e_params(), lr=0.1)
        assert loop.explain().splitlines()[0] == fresh.explain().splitlines()[0]


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("first", [True, False], ids=["frozen", "thawed"])
def test_em(part, first, incremental):
    times = [first] * 12 + [not first] * 3  # long enough for the last batch to be repeated
    net, plain = pair()
    ours, theirs = (torch.optim.SGD(list(n.m_params()), 0.01) for n in (net, plain))
    em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=2, lr=0.05, incremental=incremental)
    for learns, (x, y) in zip(times, batches(len(times)), strict=True):
        for n in (net, plain):
            part(n).requires_grad_(learns)
        before = part(net).detach().clone()
        em.step(x, y)
        learned = [p for g in theirs.param_groups for p in g["params"] if p.requires_grad]
        frozen = copy.copy(theirs)
        frozen.param_groups = [theirs.param_groups[0] | {"params": learned}]
        plainly(plain, frozen, x, y, steps=2, lr=0.05, incremental=incremental)
        assert_same(net.m_params() + net.e_params(), plain.m_params() + plain.e_params())
        assert torch.equal(part(net), before) != learns
