"""Student nodes: errors with heavy tails, which outliers pull at less the farther they are."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from .. import functional
from .scaled import ScaledNode

__all__ = ["StudentNode"]


class StudentNode(ScaledNode):
    """Node with Student's t-distribution around its prediction mu, and a scale s for every component.

    The energy is ``sum_i (v + 1) / 2 log(1 + (z_i - mu_i)^2 / (v s_i^2)) + log s_i`` per sample, with v degrees of
    freedom, the error its gradient for the state, ``(v + 1) d_i / (v s_i^2 + d_i^2)`` with ``d_i = z_i - mu_i``. With
    ``dof=1`` it is a Cauchy node; a large `dof` comes near a Gaussian one of variance s^2. Positions along placeholder
    dimensions share the scales and all count.

    Args:
        *shape: dimensions of the node without the batch dimension, None for placeholders.
        dof: degrees of freedom v, a number that does not learn.
        scale: initial scales: one for all components, or a vector of them.

    Attributes:
        value: the state, ``[B, *node]``.
        logscale: logarithms of the scales, ``[size]``.
        dof: degrees of freedom.

    Raises:
        TypeError: `dof` or `scale` is not a number, or for scales a tensor.
        ValueError: `dof` or a scale is not positive and finite, or there are too many scales or too few.
    """

    _dof: float

    def __init__(self, *shape: int | None, dof: float = 1.0, scale: float | Tensor = 1.0) -> None:
        super().__init__(*shape, scale=scale)
        self.dof = dof

    @property
    def dof(self) -> float:
        """Degrees of freedom."""
        return self._dof

    @dof.setter
    def dof(self, value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"dof must be a number, got {value!r}")
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"dof must be positive and finite, got {value!r}")
        self._dof = float(value)

    def error(self, pred: Tensor) -> Tensor:
        """Error ``(v + 1) d_i / (v s_i^2 + d_i^2)`` with ``d_i = z_i - mu_i``, of the shape of the state."""
        return functional.student_error(self._state("error"), pred, self._of_components(self.logscale), self.dof)

    def energy(self, pred: Tensor) -> Tensor:
        """Energy ``sum_i (v + 1) / 2 log(1 + d_i^2 / (v s_i^2)) + log s_i`` per sample, ``[B]``."""
        return functional.student_energy(self._state("energy"), pred, self._of_components(self.logscale), self.dof)

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A sample of Student's distribution around `value`, by noise added to it (Bailey 1994, polar method).

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
        radius, angle = (
            torch.empty(rows.shape, dtype=torch.float64, device=rows.device).uniform_(generator=generator)
            for _ in range(2)
        )
        # sqrt(v (u^(-2 / v) - 1)) cos(2 pi w), with u in (0, 1]
        size = (self.dof * torch.expm1((-2 / self.dof) * torch.log1p(-radius))).sqrt()
        noise = (size * torch.cos(2 * math.pi * angle)).to(rows.dtype)
        return value + self._shape.disperse(noise * self.logscale.exp(), pragma)
