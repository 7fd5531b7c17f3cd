"""Expressions of a state's element z, its prediction's mu and a theta: simplified, differentiated, made programs of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..plan.expression import MOST_CONSTANTS, MOST_INSTRUCTIONS, Expression, Instruction, Op

_POWERS = 16  # up to which they are products
_UNARY: dict[Op, Callable[[float], float]] = {
    Op.ABS: abs,
    Op.SQRT: math.sqrt,
    Op.EXP: math.exp,
    Op.EXPM1: math.expm1,
    Op.LOG: math.log,
    Op.LOG1P: math.log1p,
    Op.TANH: math.tanh,
}
_EVEN = (Op.ABS, Op.LOGCOSH, "cosh")


class NoExpression(Exception):
    """Something that the language of laws lacks; the message says what."""


class Algebra:
    """Values by their numbers: equal ones are one, and those that a value is made of come before it.

    A value is a number, "z", "mu", "theta", or an operation on others; beside those of programs there are "pow" of a
    number, "cosh" and "sinh". Where the state and its prediction differ they do so by one value, `distance`.
    """

    def __init__(self) -> None:
        self._of: list[tuple[Any, ...]] = []
        self._numbers: dict[tuple[Any, ...], int] = {}
        self.z, self.mu, self.theta = self._made("z"), self._made("mu"), self._made("theta")
        self.distance = self._made(Op.SUB, self.z, self.mu)

    def _made(self, *of: Any) -> int:
        if of not in self._numbers:
            self._numbers[of] = len(self._of)
            self._of.append(of)
        return self._numbers[of]

    def number(self, x: float) -> int:
        """A constant."""
        if not math.isfinite(x):
            raise NoExpression(f"has no number {x}")
        return self._made("number", float(x) + 0.0)  # of the zeros one

    def known(self, a: int) -> float | None:
        """Which number a value is, if it is one."""
        of = self._of[a]
        return of[1] if of[0] == "number" else None

    def _parts(self, a: int, op: Any) -> tuple[int, ...] | None:
        """What an operation is of, where a value is made by it."""
        of = self._of[a]
        return of[1:] if of[0] == op else None

    def _multiple(self, a: int) -> tuple[float, int]:
        """Of which other value it is how many."""
        if (parts := self._parts(a, Op.NEG)) is not None:
            return -1.0, parts[0]
        if (parts := self._parts(a, Op.MUL)) is not None and (c := self.known(parts[0])) is not None:
            return c, parts[1]
        return 1.0, a

    def add(self, a: int, b: int) -> int:
        """A + b."""
        x, y = self.known(a), self.known(b)
        if y is not None:
            a, b, x, y = b, a, y, x
        if x is not None and y is not None:
            return self.number(x + y)
        if x == 0:
            return b
        for this, other in ((a, b), (b, a)):  # numbers are added last
            if (parts := self._parts(other, Op.ADD)) is not None and (c := self.known(parts[0])) is not None:
                if x is not None:
                    return self.add(self.number(x + c), parts[1])
                return self.add(parts[0], self.add(this, parts[1]))
            if (parts := self._parts(other, Op.SUB)) is not None and (c := self.known(parts[0])) is not None:
                if x is not None:
                    return self.sub(self.number(x + c), parts[1])
                return self.add(parts[0], self.sub(this, parts[1]))
            if (parts := self._parts(other, Op.NEG)) is not None:
                return self.sub(this, parts[0])
        if a == b:
            return self.times(2.0, a)
        return self._made(Op.ADD, *((a, b) if x is not None else sorted((a, b))))

    def sub(self, a: int, b: int) -> int:
        """A - b."""
        if a == b:
            return self.number(0.0)
        if (y := self.known(b)) is not None:
            return self.add(a, self.number(-y))
        if self.known(a) == 0:
            return self.neg(b)
        if (parts := self._parts(b, Op.NEG)) is not None:
            return self.add(a, parts[0])
        if (parts := self._parts(a, Op.NEG)) is not None:
            return self.neg(self.add(parts[0], b))
        for op, inner in ((Op.ADD, self.sub), (Op.SUB, self.add)):
            if (parts := self._parts(b, op)) is not None and (c := self.known(parts[0])) is not None:
                return self.add(self.number(-c), inner(a, parts[1]))
        if (parts := self._parts(a, Op.ADD)) is not None and self.known(parts[0]) is not None:
            return self.add(parts[0], self.sub(parts[1], b))
        if (a, b) == (self.mu, self.z):
            return self.neg(self.distance)
        return self._made(Op.SUB, a, b)

    def neg(self, a: int) -> int:
        """-a."""
        c, inner = self._multiple(a)
        if (x := self.known(a)) is not None:
            return self.number(-x)
        return self.times(-c, inner) if c != 1 else self._made(Op.NEG, a)

    def times(self, c: float, a: int) -> int:
        """A number of times."""
        return self.mul(self.number(c), a)

    def mul(self, a: int, b: int) -> int:
        """A b."""
        x, y = self.known(a), self.known(b)
        if y is not None:
            a, b, x, y = b, a, y, x
        if x is not None and y is not None:
            return self.number(x * y)
        if x is not None:
            c, inner = self._multiple(b)
            if c != 1:
                return self.times(x * c, inner)
            if x == 0 or x == 1:
                return b if x else a
            return self.neg(b) if x == -1 else self._made(Op.MUL, a, b)
        if a == b:
            return self.pow(a, 2.0)
        (c, a), (d, b) = self._multiple(a), self._multiple(b)
        return self.times(c * d, self.mul(a, b)) if c * d != 1 else self._made(Op.MUL, *sorted((a, b)))

    def div(self, a: int, b: int) -> int:
        """A / b."""
        y = self.known(b)
        if y is not None:
            if y == 0:
                raise NoExpression("has no division by 0")
            return self.times(1 / y, a)
        if self.known(a) == 0:
            return a
        (c, a), (d, b) = self._multiple(a), self._multiple(b)
        return self.times(c / d, self._made(Op.DIV, a, b))

    def pow(self, a: int, p: float) -> int:
        """A to the power of a number."""
        x = self.known(a)
        if p == 0:
            return self.number(1.0)
        if p == 1:
            return a
        if p == 0.5:
            return self.apply(Op.SQRT, a)
        whole = p == int(p)
        if whole and abs(p) > _POWERS:
            raise NoExpression(f"has no power of {p:g}: whole ones end at {_POWERS}")
        if x is not None:
            if not (x > 0 or (whole and (x or p > 0))):
                raise NoExpression(f"has no {x:g} to the power of {p:g}")
            return self.number(x**p)
        if whole:
            c, inner = self._multiple(a)
            if p % 2 == 0 and (parts := self._parts(inner, Op.ABS)) is not None:
                inner = parts[0]
            if (c, inner) != (1.0, a):
                return self.times(c**p, self.pow(inner, p))
        return self._made("pow", a, p)

    def apply(self, op: Op | str, *of: int) -> int:
        """Any other operation."""
        numbers = [self.known(a) for a in of]
        if all(x is not None for x in numbers) and op in _UNARY:
            try:
                return self.number(_UNARY[op](*numbers))  # type: ignore[arg-type]
            except (ValueError, OverflowError):
                raise NoExpression(f"has no {op.name.lower() if isinstance(op, Op) else op} of {numbers[0]}") from None
        if op in _EVEN:
            c, inner = self._multiple(of[0])
            if op is Op.ABS and c not in (1.0, -1.0):
                return self.times(abs(c), self.apply(op, inner))
            of = (inner if c == -1 else of[0],)
        if op is Op.LOG:
            return self._log(of[0])
        if op is Op.LOG1P and (parts := self._parts(of[0], Op.EXP)) is not None:
            return self.apply(Op.SOFTPLUS, parts[0])
        if op in (Op.GREATER, Op.AT_LEAST) and set(of) == {self.z, self.mu}:
            zero = self.number(0.0)
            return self._made(op, *((self.distance, zero) if of[0] == self.z else (zero, self.distance)))
        if op is Op.SELECT and (of[1] == of[2] or numbers[0] is not None):
            return of[1] if numbers[0] else of[2]
        return self._made(op, *of)

    def _log(self, a: int) -> int:
        """Where what it is of may overflow and the logarithm not, as that."""
        if (parts := self._parts(a, "cosh")) is not None:
            return self.apply(Op.LOGCOSH, *parts)
        if (parts := self._parts(a, Op.SIGMOID)) is not None:
            return self.neg(self.apply(Op.SOFTPLUS, self.neg(*parts)))
        if (parts := self._parts(a, Op.EXP)) is not None:
            return parts[0]
        if (parts := self._parts(a, Op.ADD)) is not None:
            if self.known(parts[0]) == 1:
                return self.apply(Op.LOG1P, parts[1])
            exponents = [self._parts(part, Op.EXP) for part in parts]
            if None not in exponents:
                return self.apply(Op.LOGADDEXP, *(e[0] for e in exponents if e is not None))
        return self._made(Op.LOG, a)

    def depends(self, a: int, leaf: int, distance: bool = True) -> bool:
        """Whether a value is made of another, with the distance or beside it."""
        open_, seen = [a], set[int]()
        while open_:
            x = open_.pop()
            if x == leaf:
                return True
            if x not in seen and (distance or x != self.distance):
                seen.add(x)
                open_.extend(self._inputs(x))
        return False

    def _inputs(self, a: int) -> tuple[int, ...]:
        kind, *of = self._of[a]
        if kind == "pow":
            return (of[0],)
        return tuple(of) if isinstance(kind, Op) or kind in ("cosh", "sinh") else ()

    def slopes(self, of: int, by: tuple[int, ...]) -> list[int]:
        """What a value grows by with others, through which it depends on nothing else."""
        grows = {of: self.number(1.0)}
        for a in range(of, -1, -1):
            if a not in grows or a in by:
                continue
            for b, slope in self._chain(a, grows[a]):
                grows[b] = self.add(grows[b], slope) if b in grows else slope
        return [grows.get(a, self.number(0.0)) for a in by]

    def _chain(self, y: int, g: int) -> list[tuple[int, int]]:
        """What is made of y, g times which something grows, makes grow it: values and how many times them."""
        kind, *of = self._of[y]
        a, b, c = (*of, 0, 0, 0)[:3]
        one = self.number(1.0)
        match kind:
            case Op.ADD:
                return [(a, g), (b, g)]
            case Op.SUB:
                return [(a, g), (b, self.neg(g))]
            case Op.MUL:
                return [(a, self.mul(g, b)), (b, self.mul(g, a))]
            case Op.DIV:
                each = self.div(g, b)
                return [(a, each), (b, self.neg(self.mul(each, y)))]
            case Op.NEG:
                return [(a, self.neg(g))]
            case Op.ABS:
                return [(a, self.mul(g, self.apply(Op.SIGN, a)))]
            case Op.MAX | Op.MIN:  # half to either where they are the same, as PyTorch has it
                sign = self.apply(Op.SIGN, self.sub(a, b) if kind is Op.MAX else self.sub(b, a))
                half = self.times(0.5, g)
                more = self.mul(half, sign)
                return [(a, self.add(half, more)), (b, self.sub(half, more))]
            case Op.SELECT:
                zero = self.number(0.0)
                return [(b, self.apply(Op.SELECT, a, g, zero)), (c, self.apply(Op.SELECT, a, zero, g))]
            case Op.SQRT:
                return [(a, self.div(self.times(0.5, g), y))]
            case Op.EXP:
                return [(a, self.mul(g, y))]
            case Op.EXPM1:
                return [(a, self.mul(g, self.add(one, y)))]
            case Op.LOG:
                return [(a, self.div(g, a))]
            case Op.LOG1P:
                return [(a, self.div(g, self.add(one, a)))]
            case Op.TANH:
                return [(a, self.mul(g, self.sub(one, self.pow(y, 2.0))))]
            case Op.SIGMOID:
                return [(a, self.mul(g, self.mul(y, self.sub(one, y))))]
            case Op.SOFTPLUS:
                return [(a, self.mul(g, self.apply(Op.SIGMOID, a)))]
            case Op.LOGCOSH:
                return [(a, self.mul(g, self.apply(Op.TANH, a)))]
            case Op.LOGADDEXP:
                share = self.apply(Op.SIGMOID, self.sub(a, b))
                return [(a, self.mul(g, share)), (b, self.mul(g, self.sub(one, share)))]
            case "pow":
                return [(a, self.mul(g, self.times(b, self.pow(a, b - 1))))]
            case "cosh":
                return [(a, self.mul(g, self.apply("sinh", a)))]
            case "sinh":
                return [(a, self.mul(g, self.apply("cosh", a)))]
        return []  # of numbers, and of what is the same around nearly all of them

    def program(self, energy: int) -> Expression:
        """That of an energy and its slopes.

        Raises:
            NoExpression: it is too long.
        """
        if any(self.depends(energy, leaf, distance=False) for leaf in (self.z, self.mu)):
            pull, against = self.slopes(energy, (self.z, self.mu))
            push = self.neg(against)
        else:
            (pull,) = self.slopes(energy, (self.distance,))
            push = pull
        moment = self.slopes(energy, (self.theta,))[0] if self.depends(energy, self.theta) else None
        return _Writer(self, moment is not None).program(pull, push, energy, moment)


class _Writer:
    """Writes values of an algebra as instructions."""

    def __init__(self, of: Algebra, has_theta: bool) -> None:
        self._algebra = of
        self._given = 2 + has_theta
        self._constants: dict[float, int] = {}  # numbers from -1 downwards, until it is known how many there are
        self._code: list[tuple[Op, tuple[int, ...]]] = []  # what is computed follows what is given until then
        self._written: dict[int, int] = {of.z: 0, of.mu: 1, of.theta: 2}
        self._places: dict[tuple[Op, tuple[int, ...]], int] = {}

    def program(self, pull: int, push: int, energy: int, moment: int | None) -> Expression:
        """The slopes first, and then the energy, and what that grows by with theta."""
        values = [self._value(pull), self._value(push)]
        slopes = len(self._code)
        values += [self._value(x) for x in (energy, moment) if x is not None]
        if len(self._code) > MOST_INSTRUCTIONS or len(self._constants) > MOST_CONSTANTS:
            raise NoExpression(
                f"has at most {MOST_INSTRUCTIONS} instructions and {MOST_CONSTANTS} numbers, slopes included, and not "
                f"{len(self._code)} and {len(self._constants)}"
            )
        given, shift = self._given, len(self._constants)

        def placed(x: int) -> int:
            return given - 1 - x if x < 0 else x + shift if x >= given else x

        code = tuple(Instruction(op, *map(placed, of)) for op, of in self._code)
        pull, push, energy, *rest = map(placed, values)
        return Expression(tuple(self._constants), code, slopes, energy, pull, push, *rest)

    def _constant(self, x: float) -> int:
        return self._constants.setdefault(x, -1 - len(self._constants))

    def _emit(self, op: Op, *of: int) -> int:
        if (op, of) not in self._places:
            self._places[op, of] = self._given + len(self._code)
            self._code.append((op, of))
        return self._places[op, of]

    def _value(self, a: int) -> int:
        if a in self._written:
            return self._written[a]
        kind, *of = self._algebra._of[a]
        if kind == "number":
            place = self._constant(of[0])
        elif kind == "pow":
            place = self._power(self._value(of[0]), of[1])
        elif kind in ("cosh", "sinh"):
            x = self._value(of[0])
            of_one, joined = (Op.EXP, Op.ADD) if kind == "cosh" else (Op.EXPM1, Op.SUB)
            both = self._emit(joined, self._emit(of_one, x), self._emit(of_one, self._emit(Op.NEG, x)))
            place = self._emit(Op.MUL, self._constant(0.5), both)
        else:
            place = self._emit(kind, *map(self._value, of))
        self._written[a] = place
        return place

    def _power(self, x: int, p: float) -> int:
        if p < 0:
            return self._emit(Op.DIV, self._constant(1.0), self._power(x, -p))
        whole, rest = divmod(p, 1)
        if rest not in (0, 0.5) or p > _POWERS:
            return self._emit(Op.POW, x, self._constant(p))
        root = self._emit(Op.SQRT, x) if rest else None
        if not whole:
            assert root is not None
            return root
        product = self._product(x, int(whole))
        return product if root is None else self._emit(Op.MUL, product, root)

    def _product(self, x: int, count: int) -> int:
        if count == 1:
            return x
        half = self._product(x, count // 2)
        square = self._emit(Op.MUL, half, half)
        return square if count % 2 == 0 else self._emit(Op.MUL, square, x)
