"""The gradient is written into a tensor, where others go by it."""

from __future__ import annotations

from torch import Tensor

from ..plan import Rule


def apply(rule: Rule, target: Tensor, gradient: Tensor, slots: list[Tensor | None]) -> None:
    """Write it; no slots."""
    target.copy_(gradient)
