"""How a kernel finds the elements of operands that have one shape and any strides.

The host merges and reorders dimensions; the kernel takes the position in that order apart again. Operands that are
dense in the same order become one dimension, and a log-variance that positions share has stride 0 along them: nothing
is copied, and nothing broadcast is ever written out.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

_FAR = 2**31 - 2**16  # positions and offsets below it fit 32 bits, the last block's masked ones included


@dataclass(frozen=True)
class Layout:
    """Positions of operands of one shape, in the order in which the first operand lies in memory.

    Attributes:
        size: number of positions.
        sizes: of the dimensions that are left, outermost first.
        strides: of every operand over these, in elements.
        order: the original dimensions longer than 1, outermost first.
        index: the integer type that positions and offsets fit.
    """

    size: int
    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]
    index: tl.dtype


@functools.lru_cache(maxsize=1024)
def merge(shape: tuple[int, ...], *strides: tuple[int, ...]) -> Layout:
    """The layout of operands of a shape, each given by its strides."""
    order = sorted((d for d in range(len(shape)) if shape[d] != 1), key=lambda d: [-s[d] for s in strides])
    sizes: list[int] = []
    merged: list[list[int]] = []  # of every dimension that is left, the operands' strides
    for d in order:
        steps = [s[d] for s in strides]
        if merged and merged[-1] == [step * shape[d] for step in steps]:
            sizes[-1] *= shape[d]
            merged[-1] = steps
        else:
            sizes.append(shape[d])
            merged.append(steps)
    if not sizes:
        sizes, merged = [1], [[1] * len(strides)]
    size = math.prod(sizes)
    reach = max(sum((n - 1) * steps[k] for n, steps in zip(sizes, merged, strict=True)) for k in range(len(strides)))
    index = tl.int64 if max(size, reach) >= _FAR else tl.int32
    return Layout(size, tuple(sizes), tuple(zip(*merged, strict=True)), tuple(order), index)


def shared_strides(shared: Tensor | None, node: tuple[int, ...]) -> tuple[int, ...]:
    """Strides over the node dimensions of a tensor that broadcasts against them; zeros for none at all."""
    if shared is None or shared.dim() == 0:
        return (0,) * len(node)
    return tuple(0 if n == 1 else step for n, step in zip(shared.shape, shared.stride(), strict=True))


@triton.jit
def offset(index, sizes, strides):
    """Where positions are in an operand."""
    rest = index
    total = tl.zeros_like(index)
    for d in tl.static_range(len(sizes)):
        if d < len(sizes) - 1:
            total += rest % sizes[len(sizes) - 1 - d] * strides[len(sizes) - 1 - d]
            rest = rest // sizes[len(sizes) - 1 - d]
        else:
            total += rest * strides[0]
    return total
