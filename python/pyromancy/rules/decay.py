"""What rules do with a gradient before they go by it."""

from __future__ import annotations

from torch import Tensor

from ..plan import Rule


def with_decay(rule: Rule, parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient that a rule goes by; a decay that stands beside it has been applied."""
    if rule.maximize:
        gradient = -gradient
    if rule.decoupled:
        parameter.mul_(1 - rule.lr * rule.weight_decay)
    elif rule.weight_decay:
        gradient = gradient.add(parameter, alpha=rule.weight_decay)
    return gradient
