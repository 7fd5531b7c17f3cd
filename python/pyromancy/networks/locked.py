"""Dropout and batch normalization that hold for a batch: what an E-step's descent needs, which is one energy."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..nodes.base import predicting, running, sweeping
from .layers import replaced

__all__ = ["LockedBatchNorm", "LockedDropout"]

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Locked(nn.Module):
    """A layer that depends on its mode, and in training mode on what the sweep of the batch has found.

    Args:
        layer: the layer, which shares what it holds.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's own result in evaluation mode, or where a network predicts; else what the sweep has left."""
        if not self.training or running.by is predicting:
            return cast(Tensor, self.layer(x))
        if running.by is sweeping:
            with torch.no_grad():
                self._find(x)
        elif not self._fits(x):
            kind = type(self).__name__
            raise RuntimeError(
                f"{kind} holds nothing for a batch of shape {tuple(x.shape)}: start the batch by PCN.start, or by a "
                f"forward pass within pyromancy.networks.sweeping()"
            )
        return self._apply_held(x)

    def _find(self, x: Tensor) -> None:
        raise NotImplementedError

    def _fits(self, x: Tensor) -> bool:
        raise NotImplementedError

    def _apply_held(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _hold(self, name: str, value: Tensor) -> None:
        """In the buffer of that name, in place where it fits: who has recorded an energy knows it again."""
        buffer = getattr(self, name)
        if (buffer.shape, buffer.dtype, buffer.device) == (value.shape, value.dtype, value.device):
            buffer.copy_(value)
        else:
            setattr(self, name, value)


class LockedDropout(Locked):
    """Dropout whose mask is drawn once a batch, by the sweep that it starts with, and is the same at every E-step.

    So the states descend one energy, that of a network drawn at random, and the weights learn from it. A mask that is
    drawn at every evaluation, as `torch.nn.Dropout` draws it, leaves no energy to descend.

    Args:
        layer: a Dropout of `torch.nn`, which says what is drawn.

    Attributes:
        mask: of the batch, of the shape of the layer's input: 0, or ``1 / (1 - p)``; a buffer that is not saved.
    """

    mask: Tensor

    def __init__(self, layer: nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d) -> None:
        super().__init__(layer)
        self.register_buffer("mask", torch.empty(0), persistent=False)

    def _find(self, x: Tensor) -> None:
        self._hold("mask", self.layer(torch.ones_like(x, memory_format=torch.contiguous_format)))

    def _fits(self, x: Tensor) -> bool:
        return self.mask.shape == x.shape

    def _apply_held(self, x: Tensor) -> Tensor:
        return x * self.mask


class LockedBatchNorm(Locked):
    """Batch normalization by the means and variances that the sweep of a batch has found, constant in its E-steps.

    Its running statistics move once a batch, too, and evaluation mode normalizes by them as ever. In training mode a
    sample's states depend on the others of its batch by these statistics, and by nothing else: E-steps leave them as
    they are. So do M-steps: gradients differ from those of backpropagation, which go through the statistics.

    Args:
        layer: a BatchNorm of `torch.nn`, whose weight, bias and running statistics it uses.

    Attributes:
        mean: of every channel over the batch, a buffer that is not saved.
        variance: likewise, biased: that of the batch, over its number.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, layer: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> None:
        super().__init__(layer)
        for name in ("mean", "variance"):
            self.register_buffer(name, torch.empty(0), persistent=False)

    def _find(self, x: Tensor) -> None:
        variance, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
        self._hold("mean", mean)
        self._hold("variance", variance)
        self.layer(x)  # for its running statistics

    def _fits(self, x: Tensor) -> bool:
        return self.mean.numel() > 0

    def _apply_held(self, x: Tensor) -> Tensor:
        layer: Any = self.layer
        return F.batch_norm(x, self.mean, self.variance, layer.weight, layer.bias, False, 0.0, layer.eps)


def locked(layer: nn.Module) -> nn.Module:
    """A layer, or what takes its place in an edge; Sequentials and blocks are made anew of such layers."""
    return replaced(layer, _lock)


def original(layer: nn.Module) -> nn.Module:
    """What `locked` was given."""
    return replaced(layer, lambda m: m.layer if isinstance(m, Locked) else m)


def _lock(layer: nn.Module) -> nn.Module:
    if isinstance(layer, _DROPOUTS):
        return LockedDropout(layer)
    return LockedBatchNorm(layer) if isinstance(layer, _NORMS) else layer
