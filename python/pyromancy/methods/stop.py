"""When a sample is at its end: what is left to fall is a small share of what the energy has fallen."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_LEAST, _SHARE = 4, 2  # a window is half of the sweeps, and no fewer than four


class Progress(NamedTuple):
    """Of every sample.

    Attributes:
        least: its least energy after every sweep, from the first on, ``[B]`` each.
        done: whether it is at its end, ``[B]``.
        longest: the longest step's gradient so far but for the first, ``[B]``, where constraints hold it.
    """

    least: list[Tensor]
    done: Tensor
    longest: Tensor | None = None


@dataclass(frozen=True)
class Stop:
    """Stops a sample where F - F* is, or looks like, at most ``tol (F_0 - F)``.

    It is where a bound certifies that (docs/methods.md): a gradient in errors of which every curvature is at least m
    leaves ``|g|^2 / (2 m)``. Where the energy has kinks the gradient never gets small: it looks like that where the
    energy has fallen by no more than this share within the last half of all sweeps, at least four of them (and where
    chains run all sweeps in one operator, at most 31).

    Constraints leave no bound: a sample stops where its step's gradient is at most `tol` times the longest but for the
    first, or by gains as above, and then where that step leads.

    Args:
        tol: the share, above 0.

    Raises:
        TypeError: `tol` is not a number.
        ValueError: it is not above 0, or not finite.
    """

    tol: float

    def __post_init__(self) -> None:
        if isinstance(self.tol, bool) or not isinstance(self.tol, float | numbers.Real):
            raise TypeError(f"tol must be a number, or None to run all steps, got {self.tol!r}")
        if not (math.isfinite(self.tol) and self.tol > 0):
            raise ValueError(f"tol must be finite and above 0, or None to run all steps, got {self.tol}")

    def begin(self, energy: Tensor) -> Progress:
        """Before the first sweep, which finds these energies."""
        return Progress([], torch.zeros_like(energy, dtype=torch.bool))

    def look(
        self, progress: Progress, energy: Tensor, gap: Tensor, swings: bool = False, left: Tensor | None = None
    ) -> Progress:
        """What a sweep has found.

        Args:
            progress: until then.
            energy: at the point where the sample is, ``[B]``.
            gap: a bound on how far it can still fall there, infinite where there is none, ``[B]``.
            swings: whether energies do, so that the bound alone tells.
            left: how long a gradient the constrained step is that of, ``[B]``; None where there are no constraints.
        """
        least = [*progress.least, torch.minimum(progress.least[-1], energy) if progress.least else energy]
        done = progress.done | (gap <= self.tol * (least[0] - energy))
        sweeps, longest = len(least) - 1, progress.longest
        if left is not None and sweeps == 0:
            done |= left == 0  # else it tells nothing: a start may be out of range, and a step long for that alone
        elif left is not None:
            longest = left if longest is None else torch.maximum(longest, left)
            done |= left <= self.tol * longest
        window = max(_LEAST, -(-sweeps // _SHARE))
        if sweeps >= window and not swings:
            gained, fallen = least[-1 - window] - least[-1], least[0] - least[-1]
            enough = self.tol * fallen
            done |= (fallen > 0) & (gained <= enough) & (energy - least[-1] <= enough)
        return Progress(least, done, longest)
