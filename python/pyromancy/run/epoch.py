"""What an epoch is made of: its arguments, the order of its samples, and its parts."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arguments import kind_of


@dataclass(frozen=True)
class Part:
    """What `EM.epoch` has done since it gave the last one.

    Attributes:
        batches: how many.
        samples: in them.
    """

    batches: int
    samples: int


class Epoch(Iterator[Part]):
    """The parts of an epoch, which warns when it goes before anybody has asked for the first: nothing is learned then.

    Args:
        parts: which do the work as they are asked for.
    """

    def __init__(self, parts: Iterator[Part]) -> None:
        self._parts, self._begun = parts, False

    def __next__(self) -> Part:
        self._begun = True
        enabled = torch.is_grad_enabled()
        try:
            return next(self._parts)
        except BaseException:
            torch.set_grad_enabled(enabled)  # as in EM.step
            raise

    def __del__(self) -> None:
        if not self._begun:
            warnings.warn(
                "em.epoch(...) was never iterated, so that nothing was learned: write `for part in em.epoch(...): "
                "pass`, or `list(em.epoch(...))`",
                RuntimeWarning,
                stacklevel=2,
            )


def size_of_batches(data: tuple[Tensor, ...], batch_size: int) -> int:
    """The batch size, after all arguments of an epoch have been looked at."""
    if not data:
        raise ValueError("data must hold at least one tensor, got none")
    for t in data:
        if not isinstance(t, Tensor) or t.dim() == 0:
            raise TypeError(f"data must be tensors with a row per sample, got {kind_of(t)}")
    lengths = [len(t) for t in data]
    if len(set(lengths)) > 1:
        raise ValueError(f"data must have the same length, got {', '.join(map(str, lengths))}")
    try:
        size = operator.index(batch_size)
    except TypeError:
        raise TypeError(f"batch_size must be an integer, got {batch_size!r}") from None
    if size <= 0:
        raise ValueError(f"batch_size must be positive, got {size}")
    return size
