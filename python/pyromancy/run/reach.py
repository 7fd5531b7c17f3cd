"""What an energy can reach by name: modules, tensors, parameters and states, and what these are called."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType, ModuleType
from typing import Any

import torch.nn as nn
from torch import Tensor

from ..registration import is_learned, is_state


def called(function: Callable[..., Any]) -> str:
    """What a function is called where it was defined."""
    return getattr(function, "__qualname__", type(function).__name__)


def names_of(energy: Callable[[], Tensor]) -> dict[int, str]:
    """What to call the tensors that an energy can reach by name, by their ids: where one has several, the first."""
    names: dict[int, str] = {}
    variables = _variables(energy)
    for prefix, module in variables.items():
        if isinstance(module, nn.Module):
            for name, t in [*module.named_parameters(prefix), *module.named_buffers(prefix)]:
                names.setdefault(id(t), name)
    for prefix, value in variables.items():  # of objects and lists what they hold themselves
        dot, bracket = (f"{prefix}.", f"{prefix}[{{}}]") if prefix else ("", "[{}]")
        held: dict[str, Any] = {prefix: value}
        if isinstance(value, list | tuple):
            held = {bracket.format(i): t for i, t in enumerate(value)}
        elif hasattr(value, "__dict__") and not isinstance(value, Tensor | type | ModuleType):
            held = {dot + name: t for name, t in vars(value).items()}
        for name, t in held.items():
            if isinstance(t, Tensor):
                names.setdefault(id(t), name)
    return names


def states_of(energy: Callable[[], Tensor]) -> dict[int, str]:
    """The names of the states that an energy can reach by name, clamped ones among them, by their ids."""
    return {id(p): called for called, module, name, p in parameters_of(energy) if is_state(module, name)}


def learned_in(energy: Callable[[], Tensor], params: Sequence[Tensor]) -> list[str]:
    """The names of those of these parameters that can only be meant for the M-step."""
    given = {id(p) for p in params}
    return [called for called, module, name, p in parameters_of(energy) if id(p) in given and is_learned(module, name)]


def parameters_of(energy: Callable[[], Tensor]) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """The parameters that an energy can reach by name, with their modules and what these call them."""
    for prefix, root in modules_of(energy).items():
        for path, module in root.named_modules(prefix=prefix):
            for name, p in module._parameters.items():
                if p is not None:
                    yield f"{path}.{name}" if path else name, module, name, p


def tensors_of(energy: Callable[[], Tensor]) -> list[Tensor]:
    """The tensors that an energy can reach by name, those of modules among them."""
    found = [t for t in _variables(energy).values() if isinstance(t, Tensor)]
    for root in modules_of(energy).values():
        for module in root.modules():
            kept = (*module._parameters.values(), *module._buffers.values(), *vars(module).values())
            found += [t for t in kept if isinstance(t, Tensor)]
    return found


def modules_of(energy: Callable[[], Tensor]) -> dict[str, nn.Module]:
    """The modules that an energy can reach by name."""
    return {name: module for name, module in _variables(energy).items() if isinstance(module, nn.Module)}


def _variables(energy: Callable[[], Tensor]) -> dict[str, Any]:
    """What an energy can reach by name; a module of which it is a method has none."""
    owner = energy if isinstance(energy, nn.Module) else getattr(energy, "__self__", None)
    if isinstance(owner, nn.Module):
        return {"": owner}
    reached: dict[str, Any] = {}
    if inspect.isfunction(energy):
        names = energy.__code__.co_names
        reached = {name: energy.__globals__[name] for name in names if name in energy.__globals__}
        reached |= enclosed(energy)
    elif owner is not None:
        reached = getattr(owner, "__dict__", {})
    return reached


def enclosed(function: FunctionType) -> dict[str, Any]:
    """The variables of functions around it that a function takes, as they are."""
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell: a variable that is not set yet, or no longer
            found[name] = cell.cell_contents
    return found
