"""Nesterov's acceleration at a given rate, restarted for every sample by itself (O'Donoghue & Candes, 2015)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Evaluation, Objective, Point, column, inner, moved, zeros
from .rated import Steps


class Run(NamedTuple):
    """Of every sample.

    Attributes:
        push: what momentum adds to x, where the next sweep looks.
        time: t, [B], of which the momentum is made.
        last: x of the step that is under way.
    """

    push: Point
    time: Tensor
    last: Point


def begin(objective: Objective) -> Run:
    """At rest."""
    x = objective.point
    return Run(zeros(x), torch.ones(len(x[0]), dtype=x[0].dtype, device=x[0].device), x)


def look(objective: Objective, state: Run) -> tuple[Evaluation, Run]:
    """Evaluate at v, which is x and what momentum adds."""
    x = objective.point
    objective.point = moved(x, 1.0, state.push)
    return objective.evaluate(), state._replace(last=x)


def move(objective: Objective, state: Run, steps: Steps, momentum: str | float) -> Run:
    """``x <- v - lr g(v)``, or what constraints make of that, and t = 1 where it goes up along the gradient."""
    x = steps.along(objective.point)
    led = steps.led(objective.point, x)
    change = moved(x, -1.0, state.last)
    objective.point = x
    if momentum == "restart":
        time = state.time.where(inner(led, change) <= 0, 1.0)
        later = 0.5 * (1 + (1 + 4 * time * time).sqrt())
        factor = (time - 1) / later
        return Run([column(factor, d) * d for d in change], later, state.last)
    by = by_depth(len(x)) if isinstance(momentum, str) else momentum
    return Run([by * d for d in change], state.time, state.last)


def by_depth(count: int) -> float:
    """What is best for the Hessian of a row of so many free states and unit weights."""
    condition = (math.cos(math.pi / (2 * count + 1)) / math.sin(math.pi / (4 * count + 2))) ** 2
    return (math.sqrt(condition) - 1) / (math.sqrt(condition) + 1)
