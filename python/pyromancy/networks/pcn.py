"""Networks whose nodes stand in a row."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn as nn
from torch import Tensor

from ..methods.base import check_number
from ..nodes import BernoulliNode, CategoricalNode, FloatNode, PoissonNode, PredictiveNode, TargetNode
from ..nodes.base import StateNode, predicting, sweeping
from ..registration import get_estep_params, get_mstep_params
from .layers import Copy, flat
from .locked import Locked, original
from .shapes import in_words, misfit

__all__ = ["PCN"]

# what a table says of a layer: sizes, by position or under these names, and these options
_SIZES, _OPTIONS = re.compile(r"(in|out)_features="), re.compile(r"(kernel_size|scale|p|bias=False)\b")


class PCN(nn.Module):
    """A predictive coding network whose nodes stand in a row, each predicting the next.

    The prediction of node l is ``mu_l = edges[l - 1](z_{l-1})``, and the energy the sum of the nodes' energies; the
    first node has none, unless it is a `FloatNode` with a prior. Training clamps the first node to an input and the
    last to a target. A first node that is a `FloatNode` is inferred, as the code of a generative network is.
    ``print(net)`` shows the nodes in a table.

    Args:
        nodes: from the input to the output; all but the first have an energy, and the last may be one for clamped
            targets alone, as a `BernoulliNode`.
        edges: one fewer, which predict a node's state from that of the node before.
        entry: applied to an input before it is the first node's state; None takes it as it is.
        temperature: what the last node's energy is divided by. A Gaussian's is its variance.

    Attributes:
        nodes: `torch.nn.ModuleList`.
        edges: `torch.nn.ModuleList`.
        entry: a module.
        temperature: a float.

    Raises:
        TypeError: a node is no node with a state, or one after the first has no energy.
        ValueError: there are fewer than two nodes, or not one edge fewer than nodes; an edge does not fit its nodes, as
            far as its layers tell; `temperature` is not above 0.
    """

    def __init__(
        self,
        nodes: Iterable[StateNode],
        edges: Iterable[nn.Module],
        entry: nn.Module | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        check_number("temperature", temperature, open_=True)
        self.temperature = temperature
        nodes, edges = list(nodes), list(edges)
        for i, node in enumerate(nodes):
            kinds = (StateNode,) if not i else (PredictiveNode,) if i < len(nodes) - 1 else (PredictiveNode, TargetNode)
            if not isinstance(node, kinds):
                expected = " or a ".join(kind.__name__ for kind in kinds)
                raise TypeError(f"nodes[{i}] must be a {expected}, got {type(node).__name__}")
        if len(nodes) < 2 or len(edges) != len(nodes) - 1:
            raise ValueError(f"nodes must be at least 2, and edges one fewer, got {len(nodes)} and {len(edges)}")
        for i, (below, edge, node) in enumerate(zip(nodes[:-1], edges, nodes[1:], strict=True)):
            if reason := misfit(edge, below.shape, node.shape):
                raise ValueError(
                    f"edges[{i}] must predict nodes[{i + 1}] of shape {in_words(node.shape)} from nodes[{i}] of shape "
                    f"{in_words(below.shape)}, got {_told(edge)}, {reason}"
                )
        self.entry = nn.Sequential() if entry is None else entry
        self.nodes = nn.ModuleList(nodes)
        self.edges = nn.ModuleList(edges)
        # whether it holds something for a batch, which it finds in its sweep
        self._locks_last = any(isinstance(m, Locked) for m in self.edges[-1].modules())

    def start(self, x: Tensor, y: Tensor | None = None) -> None:
        """Set all states for a batch: clamp the ends, and the others start at their predictions, by a forward sweep.

        Args:
            x: the input, ``[B, *first node]`` after `entry`.
            y: the target, ``[B, *last node]``, so one-hot and not an index for a class, unless the last node is a
                `CategoricalNode`; None starts the last node at its prediction, too, and one that is predicted by
                logits or logarithms of rates at the probabilities or rates.

        Raises:
            TypeError: `x` or `y` is not a tensor.
            ValueError: one does not fit its node, or they differ in length.
        """
        nodes: list[Any] = list(self.nodes)
        with torch.no_grad(), sweeping():
            z = self._entered(x)
            if y is not None:
                if isinstance(y, Tensor) and y.dim() == 1 and nodes[-1].shape and not self._classifies:
                    # no f-strings here: they call what they do not name, and then this could not be watched
                    one = nodes[-1].shape == (1,)
                    way = "y.unsqueeze(1)" if one else "torch.nn.functional.one_hot(y, classes).float()"
                    of = "a number for every sample" if one else "class indices"
                    raise ValueError(
                        "y must have a row per sample, which "
                        + way
                        + " makes of "
                        + of
                        + ", got shape "
                        + str(tuple(y.shape))
                    )
                nodes[-1]._check_fits("y", y)
                if len(y) != len(z):
                    raise ValueError("y must have as many rows as x, " + str(len(z)) + ", got " + str(len(y)))
            z = nodes[0].init(z)
            for node, edge in zip(nodes[1:-1], self.edges, strict=False):
                z = node.init(edge(z))
            if y is None:
                y = self._mean(self.edges[-1](z))
            elif self._locks_last:
                self.edges[-1](z)
            nodes[-1].init(y)

    @property
    def _classifies(self) -> bool:
        return isinstance(self.nodes[-1], CategoricalNode)

    def _mean(self, pred: Tensor) -> Tensor:
        """The output's state that a prediction expects."""
        node = self.nodes[-1]
        if isinstance(node, CategoricalNode):
            return pred.softmax(1)
        if isinstance(node, BernoulliNode):
            return pred.sigmoid()
        return pred.exp() if isinstance(node, PoissonNode) else pred

    def predict(self, x: Tensor) -> Tensor:
        """The output's prediction by a forward sweep, ``[B, *last node]``; no state is read or set.

        Of a categorical output these are logits: ``predict(x).argmax(1)`` are classes, ``softmax(1)`` probabilities; so
        they are of a Bernoulli output, and of a Poisson one logarithms of rates.

        It has gradients as any module's result has: put it under `torch.no_grad` where none are needed. `x` is taken in
        the first node's dtype, as `start` takes it.

        Raises:
            TypeError: `x` is not a tensor.
            ValueError: `x` does not fit the first node.
        """
        with predicting():
            z = self._entered(x)
            z = z.to(cast(Tensor, self.nodes[0].value).dtype)
            for edge in self.edges:
                z = edge(z)
        return z

    def forward(self, x: Tensor) -> Tensor:
        """`predict`."""
        return self.predict(x)

    def node_energies(self) -> Tensor:
        """Energy of every node but the first, for every sample, ``[nodes - 1, B]``; the last over `temperature`.

        That of a first node with a prior comes before them, ``[nodes, B]``.
        """
        nodes: list[Any] = list(self.nodes)
        joined = zip(nodes[:-1], self.edges, nodes[1:], strict=True)
        energies = [node.energy(edge(below.value)) for below, edge, node in joined]
        if self.temperature != 1:
            energies = [*energies[:-1], energies[-1] / self.temperature]
        if isinstance(nodes[0], FloatNode) and nodes[0].prior is not None:
            energies = [nodes[0].energy(), *energies]
        return torch.stack(energies)

    def energy(self) -> Tensor:
        """Free energy per sample, ``[B]``."""
        return self.node_energies().sum(0)

    def e_params(self) -> list[nn.Parameter]:
        """The free states, for the E-step: all but the last node's, and the first's where that is a `FixedNode`."""
        return list(get_estep_params(self, exclude=[self.nodes[-1]]))

    def m_params(self) -> list[nn.Parameter]:
        """What is learned, for the M-step."""
        return list(get_mstep_params(self))

    def sequential(self) -> nn.Sequential:
        """The same network for backpropagation: its layers in a row, which share their parameters with this one.

        They are numbered as in a Sequential without others in it. What `from_sequential` was given needs no way back:
        it has learned itself.
        """
        return nn.Sequential(*(original(m) for m in flat([self.entry, *self.edges]) if not isinstance(m, Copy)))

    def __repr__(self) -> str:
        """A table of the nodes: what holds each, of which shape, whether E-steps move it, and what predicts it."""
        free = {id(p) for p in self.e_params()}
        rows = [("", "node", "shape", "state", "predicted by", "learned")]
        for i, (node, edge) in enumerate(zip(self.nodes, [None, *self.edges], strict=True)):
            learned = [p for module in (node, edge) if module is not None for p in get_mstep_params(module)]
            rows.append(
                (
                    str(i), _node_told(node, self.temperature if i == len(self.edges) else 1),
                    in_words(cast(Any, node).shape),
                    "free" if id(cast(Any, node).value) in free else "clamped",
                    _input_told(self.entry) if edge is None else _told(edge),
                    f"{sum(p.numel() for p in learned if p.requires_grad):,}",
                )
            )  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join([*map(str.ljust, row[:-1], widths), row[-1].rjust(widths[-1])]) for row in rows]
        learned = [p for p in self.m_params() if p.requires_grad]
        batch = len(cast(Any, self.nodes[-1]).value)
        states = f"states of {batch} samples" if batch else "no states yet: start(x, y) sets them"
        total = f"{sum(p.numel() for p in learned):,} learned parameters; {states}"
        return "\n".join([f"{type(self).__name__}(", *(f"  {line}" for line in [*lines, total]), ")"])

    def _entered(self, x: Tensor) -> Tensor:
        """An input as the first node takes it."""
        node: Any = self.nodes[0]
        node._check_is_tensor("x", x)
        z: Tensor = self.entry(x)
        node._check_fits("x", z)
        return z


def _node_told(node: nn.Module, temperature: float) -> str:
    """A node's class, which is its law, and what there is to say beside its shape."""
    more = [] if temperature == 1 else [f"temperature={temperature:g}"]
    if (prior := getattr(node, "prior", None)) is not None:
        more.append(f"prior={getattr(prior, '__name__', type(prior).__name__)}")
    if (law := getattr(node, "law", None)) is not None:
        more.append(f"law={getattr(law, '__name__', type(law).__name__)}")
    return type(node).__name__ + (f"({', '.join(more)})" if more else "")


def _input_told(entry: nn.Module) -> str:
    """What an input goes through before it is a state."""
    layers = [*flat([entry])]
    return f"x by {_told(entry)}" if layers else ""


def _told(edge: nn.Module) -> str:
    """The layers of an edge in a row, in few words."""
    return ", ".join(map(_layer_told, flat([edge]))) or "its own state"


def _layer_told(layer: nn.Module) -> str:
    if isinstance(layer, Locked):
        layer = layer.layer
    name, parts = type(layer).__name__, [m for m in layer.children() if m is not None]
    if parts:
        return f"{name}({'; '.join(map(_told, parts))})"
    given = [_SIZES.sub("", a) for a in re.split(r", (?=\w+=)", layer.extra_repr())]
    return f"{name}({', '.join(a for a in given if '=' not in a or _OPTIONS.match(a))})".removesuffix("()")
