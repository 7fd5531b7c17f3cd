"""Acceleration, at a rate that is given or at none: then by quasi-Newton steps whose memory is one step.

Without a rate a sweep evaluates the energy F and its gradient g at one point e + d, for every sample, and never one
that has to be thrown away for the sake of another sample. From it and the sweep before, s = d and y = g(e + d) - g(e),
the next d is minus the gradient times the inverse Hessian that BFGS makes of h I by that one pair (Nocedal & Wright,
"Numerical Optimization", equations 6.17 and 7.20), with h = s.y / y.y. Where the energy has risen the sample stays at
e, goes by the same pair, which knows of the curvature that it met, and at most half as far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..ops import elementwise, secant
from ..plan.expression import Op
from . import nesterov
from .base import Evaluation, Objective, Point, check_number, chosen, column
from .rated import Rated, Rates

MOMENTA = ("restart", "depth")
# below both of these a pair tells of no curvature to go by: of s.y over s.s, which in measured errors is 1 or more but
# for what is not linear, and of s.y over the norms of s and y
_CURVED, _ALIGNED = 1e-2, 1e-3
_NOISE = 1e-12  # of y.y over g.g: what is less is rounding
_SHORTER = 0.5  # the most that a step may be of one that has failed
_LONGER = 100.0  # the most that it may be of the last, or of the gradient times h, where that has not: rounding leaps
_LOST = 1e-10  # of the squares of its parts: a step that is shorter has lost its length in rounding
_FIRST = 0.2  # of the gradient, for the first step on states, or where nothing bounds the energy from below


class Trial(NamedTuple):
    """Of every sample.

    Attributes:
        point: e, the best so far.
        step: d; 0 before the first sweep.
        trial: e + d.
        gradient: g(e).
        energy: F(e), [B]; infinite before the first sweep.
        scale: h, [B], in float64.
    """

    point: Point
    step: Point
    trial: Point
    gradient: Point
    energy: Tensor
    scale: Tensor


@dataclass(frozen=True, repr=False)
class Accelerated(Rated):
    """The method to begin with: one evaluation a step, and without `lr` nothing to tune.

    Without a rate samples go by quasi-Newton steps with a memory of one step, and never end above where they began.
    With one they go by Nesterov's, ``x <- v - lr g(v)``, ``v <- x + b (x - x_before)``.

    Args:
        lr: the rate, or those of states, as `Descent` has them; None needs none.
        momentum: b, with a rate: "restart" for ``(t - 1) / t'`` with ``t' = (1 + sqrt(1 + 4 t^2)) / 2``, and t = 1
            again where a step goes up along the gradient (O'Donoghue & Candes, 2015); "depth" for what is best for
            descent on the states of so many layers in a row; or a number.
        coordinates: "errors" or "states".
        schedule: see `Rated`, as all that follow, and all with a rate alone; with a `Shrink` steps are those of FISTA.
        max_norm: see there.
        constraints: see there.

    Raises:
        TypeError: `lr` or a number for `momentum` is not one.
        ValueError: an argument is out of range; the message says which.
    """

    lr: Rates | None = None
    momentum: str | float = "restart"
    coordinates: str = "errors"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr is None:
            if self.momentum != "restart":
                raise ValueError(f"momentum must be left out without lr, got {self.momentum!r}")
            for name in ("schedule", "max_norm", "constraints"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} must be left out without lr: quasi-Newton steps have no rate")
            return
        if not isinstance(self.momentum, str):
            check_number("momentum", self.momentum, below=1.0)
        elif self.momentum not in MOMENTA:
            raise ValueError(f"momentum must be 'restart', 'depth' or a number, got {self.momentum!r}")

    @property
    def swings(self) -> bool:
        return self.lr is not None and self.momentum != 0

    @property
    def measures(self) -> bool:
        return self.lr is None

    @property
    def remembers_energy(self) -> bool:
        return self.lr is None

    @property
    def is_proximal(self) -> bool:
        return True

    def blend(self, count: int) -> float | None:
        """Momentum of a rate, for so many free states; None where it restarts."""
        if isinstance(self.momentum, str):
            return None if self.momentum == "restart" else nesterov.by_depth(count)
        return float(self.momentum)

    def begin(self, objective: Objective) -> Trial | nesterov.Run:
        if self.lr is not None:
            return nesterov.begin(objective)
        x = objective.point
        never = torch.full((len(x[0]),), torch.inf, dtype=x[0].dtype, device=x[0].device)
        nothing = [z.new_zeros(()).expand_as(z) for z in x]
        return Trial(x, nothing, x, nothing, never, torch.ones_like(never, dtype=torch.float64))

    def look(self, objective: Objective, state: Trial | nesterov.Run) -> tuple[Evaluation, Trial | nesterov.Run]:
        if isinstance(state, nesterov.Run):
            return nesterov.look(objective, state)
        objective.point = state.trial
        after = _judged(state, objective, self.coordinates == "errors")
        objective.point = after.point
        return Evaluation(after.energy, after.gradient), after

    def move(self, objective: Objective, state: Trial | nesterov.Run, found: Evaluation) -> Trial | nesterov.Run:
        if isinstance(state, nesterov.Run):
            assert self.lr is not None
            return nesterov.move(objective, state, self.steps(objective, found.gradient), self.momentum)
        return state

    def end(self, objective: Objective, state: Trial | nesterov.Run) -> None:
        """Take the step that is on trial, where the energy, of half a sweep, falls by it."""
        if isinstance(state, Trial):
            objective.point = state.trial
            objective.point = chosen(objective.value() <= state.energy, state.trial, state.point)


def _judged(state: Trial, objective: Objective, errors: bool) -> Trial:
    """What comes of a trial, which is the objective's point: where the sample is then, and what it tries next."""
    energy, scale = state.energy, state.scale
    found = objective.evaluate()
    fresh = energy == torch.inf
    # g and h, the gradients at the trial and before it; s, the step; y = g - h
    gg, gs, gy, hh, hs, hy, ss, sy, yy = _products(found.gradient, state.gradient, state.step)
    fell = (found.energy <= energy) & gg.isfinite()
    takes = fell | fresh

    least = torch.minimum(_CURVED * ss, _ALIGNED * (ss * yy).sqrt())
    curved = ~fresh & (sy > least) & (yy > _NOISE * gg) & yy.isfinite()
    of_pair = sy / yy
    # at a kink, as by rounding, y does not shrink with s: a trial that failed there may not lower h
    of_pair = torch.where(fell, of_pair, torch.maximum(of_pair, scale))
    scale = torch.where(curved, of_pair, torch.where(fell, scale, _SHORTER * scale))
    # the residuals r of linear predictions of one target have r.r = 2 F at e = 0, and a curvature of 1 + g.g / r.r
    above = (found.energy - (objective.floor if errors else -math.inf)).double()
    first = torch.where((above > 0) & above.isfinite(), 1 / (1 + gg / (2 * above)), _FIRST)
    scale = torch.where(fresh, first.nan_to_num(_FIRST), scale)

    # k, the gradient at the point that is kept; the step is -scale k - along s + across y
    kk, ks, ky = (torch.where(takes, a, b) for a, b in ((gg, hh), (gs, hs), (gy, hy)))
    rho, sy, yy, ky = (torch.where(curved, x, 0.0) for x in (sy.reciprocal(), sy, yy, ky))
    along = rho * (ks + scale * (rho * yy * ks - ky))
    across = scale * rho * ks
    parts = scale.square() * kk + along.square() * ss + across.square() * yy
    squares = parts + 2 * (scale * along * ks - scale * across * ky - along * across * sy)
    lost = ~(squares > _LOST * parts)  # nobody knows how far that would go: along the gradient, then
    along, across = (x.masked_fill(lost, 0.0) for x in (along, across))
    squares = torch.where(lost, scale.square() * kk, squares)
    most = torch.where(takes, _LONGER**2 * torch.maximum(ss, scale.square() * gg), _SHORTER**2 * ss)
    factor = (most / squares).sqrt().clamp(max=1.0).nan_to_num(0.0)
    weights = [x.to(energy) for x in (takes, scale, along, across, factor)]
    given = zip(found.gradient, state.gradient, state.step, state.point, strict=True)
    advanced = [_advanced(*variables, weights) for variables in given]
    gradient, step, point, trial = (list(of) for of in zip(*advanced, strict=True))
    return Trial(point, step, trial, gradient, torch.where(takes, found.energy, energy), scale)


def _products(gradient: Point, before: Point, step: Point) -> Tensor:
    """What `secant_products_` has, ``[9, B]``, of all variables together."""
    total = torch.zeros(9, len(gradient[0]), dtype=torch.float64, device=gradient[0].device)
    out = torch.empty_like(total)
    for of in zip(gradient, before, step, strict=True):
        (ops.secant_products_ if _has_kernels(of[0]) else secant.secant_products_)(out, *of)
        total += out
    return total


def _has_kernels(x: Tensor) -> bool:
    return x.dtype in (torch.float32, torch.float64)


def _program() -> tuple[list[int], list[int], list[float]]:
    """The program of `elementwise_` that makes k, the next step, the point and the next trial of a variable.

    It reads g, h, s and the point before, and takes, scale, along, across and the factor of the step.
    """
    instructions: list[int] = []

    def made(op: Op, *values: int) -> int:
        instructions.extend((op, *values, *[0] * (3 - len(values))))
        return 9 + len(instructions) // 4  # behind what is read, and one number

    g, h, s, e, takes, scale, along, across, factor, zero = range(10)
    k = made(Op.SELECT, takes, g, h)
    of_pair = made(Op.SELECT, across, made(Op.MUL, across, made(Op.SUB, g, h)), zero)  # g may be no number
    downhill = made(Op.ADD, made(Op.MUL, scale, k), made(Op.MUL, along, s))
    step = made(Op.MUL, factor, made(Op.SUB, of_pair, downhill))
    point = made(Op.SELECT, takes, made(Op.ADD, e, s), e)
    return instructions, [k, step, point, made(Op.ADD, point, step)], [0.0]


_PROGRAM = _program()


def _advanced(g: Tensor, h: Tensor, s: Tensor, e: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """Of a variable the gradient that is kept, the next step, the point that is kept and the next trial."""
    written = [torch.empty_like(e) for _ in range(4)]
    read = [g, h, s, e, *(column(w, e).expand_as(e) for w in weights)]
    (ops.elementwise_ if _has_kernels(e) else elementwise.elementwise_)(written, read, *_PROGRAM)
    return written
