"""As in `torch.optim.RMSprop`."""

from __future__ import annotations

from torch import Tensor

from ..plan import Rule
from .decay import with_decay


def apply(rule: Rule, parameter: Tensor, gradient: Tensor, slots: list[Tensor | None]) -> None:
    """Do one step; slots: step, mean square, the velocity with momentum, and the mean where it is centered."""
    step, square, velocity, mean = [*slots, None, None][:4]
    assert step is not None
    assert square is not None
    step += 1
    gradient = with_decay(rule, parameter, gradient)
    square.mul_(rule.first).addcmul_(gradient, gradient, value=1 - rule.first)
    variance = square
    if mean is not None:
        mean.lerp_(gradient, 1 - rule.first)
        variance = square.addcmul(mean, mean, value=-1)
    change = gradient / (variance.sqrt() + rule.epsilon)
    if velocity is not None:
        change = velocity.mul_(rule.second).add_(change)
    parameter.sub_(change, alpha=rule.lr)
