"""States of which some entries are data: ``torch.where(known, data, z)`` in the place of a free state z."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .calls import Call, Slot


class Held(NamedTuple):
    """What stands in the place of a free state, as slots.

    Attributes:
        state: z, a leaf.
        mask: bools, of a shape that broadcasts to the state's.
        data: what entries are where they are known; a number is that everywhere.
        inverted: whether the mask is True where an entry is *not* known.
    """

    state: int
    mask: int
    data: int | float
    inverted: bool

    def known(self, values: Mapping[int, Tensor]) -> Tensor:
        """The mask with True where an entry is known, ``[1 or B, n]``."""
        mask = values[self.mask]
        mask = mask.reshape((1,) * (2 - mask.dim()) + tuple(mask.shape))
        return ~mask if self.inverted else mask


def held(
    call: Call | None, forms: Sequence[Tensor], varying: Collection[int], free: Collection[int]
) -> Held | None:  # fmt: skip
    """What a call makes of a free state by data and a mask that no free state changes; None of another call.

    Args:
        call: that makes a slot.
        forms: of every slot a tensor of its shape and dtype.
        varying: the slots that free states change.
        free: the free states.
    """
    if call is None or call.meaning != "where" or call.kwargs or len(call.args) != 3:
        return None
    first, second, third = call.args
    mask, chosen, other = (second, first, third) if call.function == Tensor.where else (first, second, third)
    inverted = _is_in(chosen, free)
    z, data = (chosen, other) if inverted else (other, chosen)
    if not _is_in(z, free) or any(_is_in(x, varying) for x in (mask, data)):
        return None
    state, whole = forms[z.index], forms[call.outputs[0]]
    if (state.shape, state.dtype) != (whole.shape, whole.dtype) or forms[mask.index].dtype is not torch.bool:
        return None
    return Held(z.index, mask.index, data.index if isinstance(data, Slot) else float(data), inverted)


def _is_in(argument: Any, slots: Collection[int]) -> bool:
    return isinstance(argument, Slot) and argument.index in slots
