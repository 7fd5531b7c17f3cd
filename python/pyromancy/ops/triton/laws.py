"""The laws that go element by element: a function of each, and its row in `of_law`.

Given are the state z, the prediction mu, the rate p = weight exp(-theta), the weight, and the law's parameter; what
comes out is

- the pull: what the energy grows by with z
- the push: what it grows by with -mu
- twice the deviation, which is the energy without its normalizer
- the moment: what the energy grows by with theta

The compiler leaves out what a kernel does not use.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ...plan import Law
from ...plan.expression import Expression
from .activation import log1p_unit, subtract


class NodeLaw(NamedTuple):
    """What makes a node's energy of its state and prediction.

    Attributes:
        law: NONE where nothing predicts the node.
        rate: weight exp(-theta), [n], or None for 1; of a FULL_GAUSSIAN the matrix, which the weight is part of.
        weight: of the energy.
        samples: [B], more factors of it.
        parameter: of the law.
        expression: of an EXPRESSION law.
    """

    law: Law = Law.NONE
    rate: Tensor | None = None
    weight: float = 1.0
    samples: Tensor | None = None
    parameter: float = 0.0
    expression: Expression | None = None


_GAUSSIAN, _LAPLACE = tl.constexpr(int(Law.GAUSSIAN)), tl.constexpr(int(Law.LAPLACE))
_BERNOULLI, _POISSON = tl.constexpr(int(Law.BERNOULLI)), tl.constexpr(int(Law.POISSON))
_STUDENT, _HUBER = tl.constexpr(int(Law.STUDENT)), tl.constexpr(int(Law.HUBER))


@triton.jit
def _gaussian(z, mu, p, weight):
    r = subtract(z, mu)
    e = r * p
    return e, e, r * e, 0.5 * (weight - r * e)


@triton.jit
def _laplace(z, mu, p, weight):
    r = subtract(z, mu)
    e = tl.where(r > 0, p, tl.where(r < 0, -p, r * p))  # NaN stays
    return e, e, 2.0 * r * e, weight - r * e


@triton.jit
def _bernoulli(z, mu, p):
    zero = tl.zeros(mu.shape, mu.dtype)
    deviation = (tl.where(mu < 0, zero, mu) - z * mu + log1p_unit(tl.exp(-tl.abs(mu)))) * p
    return -mu * p, (z - tl.sigmoid(mu)) * p, 2.0 * deviation, zero


@triton.jit
def _poisson(z, mu, p):
    rate = tl.exp(mu)
    return -mu * p, (z - rate) * p, 2.0 * (rate - z * mu) * p, tl.zeros(mu.shape, mu.dtype)


@triton.jit
def _student(z, mu, p, weight, dof):
    one = tl.full(z.shape, 1.0, z.dtype)
    d = subtract(z, mu)
    r = tl.abs(d) * (tl.where(weight == 0, 0.0, p / tl.where(weight == 0, 1.0, weight)) / tl.sqrt(dof))
    far = r > 1
    q = tl.where(far, one / tl.where(far, r, one), r)  # of r and 1 / r the one below 1
    size = p * ((dof + 1.0) / tl.sqrt(dof)) * (q / (1.0 + q * q))
    e = tl.where(d < 0, -size, size)
    logs = 2.0 * tl.log(tl.where(far, r, one)) + log1p_unit(q * q)
    share = tl.where(far, one, q * q) / (1.0 + q * q)
    return e, e, weight * (dof + 1.0) * logs, weight * (1.0 - (dof + 1.0) * share)


@triton.jit
def _huber(z, mu, p, bound):
    d = subtract(z, mu)
    near = tl.where(d > bound, bound, tl.where(d < -bound, -bound, d))  # NaN stays
    return near * p, near * p, near * (2.0 * d - near) * p, tl.zeros(mu.shape, mu.dtype)


@triton.jit
def of_law(z, mu, p, weight, parameter, LAW: tl.constexpr):
    """The four that the law makes."""
    if LAW == _LAPLACE:
        found = _laplace(z, mu, p, weight)
    elif LAW == _BERNOULLI:
        found = _bernoulli(z, mu, p)
    elif LAW == _POISSON:
        found = _poisson(z, mu, p)
    elif LAW == _STUDENT:
        found = _student(z, mu, p, weight, parameter)
    elif LAW == _HUBER:
        found = _huber(z, mu, p, parameter)
    else:
        tl.static_assert(LAW == _GAUSSIAN)
        found = _gaussian(z, mu, p, weight)
    return found
