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
from .ops import SERVED_BY_TRITON, reference, schema, triton
from .version import __version__

__all__ = ["Serving", "available", "describe", "report", "use"]

BACKENDS = ("native", "triton", "reference")
_DISPATCH_KEY = {"cpu": "CPU", "cuda": "CUDA"}
_lock = threading.RLock()  # for the two below, and held while kernels are registered
# the operators and devices that have a compiled kernel: what the dispatcher knows before anything else is chosen
_NATIVE = frozenset(
    (operator, device)
    for device, key in _DISPATCH_KEY.items()
    for operator in schema.SCHEMAS
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"{schema.NAMESPACE}::{operator}", key)
    and not (device == "cuda" and operator in SERVED_BY_TRITON)
)


@dataclass(frozen=True)
class _Choice:
    """A backend's kernels, registered over those that serve by default."""

    backend: str
    serves: frozenset[tuple[str, str]]  # operator, device
    library: torch.library.Library


@dataclass(frozen=True, eq=False)
class _Block:
    """A ``with use(...)`` that is open."""

    backend: str
    devices: list[str]
    thread: int  # that entered it


_open: list[_Block] = []  # in the order in which they were entered
_choice: _Choice | None = None  # None: nothing is registered over the default, which is native wherever there is that


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

    Asking for Triton on a GPU imports it.

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
    missing = _no_gpu() if device == "cuda" else ""
    if not missing and backend != "reference":
        missing = _no_native(device) if backend == "native" else _no_triton(device)
    return not missing, missing


def _no_gpu() -> str:
    """Why nothing runs on a GPU here, or "" where something does."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return "" if torch.cuda.is_available() else "torch sees no GPU"


def _no_native(device: str) -> str:
    """Why there are no compiled kernels for a device, or ""."""
    if native.MODULE is None:
        return native.REASON
    if not _has_kernel("gaussian_energy", device):
        return f"pyromancy {__version__} has no native {_DISPATCH_KEY[device]} kernels"
    return ""


def _no_triton(device: str) -> str:
    """Why Triton's kernels do not run on a device, or ""."""
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton's kernels run on GPUs, and on the CPU only in its interpreter (TRITON_INTERPRET=1)"
    kernels, reason = triton.load()
    if kernels and device == "cpu" and not triton.interpreted():
        return "TRITON_INTERPRET=1 was set after Triton was loaded"
    return reason


def chosen() -> str | None:
    """The backend that was chosen with `use`, unless it is the one that serves by default."""
    return _choice.backend if _choice is not None else None


def report() -> list[Serving]:
    """What serves every operator on every device, in the order of the schemas; on GPUs also where there is none."""
    return [_serving(operator, device) for device in _DISPATCH_KEY for operator in schema.SCHEMAS]


def _serving(operator: str, device: str) -> Serving:
    if _choice is not None and (operator, device) in _choice.serves:
        return Serving(operator, device, _choice.backend, "chosen with pyromancy.backends.use")
    if _has_kernel(operator, device):
        return Serving(operator, device, "native", _instruction_set() if device == "cpu" else "compiled for CUDA")
    if device == "cuda" and torch.version.cuda is None:
        return Serving(operator, device, "reference", _no_gpu())
    why_not = [_no_native(device) or "no native kernel"]
    if device == "cuda":
        kernels, reason = triton.load()
        if operator in SERVED_BY_TRITON and kernels:
            from .ops.triton.multivariate import LARGEST  # which needs Triton

            limit = f"; the reference above n = {LARGEST}" if operator.startswith("multivariate") else ""
            return Serving(operator, device, "triton", f"Triton {triton.version()}{limit}; {why_not[0]}")
        why_not.append(reason or "Triton's kernels are not registered")
    return Serving(operator, device, "reference", "; ".join(why_not))


def _has_kernel(operator: str, device: str) -> bool:
    return (operator, device) in _NATIVE


def multiplies_bfloat16() -> bool:
    """Whether fused chains on the CPU take products of bfloat16 where PyTorch's precision is "medium"."""
    served = _serving("run_plan_", "cpu").backend == "native"
    return served and native.MODULE is not None and native.MODULE.multiplies_bfloat16()


def without_methods(device: str) -> str:
    """Why the kernels of plans on a device take no E-steps but plain descent, or ""."""
    backend = _serving("run_plan_", device).backend if device in _DISPATCH_KEY else "reference"
    return "" if (backend, device) == ("native", "cpu") else f"the {backend} kernels on {device} do plain descent"


def without_graphs(device: str) -> str:
    """Why the kernels of plans on a device take no networks but chains, or ""."""
    backend = _serving("run_plan_", device).backend if device in _DISPATCH_KEY else "reference"
    takes = backend == "reference" or (backend, device) == ("native", "cpu")
    return "" if takes else f"the {backend} kernels on {device} take chains alone"


def without_masks(device: str) -> str:
    """Why the kernels of plans on a device hold no entries of states that are known, or ""."""
    backend = _serving("run_plan_", device).backend if device in _DISPATCH_KEY else "reference"
    holds = backend == "reference" or (backend, device) == ("native", "cpu")
    return "" if holds else f"the {backend} kernels on {device} take no masks"


def without_thetas(device: str) -> str:
    """Why the kernels of plans on a device take no theta of a law of one's own, or ""."""
    backend = _serving("run_plan_", device).backend if device in _DISPATCH_KEY else "reference"
    return f"the triton kernels on {device} take no parameter in a law of one's own" if backend == "triton" else ""


def _instruction_set() -> str:
    assert native.MODULE is not None
    chosen = native.MODULE.cpu_capability()
    asked = os.environ.get("ATEN_CPU_CAPABILITY")
    return f"{chosen}, by ATEN_CPU_CAPABILITY" if asked else f"{chosen}"


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Serve every operator from one backend inside a ``with`` block.

    The choice is the process's: it goes to PyTorch's dispatcher, so that compiled graphs follow it too, and other
    threads see it as well, but may not choose until the block ends. Of nested blocks the innermost decides. It holds on
    the devices that the backend runs on. An operator that it has no kernel for, and a device that it does not run on,
    are served as by default, and `report` says so.

    Enter and leave a block while no other thread runs an operator of this package: PyTorch's dispatcher does not keep a
    kernel that is being replaced alive for a call that has just found it.

    Args:
        backend: "native", "triton" or "reference".

    Raises:
        ValueError: no such backend.
        RuntimeError: it can run on no device here, and the message says why; or a block of another thread is open.
    """
    _check_name("backend", backend, BACKENDS)
    answers = {device: available(backend, device) for device in _DISPATCH_KEY}
    devices = [device for device, (works, _) in answers.items() if works]
    if not devices:
        reason = answers["cuda" if backend == "triton" else "cpu"][1]
        raise RuntimeError(f"backend {backend!r} cannot run here: {reason}")
    block = _Block(backend, devices, threading.get_ident())
    with _lock:
        if _open and _open[-1].thread != block.thread:  # which may be running the kernels that would be taken away
            raise RuntimeError(f"backend {_open[-1].backend!r} is chosen until its block in another thread ends")
        _publish(_register(block))
        _open.append(block)
    try:
        yield
    finally:
        with _lock:
            decides = _open[-1] is block
            _open.remove(block)
            if decides:
                _publish(_register(_open[-1]) if _open else None)


def _register(block: _Block) -> _Choice | None:
    """Register a block's kernels over whatever serves on its devices: all of them, or on an error none."""
    backend, devices = block.backend, block.devices
    if backend == "native":
        return None
    kernels = reference.KERNELS if backend == "reference" else triton.load()[0]
    library = torch.library.Library(schema.NAMESPACE, "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that kernels are overridden is what was asked for
            for name, kernel in kernels.items():
                for device in devices:
                    library.impl(name, kernel, _DISPATCH_KEY[device], allow_override=True)
    except BaseException:
        library._destroy()
        raise
    return _Choice(backend, frozenset((name, device) for name in kernels for device in devices), library)


def _publish(choice: _Choice | None) -> None:
    """Let a registered choice stand alone, by taking away the one before."""
    global _choice
    before, _choice = _choice, choice
    if before is not None:
        before.library._destroy()


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
        missing = _no_gpu() if device == "cuda" else ""
        lines.append(f"\n{device}: {missing}".rstrip())
        if device == "cuda" and torch.version.cuda is None:
            continue
        for s in report():
            if s.device == device:
                lines.append(f"  {s.operator:{width}}  {s.backend:9}  {s.detail}".rstrip())
    return "\n".join(lines)


def _words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}, got {name!r}")
