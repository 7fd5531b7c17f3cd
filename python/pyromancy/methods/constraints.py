"""What a step keeps of a state: a range, entries that are known, and the proximal step of an absolute value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .base import check_number


@dataclass(frozen=True)
class Range:
    """Every step ends at the nearest point from `low` to `high`.

    Args:
        low: the least that an entry may be; None leaves that open.
        high: the most.

    Raises:
        TypeError: a limit is not a number.
        ValueError: one is not finite, `low` is above `high`, or there is none.
    """

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        for name, limit in (("low", self.low), ("high", self.high)):
            if limit is not None:
                check_number(name, limit, least=float("-inf"))
        if self.low is None and self.high is None:
            raise ValueError("Range must have a limit, low or high, got None for both")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low must not be above high, got {self.low} and {self.high}")


@dataclass(frozen=True, eq=False)
class Known:
    """Entries that are known hold still, and all others move.

    Args:
        mask: bool, of a shape that broadcasts to the state's: True where an entry is known. It is read in every run.

    Raises:
        TypeError: `mask` is not a tensor of bools.
    """

    mask: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.mask, Tensor):
            raise TypeError(f"mask must be a tensor of bools, got {type(self.mask).__name__}")
        if self.mask.dtype is not torch.bool:
            raise TypeError(f"mask must be a tensor of bools, got one of {self.mask.dtype}")

    def __repr__(self) -> str:
        return f"Known(mask {list(self.mask.shape)})"


@dataclass(frozen=True)
class Shrink:
    """The energy has ``weight * sum |z - towards|`` beside what it computes, of which a step takes the proximal step.

    After the step by the gradient of all else z is nearer to `towards` by rate times weight, and there where it was no
    further off. So entries come to be exactly that, as by the energy's own gradient they would not.

    Args:
        weight: of the absolute values, a Laplace distribution's one over its scale.
        towards: a number.

    Raises:
        TypeError: an argument is not a number.
        ValueError: one is not finite, or `weight` is negative.
    """

    weight: float
    towards: float = 0.0

    def __post_init__(self) -> None:
        check_number("weight", self.weight)
        check_number("towards", self.towards, least=float("-inf"))


Constraint = Range | Known | Shrink


class StateStep(NamedTuple):
    """How a state moves: its rate, of a constraint None where it has none, and of none but a mask its shape here."""

    rate: float
    range: Range | None = None
    known: Tensor | None = None
    shrink: Shrink | None = None

    @property
    def is_constrained(self) -> bool:
        """Whether it goes elsewhere than its gradient leads."""
        return any(x is not None for x in self[1:])

    def kept(self, x: Tensor, before: Tensor, rate: float | Tensor) -> Tensor:
        """Where a step ends that has led to `x`, by a rate that is a number, or one per sample that broadcasts."""
        if self.shrink is not None:
            off, limit = x - self.shrink.towards, self.shrink.weight * rate
            # an absolute value's prox, and its limits' after it, are both one's of the sum
            x = (off.abs() - limit).clamp(min=0).copysign(off) + self.shrink.towards
        if self.range is not None:
            x = x.clamp(self.range.low, self.range.high)
        return x if self.known is None else torch.where(self.known, before, x)
