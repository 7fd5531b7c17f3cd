"""Zero-divergence inference learning (Song et al., 2020): an E-step a layer, which is backpropagation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .base import Evaluation, Method, Objective, column


class _Taken(NamedTuple):
    steps: Tensor  # [B]


@dataclass(frozen=True)
class ZIL(Method):
    """At step t, from 0 on, the state that is t from the last of the free ones moves by -g; no other does.

    With states in a row, unit variances, a forward sweep before and the target clamped, the error of node L - t is
    exactly that of backpropagation after t steps, while the states below are still those of the sweep: weights that
    learn then, node L's before the first step, learn as by backpropagation.

    The order is that of the free states, from the input on. There is no rate: at any other than 1 it is not that.
    """

    converges: ClassVar[bool] = False

    def begin(self, objective: Objective) -> _Taken:
        x = objective.point[0]
        return _Taken(torch.zeros(len(x), dtype=torch.int64, device=x.device))

    def move(self, objective: Objective, state: _Taken, found: Evaluation) -> _Taken:
        last = len(objective.point) - 1
        objective.point = [
            torch.where(column(state.steps == last - i, x), x - g, x)
            for i, (x, g) in enumerate(zip(objective.point, found.gradient, strict=True))
        ]
        return _Taken(state.steps + 1)
