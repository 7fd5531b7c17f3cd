"""Laws of one's own, whose programs are constants of the compiler's: it writes their instructions out."""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl

from ...plan import Law
from ...plan.expression import Expression, Op
from .activation import expm1, log1p_unit, subtract, tanh

_NUMBER = {op: tl.constexpr(int(op)) for op in Op}
_ADD, _SUB, _MUL, _DIV, _NEG = (_NUMBER[op] for op in (Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.NEG))
_ABS, _SIGN, _MAX, _MIN = (_NUMBER[op] for op in (Op.ABS, Op.SIGN, Op.MAX, Op.MIN))
_GREATER, _AT_LEAST, _SELECT, _SQRT = (_NUMBER[op] for op in (Op.GREATER, Op.AT_LEAST, Op.SELECT, Op.SQRT))
_EXP, _EXPM1, _LOG, _LOG1P = (_NUMBER[op] for op in (Op.EXP, Op.EXPM1, Op.LOG, Op.LOG1P))
_TANH, _SIGMOID, _SOFTPLUS, _LOGCOSH = (_NUMBER[op] for op in (Op.TANH, Op.SIGMOID, Op.SOFTPLUS, Op.LOGCOSH))
_POW, _LOGADDEXP = _NUMBER[Op.POW], _NUMBER[Op.LOGADDEXP]
EXPRESSION = tl.constexpr(int(Law.EXPRESSION))
_LN2 = tl.constexpr(math.log(2))


class Program(NamedTuple):
    """What kernels take of an expression: its instructions, and after them where its deviation, pull and push are."""

    numbers: tuple[float, ...] = ()
    code: tuple[tuple[int, ...], ...] = ()


def program(of: Expression | None) -> Program:
    """That of an expression, empty of none."""
    if of is None:
        return Program()
    code = [(int(i.op), i.a, i.b, i.c) for i in of.code]
    return Program(of.constants, (*code, (of.deviation, of.pull, of.push)))


@triton.jit
def _log1p(x):
    y = 1.0 + x
    off = y - 1.0
    inside = (off != 0) & (y > 0) & (y < float("inf"))
    return tl.where(off == 0, x, tl.log(y) * tl.where(inside, x / tl.where(inside, off, 1.0), 1.0))


@triton.jit
def _greatest(a, b):
    return tl.where(a > b, a, tl.where(a == a, b, a))  # NaN stays


@triton.jit
def _operated(OP: tl.constexpr, a, b, c):
    zero, one = tl.zeros(a.shape, a.dtype), tl.full(a.shape, 1.0, a.dtype)
    if OP == _ADD:
        y = a + b
    elif OP == _SUB:
        y = subtract(a, b)
    elif OP == _MUL:
        y = a * b
    elif OP == _DIV:
        y = a / b
    elif OP == _NEG:
        y = -a
    elif OP == _ABS:
        y = tl.abs(a)
    elif OP == _SIGN:
        y = tl.where(a > 0, one, tl.where(a < 0, -one, zero))
    elif OP == _MAX:
        y = _greatest(a, b)
    elif OP == _MIN:
        y = -_greatest(-a, -b)
    elif OP == _GREATER:
        y = tl.where(a > b, one, zero)
    elif OP == _AT_LEAST:
        y = tl.where(a >= b, one, zero)
    elif OP == _SELECT:
        y = tl.where(a != 0, b, c)
    elif OP == _SQRT:
        y = tl.sqrt(a)
    elif OP == _EXP:
        y = tl.exp(a)
    elif OP == _EXPM1:
        y = expm1(a)
    elif OP == _LOG:
        y = tl.log(a)
    elif OP == _LOG1P:
        y = _log1p(a)
    elif OP == _TANH:
        y = tanh(a)
    elif OP == _SIGMOID:
        y = tl.sigmoid(a)
    elif OP == _SOFTPLUS:
        y = tl.where(a > 20, a, tl.where(a > 0, a, zero) + log1p_unit(tl.exp(-tl.abs(a))))
    elif OP == _LOGCOSH:
        y = tl.abs(a) + log1p_unit(tl.exp(-2.0 * tl.abs(a))) - _LN2
    elif OP == _POW:
        y = tl.exp(b * tl.log(a))
    else:
        tl.static_assert(OP == _LOGADDEXP)
        d = tl.where(a == b, zero, a - b)  # infinities may be the same
        y = _greatest(a, b) + log1p_unit(tl.exp(-tl.abs(d)))
    return y


@triton.jit
def of_expression(z, mu, p, NUMBERS: tl.constexpr, CODE: tl.constexpr):
    """What `of_law` makes, of a law that is a program."""
    values = (z, mu)
    for i in tl.static_range(len(NUMBERS)):
        values = values + (tl.full(z.shape, NUMBERS[i], z.dtype),)  # type: ignore[assignment]  # noqa: RUF005
    LAST: tl.constexpr = len(CODE) - 1
    for i in tl.static_range(LAST):
        made = _operated(CODE[i][0], values[CODE[i][1]], values[CODE[i][2]], values[CODE[i][3]])
        values = values + (made,)  # type: ignore[assignment]  # noqa: RUF005
    nothing = tl.zeros(z.shape, z.dtype)
    none = p == 0  # of what has no weight nothing may be infinite
    twice = tl.where(none, nothing, 2.0 * values[CODE[LAST][0]] * p)
    pull = tl.where(none, nothing, values[CODE[LAST][1]] * p)
    push = tl.where(none, nothing, values[CODE[LAST][2]] * p)
    return pull, push, twice, nothing
