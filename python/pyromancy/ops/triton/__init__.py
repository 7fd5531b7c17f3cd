"""Triton kernels of the operators: for NVIDIA GPUs, and for the CPU in Triton's interpreter.

Importing this package does not import Triton; `load` does. Where torch is built for CUDA, `register` gives the kernels
the ``CUDA`` key of every operator that no native kernel has taken, and the first call loads them.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import TYPE_CHECKING, Any

import torch

from .. import reference
from ..schema import NAMESPACE, SCHEMAS, library, registered

if TYPE_CHECKING:
    from collections.abc import Callable

OPERATORS = tuple(SCHEMAS)


@functools.cache
def load() -> tuple[dict[str, Callable[..., Any]], str]:
    """The kernels by operator; or none, and why."""
    try:
        from . import cholesky, estep, gaussian, launch, multivariate, run_plan
    except ModuleNotFoundError as error:
        if error.name == "triton":
            return {}, "Triton is not installed"
        return {}, f"Triton does not load: {error}"
    except Exception as error:  # a Triton that does not fit the system or the Python fails in many ways
        return {}, f"Triton does not load: {type(error).__name__}: {error}"
    modules = (gaussian, cholesky, multivariate, estep, run_plan)
    return {name: launch.guarded(name, f) for m in modules for name, f in vars(m).items() if name in OPERATORS}, ""


def interpreted() -> bool:
    """Whether the loaded kernels run in Triton's interpreter."""
    from . import launch

    return launch.INTERPRETED


def version() -> str:
    """The version of Triton."""
    from . import launch

    return launch.VERSION


def _lazily(name: str) -> Callable[..., Any]:
    def kernel(*args: Any) -> Any:
        kernels, reason = load()
        if kernels:
            return kernels[name](*args)
        _warn(reason)
        return reference.KERNELS[name](*args)

    return kernel


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(f"pyromancy's operators run on the reference on GPUs: {reason}", RuntimeWarning, stacklevel=3)


def register() -> frozenset[str]:
    """Take the ``CUDA`` key of the operators without a native kernel, and return them."""
    if torch.version.cuda is None or importlib.util.find_spec("triton") is None:
        return frozenset()
    for name in OPERATORS:
        if not registered(name, "CUDA"):
            library.impl(name, _lazily(name), "CUDA")
    # which holds what Python has registered, an earlier import of this package included
    return frozenset(name for name in OPERATORS if f"{NAMESPACE}/{name}/CUDA" in torch.library._impls)
