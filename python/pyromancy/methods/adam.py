"""Adam (Kingma & Ba, 2015, algorithm 1), which every batch starts anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .base import Evaluation, Objective, Point, check_number, column, moved, zeros
from .rated import Rated, Rates


class _Moments(NamedTuple):
    taken: Tensor  # steps, [B]
    mean: Point
    square: Point


@dataclass(frozen=True, repr=False)
class Adam(Rated):
    """As `torch.optim.Adam` on the states or on the errors, with moments that every batch starts anew.

    Args:
        lr: rate, or those of states, as `Descent` has them.
        betas: decay of the mean and of the mean square of gradients.
        eps: added to the root of the latter.
        coordinates: "states" or "errors".
        schedule: see `Rated`, as all that follow.
        max_norm: see there.
        constraints: see there; no `Shrink`.

    Raises:
        TypeError: an argument is not a number.
        ValueError: it is out of range; the message says which.
    """

    no_shrink: ClassVar[str] = (
        "whose steps, gradients over their own sizes, have no rate that a proximal step could be of; Descent and "
        "Accelerated(lr) on states can"
    )

    lr: Rates = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    coordinates: str = "states"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers, got {self.betas!r}")
        for i, beta in enumerate(self.betas):
            check_number(f"betas[{i}]", beta, below=1.0)
        check_number("eps", self.eps)

    @property
    def swings(self) -> bool:
        return True

    def begin(self, objective: Objective) -> _Moments:
        x = objective.point
        return _Moments(torch.zeros(len(x[0]), dtype=x[0].dtype, device=x[0].device), zeros(x), zeros(x))

    def move(self, objective: Objective, state: _Moments, found: Evaluation) -> _Moments:
        first, second = self.betas
        steps, start = self.steps(objective, found.gradient), objective.point
        taken = state.taken + 1
        unbiased, root = 1 - first**taken, (1 - second**taken).sqrt()
        # by operators that do one thing: others round once or twice by where in the batch an element lies
        mean = moved([first * m for m in state.mean], 1 - first, steps.gradient)
        square = moved([second * s for s in state.square], 1 - second, [g * g for g in steps.gradient])
        along = [m / (s.sqrt() / column(root, s) + self.eps) for m, s in zip(mean, square, strict=True)]
        along = [d / column(unbiased, d) for d in along]
        objective.point = steps.along(start, along)
        return _Moments(taken, mean, square)
