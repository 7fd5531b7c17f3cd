"""Heun's method for the flow dx/dt = -g(x), with a fixed step or one that every sample adapts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .base import Evaluation, Objective, check_flag, check_number, chosen, moved, rows
from .rated import Rated

_SAFETY, _LEAST, _MOST = 0.9, 0.2, 5.0  # of a controller, as in Hairer, Norsett & Wanner I, section II.4


class _Steps(NamedTuple):
    size: Tensor  # [B]


@dataclass(frozen=True, repr=False)
class Heun(Rated):
    """``x' = x - h g(x)``, then ``x <- x - h/2 (g(x) + g(x'))``: two evaluations a step, of order 2 in h.

    Adaptive, a sample takes a step where the difference of the two, as a root mean square over its variables and
    relative to ``atol + rtol |x|``, is at most 1, and stays where it is otherwise; either way its next h is
    ``0.9 / sqrt(difference)`` times the last, within 0.2 and 5 (Hairer, Norsett & Wanner, "Solving Ordinary
    Differential Equations I", II.4).

    Args:
        lr: h, or the first one.
        adaptive: whether samples adapt it.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.
        coordinates: "states" or "errors".
        schedule: see `Rated`, as all that follow; of steps that are not adaptive.
        max_norm: see there.
        constraints: see there; no `Shrink`.

    Raises:
        TypeError: an argument is not a number, or `adaptive` neither True nor False.
        ValueError: it is out of range; the message says which.
    """

    no_shrink: ClassVar[str] = (
        "whose steps go by two gradients, and a proximal step by one; Descent and Accelerated(lr) on states can"
    )

    lr: float = 0.1
    adaptive: bool = True
    rtol: float = 1e-3
    atol: float = 1e-3
    coordinates: str = "states"

    def __post_init__(self) -> None:
        check_number("lr", self.lr, open_=True)
        super().__post_init__()
        check_flag("adaptive", self.adaptive)
        check_number("rtol", self.rtol)
        check_number("atol", self.atol, open_=True)
        if self.adaptive and self.schedule is not None:
            raise ValueError("schedule must be left out with adaptive=True, where samples find their own rates")

    def begin(self, objective: Objective) -> _Steps:
        x = objective.point[0]
        return _Steps(torch.full((len(x),), self.lr, dtype=x.dtype, device=x.device))

    def move(self, objective: Objective, state: _Steps, found: Evaluation) -> _Steps:
        start, h = objective.point, objective.factor * state.size
        first = self.steps(objective, found.gradient)
        objective.point = euler = first.kept(moved(start, -h, first.gradient), start)
        second = self.steps(objective, objective.evaluate().gradient)
        both = moved(first.gradient, 1.0, second.gradient)
        objective.point = end = second.kept(moved(start, -0.5 * h, both), start)
        if not self.adaptive:
            return state
        squares, count = torch.zeros_like(h), 0
        for x, y, z in zip(start, euler, end, strict=True):
            scale = self.atol + self.rtol * torch.maximum(x.abs(), z.abs())
            squares = squares + rows(((z - y) / scale).square()).sum(1)
            count += rows(x).shape[1]
        error = (squares / max(1, count)).sqrt().nan_to_num(nan=float("inf"))
        objective.point = chosen(error <= 1, end, start)
        return _Steps(h * (_SAFETY / error.sqrt()).clamp(_LEAST, _MOST))
