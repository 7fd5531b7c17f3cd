"""Layers that edges are made of, beside those of `torch.nn`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ScaledLinear", "Skip"]


class ScaledLinear(nn.Module):
    """``scale * W x``, whose weights start out as N(0, 1): the scale and not the weights knows the fan-in.

    Args:
        in_features: width of x.
        out_features: width of the result.
        scale: a constant.

    Attributes:
        weight: W, ``[out_features, in_features]``.
        scale: a float.
    """

    def __init__(self, in_features: int, out_features: int, scale: float) -> None:
        super().__init__()
        self.in_features, self.out_features, self.scale = in_features, out_features, scale
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``scale * W x`` of x, ``[..., in_features]``."""
        return self.scale * F.linear(x, self.weight)

    def extra_repr(self) -> str:
        """What the module was made with."""
        return f"in_features={self.in_features}, out_features={self.out_features}, scale={self.scale:.4g}"


class Skip(nn.Module):
    """``shortcut(x) + branch(x)``: a residual block.

    In a network that `from_sequential` makes, a node follows every block, which predicts it: ``mu = z + branch(z)``.

    Args:
        branch: a module that gives what is of the shape of what it takes, or of what `shortcut` gives.
        shortcut: a module, as a convolution where the branch changes the shape; None is x itself.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """``shortcut(x) + branch(x)``, of the shape of either."""
        return (x if self.shortcut is None else self.shortcut(x)) + self.branch(x)


class Copy(nn.Module):
    """Its input in other memory, for layers that work in place: they must leave states and data as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def flat(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Modules, with the layers of a Sequential in its place."""
    for m in modules:
        if isinstance(m, nn.Sequential) and type(m).forward is nn.Sequential.forward:
            yield from flat(m)
        else:
            yield m


def replaced(layer: nn.Module, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """What a function makes of a layer, or a copy with what it makes of those within; itself where all are as before.

    A copy holds the very parameters and buffers of what it was made of.
    """
    if (new := change(layer)) is not layer:
        return new
    parts = {name: m and replaced(m, change) for name, m in layer._modules.items()}
    if all(parts[name] is m for name, m in layer._modules.items()):
        return layer
    new = copy.copy(layer)
    new._modules = parts
    return new
