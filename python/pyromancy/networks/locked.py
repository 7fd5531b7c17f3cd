"""Layers that draw at random, and batch normalization, that know of batches: E-steps descend one energy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..nodes.base import predicting, running, sweeping
from .layers import replaced

__all__ = ["LockedAlphaDropout", "LockedDropout", "LockedRReLU", "SweptBatchNorm"]

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_ALPHA_DROPOUTS = (nn.AlphaDropout, nn.FeatureAlphaDropout)
_SATURATION = -1.7580993408473766  # of SELU: what alpha dropout puts in the place of what it drops
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Locked(nn.Module, ABC):
    """A layer that in training mode does one thing in the sweep that a batch starts with, and another after it.

    Args:
        layer: the layer, which shares what it holds.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's own result in evaluation mode, or where a network predicts; else that of the batch."""
        if not self.training or running.by is predicting:
            return cast(Tensor, self.layer(x))
        if running.by is sweeping:
            with torch.no_grad():
                self._sweep(x)
        return self._within_batch(x)

    @abstractmethod
    def _sweep(self, x: Tensor) -> None:
        """What is done once a batch."""

    @abstractmethod
    def _within_batch(self, x: Tensor) -> Tensor:
        """The result at every evaluation of the energy."""


class Drawn(Locked):
    """A layer whose random numbers are drawn once a batch, by the sweep that it starts with.

    So the states descend one energy, that of a network drawn at random, and the weights learn from it. Numbers that are
    drawn at every evaluation, as the layers of `torch.nn` draw them, leave no energy to descend.

    Attributes:
        mask: what was drawn for the batch, of the shape of the layer's input; a buffer that is not saved.

    Raises:
        RuntimeError: nothing is drawn for an input, of its shape.
    """

    mask: Tensor

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.register_buffer("mask", torch.empty(0), persistent=False)

    def _sweep(self, x: Tensor) -> None:
        drawn = self._drawn(torch.ones_like(x, memory_format=torch.contiguous_format))
        if (drawn.shape, drawn.dtype, drawn.device) == (self.mask.shape, self.mask.dtype, self.mask.device):
            self.mask.copy_(drawn)  # in place: who has recorded an energy knows it again
        else:
            self.mask = drawn

    def _within_batch(self, x: Tensor) -> Tensor:
        if self.mask.shape != x.shape:
            raise RuntimeError(
                f"{type(self).__name__} holds nothing for a batch of shape {tuple(x.shape)}: start the batch by "
                f"PCN.start, or by a forward pass within pyromancy.networks.sweeping()"
            )
        return self._masked(x)

    @abstractmethod
    def _drawn(self, ones: Tensor) -> Tensor:
        """What the layer draws for an input of the shape of these."""

    @abstractmethod
    def _masked(self, x: Tensor) -> Tensor:
        """What the layer makes of an input with what was drawn."""


class LockedDropout(Drawn):
    """Dropout whose mask is drawn once a batch, by the sweep that it starts with, and is the same at every E-step.

    Args:
        layer: a Dropout of `torch.nn`, which says what is drawn.

    Attributes:
        mask: of the batch, of the shape of the layer's input: 0, or ``1 / (1 - p)``; a buffer that is not saved.

    Raises:
        RuntimeError: there is no mask for an input, of its shape.
    """

    def __init__(self, layer: nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d) -> None:
        super().__init__(layer)

    def _drawn(self, ones: Tensor) -> Tensor:
        return cast(Tensor, self.layer(ones))

    def _masked(self, x: Tensor) -> Tensor:
        return x * self.mask


class LockedAlphaDropout(Drawn):
    """Alpha dropout (Klambauer et al. 2017, section 3) whose mask is drawn once a batch.

    With ``m`` the mask and ``s`` what SELU goes to at minus infinity the result is ``a (m x + (1 - m) s) + b``, where
    a and b leave mean 0 and variance 1 what they are.

    Args:
        layer: an AlphaDropout or FeatureAlphaDropout of `torch.nn`, which says what is drawn.

    Attributes:
        mask: of the batch, of the shape of the layer's input: 1 where it is kept, or 0; a buffer that is not saved.

    Raises:
        RuntimeError: there is no mask for an input, of its shape.
    """

    def __init__(self, layer: nn.AlphaDropout | nn.FeatureAlphaDropout) -> None:
        super().__init__(layer)

    def _drawn(self, ones: Tensor) -> Tensor:
        kept = self.layer(ones)
        p = cast(float, self.layer.p)
        if p == 1:  # which drops all, to 0
            return torch.zeros_like(ones)
        a, b = self._scales(p)
        return (kept > a * (1 + _SATURATION) / 2 + b).to(ones.dtype)

    def _masked(self, x: Tensor) -> Tensor:
        p = cast(float, self.layer.p)
        if p == 1:
            return x * self.mask
        a, b = self._scales(p)
        return x * (a * self.mask) + (a * _SATURATION * (1 - self.mask) + b)

    @staticmethod
    def _scales(p: float) -> tuple[float, float]:
        a = ((1 - p) * (1 + p * _SATURATION**2)) ** -0.5
        return a, -a * p * _SATURATION


class LockedRReLU(Drawn):
    """Leaky ReLU whose slopes are drawn once a batch, one for every element.

    Args:
        layer: an RReLU of `torch.nn`, which says what is drawn.

    Attributes:
        mask: slopes of the batch, of the shape of the layer's input; a buffer that is not saved.

    Raises:
        RuntimeError: there are no slopes for an input, of its shape.
    """

    def __init__(self, layer: nn.RReLU) -> None:
        super().__init__(layer)

    def _drawn(self, ones: Tensor) -> Tensor:
        layer: Any = self.layer
        return F.rrelu(-ones, layer.lower, layer.upper, training=True).neg_()

    def _masked(self, x: Tensor) -> Tensor:
        return torch.where(x < 0, self.mask * x, x)


class SweptBatchNorm(Locked):
    """Batch normalization whose running statistics move once a batch, in its sweep, and not at every E-step.

    In training mode every evaluation normalizes by the statistics of the batch as it is then, and gradients go through
    them, as those of the layer do. So the samples of a batch share one energy: this is the one layer by which a
    sample's states depend on others. Statistics that E-steps hold constant would keep samples apart, and do not train:
    what an error has in common over the batch, which normalization takes out again, then outweighs the rest of it.

    Args:
        layer: a BatchNorm of `torch.nn`, whose weight, bias and running statistics it uses.
    """

    def _sweep(self, x: Tensor) -> None:
        self.layer(x)  # for its running statistics

    def _within_batch(self, x: Tensor) -> Tensor:
        layer: Any = self.layer
        return F.batch_norm(x, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)


def locked(layer: nn.Module) -> nn.Module:
    """A layer, or what takes its place in an edge; what holds such layers is copied around them."""
    return replaced(layer, _lock)


def original(layer: nn.Module) -> nn.Module:
    """What `locked` was given."""
    return replaced(layer, lambda m: m.layer if isinstance(m, Locked) else m)


def _lock(layer: nn.Module) -> nn.Module:
    if isinstance(layer, _DROPOUTS):
        return LockedDropout(layer)
    if isinstance(layer, _ALPHA_DROPOUTS):
        return LockedAlphaDropout(layer)
    if isinstance(layer, nn.RReLU):
        return LockedRReLU(layer)
    return SweptBatchNorm(layer) if isinstance(layer, _NORMS) else layer
