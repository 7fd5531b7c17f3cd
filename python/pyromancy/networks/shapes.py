"""What layers tell of the shapes of what they take and give."""

from __future__ import annotations

import functools
from typing import cast

import torch.nn as nn

from .layers import ScaledLinear, Skip, flat
from .locked import Locked

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LINEARS = (nn.Linear, ScaledLinear)
_TOLD = (*_LINEARS, *CONVOLUTIONS)
# whose modules, but for these, give what is of the shape of what they take
_KEEPING = tuple(f"torch.nn.modules.{name}" for name in ("activation", "batchnorm", "dropout", "normalization"))
_CHANGING = (nn.GLU, nn.MultiheadAttention)
Size = tuple[int | None, ...]


def shape_after(layer: nn.Module, shape: Size) -> Size:
    """The shape that a layer makes of another, None where any size may come."""
    if isinstance(layer, _LINEARS):
        return (*shape[:-1], layer.out_features)
    if isinstance(layer, CONVOLUTIONS):
        return (layer.out_channels, *(None,) * len(layer.kernel_size))
    if isinstance(layer, Skip):
        return functools.reduce(lambda of, m: shape_after(m, of), flat([layer.branch]), shape)
    if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1):
        return (None,)
    if isinstance(layer, nn.Unflatten) and layer.dim == 1 and len(shape) == 1:
        return (*cast(tuple[int, ...], layer.unflattened_size),)
    return shape if keeps_shape(layer) else (None,) * len(shape)


def keeps_shape(layer: nn.Module) -> bool:
    """Whether a layer gives what is of the shape of what it takes."""
    if isinstance(layer, Locked):
        layer = layer.layer
    return isinstance(layer, nn.Identity) or (type(layer).__module__ in _KEEPING and not isinstance(layer, _CHANGING))


def misfit(edge: nn.Module, before: Size, after: Size) -> str:
    """Why an edge cannot predict states of one shape from those of another, as far as its layers tell; or none."""
    shape = before
    for layer in flat([edge]):
        if type(layer) not in _TOLD and not keeps_shape(layer):  # nor of a subclass, which may do otherwise
            return ""
        if isinstance(layer, _LINEARS) and shape and shape[-1] not in (None, layer.in_features):
            return f"whose {type(layer).__name__} takes {layer.in_features} features"
        of_images = isinstance(layer, CONVOLUTIONS) and len(shape) == len(layer.kernel_size) + 1
        if of_images and shape[0] not in (None, layer.in_channels):
            return f"whose {type(layer).__name__} takes {layer.in_channels} channels"
        shape = shape_after(layer, shape)
    fits = len(shape) == len(after) and all(a in (None, b) or b is None for a, b in zip(shape, after, strict=True))
    return "" if fits else f"which gives {in_words(shape)}"


def in_words(shape: Size) -> str:
    """A node's shape, with ? where any size may come."""
    return " x ".join("?" if n is None else str(n) for n in shape) or "1"
