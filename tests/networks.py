"""Small predictive coding networks for the tests, of this package's nodes or of another's."""

import itertools

import torch
import torch.nn as nn
from torch.nn.functional import tanh

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
