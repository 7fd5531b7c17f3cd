"""Dropout and batch normalization that know of batches: E-steps descend one energy, which a sweep begins."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..nodes.base import predicting, running, sweeping
from .layers import replaced

__all__ = ["LockedDropout", "SweptBatchNorm"]

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
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


class LockedDropout(Locked):
    """Dropout whose mask is drawn once a batch, by the sweep that it starts with, and is the same at every E-step.

    So the states descend one energy, that of a network drawn at random, and the weights learn from it. A mask that is
    drawn at every evaluation, as `torch.nn.Dropout` draws it, leaves no energy to descend.

    Args:
        layer: a Dropout of `torch.nn`, which says what is drawn.

    Attributes:
        mask: of the batch, of the shape of the layer's input: 0, or ``1 / (1 - p)``; a buffer that is not saved.

    Raises:
        RuntimeError: there is no mask for an input, of its shape.
    """

    mask: Tensor

    def __init__(self, layer: nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d) -> None:
        super().__init__(layer)
        self.register_buffer("mask", torch.empty(0), persistent=False)

    def _sweep(self, x: Tensor) -> None:
        drawn = self.layer(torch.ones_like(x, memory_format=torch.contiguous_format))
        if (drawn.shape, drawn.dtype, drawn.device) == (self.mask.shape, self.mask.dtype, self.mask.device):
            self.mask.copy_(drawn)  # in place: who has recorded an energy knows it again
        else:
            self.mask = drawn

    def _within_batch(self, x: Tensor) -> Tensor:
        if self.mask.shape != x.shape:
            raise RuntimeError(
                f"LockedDropout holds nothing for a batch of shape {tuple(x.shape)}: start the batch by PCN.start, or "
                f"by a forward pass within pyromancy.networks.sweeping()"
            )
        return x * self.mask


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
    return SweptBatchNorm(layer) if isinstance(layer, _NORMS) else layer
