"""Nodes without a distribution of their own: learned biases and clamped or free inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from .. import functional
from ..registration import eparameters, mparameters
from .base import Node, StateNode

__all__ = ["BiasNode", "FixedNode", "FloatNode"]


@mparameters("bias")
class BiasNode(Node):
    """A learned constant, for unsupervised networks: the prediction of the topmost states.

    Args:
        *shape: dimensions of the bias without the batch dimension; a placeholder has size 1 and broadcasts.

    Attributes:
        bias: the constant, of the node's dimensions.
    """

    bias: nn.Parameter

    def __init__(self, *shape: int | None) -> None:
        super().__init__(*shape)
        self.bias = nn.Parameter(torch.zeros(self.bshape))

    def reset(self) -> None:
        """Nothing: the bias is no transient state."""

    def error(self, pred: Tensor) -> Tensor:
        """Error ``b - mu`` of a prediction, of its shape."""
        return self.bias - pred

    def forward(self, inputs: Tensor, **kwargs: Any) -> Tensor:
        """The bias expanded to the shape of `inputs`, ``[B, *node]``; nothing else of `inputs` matters."""
        return self.bias.unsqueeze(0).expand_as(inputs)


class FixedNode(StateNode):
    """An input that inference leaves alone: query by conditioning.

    Args:
        *shape: dimensions of the node without the batch dimension, None for placeholders.

    Attributes:
        value: the state, ``[B, *node]``, a buffer; empty before `init`.
    """

    value: nn.Buffer

    def __init__(self, *shape: int | None) -> None:
        super().__init__(*shape)
        self.value = nn.Buffer(torch.empty(0), persistent=False)
        self._name_if_empty()

    def error(self, pred: Tensor) -> Tensor:
        """Error ``z - mu`` of a prediction, of the shape of the state."""
        return functional.gaussian_error(self._state("error"), pred)


@eparameters("value")
class FloatNode(StateNode):
    """An input that inference updates: query by initialisation, or a code with a prior.

    Args:
        *shape: dimensions of the node without the batch dimension, None for placeholders.
        prior: None, or the energy per sample of a state and a prediction, which is 0: `functional.gaussian_energy`,
            `functional.laplace_energy`, `functional.student_energy` (Cauchy's, of one degree of freedom), or one's own.

    Attributes:
        value: the state, ``[B, *node]``, an E-step parameter; empty before `init`.
        prior: as it was given.

    Raises:
        TypeError: `prior` cannot be called.
    """

    value: nn.Parameter

    def __init__(self, *shape: int | None, prior: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__(*shape)
        if not (prior is None or callable(prior)):
            raise TypeError(f"prior must be a function of a state and a prediction, or None, got {prior!r}")
        self.prior = prior
        self.value = nn.Parameter(torch.empty(0))
        self._name_if_empty()

    def error(self, pred: Tensor) -> Tensor:
        """Error ``z - mu`` of a prediction, of the shape of the state."""
        return functional.gaussian_error(self._state("error"), pred)

    def energy(self) -> Tensor:
        """The prior's energy of the state, one value per sample: ``[B]``.

        Raises:
            RuntimeError: the node has no prior, or no state.
        """
        if self.prior is None:
            raise RuntimeError(f"{self._described} has no energy without a prior: FloatNode(..., prior=)")
        state = self._state("energy")
        return self.prior(state, torch.zeros_like(state))
