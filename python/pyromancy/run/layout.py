"""How images lie in memory for graphs: with their channels last, where convolutions take them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..capture.program import Program
from ..capture.recording import NotCapturable

_T = TypeVar("_T")


class ImageLayout:
    """In which layout a program's graphs take tensors.

    Attributes:
        channels_last: whether images have their channels last; the library of convolutions then need not reorder its
            operands, and pooling takes whole vectors.
    """

    def __init__(self, program: Program) -> None:
        meanings = {call.meaning for call in program.calls}
        # the gradient of a normalization of groups reads beyond its operands where these lie in different layouts
        fit = "convolution of images" in meanings and "normalization of groups" not in meanings
        self.channels_last = fit and not program.addresses_memory

    def traced(self, trace: Callable[[list[Tensor]], _T], leaves: Sequence[Tensor]) -> _T:
        """What is traced with leaves in this layout, or in the usual one, which the energy's views may need."""
        if self.channels_last:
            try:
                return trace(self.of(leaves))
            except NotCapturable:
                self.channels_last = False
        return trace(self.of(leaves))

    def of(self, tensors: Sequence[Tensor], empty: Collection[int] = ()) -> list[Tensor]:
        """Tensors as the graphs take them; some of them only to be written."""
        laid = [t.detach() for t in tensors]
        for i, t in enumerate(laid):
            if t.dim() != 4 or not self.channels_last:
                continue
            if t.is_contiguous(memory_format=torch.channels_last):
                # of one channel, or one position, it lies so in any layout: operators go by what its strides look like
                laid[i] = t.as_strided(t.shape, _channels_last(t.shape))
            else:
                copied = torch.empty_like if i in empty else torch.clone
                laid[i] = copied(t, memory_format=torch.channels_last)
        return laid


def _channels_last(shape: torch.Size) -> tuple[int, ...]:
    """The strides of dense images with their channels last."""
    _, channels, height, width = shape
    return channels * height * width, 1, width * channels, channels
