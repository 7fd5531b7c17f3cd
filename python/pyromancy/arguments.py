"""What is asked of arguments, and what messages call those that are of the wrong type."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import torch.nn as nn
from torch import Tensor


def kind_of(value: object) -> str:
    """What a value is that should have been a tensor, and of an array how to make one of it."""
    kind = type(value)
    return f"{kind.__name__}, of which torch.from_numpy makes one" if kind.__module__ == "numpy" else kind.__name__


def check_energy_argument(energy: object) -> None:
    """Raise where an energy cannot be called without arguments."""
    if not callable(energy):
        raise TypeError(f"energy must be callable, got {type(energy).__name__}")
    if isinstance(energy, nn.Module):
        taken = inspect.signature(energy.forward).parameters.values()
        if needed := [
            p.name
            for p in taken
            if p.default is p.empty and p.kind is not p.VAR_POSITIONAL and p.kind is not p.VAR_KEYWORD
        ]:
            raise TypeError(
                f"energy must be callable without arguments, got a {type(energy).__name__}, whose forward takes "
                f"{', '.join(needed)}; a method of it that gives energies would do, as net.energy"
            )


def listed_params(params: Iterable[Tensor], source: str, more: str = "") -> list[Tensor]:
    """Parameters, as a list of tensors that is not empty; `more` is what else may have made it so."""
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise TypeError(f"params must be an iterable of tensors, as {source} gives them, got {type(params).__name__}")
    listed = list(params)
    if not listed:
        raise ValueError(f"params must hold at least one tensor, got none; an iterator gives its tensors once{more}")
    for p in listed:
        if not isinstance(p, Tensor):
            raise TypeError(f"params must hold tensors, as {source} gives them, got {type(p).__name__}")
    return listed
