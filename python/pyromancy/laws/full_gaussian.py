"""1/2 (z - mu)^T theta (z - mu), theta being a symmetric matrix [n, n] in which the weight is a factor already."""

from __future__ import annotations

from torch import Tensor


def pull(z: Tensor, mu: Tensor, theta: Tensor, weight: float, parameter: float = 0.0) -> Tensor:
    """What the energy grows by with z."""
    return (z - mu) @ theta


push = pull  # with -mu: one and the same here


def energy(z: Tensor, mu: Tensor, theta: Tensor, weight: float, parameter: float = 0.0) -> Tensor:
    """Per sample."""
    return 0.5 * ((z - mu) * pull(z, mu, theta, weight)).sum(1)


deviation = energy  # theta has no log-determinant beside it


def normalizer(factor: Tensor, width: int) -> Tensor:
    """What one energy has beside its deviation, of the Cholesky factor of the covariance: theta does not tell."""
    return factor.diagonal().log().sum()


def moment(z: Tensor, mu: Tensor, theta: Tensor, weight: float, parameter: float = 0.0) -> Tensor:
    """What the energies of all samples grow by with theta."""
    return 0.5 * (z - mu).mT @ (z - mu)
