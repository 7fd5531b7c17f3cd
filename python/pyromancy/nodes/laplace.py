"""Laplace nodes: absolute errors, which outliers pull at no more than others do."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import functional
from .scaled import ScaledNode

__all__ = ["LaplaceNode"]


class LaplaceNode(ScaledNode):
    """Node with a Laplace distribution around its prediction mu, and a scale b for every component.

    The energy is ``sum_i |z_i - mu_i| / b_i + log b_i`` per sample, the error its gradient for the state,
    ``sign(z_i - mu_i) / b_i``, which is 0 where ``z_i`` is ``mu_i``. Positions along placeholder dimensions share the
    scales and all count.

    Args:
        *shape: dimensions of the node without the batch dimension, None for placeholders.
        scale: initial scales: one for all components, or a vector of them; they are the mean absolute errors.

    Attributes:
        value: the state, ``[B, *node]``.
        logscale: logarithms of the scales, ``[size]``.
    """

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
