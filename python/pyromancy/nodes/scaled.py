"""Scales of nodes: one for every component, learned as its logarithm."""

from __future__ import annotations

from numbers import Real

import torch
import torch.nn as nn
from torch import Tensor

from ..registration import mparameters
from .base import VariationalNode


@mparameters("logscale")
class ScaledNode(VariationalNode):
    """Base class of nodes that model distances from their prediction, in scales of their own.

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
        """The scales, ``[size]``; set from a scalar or a vector."""
        return self.logscale.exp()

    @scale.setter
    @torch.no_grad()
    def scale(self, value: float | Tensor) -> None:
        self.logscale.copy_(self._checked_scale(value).log())

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
