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
        first: its energy at the start, ``[B]``.
        least: its least energy after each of its sweeps, ``[n, B]``: the last in the last row.
        sweeps: how many these are but for the first, ``[B]``; -1 before that.
        done: whether it is at its end, ``[B]``.
        longest: the longest step's gradient so far but for the first, ``[B]``, where constraints hold it.
    """

    first: Tensor
    least: Tensor
    sweeps: Tensor
    done: Tensor
    longest: Tensor


@dataclass(frozen=True)
class Stop:
    """Stops a sample where F - F* is, or looks like, at most ``tol (F_0 - F)``.

    It is where a bound certifies that (docs/methods.md): a gradient in errors of which every curvature is at least m
    leaves ``|g|^2 / (2 m)``. Where the energy has kinks the gradient never gets small: it looks like that where the
    energy has fallen by no more than this share within the last half of its sweeps, at least four of them (after 62
    that is looked at in every second sweep, after 126 in every fourth, and so on).

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
        never = torch.full(energy.shape, -1, dtype=torch.int64, device=energy.device)
        resting = torch.zeros_like(energy, dtype=torch.bool)
        return Progress(energy, energy[None][:0], never, resting, torch.zeros_like(energy))

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
        first, before, rests = progress.first, progress.least, progress.done
        last = energy if len(before) == 0 else torch.where(rests, before[-1], torch.minimum(before[-1], energy))
        # what rests has its energies one row further down
        least = torch.cat([before, last[None]]).where(~rests, torch.cat([last[None], before]))
        sweeps, longest = progress.sweeps + ~rests, progress.longest
        done = gap <= self.tol * (first - energy)
        if left is not None:  # at first it tells nothing: a start may be out of range, and a step long for that alone
            longest = torch.where(rests | (sweeps == 0), longest, torch.maximum(longest, left))
            done |= torch.where(sweeps == 0, left == 0, left <= self.tol * longest)
        if not swings:
            window = sweeps - _since(sweeps)
            since = (len(least) - 1 - window).clamp(min=0)
            gained, fallen = least.gather(0, since[None])[0] - last, first - last
            enough = self.tol * fallen
            idle = (window <= sweeps) & (fallen > 0) & (gained <= enough) & (energy - last <= enough)
            done |= idle
        return Progress(first, least, sweeps, rests | done, longest)


def _since(sweeps: Tensor) -> Tensor:
    """Where the windows of so many sweeps begin, of the sweeps that are kept; below 0 where there are too few.

    As csrc/methods/methods.h has it, where a sample keeps 32 of its energies.
    """
    window = torch.maximum(torch.full_like(sweeps, _LEAST), (sweeps + 1) // _SHARE)
    _, exponent = torch.frexp((sweeps + 1).double() / 32)
    apart = 2 ** (exponent - 1).clamp(min=0)
    return -((window - sweeps) // apart) * apart
