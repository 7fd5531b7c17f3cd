"""The activations of a chain's edges, as functions and derivatives; their numbers are the C++ kernels' too."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SELU_SCALE = 1.0507009873554804934  # as torch has it, and -f(-infinity)
SELU_DEPTH = 1.6732632423543772848 * SELU_SCALE


def _softplus_slope(x: Tensor, beta: float) -> Tensor:
    return torch.where(beta * x > 20, 1.0, torch.sigmoid(beta * x))


def _gelu_tanh_slope(x: Tensor) -> Tensor:
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(scale * (x + cubic * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * scale * (1 + 3 * cubic * x * x)


# The activations of edges, in the order of their numbers in plans: name -> f(x, parameter), f'(x, parameter)
ACTIVATIONS: dict[str, tuple[Callable[[Tensor, float], Tensor], Callable[[Tensor, float], Tensor]]] = {
    "identity": (lambda x, _: x, lambda x, _: torch.ones_like(x)),
    "relu": (lambda x, _: torch.relu(x), lambda x, _: (x > 0).to(x.dtype)),
    "leaky_relu": (lambda x, p: F.leaky_relu(x, p), lambda x, p: torch.where(x > 0, torch.ones_like(x), p)),
    "elu": (lambda x, p: F.elu(x, p), lambda x, p: torch.where(x > 0, 1.0, p * torch.exp(x))),
    "silu": (
        lambda x, _: F.silu(x),
        lambda x, _: torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x))),
    ),
    "gelu": (
        lambda x, _: F.gelu(x),
        lambda x, _: 0.5 * (1 + torch.erf(x * math.sqrt(0.5))) + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi),
    ),
    "gelu_tanh": (lambda x, _: F.gelu(x, approximate="tanh"), lambda x, _: _gelu_tanh_slope(x)),
    "tanh": (lambda x, _: torch.tanh(x), lambda x, _: 1 - torch.tanh(x).square()),
    "sigmoid": (lambda x, _: torch.sigmoid(x), lambda x, _: torch.sigmoid(x) * (1 - torch.sigmoid(x))),
    "softplus": (lambda x, p: F.softplus(x, p), _softplus_slope),
    "clipped_relu": (lambda x, p: F.hardtanh(x, 0.0, p), lambda x, p: ((x > 0) & (x < p)).to(x.dtype)),
    "hardtanh": (lambda x, p: F.hardtanh(x, -p, p), lambda x, p: ((x > -p) & (x < p)).to(x.dtype)),
    "selu": (lambda x, _: F.selu(x), lambda x, _: torch.where(x > 0, SELU_SCALE, SELU_DEPTH * torch.exp(x))),
}
