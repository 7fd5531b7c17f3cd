"""Small predictive coding networks for the tests, of this package's nodes or of another's."""

import itertools

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.functional import tanh

import pyromancy as pyro
from pyromancy import nodes

KINDS = ("StandardGaussianNode", "IsotropicGaussianNode", "FactorizedGaussianNode", "MultivariateGaussianNode")
LEARNED = KINDS[1:]


def node(kind, *shape, covariance=None, package=nodes):
    """A node of a kind by name, in float64; the covariance by whatever name its class has for it."""
    key = "covariance" if kind == "MultivariateGaussianNode" else "variance"
    return getattr(package, kind)(*shape, **({} if covariance is None else {key: covariance})).double()


def covariance_of(size):
    """A covariance with correlations."""
    a = torch.randn(size, size, dtype=torch.float64)
    return a @ a.T / size + torch.eye(size, dtype=torch.float64)


class Row(nn.Module):
    """Nodes that any modules join, each predicting the next; training clamps the first and the last."""

    def __init__(self, nodes, edges):
        super().__init__()
        self.nodes, self.edges = nn.ModuleList(nodes), nn.ModuleList(edges)

    def start(self, x, y):
        with torch.no_grad():
            z = self.nodes[0].init(x)
            for edge, hidden in zip(self.edges, self.nodes[1:-1], strict=False):
                z = hidden.init(edge(z))
            self.nodes[-1].init(y)

    def energy(self):
        return sum(b.energy(e(a.value)) for (a, b), e in zip(itertools.pairwise(self.nodes), self.edges, strict=True))

    def free(self):
        return [n.value for n in self.nodes[1:-1]]

    def learned(self):
        return list(pyro.get_mstep_params(self))


class Chain(nn.Module):
    """Nodes joined by linear edges, the activation before the product: mu_l = W_l f(z_{l-1}) + b_l."""

    def __init__(self, kinds, widths, package=nodes, activation=tanh, bias=True):
        super().__init__()
        self.nodes = nn.ModuleList(node(kind, n, package=package) for kind, n in zip(kinds, widths, strict=True))
        self.edges = nn.ModuleList(
            nn.Linear(a, b, bias=bias, dtype=torch.float64) for a, b in itertools.pairwise(widths)
        )
        self.activation = activation

    def predict(self, state, edge):
        return edge(self.activation(state))

    def init(self, x, y):
        """Clamp the ends and start the states between them at their predictions."""
        state = self.nodes[0].init(x)
        for edge, node in zip(self.edges[:-1], self.nodes[1:-1], strict=True):
            state = node.init(self.predict(state, edge).detach())
        self.nodes[-1].init(y)

    def energy(self):
        """Free energy per sample."""
        above = self.nodes[0].value
        total = 0.0
        for edge, node in zip(self.edges, self.nodes[1:], strict=True):
            total = total + node.energy(self.predict(above, edge))
            above = node.value
        return total


class Program(nn.Module):
    """Anything with nodes and an energy."""

    def __init__(self, *nodes, **modules):
        super().__init__()
        self.nodes = nn.ModuleList(nodes)
        for name, module in modules.items():
            setattr(self, name, module)
        self.double()


class Convolutional(Program):
    def energy(self):
        x, a, b, y = self.nodes
        return (
            a.energy(self.first(F.relu(x.value)))
            + b.energy(F.avg_pool2d(self.second(F.relu(a.value)), 2))
            + y.energy(self.third(b.value.flatten(1)))
        )


def standard(*shapes):
    return [nodes.StandardGaussianNode(*s) if isinstance(s, tuple) else nodes.StandardGaussianNode(s) for s in shapes]


def convolutional():
    shared = nodes.FactorizedGaussianNode(4, None, None)
    row = [*standard((2, 8, 8)), shared, *standard((3, 4, 4), 5)]
    edges = {
        "first": nn.Conv2d(2, 4, 3, padding=1),
        "second": nn.Conv2d(4, 3, 3, padding=1),
        "third": nn.Linear(48, 5),
    }
    return Convolutional(*row, **edges), (0, 3), "graph"


def autograd_loop(energy, states, steps, lr, reduce=torch.sum, **options):
    """The loop of the documentation; returns the energies before each step, per sample."""
    optimizer = torch.optim.SGD(states, lr=lr, **options)
    energies = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = energy()
        energies.append(value.detach().clone())
        reduce(value).backward(inputs=states)
        optimizer.step()
    return energies


def states_of(network, clamped=()):
    return list(pyro.get_estep_params(network, exclude=[network.nodes[i] for i in clamped]))


def randomize(network, batch):
    """States and covariances that are no fixed point of anything."""
    for node in network.nodes:
        node.init(torch.randn(batch, *node.bshape, dtype=torch.float64))
        if hasattr(node, "logvar"):
            node.logvar.data.normal_(std=0.3)
        if hasattr(node, "covar_cf_logdiag"):
            node.covariance = covariance_of(node.size)


class Images(nn.Module):
    """Images, whose layout the executor changes; the edge before them is fixed."""

    def __init__(self):
        super().__init__()
        self.nodes = nn.ModuleList(
            [nodes.FloatNode(3, 8, 8), *(nodes.StandardGaussianNode(*s) for s in ((4, 8, 8), (2, 4, 4)))]
        )
        self.edges = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)])

    def init(self, x, y):
        self.nodes[0].init(x)
        self.nodes[1].init(self.edges[0](x).detach())
        self.nodes[2].init(y)

    def energy(self):
        x, z = self.nodes[0].value, self.nodes[1].value
        below = F.avg_pool2d(self.edges[1](tanh(z)), 2)
        return self.nodes[1].energy(self.edges[0](x)) + self.nodes[2].energy(below)


def data_for(network, batch):
    """Input and target of `Chain` or `Images`."""
    like = network.edges[0].weight
    return tuple(torch.randn(batch, *network.nodes[i].bshape, dtype=like.dtype, device=like.device) for i in (0, -1))


def loop_for(network, executor=None, **options):
    """A loop over it that clamps both ends."""
    states = list(pyro.get_estep_params(network, exclude=[network.nodes[0], network.nodes[-1]]))
    return pyro.InferenceLoop(network.energy, states, **{"lr": 0.02} | options, executor=executor)
