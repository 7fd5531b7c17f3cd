"""Krylov methods for all samples at once: the ends of spectra by Lanczos, minima of quadratics by conjugate gradients.

Golub & Van Loan, "Matrix Computations", 10.1 and 11.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_EVERY = 4  # products between two looks at the residuals
_PATIENCE = 200  # products with the Hessian until an equilibrium has to be found
Product = Callable[[Tensor], Tensor]  # of the Hessian, or another operator, with a vector for every sample: [B, n]


@dataclass(frozen=True)
class Spectrum:
    """Ritz values in ascending order, their error bars, the shares of the start vector; each [B, k].

    `exhausted`, [B]: whether the vectors span all that the Hessian makes of the start vector. From a random start the
    Ritz values are all eigenvalues then.
    """

    values: Tensor
    errors: Tensor
    weights: Tensor
    exhausted: Tensor


def lanczos(product: Product, start: Tensor, products: int, tol: float, ends: tuple[int, ...], eps: float) -> Spectrum:
    """Lanczos iterations for all samples at once, each until it is done: its residuals at `ends` are below `tol`.

    A sample that is done stays as it is, whatever the others need. Its further rows of the tridiagonal matrix repeat
    its first diagonal element, which lies within its spectrum, and have no weight.
    """
    count, size = start.shape
    steps = min(products, size)
    basis = start.new_zeros(count, steps, size)
    diagonal, beside = start.new_zeros(count, steps), start.new_zeros(count, steps)
    norm = start.norm(dim=1)
    alive, exhausted = norm > 0, norm == 0
    vector = start / norm.where(alive, 1.0).unsqueeze(1)
    taken, residual = torch.ones_like(norm, dtype=torch.long), torch.zeros_like(norm)
    scale = torch.zeros_like(norm)  # of the eigenvalues
    for j in range(steps):
        basis[:, j] = vector
        after = product(vector)
        inside = (vector * after).sum(1)
        diagonal[:, j] = inside.where(alive, diagonal[:, 0])
        so_far = basis[:, : j + 1]
        for _ in range(2):  # once does not suffice where almost nothing is left
            after = after - torch.einsum("bk,bkn->bn", torch.einsum("bkn,bn->bk", so_far, after), so_far)
        beta = after.norm(dim=1)
        scale = scale.maximum(inside.abs() + beta)
        taken, residual = (j + 1) * alive + taken * ~alive, beta.where(alive, residual)
        if j + 1 == size:  # what is left is rounding
            residual = residual.masked_fill(alive, 0.0)
        ended = alive & (residual <= 10 * eps * math.sqrt(size) * scale)
        exhausted, alive = exhausted | ended, alive & ~ended
        if ends and alive.any() and (j + 1) % _EVERY == 0:
            values, errors, _ = _ritz(diagonal[:, : j + 1], beside[:, :j], taken, residual)
            settled = torch.stack([errors[:, e] <= tol * values[:, e].abs() for e in ends]).all(0)
            alive = alive & ~settled
        if not alive.any():
            break
        beside[:, j] = beta.where(alive, 0.0)
        vector = (after / beta.where(alive, 1.0).unsqueeze(1)).where(alive.unsqueeze(1), 0.0)
    values, errors, weights = _ritz(diagonal[:, : j + 1], beside[:, :j], taken, residual)
    return Spectrum(values, errors + 10 * eps * scale.unsqueeze(1), weights, exhausted)


def _ritz(diagonal: Tensor, beside: Tensor, taken: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ritz values, norms of their residuals and shares of the start vector: [B, k] each."""
    matrix = torch.diag_embed(diagonal) + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
    values, vectors = torch.linalg.eigh(matrix)
    last = vectors.gather(1, (taken - 1).reshape(-1, 1, 1).expand(-1, 1, values.shape[1])).squeeze(1)
    return values, last.abs() * residual.unsqueeze(1), vectors[:, 0].square()


def fall_to_minimum(product: Product, precondition: Product | None, gradient: Tensor, eps: float) -> Tensor:
    """``1/2 g^T H^-1 g``, what a quadratic energy falls to its minimum, by conjugate gradients: [B].

    NaN for samples of which `_PATIENCE` products do not suffice.
    """

    def smoothed(rows: Tensor) -> Tensor:
        return rows if precondition is None else precondition(rows)

    fall, rest = torch.zeros_like(gradient[:, 0]), gradient
    towards = smoothed(rest)
    direction, height = towards, (rest * towards).sum(1)
    enough = height * eps**2
    for _ in range(_PATIENCE):
        alive = height > enough
        if not alive.any():
            break
        image = product(direction)
        step = (height / (direction * image).sum(1)).where(alive, 0.0)
        fall = fall + 0.5 * step * height
        rest = rest - step.unsqueeze(1) * image
        towards = smoothed(rest)
        before, height = height, (rest * towards).sum(1).where(alive, height)
        direction = towards + (height / before).where(alive, 0.0).unsqueeze(1) * direction
    return fall.where(height <= enough, math.nan)
