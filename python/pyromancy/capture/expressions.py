"""Reads laws off a program: what calls make, element by element, of a state and its prediction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import functional
from ..plan.activations import ACTIVATIONS
from ..plan.expression import Expression, Op
from .calls import Call, Slot, expands, is_number
from .symbolic import Algebra, NoExpression
from .vocabulary import arguments

_MOST_CALLS = 64
_Maker = Callable[..., int]  # of an algebra and values, or None where an argument is not given


def _clamped(g: Algebra, x: int, low: int | None = None, high: int | None = None) -> int:
    """As PyTorch has it: the slope is 1 at both bounds."""
    if low is not None:
        x = g.apply(Op.SELECT, g.apply(Op.AT_LEAST, x, low), x, low)
    return x if high is None else g.apply(Op.SELECT, g.apply(Op.AT_LEAST, high, x), x, high)


def _softplus(g: Algebra, x: int, beta: int | None = None, threshold: int | None = None) -> int:
    b, limit = (None if a is None else g.known(a) for a in (beta, threshold))
    if b == 0 or limit not in (None, 20.0):
        raise NoExpression("has no softplus with a beta of 0, or another threshold")
    by = g.number(1.0 if b is None else b)
    return g.div(g.apply(Op.SOFTPLUS, g.mul(by, x)), by)


def _power(g: Algebra, x: int, p: int) -> int:
    exponent = g.known(p)
    if exponent is None:
        raise NoExpression("has no power that is not a number")
    return g.pow(x, exponent)


def _where(g: Algebra, condition: int, x: int, y: int) -> int:
    return g.apply(Op.SELECT, condition, x, y)


def _relu(g: Algebra, x: int) -> int:
    zero = g.number(0.0)
    return g.apply(Op.SELECT, g.apply(Op.GREATER, x, zero), x, zero)


# The arguments of functions, by what they mean, and what those make.
_X, _XY = ("input",), ("input", "other")
_MAKERS: dict[str, tuple[tuple[str, ...], _Maker]] = {
    "add": ((*_XY, "alpha"), lambda g, a, b, c=None: g.add(a, b if c is None else g.mul(c, b))),
    "sub": ((*_XY, "alpha"), lambda g, a, b, c=None: g.sub(a, b if c is None else g.mul(c, b))),
    "rsub": ((*_XY, "alpha"), lambda g, a, b, c=None: g.sub(b, a if c is None else g.mul(c, a))),
    "mul": (_XY, Algebra.mul),
    "div": (_XY, Algebra.div),
    "rdiv": (_XY, lambda g, a, b: g.div(b, a)),
    "reciprocal": (_X, lambda g, a: g.div(g.number(1.0), a)),
    "neg": (_X, Algebra.neg),
    "positive": (_X, lambda g, a: a),
    "square": (_X, lambda g, a: g.pow(a, 2.0)),
    "pow": (("input", "exponent"), _power),
    "rsqrt": (_X, lambda g, a: g.pow(a, -0.5)),
    "relu": (_X, _relu),
    "clamp": (("input", "min", "max"), _clamped),
    "clamp_min": (("input", "min"), _clamped),
    "clamp_max": (("input", "max"), lambda g, a, high: _clamped(g, a, None, high)),
    "softplus": (("input", "beta", "threshold"), _softplus),
    "log_sigmoid": (_X, lambda g, a: g.neg(g.apply(Op.SOFTPLUS, g.neg(a)))),
    "where": (("condition", "input", "other"), _where),
    "greater": (_XY, lambda g, a, b: g.apply(Op.GREATER, a, b)),
    "less": (_XY, lambda g, a, b: g.apply(Op.GREATER, b, a)),
    "at_least": (_XY, lambda g, a, b: g.apply(Op.AT_LEAST, a, b)),
    "at_most": (_XY, lambda g, a, b: g.apply(Op.AT_LEAST, b, a)),
    "maximum": (_XY, lambda g, a, b: g.apply(Op.MAX, a, b)),
    "minimum": (_XY, lambda g, a, b: g.apply(Op.MIN, a, b)),
    "logaddexp": (_XY, lambda g, a, b: g.apply(Op.LOGADDEXP, a, b)),
    **{
        name: (_X, lambda g, a, op=op: g.apply(op, a))
        for name, op in {
            "abs": Op.ABS, "sign": Op.SIGN, "sqrt": Op.SQRT, "exp": Op.EXP, "expm1": Op.EXPM1, "log": Op.LOG,
            "log1p": Op.LOG1P, "tanh": Op.TANH, "sigmoid": Op.SIGMOID, "cosh": "cosh", "sinh": "sinh",
        }.items()
    },
}  # fmt: skip
# Losses of two, element by element; logits come before targets.
_LOSSES: dict[str, Callable[[Algebra, int, int], int]] = {
    "mse_loss": lambda g, a, b: g.pow(g.sub(a, b), 2.0),
    "l1_loss": lambda g, a, b: g.apply(Op.ABS, g.sub(a, b)),
    "binary_cross_entropy_with_logits": lambda g, a, b: g.sub(g.apply(Op.SOFTPLUS, a), g.mul(a, b)),
    "poisson_nll_loss": lambda g, a, b: g.sub(g.apply(Op.EXP, a), g.mul(a, b)),
}
REDUCTIONS = {0: "none", 1: "mean", 2: "sum"}  # of losses, as PyTorch numbers them
_COMPARISONS = ("greater", "less", "at_least", "at_most")


class Reading(NamedTuple):
    """A law of elements, and what it is of, as slots.

    Attributes:
        law: of the elements.
        state: z.
        prediction: mu, or 0.
        theta: what no free state changes, and broadcasts to the elements, if there is any.
        turned: whether the state is subtracted from the prediction; None where neither is subtracted from the other.
    """

    law: Expression
    state: int
    prediction: int | float = 0.0
    theta: int | None = None
    turned: bool | None = False


class Reader:
    """Reads the elements of slots.

    Args:
        producer: the call that computes a slot; none of leaves.
        forms: for every slot a tensor of its shape and dtype.
        varying: the slots that free states change.
        same: whether two slots are computed in the same way.
        may_be_state: whether a slot can be a state.
    """

    def __init__(
        self,
        producer: Mapping[int, Call],
        forms: Sequence[Tensor],
        varying: Collection[int],
        same: Callable[[int, int], bool],
        may_be_state: Callable[[int], bool],
    ) -> None:
        self._producer, self._forms, self._varying = producer, forms, varying
        self._same, self._may_be_state = same, may_be_state

    def read(self, slot: int, preferred: Callable[[int], Any], told: tuple[int, int] | None = None) -> Reading:
        """The law of a slot's elements, and what it is of.

        Args:
            slot: of the elements.
            preferred: the least of what may be the state has the least of this.
            told: the state and the prediction, where they are known: which may be read as less, the rest as of the law.

        Raises:
            NoExpression: they are more than the language of laws has; the message says what.
        """
        form, factors = self._forms[slot], self._factors(slot)
        # without a theta before with one; and what no free state changes is taken as it is, if it can be
        plain: list[int] = []
        for reading in self._readings(slot, lambda a: (a in factors, preferred(a)), told):
            state, atoms, calls, with_theta, summed = reading
            others = [a for a in atoms if a != state]
            others.sort(key=lambda a: self._is_prediction(a, form, factors), reverse=True)
            if state is not None and (
                len(others) <= 1 or (with_theta and len(others) == 2 and self._are_two(others[0], others[1], form))
            ):
                break
            plain = plain if summed else others
        else:
            raise NoExpression(self._odd(plain))
        of = Algebra()
        if not others:
            return Reading(self._program(of, slot, {state: of.distance}), state)
        prediction = others[0]
        if len(others) == 1 and self._forms[prediction].shape != form.shape and self._is_theta(prediction, form):
            law = self._program(of, slot, {state: of.z, prediction: of.mu})
            if not law.is_of_distance:
                of = Algebra()
                law = self._program(of, slot, {state: of.distance, prediction: of.theta})
                return Reading(law, state, theta=prediction if law.has_theta else None)
            return Reading(law, state, prediction)
        turned = False if told is not None else self._is_turned(slot, state, prediction)
        prediction = self._activated(prediction, calls)
        given, theta = {state: of.z, prediction: of.mu}, None
        if len(others) == 2:
            theta = others[1]
            given[theta] = of.theta
        law = self._program(of, slot, given)
        # a theta that is multiplied by zero is in no program
        return Reading(law, state, prediction, theta if law.has_theta else None, turned)

    def _activated(self, prediction: int, calls: Collection[Call]) -> int:
        """What an activation makes of a prediction or a multiple of it, if all else is of that; or else itself."""
        s = prediction
        while s in self._varying and (users := [c for c in calls if any(self._same(s, i) for i in c.inputs)]):
            first, *more = users
            if any(not self._same(first.outputs[0], c.outputs[0]) for c in more):
                break
            if (first.meaning or "") in ACTIVATIONS:
                return first.outputs[0]
            # multiples that are computed several times would not all become the Linear's
            if more or first.meaning not in ("mul", "div", "neg") or len(first.inputs) != 1:
                break
            s = first.outputs[0]
        return prediction

    def _is_turned(self, slot: int, state: int, prediction: int) -> bool | None:
        """Whether the state is subtracted from the prediction, and never the other way; None where neither is."""
        found, open_, seen = set[bool](), [slot], set[int]()
        while open_:
            s = open_.pop()
            call = self._producer.get(s)
            if call is None or s in seen or self._same(s, state) or self._same(s, prediction):
                continue
            seen.add(s)
            open_.extend(call.inputs)
            if call.meaning in ("sub", "rsub") or self._is_residual(call):
                first, *others = call.inputs[:: -1 if call.meaning == "rsub" else 1]
                if len(others) == 1 and self._same(first, state) and self._same(others[0], prediction):
                    found.add(False)
                elif len(others) == 1 and self._same(first, prediction) and self._same(others[0], state):
                    found.add(True)
        return found.pop() if len(found) == 1 else None

    def _readings(
        self, slot: int, order: Callable[[int], Any], told: tuple[int, int] | None
    ) -> Iterator[tuple[int | None, list[int], list[Call], bool, bool]]:
        """A state, what elements are made of, by which calls, whether of a theta, and whether of a sum."""
        form = self._forms[slot]
        kinds: Iterable[tuple[bool, bool, bool]] = product((False, True), (False, True), (True, False))
        if told is not None:  # and so what is compared with it: parts of that are no thetas
            kinds = ((summed, with_theta, varying) for with_theta, summed, varying in kinds)
            for with_theta, varying in product((False, True), (True, False)) if self._is_multiple(told[1]) else ():
                atoms, calls = self._atoms(slot, varying, told[1])
                yield next((a for a in atoms if self._same(a, told[0])), None), atoms, calls, with_theta, False
        for summed, with_theta, varying in kinds:
            atoms, calls = self._atoms(slot, varying)
            forms = [(a, self._forms[a]) for a in atoms]
            states = [a for a, t in forms if self._may_be_state(a) and (t.shape, t.dtype) == (form.shape, form.dtype)]
            states = states if told is None else [a for a in states if self._same(a, told[0])]
            # what all is multiplied by is a weight, where anything else can be the state
            states.sort(key=order)
            if not summed:
                yield states[0] if states else None, atoms, calls, with_theta, False
                continue
            for state in states:
                for joint in self._sums(slot, state, atoms, varying):
                    yield state, *self._atoms(slot, varying, joint), with_theta, True

    def _is_multiple(self, slot: int) -> bool:
        """Whether it is a number times a product with weights."""
        call = self._producer.get(slot)
        while call is not None and call.meaning in ("mul", "div", "neg") and len(call.inputs) == 1:
            slot = call.inputs[0]
            call = self._producer.get(slot)
        return slot in self._varying and call is not None and call.meaning in ("linear", "product", "addmm")

    def _sums(self, slot: int, state: int, atoms: list[int], varying: bool) -> list[int]:
        """The sums of all but the state that free states change, which may be predictions, inner ones first."""
        parts = {a for a in atoms if a in self._varying and a != state}
        whole, found = self._forms[slot], list[int]()
        beneath: dict[int, set[int]] = {}

        def of(s: int) -> set[int]:
            if s not in beneath:
                call = self._maker(s, whole, varying)
                if call is None:
                    beneath[s] = {next((a for a in atoms if self._same(a, s)), s)}
                else:
                    beneath[s] = set[int]().union(*map(of, call.inputs))
                    is_sum = call.meaning in ("add", "sub", "rsub") and self._forms[s].shape == whole.shape
                    if is_sum and s in self._varying and {a for a in beneath[s] if a in self._varying} == parts:
                        found.append(s)
            return beneath[s]

        if parts:
            of(slot)
        return [s for s in found if state not in beneath[s]]

    def _factors(self, slot: int) -> set[int]:
        """What elements are as a whole multiplied by."""
        found, open_ = set[int](), [slot]
        while open_:
            call = self._producer.get(open_.pop())
            if call is not None and call.meaning in ("mul", "neg", "div"):
                found.update(call.inputs)
                open_.extend(call.inputs)
        return found

    def _is_prediction(self, slot: int, form: Tensor, factors: Collection[int]) -> tuple[bool, ...]:
        """What most looks like one has the greatest."""
        call, own = self._producer.get(slot), self._forms[slot]
        made = call is not None and (call.meaning == "linear" or (call.meaning or "") in ACTIVATIONS)
        return slot in self._varying, made, own.shape == form.shape and own.dtype == form.dtype, slot not in factors

    def _are_two(self, prediction: int, theta: int, form: Tensor) -> bool:
        """Whether they are a prediction and a theta."""
        is_state = prediction in self._varying and self._may_be_state(prediction)
        return not is_state and self._is_theta(theta, form)

    def _is_theta(self, slot: int, form: Tensor) -> bool:
        """Whether it is a number per element that no free state changes, or is for several."""
        own = self._forms[slot]
        return slot not in self._varying and own.dtype in (form.dtype, torch.bool) and expands(own.shape, form.shape)

    def _odd(self, atoms: Sequence[int]) -> str:
        """What a law does not take of what there is beside its state."""
        calls = [self._producer[a] for a in atoms if a in self._producer and a in self._varying]
        odd = next((c for c in calls if c.meaning != "linear" and c.meaning not in ACTIVATIONS), None)
        if odd is not None:
            return f"has no {odd.name}"
        predictions = sum(a in self._varying for a in atoms)
        if predictions > 1:
            several = f"this is of {predictions}: write them as one sum, z - (a + b)"
            return f"is one of a state and one prediction, and {several}"
        return "is one of a state, one prediction and one tensor" if len(atoms) > 1 else "is one of a state"

    def _program(self, of: Algebra, slot: int, given: dict[int, int]) -> Expression:
        return of.program(self._value(of, slot, given, {}))

    def _maker(self, slot: int, whole: Tensor, varying: bool) -> Call | None:
        """The call of the language that makes a slot's elements."""
        call = self._producer.get(slot)
        moves = slot in self._varying
        if call is None or (self._may_be_state(slot) if moves else varying):
            return None
        form = self._forms[slot]
        known = call.meaning in _MAKERS or self._is_residual(call) or self._loss(call) is not None
        bare = form.dtype == whole.dtype or call.meaning in _COMPARISONS
        fits = form.shape == whole.shape or (not moves and expands(form.shape, whole.shape))
        return call if known and bare and fits else None

    @staticmethod
    def _loss(call: Call) -> tuple[int, int] | None:
        """The two slots of a loss that is one of elements, as it takes them."""
        if call.meaning not in _LOSSES:
            return None
        first, second, *others = arguments(call.function, call.args, call.kwargs).items()
        options = {k: v for k, v in others if v is not None}
        plain: dict[str, Any] = {"reduction": "none"}
        if call.meaning == "poisson_nll_loss":
            plain |= {"log_input": True, "full": False}
        options = {k: REDUCTIONS.get(v, v) if k == "reduction" else v for k, v in options.items() if k != "eps"}
        both = isinstance(first[1], Slot) and isinstance(second[1], Slot)
        return (first[1].index, second[1].index) if both and options == plain else None

    @staticmethod
    def _is_residual(call: Call) -> bool:
        return call.function is functional.gaussian_error and call.args[2:] in ((), (None,), (None, None))

    def _atoms(self, slot: int, varying: bool, joint: int | None = None) -> tuple[list[int], list[Call]]:
        """What elements are made of, and by which calls; may be of those alone that free states change.

        What is `joint` is taken as it is.
        """
        whole, atoms = self._forms[slot], list[int]()
        calls: dict[int, Call] = {}
        open_ = [slot]
        while open_:
            s = open_.pop()
            call = None if joint is not None and self._same(joint, s) else self._maker(s, whole, varying)
            if call is None:
                if not any(self._same(a, s) for a in atoms):
                    atoms.append(s)
            elif s not in calls:
                calls[s] = call
                if len(calls) > _MOST_CALLS:
                    raise NoExpression(f"takes at most {_MOST_CALLS} calls")
                open_.extend(reversed(call.inputs))
        return atoms, [*calls.values()]

    def _value(self, of: Algebra, slot: int, given: Mapping[int, int], known: dict[int, int]) -> int:
        """That of an algebra which a slot's elements are."""
        if slot in known:
            return known[slot]
        value = next((v for s, v in given.items() if self._same(s, slot)), None)
        if value is None:
            call = self._producer[slot]
            value = self._made(of, call, lambda s: self._value(of, s, given, known))
        known[slot] = value
        return value

    def _made(self, of: Algebra, call: Call, value: Callable[[int], int]) -> int:
        if self._is_residual(call):
            return of.sub(*(value(a.index) for a in call.args[:2]))
        if (of_loss := self._loss(call)) is not None:
            return _LOSSES[call.meaning or ""](of, *map(value, of_loss))
        names, maker = _MAKERS[call.meaning or ""]
        aliases = {"self": "input", "x": "input", "exponent": names[-1]}
        given = dict(zip(names, call.args, strict=False))
        given |= {k if k in names else aliases.get(k, k): v for k, v in call.kwargs.items()}
        values = {}
        for name, x in given.items():
            if isinstance(x, Slot):
                values[name] = value(x.index)
            elif is_number(x):
                values[name] = of.number(x)
            elif x is not None and not (name == "inplace" and x is False):
                raise NoExpression(f"has no {call.name} with {name}={x!r}")
        if values.keys() - {*names}:
            raise NoExpression(f"has no {call.name} with {', '.join(sorted(values.keys() - {*names}))}")
        last = max(names.index(name) for name in values)
        return maker(of, *(values.get(name) for name in names[: last + 1]))
