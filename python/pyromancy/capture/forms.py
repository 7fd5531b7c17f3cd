"""What calls in a graph tell of themselves."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx


def arguments_of(node: fx.Node) -> tuple[Any, ...]:
    """What a call takes by position."""
    return node.args


def example(node: fx.Node) -> Any:
    """What a call gives, of its form and without values; None where that is unknown."""
    return node.meta.get("val")


def domain_of(t: Tensor) -> tuple[Any, ...]:
    """What tensors have in common that are read and written together: shape and dtype."""
    return tuple(t.shape), t.dtype
