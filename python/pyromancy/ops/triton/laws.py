"""The laws that go element by element: a function of each, and its row in `of_law`.

Given are the state z, the prediction mu, the rate p = weight exp(-theta), and the weight; what comes out is

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
from .activation import subtract


class NodeLaw(NamedTuple):
    """What makes a node's energy of its state and prediction.

    Attributes:
        law: NONE where nothing predicts the node.
        rate: weight exp(-theta), [n], or None for 1; of a FULL_GAUSSIAN the matrix, which the weight is part of.
        weight: of the energy.
        samples: [B], more factors of it.
    """

    law: Law = Law.NONE
    rate: Tensor | None = None
    weight: float = 1.0
    samples: Tensor | None = None


_GAUSSIAN, _LAPLACE = tl.constexpr(int(Law.GAUSSIAN)), tl.constexpr(int(Law.LAPLACE))


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
def of_law(z, mu, p, weight, LAW: tl.constexpr):
    """The four that the law makes."""
    if LAW == _LAPLACE:
        found = _laplace(z, mu, p, weight)
    else:
        tl.static_assert(LAW == _GAUSSIAN)
        found = _gaussian(z, mu, p, weight)
    return found
