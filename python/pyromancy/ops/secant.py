"""Eager reference of `secant_products_`."""

from __future__ import annotations

import torch
from torch import Tensor


def secant_products_(out: Tensor, gradient: Tensor, before: Tensor, step: Tensor) -> None:
    g, h, s = (t.double().reshape(len(t), t[:1].numel()) for t in (gradient, before, step))
    y = (gradient - before).double().reshape(g.shape)
    pairs = (g, g), (g, s), (g, y), (h, h), (h, s), (h, y), (s, s), (s, y), (y, y)
    out.copy_(torch.stack([(a * b).sum(1) for a, b in pairs]))
