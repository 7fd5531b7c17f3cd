"""What messages call an argument that is of the wrong type."""

from __future__ import annotations


def kind_of(value: object) -> str:
    """What a value is that should have been a tensor, and of an array how to make one of it."""
    kind = type(value)
    return f"{kind.__name__}, of which torch.from_numpy makes one" if kind.__module__ == "numpy" else kind.__name__
