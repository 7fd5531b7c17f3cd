"""What the operations of `elementwise_` are: those of expressions, and behind them those of activations."""

from __future__ import annotations

from .activations import ACTIVATIONS
from .expression import Op

MOST_OPERANDS = 48  # and numbers
MOST_INSTRUCTIONS = 96
_NAMES = tuple(ACTIVATIONS)
OPERATIONS = len(Op) + 2 * len(_NAMES)


def value_of(activation: str) -> int:
    """The operation f(x, parameter)."""
    return len(Op) + 2 * _NAMES.index(activation)


def slope_of(activation: str) -> int:
    """The operation f'(x), which reads x, y = f(x) and the parameter."""
    return value_of(activation) + 1


def arity(operation: int) -> int:
    """How many values an operation reads."""
    if operation < len(Op):
        return Op(operation).arity
    return 3 if (operation - len(Op)) % 2 else 2
