"""Nodes for targets that are not real numbers: clamped, of a distribution whose logarithm the prediction shapes."""

from __future__ import annotations

from abc import abstractmethod

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

    value: nn.Buffer

    def __init__(self, *shape: int | None) -> None:
        super().__init__(*shape)
        self.value = nn.Buffer(torch.empty(0), persistent=False)
        self._name_if_empty()

    def init(self, value: Tensor) -> Tensor:
        """Set the state, in the node's dtype and on its device.

        Where `pyromancy.EM` runs a batch in one call, targets after the first batch are taken as they are.

        Args:
            value: ``[B, *node]``; copied.

        Returns:
            The state.

        Raises:
            TypeError: `value` is not a tensor, or complex.
            ValueError: the shape does not fit the node, the batch is empty, or an element is not what the node is for.
        """
        self._check_fits("value", value)
        if watched.setter is None and not value.is_meta:
            if value.is_complex():
                raise TypeError(f"value must be real, got {value.dtype}")
            self._check_targets(value.detach())
        state: Tensor = super().init(value)
        return state

    @abstractmethod
    def _check_targets(self, value: Tensor) -> None:
        """Raise where an element is not what the node is for."""

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

    def _check_targets(self, value: Tensor) -> None:
        if not ((value >= 0) & (value <= 1)).all():
            raise ValueError(f"value must be from 0 to 1 everywhere, got {_first(value, (value >= 0) & (value <= 1))}")

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

    def _check_targets(self, value: Tensor) -> None:
        fits = (value >= 0) & (value < torch.inf)
        if not fits.all():
            raise ValueError(f"value must be counts, finite and not negative, got {_first(value, fits)}")

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


def _first(value: Tensor, fits: Tensor) -> float:
    """The first element that does not fit."""
    return value[~fits][0].item()
