"""Assembles the Cholesky factor from its parameters, and takes its gradient apart again."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import blocks, computed_in, launch

_TILE = 32


@triton.jit
def factor_kernel(
    logdiag, offtril, factor, n, diag_step, row_step, column_step, tiles, ACC: tl.constexpr, TILE: tl.constexpr
):
    """One tile of L. Nothing is read of `offtril` but its strict lower triangle."""
    program = tl.program_id(0).to(tl.int64)
    i = program // tiles * TILE + tl.arange(0, TILE)
    j = program % tiles * TILE + tl.arange(0, TILE)
    below = (i[:, None] > j[None, :]) & (i < n)[:, None]
    lower = tl.load(offtril + (i * row_step)[:, None] + (j * column_step)[None, :], mask=below, other=0.0)
    diagonal = tl.exp(tl.load(logdiag + i * diag_step, mask=i < n, other=0.0).to(ACC)).to(lower.dtype)
    tile = tl.where(i[:, None] == j[None, :], diagonal[:, None], lower)
    tl.store(factor + (i * n)[:, None] + j[None, :], tile, mask=(i < n)[:, None] & (j < n)[None, :])


@triton.jit
def factor_backward_kernel(
    grad, factor, grad_logdiag, grad_offtril, n, row_step, column_step, factor_step, tiles,
    ACC: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of the gradient for `offtril`, and what of the gradient for `logdiag` lies in it."""
    program = tl.program_id(0).to(tl.int64)
    i = program // tiles * TILE + tl.arange(0, TILE)
    j = program % tiles * TILE + tl.arange(0, TILE)
    below = (i[:, None] > j[None, :]) & (i < n)[:, None]
    lower = tl.load(grad + (i * row_step)[:, None] + (j * column_step)[None, :], mask=below, other=0.0)
    tl.store(grad_offtril + (i * n)[:, None] + j[None, :], lower, mask=(i < n)[:, None] & (j < n)[None, :])
    here = (i < n) & (i == j)  # in the tiles on the diagonal
    slope = tl.load(grad + i * (row_step + column_step), mask=here, other=0.0).to(ACC)
    slope *= tl.load(factor + i * factor_step, mask=here, other=0.0).to(ACC)
    tl.store(grad_logdiag + i, slope, mask=here)


def cholesky_factor(logdiag: Tensor, offtril: Tensor) -> Tensor:
    n, acc = len(logdiag), computed_in("logdiag", logdiag)
    factor = offtril.new_empty((n, n))
    tiles = blocks(n, _TILE)
    launch(
        factor_kernel, tiles * tiles, logdiag, offtril, factor, n, *logdiag.stride(), *offtril.stride(), tiles,
        acc, _TILE,
    )  # fmt: skip
    return factor


def cholesky_factor_backward(grad: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    n, acc = len(factor), computed_in("factor", factor)
    grad_logdiag, grad_offtril = factor.new_empty(n), factor.new_empty((n, n))
    tiles = blocks(n, _TILE)
    launch(
        factor_backward_kernel, tiles * tiles, grad, factor, grad_logdiag, grad_offtril, n, *grad.stride(),
        sum(factor.stride()), tiles, acc, _TILE,
    )  # fmt: skip
    return grad_logdiag, grad_offtril
