"""As in `torch.optim.Adam` and `AdamW`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..plan import Rule
from .decay import with_decay


def apply(rule: Rule, parameter: Tensor, gradient: Tensor, slots: list[Tensor | None]) -> None:
    """Do one step; slots: step, mean, mean square, and the greatest mean square with amsgrad."""
    step, mean, square, *rest = slots
    assert step is not None
    assert mean is not None
    assert square is not None
    step += 1
    t = step.item()
    gradient = with_decay(rule, parameter, gradient)
    mean.lerp_(gradient, 1 - rule.first)
    square.mul_(rule.second).addcmul_(gradient, gradient, value=1 - rule.second)
    greatest = rest[0] if rest else None
    if greatest is not None:
        torch.maximum(greatest, square, out=greatest)
        square = greatest
    scale = square.sqrt() / (1 - rule.second**t) ** 0.5 + rule.epsilon
    parameter.addcdiv_(mean, scale, value=-rule.lr / (1 - rule.first**t))
