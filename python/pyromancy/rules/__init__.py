"""The rules that parameters learn by, by their place in the vocabulary."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..plan import Rule, RuleKind
from . import adam, gradient, rmsprop, sgd

RULES: dict[RuleKind, Callable[[Rule, Tensor, Tensor, list[Tensor | None]], None]] = {
    RuleKind.GRADIENT: gradient.apply,
    RuleKind.SGD: sgd.apply,
    RuleKind.ADAM: adam.apply,
    RuleKind.RMSPROP: rmsprop.apply,
}
