"""The second stage of the energies: parts of a sample's sum, added in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import blocks, computed_in, launch, power_of_2

_TILE = 1024


@triton.jit
def finish_kernel(
    parts, energy, factor, samples, count, positions, n, factor_step,
    ACC: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Half the sum of [samples, count] parts along each row; with a factor, its log-determinant at every position."""
    sample = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    total = tl.zeros([BLOCK_B, BLOCK_C], ACC)
    for start in range(0, count, BLOCK_C):
        part = start + tl.arange(0, BLOCK_C)
        inside = (sample < samples)[:, None] & (part < count)[None, :]
        total += tl.load(parts + sample[:, None] * count + part[None, :], mask=inside, other=0.0)
    result = 0.5 * tl.sum(total, 1)
    if factor is not None:
        logs = tl.zeros([BLOCK_C], ACC)
        for start in range(0, n, BLOCK_C):
            i = (start + tl.arange(0, BLOCK_C)).to(tl.int64)
            logs += tl.log(tl.load(factor + i * factor_step, mask=i < n, other=1.0).to(ACC))
        result += tl.sum(logs, 0) * positions
    tl.store(energy + sample, result, mask=sample < samples)


def finish(parts: Tensor, energy: Tensor, factor: Tensor | None = None, positions: int = 0) -> None:
    """Write the energies [B] of parts [B, count], which are squares that the factor's log-determinant is added to."""
    samples, count = parts.shape
    block = power_of_2(max(count, 1 if factor is None else len(factor)), _TILE)
    tall = max(1, min(64, _TILE // block))
    launch(
        finish_kernel, blocks(samples, tall), parts, energy, factor, samples, count, positions,
        0 if factor is None else len(factor), 0 if factor is None else factor.stride(0) + factor.stride(1),
        computed_in("energy", parts), tall, block,
    )  # fmt: skip
