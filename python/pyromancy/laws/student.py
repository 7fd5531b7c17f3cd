"""sum (v + 1) / 2 log(1 + r^2) + theta with r = (z - mu) exp(-theta) / sqrt(v), times a weight.

theta is log-scales [n], [1] or [], or None for 0, and the parameter v the degrees of freedom. Of r and 1 / r the one
that is below 1 is squared.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _ratio(z: Tensor, mu: Tensor, theta: Tensor | None, dof: float) -> Tensor:
    """R."""
    d = (z - mu) / math.sqrt(dof)
    return d if theta is None else d * torch.exp(-theta)


def _least(r: Tensor) -> Tensor:
    """Of r and 1 / r the one nearer to 0."""
    far = r.abs() > 1
    return torch.where(far, 1 / torch.where(far, r, 1.0), r)


def pull(z: Tensor, mu: Tensor, theta: Tensor | None, weight: float | Tensor, parameter: float) -> Tensor:
    """What the energy grows by with z."""
    q = _least(_ratio(z, mu, theta, parameter))
    rate = weight if theta is None else torch.exp(-theta) * weight
    return q / (1 + q * q) * ((parameter + 1) / math.sqrt(parameter)) * rate


push = pull  # with -mu: one and the same here


def deviation(z: Tensor, mu: Tensor, theta: Tensor | None, weight: float, parameter: float) -> Tensor:
    """The energy [B] without its normalizer."""
    r = _ratio(z, mu, theta, parameter)
    logs = 2 * r.abs().clamp(min=1).log() + _least(r).square().log1p()
    return (0.5 * (parameter + 1) * weight) * logs.sum(1)


def normalizer(theta: Tensor | None, width: int) -> Tensor | float:
    """What one energy of this many elements has beside its deviation."""
    return 0.0 if theta is None else theta.expand(width).sum()


def energy(z: Tensor, mu: Tensor, theta: Tensor | None, weight: float, parameter: float) -> Tensor:
    """Per sample."""
    return deviation(z, mu, theta, weight, parameter) + weight * normalizer(theta, z.shape[1])


def moment(z: Tensor, mu: Tensor, theta: Tensor, weight: float | Tensor, parameter: float) -> Tensor:
    """What the energies of all samples grow by with theta; the weight may be one of each, [B, 1]."""
    r = _ratio(z, mu, theta, parameter)
    square = _least(r).square()
    share = torch.where(r.abs() > 1, 1.0, square) / (1 + square)  # r^2 / (1 + r^2)
    return (weight - (parameter + 1) * share * weight).sum(0).sum_to_size(theta.shape)
