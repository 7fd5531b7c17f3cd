"""Gaussian nodes, from unit variance to a full covariance."""

from __future__ import annotations

from abc import abstractmethod
from numbers import Real

import torch
import torch.nn as nn
from torch import Tensor

from .. import functional
from ..operands import broadcast
from ..registration import mparameters
from .base import VariationalNode

__all__ = [
    "AbstractGaussianNode",
    "FactorizedGaussianNode",
    "IsotropicGaussianNode",
    "MultivariateGaussianNode",
    "StandardGaussianNode",
]


class AbstractGaussianNode(VariationalNode):
    """Base class of nodes with a Gaussian distribution N(mu, Sigma) around their prediction mu.

    The energy is ``1/2 [ (z - mu)^T Sigma^-1 (z - mu) + log|Sigma| ]`` per sample, the error its gradient for the
    state, ``Sigma^-1 (z - mu)``. Positions along placeholder dimensions share Sigma and all count.
    """

    @property
    @abstractmethod
    def covariance(self) -> Tensor:
        """Covariance matrix, ``[size, size]``."""

    @covariance.setter
    @abstractmethod
    def covariance(self, value: float | Tensor) -> None: ...

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A sample of N(value, Sigma), by noise added to `value`.

        Args:
            value: mean, ``[B, *node]``.
            generator: source of randomness; None is PyTorch's own.

        Returns:
            Samples, of the shape of `value`; differentiable in `value` and in the covariance.

        Raises:
            TypeError: `value` is not a tensor.
            ValueError: its shape does not fit the node.
        """
        self._check_fits("value", value)
        rows, pragma = self._shape.coalesce(value)
        noise = torch.empty_like(rows).normal_(generator=generator)
        return value + self._shape.disperse(self._colour(noise), pragma)

    @abstractmethod
    def _colour(self, noise: Tensor) -> Tensor:
        """Standard normal rows, ``[rows, size]``, with the node's covariance."""

    def _checked_covariance(self, value: float | Tensor) -> Tensor:
        """`value` as a float64 scalar, variance vector or covariance matrix that is one.

        Raises:
            TypeError: not a number or a real tensor.
            ValueError: of the wrong shape, not finite, not positive, not symmetric or not positive-definite.
        """
        n = self.size
        if not isinstance(value, Tensor):
            if not isinstance(value, Real):
                raise TypeError(f"covariance must be a number or a tensor, got {value!r}")
            value = torch.tensor(float(value), dtype=torch.float64, device="cpu")
        elif value.is_complex():
            raise TypeError(f"covariance must be real, got {value.dtype}")
        if value.dim() > 2 or any(d != n for d in value.shape):
            raise ValueError(
                f"covariance must be a scalar, a vector of {n} variances or a {n} x {n} matrix, "
                f"got shape {tuple(value.shape)}"
            )
        eps = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
        value = value.detach().double()
        if not value.isfinite().all():
            raise ValueError("covariance must be finite, got infinite or NaN elements")
        if value.dim() < 2:
            if not (value > 0).all():
                raise ValueError(f"every variance in covariance must be positive, got {value.min().item()}")
            return value
        asymmetry = (value - value.mT).abs().max().item()
        if asymmetry > 1e3 * eps * value.abs().max().item():  # what rounding leaves in a product X^T X
            raise ValueError(f"covariance must be symmetric, got a matrix with |S - S^T| up to {asymmetry:.3g}")
        if torch.linalg.cholesky_ex(value).info.item() != 0:
            raise ValueError("covariance must be positive-definite, got a matrix that has no Cholesky factor")
        return value


class StandardGaussianNode(AbstractGaussianNode):
    """Gaussian node with unit covariance; nothing to learn.

    Args:
        *shape: dimensions of the node without the batch dimension, None for placeholders.

    Attributes:
        value: the state, ``[B, *node]``.
    """

    @property
    def covariance(self) -> Tensor:
        """The identity, ``[size, size]``. Setting it raises RuntimeError."""
        return torch.eye(self.size, dtype=self.value.dtype, device=self.value.device)

    @covariance.setter
    def covariance(self, value: float | Tensor) -> None:
        raise RuntimeError(f"{type(self).__name__} has a fixed unit covariance")

    def error(self, pred: Tensor) -> Tensor:
        """Prediction error ``z - mu``, of the shape of the state."""
        return functional.gaussian_error(self._state("error"), pred)

    def energy(self, pred: Tensor) -> Tensor:
        """Energy ``1/2 |z - mu|^2`` per sample, ``[B]``."""
        return functional.gaussian_energy(self._state("energy"), pred)

    def _colour(self, noise: Tensor) -> Tensor:
        return noise


@mparameters("logvar")
class IsotropicGaussianNode(AbstractGaussianNode):
    """Gaussian node with one variance for all its components.

    Args:
        *shape: dimensions of the node without the batch dimension, None for placeholders.
        variance: initial variance; of a vector or matrix, the mean variance is taken.

    Attributes:
        value: the state, ``[B, *node]``.
        logvar: logarithm of the variance, ``[]``.
    """

    logvar: nn.Parameter

    def __init__(self, *shape: int | None, variance: float | Tensor = 1.0) -> None:
        super().__init__(*shape)
        self.logvar = nn.Parameter(torch.zeros([]))
        self.covariance = variance

    @property
    def covariance(self) -> Tensor:
        """The variance times the identity, ``[size, size]``; set from a scalar, or the mean of a vector or diagonal."""
        return self.logvar.exp() * torch.eye(self.size, dtype=self.logvar.dtype, device=self.logvar.device)

    @covariance.setter
    @torch.no_grad()
    def covariance(self, value: float | Tensor) -> None:
        value = self._checked_covariance(value)
        variance = value.diagonal() if value.dim() == 2 else value
        self.logvar.copy_(variance.mean().log())

    def error(self, pred: Tensor) -> Tensor:
        """Precision-weighted error ``(z - mu) / sigma^2``, of the shape of the state."""
        return functional.gaussian_error(self._state("error"), pred, self.logvar)

    def energy(self, pred: Tensor) -> Tensor:
        """Energy ``1/2 [ |z - mu|^2 / sigma^2 + N log sigma^2 ]`` per sample with N positions, ``[B]``."""
        return functional.gaussian_energy(self._state("energy"), pred, self.logvar)

    def _colour(self, noise: Tensor) -> Tensor:
        return (0.5 * self.logvar).exp() * noise


@mparameters("logvar")
class FactorizedGaussianNode(AbstractGaussianNode):
    """Gaussian node with a variance for every component.

    Args:
        *shape: dimensions of the node without the batch dimension, None for placeholders.
        variance: initial variances; of a matrix, the diagonal is taken.

    Attributes:
        value: the state, ``[B, *node]``.
        logvar: logarithms of the variances, ``[size]``.
    """

    logvar: nn.Parameter

    def __init__(self, *shape: int | None, variance: float | Tensor = 1.0) -> None:
        super().__init__(*shape)
        self.logvar = nn.Parameter(torch.zeros(self.size))
        self.covariance = variance

    @property
    def covariance(self) -> Tensor:
        """The diagonal covariance, ``[size, size]``; set from a scalar, a vector or a matrix's diagonal."""
        return torch.diag(self.logvar.exp())

    @covariance.setter
    @torch.no_grad()
    def covariance(self, value: float | Tensor) -> None:
        value = self._checked_covariance(value)
        self.logvar.copy_((value.diagonal() if value.dim() == 2 else value).log())

    def error(self, pred: Tensor) -> Tensor:
        """Precision-weighted error ``(z_i - mu_i) / sigma_i^2``, of the shape of the state."""
        return functional.gaussian_error(self._state("error"), pred, self._of_components(self.logvar))

    def energy(self, pred: Tensor) -> Tensor:
        """Energy ``1/2 sum_i [ (z_i - mu_i)^2 / sigma_i^2 + log sigma_i^2 ]`` per sample, ``[B]``."""
        return functional.gaussian_energy(self._state("energy"), pred, self._of_components(self.logvar))

    def _colour(self, noise: Tensor) -> Tensor:
        return (0.5 * self.logvar).exp() * noise


@mparameters("covar_cf_logdiag", "covar_cf_offtril")
class MultivariateGaussianNode(AbstractGaussianNode):
    """Gaussian node with a full covariance, held as its Cholesky factor L: ``Sigma = L L^T``.

    Args:
        *shape: dimensions of the node without the batch dimension, None for placeholders.
        covariance: initial covariance: a scalar, a vector of variances or a matrix.

    Attributes:
        value: the state, ``[B, *node]``.
        covar_cf_logdiag: logarithm of the diagonal of L, ``[size]``.
        covar_cf_offtril: L below its diagonal, ``[size, size]``; the rest is not used.
    """

    covar_cf_logdiag: nn.Parameter
    covar_cf_offtril: nn.Parameter

    def __init__(self, *shape: int | None, covariance: float | Tensor = 1.0) -> None:
        super().__init__(*shape)
        self.covar_cf_logdiag = nn.Parameter(torch.zeros(self.size))
        self.covar_cf_offtril = nn.Parameter(torch.zeros(self.size, self.size))
        self.covariance = covariance

    @property
    def covariance(self) -> Tensor:
        """``L L^T``, ``[size, size]``; set it from a scalar, a vector of variances or a matrix."""
        factor = self._factor()
        return factor @ factor.mT

    @covariance.setter
    @torch.no_grad()
    def covariance(self, value: float | Tensor) -> None:
        value = self._checked_covariance(value)
        if value.dim() == 2:
            factor = torch.linalg.cholesky(value)
            self.covar_cf_logdiag.copy_(factor.diagonal().log())
            self.covar_cf_offtril.copy_(factor.tril(-1))
        else:
            self.covar_cf_logdiag.copy_((0.5 * value.log()).expand(self.size))
            self.covar_cf_offtril.zero_()

    def error(self, pred: Tensor) -> Tensor:
        """Precision-weighted error ``Sigma^-1 (z - mu)``, of the shape of the state."""
        value, pred = broadcast(self._state("error"), pred)
        error = functional.multivariate_error(self._rows(value), self._rows(pred), self._factor())
        moved = [value.shape[i] for i in self._order()]
        return error.reshape(moved).permute(sorted(range(value.dim()), key=self._order().__getitem__))

    def energy(self, pred: Tensor) -> Tensor:
        """Energy ``1/2 [ |L^-1 (z - mu)|^2 + log|Sigma| ]`` per sample, summed over positions, ``[B]``."""
        value, pred = broadcast(self._state("energy"), pred)
        return functional.multivariate_energy(self._rows(value), self._rows(pred), self._factor())

    def _colour(self, noise: Tensor) -> Tensor:
        return noise @ self._factor().mT

    def _factor(self) -> Tensor:
        return functional.cholesky_factor(self.covar_cf_logdiag, self.covar_cf_offtril)

    def _order(self) -> tuple[int, ...]:
        """Batch, placeholder and then concrete dimensions."""
        return (*self._shape._virtual, *self._shape._concrete)

    def _rows(self, t: Tensor) -> Tensor:
        """A state as [B, positions, size], or [B, size] as it is: a view wherever the strides allow one."""
        if self._order() == (0, 1) and self._shape.nconcrete == 1:
            return t
        return t.permute(self._order()).reshape(t.shape[0], -1, self.size)
