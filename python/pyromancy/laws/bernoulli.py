"""sum log(1 + exp(mu)) - z mu, times a weight: the cross-entropy of z, in [0, 1], and sigmoid(mu); theta is None."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pull(z: Tensor, mu: Tensor, theta: None, weight: float, parameter: float = 0.0) -> Tensor:
    """What the energy grows by with z."""
    return -mu * weight


def push(z: Tensor, mu: Tensor, theta: None, weight: float, parameter: float = 0.0) -> Tensor:
    """What the energy grows by with -mu."""
    return (z - mu.sigmoid()) * weight


def energy(z: Tensor, mu: Tensor, theta: None, weight: float, parameter: float = 0.0) -> Tensor:
    """Per sample."""
    return weight * (-F.logsigmoid(-mu) - z * mu).sum(1)


deviation = energy  # there is no theta


def normalizer(theta: None, width: int) -> float:
    """What one energy of this many elements has beside its deviation."""
    return 0.0
