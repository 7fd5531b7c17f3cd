"""Conditions of one tensor, or number: each names it, what it must be and what it was."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
require = torch._check


def floating(name: str, t: Tensor) -> None:
    require(t.dtype in _FLOATING, lambda: f"{name} must be float32, float64, bfloat16 or float16, got {t.dtype}")


def real(name: str, t: Tensor) -> None:
    require(t.dtype in (torch.float32, torch.float64), lambda: f"{name} must be float32 or float64, got {t.dtype}")


def alike(name: str, t: Tensor, like_name: str, like: Tensor) -> None:
    require(t.dtype == like.dtype, lambda: f"{name} must have dtype {like.dtype} of {like_name}, got {t.dtype}")
    require(
        t.device == like.device, lambda: f"{name} must be on the device of {like_name}, {like.device}, got {t.device}"
    )


def same(name: str, t: Tensor, like_name: str, like: Tensor) -> None:
    alike(name, t, like_name, like)
    require(
        t.shape == like.shape,
        lambda: f"{name} must have the shape of {like_name} {tuple(like.shape)}, got {tuple(t.shape)}",
    )


def shaped(name: str, t: Tensor, *shapes: tuple[int, ...]) -> None:
    require(
        tuple(t.shape) in shapes,
        lambda: f"{name} must have shape {' or '.join(map(str, shapes))}, got {tuple(t.shape)}",
    )


def contiguous(name: str, t: Tensor) -> None:
    require(t.is_contiguous(), lambda: f"{name} must be contiguous, got strides {t.stride()}")


def finite(**numbers: float) -> None:
    for name, x in numbers.items():
        require(math.isfinite(x), lambda name=name, x=x: f"{name} must be finite, got {x}")


def one_per_sample(name: str, t: Tensor, like_name: str, like: Tensor) -> None:
    alike(name, t, like_name, like)
    shaped(name, t, (like.shape[0],))
