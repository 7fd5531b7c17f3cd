"""What operators ask of the memory of what they write: that it is its own, once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .conditions import require


def _estep_memory(value: Tensor, buffer: Tensor | None, error: Tensor, feedback: Tensor | None, *_: object) -> None:
    for name, written in (("value", value), ("buffer", buffer)):
        if written is not None:
            _not_expanded(name, written)
            _apart(name, written, "error", error, may_be_same=True)
            if feedback is not None:
                _apart(name, written, "feedback", feedback, may_be_same=True)
    if buffer is not None:
        _apart("value", value, "buffer", buffer)


def _run_plan_memory(written: list[Tensor], read: list[Tensor], *_: object) -> None:
    operands = [(f"written[{i}]", t, _bytes(t)) for i, t in enumerate(written)]
    of_read = [(f"read[{i}]", t, _bytes(t)) for i, t in enumerate(read)]
    for i, (name, t, a) in enumerate(operands):
        for other_name, other, b in itertools.chain(operands[:i], operands[i + 1 :], of_read):
            if a.start < b.stop and b.start < a.stop:
                _apart(name, t, other_name, other)


def _elementwise_memory(written: list[Tensor], read: list[Tensor], *_: object) -> None:
    for i, t in enumerate(written):
        _not_expanded(f"written[{i}]", t)
        for j, other in enumerate(written[:i]):
            _apart(f"written[{i}]", t, f"written[{j}]", other)
        for j, other in enumerate(read):
            _apart(f"written[{i}]", t, f"read[{j}]", other, may_be_same=True)


def _new_memory(written: str, *read: str) -> Callable[..., None]:
    """Of an operator whose first argument is written and is none of the next."""

    def check(out: Tensor, *args: Any) -> None:
        _not_expanded(written, out)
        for name, t in zip(read, args, strict=False):
            if t is not None:
                _apart(written, out, name, t)

    return check


MEMORY: dict[str, Callable[..., None]] = {
    "estep_": _estep_memory,
    "run_plan_": _run_plan_memory,
    "elementwise_": _elementwise_memory,
    "attention_": _new_memory("out", "query", "key", "value"),
    "attention_backward_": _new_memory("grads", "grad", "query", "key", "value"),
    "layer_norm_": _new_memory("out", "input", "weight", "bias"),
    "layer_norm_backward_": _new_memory("out", "grad", "input", "weight"),
    "secant_products_": _new_memory("out", "gradient", "before", "step"),
}


def _apart(name: str, written: Tensor, other_name: str, other: Tensor, may_be_same: bool = False) -> None:
    """What is written is not read as another operand's elements, as far as this can be told without a search."""
    a, b = _bytes(written), _bytes(other)
    if not (a.start < b.stop and b.start < a.stop) or (may_be_same and _same_elements(written, other)):
        return
    require(
        not (_has_no_gaps(written) and _has_no_gaps(other)),
        lambda: f"{name} is written in place and must not overlap {other_name} in memory; clone one of them",
    )


def _not_expanded(name: str, t: Tensor) -> None:
    require(
        all(stride != 0 or size <= 1 for size, stride in zip(t.shape, t.stride(), strict=True)),
        lambda: (
            f"{name} is written in place and must not be expanded, got strides {t.stride()} of shape {tuple(t.shape)}"
        ),
    )


def _bytes(t: Tensor) -> range:
    """The addresses from a tensor's first element to past its last."""
    first = t.data_ptr()
    if t.numel() == 0:
        return range(first, first)
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return range(first, first + (last + 1) * t.element_size())


def _has_no_gaps(t: Tensor) -> bool:
    """Whether all between the first and the last element of a tensor is its own."""
    step = 1
    for stride, size in sorted((s, n) for n, s in zip(t.shape, t.stride(), strict=True) if n != 1 and s != 0):
        if stride != step:
            return False
        step *= size
    return True


def _same_elements(a: Tensor, b: Tensor) -> bool:
    if a.data_ptr() != b.data_ptr() or a.shape != b.shape:
        return False
    return all(n <= 1 or s == t for n, s, t in zip(a.shape, a.stride(), b.stride(), strict=True))
