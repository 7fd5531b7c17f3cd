"""Inference with fixed predictions (Millidge, Tschantz & Buckley, 2022; Song et al., 2020): it is backpropagation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

from .base import Evaluation, Method, Objective, Point, check_number, moved


class Base(NamedTuple):
    """The states whose predictions are fixed."""

    states: Point


class Fixed(Objective):
    """An objective that takes predictions, and their derivatives, at other states than those that move."""

    base: Point


@dataclass(frozen=True)
class FixedPrediction(Method):
    """``z <- z - lr g``, with predictions and their derivatives as they were where the batch began.

    After a forward sweep, at unit variances and a rate of 1, the errors ``z_l - mu_l`` are exactly those of
    backpropagation after as many steps as there are nodes with an energy, and `InferenceLoop.backward`, which takes the
    same predictions, gives exactly its gradients.

    Nodes and the functions of `pyromancy.functional` tell the state z of an energy from its prediction mu. In one that
    is written out, what is made with a weight is the prediction; of two states, or a state and data of its form, it is
    what is subtracted, as in ``z - mu``.

    Args:
        lr: rate.

    Raises:
        TypeError: `lr` is not a number.
        ValueError: it is negative or not finite.
    """

    converges: ClassVar[bool] = False

    lr: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("lr", self.lr)

    @property
    def remembers_energy(self) -> bool:
        return True

    @property
    def moves(self) -> str:
        """States, at fixed predictions."""
        return "fixed predictions"

    def begin(self, objective: Objective) -> Base:
        return Base(objective.point)

    def look(self, objective: Objective, state: Base) -> tuple[Evaluation, Base]:
        cast(Fixed, objective).base = state.states
        return objective.evaluate(), state

    def move(self, objective: Objective, state: Base, found: Evaluation) -> Base:
        objective.point = moved(objective.point, -self.lr, found.gradient)
        return state
