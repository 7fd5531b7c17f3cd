"""Operators of PyTorch that work element by element, as instructions of `elementwise_`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..plan.elementwise import slope_of, value_of
from ..plan.expression import Op

aten = torch.ops.aten

Value = tuple[Any, ...]  # ("read", what), ("number", x) or (operation, *values): equal ones are the same


def number(x: float | str) -> Value:
    """A number; by its name one that is told at every run."""
    return ("number", x if isinstance(x, str) else float(x))


def made(operation: int, *values: Value) -> Value:
    """What an operation makes."""
    match operation, values:
        case Op.MUL, (x, ("number", 1.0)) | (("number", 1.0), x):
            return x
        case Op.NEG, ((Op.NEG, x),):
            return x
    return (operation, *values)


ZERO, ONE, TWENTY = number(0), number(1), number(20)
_MINUS_ONE, _LEAK = number(-1), number(0.01)


def _threshold_backward(g: Value, x: Value, threshold: Value) -> Value:
    return made(Op.SELECT, made(Op.AT_LEAST, threshold, x), ZERO, g)


def _power(x: Value, exponent: Value) -> Value | None:
    match exponent[1]:
        case 2:
            return made(Op.MUL, x, x)
        case 1:
            return x
        case 0.5:
            return made(Op.SQRT, x)
        case 3:
            return made(Op.MUL, made(Op.MUL, x, x), x)
    return None


def _gelu(x: Value, approximate: str = "none") -> Value:
    return made(value_of("gelu_tanh" if approximate == "tanh" else "gelu"), x, ZERO)


def _slope(name: str, x: Value, parameter: Value = ZERO) -> Value:
    return made(slope_of(name), x, made(value_of(name), x, parameter), parameter)


def _gelu_backward(g: Value, x: Value, approximate: str = "none") -> Value:
    # the slope does not look at the value
    return made(Op.MUL, g, made(slope_of("gelu_tanh" if approximate == "tanh" else "gelu"), x, x, ZERO))


def _leaky_relu_backward(g: Value, x: Value, slope: Value, is_result: bool) -> Value | None:
    if is_result and slope[1] < 0:
        return None
    return made(Op.SELECT, made(Op.GREATER, x, ZERO), g, made(Op.MUL, g, slope))


def _elu(x: Value, alpha: Value = ONE, scale: Value = ONE, input_scale: Value = ONE) -> Value | None:
    return made(Op.MUL, made(value_of("elu"), x, alpha), scale) if input_scale == ONE else None


def _elu_backward(g: Value, alpha: Value, scale: Value, input_scale: Value, is_result: bool, x: Value) -> Value | None:
    if is_result or input_scale != ONE:
        return None
    return made(Op.MUL, g, made(Op.MUL, _slope("elu", x, alpha), scale))


def _hardtanh(x: Value, low: Value = _MINUS_ONE, high: Value = ONE) -> Value:
    return made(Op.MIN, made(Op.MAX, x, low), high)


def _hardtanh_backward(g: Value, x: Value, low: Value, high: Value) -> Value:
    above = made(Op.SELECT, made(Op.AT_LEAST, low, x), ZERO, g)
    return made(Op.SELECT, made(Op.AT_LEAST, x, high), ZERO, above)


def _softplus(x: Value, beta: Value = ONE, threshold: Value = TWENTY) -> Value | None:
    return made(value_of("softplus"), x, beta) if threshold == TWENTY else None


def _softplus_backward(g: Value, x: Value, beta: Value, threshold: Value) -> Value | None:
    if threshold != TWENTY:
        return None
    return made(Op.MUL, g, made(slope_of("softplus"), x, x, beta))


_unary = {
    aten.neg.default: Op.NEG,
    aten.abs.default: Op.ABS,
    aten.sgn.default: Op.SIGN,
    aten.sign.default: Op.SIGN,
    aten.sqrt.default: Op.SQRT,
    aten.exp.default: Op.EXP,
    aten.expm1.default: Op.EXPM1,
    aten.log.default: Op.LOG,
    aten.log1p.default: Op.LOG1P,
    aten.tanh.default: Op.TANH,
    aten.sigmoid.default: Op.SIGMOID,
}
_binary = {aten.div.Tensor: Op.DIV, aten.div.Scalar: Op.DIV, aten.mul.Tensor: Op.MUL, aten.mul.Scalar: Op.MUL}

# of an operator's arguments, tensors and numbers as values, what it makes; None where it is not one of these after all
ELEMENTS: dict[Any, Callable[..., Value | None]] = {
    **{target: (lambda x, op=op: made(op, x)) for target, op in _unary.items()},
    **{target: (lambda x, y, op=op: made(op, x, y)) for target, op in _binary.items()},
    aten.add.Tensor: lambda x, y, alpha=ONE: made(Op.ADD, x, made(Op.MUL, y, alpha)),
    aten.add.Scalar: lambda x, y, alpha=ONE: made(Op.ADD, x, made(Op.MUL, y, alpha)),
    aten.sub.Tensor: lambda x, y, alpha=ONE: made(Op.SUB, x, made(Op.MUL, y, alpha)),
    aten.sub.Scalar: lambda x, y, alpha=ONE: made(Op.SUB, x, made(Op.MUL, y, alpha)),
    aten.rsub.Scalar: lambda x, y, alpha=ONE: made(Op.SUB, y, made(Op.MUL, x, alpha)),
    aten.reciprocal.default: lambda x: made(Op.DIV, ONE, x),
    aten.square.default: lambda x: made(Op.MUL, x, x),
    aten.pow.Tensor_Scalar: _power,
    aten.clone.default: lambda x, memory_format=None: x,
    aten.relu.default: lambda x: made(value_of("relu"), x, ZERO),
    aten.threshold_backward.default: _threshold_backward,
    aten.gelu.default: _gelu,
    aten.gelu_backward.default: _gelu_backward,
    aten.silu.default: lambda x: made(value_of("silu"), x, ZERO),
    aten.silu_backward.default: lambda g, x: made(Op.MUL, g, made(slope_of("silu"), x, x, ZERO)),
    aten.tanh_backward.default: lambda g, y: made(Op.MUL, g, made(Op.SUB, ONE, made(Op.MUL, y, y))),
    aten.sigmoid_backward.default: lambda g, y: made(Op.MUL, g, made(Op.MUL, y, made(Op.SUB, ONE, y))),
    aten.leaky_relu.default: lambda x, slope=_LEAK: made(value_of("leaky_relu"), x, slope),
    aten.leaky_relu_backward.default: _leaky_relu_backward,
    aten.elu.default: _elu,
    aten.elu_backward.default: _elu_backward,
    aten.hardtanh.default: _hardtanh,
    aten.hardtanh_backward.default: _hardtanh_backward,
    aten.softplus.default: _softplus,
    aten.softplus_backward.default: _softplus_backward,
}

_FLAGGED = (aten.leaky_relu_backward.default, aten.elu_backward.default)  # whose arguments may be flags


def value_of_call(node: fx.Node, read: Callable[[fx.Node], Value]) -> Value | None:
    """What a call makes of every element; None where it is no call of the table above."""

    def taken(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return read(argument)
        is_flag = isinstance(argument, bool) and node.target in _FLAGGED
        return number(argument) if isinstance(argument, int | float) and not is_flag else argument

    function = ELEMENTS.get(node.target)
    if function is None:
        return None
    return function(*map(taken, node.args), **{k: taken(v) for k, v in node.kwargs.items()})
