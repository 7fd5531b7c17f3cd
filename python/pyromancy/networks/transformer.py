"""Transformers whose nodes stand along the residual stream."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..nodes import FixedNode, StandardGaussianNode
from .layers import Skip
from .outputs import output_of
from .pcn import PCN

__all__ = ["Embedding", "SelfAttention", "transformer"]


class Embedding(nn.Module):
    """``W^T x_t + p_t``: what symbols mean, and where they stand.

    Args:
        symbols: how many there are.
        length: of a sequence, at most.
        width: of the result.

    Attributes:
        weight: W, ``[symbols, width]``, drawn from N(0, 1 / width).
        position: p, ``[length, width]``, likewise.
    """

    def __init__(self, symbols: int, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(symbols, width) / math.sqrt(width))
        self.position = nn.Parameter(torch.randn(length, width) / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings ``[B, T, width]`` of one-hot rows ``[B, T, symbols]``."""
        return x @ self.weight + self.position[: x.shape[1]]

    def extra_repr(self) -> str:
        """What the module was made with."""
        symbols, width = self.weight.shape
        return f"symbols={symbols}, length={len(self.position)}, width={width}"


class SelfAttention(nn.Module):
    """Scaled dot-product attention of a sequence to itself, in several heads (arXiv:1706.03762).

    Args:
        width: of the states, a multiple of `heads`.
        heads: how many.
        causal: whether a position sees those up to itself alone.

    Attributes:
        inputs: queries, keys and values, ``Linear(width, 3 width)``.
        output: ``Linear(width, width)``.

    Raises:
        ValueError: `width` is no multiple of `heads`.
    """

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        self.heads, self.causal = heads, causal
        self.inputs = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, width]`` of ``[B, T, width]``."""
        q, k, v = self.inputs(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return cast(Tensor, self.output(attended.transpose(1, 2).flatten(2)))

    def extra_repr(self) -> str:
        """What the module was made with."""
        return f"heads={self.heads}, causal={self.causal}"


class _OneHot(nn.Module):
    """Symbols as rows of one 1 and zeros, in the network's dtype."""

    like: Tensor

    def __init__(self, symbols: int, length: int) -> None:
        super().__init__()
        self.symbols, self.length = symbols, length
        self.register_buffer("like", torch.empty(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # no f-strings here, as in `PCN.start`
        if x.is_floating_point():
            raise TypeError("x must be symbols of an integer dtype, got " + str(x.dtype))
        if x.dim() == 2 and x.shape[1] > self.length:
            raise ValueError("x must be sequences of at most " + str(self.length) + " symbols, got " + str(x.shape[1]))
        if x.numel():
            least, most = (int(i) for i in x.aminmax())
            if least < 0 or most >= self.symbols:
                wrong = least if least < 0 else most
                raise ValueError("x must be symbols from 0 to " + str(self.symbols - 1) + ", got " + str(wrong))
        return F.one_hot(x.long(), self.symbols).to(self.like.dtype)


class _ClassesFirst(nn.Module):
    """``[B, T, classes]`` as ``[B, classes, T]``, where categorical nodes have them."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def transformer(
    symbols: int,
    length: int,
    width: int = 128,
    heads: int = 4,
    depth: int = 2,
    causal: bool = True,
    variance: float = 1.0,
) -> PCN:
    """A transformer over sequences of symbols as a predictive coding network, with a node after every residual block.

    States are ``[B, T, width]``, one along the residual stream before and after each half of a layer; with LN the layer
    normalization, A the attention and M the perceptron ``W_2 gelu(W_1 . + b_1) + b_2`` of ``4 width`` hidden units::

        mu_1 = W^T x_t + p_t,    mu_2k = z_{2k-1} + A_k(LN(z_{2k-1})),    mu_2k+1 = z_2k + M_k(LN(z_2k))
        F = sum_l 1/2 |z_l - mu_l|^2 - 1/v sum_t log softmax(V LN(z_last))_{t, y_t}

    over ``l = 1 .. 2 depth + 1`` and all positions t. So the positions of a sample
    are one energy, as attention joins them. Normalization is inside of the branches (arXiv:2002.04745).

    Args:
        symbols: how many there are; an input is ``[B, T]`` of an integer dtype, and so is a target.
        length: T, or the most that it may be: each batch has its own.
        width: of the states.
        heads: of attention.
        depth: how many layers.
        causal: whether a position sees those up to itself alone, as where it predicts what comes next.
        variance: v, what the output's energy is divided by. The larger it is, the less the states give way to the
            targets, and the nearer what weights learn is to backpropagation.

    Returns:
        The network; `predict` gives logits ``[B, symbols, T]``, as `torch.nn.functional.cross_entropy` takes them.

    Raises:
        TypeError: a number is no int, or `variance` no number.
        ValueError: one is below 1, `variance` is not above 0, or `width` is no multiple of `heads`.
    """
    for name, value in {"symbols": symbols, "length": length, "width": width, "heads": heads, "depth": depth}.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    edges: list[nn.Module] = [Embedding(symbols, length, width)]
    for _ in range(depth):
        perceptron = (nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        edges.append(Skip(nn.Sequential(nn.LayerNorm(width), SelfAttention(width, heads, causal))))
        edges.append(Skip(nn.Sequential(nn.LayerNorm(width), *perceptron)))
    edges.append(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, symbols), _ClassesFirst()))
    make_output, temperature = output_of("categorical", variance)
    nodes = [FixedNode(None, symbols), *(StandardGaussianNode(None, width) for _ in edges[1:])]
    return PCN([*nodes, make_output(symbols, None)], edges, _OneHot(symbols, length), temperature)
