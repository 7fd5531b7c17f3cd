"""Nodes for targets that are not real numbers: clamped, of a distribution whose logarithm the prediction shapes."""

from __future__ import annotations

import sys
from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn as nn
from torch import Tensor

from .. import functional
from .base import StateNode, watched

__all__ = ["BernoulliNode", "PoissonNode", "TargetNode"]


class TargetNode(StateNode):
    """Base class of nodes whose state is given: inference leaves it alone, and no prediction can pull at it.

    Attributes:
        value: the state, ``[B, *node]``, a buffer; empty before `init`.
    """

    _most: ClassVar[float]  # what an element may be
    _told: ClassVar[str]  # what elements must be

    value: nn.Buffer

    def __init__(self, *shape: int | None) -> None:
        super().__init__(*shape)
        self.value = nn.Buffer(torch.empty(0), persistent=False)
        self._name_if_empty()

    def init(self, value: Tensor) -> Tensor:
        """Set the state, in the node's dtype and on its device.

        Where `pyromancy.EM` runs a batch in one call, targets on a GPU are taken as they are after the first batch.

        Args:
            value: ``[B, *node]``; copied.

        Returns:
            The state.

        Raises:
            TypeError: `value` is not a tensor, or complex.
            ValueError: the shape does not fit the node, the batch is empty, or an element is not what the node is for.
        """
        self._check_fits("value", value)
        if watched.setter is None:
            self.check(value)
        state: Tensor = super().init(value)
        return state

    def _refill(self, value: Tensor) -> None:
        if value.is_cpu:  # another device would be waited for
            self.check(value)
        self.value.copy_(value)

    def check(self, value: Tensor) -> None:
        """Raise TypeError or ValueError where a value that fits the node has an element that the node is not for."""
        if value.is_complex():
            raise TypeError(f"{self._described}.value must be real, got {value.dtype}")
        if value.is_meta or value.numel() == 0:
            return
        least, most = (float(x) for x in value.detach().aminmax())  # both NaN where an element is
        if not (least >= 0 and most <= self._most):
            wrong = most if least >= 0 else least
            raise ValueError(f"{self._described}.value must be {self._told}, got {wrong}")

    @abstractmethod
    def error(self, pred: Tensor) -> Tensor:
        """Error of a prediction, of the shape of the state: the energy's gradient for it, with the other sign."""

    @abstractmethod
    def energy(self, pred: Tensor) -> Tensor:
        """Energy of a prediction, one value per sample: ``[B]``."""

    @abstractmethod
    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A sample of the node's distribution with a prediction `value`."""


class BernoulliNode(TargetNode):
    """Clamped node of binary data, or of probabilities: z in [0, 1], predicted by logits mu.

    The energy is ``sum_i log(1 + exp(mu_i)) - z_i mu_i`` per sample, the cross-entropy of z and ``sigmoid(mu)``; the
    error ``z_i - sigmoid(mu_i)``. The last edge is a Linear without an activation after it.

    Args:
        *shape: dimensions of the node without the batch dimension, None for placeholders.

    Attributes:
        value: the state, ``[B, *node]``, a buffer; empty before `init`.
    """

    _most, _told = 1.0, "from 0 to 1 everywhere"

    def error(self, pred: Tensor) -> Tensor:
        """Error ``z_i - sigmoid(mu_i)``, of the shape of the state."""
        return functional.bernoulli_error(self._state("error"), pred)

    def energy(self, pred: Tensor) -> Tensor:
        """Energy ``sum_i log(1 + exp(mu_i)) - z_i mu_i`` per sample, ``[B]``."""
        return functional.bernoulli_energy(self._state("energy"), pred)

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Zeros and ones, a one with the probability ``sigmoid(value)``.

        Args:
            value: logits, ``[B, *node]``.
            generator: source of randomness; None is PyTorch's own.

        Returns:
            Samples, of the shape and dtype of `value`.

        Raises:
            TypeError: `value` is not a tensor.
            ValueError: its shape does not fit the node.
        """
        self._check_fits("value", value)
        return torch.bernoulli(value.detach().sigmoid(), generator=generator)


class PoissonNode(TargetNode):
    """Clamped node of counts: z >= 0, predicted by the logarithms mu of their rates.

    The energy is ``sum_i exp(mu_i) - z_i mu_i`` per sample, without the constant ``log z_i!``; the error
    ``z_i - exp(mu_i)``. The last edge is a Linear without an activation after it.

    Args:
        *shape: dimensions of the node without the batch dimension, None for placeholders.

    Attributes:
        value: the state, ``[B, *node]``, a buffer; empty before `init`.
    """

    _most, _told = sys.float_info.max, "counts, finite and not negative"

    def error(self, pred: Tensor) -> Tensor:
        """Error ``z_i - exp(mu_i)``, of the shape of the state."""
        return functional.poisson_error(self._state("error"), pred)

    def energy(self, pred: Tensor) -> Tensor:
        """Energy ``sum_i exp(mu_i) - z_i mu_i`` per sample, ``[B]``."""
        return functional.poisson_energy(self._state("energy"), pred)

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Counts, of the rates ``exp(value)``.

        Args:
            value: logarithms of rates, ``[B, *node]``.
            generator: source of randomness; None is PyTorch's own.

        Returns:
            Samples, of the shape and dtype of `value`.

        Raises:
            TypeError: `value` is not a tensor.
            ValueError: its shape does not fit the node.
        """
        self._check_fits("value", value)
        return torch.poisson(value.detach().exp(), generator=generator)
