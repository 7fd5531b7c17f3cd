"""The law that goes by rows: what an error is depends on all logits of a sample."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import blocks, launch


@triton.jit
def categorical_kernel(
    state, product, bias, rate, samples, error, parts, rows, n, tiles, product_row,
    ACC: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Some rows of what follows from a categorical node's logits mu = product + bias, as far as there is room for it.

    The error is what the law pushes by, p (z - softmax(mu) sum(z)), and parts [B, tiles] are sums of twice its energy
    p z (log sum(exp(mu)) - mu) along tiles of a row. All of them are times the weights of samples [B].
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    there = (row < rows)[:, None]
    most = tl.full([BLOCK_B, 1], float("-inf"), ACC)
    total = tl.zeros([BLOCK_B, 1], ACC)  # of exp(mu - most)
    mass = tl.zeros([BLOCK_B, 1], ACC)  # of z
    for tile in range(tiles):
        column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = there & (column < n)[None, :]
        mu = tl.load(product + (row * product_row)[:, None] + column[None, :], mask=inside, other=0.0)
        if bias is not None:
            mu += tl.load(bias + column, mask=column < n, other=0.0)[None, :]
        mu = tl.where((column < n)[None, :], mu, float("-inf"))  # rows beyond the last have logits of 0
        greatest = tl.maximum(most, tl.max(mu, 1, keep_dims=True))
        total = total * tl.exp(most - greatest) + tl.sum(tl.exp(mu - greatest), 1, keep_dims=True)
        most = greatest
        z = tl.load(state + (row * n)[:, None] + column[None, :], mask=inside, other=0.0)
        mass += tl.sum(z, 1, keep_dims=True)
    share, log_total = mass / total, tl.log(total)
    s = tl.full([BLOCK_B, 1], 1.0, ACC)
    if samples is not None:
        s = tl.load(samples + row, mask=row < rows, other=0.0)[:, None]
    for tile in range(tiles):
        column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = there & (column < n)[None, :]
        at = (row * n)[:, None] + column[None, :]
        mu = tl.load(product + (row * product_row)[:, None] + column[None, :], mask=inside, other=0.0)
        if bias is not None:
            mu += tl.load(bias + column, mask=column < n, other=0.0)[None, :]
        p = tl.full([1, BLOCK_N], 1.0, ACC)
        if rate is not None:
            p = tl.load(rate + column, mask=column < n, other=0.0)[None, :]
        z = tl.load(state + at, mask=inside, other=0.0)
        x = mu - most
        if error is not None:
            tl.store(error + at, p * s * (z - tl.exp(x) * share), mask=inside)
        if parts is not None:
            twice = tl.sum(tl.where(inside, 2.0 * (p * s) * (z * (log_total - x)), 0.0), 1)
            tl.store(parts + row * tiles + tile, twice, mask=row < rows)


def errors(
    state: Tensor, product: Tensor, bias: Tensor | None, rate: Tensor | None, samples: Tensor | None,
    error: Tensor | None, parts: Tensor | None, tiling: tuple[int, int, int], acc: tl.dtype,
) -> None:  # fmt: skip
    """Fill what room there is, of tiles as many, as tall and as wide as `tiling` has them."""
    batch, n = state.shape
    tiles, tall, width = tiling
    launch(
        categorical_kernel, blocks(batch, tall), state, product, bias, rate, samples, error, parts,
        batch, n, tiles, 0 if product.shape[0] == 1 else n, acc, tall, width,
        num_warps=8 if acc == tl.float64 else 4,
    )  # fmt: skip
