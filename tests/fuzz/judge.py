"""What rounding allows."""

from collections.abc import Sequence
from typing import ClassVar

import torch

LARGE = 1e3  # a case ends where numbers are as large: it diverges, and rounding with it


class Diverged(Exception):
    """Numbers are too large, or too much of rounding, to be compared."""


class Judge:
    """Tells whether a tensor is what float64 autograd gives of it, to rounding.

    What is computed stably is exact for data that are a few roundings off (Higham, Accuracy and Stability of Numerical
    Algorithms, 1.5). So beside the reference there may be others, the neighbours, that begin a rounding off. A
    difference may be `FLOOR` roundings of the larger of 1 and what is expected, or `TIMES` the most that a neighbour
    has been off by so far. Where numbers are well conditioned the first decides. Where neighbours would allow more than
    `MOST`, nothing can be told, and the case ends.
    """

    FLOOR: ClassVar = {torch.float64: 64.0, torch.float32: 64.0, torch.bfloat16: 4.0}
    # a sound energy in float32 was off by 8.1 times a neighbour, which rounds what it starts from and not every step
    TIMES: ClassVar = {torch.float64: 8.0, torch.float32: 16.0, torch.bfloat16: 8.0}
    MOST = 0.01

    def __init__(self, dtype: torch.dtype) -> None:
        self.floor, self.times = self.FLOOR[dtype] * torch.finfo(dtype).eps, self.TIMES[dtype]
        self.spread = 0.0  # the most that neighbours were off by
        self.closest = 0.0  # how near any difference came to what is allowed

    def agree(self, ours: torch.Tensor, theirs: Sequence[torch.Tensor], what: str, floor: float = 0.0) -> None:
        """Raise AssertionError unless a tensor is the first of the reference's, in shape and to rounding."""
        exact, *near = (t.detach() for t in theirs)
        if not exact.isfinite().all() or (exact.numel() and exact.abs().max() > LARGE):
            raise Diverged
        assert ours.shape == exact.shape, f"{what}: shape {tuple(ours.shape)}, expected {tuple(exact.shape)}"
        if not exact.numel():
            return
        scale = max(1.0, exact.abs().max().item())
        for t in near:  # one that is no number tells nothing: Python's `max` would leave it out
            self.spread = max(self.spread, (t - exact).abs().nan_to_num(nan=torch.inf).max().item() / scale)
        allowed = max(self.floor, floor, self.times * self.spread)
        if not allowed <= max(self.MOST, self.floor, floor):  # nothing could be told
            raise Diverged
        off = (ours.detach().double() - exact).abs().max().item() / scale
        assert off <= allowed, f"{what}: off by {off:.1e} of {scale:.2g}, where rounding allows {allowed:.0e}"
        self.closest = max(self.closest, off / allowed)
