"""Descent that moves every other state first, and then those between, which see it."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Evaluation, Objective
from .rated import Rated, Rates


@dataclass(frozen=True, repr=False)
class Sequential(Rated):
    """``z <- z - lr g`` for the first, third, ... of the states, then for the others, at the new gradient.

    Two evaluations a step. In a network whose nodes stand in a row a state's neighbours are at rest while it moves, so
    that rates are stable up to 2 over the curvature of single states: one of ``1 / (1 + |W|^2)`` and less never raises
    the energy, where all states moved at once may need half of that.

    Args:
        lr: rate, or those of states, as `Descent` has them.
        schedule: see `Rated`, as all that follow.
        max_norm: see there.
        constraints: see there.

    Raises:
        TypeError: `lr` is not a number.
        ValueError: it is negative or not finite.
    """

    lr: Rates

    def begin(self, objective: Objective) -> tuple[()]:
        return ()

    def move(self, objective: Objective, state: tuple[()], found: Evaluation) -> tuple[()]:
        self._turn(objective, found, 0)
        if len(objective.point) > 1:
            self._turn(objective, objective.evaluate(), 1)
        return state

    def _turn(self, objective: Objective, found: Evaluation, whose: int) -> None:
        start = objective.point
        end = self.steps(objective, found.gradient).along(start)
        objective.point = [b if i % 2 == whose else a for i, (a, b) in enumerate(zip(start, end, strict=True))]
