"""A chain and its twin, one of which learns by `EM`, the other by plain autograd, in float64."""

import copy
import itertools

import torch
from torch import nn

import pyromancy as pyro
from pyromancy.nodes import FixedNode, StandardGaussianNode

UNIT = (StandardGaussianNode,) * 3


class Net(nn.Module):
    """A chain, with what `EM` takes of it."""

    def __init__(self, sizes=(8, 32, 16, 3), kinds=UNIT, activation=nn.Tanh):
        super().__init__()
        self.below = FixedNode(sizes[0])
        self.nodes = nn.ModuleList(kind(n) for kind, n in zip(kinds, sizes[1:], strict=True))
        self.edges = nn.ModuleList(nn.Sequential(activation(), nn.Linear(a, b)) for a, b in itertools.pairwise(sizes))

    def start(self, x, y):
        z = self.below.init(x)
        for node, edge in zip(self.nodes[:-1], self.edges, strict=False):
            z = node.init(edge(z))
        self.nodes[-1].init(y)

    def energy(self):
        values = [self.below.value, *(n.value for n in self.nodes)]
        return sum(n.energy(e(v)) for n, e, v in zip(self.nodes, self.edges, values, strict=False))

    def e_params(self):
        return list(pyro.get_estep_params(self, exclude=[self.nodes[-1]]))

    def m_params(self):
        return list(pyro.get_mstep_params(self))


def twins(*args, **kwargs):
    torch.manual_seed(0)
    net = Net(*args, **kwargs).double()
    return net, copy.deepcopy(net)


def batches(count, size=20, last=None):
    torch.manual_seed(1)
    sizes = [size] * (count - 1) + [last or size]
    return [(torch.rand(b, 8).double(), torch.rand(b, 3).double()) for b in sizes]


def plainly(net, optimizer, x, y, *, steps, lr, incremental=False, **options):
    """A batch by autograd and `torch.optim.SGD`."""
    with torch.no_grad():
        net.start(x, y)
    params, learned = net.e_params(), [p for g in optimizer.param_groups for p in g["params"]]
    descent = torch.optim.SGD(params, lr=lr, **options)

    def e_step():
        descent.zero_grad()
        net.energy().sum().backward(inputs=params)
        descent.step()

    def gradients():
        optimizer.zero_grad()
        net.energy().mean().backward(inputs=learned)

    for _ in range(steps):
        if incremental == "joint":
            gradients()
        e_step()
        if incremental is True:
            gradients()
        if incremental:
            optimizer.step()
    if not incremental:
        gradients()
        optimizer.step()


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def assert_same_state(one, other):
    one, other = one.state_dict()["state"], other.state_dict()["state"]
    assert one.keys() == other.keys()
    for k, state in other.items():
        assert one[k].keys() == state.keys()
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                assert one[k][name].dtype == value.dtype
                torch.testing.assert_close(one[k][name], value, rtol=1e-10, atol=1e-10)
            else:
                assert one[k][name] == value
