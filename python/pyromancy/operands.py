"""What functions of nodes make of their arguments: tensors of one shape and dtype, on one device."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

_FLOATING = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))


def operands(
    value: Tensor, pred: Tensor, logvar: Tensor | None, spread: str = "logvar"
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Broadcast to one shape and promote to one dtype, as ``(value - pred) / exp(logvar)`` would.

    `spread` is what the caller's argument is named.
    """
    value, pred = broadcast(value, pred)
    if value.dim() == 0:
        raise ValueError("value must have a batch dimension, got shape ()")
    dtype = value.dtype
    if pred.dtype != dtype or dtype not in _FLOATING or (logvar is not None and logvar.dtype != dtype):
        check_floating(**{"value": value, "pred": pred, spread: logvar})
        dtype = torch.promote_types(dtype, pred.dtype)
        if logvar is not None and logvar.dim() > 0:
            dtype = torch.promote_types(dtype, logvar.dtype)
        value, pred = value.to(dtype), pred.to(dtype)
        logvar = None if logvar is None else logvar.to(dtype)
    if pred.device != value.device or (logvar is not None and logvar.device != value.device):
        others = pred.device if logvar is None else f"{pred.device} and {logvar.device}"
        raise ValueError(f"pred and {spread} must be on the device of value, {value.device}, got {others}")
    if logvar is not None and (n := logvar.dim()) > 0:
        node = value.shape[1:]
        if n > len(node) or any(a not in (1, b) for a, b in zip(reversed(logvar.shape), reversed(node), strict=False)):
            raise ValueError(
                f"{spread} must broadcast against the node dimensions {tuple(node)}, got shape {tuple(logvar.shape)}"
            )
        if n < len(node):
            logvar = logvar.reshape(*[1] * (len(node) - n), *logvar.shape)
    return value, pred, logvar


def operands_with_classes(value: Tensor, pred: Tensor) -> tuple[Tensor, Tensor]:
    """Those of a categorical node, with a dimension of classes."""
    value, pred, _ = operands(value, pred, None)
    if value.dim() < 2:
        raise ValueError(f"value and pred must have shape (B, classes, *), got {tuple(value.shape)}")
    return value, pred


def multivariate_operands(value: Tensor, pred: Tensor, factor: Tensor) -> tuple[Tensor, Tensor, Tensor, torch.Size]:
    """Those of a node with a full covariance, of one shape and dtype, and that shape."""
    value, pred = broadcast(value, pred)
    shape = value.shape
    if len(shape) < 2 or tuple(factor.shape) != (shape[-1], shape[-1]):
        raise ValueError(
            f"value must have shape (B, *positions, n) and factor (n, n), got {tuple(shape)} and {tuple(factor.shape)}"
        )
    check_floating(value=value, pred=pred, factor=factor)
    if not value.device == pred.device == factor.device:
        raise ValueError(
            f"pred and factor must be on the device of value, {value.device}, got {pred.device} and {factor.device}"
        )
    dtype = torch.promote_types(torch.promote_types(value.dtype, pred.dtype), factor.dtype)
    if not value.dtype == pred.dtype == factor.dtype:
        value, pred, factor = value.to(dtype), pred.to(dtype), factor.to(dtype)
    return value, pred, factor, shape


def broadcast(value: Tensor, pred: Tensor) -> tuple[Tensor, Tensor]:
    """States and predictions of one shape, with a warning where one state is for many predictions."""
    if value.shape == pred.shape:
        return value, pred
    try:
        states, means = torch.broadcast_tensors(value, pred)
    except RuntimeError as error:
        raise ValueError(
            f"pred must broadcast with value, of shape {tuple(value.shape)}, got shape {tuple(pred.shape)}"
        ) from error
    if states.shape[:1] != value.shape[:1] and not torch.compiler.is_compiling():
        warnings.warn(
            f"the state has shape {tuple(value.shape)} and its prediction {tuple(pred.shape)}: every sample is compared"
            " with the same state, as of a target that was given for one sample; if that is meant, expand the state",
            stacklevel=1,  # the place is the same for a state's every use, so that it is told once
        )
    return states, means


def check_floating(**tensors: Tensor | None) -> None:
    """Raise where one is not of a floating-point dtype that the functions take."""
    for name, t in tensors.items():
        if t is not None and t.dtype not in _FLOATING:
            raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {t.dtype}")
