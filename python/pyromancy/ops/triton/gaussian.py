"""Energy and error of Gaussian nodes with independent components, and the gradients: one pass over memory each.

A program works on tiles of [samples, positions]; the tile depends on the number of positions alone, so that a
sample's energy does not depend on the batch around it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import blocks, computed_in, launch, tile, wide
from .layout import Layout, merge, offset, shared_strides
from .reduce import finish

_CHUNK = 8192  # positions of a sample that one program sums
_RANGES = 256  # of samples, at most, that have a sum of their own of the gradient for logvar


@triton.jit
def _load_tile(at, row, rows, index, size, row_stride, sizes, strides, ACC: tl.constexpr):
    inside = (row < rows)[:, None] & (index < size)[None, :]
    at += (row * row_stride)[:, None] + offset(index, sizes, strides)[None, :]
    return tl.load(at, mask=inside, other=0.0).to(ACC)


@triton.jit
def energy_kernel(
    value, pred, logvar, out, rows, size, chunk, chunks, value_row, pred_row,
    sizes, value_strides, pred_strides, logvar_strides,
    FACTOR: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """FACTOR times the sum over one chunk of every sample: out [rows, chunks]."""
    program = tl.program_id(0).to(tl.int64)
    row = program // chunks * BLOCK_B + tl.arange(0, BLOCK_B)
    begin = (program % chunks * chunk).to(INDEX)
    total = tl.zeros([BLOCK_B, BLOCK_N], ACC)
    for start in range(0, chunk, BLOCK_N):
        index = begin + start + tl.arange(0, BLOCK_N)
        d = _load_tile(value, row, rows, index, size, value_row, sizes, value_strides, ACC)
        d -= _load_tile(pred, row, rows, index, size, pred_row, sizes, pred_strides, ACC)
        if logvar is None:
            total += d * d
        else:
            s = tl.load(logvar + offset(index, sizes, logvar_strides), mask=index < size, other=0.0).to(ACC)
            total += d * d * tl.exp(-s)[None, :]
            total += s[None, :]  # by itself: in one sum the compiler of Triton 3.9.0 crashes for sm_90
    tl.store(out + row * chunks + program % chunks, FACTOR * tl.sum(total, 1), mask=row < rows)


@triton.jit
def residual_kernel(
    value, pred, logvar, weight, out, negative, rows, size, tiles,
    value_row, pred_row, out_row, negative_row, weight_step,
    sizes, value_strides, pred_strides, logvar_strides, out_strides, negative_strides,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The weighted error of one tile, and where `negative` is given its negative."""
    program = tl.program_id(0).to(tl.int64)
    row = program // tiles * BLOCK_B + tl.arange(0, BLOCK_B)
    index = (program % tiles * BLOCK_N + tl.arange(0, BLOCK_N)).to(INDEX)
    inside = (row < rows)[:, None] & (index < size)[None, :]
    d = _load_tile(value, row, rows, index, size, value_row, sizes, value_strides, ACC)
    d -= _load_tile(pred, row, rows, index, size, pred_row, sizes, pred_strides, ACC)
    if logvar is not None:
        s = tl.load(logvar + offset(index, sizes, logvar_strides), mask=index < size, other=0.0).to(ACC)
        d *= tl.exp(-s)[None, :]
    if weight is not None:
        d *= tl.load(weight + row * weight_step, mask=row < rows, other=0.0).to(ACC)[:, None]
    tl.store(out + (row * out_row)[:, None] + offset(index, sizes, out_strides)[None, :], d, mask=inside)
    if negative is not None:
        at = negative + (row * negative_row)[:, None] + offset(index, sizes, negative_strides)[None, :]
        tl.store(at, -d, mask=inside)


@triton.jit
def residual_logvar_kernel(
    value, pred, logvar, weight, out, negative, sums, rows, size, tiles, height,
    value_row, pred_row, out_row, negative_row, weight_step,
    sizes, value_strides, pred_strides, logvar_strides, out_strides, negative_strides,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The same for `height` samples, and the sum of their gradients for logvar at every position: [ranges, size]."""
    program = tl.program_id(0).to(tl.int64)
    first = program // tiles * height
    last = tl.minimum(first + height, rows)
    index = (program % tiles * BLOCK_N + tl.arange(0, BLOCK_N)).to(INDEX)
    s = tl.load(logvar + offset(index, sizes, logvar_strides), mask=index < size, other=0.0).to(ACC)
    precision = tl.exp(-s)[None, :]
    total = tl.zeros([BLOCK_B, BLOCK_N], ACC)
    for start in range(first, last, BLOCK_B):
        row = start + tl.arange(0, BLOCK_B)
        inside = (row < last)[:, None] & (index < size)[None, :]
        d = _load_tile(value, row, last, index, size, value_row, sizes, value_strides, ACC)
        d -= _load_tile(pred, row, last, index, size, pred_row, sizes, pred_strides, ACC)
        grad = tl.load(weight + row * weight_step, mask=row < last, other=0.0).to(ACC)[:, None]
        total += tl.where(inside, grad * (1 - d * d * precision), 0.0)
        error = d * precision * grad
        tl.store(out + (row * out_row)[:, None] + offset(index, sizes, out_strides)[None, :], error, mask=inside)
        at = negative + (row * negative_row)[:, None] + offset(index, sizes, negative_strides)[None, :]
        tl.store(at, -error, mask=inside)
    tl.store(sums + program // tiles * size + index, 0.5 * tl.sum(total, 0), mask=index < size)


def _layout(logvar: Tensor | None, *states: Tensor) -> Layout:
    """Of the node dimensions of states [B, *node] and, as the last operand, of logvar."""
    node = states[0].shape[1:]
    return merge(node, *(t.stride()[1:] for t in states), shared_strides(logvar, node))


def gaussian_energy(value: Tensor, pred: Tensor, logvar: Tensor | None) -> Tensor:
    acc = computed_in("value", value)
    layout = _layout(logvar, value, pred)
    rows, (tall, width) = value.shape[0], tile(layout.size, acc)
    chunks = max(1, blocks(layout.size, _CHUNK))
    chunk = min(_CHUNK, blocks(layout.size, width) * width)
    energy = value.new_empty(rows)
    whole = chunks == 1
    parts = energy if whole else value.new_empty((rows, chunks), dtype=wide(value))
    launch(
        energy_kernel, blocks(rows, tall) * chunks, value, pred, logvar, parts, rows, layout.size, chunk, chunks,
        value.stride(0), pred.stride(0), layout.sizes, *layout.strides, 0.5 if whole else 1.0, acc, layout.index,
        tall, width,
    )  # fmt: skip
    if not whole:
        finish(parts, energy)
    return energy


def _residual(
    value: Tensor, pred: Tensor, logvar: Tensor | None, weight: Tensor | None, out: Tensor, negative: Tensor | None
) -> None:
    second = out if negative is None else negative
    acc = computed_in("value", value)
    layout = _layout(logvar, value, pred, out, second)
    value_at, pred_at, out_at, second_at, logvar_at = layout.strides
    rows, (tall, width) = value.shape[0], tile(layout.size, acc)
    tiles = blocks(layout.size, width)
    launch(
        residual_kernel, blocks(rows, tall) * tiles, value, pred, logvar, weight, out, negative,
        rows, layout.size, tiles, value.stride(0), pred.stride(0), out.stride(0), second.stride(0),
        0 if weight is None else weight.stride(0), layout.sizes, value_at, pred_at, logvar_at, out_at, second_at,
        acc, layout.index, tall, width,
    )  # fmt: skip


def gaussian_error(value: Tensor, pred: Tensor, logvar: Tensor | None, weight: Tensor | None) -> Tensor:
    error = torch.empty_like(value)
    _residual(value, pred, logvar, weight, error, None)
    return error


def gaussian_energy_backward(grad: Tensor, value: Tensor, pred: Tensor, logvar: Tensor | None) -> tuple[Tensor, Tensor]:
    grad_value, grad_pred = torch.empty_like(value), torch.empty_like(pred)
    _residual(value, pred, logvar, grad, grad_value, grad_pred)
    return grad_value, grad_pred


def gaussian_energy_backward_logvar(
    grad: Tensor, value: Tensor, pred: Tensor, logvar: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    acc = computed_in("value", value)
    grad_value, grad_pred = torch.empty_like(value), torch.empty_like(pred)
    layout = _layout(logvar, value, pred, grad_value, grad_pred)
    value_at, pred_at, out_at, second_at, logvar_at = layout.strides
    rows, (tall, width) = value.shape[0], tile(layout.size, acc)
    tiles = blocks(layout.size, width)
    height = max(16, blocks(blocks(rows, _RANGES), tall) * tall)
    sums = value.new_empty((blocks(rows, height), layout.size), dtype=wide(value))
    launch(
        residual_logvar_kernel, len(sums) * tiles, value, pred, logvar, grad, grad_value, grad_pred, sums,
        rows, layout.size, tiles, height, value.stride(0), pred.stride(0), grad_value.stride(0), grad_pred.stride(0),
        grad.stride(0), layout.sizes, value_at, pred_at, logvar_at, out_at, second_at, acc, layout.index, tall, width,
    )  # fmt: skip
    return grad_value, grad_pred, _sum_shared(sums, layout.order, logvar, value.shape[1:])


def _sum_shared(sums: Tensor, order: tuple[int, ...], logvar: Tensor, node: tuple[int, ...]) -> Tensor:
    """Sum [ranges, size], positions in a layout's order, over ranges and over the positions that share a parameter.

    The second stage of the gradient, on 1/16 of the data or less where the batch is large. PyTorch's sum adds in the
    same order every time.
    """
    lasting = [d for d in order if logvar.dim() > 0 and logvar.shape[d] > 1]
    apart = sums.view(len(sums), *(node[d] for d in order))
    summed = [0, *(i + 1 for i, d in enumerate(order) if d not in lasting)]
    total = apart.sum(summed)
    inverse = sorted(range(len(lasting)), key=lambda i: lasting[i])
    return total.permute(inverse).reshape(logvar.shape).contiguous().to(logvar.dtype)
