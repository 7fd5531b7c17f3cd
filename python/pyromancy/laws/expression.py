"""sum E(z, mu, theta), times a weight, E being an expression that is the law's parameter.

Theta is a number per element, the same for all samples or not, or None where the expression takes none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..plan.expression import Expression, Op

FUNCTIONS: dict[Op, Callable[..., Tensor]] = {
    Op.ADD: torch.add,
    Op.SUB: torch.sub,
    Op.MUL: torch.mul,
    Op.DIV: torch.div,
    Op.NEG: torch.neg,
    Op.ABS: torch.abs,
    Op.SIGN: torch.sign,
    Op.MAX: torch.maximum,
    Op.MIN: torch.minimum,
    Op.GREATER: lambda a, b: (a > b).to(a.dtype),
    Op.AT_LEAST: lambda a, b: (a >= b).to(a.dtype),
    Op.SELECT: lambda a, b, c: torch.where(a != 0, b, c),
    Op.SQRT: torch.sqrt,
    Op.EXP: torch.exp,
    Op.EXPM1: torch.expm1,
    Op.LOG: torch.log,
    Op.LOG1P: torch.log1p,
    Op.TANH: torch.tanh,
    Op.SIGMOID: torch.sigmoid,
    Op.SOFTPLUS: F.softplus,
    Op.LOGCOSH: lambda a: a.abs() + F.softplus(-2 * a.abs()) - 0.6931471805599453,
    Op.POW: torch.pow,
    Op.LOGADDEXP: torch.logaddexp,
}


def _values(z: Tensor, mu: Tensor, theta: Tensor | None, of: Expression, last: int) -> list[Tensor]:
    """All values up to the instruction before `last`."""
    given = [z, mu.expand_as(z), *(() if theta is None else (theta.expand_as(z),))]
    values = [*given, *(z.new_tensor(x) for x in of.constants)]
    for i in of.code[:last]:
        values.append(FUNCTIONS[i.op](*(values[k] for k in (i.a, i.b, i.c)[: i.op.arity])))
    return values


def pull(z: Tensor, mu: Tensor, theta: Tensor | None, weight: float | Tensor, parameter: Expression) -> Tensor:
    """What the energy grows by with z."""
    return (_values(z, mu, theta, parameter, parameter.slopes)[parameter.pull] * weight).expand_as(z)


def push(z: Tensor, mu: Tensor, theta: Tensor | None, weight: float | Tensor, parameter: Expression) -> Tensor:
    """What the energy grows by with -mu."""
    return (_values(z, mu, theta, parameter, parameter.slopes)[parameter.push] * weight).expand_as(z)


def energy(z: Tensor, mu: Tensor, theta: Tensor | None, weight: float | Tensor, parameter: Expression) -> Tensor:
    """Per sample."""
    values = _values(z, mu, theta, parameter, len(parameter.code))
    return weight * values[parameter.deviation].expand_as(z).sum(1)


deviation = energy  # which has all that there is of theta


def moment(z: Tensor, mu: Tensor, theta: Tensor, weight: float | Tensor, parameter: Expression) -> Tensor:
    """What the energies of all samples grow by with theta; the weight may be one of each, [B, 1]."""
    assert parameter.moment is not None
    values = _values(z, mu, theta, parameter, len(parameter.code))
    return (values[parameter.moment] * weight).expand_as(z).sum_to_size(theta.shape)


def normalizer(theta: Tensor | None, width: int) -> float:
    """What one energy of this many elements has beside its deviation."""
    return 0.0
