"""Adam (Kingma & Ba, 2015, algorithm 1), which every batch starts anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Evaluation, Method, Objective, Point, check_number, column, moved, zeros


class _Moments(NamedTuple):
    taken: Tensor  # steps, [B]
    mean: Point
    square: Point


@dataclass(frozen=True)
class Adam(Method):
    """As `torch.optim.Adam` on the states or on the errors, with moments that every batch starts anew.

    Args:
        lr: rate.
        betas: decay of the mean and of the mean square of gradients.
        eps: added to the root of the latter.
        coordinates: "states" or "errors".

    Raises:
        TypeError: an argument is not a number.
        ValueError: it is out of range; the message says which.
    """

    lr: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    coordinates: str = "states"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("lr", self.lr)
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
        taken = state.taken + 1
        unbiased, root = 1 - first**taken, (1 - second**taken).sqrt()
        # by operators that do one thing: others round once or twice by where in the batch an element lies
        mean = moved([first * m for m in state.mean], 1 - first, found.gradient)
        square = moved([second * s for s in state.square], 1 - second, [g * g for g in found.gradient])
        objective.point = [
            x - self.lr / column(unbiased, x) * m / (s.sqrt() / column(root, x) + self.eps)
            for x, m, s in zip(objective.point, mean, square, strict=True)
        ]
        return _Moments(taken, mean, square)
