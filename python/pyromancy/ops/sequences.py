"""Eager references of what graphs of sequences are made of: attention and layer normalization."""

from __future__ import annotations

import torch
from torch import Tensor


def _weights(query: Tensor, key: Tensor, causal: bool, scale: float) -> Tensor:
    """How much of every key's value a query takes: [..., queries, keys]."""
    scores = scale * (query @ key.mT)
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(-1)


def attention_(out: Tensor, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> None:
    out.copy_(_weights(query, key, causal, scale) @ value)


def attention_backward_(
    grads: Tensor, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float
) -> None:
    weights = _weights(query, key, causal, scale)
    of_weights = grad @ value.mT
    of_scores = scale * weights * (of_weights - (weights * of_weights).sum(-1, keepdim=True))
    grads.copy_(torch.stack([of_scores @ key, of_scores.mT @ query, weights.mT @ grad]))


def _normal(input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Rows of mean 0 and variance 1, and what they were divided by."""
    deviation = (input.var(-1, correction=0, keepdim=True) + eps).sqrt()
    return (input - input.mean(-1, keepdim=True)) / deviation, deviation


def layer_norm_(out: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    normal, _ = _normal(input, eps)
    scaled = normal if weight is None else normal * weight
    out.copy_(scaled if bias is None else scaled + bias)


def layer_norm_backward_(out: Tensor, grad: Tensor, input: Tensor, weight: Tensor | None, eps: float) -> None:
    normal, deviation = _normal(input, eps)
    scaled = grad if weight is None else grad * weight
    along = normal * (scaled * normal).mean(-1, keepdim=True)
    out.copy_((scaled - scaled.mean(-1, keepdim=True) - along) / deviation)
