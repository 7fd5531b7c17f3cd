"""The in-place E-step, with and without momentum: one kernel, one pass."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import blocks, computed_in, launch
from .layout import merge, offset

_BLOCK = 1024


@triton.jit
def descend_kernel(
    value, buffer, error, feedback, size, sizes, value_strides, buffer_strides, error_strides, feedback_strides,
    lr: tl.float64, momentum: tl.float64, kept: tl.float64,
    NESTEROV: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rates come as float64, and are rounded here to the type that is computed in; `kept` is 1 - dampening."""
    index = (tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)).to(INDEX)
    inside = index < size
    value_at = value + offset(index, sizes, value_strides)
    step = tl.load(error + offset(index, sizes, error_strides), mask=inside, other=0.0).to(ACC)
    if feedback is not None:
        step -= tl.load(feedback + offset(index, sizes, feedback_strides), mask=inside, other=0.0).to(ACC)
    if buffer is not None:
        buffer_at = buffer + offset(index, sizes, buffer_strides)
        velocity = tl.load(buffer_at, mask=inside, other=0.0).to(ACC)
        velocity = tl.full([], momentum, ACC) * velocity + tl.full([], kept, ACC) * step
        tl.store(buffer_at, velocity, mask=inside)
        step = step + tl.full([], momentum, ACC) * velocity if NESTEROV else velocity
    state = tl.load(value_at, mask=inside, other=0.0).to(ACC)
    tl.store(value_at, state - tl.full([], lr, ACC) * step, mask=inside)


def estep_(
    value: Tensor,
    buffer: Tensor | None,
    error: Tensor,
    feedback: Tensor | None,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
) -> None:
    operands = [value, buffer, error, feedback]
    all_at = merge(value.shape, *(value.stride() if t is None else t.stride() for t in operands))
    launch(
        descend_kernel, blocks(all_at.size, _BLOCK), *operands, all_at.size, all_at.sizes, *all_at.strides,
        lr, momentum, 1 - dampening, nesterov, computed_in("value", value), all_at.index, _BLOCK,
    )  # fmt: skip
