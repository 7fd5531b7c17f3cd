"""1/2 sum (z - mu)^2 exp(-theta) + theta, times a weight; theta is log-variances [n], [1] or [], or None for 0."""

from __future__ import annotations

import torch
from torch import Tensor


def pull(z: Tensor, mu: Tensor, theta: Tensor | None, weight: float | Tensor, parameter: float = 0.0) -> Tensor:
    """What the energy grows by with z."""
    if theta is None:
        return (z - mu) * weight
    return (z - mu) * (torch.exp(-theta) * weight)


push = pull  # with -mu: one and the same here


def deviation(z: Tensor, mu: Tensor, theta: Tensor | None, weight: float, parameter: float = 0.0) -> Tensor:
    """The energy [B] without its log-determinant."""
    return 0.5 * ((z - mu) * pull(z, mu, theta, weight)).sum(1)


def normalizer(theta: Tensor | None, width: int) -> Tensor | float:
    """What one energy of this many elements has beside its deviation."""
    return 0.0 if theta is None else 0.5 * theta.expand(width).sum()


def energy(z: Tensor, mu: Tensor, theta: Tensor | None, weight: float, parameter: float = 0.0) -> Tensor:
    """Per sample."""
    return deviation(z, mu, theta, weight) + weight * normalizer(theta, z.shape[1])


def moment(z: Tensor, mu: Tensor, theta: Tensor, weight: float | Tensor, parameter: float = 0.0) -> Tensor:
    """What the energies of all samples grow by with theta; the weight may be one of each, [B, 1]."""
    return (0.5 * (weight - pull(z, mu, theta, weight) * (z - mu))).sum(0).sum_to_size(theta.shape)
