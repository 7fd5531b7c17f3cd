"""Noise that is a function of a seed and of where it is used, and so the same on every device and for any tiles.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) of the counter (block of four
elements, variable, step, sample), and of every two of its four words a pair of normal numbers by Box and Muller.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SEEDS = 2**53  # of them, which a number of a plan can tell apart
_WORD = 0xFFFFFFFF
_FACTORS, _WEYL = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of 32 bits at random for every counter of as many, in int64; the key is a seed of 64 bits."""
    a, b, c, d = counter
    low, high = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        first, second = _FACTORS[0] * a, _FACTORS[1] * c  # which wrap around, as they must
        a, b = ((second >> 32) & _WORD) ^ b ^ low, second & _WORD
        c, d = ((first >> 32) & _WORD) ^ d ^ high, first & _WORD
        low, high = (low + _WEYL[0]) & _WORD, (high + _WEYL[1]) & _WORD
    return a, b, c, d


def normal(seed: Tensor, step: Tensor, variable: int, like: Tensor) -> Tensor:
    """Noise from N(0, 1) for a variable.

    Args:
        seed: int64, of every sample, ``[B]``; samples of one seed draw by their places in the batch.
        step: int64, which a sample takes, ``[B]``.
        variable: its number.
        like: the variable, ``[B, ...]``, whose elements are taken in a row.
    """
    count, size = len(like), math.prod(like.shape[1:])
    block = torch.arange(-(-size // 4), device=like.device).expand(count, -1)
    sample = torch.arange(count, device=like.device)[:, None]
    words = philox((block, torch.full_like(block, variable), step[:, None], sample), seed[:, None])
    units = [w.to(like.dtype) * 2.0**-32 + 2.0**-33 for w in words]  # in (0, 1]
    drawn = []
    for u, v in (units[:2], units[2:]):
        radius, angle = (-2 * u.log()).sqrt(), 2 * math.pi * v
        drawn += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(drawn, 2).reshape(count, -1)[:, :size].reshape(like.shape)
