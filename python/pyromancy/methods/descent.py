"""Gradient descent, with momentum as `torch.optim.SGD` has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Evaluation, Method, Objective, Point, check_number, chosen, moved, zeros


class _Velocity(NamedTuple):
    fresh: Tensor  # whether a sample has none yet
    velocity: Point


@dataclass(frozen=True)
class Descent(Method):
    """``x <- x - lr g``, or along a velocity, as in `torch.optim.SGD`.

    Args:
        lr: rate.
        momentum: of the velocity, ``v <- momentum v + (1 - dampening) g``, which the first gradient starts.
        dampening: of gradients.
        nesterov: whether to move along ``g + momentum v``, and not along v.
        coordinates: "states" or "errors".

    Raises:
        TypeError: a rate is not a number.
        ValueError: an argument is out of range; the message says which.
    """

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    coordinates: str = "states"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("lr", self.lr)
        check_number("momentum", self.momentum)
        check_number("dampening", self.dampening, least=float("-inf"))
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise ValueError("nesterov needs a momentum above 0 and no dampening")

    @property
    def swings(self) -> bool:
        return self.momentum > 0

    def begin(self, objective: Objective) -> _Velocity:
        x = objective.point
        fresh = torch.ones(len(x[0]), dtype=torch.bool, device=x[0].device)
        return _Velocity(fresh, zeros(x) if self.momentum else [])

    def move(self, objective: Objective, state: _Velocity, found: Evaluation) -> _Velocity:
        velocity = state.velocity
        along = found.gradient
        if self.momentum:
            later = [torch.mul(v, self.momentum) for v in velocity]
            later = moved(later, 1 - self.dampening, found.gradient)
            velocity = chosen(state.fresh, found.gradient, later)
            along = moved(found.gradient, self.momentum, velocity) if self.nesterov else velocity
        objective.point = moved(objective.point, -self.lr, along)
        return _Velocity(torch.zeros_like(state.fresh), velocity)
