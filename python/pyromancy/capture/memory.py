"""Memory of schedules: where tensors lie in its blocks, and what is lent of it to a run."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor


@dataclass(frozen=True)
class Memory:
    """A tensor that a schedule is lent: which block of memory it lies in, and how."""

    block: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    offset: int = 0


def dense_strides(t: Tensor) -> tuple[int, ...]:
    """Those of a tensor, or where it has gaps or is expanded those of one without that lies in the same order."""
    strides, step = [0] * t.dim(), 1
    for d in sorted(range(t.dim()), key=lambda d: (t.stride(d), t.shape[d] > 1, -d)):
        strides[d] = step
        step *= max(1, t.shape[d])
    return (
        t.stride()
        if all(n == 1 or s == u for n, s, u in zip(t.shape, strides, t.stride(), strict=True))
        else tuple(strides)
    )


class Blocks:
    """Memory that is as large as the largest of some schedules needs."""

    def __init__(self) -> None:
        self.bytes: list[Tensor] = []  # the largest first
        self.lent: WeakKeyDictionary[Any, list[Tensor]] = WeakKeyDictionary()

    def lend(
        self, schedule: object, blocks: Sequence[tuple[int, torch.dtype]], memory: Sequence[Memory]
    ) -> list[Tensor]:
        """Tensors for a schedule that takes blocks of these sizes and types, where they lie in memory."""
        if schedule not in self.lent:
            sizes = [size * dtype.itemsize for size, dtype in blocks]
            order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
            for place, i in enumerate(order):
                if place == len(self.bytes) or self.bytes[place].numel() < sizes[i]:
                    self.bytes[place : place + 1] = [torch.empty(sizes[i], dtype=torch.uint8)]
                    self.lent.clear()  # whose blocks were smaller
            made = {i: self.bytes[place][: sizes[i]].view(blocks[i][1]) for place, i in enumerate(order)}
            self.lent[schedule] = [made[m.block].as_strided(m.shape, m.stride, m.offset) for m in memory]
        return self.lent[schedule]


class _Lent(threading.local):
    def __init__(self) -> None:
        self.to: WeakKeyDictionary[Any, Blocks] = WeakKeyDictionary()


_lent = _Lent()


def blocks_of(owner: object) -> Blocks:
    """Those that the schedules of an owner use in turn; a thread keeps the ones of its last owner."""
    if owner not in _lent.to:
        _lent.to.clear()
        _lent.to[owner] = Blocks()
    return _lent.to[owner]
