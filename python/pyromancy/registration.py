"""Which parameters belong to the E-step and which to the M-step.

Classes declare them by name with two decorators; four functions collect them from a module. A class that declares
nothing has its parameters follow `default`: M-step, so that a plain `torch.nn.Linear` is learned.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch.nn as nn

_T = TypeVar("_T", bound=type)
_E, _M = "_e_params_", "_m_params_"
_STEP = {_E: "E-step", _M: "M-step"}
_warned: set[tuple[type, str, str]] = set()


def eparameters(*names: str) -> Callable[[_T], _T]:
    """Class decorator that declares E-step parameters: the states that inference updates.

    Fills the class attribute ``_e_params_``, a dict from name to None, with these names and all that superclasses
    declared, in method resolution order. Applied twice, or to a class that has the attribute, it adds to it.

    Args:
        *names: attribute names of parameters.

    Raises:
        TypeError: a name is not a string, or the class is not a `torch.nn.Module`.
        ValueError: a name cannot be a parameter's name.
    """
    return _declare(_E, names)


def mparameters(*names: str) -> Callable[[_T], _T]:
    """Class decorator that declares M-step parameters: what learning updates.

    Fills the class attribute ``_m_params_`` as `eparameters` fills ``_e_params_``.

    Args:
        *names: attribute names of parameters.

    Raises:
        TypeError: a name is not a string, or the class is not a `torch.nn.Module`.
        ValueError: a name cannot be a parameter's name.
    """
    return _declare(_M, names)


def _declare(attribute: str, names: tuple[str, ...]) -> Callable[[_T], _T]:
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"parameter names must be strings, got {name!r}; write @eparameters('value')")
        if not name or "." in name:
            raise ValueError(f"a parameter name must be a non-empty attribute name without '.', got {name!r}")

    def decorate(cls: _T) -> _T:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise TypeError(f"only subclasses of torch.nn.Module have parameters to declare, got {cls!r}")
        setattr(cls, attribute, dict.fromkeys(names) | _declared(cls, attribute))
        return cls

    return decorate


def _declared(cls: type, attribute: str) -> dict[str, None]:
    names: dict[str, None] = {}
    for c in cls.__mro__:
        names |= dict.fromkeys(c.__dict__.get(attribute, ()))
    return names


def is_learned(module: nn.Module, name: str) -> bool:
    """Whether a module's own parameter can only be meant for the M-step.

    It is declared so, or one of a layer of PyTorch's. Those of containers and tables may be anything, as those of
    undeclared classes of the user's: states as well.
    """
    cls = type(module)
    if name in _declared(cls, _M):
        return name not in _declared(cls, _E)
    home = cls.__module__
    return home.startswith("torch.nn.modules.") and not home.endswith((".container", ".sparse"))


def is_state(module: nn.Module, name: str) -> bool:
    """Whether a module's own parameter is declared for the E-step alone."""
    return name in _declared(type(module), _E) and name not in _declared(type(module), _M)


def get_named_estep_params(
    module: nn.Module,
    default: bool = False,
    exclude: Iterable[nn.Parameter | nn.Module] | None = None,
    prefix: str = "",
    recurse: bool = True,
    remove_duplicate: bool = True,
) -> Iterator[tuple[str, nn.Parameter]]:
    """E-step parameters of a module and their names, in the order of `torch.nn.Module.named_parameters`.

    A parameter is included where its module's class, or a superclass, declared it with `eparameters`; excluded
    where the class declared other E-step parameters only, or declared it an M-step parameter only; and where
    neither kind is declared, as `default` says.

    Args:
        module: where to look.
        default: whether parameters of classes that declare nothing are included.
        exclude: parameters, and modules all of whose parameters, to leave out: clamped nodes, for example.
        prefix: put before every name.
        recurse: whether submodules are searched.
        remove_duplicate: whether a parameter reachable by several names is given once.

    Yields:
        Name and parameter.

    Raises:
        TypeError: `exclude` is not iterable, or an element of it neither a parameter nor a module.
    """
    return _select(_E, _M, module, default, exclude, prefix, recurse, remove_duplicate)


def get_estep_params(
    module: nn.Module,
    default: bool = False,
    exclude: Iterable[nn.Parameter | nn.Module] | None = None,
    recurse: bool = True,
) -> Iterator[nn.Parameter]:
    """E-step parameters of a module; see `get_named_estep_params` for which, the arguments and errors.

    Yields:
        Each parameter once.
    """
    return (p for _, p in get_named_estep_params(module, default, exclude, recurse=recurse))


def get_named_mstep_params(
    module: nn.Module,
    default: bool = True,
    exclude: Iterable[nn.Parameter | nn.Module] | None = None,
    prefix: str = "",
    recurse: bool = True,
    remove_duplicate: bool = True,
) -> Iterator[tuple[str, nn.Parameter]]:
    """M-step parameters of a module and their names: `get_named_estep_params` with the two kinds exchanged.

    Args:
        module: where to look.
        default: whether parameters of classes that declare nothing are included.
        exclude: parameters, and modules all of whose parameters, to leave out.
        prefix: put before every name.
        recurse: whether submodules are searched.
        remove_duplicate: whether a parameter reachable by several names is given once.

    Yields:
        Name and parameter.

    Raises:
        TypeError: `exclude` is not iterable, or an element of it neither a parameter nor a module.
    """
    return _select(_M, _E, module, default, exclude, prefix, recurse, remove_duplicate)


def get_mstep_params(
    module: nn.Module,
    default: bool = True,
    exclude: Iterable[nn.Parameter | nn.Module] | None = None,
    recurse: bool = True,
) -> Iterator[nn.Parameter]:
    """M-step parameters of a module; see `get_named_mstep_params` for which, the arguments and errors.

    Yields:
        Each parameter once.
    """
    return (p for _, p in get_named_mstep_params(module, default, exclude, recurse=recurse))


def _select(
    kind: str,
    other: str,
    module: nn.Module,
    default: bool,
    exclude: Iterable[nn.Parameter | nn.Module] | None,
    prefix: str,
    recurse: bool,
    remove_duplicate: bool,
) -> Iterator[tuple[str, nn.Parameter]]:
    seen: set[nn.Parameter] = set()
    if not isinstance(exclude, Iterable | None):
        raise TypeError(f"exclude must be an iterable of parameters and modules, got one {type(exclude).__name__}")
    excluded = list(exclude or ())
    members = {*module.modules(), *module.parameters()} if excluded else set()
    for item in excluded:
        if isinstance(item, nn.Parameter):
            parameters, what = [item], f"a parameter of shape {tuple(item.shape)}"
        elif isinstance(item, nn.Module):
            parameters, what = list(item.parameters()), f"a {type(item).__name__}"
        else:
            raise TypeError(f"exclude must hold parameters and modules, got {type(item).__name__}")
        seen.update(parameters)
        if item not in members and members.isdisjoint(parameters):
            warnings.warn(f"exclude holds {what} that is not in the {type(module).__name__}", stacklevel=4)

    def matching() -> Iterator[tuple[str, nn.Parameter]]:
        modules = (
            module.named_modules(prefix=prefix, remove_duplicate=remove_duplicate) if recurse else [(prefix, module)]
        )
        for path, m in modules:
            mine, others = _declared(type(m), kind), _declared(type(m), other)
            _warn_of_missing(m, kind, mine)
            for name, p in m._parameters.items():
                if p is None or p in seen:
                    continue
                if mine and others and name not in mine and name not in others:
                    _warn_of_neither(type(m), name)
                if not (name in mine if mine else default and name not in others):
                    continue
                if remove_duplicate:
                    seen.add(p)
                yield f"{path}.{name}" if path else name, p

    return matching()


def _warn_of_missing(module: nn.Module, kind: str, declared: dict[str, None]) -> None:
    for name in declared:
        if name not in module._parameters and not hasattr(module, name):
            _warn_once(
                type(module),
                name,
                f"{type(module).__name__} declares the {_STEP[kind]} parameter {name!r}, but has no such attribute",
            )


def _warn_of_neither(cls: type, name: str) -> None:
    _warn_once(
        cls,
        name,
        f"{cls.__name__} declares E-step and M-step parameters but leaves {name!r} out of both, so no step updates "
        "it; name it in @eparameters or @mparameters",
    )


def _warn_once(cls: type, name: str, message: str) -> None:
    key = (cls, name, message)
    if key not in _warned:
        _warned.add(key)
        warnings.warn(message, stacklevel=5)
