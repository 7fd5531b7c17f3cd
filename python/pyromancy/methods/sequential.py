"""Descent that moves every other state first, and then those between, which see it."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Evaluation, Method, Objective, Point, check_number


@dataclass(frozen=True)
class Sequential(Method):
    """``z <- z - lr g`` for the first, third, ... of the states, then for the others, at the new gradient.

    Two evaluations a step. In a network whose nodes stand in a row a state's neighbours are at rest while it moves, so
    that rates are stable up to 2 over the curvature of single states: one of ``1 / (1 + |W|^2)`` and less never raises
    the energy, where all states moved at once may need half of that.

    Args:
        lr: rate.

    Raises:
        TypeError: `lr` is not a number.
        ValueError: it is negative or not finite.
    """

    lr: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("lr", self.lr)

    def begin(self, objective: Objective) -> tuple[()]:
        return ()

    def move(self, objective: Objective, state: tuple[()], found: Evaluation) -> tuple[()]:
        objective.point = self._turn(objective.point, found.gradient, 0)
        if len(objective.point) > 1:
            objective.point = self._turn(objective.point, objective.evaluate().gradient, 1)
        return state

    def _turn(self, point: Point, gradient: Point, whose: int) -> Point:
        return [x - self.lr * g if i % 2 == whose else x for i, (x, g) in enumerate(zip(point, gradient, strict=True))]
