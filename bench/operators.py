"""The calls of operators that are timed: formulas, arguments, and what counts as moved, on any device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyromancy import functional, plan
from pyromancy.ops import schema
from pyromancy.plan.activations import ACTIVATIONS
from pyromancy.plan.elementwise import slope_of
from pyromancy.plan.expression import Op

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = {"large": (16384, 1024), "small": (64, 128), "matrix": (256, 256)}
RATE, MOMENTUM, CHAIN_STEPS = 0.05, 0.9, 8
FLOAT = 4  # bytes


def energy(value: Tensor, pred: Tensor) -> Tensor:
    return 0.5 * (value - pred).square().sum(1)


def energy_logvar(value: Tensor, pred: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (((value - pred).square() * torch.exp(-logvar)).sum(1) + logvar.sum())


def error(value: Tensor, pred: Tensor) -> Tensor:
    return value - pred


def error_logvar(value: Tensor, pred: Tensor, logvar: Tensor) -> Tensor:
    return (value - pred) * torch.exp(-logvar)


def cholesky(logdiag: Tensor, offtril: Tensor) -> Tensor:
    return offtril.tril(-1) + torch.diag(logdiag.exp())


def multivariate(value: Tensor, pred: Tensor, factor: Tensor) -> Tensor:
    whitened = torch.linalg.solve_triangular(factor, (value - pred).mT, upper=False)
    return 0.5 * whitened.square().sum(0) + factor.diagonal().log().sum()


def multivariate_error(value: Tensor, pred: Tensor, factor: Tensor) -> Tensor:
    return torch.cholesky_solve((value - pred).mT, factor).mT


def estep(value: Tensor, error: Tensor, feedback: Tensor) -> None:
    value.sub_(error - feedback, alpha=RATE)


def estep_momentum(value: Tensor, buffer: Tensor, error: Tensor, feedback: Tensor) -> None:
    buffer.mul_(MOMENTUM).add_(error - feedback)
    value.sub_(buffer, alpha=RATE)


def our_estep(value: Tensor, error: Tensor, feedback: Tensor) -> None:
    functional.estep_(value, error, feedback, lr=RATE)


def our_estep_momentum(value: Tensor, buffer: Tensor, error: Tensor, feedback: Tensor) -> None:
    functional.estep_(value, error, feedback, lr=RATE, momentum=MOMENTUM, buffer=buffer)


def chain(z1: Tensor, z2: Tensor, x: Tensor, y: Tensor, w1: Tensor, w2: Tensor, w3: Tensor) -> None:
    constant = torch.tanh(x) @ w1.T
    for _ in range(CHAIN_STEPS):
        a1, a2 = torch.tanh(z1), torch.tanh(z2)
        e2, e3 = z2 - a1 @ w2.T, y - a2 @ w3.T
        z1.sub_(z1 - constant - (1 - a1 * a1) * (e2 @ w2), alpha=RATE)
        z2.sub_(e2 - (1 - a2 * a2) * (e3 @ w3), alpha=RATE)


def mstep(z1: Tensor, z2: Tensor, x: Tensor, y: Tensor, w1: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
    gradients = []
    for z, target, w in ((x, z1, w1), (z1, z2, w2), (z2, y, w3)):
        a = torch.tanh(z)
        gradients.append((a @ w.T - target).T @ a / len(z))
    return torch.stack(gradients)


def our_plan(learning: plan.Learning) -> plan.Plan:
    """E-steps of a chain x -> z1 -> z2 -> y whose states between the ends are written, or its weights' gradients."""
    infers = learning is plan.Learning.NEVER
    x, z1, z2, y, *weights = (2, 0, 1, *range(3, 7)) if infers else range(3, 10)
    law, tanh = plan.Law.GAUSSIAN, plan.Activation(list(ACTIVATIONS).index("tanh"))
    return plan.Plan(
        (plan.Node(x, False), *(plan.Node(z, infers, law=law) for z in (z1, z2)), plan.Node(y, False, law=law)),
        tuple(plan.Edge(i, i + 1, w, before=tanh) for i, w in enumerate(weights)),
        plan.Descent(RATE), CHAIN_STEPS if infers else 0, learning=learning,
        rules=() if infers else (plan.Rule(),),
        targets=() if infers else tuple(plan.Target(plan.Learned.WEIGHT, i, 0, i) for i in range(3)),
    )  # fmt: skip


INFERENCE, GRADIENTS = (plan.encode(our_plan(when)) for when in (plan.Learning.NEVER, plan.Learning.AT_THE_END))


def our_chain(z1: Tensor, z2: Tensor, *read: Tensor) -> None:
    torch.ops.pyromancy.run_plan_([z1, z2], list(read), *INFERENCE)


def our_mstep(z1: Tensor, z2: Tensor, x: Tensor, y: Tensor, *weights: Tensor) -> Tensor:
    gradients = torch.empty(3, *weights[0].shape)
    torch.ops.pyromancy.run_plan_(list(gradients), [x, z1, z2, y, *weights], *GRADIENTS)
    return gradients


def gelu_step(z: Tensor, mu: Tensor, feedback: Tensor) -> None:
    """A step of a state that a GELU follows, as the steps of graphs fuse it."""
    z.sub_(0.1 * (z - mu + torch.ops.aten.gelu_backward(feedback, z)))


GELU_STEP = [
    value
    for instruction in (
        (Op.SUB, 0, 1, 0), (slope_of("gelu"), 0, 0, 3), (Op.MUL, 2, 5, 0), (Op.ADD, 4, 6, 0), (Op.MUL, 3, 7, 0),
        (Op.SUB, 0, 8, 0),
    )
    for value in instruction
]  # fmt: skip


def our_gelu_step(z: Tensor, mu: Tensor, feedback: Tensor) -> None:
    torch.ops.pyromancy.elementwise_([z], [z, mu, feedback], GELU_STEP, [9], [0.1])


def normal(batch: int, width: int, count: int) -> list[Tensor]:
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    return [torch.randn(batch, width, generator=generator) for _ in range(count)]


def states(batch: int, width: int) -> list[Tensor]:
    return normal(batch, width, 2)


def states_logvar(batch: int, width: int) -> list[Tensor]:
    return [*states(batch, width), 0.3 * normal(1, width, 1)[0][0]]


def cholesky_parameters(batch: int, width: int) -> list[Tensor]:
    return [0.1 * normal(1, width, 1)[0][0], 0.3 * normal(width, width, 1)[0] / width**0.5]


def chain_tensors(batch: int, width: int) -> list[Tensor]:
    return normal(batch, width, 4) + [w / width**0.5 for w in normal(width, width, 3)]


def states_factor(batch: int, width: int) -> list[Tensor]:
    return [*states(batch, width), cholesky(*cholesky_parameters(batch, width))]


HEADS, LENGTH, EPS = 4, 64, 1e-5


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    scores = query @ key.mT / query.shape[-1] ** 0.5
    behind = torch.arange(LENGTH, device=query.device)
    return scores.masked_fill(behind[:, None] < behind, -torch.inf).softmax(-1)


def attention(out: Tensor, query: Tensor, key: Tensor, value: Tensor) -> None:
    out.copy_(attention_weights(query, key) @ value)


def our_attention(out: Tensor, query: Tensor, key: Tensor, value: Tensor) -> None:
    torch.ops.pyromancy.attention_(out, query, key, value, True, query.shape[-1] ** -0.5)


def attention_backward(grads: Tensor, grad: Tensor, query: Tensor, key: Tensor, value: Tensor) -> None:
    weights, of_weights = attention_weights(query, key), grad @ value.mT
    scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdim=True)) / query.shape[-1] ** 0.5
    grads[0], grads[1], grads[2] = scores @ key, scores.mT @ query, weights.mT @ grad


def our_attention_backward(grads: Tensor, grad: Tensor, query: Tensor, key: Tensor, value: Tensor) -> None:
    torch.ops.pyromancy.attention_backward_(grads, grad, query, key, value, True, query.shape[-1] ** -0.5)


def heads(batch: int, width: int, count: int) -> list[Tensor]:
    return [t.view(-1, HEADS, LENGTH, width // HEADS) for t in normal(batch, width, count)]


def heads_and_gradients(batch: int, width: int) -> list[Tensor]:
    first, *given = heads(batch, width, 5)
    return [torch.zeros(3, *first.shape, device=first.device), *given]


def normalized(x: Tensor) -> tuple[Tensor, Tensor]:
    deviation = (x.var(-1, correction=0, keepdim=True) + EPS).sqrt()
    return (x - x.mean(-1, keepdim=True)) / deviation, deviation


def layer_norm(out: Tensor, x: Tensor) -> None:
    out.copy_(normalized(x)[0])


def our_layer_norm(out: Tensor, x: Tensor) -> None:
    torch.ops.pyromancy.layer_norm_(out, x, None, None, EPS)


def layer_norm_backward(out: Tensor, grad: Tensor, x: Tensor) -> None:
    normal, deviation = normalized(x)
    out.copy_((grad - grad.mean(-1, keepdim=True) - normal * (normal * grad).mean(-1, keepdim=True)) / deviation)


def our_layer_norm_backward(out: Tensor, grad: Tensor, x: Tensor) -> None:
    torch.ops.pyromancy.layer_norm_backward_(out, grad, x, None, EPS)


def secants(out: Tensor, gradient: Tensor, before: Tensor, step: Tensor) -> None:
    change = gradient - before
    pairs = [(gradient, gradient), (gradient, step), (gradient, change), (before, before), (before, step)]
    pairs += [(before, change), (step, step), (step, change), (change, change)]
    out.copy_(torch.stack([(a * b).sum(1) for a, b in pairs]))


def our_secants(out: Tensor, gradient: Tensor, before: Tensor, step: Tensor) -> None:
    torch.ops.pyromancy.secant_products_(out, gradient, before, step)


def secant_tensors(batch: int, width: int) -> list[Tensor]:
    return [torch.zeros(9, batch, dtype=torch.float64), *normal(batch, width, 3)]


@dataclass(frozen=True)
class Case:
    """A call that is timed.

    Attributes:
        name: of the case.
        operators: those in the schema that it runs.
        formula: it in plain PyTorch, which `torch.compile` takes too, and float64 for the expectation.
        ours: it in this package.
        inputs: its arguments for a batch and a width.
        sizes: keys of `SIZES`.
        streams: batch x width tensors that it must read or write, counted once each.
        flops: floating-point operations per sample and squared width, where these and not memory are the ceiling.
        backward: whether the gradients of all arguments are part of it.
        in_place: how many leading arguments it overwrites.
    """

    name: str
    operators: tuple[str, ...]
    formula: Callable[..., Any]
    ours: Callable[..., Any]
    inputs: Callable[[int, int], list[Tensor]]
    sizes: tuple[str, ...]
    streams: int = 0
    flops: int = 0
    backward: bool = False
    in_place: int = 0


BOTH, MATRIX = ("large", "small"), ("matrix",)
CASES = [
    Case("energy", ("gaussian_energy",), energy, functional.gaussian_energy, states, BOTH, streams=2),
    Case(
        "energy, logvar", ("gaussian_energy",), energy_logvar, functional.gaussian_energy, states_logvar, BOTH,
        streams=2,
    ),
    # backward reads both again and writes both gradients
    Case(
        "energy + backward", ("gaussian_energy", "gaussian_energy_backward"), energy, functional.gaussian_energy,
        states, BOTH, streams=6, backward=True,
    ),
    Case(
        "energy + backward, logvar", ("gaussian_energy", "gaussian_energy_backward_logvar"), energy_logvar,
        functional.gaussian_energy, states_logvar, BOTH, streams=6, backward=True,
    ),
    Case("error", ("gaussian_error",), error, functional.gaussian_error, states, BOTH, streams=3),
    Case("error, logvar", ("gaussian_error",), error_logvar, functional.gaussian_error, states_logvar, BOTH, streams=3),
    Case("estep_", ("estep_",), estep, our_estep, lambda b, n: normal(b, n, 3), BOTH, streams=4, in_place=1),
    Case(
        "estep_, momentum", ("estep_",), estep_momentum, our_estep_momentum, lambda b, n: normal(b, n, 4),
        BOTH, streams=6, in_place=2,
    ),
    Case(
        "cholesky_factor", ("cholesky_factor",), cholesky, functional.cholesky_factor, cholesky_parameters, MATRIX,
        streams=2,
    ),
    Case(
        "cholesky_factor + backward", ("cholesky_factor", "cholesky_factor_backward"), cholesky,
        functional.cholesky_factor, cholesky_parameters, MATRIX, streams=4, backward=True,
    ),
    # a triangular solve takes n^2 operations per sample, and so does the lower triangle of the factor's gradient
    Case(
        "multivariate_energy", ("multivariate_energy",), multivariate, functional.multivariate_energy, states_factor,
        MATRIX, flops=1,
    ),
    Case(
        "multivariate_energy + backward",
        ("multivariate_energy", "multivariate_energy_backward", "multivariate_energy_backward_factor"),
        multivariate, functional.multivariate_energy, states_factor, MATRIX, flops=3, backward=True,
    ),
    Case(
        "multivariate_error", ("multivariate_error",), multivariate_error, functional.multivariate_error,
        states_factor, MATRIX, flops=2,
    ),
    # one product for the clamped input's edge, and two for each of the others at every step
    Case(
        "run_plan_, E-steps, tanh", ("run_plan_",), chain, our_chain, chain_tensors, MATRIX,
        flops=2 * (1 + 4 * CHAIN_STEPS), in_place=2,
    ),
    Case(
        "elementwise_, a step behind a GELU", ("elementwise_",), gelu_step, our_gelu_step,
        lambda batch, width: normal(batch, width, 3), BOTH, streams=4, in_place=1,
    ),
    Case(
        "attention_, causal", ("attention_",), attention, our_attention, lambda b, n: heads(b, n, 4), MATRIX,
        streams=4, in_place=1,
    ),
    Case(
        "attention_backward_, causal", ("attention_backward_",), attention_backward, our_attention_backward,
        heads_and_gradients, MATRIX, streams=7, in_place=1,
    ),
    Case(
        "layer_norm_", ("layer_norm_",), layer_norm, our_layer_norm, lambda b, n: normal(b, n, 2), BOTH, streams=2,
        in_place=1,
    ),
    Case(
        "layer_norm_backward_", ("layer_norm_backward_",), layer_norm_backward, our_layer_norm_backward,
        lambda b, n: normal(b, n, 3), BOTH, streams=3, in_place=1,
    ),
    Case(
        "secant_products_", ("secant_products_",), secants, our_secants, secant_tensors, BOTH, streams=3, in_place=1
    ),
    Case("run_plan_, gradients, tanh", ("run_plan_",), mstep, our_mstep, chain_tensors, MATRIX, flops=2 * 6),
]  # fmt: skip

BY_NAME = {case.name: case for case in CASES}
OPERATORS = {name: [case.name for case in CASES if name in case.operators] for name in schema.SCHEMAS}


def bind(case: Case, function: Callable[..., Any], inputs: list[Tensor]) -> Callable[[], Any]:
    """The call that is timed, with its arguments."""
    if not case.backward:
        return lambda: function(*inputs)
    leaves = [t.requires_grad_() for t in inputs]
    return lambda: torch.autograd.grad(function(*leaves).sum(), leaves)


def results(case: Case, function: Callable[..., Any], inputs: list[Tensor]) -> list[Tensor]:
    """What one call makes: value, gradients, overwritten arguments."""
    inputs = [t.detach().clone() for t in inputs]
    made = [] if case.in_place else [function(*inputs)]
    call = bind(case, function, inputs)()
    return made + (list(call) if case.backward else []) + inputs[: case.in_place]


def check(got: list[Tensor], expected: list[Tensor], terms: int) -> None:
    """Fail unless the largest deviation is within the rounding of a float32 sum of `terms` terms."""
    tolerance = 8 * torch.finfo(torch.float32).eps * math.sqrt(terms)
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        deviation = ((a.double() - b).abs().max() / b.abs().max()).item()
        assert deviation <= tolerance, f"result {i} is off by {deviation:.2g}, allowed {tolerance:.2g}: not timed"
