"""Which kernel serves each operator here, why nothing faster does, and how to choose another.

``python -m pyromancy`` prints `describe`.
"""

from __future__ import annotations

import os
import platform
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from . import native
from .ops import reference, schema
from .version import __version__

__all__ = ["Serving", "available", "describe", "report", "use"]

BACKENDS = ("native", "triton", "reference")
_DISPATCH_KEY = {"cpu": "CPU", "cuda": "CUDA"}
_lock = threading.RLock()
_forced: torch.library.Library | None = None  # the reference, registered over the native kernels


@dataclass(frozen=True)
class Serving:
    """What serves an operator on a device.

    Attributes:
        operator: name in ``torch.ops.pyromancy``.
        device: "cpu" or "cuda".
        backend: "native", "triton" or "reference".
        detail: the instruction set, or why nothing faster serves it.
    """

    operator: str
    device: str
    backend: str
    detail: str


def available(backend: str, device: str = "cpu") -> tuple[bool, str]:
    """Whether a backend can run on a device, and if not, why.

    Args:
        backend: "native", "triton" or "reference".
        device: "cpu" or "cuda".

    Returns:
        The answer, and the reason where it is no.

    Raises:
        ValueError: no such backend or device.
    """
    _check_name("backend", backend, BACKENDS)
    _check_name("device", device, tuple(_DISPATCH_KEY))
    if device == "cuda" and torch.version.cuda is None:
        return False, f"torch {torch.__version__} is built without CUDA"
    if backend == "reference":
        return True, ""
    if backend == "triton":
        return False, f"pyromancy {__version__} has no Triton kernels yet"
    if native.MODULE is None:
        return False, native.REASON
    if not _has_kernel("gaussian_energy", device):
        return False, f"pyromancy {__version__} has no native {_DISPATCH_KEY[device]} kernels"
    return True, ""


def report() -> list[Serving]:
    """What serves every operator on every device, in the order of the schemas."""
    return [_serving(operator, device) for device in _DISPATCH_KEY for operator in schema.SCHEMAS]


def _serving(operator: str, device: str) -> Serving:
    if _forced is not None:
        return Serving(operator, device, "reference", "chosen with pyromancy.backends.use")
    if _has_kernel(operator, device):
        return Serving(operator, device, "native", _instruction_set() if device == "cpu" else "")
    return Serving(operator, device, "reference", available("native", device)[1] or "no native kernel")


def _has_kernel(operator: str, device: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{schema.NAMESPACE}::{operator}", _DISPATCH_KEY[device])


def _instruction_set() -> str:
    assert native.MODULE is not None
    chosen = native.MODULE.cpu_capability()
    asked = os.environ.get("ATEN_CPU_CAPABILITY")
    return f"{chosen}, by ATEN_CPU_CAPABILITY" if asked else f"{chosen}"


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Serve every operator from one backend inside a ``with`` block.

    The choice is the process's: it goes to PyTorch's dispatcher, so that compiled graphs follow it too, and other
    threads see it as well.

    Args:
        backend: "native" or "reference"; "triton" needs a GPU.

    Raises:
        ValueError: no such backend.
        RuntimeError: it cannot run here; the message says why.
    """
    global _forced
    works, reason = available(backend)
    if not works:
        raise RuntimeError(f"backend {backend!r} cannot run here: {reason}")
    with _lock:
        before = _forced is not None
        _force_reference(backend == "reference")
        try:
            yield
        finally:
            _force_reference(before)


def _force_reference(on: bool) -> None:
    global _forced
    if on and _forced is None:
        _forced = torch.library.Library(schema.NAMESPACE, "IMPL")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that kernels are overridden is what was asked for
            for name, kernel in reference.KERNELS.items():
                for key in _DISPATCH_KEY.values():
                    _forced.impl(name, kernel, key, allow_override=True)
    elif not on and _forced is not None:
        _forced._destroy()
        _forced = None


def describe() -> str:
    """Versions, what was built, and what serves each operator, as text."""
    lines = [f"pyromancy {__version__}, torch {torch.__version__}, Python {platform.python_version()}"]
    if native.MODULE is None:
        lines.append(f"compiled module: none ({native.REASON})")
    else:
        info = native.MODULE.build_info()
        lines.append("compiled module: " + ", ".join(f"{k} {_words(v)}" for k, v in info.items()))
    lines.append(f"threads: {torch.get_num_threads()}")
    width = max(map(len, schema.SCHEMAS))
    for device in _DISPATCH_KEY:
        if device == "cuda" and torch.version.cuda is None:
            lines.append(f"\ncuda: torch {torch.__version__} is built without CUDA")
            continue
        lines.append(f"\n{device}:")
        for s in report():
            if s.device == device:
                lines.append(f"  {s.operator:{width}}  {s.backend:9}  {s.detail}".rstrip())
    return "\n".join(lines)


def _words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}, got {name!r}")
