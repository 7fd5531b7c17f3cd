"""What the operators ask of their arguments, once for fakes, the reference and Triton; `csrc/check.h` asks the same.

`CHECKS` has a function for every operator, with the operator's arguments, that looks at no element and no address: a
fake tensor passes through it. `MEMORY` has one more for those that write in place, which looks at addresses. A message
names the argument, what it must be and what it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...plan import decode
from ...plan.elementwise import MOST_INSTRUCTIONS, MOST_OPERANDS, OPERATIONS, arity
from .conditions import alike, contiguous, finite, floating, one_per_sample, real, require, same, shaped
from .memory import MEMORY
from .plans import PlanCheck


def _gaussian(value: Tensor, pred: Tensor, logvar: Tensor | None, **per_sample: Tensor | None) -> None:
    floating("value", value)
    require(value.dim() >= 1, lambda: "value must have a batch dimension, got shape ()")
    same("pred", pred, "value", value)
    if logvar is not None:
        alike("logvar", logvar, "value", value)
        node = value.shape[1:]
        require(
            logvar.dim() == 0
            or (logvar.dim() == len(node) and all(a in (1, b) for a, b in zip(logvar.shape, node, strict=True))),
            lambda: f"logvar must broadcast against the node dimensions {tuple(node)}, got shape {tuple(logvar.shape)}",
        )
    for name, t in per_sample.items():
        if t is not None:
            one_per_sample(name, t, "value", value)


def _gaussian_backward(grad: Tensor, value: Tensor, pred: Tensor, logvar: Tensor | None) -> None:
    _gaussian(value, pred, logvar, grad=grad)


def _gaussian_error(value: Tensor, pred: Tensor, logvar: Tensor | None, weight: Tensor | None) -> None:
    _gaussian(value, pred, logvar, weight=weight)


def _cholesky_factor(logdiag: Tensor, offtril: Tensor) -> None:
    require(logdiag.dim() == 1, lambda: f"logdiag must have one dimension, got shape {tuple(logdiag.shape)}")
    floating("logdiag", logdiag)
    alike("offtril", offtril, "logdiag", logdiag)
    shaped("offtril", offtril, (logdiag.shape[0], logdiag.shape[0]))


def _cholesky_factor_backward(grad: Tensor, factor: Tensor) -> None:
    require(factor.dim() == 2, lambda: f"factor must have shape [n, n], got {tuple(factor.shape)}")
    floating("factor", factor)
    shaped("factor", factor, (factor.shape[0], factor.shape[0]))
    same("grad", grad, "factor", factor)


def _with_factor(name: str, state: Tensor, factor: Tensor) -> None:
    floating(name, state)
    require(state.dim() == 3, lambda: f"{name} must have shape [B, P, n], got {tuple(state.shape)}")
    alike("factor", factor, name, state)
    shaped("factor", factor, (state.shape[2], state.shape[2]))


def _multivariate(value: Tensor, pred: Tensor, factor: Tensor) -> None:
    _with_factor("value", value, factor)
    same("pred", pred, "value", value)


def _multivariate_energy_backward(grad: Tensor, whitened: Tensor, factor: Tensor) -> None:
    _with_factor("whitened", whitened, factor)
    one_per_sample("grad", grad, "whitened", whitened)


def _multivariate_energy_backward_factor(grad: Tensor, whitened: Tensor, grad_value: Tensor, factor: Tensor) -> None:
    _multivariate_energy_backward(grad, whitened, factor)
    same("grad_value", grad_value, "whitened", whitened)


def _estep(
    value: Tensor,
    buffer: Tensor | None,
    error: Tensor,
    feedback: Tensor | None,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
) -> None:
    floating("value", value)
    for name, t in (("buffer", buffer), ("error", error), ("feedback", feedback)):
        if t is not None:
            same(name, t, "value", value)
    finite(lr=lr, momentum=momentum, dampening=dampening)
    require(buffer is not None or momentum == 0, lambda: f"momentum must be 0 without a buffer, got {momentum}")


def _run_plan(written: list[Tensor], read: list[Tensor], ints: list[int], numbers: list[float]) -> None:
    try:
        plan = decode(ints, numbers, len(written), len(written) + len(read))
    except ValueError as error:
        raise RuntimeError(str(error)) from error
    PlanCheck(plan, [*written, *read], len(written)).check()


def _elementwise(
    written: list[Tensor], read: list[Tensor], instructions: list[int], results: list[int], numbers: list[float]
) -> None:
    require(
        0 < len(written) == len(results),
        lambda: f"written must hold a tensor for each of results, got {len(written)} and {len(results)}",
    )
    first = written[0]
    require(
        first.dtype in (torch.float32, torch.float64),
        lambda: f"written[0] must be float32 or float64, got {first.dtype}",
    )
    for name, tensors in (("written", written), ("read", read)):
        for i, t in enumerate(tensors):
            same(f"{name}[{i}]", t, "written[0]", first)
    given, operands = len(read) + len(numbers), len(written) + len(read) + len(numbers)
    require(operands <= MOST_OPERANDS, lambda: f"operands and numbers must be at most {MOST_OPERANDS}, got {operands}")
    require(
        len(instructions) % 4 == 0 and len(instructions) <= 4 * MOST_INSTRUCTIONS,
        lambda: (
            f"instructions must be four integers each, and at most {MOST_INSTRUCTIONS} of them, got "
            f"{len(instructions)} integers"
        ),
    )
    for i in range(len(instructions) // 4):
        operation, *of = instructions[4 * i : 4 * i + 4]
        require(
            0 <= operation < OPERATIONS,
            lambda i=i, of=operation: f"instruction {i} must be one of {OPERATIONS} operations, got {of}",
        )
        for value in of[: arity(operation)]:
            require(
                0 <= value < given + i,
                lambda i=i, value=value: f"instruction {i} must read values before it, got {value}",
            )
    for value in results:
        require(
            0 <= value < given + len(instructions) // 4,
            lambda value=value: f"results must be values of the program, got {value}",
        )


def _vectors(name: str, t: Tensor) -> None:
    require(
        t.stride(-1) == 1 or t.shape[-1] <= 1,
        lambda: f"{name} must have the elements of a vector side by side, got strides {t.stride()}",
    )


def _heads(query: Tensor, scale: float, **others: Tensor) -> None:
    real("query", query)
    require(
        query.dim() == 4,
        lambda: f"query must have shape [batch, heads, length, width], got {tuple(query.shape)}",
    )
    for name, t in {"query": query, **others}.items():
        same(name, t, "query", query)
        _vectors(name, t)
    finite(scale=scale)


def _attention(out: Tensor, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> None:
    _heads(query, scale, key=key, value=value, out=out)


def _attention_backward(
    grads: Tensor, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float
) -> None:
    _heads(query, scale, key=key, value=value, grad=grad)
    alike("grads", grads, "query", query)
    require(
        grads.shape == (3, *query.shape),
        lambda: f"grads must hold three tensors of the shape of query {tuple(query.shape)}, got {tuple(grads.shape)}",
    )
    _vectors("grads", grads)


def _rows(input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, **others: Tensor) -> None:
    real("input", input)
    require(input.dim() >= 1, lambda: "input must have a dimension, got shape ()")
    for name, t in {"input": input, **others}.items():
        same(name, t, "input", input)
        contiguous(name, t)
    for name, of in (("weight", weight), ("bias", bias)):
        if of is not None:
            alike(name, of, "input", input)
            require(
                of.shape == input.shape[-1:],
                lambda name=name, of=of: f"{name} must have shape ({input.shape[-1]},), got {tuple(of.shape)}",
            )
            contiguous(name, of)
    finite(eps=eps)


def _layer_norm(out: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    _rows(input, weight, bias, eps, out=out)


def _layer_norm_backward(out: Tensor, grad: Tensor, input: Tensor, weight: Tensor | None, eps: float) -> None:
    _rows(input, weight, None, eps, out=out, grad=grad)


def _secant_products(out: Tensor, gradient: Tensor, before: Tensor, step: Tensor) -> None:
    real("gradient", gradient)
    require(gradient.dim() >= 1, lambda: "gradient must have a batch dimension, got shape ()")
    same("before", before, "gradient", gradient)
    same("step", step, "gradient", gradient)
    require(out.dtype == torch.float64, lambda: f"out must be float64, got {out.dtype}")
    require(out.device == gradient.device, lambda: "out must be on the device of gradient")
    shaped("out", out, (9, gradient.shape[0]))
    contiguous("out", out)


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
    "run_plan_": _run_plan,
    "elementwise_": _elementwise,
    "attention_": _attention,
    "attention_backward_": _attention_backward,
    "layer_norm_": _layer_norm,
    "layer_norm_backward_": _layer_norm_backward,
    "secant_products_": _secant_products,
}


def check(operator: str, args: tuple[Any, ...]) -> None:
    """Refuse what an operator's kernels would."""
    CHECKS[operator](*args)
    if memory := MEMORY.get(operator):
        memory(*args)
