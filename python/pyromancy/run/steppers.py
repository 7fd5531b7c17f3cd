"""What plans have for methods of inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .. import plan
from ..methods import LBFGS, ZIL, Accelerated, Adam, Descent, FixedPrediction, Heun, Langevin, Method, Sequential
from ..methods.rated import Rates


@dataclass
class Carried:
    """What goes on from run to run of a method.

    Attributes:
        taken: steps so far.
        seed: of noise.
        velocities: of the free nodes, in their order.
        kept: what else is of them; of fixed predictions, the first states.
        progress: of the samples; None where steps are plain descent, in turns or at fixed predictions.
    """

    taken: int = 0
    seed: float = 0.0
    velocities: tuple[Tensor, ...] = ()
    kept: tuple[Tensor, ...] = ()
    progress: Tensor | None = None


def _number(rate: Rates) -> float:
    """The rate of a method; 1 where states have their own, which plans have beside it."""
    return 1.0 if isinstance(rate, Mapping) else float(rate)


def of_accelerated(method: Accelerated, states: int) -> plan.Stepper:
    """By quasi-Newton steps, or Nesterov's for so many free states."""
    if method.lr is None:
        return plan.QuasiNewton()
    momentum = method.blend(states)
    return plan.Nesterov(lr=_number(method.lr), momentum=momentum or 0.0, restarts=momentum is None)


def of_descent(method: Descent, states: int) -> plan.Stepper:
    """With momentum or without."""
    del states
    momentum = float(method.momentum)
    dampening = float(method.dampening) if momentum else 0.0
    return plan.Momentum(
        lr=_number(method.lr), momentum=momentum, dampening=dampening, nesterov=method.nesterov
    )  # fmt: skip


def of_heun(method: Heun, states: int) -> plan.Stepper:
    """With adaptive steps or fixed ones."""
    del states
    return plan.Heun(
        lr=_number(method.lr), adaptive=method.adaptive, rtol=float(method.rtol), atol=float(method.atol)
    )  # fmt: skip


def of_adam(method: Adam, states: int) -> plan.Stepper:
    """With the moments of every element."""
    del states
    first, second = map(float, method.betas)
    return plan.Adam(lr=_number(method.lr), first=first, second=second, epsilon=float(method.eps))


def of_langevin(method: Langevin, states: int) -> plan.Stepper:
    """With noise of another seed for every run."""
    del states
    return plan.Langevin(lr=_number(method.lr), temperature=float(method.temperature))


def of_sequential(method: Sequential, states: int) -> plan.Descent:
    """Every other state, and then those between."""
    del states
    return plan.Descent(_number(method.lr), update_order=plan.UpdateOrder.ALTERNATE)


def of_zil(method: ZIL, states: int) -> plan.Descent:
    """A state at every step."""
    del method, states
    return plan.Descent(1.0, update_order=plan.UpdateOrder.ONE_BY_ONE)


def of_fixed_prediction(method: FixedPrediction, states: int) -> plan.Descent:
    """At the predictions of the states where it began."""
    del states
    return plan.Descent(float(method.lr), fixed=True)


def of_lbfgs(method: LBFGS, states: int) -> plan.Stepper:
    """With so many pairs."""
    del states
    return plan.LBFGS(memory=float(method.memory))


STEPPERS: dict[type[Method], Callable[[Any, int], plan.Stepper | plan.Descent]] = {
    Accelerated: of_accelerated,
    Descent: of_descent,
    Heun: of_heun,
    Adam: of_adam,
    Langevin: of_langevin,
    Sequential: of_sequential,
    ZIL: of_zil,
    FixedPrediction: of_fixed_prediction,
    LBFGS: of_lbfgs,
}
ORDERED = (Langevin, Sequential, ZIL)  # where it matters which state is which
