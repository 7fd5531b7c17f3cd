"""Nodes with a law of one's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import functional
from ..arguments import kind_of
from .base import PredictiveNode

__all__ = ["LawNode"]

ElementLaw = Callable[[Tensor, Tensor], Tensor]


class _Language:
    """What laws may be made of, which those know that read them."""

    lacks: Callable[[ElementLaw, int], str] | None = None  # what a law of so many elements has that they lack, or ""


language = _Language()


class LawNode(PredictiveNode):
    """Node whose energy is a function of one's own, element by element: minus the logarithm of a density.

    The function is written in PyTorch, of sums, differences, products, quotients, powers by numbers, ``abs``, ``sign``,
    ``sqrt``, ``rsqrt``, ``exp``, ``expm1``, ``log``, ``log1p``, ``tanh``, ``sigmoid``, ``softplus``, ``logsigmoid``,
    ``cosh``, ``sinh``, ``logaddexp``, ``relu``, ``clamp``, ``maximum``, ``minimum``, ``where`` and comparisons. Chains
    run it in their operator; docs/nodes.md says what is made of it. It may have one tensor of its own, of one element
    or of one for every element of the state, which may learn: ``rate.exp() * (z - mu).abs() - rate``.

    Args:
        *shape: dimensions of the node without the batch dimension, None for placeholders.
        law: the energies of elements, given states and predictions of one shape: ``torch.log(torch.cosh(z - mu))``.

    Attributes:
        value: the state, ``[B, *node]``.
        law: as it was given.

    Raises:
        TypeError: `law` cannot be called.
        ValueError: it gives something other than an energy for every element, or is made of more than the above.
    """

    def __init__(self, *shape: int | None, law: ElementLaw) -> None:
        super().__init__(*shape)
        if not callable(law):
            raise TypeError(f"law must be a function of a state and a prediction, got {kind_of(law)}")
        of = [2, *(n or 3 for n in self.shape)]
        try:
            energies = law(torch.zeros(of), torch.zeros(of))
        except RuntimeError as error:
            raise ValueError(
                f"law must take a state and a prediction {of}, and have tensors of its own that broadcast to these; "
                f"it raised {error}"
            ) from error
        if not isinstance(energies, Tensor) or [*energies.shape] != of:
            got = list(energies.shape) if isinstance(energies, Tensor) else kind_of(energies)
            raise ValueError(f"law must give one energy for every element, {of} of a state {of}, got {got}")
        # of more dimensions no chain takes it
        if language.lacks is not None and len(of) == 2 and (lacks := language.lacks(law, of[1])):
            raise ValueError(
                f"law must be made of what help(pyromancy.nodes.LawNode) lists: a law of one's own {lacks}; "
                "write any other into the energy itself, which then runs by the graph"
            )
        self.law = law

    def extra_repr(self) -> str:
        """The dimensions of the node, and its law by its name, unless that is a module, which has lines of its own."""
        name = getattr(self.law, "__qualname__", type(self.law).__name__)
        return super().extra_repr() + ("" if isinstance(self.law, torch.nn.Module) else f", law={name}")

    def error(self, pred: Tensor) -> Tensor:
        """What the energy grows by with the state, of its shape; without a graph."""
        state = self._state("error").detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.law(state, pred.detach()).sum(), state, materialize_grads=True)
        return slope

    def energy(self, pred: Tensor) -> Tensor:
        """The sum of the law over the elements of every sample, ``[B]``."""
        state = self._state("energy")
        return functional.own_energies(self.law(state, pred), state, pred).flatten(1).sum(1)
