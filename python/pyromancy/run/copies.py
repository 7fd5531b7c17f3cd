"""Copies of what has an energy: with the network that the energy is of, or none."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, TypeVar, cast

import torch
import torch.nn as nn
from torch import Tensor

from .reach import called, enclosed

_C = TypeVar("_C")
_STATELESS = (
    *(bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, torch.layout),
    *(BuiltinFunctionType, torch.Size),
)


def check_copied(owner: object, **functions: Callable[..., Any]) -> None:
    """Refuse to copy what would go on with the original's network: `copy.deepcopy` leaves functions as they are.

    Methods are copied with what they are of, and a `functools.partial` with its arguments; a function may be left where
    it knows nothing but what it is given.
    """
    for name, function in functions.items():
        inner = function
        while isinstance(inner, functools.partial):
            inner = inner.func
        if inspect.isfunction(inner) and (known := _knows(inner, set())):
            raise TypeError(
                f"{name} must be a method, or a function of its arguments alone, to be copied, got the function "
                f"{called(inner)}, which knows {known}: copy.deepcopy leaves it with the original's; write it as a "
                f"method of the network, or as functools.partial(function, net), or make another {type(owner).__name__}"
            )


def deep_copy(owner: _C, memo: dict[int, Any]) -> _C:
    """As `copy.deepcopy` copies what has no method for it."""
    twin = object.__new__(type(owner))
    memo[id(owner)] = twin
    vars(twin).update(copy.deepcopy(cast("dict[str, Any]", owner.__getstate__()), memo))
    return twin


def _knows(function: FunctionType, seen: set[int]) -> str:
    """The first name by which a function reaches something that has a state, other than its arguments; or none."""
    if id(function) in seen or function.__module__.partition(".")[0] in ("torch", __package__.partition(".")[0]):
        return ""
    seen.add(id(function))
    names, code = set[str](), [function.__code__]
    while code:
        one = code.pop()
        names |= {*one.co_names}
        code += [c for c in one.co_consts if isinstance(c, CodeType)]
    held = {name: function.__globals__[name] for name in sorted(names & function.__globals__.keys())}
    held |= enclosed(function)
    given = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    defaults = [(f"a default of {function.__name__}", value) for value in given]
    for name, value in (*held.items(), *defaults):
        if isinstance(value, FunctionType):
            if known := _knows(value, seen):
                return f"{known} by {name}"
        elif isinstance(value, ModuleType):  # of which it may name what is in it
            inside = [f"{name}.{n}" for n in names if isinstance(vars(value).get(n), (nn.Module, Tensor))]
            if inside:
                return inside[0]
        elif not isinstance(value, _STATELESS):
            return name
    return ""
