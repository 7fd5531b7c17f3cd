"""What the operators ask of their arguments, once for fakes, the reference and Triton; `csrc/check.h` asks the same.

`CHECKS` has a function for every operator, with the operator's arguments, that looks at no element and no address: a
fake tensor passes through it. `MEMORY` has one more for those that write in place, which looks at addresses. A message
names the argument, what it must be and what it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .activations import ACTIVATIONS

MATMUL_PRECISIONS = ("highest", "high", "medium")
_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_check = torch._check


def _floating(name: str, t: Tensor) -> None:
    _check(t.dtype in _FLOATING, lambda: f"{name} must be float32, float64, bfloat16 or float16, got {t.dtype}")


def _like(name: str, t: Tensor, like_name: str, like: Tensor) -> None:
    _check(t.dtype == like.dtype, lambda: f"{name} must have dtype {like.dtype} of {like_name}, got {t.dtype}")
    _check(
        t.device == like.device, lambda: f"{name} must be on the device of {like_name}, {like.device}, got {t.device}"
    )


def _same(name: str, t: Tensor, like_name: str, like: Tensor) -> None:
    _like(name, t, like_name, like)
    _check(
        t.shape == like.shape,
        lambda: f"{name} must have the shape of {like_name} {tuple(like.shape)}, got {tuple(t.shape)}",
    )


def _shaped(name: str, t: Tensor, *shapes: tuple[int, ...]) -> None:
    _check(
        tuple(t.shape) in shapes,
        lambda: f"{name} must have shape {' or '.join(map(str, shapes))}, got {tuple(t.shape)}",
    )


def _contiguous(name: str, t: Tensor) -> None:
    _check(t.is_contiguous(), lambda: f"{name} must be contiguous, got strides {t.stride()}")


def _finite(**numbers: float) -> None:
    for name, x in numbers.items():
        _check(math.isfinite(x), lambda name=name, x=x: f"{name} must be finite, got {x}")


def _per_sample(name: str, t: Tensor, like_name: str, like: Tensor) -> None:
    _like(name, t, like_name, like)
    _shaped(name, t, (like.shape[0],))


def _gaussian(value: Tensor, pred: Tensor, logvar: Tensor | None, **per_sample: Tensor | None) -> None:
    _floating("value", value)
    _check(value.dim() >= 1, lambda: "value must have a batch dimension, got shape ()")
    _same("pred", pred, "value", value)
    if logvar is not None:
        _like("logvar", logvar, "value", value)
        node = value.shape[1:]
        _check(
            logvar.dim() == 0
            or (logvar.dim() == len(node) and all(a in (1, b) for a, b in zip(logvar.shape, node, strict=True))),
            lambda: f"logvar must broadcast against the node dimensions {tuple(node)}, got shape {tuple(logvar.shape)}",
        )
    for name, t in per_sample.items():
        if t is not None:
            _per_sample(name, t, "value", value)


def _gaussian_backward(grad: Tensor, value: Tensor, pred: Tensor, logvar: Tensor | None) -> None:
    _gaussian(value, pred, logvar, grad=grad)


def _gaussian_error(value: Tensor, pred: Tensor, logvar: Tensor | None, weight: Tensor | None) -> None:
    _gaussian(value, pred, logvar, weight=weight)


def _cholesky_factor(logdiag: Tensor, offtril: Tensor) -> None:
    _check(logdiag.dim() == 1, lambda: f"logdiag must have one dimension, got shape {tuple(logdiag.shape)}")
    _floating("logdiag", logdiag)
    _like("offtril", offtril, "logdiag", logdiag)
    _shaped("offtril", offtril, (logdiag.shape[0], logdiag.shape[0]))


def _cholesky_factor_backward(grad: Tensor, factor: Tensor) -> None:
    _check(factor.dim() == 2, lambda: f"factor must have shape [n, n], got {tuple(factor.shape)}")
    _floating("factor", factor)
    _shaped("factor", factor, (factor.shape[0], factor.shape[0]))
    _same("grad", grad, "factor", factor)


def _with_factor(name: str, state: Tensor, factor: Tensor) -> None:
    _floating(name, state)
    _check(state.dim() == 3, lambda: f"{name} must have shape [B, P, n], got {tuple(state.shape)}")
    _like("factor", factor, name, state)
    _shaped("factor", factor, (state.shape[2], state.shape[2]))


def _multivariate(value: Tensor, pred: Tensor, factor: Tensor) -> None:
    _with_factor("value", value, factor)
    _same("pred", pred, "value", value)


def _multivariate_energy_backward(grad: Tensor, whitened: Tensor, factor: Tensor) -> None:
    _with_factor("whitened", whitened, factor)
    _per_sample("grad", grad, "whitened", whitened)


def _multivariate_energy_backward_factor(grad: Tensor, whitened: Tensor, grad_value: Tensor, factor: Tensor) -> None:
    _multivariate_energy_backward(grad, whitened, factor)
    _same("grad_value", grad_value, "whitened", whitened)


def _estep(value: Tensor, error: Tensor, feedback: Tensor | None, lr: float) -> None:
    _floating("value", value)
    _same("error", error, "value", value)
    if feedback is not None:
        _same("feedback", feedback, "value", value)
    _finite(lr=lr)


def _estep_momentum(
    value: Tensor,
    buffer: Tensor,
    error: Tensor,
    feedback: Tensor | None,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
) -> None:
    _estep(value, error, feedback, lr)
    _same("buffer", buffer, "value", value)
    _finite(momentum=momentum, dampening=dampening)


def _entries(name: str, entries: Sequence[object], expected: int, count: int) -> None:
    _check(
        len(entries) == expected,
        lambda: f"{name} must have {expected} entries for {count} states, got {len(entries)}",
    )


def _chain(
    states: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor | None],
    precisions: list[Tensor | None],
    prior: Tensor | None,
    activations: list[int],
    parameters: list[float],
    predicted: list[bool],
) -> None:
    _check(len(states) > 0, lambda: "states must not be empty")
    first, count = states[0], len(states)
    dtype = first.dtype
    _check(dtype in (torch.float32, torch.float64), lambda: f"states must be float32 or float64, got {dtype}")
    for name, per_edge in (("weights", weights), ("biases", biases)):
        _entries(name, per_edge, count - 1, count)
    for name, per_side in (("activations", activations), ("parameters", parameters)):
        _entries(name, per_side, 2 * (count - 1), count)
    for name, per_node in (("precisions", precisions), ("predicted", predicted)):
        _entries(name, per_node, count, count)
    for i, z in enumerate(states):
        _check(z.dim() == 2, lambda i=i, z=z: f"states[{i}] must have shape (B, n), got {tuple(z.shape)}")
        _like(f"states[{i}]", z, "states[0]", first)
        _shaped(f"states[{i}]", z, (first.shape[0], z.shape[1]))
        _contiguous(f"states[{i}]", z)
    for i, (z, precision) in enumerate(zip(states, precisions, strict=True)):
        if precision is not None:
            n = z.shape[1]
            _like(f"precisions[{i}]", precision, "states[0]", first)
            _shaped(f"precisions[{i}]", precision, (n,), (n, n))
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        _like(f"weights[{i}]", weight, "states[0]", first)
        _shaped(f"weights[{i}]", weight, (states[i + 1].shape[1], states[i].shape[1]))
        if bias is not None:
            _like(f"biases[{i}]", bias, "states[0]", first)
            _shaped(f"biases[{i}]", bias, (weight.shape[0],))
    for kind in activations:
        _check(
            0 <= kind < len(ACTIVATIONS),
            lambda kind=kind: f"activations must be from 0 to {len(ACTIVATIONS) - 1}, got {kind}",
        )
    if prior is not None:
        n = first.shape[1]
        _like("prior", prior, "states[0]", first)
        _shaped("prior", prior, (1, n), (first.shape[0], n))
    _check(predicted[0] == (prior is not None), lambda: "predicted[0] must be true exactly where there is a prior")


def _infer_chain(
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
    steps: int,
    lr: float,
    velocities: list[Tensor],
    momentum: float,
    dampening: float,
    nesterov: bool,
    resume: bool,
    energies: Tensor | None,
    matmul_precision: str = "highest",
) -> None:
    _chain(states, weights, biases, precisions, prior, activations, parameters, predicted)
    first, count = states[0], len(states)
    _finite(lr=lr, momentum=momentum, dampening=dampening)
    _check(steps >= 0, lambda: f"steps must not be negative, got {steps}")
    _check(
        matmul_precision in MATMUL_PRECISIONS,
        lambda: f"matmul_precision must be highest, high or medium, got {matmul_precision}",
    )
    _entries("grams", grams, count - 1, count)
    _entries("free", free, count, count)
    if velocities:
        _entries("velocities", velocities, count, count)
    for i, velocity in enumerate(velocities):
        if free[i]:
            _same(f"velocities[{i}]", velocity, f"states[{i}]", states[i])
            _contiguous(f"velocities[{i}]", velocity)
    for i, gram in enumerate(grams):
        if gram is None:
            continue
        _check(
            energies is None,
            lambda i=i: f"grams[{i}] must be None where energies are recorded, which take the errors",
        )
        n = states[i].shape[1]
        _like(f"grams[{i}]", gram, "states[0]", first)
        _shaped(f"grams[{i}]", gram, (n, n))
        precision = precisions[i + 1]
        full = precision is not None and precision.dim() == 2
        _check(
            free[i] and not free[i + 1] and predicted[i + 1] and activations[2 * i + 1] == 0 and not full,
            lambda i=i: (
                f"grams[{i}] needs a free source, a clamped target that is predicted and has no matrix for its "
                "precision, and no activation after the product"
            ),
        )
    if energies is not None:
        _like("energies", energies, "states[0]", first)
        _shaped("energies", energies, (steps, count, first.shape[0]))
        _contiguous("energies", energies)


def _chain_mstep(
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
) -> None:
    _chain(states, weights, biases, precisions, prior, activations, parameters, predicted)
    count = len(states)
    for name, wanted, offset in (
        ("for_weight", for_weight, 1),
        ("for_bias", for_bias, 1),
        ("for_precision", for_precision, 0),
    ):
        _entries(name, wanted, count - offset, count)
        for i, wants in enumerate(wanted):
            _check(
                predicted[i + offset] or not wants,
                lambda name=name, i=i, node=i + offset: f"{name}[{i}] needs a predicted node, and node {node} is not",
            )


CHECKS: dict[str, Callable[..., None]] = {
    "gaussian_energy": _gaussian,
    "gaussian_energy_backward": _gaussian_backward,
    "gaussian_energy_backward_logvar": _gaussian_backward,
    "gaussian_error": _gaussian_error,
    "cholesky_factor": _cholesky_factor,
    "cholesky_factor_backward": _cholesky_factor_backward,
    "multivariate_energy": _multivariate,
    "multivariate_energy_backward": _multivariate_energy_backward,
    "multivariate_energy_backward_factor": _multivariate_energy_backward_factor,
    "multivariate_error": _multivariate,
    "estep_": _estep,
    "estep_momentum_": _estep_momentum,
    "infer_chain_": _infer_chain,
    "chain_mstep": _chain_mstep,
}


def _bytes(t: Tensor) -> range:
    """The addresses from a tensor's first element to past its last."""
    first = t.data_ptr()
    if t.numel() == 0:
        return range(first, first)
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return range(first, first + (last + 1) * t.element_size())


def _has_no_gaps(t: Tensor) -> bool:
    """Whether all between the first and the last element of a tensor is its own."""
    step = 1
    for stride, size in sorted((s, n) for n, s in zip(t.shape, t.stride(), strict=True) if n != 1 and s != 0):
        if stride != step:
            return False
        step *= size
    return True


def _same_elements(a: Tensor, b: Tensor) -> bool:
    if a.data_ptr() != b.data_ptr() or a.shape != b.shape:
        return False
    return all(n <= 1 or s == t for n, s, t in zip(a.shape, a.stride(), b.stride(), strict=True))


def _apart(name: str, written: Tensor, other_name: str, other: Tensor, may_be_same: bool = False) -> None:
    """What is written is not read as another operand's elements, as far as this can be told without a search."""
    a, b = _bytes(written), _bytes(other)
    if not (a.start < b.stop and b.start < a.stop) or (may_be_same and _same_elements(written, other)):
        return
    _check(
        not (_has_no_gaps(written) and _has_no_gaps(other)),
        lambda: f"{name} is written in place and must not overlap {other_name} in memory; clone one of them",
    )


def _not_expanded(name: str, t: Tensor) -> None:
    _check(
        all(stride != 0 or size <= 1 for size, stride in zip(t.shape, t.stride(), strict=True)),
        lambda: (
            f"{name} is written in place and must not be expanded, got strides {t.stride()} of shape {tuple(t.shape)}"
        ),
    )


def _estep_memory(value: Tensor, error: Tensor, feedback: Tensor | None, *_: object) -> None:
    _not_expanded("value", value)
    _apart("value", value, "error", error, may_be_same=True)
    if feedback is not None:
        _apart("value", value, "feedback", feedback, may_be_same=True)


def _estep_momentum_memory(value: Tensor, buffer: Tensor, error: Tensor, feedback: Tensor | None, *_: object) -> None:
    _estep_memory(value, error, feedback)
    _not_expanded("buffer", buffer)
    _apart("value", value, "buffer", buffer)
    _apart("buffer", buffer, "error", error, may_be_same=True)
    if feedback is not None:
        _apart("buffer", buffer, "feedback", feedback, may_be_same=True)


def _infer_chain_memory(
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
    steps: int,
    lr: float,
    velocities: list[Tensor],
    momentum: float,
    dampening: float,
    nesterov: bool,
    resume: bool,
    energies: Tensor | None,
    *_: object,
) -> None:
    def named(name: str, tensors: Sequence[Tensor | None], those: Sequence[bool] | None = None) -> Iterator[Any]:
        return ((f"{name}[{i}]", t) for i, t in enumerate(tensors) if t is not None and (those is None or those[i]))

    written = [*named("states", states, free), *named("velocities", velocities, free)]
    if energies is not None:
        written.append(("energies", energies))
    read = [
        *named("states", states, [not f for f in free]), *named("weights", weights), *named("biases", biases),
        *named("precisions", precisions), *named("grams", grams),
    ]  # fmt: skip
    if prior is not None:
        read.append(("prior", prior))
    for i, (name, t) in enumerate(written):
        for other_name, other in [*written[:i], *written[i + 1 :], *read]:
            _apart(name, t, other_name, other)


MEMORY: dict[str, Callable[..., None]] = {
    "estep_": _estep_memory,
    "estep_momentum_": _estep_momentum_memory,
    "infer_chain_": _infer_chain_memory,
}


def check(operator: str, args: tuple[Any, ...]) -> None:
    """Refuse what an operator's kernels would."""
    CHECKS[operator](*args)
    if memory := MEMORY.get(operator):
        memory(*args)
