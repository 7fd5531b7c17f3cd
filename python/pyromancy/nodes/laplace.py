"""Laplace nodes: absolute errors, which outliers pull at no more than others do."""

from __future__ import annotations

from numbers import Real

import torch
import torch.nn as nn
from torch import Tensor

from .. import functional
from ..registration import mparameters
from .base import VariationalNode

__all__ = ["LaplaceNode"]


@mparameters("logscale")
class LaplaceNode(VariationalNode):
    """Node with a Laplace distribution around its prediction mu, and a scale b for every component.

    The energy is ``sum_i |z_i - mu_i| / b_i + log b_i`` per sample, the error its gradient for the state,
    ``sign(z_i - mu_i) / b_i``, which is 0 where ``z_i`` is ``mu_i``. Positions along placeholder dimensions share the
    scales and all count.

    Args:
        *shape: dimensions of the node without the batch dimension, None for placeholders.
        scale: initial scales: one for all components, or a vector of them.

    Attributes:
        value: the state, ``[B, *node]``.
        logscale: logarithms of the scales, ``[size]``.
    """

    logscale: nn.Parameter

    def __init__(self, *shape: int | None, scale: float | Tensor = 1.0) -> None:
        super().__init__(*shape)
        self.logscale = nn.Parameter(torch.zeros(self.size))
        self.scale = scale

    @property
    def scale(self) -> Tensor:
        """The scales, ``[size]``, which are the mean absolute errors; set from a scalar or a vector."""
        return self.logscale.exp()

    @scale.setter
    @torch.no_grad()
    def scale(self, value: float | Tensor) -> None:
        self.logscale.copy_(self._checked_scale(value).log())

    def error(self, pred: Tensor) -> Tensor:
        """Error ``sign(z_i - mu_i) / b_i``, of the shape of the state."""
        return functional.laplace_error(self._state("error"), pred, self._of_components(self.logscale))

    def energy(self, pred: Tensor) -> Tensor:
        """Energy ``sum_i |z_i - mu_i| / b_i + log b_i`` per sample, ``[B]``."""
        return functional.laplace_energy(self._state("energy"), pred, self._of_components(self.logscale))

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A sample of the Laplace distribution around `value`, by noise added to it.

        Args:
            value: location, ``[B, *node]``.
            generator: source of randomness; None is PyTorch's own.

        Returns:
            Samples, of the shape of `value`; differentiable in `value` and in the scales.

        Raises:
            TypeError: `value` is not a tensor.
            ValueError: its shape does not fit the node.
        """
        self._check_fits("value", value)
        rows, pragma = self._shape.coalesce(value)
        up, down = (torch.empty_like(rows).exponential_(generator=generator) for _ in range(2))
        return value + self._shape.disperse((up - down) * self.logscale.exp(), pragma)

    def _checked_scale(self, value: float | Tensor) -> Tensor:
        """`value` as a float64 scalar or vector of scales.

        Raises:
            TypeError: not a number or a real tensor.
            ValueError: of the wrong shape, not finite or not positive.
        """
        if not isinstance(value, Tensor):
            if not isinstance(value, Real):
                raise TypeError(f"scale must be a number or a tensor, got {value!r}")
            value = torch.tensor(float(value), dtype=torch.float64, device="cpu")
        elif value.is_complex():
            raise TypeError(f"scale must be real, got {value.dtype}")
        if tuple(value.shape) not in ((), (self.size,)):
            raise ValueError(
                f"scale must be a scalar or a vector of {self.size} scales, got shape {tuple(value.shape)}"
            )
        value = value.detach().double()
        if not (value.isfinite() & (value > 0)).all():
            raise ValueError(f"every scale must be positive and finite, got {value.tolist()}")
        return value
