"""Energy and error of Gaussian nodes with a full covariance: triangular solves for a batch of rows.

A program solves for a tile of rows by block substitution: what earlier blocks of columns contribute is a product,
within a block one column follows the other. Solved blocks are kept in the result, in device memory, where the same
program reads them again; the barrier between makes them visible to all its threads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from .launch import blocks, computed_in, launch, wide
from .reduce import finish

# Factors up to this size are solved with here, larger ones by the library (`torch.linalg.solve_triangular`), whose
# products are faster and whose cost per call weighs less. Where the two cross is not measured yet.
LARGEST = 256
_ROWS, _COLUMNS = 32, 16  # of a tile that is solved for; half the rows of float64, which takes two registers
_OUTER, _DEPTH = 32, 16  # rows and columns of a tile of the factor's gradient, and samples added at a time
_REGISTERS = 168  # leave room for 3 programs; left to itself, the assembler spills some for room for more
_SEGMENT = 512  # rows at least that have a sum of their own of the factor's gradient


@triton.jit
def _substitute(
    x, work_at, factor, begin, end, k, n, column_step, done_step, rows_inside,
    FORWARD: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Solve for columns [k, k + COLUMNS) of rows whose columns [begin, end) are solved.

    Element (i, j) of the triangle is at i column_step + j done_step: the factor's strides for L, exchanged for L^T.
    """
    column = tl.arange(0, COLUMNS)
    at = (k + column).to(tl.int64)
    for j in range(begin, end, COLUMNS):
        done = (j + column).to(tl.int64)
        inside = rows_inside[:, None] & (done < n)[None, :]
        solved = tl.load(work_at[:, None] + done[None, :], mask=inside, other=0.0)
        inside = (done < n)[:, None] & (at < n)[None, :]
        block = tl.load(factor + (done * done_step)[:, None] + (at * column_step)[None, :], mask=inside, other=0.0)
        x -= tl.dot(solved, block.to(ACC), input_precision="ieee", out_dtype=ACC)
    count = tl.minimum(n - k, COLUMNS)
    for step in range(count):
        c = step if FORWARD else count - 1 - step
        left = column > c if FORWARD else column < c
        here = tl.full([], k + c, tl.int64)
        pivot = tl.load(factor + here * (column_step + done_step)).to(ACC)
        y = tl.sum(tl.where((column == c)[None, :], x, 0.0), 1) / pivot
        line = tl.load(factor + at * column_step + here * done_step, mask=left & (at < n), other=0.0).to(ACC)
        x = tl.where(left[None, :], x - y[:, None] * line[None, :], x)
        x = tl.where((column == c)[None, :], y[:, None], x)
    return x


@triton.jit
def _rows(at, row, positions, sample_step, position_step):
    return at + row // positions * sample_step + row % positions * position_step


@triton.jit
def solve_kernel(
    value, pred, weight, factor, work, negative, norms, rows, positions, n, last_block,
    value_sample, value_position, value_step, pred_sample, pred_position, pred_step, weight_step, row_step, column_step,
    FORWARD: tl.constexpr, BACKWARD: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write L^-1 (value - pred), L^-T weight value, or what both solves in turn give, to work [rows, n].

    `norms` takes the squared norms of rows, `negative` the negative of the result.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    rows_inside = row < rows
    work_at = work + row * n
    column = tl.arange(0, COLUMNS)
    value_at = _rows(value, row, positions, value_sample, value_position)
    if FORWARD:
        pred_at = _rows(pred, row, positions, pred_sample, pred_position)
        norm = tl.zeros([ROWS], ACC)
        for k in range(0, n, COLUMNS):
            at = (k + column).to(tl.int64)
            inside = rows_inside[:, None] & (at < n)[None, :]
            x = tl.load(value_at[:, None] + (at * value_step)[None, :], mask=inside, other=0.0).to(ACC)
            x -= tl.load(pred_at[:, None] + (at * pred_step)[None, :], mask=inside, other=0.0).to(ACC)
            x = _substitute(x, work_at, factor, 0, k, k, n, row_step, column_step, rows_inside, True, COLUMNS, ACC)
            tl.store(work_at[:, None] + at[None, :], x, mask=inside)
            tl.debug_barrier()
            norm += tl.sum(x * x, 1)
        if norms is not None:
            tl.store(norms + row, norm, mask=rows_inside)
    if BACKWARD:
        for back in range(0, n, COLUMNS):
            k = last_block - back
            at = (k + column).to(tl.int64)
            inside = rows_inside[:, None] & (at < n)[None, :]
            if FORWARD:
                x = tl.load(work_at[:, None] + at[None, :], mask=inside, other=0.0)
            else:
                x = tl.load(value_at[:, None] + (at * value_step)[None, :], mask=inside, other=0.0).to(ACC)
                scale = tl.load(weight + row // positions * weight_step, mask=rows_inside, other=0.0).to(ACC)
                x *= scale[:, None]
            x = _substitute(
                x, work_at, factor, k + COLUMNS, n, k, n, column_step, row_step, rows_inside, False, COLUMNS, ACC
            )
            tl.store(work_at[:, None] + at[None, :], x, mask=inside)
            if negative is not None:
                tl.store(negative + (row * n)[:, None] + at[None, :], -x, mask=inside)
            tl.debug_barrier()


@triton.jit
def outer_kernel(
    grad_value, whitened, sums, rows, positions, n, tiles, height,
    left_sample, left_position, left_step, right_sample, right_position, right_step,
    ACC: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One tile of the sum of grad_value^T whitened over `height` rows: sums [segments, n, n], the lower tiles."""
    program = tl.program_id(0).to(tl.int64)
    segment = program // (tiles * tiles)
    i_tile, j_tile = program // tiles % tiles, program % tiles
    if i_tile < j_tile:
        return
    i = i_tile * TILE + tl.arange(0, TILE)
    j = j_tile * TILE + tl.arange(0, TILE)
    first = segment * height
    last = tl.minimum(first + height, rows)
    total = tl.zeros([TILE, TILE], ACC)
    for start in range(first, last, DEPTH):
        row = start + tl.arange(0, DEPTH)
        inside = (i < n)[:, None] & (row < last)[None, :]
        at = _rows(grad_value, row, positions, left_sample, left_position)
        left = tl.load(at[None, :] + (i * left_step)[:, None], mask=inside, other=0.0).to(ACC)
        inside = (row < last)[:, None] & (j < n)[None, :]
        at = _rows(whitened, row, positions, right_sample, right_position)
        right = tl.load(at[:, None] + (j * right_step)[None, :], mask=inside, other=0.0).to(ACC)
        total += tl.dot(left, right, input_precision="ieee", out_dtype=ACC)
    at = sums + segment * n * n + (i * n)[:, None] + j[None, :]
    tl.store(at, total, mask=(i < n)[:, None] & (j < n)[None, :])


@triton.jit
def factor_gradient_kernel(
    sums, total_grad, factor, out, n, segments, positions, tiles, factor_step, ACC: tl.constexpr, TILE: tl.constexpr
):
    """The gradient for L of one tile: the log-determinant's on the diagonal, less the segments' sums below it."""
    program = tl.program_id(0).to(tl.int64)
    i = program // tiles * TILE + tl.arange(0, TILE)
    j = program % tiles * TILE + tl.arange(0, TILE)
    lower = (i[:, None] >= j[None, :]) & (i < n)[:, None]
    total = tl.zeros([TILE, TILE], ACC)
    for segment in range(segments):
        at = sums + segment * n * n + (i * n)[:, None] + j[None, :]
        total -= tl.load(at, mask=lower, other=0.0)
    diagonal = tl.load(factor + i * factor_step, mask=i < n, other=1.0).to(ACC)
    logdet = tl.load(total_grad) * positions / diagonal
    total += tl.where(i[:, None] == j[None, :], logdet[:, None], 0.0)
    tl.store(out + (i * n)[:, None] + j[None, :], total, mask=(i < n)[:, None] & (j < n)[None, :])


def _solve(
    value: Tensor,
    pred: Tensor | None,
    weight: Tensor | None,
    factor: Tensor,
    *,
    forward: bool,
    backward: bool,
    norms: Tensor | None = None,
    negative: Tensor | None = None,
) -> Tensor:
    """What `solve_kernel` computes, [B, P, n] in the type that it computes in."""
    batch, positions, n = value.shape
    acc = computed_in("value", value)
    tall = _ROWS // 2 if acc == tl.float64 else _ROWS
    work = value.new_empty(value.shape, dtype=wide(value))
    launch(
        solve_kernel, blocks(batch * positions, tall) if n else 0, value, pred, weight, factor, work, negative, norms,
        batch * positions, positions, n, (n - 1) // _COLUMNS * _COLUMNS, *value.stride(),
        *(value if pred is None else pred).stride(), 0 if weight is None else weight.stride(0), *factor.stride(),
        forward, backward, acc, tall, _COLUMNS, maxnreg=_REGISTERS,
    )  # fmt: skip
    return work


def multivariate_energy(value: Tensor, pred: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    if len(factor) > LARGEST:
        return reference.KERNELS["multivariate_energy"](value, pred, factor)
    batch, positions, n = value.shape
    norms = value.new_empty((batch, positions if n else 0), dtype=wide(value))
    whitened = _solve(value, pred, None, factor, forward=True, backward=False, norms=norms)
    energy = value.new_empty(batch)
    finish(norms, energy, factor, positions)
    return energy, whitened.to(value.dtype)


def multivariate_energy_backward(grad: Tensor, whitened: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    if len(factor) > LARGEST:
        return reference.KERNELS["multivariate_energy_backward"](grad, whitened, factor)
    grad_pred = whitened.new_empty(whitened.shape)
    grad_value = _solve(whitened, None, grad, factor, forward=False, backward=True, negative=grad_pred)
    return grad_value.to(whitened.dtype), grad_pred


def multivariate_error(value: Tensor, pred: Tensor, factor: Tensor) -> Tensor:
    if len(factor) > LARGEST:
        return reference.KERNELS["multivariate_error"](value, pred, factor)
    return _solve(value, pred, None, factor, forward=True, backward=True).to(value.dtype)


def multivariate_energy_backward_factor(grad: Tensor, whitened: Tensor, grad_value: Tensor, factor: Tensor) -> Tensor:
    if len(factor) > LARGEST:
        return reference.KERNELS["multivariate_energy_backward_factor"](grad, whitened, grad_value, factor)
    batch, positions, n = whitened.shape
    acc, tiles = computed_in("whitened", whitened), blocks(n, _OUTER)
    height = max(_SEGMENT, blocks(blocks(batch * positions, 64), _DEPTH) * _DEPTH)
    sums = whitened.new_empty((blocks(batch * positions, height), n, n), dtype=wide(whitened))
    launch(
        outer_kernel, len(sums) * tiles * tiles, grad_value, whitened, sums, batch * positions, positions, n, tiles,
        height, *grad_value.stride(), *whitened.stride(), acc, _OUTER, _DEPTH, maxnreg=_REGISTERS,
    )  # fmt: skip
    out = factor.new_empty((n, n))
    total_grad = torch.sum(grad, 0, dtype=wide(grad))
    launch(
        factor_gradient_kernel, tiles * tiles, sums, total_grad, factor, out, n, len(sums), positions, tiles,
        sum(factor.stride()), acc, _OUTER,
    )  # fmt: skip
    return out
