"""The network of a setting, as a user writes it, and what one EM batch of it must come to."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from types import ModuleType

    from .settings import Setting

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


class ChainPCN(nn.Module):
    """A chain of standard Gaussian nodes.

    Args:
        pyro: the package that provides the nodes.
        setting: widths and activation.
    """

    def __init__(self, pyro: ModuleType, setting: Setting) -> None:
        super().__init__()
        self.nodes = nn.ModuleList(pyro.nodes.StandardGaussianNode(n) for n in setting.sizes)
        self.edges = make_edges(setting)

    @torch.no_grad()
    def init_xy(self, x: Tensor, y: Tensor) -> None:
        """Set the states by a forward sweep and clamp input and target."""
        self.zero_grad()
        for node in self.nodes:
            node.reset()
        z = self.nodes[0].init(x)
        for edge, node in zip(self.edges, self.nodes[1:-1], strict=False):
            z = node.init(edge(z))
        self.nodes[-1].init(y)

    def energy(self) -> Tensor:
        """Free energy per sample, ``[B]``."""
        links = zip(pairwise(self.nodes), self.edges, strict=True)
        return sum(above.energy(edge(below.value)) for (below, above), edge in links)


@dataclass
class Problem:
    """A setting ready to run: network, parameters of both steps, data."""

    setting: Setting
    net: ChainPCN
    e_params: list[nn.Parameter]
    m_params: list[nn.Parameter]
    x: Tensor
    y: Tensor


def make_edges(setting: Setting) -> nn.ModuleList:
    """Edges with weights of variance 1 / fan-in and no bias yet, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    edges = nn.ModuleList()
    for a, b in pairwise(setting.sizes):
        linear = nn.Linear(a, b)
        nn.init.normal_(linear.weight, std=a**-0.5, generator=generator)
        nn.init.zeros_(linear.bias)
        edges.append(nn.Sequential(ACTIVATIONS[setting.activation](), linear))
    return edges


def make_data(setting: Setting) -> tuple[Tensor, Tensor]:
    """Input and target, the same at every call: pixels on the wider side, labels one-hot on the narrower."""
    generator = torch.Generator().manual_seed(0)
    narrow, wide = sorted((setting.sizes[0], setting.sizes[-1]))
    pixels = torch.rand(setting.batch, wide, generator=generator)
    labels = F.one_hot(torch.randint(narrow, (setting.batch,), generator=generator), narrow).float()
    return (pixels, labels) if setting.sizes[0] == wide else (labels, pixels)


def make_problem(pyro: ModuleType, setting: Setting, dtype: torch.dtype = torch.float32) -> Problem:
    net = ChainPCN(pyro, setting).to(dtype)
    x, y = (t.to(dtype) for t in make_data(setting))
    net.init_xy(x, y)
    e_params = list(pyro.get_estep_params(net, exclude=(net.nodes[0], net.nodes[-1])))
    return Problem(setting, net, e_params, list(pyro.get_mstep_params(net)), x, y)


@dataclass
class Outcome:
    """What a batch left behind: the free states, and the gradients that the M-step used."""

    states: list[Tensor]
    gradients: list[Tensor]

    def deviation(self, exact: Outcome) -> float:
        """Norm of the difference over norm, for all states together and all gradients together: the larger.

        Together, because the first layers of a deep network receive next to no error in few steps: their gradients
        are the rounding of ``z - mu``, far below those of the last layers.
        """

        def relative(got: list[Tensor], expected: list[Tensor]) -> float:
            a, b = (torch.cat([t.detach().double().flatten() for t in tensors]) for tensors in (got, expected))
            return ((a - b).norm() / b.norm()).item()

        return max(relative(self.states, exact.states), relative(self.gradients, exact.gradients))


def outcome(problem: Problem) -> Outcome:
    return Outcome([node.value for node in problem.net.nodes[1:-1]], [p.grad for p in problem.m_params])


def exact_outcome(setting: Setting) -> Outcome:
    """`outcome` of the first batch, by hand-written gradients in float64.

    With errors ``e_l = z_l - mu_l`` a state moves along ``e_l - f'(z_l) W_l^T e_(l+1)``; the weights of an edge
    receive ``-e_(l+1) f(z_l)^T``, averaged over the batch.
    """
    f, slope = {
        "relu": (F.relu, lambda z: (z > 0).double()),
        "tanh": (torch.tanh, lambda z: 1 - torch.tanh(z) ** 2),
        "sigmoid": (torch.sigmoid, lambda z: torch.sigmoid(z) * torch.sigmoid(-z)),
    }[setting.activation]
    x, y = (t.double() for t in make_data(setting))
    weights = [edge[1].weight.detach().double() for edge in make_edges(setting)]  # biases start at 0
    states = [x]
    for weight in weights[:-1]:
        states.append(f(states[-1]) @ weight.T)
    states.append(y)

    def errors() -> list[Tensor]:
        return [above - f(below) @ w.T for (below, above), w in zip(pairwise(states), weights, strict=True)]

    for _ in range(setting.steps):
        e = errors()
        for i in range(1, len(weights)):
            states[i] = states[i] - setting.rate * (e[i - 1] - slope(states[i]) * (e[i] @ weights[i]))
    gradients = []
    for below, error in zip(states, errors(), strict=False):
        gradients += [-error.T @ f(below) / setting.batch, -error.mean(0)]
    return Outcome(states[1:-1], gradients)
