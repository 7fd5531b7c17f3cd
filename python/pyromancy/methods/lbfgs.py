"""L-BFGS (Nocedal & Wright, "Numerical Optimization", algorithms 7.4 and 3.1), for every sample by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Evaluation, Method, Objective, Point, chosen, column, inner, moved, zeros

_FIRST = 0.2  # of the gradient, where no curvature is known yet
_ARMIJO = 1e-4
_HALVINGS = 20


class _Memory(NamedTuple):
    fresh: Tensor  # whether a sample has no last point
    last: Point
    slope: Point  # the gradient there
    steps: list[Point]  # differences of points, the latest first
    slopes: list[Point]  # of gradients
    rho: list[Tensor]  # one over their inner products, [B]; 0 where there is no such pair
    scale: Tensor  # of the inverse Hessian to begin with, [B]


@dataclass(frozen=True)
class LBFGS(Method):
    """Quasi-Newton steps, halved until the energy falls enough (Armijo).

    An evaluation a step, and for every length that is tried the energy alone. The first step is 0.2 of the gradient.

    Args:
        memory: pairs of steps and gradients that are kept, each as large as all variables twice.
        coordinates: "states" or "errors".

    Raises:
        TypeError: `memory` is not an int.
        ValueError: an argument is out of range; the message says which.
    """

    memory: int = 6
    coordinates: str = "errors"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.memory, bool) or not isinstance(self.memory, int):
            raise TypeError(f"memory must be an int, got {self.memory!r}")
        if self.memory < 1:
            raise ValueError(f"memory must be at least 1, got {self.memory}")

    @property
    def measures(self) -> bool:
        return True

    @property
    def remembers_energy(self) -> bool:
        return True

    def begin(self, objective: Objective) -> _Memory:
        x = objective.point
        none = x[0].new_zeros(len(x[0]))
        pairs = range(self.memory)
        return _Memory(
            torch.ones_like(none, dtype=torch.bool), zeros(x), zeros(x), [zeros(x) for _ in pairs],
            [zeros(x) for _ in pairs], [none for _ in pairs], torch.full_like(none, _FIRST),
        )  # fmt: skip

    def move(self, objective: Objective, state: _Memory, found: Evaluation) -> _Memory:
        x, g = objective.point, found.gradient
        steps, slopes, rho, scale = self._remembered(state, x, g)
        along = [-d for d in _product(steps, slopes, rho, scale, g)]
        slope = inner(along, g)
        uphill = ~(slope < 0)  # by rounding, or where the energy bends down
        along = chosen(uphill, [-_FIRST * d for d in g], along)
        slope = slope.where(~uphill, -_FIRST * inner(g, g))

        eps = torch.finfo(found.energy.dtype).eps
        length, taken = torch.ones_like(slope), torch.zeros_like(uphill)
        for _ in range(_HALVINGS):
            objective.point = moved(x, length, along)
            bound = found.energy + _ARMIJO * length * slope + 10 * eps * found.energy.abs()
            taken = taken | (objective.value() <= bound)
            if taken.all():
                break
            length = length.where(taken, 0.5 * length)
        else:  # where no length does, the sample stays and begins anew
            objective.point = chosen(taken, objective.point, x)
            rho = [r.where(taken, 0.0) for r in rho]
            scale = scale.where(taken, _FIRST)
        return _Memory(torch.zeros_like(state.fresh), x, g, steps, slopes, rho, scale)

    def _remembered(self, state: _Memory, x: Point, g: Point) -> tuple[list[Point], list[Point], list[Tensor], Tensor]:
        """The pairs with that of the last step, where it tells of a positive curvature."""
        step, change = moved(x, -1.0, state.last), moved(g, -1.0, state.slope)
        product, squares = inner(step, change), inner(change, change)
        eps = torch.finfo(product.dtype).eps
        new = ~state.fresh & (product > eps * squares) & (product > 0)
        rho = product.reciprocal().where(new, 0.0)
        return (
            chosen(new, [step, *state.steps[:-1]], state.steps),
            chosen(new, [change, *state.slopes[:-1]], state.slopes),
            chosen(new, [rho, *state.rho[:-1]], state.rho),
            (product / squares).where(new, state.scale),
        )


def _product(steps: list[Point], slopes: list[Point], rho: list[Tensor], scale: Tensor, g: Point) -> Point:
    """The inverse Hessian that the pairs tell of, times a gradient: the recursion of two loops."""
    factors = []
    for s, y, r in zip(steps, slopes, rho, strict=True):
        factors.append(r * inner(s, g))
        g = moved(g, -factors[-1], y)
    g = [column(scale, d) * d for d in g]
    for s, y, r, factor in reversed([*zip(steps, slopes, rho, factors, strict=True)]):
        g = moved(g, factor - r * inner(y, g), s)
    return g
