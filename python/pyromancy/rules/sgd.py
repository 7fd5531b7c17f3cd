"""As in `torch.optim.SGD`."""

from __future__ import annotations

from torch import Tensor

from ..plan import Rule
from .decay import with_decay


def apply(rule: Rule, parameter: Tensor, gradient: Tensor, slots: list[Tensor | None]) -> None:
    """Do one step; slots: velocity."""
    gradient = with_decay(rule, parameter, gradient)
    if rule.first:
        velocity = slots[0]
        assert velocity is not None
        if rule.fresh:
            velocity.copy_(gradient)
        else:
            velocity.mul_(rule.first).add_(gradient, alpha=1 - rule.second)
        gradient = gradient + rule.first * velocity if rule.nesterov else velocity
    parameter.sub_(gradient, alpha=rule.lr)
