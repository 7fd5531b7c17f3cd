"""The activations of a chain's edges and their derivatives, by exp and erf, which the interpreter has as well."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from triton.language.extra import libdevice

from ...plan.activations import ACTIVATIONS, SELU_DEPTH, SELU_SCALE
from .launch import INTERPRETED

IDENTITY = [*ACTIVATIONS].index("identity")  # for the launchers
_NUMBER = {name: tl.constexpr(number) for number, name in enumerate(ACTIVATIONS)}
_IDENTITY = _NUMBER["identity"]
_RELU, _LEAKY_RELU, _ELU = _NUMBER["relu"], _NUMBER["leaky_relu"], _NUMBER["elu"]
_SILU, _GELU, _GELU_TANH = _NUMBER["silu"], _NUMBER["gelu"], _NUMBER["gelu_tanh"]
_TANH, _SIGMOID, _SOFTPLUS = _NUMBER["tanh"], _NUMBER["sigmoid"], _NUMBER["softplus"]
_CLIPPED_RELU, _HARDTANH, _SELU = _NUMBER["clipped_relu"], _NUMBER["hardtanh"], _NUMBER["selu"]
_SQRT_HALF = tl.constexpr(math.sqrt(0.5))
_INV_SQRT_2PI = tl.constexpr(1 / math.sqrt(2 * math.pi))
_SELU_SCALE, _SELU_DEPTH = tl.constexpr(SELU_SCALE), tl.constexpr(SELU_DEPTH)
_INTERPRETED = tl.constexpr(INTERPRETED)
_SCALE, _CUBIC = tl.constexpr(math.sqrt(2 / math.pi)), tl.constexpr(0.044715)


@triton.jit
def subtract(a, b):
    """The difference, which is zero where the two are the same: not fused with the product that b may be."""
    return a - b if _INTERPRETED else libdevice.sub_rn(a, b)


@triton.jit
def expm1(x):
    """e^x - 1, by its series where the difference would lose digits."""
    TERMS: tl.constexpr = 15 if x.dtype == tl.float64 else 8  # 0.5^terms / terms! is below the last place
    series = tl.full(x.shape, 1.0, x.dtype)
    for i in tl.static_range(TERMS - 1):
        series = 1.0 + x * series * (1.0 / (TERMS - i))
    return tl.where(tl.abs(x) < 0.5, x * series, tl.exp(x) - 1.0)


@triton.jit
def log1p_unit(u):
    """log(1 + u) for u in [0, 1]: 2 artanh(u / (2 + u)) by its series."""
    TERMS: tl.constexpr = 18 if u.dtype == tl.float64 else 8  # (1/3)^(2 terms) is below the last place
    s = u / (u + 2.0)
    series = tl.full(u.shape, 1.0 / (2 * TERMS + 1), u.dtype)
    for i in tl.static_range(TERMS):
        series = series * (s * s) + 1.0 / (2 * (TERMS - i) - 1)
    return 2.0 * s * series


@triton.jit
def tanh(x):
    e = expm1(-2.0 * tl.abs(x))
    t = e / (e + 2.0)
    return tl.where(x < 0, t, -t)


@triton.jit
def activate(x, parameter, KIND: tl.constexpr):
    """f(x); the parameter has the type of x."""
    if KIND == _RELU:
        y = tl.where(x < 0, 0.0, x)  # NaN stays
    elif KIND == _LEAKY_RELU:
        y = tl.where(x > 0, x, x * parameter)
    elif KIND == _ELU:
        y = tl.where(x > 0, x, parameter * expm1(x))
    elif KIND == _SILU:
        y = x * tl.sigmoid(x)
    elif KIND == _GELU:
        y = 0.5 * x * (1.0 + tl.erf(x * _SQRT_HALF))
    elif KIND == _GELU_TANH:
        y = 0.5 * x * (1.0 + tanh((x + x * x * x * _CUBIC) * _SCALE))
    elif KIND == _TANH:
        y = tanh(x)
    elif KIND == _SIGMOID:
        y = tl.sigmoid(x)
    elif KIND == _SOFTPLUS:
        z = x * parameter
        soft = (tl.where(z > 0, z, 0.0) + log1p_unit(tl.exp(-tl.abs(z)))) / parameter
        y = tl.where(z > 20, x, soft)
    elif KIND == _CLIPPED_RELU:
        y = tl.where(x < 0, 0.0, tl.where(x > parameter, parameter, x))
    elif KIND == _HARDTANH:
        y = tl.where(x < -parameter, -parameter, tl.where(x > parameter, parameter, x))
    elif KIND == _SELU:
        y = tl.where(x > 0, x * _SELU_SCALE, expm1(x) * _SELU_DEPTH)
    else:
        tl.static_assert(KIND == _IDENTITY)
        y = x
    return y


@triton.jit
def slope(x, y, parameter, KIND: tl.constexpr):
    """f'(x), given also y = f(x)."""
    one = tl.full(x.shape, 1.0, x.dtype)
    if KIND == _RELU:
        d = tl.where(y > 0, one, 0.0)
    elif KIND == _LEAKY_RELU:
        d = tl.where(x > 0, one, parameter)
    elif KIND == _ELU:
        d = tl.where(x > 0, one, y + parameter)
    elif KIND == _SILU:
        s = tl.sigmoid(x)
        d = s * (1.0 + x * (1.0 - s))
    elif KIND == _GELU:
        d = 0.5 * (1.0 + tl.erf(x * _SQRT_HALF)) + x * _INV_SQRT_2PI * tl.exp(-0.5 * x * x)
    elif KIND == _GELU_TANH:
        t = tanh((x + x * x * x * _CUBIC) * _SCALE)
        d = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * _SCALE * (1.0 + x * x * (3.0 * _CUBIC))
    elif KIND == _TANH:
        d = 1.0 - y * y
    elif KIND == _SIGMOID:
        d = y * (1.0 - y)
    elif KIND == _SOFTPLUS:
        d = tl.where(x * parameter > 20, one, tl.sigmoid(x * parameter))
    elif KIND == _CLIPPED_RELU:
        d = tl.where((y > 0) & (y < parameter), one, 0.0)
    elif KIND == _HARDTANH:
        d = tl.where((y > -parameter) & (y < parameter), one, 0.0)
    elif KIND == _SELU:
        d = tl.where(x > 0, one * _SELU_SCALE, y + _SELU_DEPTH)
    else:
        tl.static_assert(KIND == _IDENTITY)
        d = one
    return d
