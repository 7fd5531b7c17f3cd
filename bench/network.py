"""The network of a setting, as a user writes it, with its data."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

    from .settings import Setting

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


class Parents(nn.Module):
    """An edge from several nodes: the sum of what modules make of their states.

    Args:
        modules: by the places of the nodes.
    """

    def __init__(self, modules: dict[int, nn.Module]) -> None:
        super().__init__()
        self.of = nn.ModuleDict({str(place): module for place, module in modules.items()})

    def forward(self, states: list[Tensor]) -> Tensor:
        """Prediction by those of the nodes that there are."""
        return cast("Tensor", sum(m(states[int(i)]) for i, m in self.of.items() if int(i) < len(states)))


def predicted(edge: nn.Module, states: list[Tensor], place: int) -> Tensor:
    """What an edge makes of the states of a node, whose place is told, given those of all that there are."""
    return cast("Tensor", edge(states) if isinstance(edge, Parents) else edge(states[place - 1]))


class PCN(nn.Module):
    """Standard Gaussian nodes in a row, each but the first predicted by an edge from the one below, or from several.

    Args:
        pyro: the package that provides the nodes.
        shapes: of the nodes, input first.
        edges: modules from one node's state to the prediction of the next, or `Parents`.
    """

    def __init__(self, pyro: ModuleType, shapes: Iterable[tuple[int, ...]], edges: nn.ModuleList) -> None:
        super().__init__()
        self.nodes: Any = nn.ModuleList(pyro.nodes.StandardGaussianNode(*shape) for shape in shapes)
        self.edges = edges

    @torch.no_grad()
    def init_xy(self, x: Tensor, y: Tensor) -> None:
        """Set the states by a forward sweep and clamp input and target."""
        self.zero_grad()
        for node in self.nodes:
            node.reset()
        states = [self.nodes[0].init(x)]
        for edge, node in zip(self.edges, self.nodes[1:-1], strict=False):
            states.append(node.init(predicted(edge, states, len(states))))
        self.nodes[-1].init(y)

    def energy(self) -> Tensor:
        """Free energy per sample, ``[B]``."""
        states = [node.value for node in self.nodes]
        links = enumerate(zip(self.nodes[1:], self.edges, strict=True), start=1)
        return cast("Tensor", sum(node.energy(predicted(edge, states, i)) for i, (node, edge) in links))


@dataclass
class Problem:
    """A network ready to run: parameters of both steps, clamped data, E-steps per batch and their rate.

    `adam` is the optimizer of an `EM`, which keeps no gradients but in there.
    """

    net: PCN
    e_params: list[nn.Parameter]
    m_params: list[nn.Parameter]
    x: Tensor
    y: Tensor
    steps: int
    rate: float
    adam: torch.optim.Adam | None = None

    @staticmethod
    def of(pyro: ModuleType, net: PCN, x: Tensor, y: Tensor, steps: int, rate: float) -> Problem:
        """Initialise a network on its data and collect its parameters."""
        net.init_xy(x, y)
        e_params = list(pyro.get_estep_params(net, exclude=(net.nodes[0], net.nodes[-1])))
        return Problem(net, e_params, list(pyro.get_mstep_params(net)), x, y, steps, rate)

    @property
    def states(self) -> list[Tensor]:
        """The free states."""
        return [node.value for node in self.net.nodes[1:-1]]


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


def linears(edges: nn.ModuleList) -> list[nn.Linear]:
    """The linear maps in edges, one each."""
    return [module for module in edges.modules() if isinstance(module, nn.Linear)]


def make_data(setting: Setting) -> tuple[Tensor, Tensor]:
    """Input and target, the same at every call: pixels on the wider side, labels one-hot on the narrower."""
    generator = torch.Generator().manual_seed(0)
    narrow, wide = sorted((setting.sizes[0], setting.sizes[-1]))
    pixels = torch.rand(setting.batch, wide, generator=generator)
    labels = F.one_hot(torch.randint(narrow, (setting.batch,), generator=generator), narrow).float()
    return (pixels, labels) if setting.sizes[0] == wide else (labels, pixels)


def make_problem(
    pyro: ModuleType, setting: Setting, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Problem:
    net = PCN(pyro, [(n,) for n in setting.sizes], make_edges(setting)).to(device, dtype)
    x, y = (t.to(device, dtype) for t in make_data(setting))
    return Problem.of(pyro, net, x, y, setting.steps, setting.rate)
