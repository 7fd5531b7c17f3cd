"""What the launchers share: the device to launch on, the types to compute in, and the launch itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

INTERPRETED: bool = triton.knobs.runtime.interpret
VERSION: str = triton.__version__
TILE = 1024  # elements of float32

_COMPUTED_IN = {torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.float32,
                torch.float16: tl.float32}  # fmt: skip


def computed_in(name: str, t: Tensor) -> tl.dtype:
    """The type that a tensor's elements are computed in."""
    torch._check(
        t.dtype in _COMPUTED_IN, lambda: f"{name} must be float32, float64, bfloat16 or float16, got {t.dtype}"
    )
    return _COMPUTED_IN[t.dtype]


def wide(t: Tensor) -> torch.dtype:
    """The same as a type of tensors."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def blocks(count: int, block: int) -> int:
    """How many blocks cover a count."""
    return -(-count // block)


def power_of_2(n: int, at_most: int) -> int:
    """The least power of 2 that covers n, up to a limit that is one itself."""
    return min(at_most, 1 << max(n - 1, 0).bit_length())


def elements_of_tile(acc: tl.dtype) -> int:
    """Half as many of float64, which takes two registers."""
    return TILE // 2 if acc == tl.float64 else TILE


def tile(size: int, acc: tl.dtype) -> tuple[int, int]:
    """Samples and positions of a tile."""
    elements = elements_of_tile(acc)
    width = power_of_2(size, elements)
    return elements // width, width


def launch(kernel: Any, programs: int, *args: Any, **options: Any) -> None:
    """Launch on the current stream; nothing for no programs.

    Kernels are small enough for Triton's default of 4 warps, unless options say otherwise. Fused multiply-adds are
    asked for by name, because the default for them differs between versions of Triton.
    """
    if programs:
        kernel[(programs,)](*args, enable_fp_fusion=True, **options)


def guarded(name: str, launcher: Callable[..., Any]) -> Callable[..., Any]:
    """The launcher of an operator, its arguments checked and the device of its tensors the current one."""

    def kernel(*args: Any) -> Any:
        check(name, args)
        tensors = [*_tensors(args)]  # some of which may lie on the CPU
        with torch.cuda.device_of(next((t for t in tensors if t.is_cuda), tensors[0])):
            return launcher(*args)

    return kernel


def _tensors(args: Iterable[Any]) -> Iterator[Tensor]:
    """All of them, those in lists included."""
    for t in args:
        if isinstance(t, Tensor):
            yield t
        elif isinstance(t, list):
            yield from _tensors(t)
