"""Methods that step by a rate, and what such a step may do beside: rates of states, schedules, limits, constraints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch.nn as nn
from torch import Tensor

from .base import Evaluation, Method, Objective, Point, check_number, column, inner, rows
from .constraints import Constraint, Known, Range, Shrink, StateStep

Of = Tensor | nn.Module  # a state, or what holds it
Rates = float | Mapping[Of | None, float]
Schedule = Callable[[int], float] | Sequence[float]
_KINDS = (Range, Known, Shrink)
_SHOWN = 4  # factors of a schedule


@dataclass(frozen=True, repr=False)
class Rated(Method):
    """A method that steps by a rate, which may be another for every state and step, and with constraints.

    States are named by the tensors themselves, or by the nodes that hold them.

    Args:
        schedule: what the rates of a step are multiplied by: a function of the step's number, from 0 on in a run or in
            those that go on from one another, which is called before a run; or a sequence of such factors, one for
            every step at least.
        max_norm: of a state's gradient, for every sample: a longer one is scaled down to it, as
            `torch.nn.utils.clip_grad_norm_` does with all that it is given.
        constraints: for states a `Range`, `Known` or `Shrink`, or several of these in a tuple, kept in every step. Of
            states: errors have none.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: one is out of range, or cannot be used with this method; the message says which, and why.
    """

    no_shrink: ClassVar[str] = ""  # why it takes no `Shrink`

    schedule: Schedule | None = field(default=None, kw_only=True)
    max_norm: float | None = field(default=None, kw_only=True)
    constraints: Mapping[Of, Constraint | tuple[Constraint, ...]] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = getattr(self, "lr", None)
        if isinstance(given, Mapping):
            for of, rate in given.items():
                if of is not None:
                    _check_key("lr", of)
                check_number(f"lr of {_told(of)}", rate)
            object.__setattr__(self, "lr", dict(given))
        elif given is not None:
            check_number("lr", given)
        if self.max_norm is not None:
            check_number("max_norm", self.max_norm, open_=True)
        if self.schedule is not None and not callable(self.schedule):
            if not isinstance(self.schedule, Iterable):
                raise TypeError(f"schedule must be a function or a sequence of factors, got {self.schedule!r}")
            factors = tuple(self.schedule)
            for i, factor in enumerate(factors):
                check_number(f"schedule[{i}]", factor)
            object.__setattr__(self, "schedule", factors)
        self._check_constraints()

    def _check_constraints(self) -> None:
        if self.constraints is None:
            return
        if not isinstance(self.constraints, Mapping):
            raise TypeError(f"constraints must be a mapping of states, got {type(self.constraints).__name__}")
        name, taken = type(self).__name__, {}
        for of, given in self.constraints.items():
            _check_key("constraints", of)
            several = _several(given)
            for constraint in several:
                if not isinstance(constraint, _KINDS):
                    raise TypeError(
                        f"constraints of {_told(of)} must be of Range, Known and Shrink, got {constraint!r}"
                    )
                if self.no_shrink and isinstance(constraint, Shrink):
                    raise ValueError(f"Shrink cannot be used with {name}, {self.no_shrink}")
            if len({type(c) for c in several}) < len(several):
                raise ValueError(f"constraints of {_told(of)} must be one of a kind, got {several!r}")
            taken[of] = several
        if taken and self.moves == "errors":
            raise ValueError(
                "constraints need coordinates='states': where errors move a state is its prediction and its error, "
                "and what would be kept of it depends on those below"
            )
        object.__setattr__(self, "constraints", taken)

    def __repr__(self) -> str:
        given = []
        for f in sorted(fields(self), key=lambda f: bool(f.kw_only)):
            value = getattr(self, f.name)
            if not f.repr or (f.kw_only and value is None):
                continue
            if isinstance(value, Mapping):
                value = f"{{{', '.join(f'{_told(of)}: {x!r}' for of, x in value.items())}}}"
            elif f.name == "schedule" and callable(value):
                value = getattr(value, "__name__", type(value).__name__)
            elif f.name == "schedule" and len(value) > _SHOWN:
                value = f"({', '.join(map(repr, value[:_SHOWN]))}, ... {len(value)} factors)"
            else:
                value = repr(value)
            given.append(f"{f.name}={value}")
        return f"{type(self).__name__}({', '.join(given)})"

    @property
    def is_constrained(self) -> bool:
        return bool(self.constraints)

    @property
    def shrinks(self) -> bool:
        """Whether a state is shrunk."""
        return any(isinstance(c, Shrink) for of in (self.constraints or {}).values() for c in _several(of))

    @property
    def limits(self) -> bool:
        """Whether a state has another constraint than what is known of it."""
        return any(not isinstance(c, Known) for of in (self.constraints or {}).values() for c in _several(of))

    @property
    def is_proximal(self) -> bool:
        """Whether a step is by one gradient at one rate, and then by what constraints make of it."""
        return False

    @property
    def only_masks(self) -> bool:
        """Whether all that it does beside steps of one rate is to hold what is known."""
        several = [c for of in (self.constraints or {}).values() for c in _several(of)]
        one_rate = not isinstance(getattr(self, "lr", None), Mapping) and self.schedule is None and not self.max_norm
        return one_rate and all(isinstance(c, Known) for c in several)

    @property
    def is_plain(self) -> bool:
        """Whether it does nothing beside, and has one rate."""
        rate = getattr(self, "lr", None)
        return not (isinstance(rate, Mapping) or self.constraints or self.schedule is not None or self.max_norm)

    def check(self, states: Sequence[Tensor]) -> None:
        self._rates(states)
        _by_state("constraints", self.constraints or {}, states)

    def ways(self, states: Sequence[Tensor]) -> list[StateStep]:
        """How states move, which are all that do.

        Raises:
            ValueError: a state has no rate, or two; what is named is none of these; or a mask does not fit.
        """
        constraints = _by_state("constraints", self.constraints or {}, states)
        return [
            _state_step(rate, state, constraints.get(i, ()))
            for i, (rate, state) in enumerate(zip(self._rates(states), states, strict=True))
        ]

    def _rates(self, states: Sequence[Tensor]) -> list[float]:
        rates: Any = getattr(self, "lr", None)
        if not isinstance(rates, Mapping):
            return [float(rates or 0.0)] * len(states)
        found = _by_state("lr", {of: x for of, x in rates.items() if of is not None}, states)
        missing = [_told(s) for i, s in enumerate(states) if i not in found and None not in rates]
        if missing:
            raise ValueError(f"lr must have a rate for every state, or one for None, got none for {missing[0]}")
        return [float(found[i] if i in found else rates[None]) for i in range(len(states))]

    def factors(self, first: int, count: int) -> list[float]:
        """Of the rates in so many steps from one on; none where there is no schedule.

        Raises:
            TypeError: the schedule gives what is not a number.
            ValueError: one that is negative or not finite, or is too short.
        """
        if self.schedule is None:
            return []
        if not callable(self.schedule):
            if len(self.schedule) < first + count:
                steps = first + count
                raise ValueError(f"schedule must have a factor for each of {steps} steps, got {len(self.schedule)}")
            return [float(x) for x in self.schedule[first : first + count]]
        found = [self.schedule(step) for step in range(first, first + count)]
        for step, factor in enumerate(found, first):
            check_number(f"schedule({step})", factor)
        return [float(x) for x in found]

    def penalty(self, objective: Objective) -> Tensor | float:
        total: Tensor | float = 0.0
        for way, x in zip(self.ways(objective.states), objective.point, strict=True):
            if way.shrink is not None:
                total = total + way.shrink.weight * rows((x - way.shrink.towards).abs()).sum(1)
        return total

    def left(self, objective: Objective, found: Evaluation) -> Tensor | None:
        if not (self.is_constrained and self.is_proximal):
            return None
        steps = self.steps(objective, found.gradient)
        led = steps.led(objective.point, steps.along(objective.point))
        return inner(led, led).sqrt()

    def steps(self, objective: Objective, gradient: Point) -> Steps:
        """What a step by a gradient may do."""
        return Steps(self.ways(objective.states), objective.factor, self.max_norm, gradient)


class Steps:
    """Of one step of all states.

    Attributes:
        rates: of every state.
        gradient: 0 where an entry is known, and no longer than it may be.
    """

    def __init__(self, ways: list[StateStep], factor: float, max_norm: float | None, gradient: Point) -> None:
        self._ways = ways
        self._constrained = any(way.is_constrained for way in ways)
        self.rates = [factor * way.rate for way in ways]
        self.gradient = [
            g if way.known is None else g.masked_fill(way.known, 0.0) for way, g in zip(ways, gradient, strict=True)
        ]
        self._slope = self.gradient
        self._scales: list[Tensor | float] = [1.0] * len(ways)
        if max_norm is not None:
            norms = [rows(g).square().sum(1).sqrt() for g in self.gradient]
            scales = [max_norm / norm.clamp(min=max_norm) for norm in norms]
            self._scales = [column(s, g) for s, g in zip(scales, gradient, strict=True)]
            self.gradient = [s * g for s, g in zip(self._scales, self.gradient, strict=True)]

    def along(self, x: Point, direction: Point | None = None) -> Point:
        """Where a step from a point leads, along minus the gradient or another direction."""
        direction = self.gradient if direction is None else direction
        return self.kept([a - r * d for a, r, d in zip(x, self.rates, direction, strict=True)], x)

    def kept(self, x: Point, before: Point) -> Point:
        """What constraints make of a step from one point to another.

        A gradient that was scaled down is a step at a rate as much lower, and so its proximal step is.
        """
        return [
            way.kept(a, b, r * s)
            for way, a, b, r, s in zip(self._ways, x, before, self.rates, self._scales, strict=True)
        ]

    def led(self, start: Point, end: Point) -> Point:
        """The gradient that would lead from one point to another without constraints."""
        if not self._constrained:
            return self._slope
        return [
            (a - b) / (r * s) if r > 0 else b - b
            for a, b, r, s in zip(start, end, self.rates, self._scales, strict=True)
        ]


def _several(given: Constraint | tuple[Constraint, ...]) -> tuple[Constraint, ...]:
    return tuple(given) if isinstance(given, tuple | list) else (given,)


def _state_step(rate: float, state: Tensor, constraints: tuple[Constraint, ...]) -> StateStep:
    way = StateStep(rate)
    for c in constraints:
        if isinstance(c, Range):
            way = way._replace(range=c)
        elif isinstance(c, Shrink):
            way = way._replace(shrink=c)
        else:
            way = way._replace(known=_fitting(c.mask, state))
    return way


def _fitting(mask: Tensor, state: Tensor) -> Tensor:
    """A mask with as many dimensions as a state."""
    of, want = tuple(mask.shape), tuple(state.shape)
    whole = (1,) * (len(want) - len(of)) + of
    if len(of) > len(want) or any(m not in (1, n) for m, n in zip(whole, want, strict=True)):
        raise ValueError(f"mask must be of a shape that broadcasts to the state's, {want}, got {of}")
    if mask.device != state.device:
        raise ValueError(f"mask must be on the state's device, {state.device}, got {mask.device}")
    return mask.reshape(whole)


def _by_state(what: str, given: Mapping[Any, Any], states: Sequence[Tensor]) -> dict[int, Any]:
    """What is given for states, by their places."""
    places, found = {id(s): i for i, s in enumerate(states)}, {}
    for of, value in given.items():
        mine = [places[id(t)] for t in ([of] if isinstance(of, Tensor) else of.parameters()) if id(t) in places]
        if not mine:
            raise ValueError(f"{what} must name states that E-steps move, got {_told(of)}, which is or holds none")
        for i in mine:
            if i in found:
                raise ValueError(f"{what} must name every state once, got {_told(of)}, of which one was named before")
            found[i] = value
    return found


def _check_key(what: str, of: object) -> None:
    if not isinstance(of, Tensor | nn.Module):
        raise TypeError(f"{what} must name states by tensors or nodes, got {of!r}")


def _told(of: object) -> str:
    if isinstance(of, Tensor):
        return f"a state {list(of.shape)}"
    return "None" if of is None else f"{type(of).__name__}"
