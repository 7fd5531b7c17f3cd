"""What is known of PyTorch's operators: which write where they are told to, and which give views."""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch

aten = torch.ops.aten


OUT: dict[Any, Any] = {
    aten.mm.default: aten.mm.out,
    aten.addmm.default: aten.addmm.out,
    aten.bmm.default: aten.bmm.out,
    aten.sum.dim_IntList: aten.sum.IntList_out,
    aten.mean.dim: aten.mean.out,
}


@functools.cache
def out_of(target: Any) -> tuple[Any, str] | None:
    """The overload of an operator that writes where it is told to, and the name of that argument; None without one."""
    if target in OUT:
        return OUT[target], "out"
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.pointwise not in target.tags:
        return None
    given = [(a.name, str(a.type)) for a in target._schema.arguments]
    for name in target.overloadpacket.overloads():
        overload = getattr(target.overloadpacket, name)
        *others, last = overload._schema.arguments
        if last.is_out and [(a.name, str(a.type)) for a in others] == given:
            return overload, last.name
    return None


# whose results are views, though their schemas do not tell
_SHARING = (
    aten._unsafe_view.default, aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default,
    aten.unsafe_chunk.default, aten.reshape.default,
)  # fmt: skip


@functools.cache
def shares(target: Any) -> bool:
    """Whether what a call gives lies in the memory of its first argument."""
    if target is operator.getitem or target in _SHARING:
        return True
    if not isinstance(target, torch._ops.OpOverload):
        return False
    returns = target._schema.returns
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
