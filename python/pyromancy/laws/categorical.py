"""-z . log softmax(mu) per sample, times a weight: z is a distribution, and clamped; there is no theta.

What does not sum to 1, as a distribution times a weight, is taken as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pull(z: Tensor, mu: Tensor, theta: None, weight: float | Tensor, parameter: float = 0.0) -> Tensor:
    """What the energy grows by with z."""
    return -weight * torch.log_softmax(mu, 1)


def push(z: Tensor, mu: Tensor, theta: None, weight: float | Tensor, parameter: float = 0.0) -> Tensor:
    """What it grows by with -mu."""
    return weight * (z - torch.softmax(mu, 1) * z.sum(1, keepdim=True))


def deviation(z: Tensor, mu: Tensor, theta: None, weight: float, parameter: float = 0.0) -> Tensor:
    """The energy [B]: there is nothing beside it."""
    return weight * -(z * torch.log_softmax(mu, 1)).sum(1)


energy = deviation


def normalizer(theta: None, width: int) -> float:
    """What one energy has beside its deviation."""
    return 0.0


def distribution(
    target: Tensor,
    weight: Tensor | None,
    classes: int,
    dtype: torch.dtype,
    ignored: int = -100,
    smoothing: float = 0.0,
    mean: bool = False,
) -> Tensor:
    """The z of `torch.nn.functional.cross_entropy`, which with its arguments is ``-(z * log_softmax(mu, 1)).sum(1)``.

    Args:
        target: class indices ``[B]``, or probabilities ``[B, n]``.
        weight: of the classes, ``[n]``; None is 1.
        classes: n.
        dtype: of the result.
        ignored: an index of samples that do not count.
        smoothing: the share of the uniform distribution.
        mean: whether the sum over samples is to be that function's mean.

    Raises:
        IndexError: an index is out of range; on a GPU it is a failed assertion of PyTorch's there.
    """
    known = None if target.is_floating_point() else (target != ignored).unsqueeze(1)
    z = target.to(dtype)
    if known is not None:
        index = target.unsqueeze(1).where(known, 0)
        if index.is_cpu and ((wrong := (index < 0) | (index >= classes)).any()):
            raise IndexError(f"Target {index[wrong][0].item()} is out of bounds.")
        z = torch.zeros(len(index), classes, dtype=dtype, device=index.device).scatter_(1, index, 1.0)
    total: Tensor | float = len(target)
    if mean and known is not None:
        total = (z if weight is None else z * weight).where(known, 0.0).sum()
    if smoothing:
        z = (1 - smoothing) * z + smoothing / classes
    if weight is not None:
        z = z * weight.to(z.dtype)
    if known is not None:
        z = z.where(known, 0.0)
    return z / total if mean else z
