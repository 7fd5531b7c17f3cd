"""Heun's method for the flow dx/dt = -g(x), with a fixed step or one that every sample adapts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Evaluation, Method, Objective, check_number, chosen, moved, rows

_SAFETY, _LEAST, _MOST = 0.9, 0.2, 5.0  # of a controller, as in Hairer, Norsett & Wanner I, section II.4


class _Steps(NamedTuple):
    size: Tensor  # [B]


@dataclass(frozen=True)
class Heun(Method):
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

    Raises:
        TypeError: an argument is not a number.
        ValueError: it is out of range; the message says which.
    """

    lr: float = 0.1
    adaptive: bool = True
    rtol: float = 1e-3
    atol: float = 1e-3
    coordinates: str = "states"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("lr", self.lr, open_=True)
        check_number("rtol", self.rtol)
        check_number("atol", self.atol, open_=True)

    def begin(self, objective: Objective) -> _Steps:
        x = objective.point[0]
        return _Steps(torch.full((len(x),), self.lr, dtype=x.dtype, device=x.device))

    def move(self, objective: Objective, state: _Steps, found: Evaluation) -> _Steps:
        start, h = objective.point, state.size
        objective.point = euler = moved(start, -h, found.gradient)
        both = moved(found.gradient, 1.0, objective.evaluate().gradient)
        objective.point = end = moved(start, -0.5 * h, both)
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
