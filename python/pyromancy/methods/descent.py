"""Gradient descent, with momentum as `torch.optim.SGD` has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Evaluation, Objective, Point, check_flag, check_number, chosen, moved, zeros
from .rated import Rated, Rates


class _Velocity(NamedTuple):
    fresh: Tensor  # whether a sample has none yet
    velocity: Point


@dataclass(frozen=True, repr=False)
class Descent(Rated):
    """``x <- x - lr g``, or along a velocity, as in `torch.optim.SGD`.

    Args:
        lr: rate, or those of states, by the states or the nodes that hold them: None names all others.
        momentum: of the velocity, ``v <- momentum v + (1 - dampening) g``, which the first gradient starts.
        dampening: of gradients.
        nesterov: whether to move along ``g + momentum v``, and not along v.
        coordinates: "states" or "errors".
        schedule: see `Rated`, as all that follow; with a `Shrink` steps are those of ISTA.
        max_norm: see there.
        constraints: see there; no `Shrink` beside a momentum.

    Raises:
        TypeError: a rate is not a number, or `nesterov` neither True nor False.
        ValueError: an argument is out of range; the message says which.
    """

    lr: Rates
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    coordinates: str = "states"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("momentum", self.momentum)
        check_number("dampening", self.dampening, least=float("-inf"))
        check_flag("nesterov", self.nesterov)
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise ValueError("nesterov needs a momentum above 0 and no dampening")
        if self.momentum and self.shrinks:
            raise ValueError(
                "Shrink cannot be used with a velocity, whose length at rest is not the gradient's; "
                "Accelerated(lr, momentum, coordinates='states') can"
            )

    @property
    def swings(self) -> bool:
        return self.momentum > 0

    @property
    def is_proximal(self) -> bool:
        return not self.momentum

    def begin(self, objective: Objective) -> _Velocity:
        x = objective.point
        fresh = torch.ones(len(x[0]), dtype=torch.bool, device=x[0].device)
        return _Velocity(fresh, zeros(x) if self.momentum else [])

    def move(self, objective: Objective, state: _Velocity, found: Evaluation) -> _Velocity:
        steps, velocity = self.steps(objective, found.gradient), state.velocity
        along = steps.gradient
        if self.momentum:
            later = [torch.mul(v, self.momentum) for v in velocity]
            later = moved(later, 1 - self.dampening, steps.gradient)
            velocity = chosen(state.fresh, steps.gradient, later)
            along = moved(steps.gradient, self.momentum, velocity) if self.nesterov else velocity
        objective.point = steps.along(objective.point, along)
        return _Velocity(torch.zeros_like(state.fresh), velocity)
