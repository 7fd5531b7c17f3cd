"""Every operator of the ``pyromancy`` namespace: its signature and its shape rules.

This is the only place where operators are defined. Backends add implementations for dispatch keys:
`reference` for every device, the compiled module for ``CPU`` and ``CUDA``, Triton for ``CUDA``.

Shapes: a state is ``[B, *node]``, one row per sample. ``logvar`` broadcasts against the node dimensions
(``[]``, ``[*node]``, or size 1 where positions share a variance). Multivariate states are ``[B, P, n]``:
P positions that share one n x n covariance. Within one call every tensor has the same dtype and device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

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
    # value <- value - lr (error - feedback), feedback being 0 where it is None
    "estep_": "(Tensor(a!) value, Tensor error, Tensor? feedback, float lr) -> ()",
    # the same descent with the momentum of torch.optim.SGD; `buffer` holds the velocity
    "estep_momentum_": (
        "(Tensor(a!) value, Tensor(b!) buffer, Tensor error, Tensor? feedback, "
        "float lr, float momentum, float dampening, bool nesterov) -> ()"
    ),
    # all E-steps of a chain of nodes [B, n], in place on the free states; see `infer_chain_` in chain.py
    "infer_chain_": (
        "(Tensor(a!)[] states, Tensor[] weights, Tensor?[] biases, Tensor?[] precisions, Tensor? prior, "
        "Tensor?[] grams, int[] activations, float[] parameters, bool[] predicted, bool[] free, int steps, float lr, "
        "Tensor(b!)[] velocities, float momentum, float dampening, bool nesterov, bool resume, "
        'Tensor(c!)? energies, str precision="highest") -> Tensor[]'
    ),
    # gradients of the chain's batch-mean energy for weights and biases, and what those for variances are made of
    "chain_mstep": (
        "(Tensor[] states, Tensor[] weights, Tensor?[] biases, Tensor?[] precisions, Tensor? prior, "
        "int[] activations, float[] parameters, bool[] predicted, "
        "bool[] for_weight, bool[] for_bias, bool[] for_precision, Tensor[] known) -> Tensor[]"
    ),
}

library = torch.library.Library(NAMESPACE, "DEF")
for _name, _signature in SCHEMAS.items():
    library.define(_name + _signature)

_check = torch._check


def _check_state(value: Tensor, pred: Tensor, *others: Tensor | None) -> None:
    _check(value.dim() >= 1, lambda: f"value must have a batch dimension, got shape {tuple(value.shape)}")
    _check(
        value.shape == pred.shape,
        lambda: f"pred must have the shape of value {tuple(value.shape)}, got {tuple(pred.shape)}",
    )
    for t in (pred, *others):
        if t is not None:
            _check(t.dtype == value.dtype, lambda t=t: f"expected dtype {value.dtype} of value, got {t.dtype}")
            _check(t.device == value.device, lambda t=t: f"expected device {value.device} of value, got {t.device}")


def _check_logvar(value: Tensor, logvar: Tensor | None) -> None:
    if logvar is None or logvar.dim() == 0:
        return
    node = value.shape[1:]
    _check(
        logvar.dim() == len(node) and all(a in (1, b) for a, b in zip(logvar.shape, node, strict=True)),
        lambda: f"logvar must broadcast against the node dimensions {tuple(node)}, got shape {tuple(logvar.shape)}",
    )


def _check_batch(name: str, t: Tensor, value: Tensor) -> None:
    _check(
        t.dim() == 1 and t.shape[0] == value.shape[0],
        lambda: f"{name} must have shape ({value.shape[0]},), got {tuple(t.shape)}",
    )


def _check_factor(value: Tensor, factor: Tensor) -> None:
    _check(value.dim() == 3, lambda: f"value must have shape [B, P, n], got {tuple(value.shape)}")
    n = value.shape[2]
    _check(
        factor.dim() == 2 and factor.shape[0] == n and factor.shape[1] == n,
        lambda: f"factor must have shape ({n}, {n}), got {tuple(factor.shape)}",
    )


@torch.library.register_fake(f"{NAMESPACE}::gaussian_energy", lib=library)
def _(value: Tensor, pred: Tensor, logvar: Tensor | None) -> Tensor:
    _check_state(value, pred, logvar)
    _check_logvar(value, logvar)
    return value.new_empty(value.shape[:1])


@torch.library.register_fake(f"{NAMESPACE}::gaussian_energy_backward", lib=library)
def _(grad: Tensor, value: Tensor, pred: Tensor, logvar: Tensor | None) -> tuple[Tensor, Tensor]:
    _check_state(value, pred, logvar, grad)
    _check_logvar(value, logvar)
    _check_batch("grad", grad, value)
    return torch.empty_like(value), torch.empty_like(pred)


@torch.library.register_fake(f"{NAMESPACE}::gaussian_energy_backward_logvar", lib=library)
def _(grad: Tensor, value: Tensor, pred: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _check_state(value, pred, logvar, grad)
    _check_logvar(value, logvar)
    _check_batch("grad", grad, value)
    return torch.empty_like(value), torch.empty_like(pred), logvar.new_empty(logvar.shape)


@torch.library.register_fake(f"{NAMESPACE}::gaussian_error", lib=library)
def _(value: Tensor, pred: Tensor, logvar: Tensor | None, weight: Tensor | None) -> Tensor:
    _check_state(value, pred, logvar, weight)
    _check_logvar(value, logvar)
    if weight is not None:
        _check_batch("weight", weight, value)
    return torch.empty_like(value)


@torch.library.register_fake(f"{NAMESPACE}::cholesky_factor", lib=library)
def _(logdiag: Tensor, offtril: Tensor) -> Tensor:
    _check(logdiag.dim() == 1, lambda: f"logdiag must have one dimension, got shape {tuple(logdiag.shape)}")
    n = logdiag.shape[0]
    _check(
        offtril.dim() == 2 and offtril.shape[0] == n and offtril.shape[1] == n,
        lambda: f"offtril must have shape ({n}, {n}), got {tuple(offtril.shape)}",
    )
    _check(offtril.dtype == logdiag.dtype, lambda: f"expected dtype {logdiag.dtype} of logdiag, got {offtril.dtype}")
    return offtril.new_empty(offtril.shape)


@torch.library.register_fake(f"{NAMESPACE}::cholesky_factor_backward", lib=library)
def _(grad: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    _check(
        factor.dim() == 2 and factor.shape == grad.shape,
        lambda: f"grad must have the shape of factor {tuple(factor.shape)}, got {tuple(grad.shape)}",
    )
    _check(grad.dtype == factor.dtype, lambda: f"expected dtype {factor.dtype} of factor, got {grad.dtype}")
    return factor.new_empty(factor.shape[:1]), factor.new_empty(factor.shape)


@torch.library.register_fake(f"{NAMESPACE}::multivariate_energy", lib=library)
def _(value: Tensor, pred: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    _check_state(value, pred, factor)
    _check_factor(value, factor)
    return value.new_empty(value.shape[:1]), value.new_empty(value.shape)


@torch.library.register_fake(f"{NAMESPACE}::multivariate_energy_backward", lib=library)
def _(grad: Tensor, whitened: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    _check_state(whitened, whitened, factor, grad)
    _check_factor(whitened, factor)
    _check_batch("grad", grad, whitened)
    return whitened.new_empty(whitened.shape), whitened.new_empty(whitened.shape)


@torch.library.register_fake(f"{NAMESPACE}::multivariate_energy_backward_factor", lib=library)
def _(grad: Tensor, whitened: Tensor, grad_value: Tensor, factor: Tensor) -> Tensor:
    _check_state(whitened, grad_value, factor, grad)
    _check_factor(whitened, factor)
    _check_batch("grad", grad, whitened)
    return factor.new_empty(factor.shape)


@torch.library.register_fake(f"{NAMESPACE}::multivariate_error", lib=library)
def _(value: Tensor, pred: Tensor, factor: Tensor) -> Tensor:
    _check_state(value, pred, factor)
    _check_factor(value, factor)
    return value.new_empty(value.shape)


@torch.library.register_fake(f"{NAMESPACE}::estep_", lib=library)
def _(value: Tensor, error: Tensor, feedback: Tensor | None, lr: float) -> None:
    _check_estep(value, lr, error=error, feedback=feedback)


@torch.library.register_fake(f"{NAMESPACE}::estep_momentum_", lib=library)
def _(
    value: Tensor,
    buffer: Tensor,
    error: Tensor,
    feedback: Tensor | None,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
) -> None:
    _check_estep(value, lr, buffer=buffer, error=error, feedback=feedback)


def _check_estep(value: Tensor, lr: float, **others: Tensor | None) -> None:
    _check(math.isfinite(lr), lambda: f"lr must be finite, got {lr}")
    for name, t in others.items():
        if t is not None:
            _check(
                t.shape == value.shape,
                lambda name=name, t=t: (
                    f"{name} must have the shape of value {tuple(value.shape)}, got {tuple(t.shape)}"
                ),
            )
            _check(t.dtype == value.dtype, lambda name=name, t=t: f"{name} must be {value.dtype}, got {t.dtype}")


def _check_chain(states: list[Tensor], weights: list[Tensor]) -> None:
    for i, weight in enumerate(weights):
        expected = (states[i + 1].shape[1], states[i].shape[1])
        _check(
            tuple(weight.shape) == expected,
            lambda i=i, weight=weight, expected=expected: (
                f"weights[{i}] must have shape {expected}, got {tuple(weight.shape)}"
            ),
        )


@torch.library.register_fake(f"{NAMESPACE}::infer_chain_", lib=library)
def _(
    states: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor | None],
    precisions: list[Tensor | None],
    prior: Tensor | None,
    grams: list[Tensor | None],
    activations: list[int],
    parameters: list[float],
    predicted: list[bool],
    free: list[bool],
    *_: object,
) -> list[Tensor]:
    _check_chain(states, weights)
    if states[0].device.type == "cuda":
        return []
    kept = kept_predictions(weights, activations, predicted, free)
    table = torch.empty(len(kept), 2, dtype=torch.int64)
    return [*(torch.empty_like(states[edge + 1]) for edge in kept), table]


def kept_predictions(
    weights: list[Tensor], activations: list[int], predicted: list[bool], free: list[bool]
) -> list[int]:
    """The edges whose prediction `infer_chain_` returns: from clamped nodes, with no activation after the product."""
    return [
        edge
        for edge, weight in enumerate(weights)
        if predicted[edge + 1] and not free[edge] and activations[2 * edge + 1] == 0 and weight.is_contiguous()
    ]


@torch.library.register_fake(f"{NAMESPACE}::chain_mstep", lib=library)
def _(
    states: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor | None],
    precisions: list[Tensor | None],
    prior: Tensor | None,
    activations: list[int],
    parameters: list[float],
    predicted: list[bool],
    for_weight: list[bool],
    for_bias: list[bool],
    for_precision: list[bool],
    known: list[Tensor],
) -> list[Tensor]:
    _check_chain(states, weights)
    results = [w.new_empty(w.shape) for w, wanted in zip(weights, for_weight, strict=True) if wanted]
    results += [w.new_empty(w.shape[0]) for w, wanted in zip(weights, for_bias, strict=True) if wanted]
    for state, precision, wanted in zip(states, precisions, for_precision, strict=True):
        if wanted:
            full = precision is not None and precision.dim() == 2
            results.append(state.new_empty(state.shape[1:] * (2 if full else 1)))
    return results
