"""1/2 (z - mu)^T theta (z - mu), theta being a symmetric matrix [n, n] in which the weight is a factor already."""

from __future__ import annotations

import torch
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


def precision(factor: Tensor, weight: float) -> Tensor:
    """The precision ``[n, n]`` of a full covariance with a Cholesky factor, times a node's weight."""
    library = not factor.is_cuda and factor.diagonal().all()  # which raises where L is singular
    inverse = torch.cholesky_inverse(factor) if library else _inverse(factor)
    return inverse if weight == 1.0 else weight * inverse


def _inverse(factor: Tensor) -> Tensor:
    """``(L L^T)^-1`` where `torch.cholesky_inverse` would wait for the device, to find out whether L is singular."""
    half = torch.linalg.solve_triangular(
        factor, torch.eye(len(factor), dtype=factor.dtype, device=factor.device), upper=False
    )
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)
