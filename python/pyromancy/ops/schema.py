"""Every operator of the ``pyromancy`` namespace: its signature and its shape rules.

This is the only place where operators are defined. Backends add implementations for dispatch keys:
`reference` for every device, the compiled module for ``CPU`` and ``CUDA``, Triton for ``CUDA``.

Shapes: a state is ``[B, *node]``, one row per sample. ``logvar`` broadcasts against the node dimensions
(``[]``, ``[*node]``, or size 1 where positions share a variance). Multivariate states are ``[B, P, n]``:
P positions that share one n x n covariance. Within one call every tensor has the same dtype and device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checks import CHECKS

if TYPE_CHECKING:
    from collections.abc import Callable

NAMESPACE = "pyromancy"

SCHEMAS: dict[str, str] = {
    # 1/2 sum (value - pred)^2 / exp(logvar) + 1/2 log-determinant, per sample: [B]
    "gaussian_energy": "(Tensor value, Tensor pred, Tensor? logvar) -> Tensor",
    # its gradients for value and pred, given grad [B]
    "gaussian_energy_backward": "(Tensor grad, Tensor value, Tensor pred, Tensor? logvar) -> (Tensor, Tensor)",
    # the same pass with the gradient for logvar as well
    "gaussian_energy_backward_logvar": (
        "(Tensor grad, Tensor value, Tensor pred, Tensor logvar) -> (Tensor, Tensor, Tensor)"
    ),
    # weight (value - pred) / exp(logvar), weight [B] being 1 where it is None
    "gaussian_error": "(Tensor value, Tensor pred, Tensor? logvar, Tensor? weight) -> Tensor",
    # L = tril(offtril, -1) + diag(exp(logdiag))
    "cholesky_factor": "(Tensor logdiag, Tensor offtril) -> Tensor",
    # its gradients for logdiag and offtril, given grad and L
    "cholesky_factor_backward": "(Tensor grad, Tensor factor) -> (Tensor, Tensor)",
    # 1/2 |u|^2 + P sum log diag(L) per sample, and the whitened residual u = L^-1 (value - pred) itself
    "multivariate_energy": "(Tensor value, Tensor pred, Tensor factor) -> (Tensor, Tensor)",
    # grad L^-T u and its negative: the gradients for value and pred
    "multivariate_energy_backward": "(Tensor grad, Tensor whitened, Tensor factor) -> (Tensor, Tensor)",
    # the gradient for L, given the gradient for value that multivariate_energy_backward returned
    "multivariate_energy_backward_factor": (
        "(Tensor grad, Tensor whitened, Tensor grad_value, Tensor factor) -> Tensor"
    ),
    # (L L^T)^-1 (value - pred)
    "multivariate_error": "(Tensor value, Tensor pred, Tensor factor) -> Tensor",
    # value <- value - lr (error - feedback), feedback being 0 where it is None; with the momentum of torch.optim.SGD
    # where there is a buffer, which holds the velocity
    "estep_": (
        "(Tensor(a!) value, Tensor(b!)? buffer, Tensor error, Tensor? feedback, "
        "float lr, float momentum, float dampening, bool nesterov) -> ()"
    ),
    # E-steps and learning of a network of nodes [B, n], as a plan says; see `run_plan_` in run_plan.py
    "run_plan_": "(Tensor(a!)[] written, Tensor[] read, int[] plan, float[] numbers) -> ()",
    # programs of element-wise operations on tensors of one shape; see `elementwise_` in elementwise.py
    "elementwise_": "(Tensor(a!)[] written, Tensor[] read, int[] instructions, int[] results, float[] numbers) -> ()",
    # out = softmax(scale query key^T) value of every head, all [batch, heads, length, width]; where causal, no query
    # meets a key behind its own place
    "attention_": ("(Tensor(a!) out, Tensor query, Tensor key, Tensor value, bool causal, float scale) -> ()"),
    # its gradients for query, key and value, in grads [3, batch, heads, length, width], given grad
    "attention_backward_": (
        "(Tensor(a!) grads, Tensor grad, Tensor query, Tensor key, Tensor value, bool causal, float scale) -> ()"
    ),
    # out = weight (input - mean) / sqrt(variance + eps) + bias of every row [..., n]; weight 1 and bias 0 where None
    "layer_norm_": "(Tensor(a!) out, Tensor input, Tensor? weight, Tensor? bias, float eps) -> ()",
    # its gradient for input, given grad
    "layer_norm_backward_": "(Tensor(a!) out, Tensor grad, Tensor input, Tensor? weight, float eps) -> ()",
    # per sample, of a step s, the gradients g at its end and h at its start, and y = g - h, in float64 [9, B]:
    # g.g, g.s, g.y, h.h, h.s, h.y, s.s, s.y, y.y
    "secant_products_": "(Tensor(a!) out, Tensor gradient, Tensor before, Tensor step) -> ()",
}


def _define() -> torch.library.Library:
    """The library that this package registers with: operators are the process's, and outlive the modules.

    Imported or loaded again, the package keeps to what it registered before and adds what is missing, as after an
    import that was interrupted: other objects may hold these operators, and would crash if they went.
    """
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    torch.library._keep_alive.append(library)
    for name, signature in SCHEMAS.items():
        wanted = torch._C.parse_schema(f"{NAMESPACE}::{name}{signature}")
        try:
            defined = torch._C._get_schema(wanted.name, wanted.overload_name)
        except RuntimeError:
            library.define(name + signature)
        else:
            if defined != wanted:
                raise RuntimeError(
                    f"another version of pyromancy has defined {defined} in this process, and this one needs {wanted}; "
                    "start Python anew"
                )
    return library


def registered(name: str, key: str) -> bool:
    """Whether an operator has a kernel for a dispatch key."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key)


library = _define()


def _fake(name: str, outputs: Callable[..., Any]) -> None:
    """Register the fake of an operator: its checks, and what comes out of it."""

    def fake(*args: Any, **kwargs: Any) -> Any:
        CHECKS[name](*args, **kwargs)
        return outputs(*args, **kwargs)

    if not registered(name, "Meta"):
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)


def _faked(outputs: Callable[..., Any]) -> None:
    """The same of the operator that a function is named after."""
    _fake(outputs.__name__, outputs)


@_faked
def gaussian_energy(value: Tensor, pred: Tensor, logvar: Tensor | None) -> Tensor:
    return value.new_empty(value.shape[:1])


@_faked
def gaussian_energy_backward(grad: Tensor, value: Tensor, pred: Tensor, logvar: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(value), torch.empty_like(pred)


@_faked
def gaussian_energy_backward_logvar(
    grad: Tensor, value: Tensor, pred: Tensor, logvar: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(value), torch.empty_like(pred), logvar.new_empty(logvar.shape)


@_faked
def gaussian_error(value: Tensor, pred: Tensor, logvar: Tensor | None, weight: Tensor | None) -> Tensor:
    return torch.empty_like(value)


@_faked
def cholesky_factor(logdiag: Tensor, offtril: Tensor) -> Tensor:
    return offtril.new_empty(offtril.shape)


@_faked
def cholesky_factor_backward(grad: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    return factor.new_empty(factor.shape[:1]), factor.new_empty(factor.shape)


@_faked
def multivariate_energy(value: Tensor, pred: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    return value.new_empty(value.shape[:1]), value.new_empty(value.shape)


@_faked
def multivariate_energy_backward(grad: Tensor, whitened: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    return whitened.new_empty(whitened.shape), whitened.new_empty(whitened.shape)


@_faked
def multivariate_energy_backward_factor(grad: Tensor, whitened: Tensor, grad_value: Tensor, factor: Tensor) -> Tensor:
    return factor.new_empty(factor.shape)


@_faked
def multivariate_error(value: Tensor, pred: Tensor, factor: Tensor) -> Tensor:
    return value.new_empty(value.shape)


for _name, _signature in SCHEMAS.items():
    if _signature.endswith("-> ()"):  # which give nothing, and write
        _fake(_name, lambda *_, **__: None)
