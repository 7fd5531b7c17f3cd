"""What a method of inference is, and what it sees of a problem: energies and gradients at points, sample by sample.

A method decides for every sample by itself: what it computes of one is ``[B]``, what it chooses a mask, and no result
of a sample depends on those around it.
"""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

Point = list[Tensor]  # a value for every variable, [B, ...] each
COORDINATES = ("states", "errors")
_S = TypeVar("_S")


class Evaluation(NamedTuple):
    """What an objective is at a point.

    Attributes:
        energy: per sample, ``[B]``.
        gradient: of their sum, for every variable.
    """

    energy: Tensor
    gradient: Point


class Objective(Protocol):
    """An energy as a function of variables, which are states or errors.

    Attributes:
        point: where it is looked at. Methods set another list, and leave the tensors of this one as they are.
        floor: what the energy is above anywhere, ``[B]`` or a number, as log-determinants; minus infinity where that
            is not known.
        states: the tensors whose the variables are, in their order.
        factor: of all rates, in the step under way.
    """

    point: Point

    @property
    def floor(self) -> Tensor | float: ...

    @property
    def states(self) -> Sequence[Tensor]: ...

    @property
    def factor(self) -> float: ...

    def evaluate(self) -> Evaluation:
        """Energies and gradients at the point: a sweep up and a sweep down."""

    def value(self) -> Tensor:
        """Energies alone, ``[B]``: half of that."""


@dataclass(frozen=True)
class Method(ABC):
    """How E-steps move: a value, which `InferenceLoop` takes as ``method``.

    A step is `look`, after which a sample may be found to be at its end and stay where it is then, and `move`. What
    lasts from step to step is a state, a tuple that these two make anew: of tensors with a row per sample, and of lists
    of these.
    """

    converges: ClassVar[bool] = True  # to an equilibrium, if let: whether a tolerance can stop it

    def __post_init__(self) -> None:
        given = getattr(self, "coordinates", "states")
        if given not in COORDINATES:
            raise ValueError(f"coordinates must be 'states' or 'errors', got {given!r}")

    @property
    def moves(self) -> str:
        """Its coordinates, "states" or "errors"."""
        return str(getattr(self, "coordinates", "states"))

    @property
    def swings(self) -> bool:
        """Whether energies swing as momentum carries samples, so that for a while no gain is no end."""
        return False

    @property
    def measures(self) -> bool:
        """Whether it takes errors in standard deviations, as one may whose rates nobody gives."""
        return False

    @property
    def remembers_energy(self) -> bool:
        """Whether its state is of no use once weights, or states, have been changed by others."""
        return False

    @property
    def is_constrained(self) -> bool:
        """Whether states go elsewhere than gradients lead, so that these tell of no end."""
        return False

    def check(self, states: Sequence[Tensor]) -> None:  # noqa: B027 (most take any)
        """Raise where what it was given for states does not fit those that move."""

    def factors(self, first: int, count: int) -> list[float]:
        """What rates are multiplied by in so many steps from one on; none where that is 1."""
        return []

    def penalty(self, objective: Objective) -> Tensor | float:
        """What it descends at the point beside the energy, ``[B]`` or a number."""
        return 0.0

    def left(self, objective: Objective, found: Evaluation) -> Tensor | None:
        """Where it is constrained, how long a gradient its step is that of, ``[B]``; None where it is no such step."""
        return None

    @abstractmethod
    def begin(self, objective: Objective) -> Any:
        """The state before the first step of a batch; nothing is evaluated for it."""

    def look(self, objective: Objective, state: Any) -> tuple[Evaluation, Any]:
        """Evaluate the objective, at its point or at another; what is given is of what is its point afterwards."""
        return objective.evaluate(), state

    @abstractmethod
    def move(self, objective: Objective, state: Any, found: Evaluation) -> Any:
        """Move the objective's point by what was found there; gives the next state."""

    def end(self, objective: Objective, state: Any) -> None:  # noqa: B027 (most have nothing to do)
        """Move the objective's point to where a run ends, if that is not where the last step has left it."""


def check_number(name: str, value: Any, least: float = 0.0, below: float = math.inf, open_: bool = False) -> None:
    """Raise where an option of a method is not a number from `least`, or above it where `open_`, up to `below`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    value = float(value)
    if not (math.isfinite(value) and least <= value < below) or (open_ and value == least):
        bound = f"above {least:g}" if open_ else "not negative" if least == 0 else f"at least {least:g}"
        more = "" if math.isinf(below) else f" and below {below:g}"
        raise ValueError(f"{name} must be finite, {bound}{more}, got {value}")


def check_flag(name: str, value: Any) -> None:
    """Raise where an option of a method is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def column(values: Tensor, like: Tensor) -> Tensor:
    """One value per sample, ``[B]``, against all dimensions of a variable."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def rows(t: Tensor) -> Tensor:
    """A variable as ``[B, n]``."""
    return t.reshape(t.shape[0], math.prod(t.shape[1:]))


def inner(a: Point, b: Point) -> Tensor:
    """Inner products per sample, ``[B]``."""
    return sum((rows(x * y).sum(1) for x, y in zip(a, b, strict=True)), start=torch.zeros(()).to(a[0]))


def moved(a: Point, by: Tensor | float, along: Point) -> Point:
    """``a + by * along``, where `by` is a number or one per sample.

    By two operators: one that does both rounds once or twice by where in the batch an element lies.
    """
    if isinstance(by, Tensor):
        return [x + column(by, x).to(x) * d for x, d in zip(a, along, strict=True)]
    return [x + d if by == 1.0 else x - d if by == -1.0 else x + by * d for x, d in zip(a, along, strict=True)]


def zeros(point: Point) -> Point:
    """A zero for every variable."""
    return [torch.zeros_like(x) for x in point]


def chosen(where: Tensor, a: _S, b: _S) -> _S:
    """`a` for the samples of a mask, ``[B]``, `b` for the others, in states and points alike."""
    if isinstance(a, Tensor):
        return cast("_S", torch.where(column(where, a), a, cast(Tensor, b)))
    if isinstance(a, tuple | list):
        items = [chosen(where, x, y) for x, y in zip(a, cast("tuple[Any, ...]", b), strict=True)]
        return cast("_S", type(a)(*items) if hasattr(a, "_fields") else type(a)(items))
    return a
