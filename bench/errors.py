"""How far operators, laws and methods are off in float32: `python -m bench.errors`.

The exact value is the same formula in float64, of the same inputs. Random inputs are normal. Hard ones are numbers
over many exponents, differences of neighbours, log-variances to 30, covariances of condition 1e6, rates next to the
stable one. Beside stands PyTorch: the formula in float32, and the method on a traced graph. Errors are in units of
2^-24 of the exact value; of its terms where these cancel, and of a sample's largest element after a solve and of
states.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import pyromancy as pyro
from bench.accuracy import numbers, put, short
from pyromancy import backends, functional, methods, plan
from pyromancy.ops import (
    attention_,
    attention_backward_,
    layer_norm_,
    layer_norm_backward_,
    run_plan_,
    secant_products_,
)

UNIT = 2.0**-24
Tensors = tuple[Tensor, ...]


def units(got: Tensor, exact: Tensor, size: Tensor | float = 0.0) -> float:
    """The largest error in units of 2^-24 of the exact value, or of a size where that is larger."""
    whole = exact.abs().clamp(min=torch.finfo(torch.float32).tiny).maximum(torch.as_tensor(size).to(exact))
    return float(((got.double() - exact).abs() / whole / UNIT).nan_to_num(nan=math.inf).max())


def of_largest(got: Tensor, exact: Tensor) -> float:
    """The same of a sample's largest."""
    return units(got, exact, exact.abs().amax(1, keepdim=True))


# --- operators


@dataclass(frozen=True)
class Operator:
    """A documented function.

    Attributes:
        computed: it.
        formula: its formula in PyTorch's operators.
        inputs: random ones, and others, in float32.
        size: what errors are measured by where it is larger than the result, as where terms cancel.
    """

    computed: Callable[..., Tensor]
    formula: Callable[..., Tensor]
    inputs: tuple[Callable[[], Tensors], Callable[[], Tensors]]
    size: Callable[..., Tensor] | None = None


def _random() -> Tensors:
    torch.manual_seed(0)
    return torch.randn(500, 100), torch.randn(500, 100), torch.randn(100)


def _hard() -> Tensors:
    """A third of the elements over many exponents, a third next to each other, and log-variances from -30 to 30."""
    torch.manual_seed(0)
    scale = torch.logspace(-12, 12, 500)[:, None]
    value, mean = (scale * torch.randn(500, 99) for _ in range(2))
    mean[:, 33:66] = value[:, 33:66].nextafter(torch.tensor(math.inf))
    mean[:, 66:] = value[:, 66:] * (1 + 1e-3 * torch.randn(500, 33))
    return value, mean, torch.linspace(-30, 30, 99)


def _factor(largest: float) -> Tensors:
    """A Cholesky factor of a covariance whose standard deviations are from 1 to `largest`."""
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64)).Q
    spread = torch.logspace(0, 2 * math.log10(largest), 64, dtype=torch.float64)
    factor = torch.linalg.cholesky((turn * spread) @ turn.T).float()
    return torch.randn(500, 64), torch.randn(500, 64), factor


def _whiten(value: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, (value - mean).T, upper=False).T


def _multivariate_error(value: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor.T, _whiten(value, mean, factor).T, upper=True).T


def _multivariate_energy(value: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    return 0.5 * _whiten(value, mean, factor).square().sum(1) + factor.diagonal().log().sum()


def _step(value: Tensor, error: Tensor, _: Tensor) -> Tensor:
    return value - 0.1 * error


def _stepped(value: Tensor, error: Tensor, _: Tensor) -> Tensor:
    value = value.clone()
    functional.estep_(value, error, lr=0.1)
    return value


def _gaussian_gradient(value: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    value = value.clone().requires_grad_()
    return torch.autograd.grad(functional.gaussian_energy(value, mean, logvar).sum(), value)[0]


def _row_sizes(*given: Tensor) -> Tensor:
    return _multivariate_error(*given).abs().amax(1, keepdim=True)


def _heads(size: float) -> Callable[[], Tensors]:
    """What passes back, and queries, keys and values, whose scores are as large as the square of a size."""

    def drawn() -> Tensors:
        torch.manual_seed(0)
        grad, *given = torch.randn(4, 20, 4, 64, 32)
        return grad, given[0] * size, given[1] * size, given[2]

    return drawn


def _rows(mean: float) -> Callable[[], Tensors]:
    """What passes back, rows around a mean, and weights."""

    def drawn() -> Tensors:
        torch.manual_seed(0)
        return torch.randn(500, 128), torch.randn(500, 128) + mean, torch.randn(128)

    return drawn


def _weights(query: Tensor, key: Tensor) -> Tensor:
    scores = query @ key.mT * query.shape[-1] ** -0.5
    return scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf).softmax(-1)


def _attention(_: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return _weights(query, key) @ value


def _our_attention(_: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    out = torch.empty_like(query)
    attention_(out, query, key, value, True, query.shape[-1] ** -0.5)
    return out


def _attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    leaves = [t.clone().requires_grad_() for t in (query, key, value)]
    return torch.stack(torch.autograd.grad(_attention(grad, *leaves), leaves, grad))


def _our_attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    grads = torch.empty(3, *query.shape)
    attention_backward_(grads, grad, query, key, value, True, query.shape[-1] ** -0.5)
    return grads


def _layer_norm(_: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return nn.functional.layer_norm(x, x.shape[-1:], weight)


def _our_layer_norm(_: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    out = torch.empty_like(x)
    layer_norm_(out, x, weight, None, 1e-5)
    return out


def _layer_norm_backward(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(_layer_norm(grad, x, weight), x, grad)[0]


def _our_layer_norm_backward(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    out = torch.empty_like(x)
    layer_norm_backward_(out, grad, x, weight, 1e-5)
    return out


def _changes(share: float) -> Callable[[], Tensors]:
    """Gradients before and after a step, which change by a share, and the step."""

    def drawn() -> Tensors:
        torch.manual_seed(0)
        before, change, step = torch.randn(3, 500, 900)
        return before + share * change, before, step

    return drawn


def _secants(gradient: Tensor, before: Tensor, step: Tensor) -> Tensor:
    change = gradient - before
    return torch.stack([(a * b).sum(1) for a, b in ((gradient, gradient), (gradient, change), (step, change))])


def _our_secants(*given: Tensor) -> Tensor:
    out = torch.empty(9, len(given[0]), dtype=torch.float64)
    secant_products_(out, *given)
    return out[[0, 2, 7]]


def _secant_sizes(gradient: Tensor, before: Tensor, step: Tensor) -> Tensor:
    change = gradient - before
    return torch.stack([(a * b).abs().sum(1) for a, b in ((gradient, gradient), (gradient, change), (step, change))])


def _largest(formula: Callable[..., Tensor], dims: int) -> Callable[..., Tensor]:
    """The size of a result's last dims, of which every element is a sum over what made the largest."""
    return lambda *given: formula(*given).abs().amax([*range(-dims, 0)], keepdim=True)


BY_SPREAD = (lambda: _factor(3.0), lambda: _factor(1e3))
OPERATORS = {
    "gaussian_energy": Operator(
        functional.gaussian_energy, lambda z, m, v: 0.5 * ((z - m) ** 2 * (-v).exp() + v).sum(1), (_random, _hard),
        lambda z, m, v: 0.5 * ((z - m) ** 2 * (-v).exp() + v.abs()).sum(1),
    ),
    "gaussian_energy, gradient": Operator(
        _gaussian_gradient, lambda z, m, v: (z - m) * (-v).exp(), (_random, _hard)
    ),
    "gaussian_error": Operator(
        functional.gaussian_error, lambda z, m, v: (z - m) * (-v).exp(), (_random, _hard)
    ),
    "estep_": Operator(_stepped, _step, (_random, _hard), lambda z, e, _: z.abs()),
    "multivariate_energy": Operator(functional.multivariate_energy, _multivariate_energy, BY_SPREAD),
    "multivariate_error": Operator(functional.multivariate_error, _multivariate_error, BY_SPREAD, _row_sizes),
    "attention_": Operator(_our_attention, _attention, (_heads(1.0), _heads(5.0)), _largest(_attention, 1)),
    "attention_backward_": Operator(
        _our_attention_backward, _attention_backward, (_heads(1.0), _heads(5.0)), _largest(_attention_backward, 2)
    ),
    "layer_norm_": Operator(_our_layer_norm, _layer_norm, (_rows(0.0), _rows(100.0)), _largest(_layer_norm, 1)),
    "layer_norm_backward_": Operator(
        _our_layer_norm_backward, _layer_norm_backward, (_rows(0.0), _rows(100.0)), _largest(_layer_norm_backward, 1)
    ),
    "secant_products_": Operator(_our_secants, _secants, (_changes(1.0), _changes(1e-3)), _secant_sizes),
}  # fmt: skip


def of_operator(operator: Operator) -> list[float]:
    """Errors of random inputs, its own and those of the formula in float32, and of hard ones."""
    found = []
    for inputs in operator.inputs:
        given = inputs()
        wide = [t.double() for t in given]
        size = 0.0 if operator.size is None else operator.size(*wide)
        found += [units(of(*given), operator.formula(*wide), size) for of in (operator.computed, operator.formula)]
    return found


# --- laws


@dataclass(frozen=True)
class Law:
    """A law of elements, in chains.

    Attributes:
        kind: which.
        energy: its energy of z, mu and theta in PyTorch's operators.
        gradient: its gradient for z; for mu where z is clamped, which is then `given`.
        parameter: its number, where it has one.
        given: the state that is clamped, or None.
        scaled: whether it has theta.
    """

    kind: plan.Law
    energy: Callable[[Tensor, Tensor, Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor, Tensor], Tensor]
    parameter: float = 0.0
    given: float | None = None
    scaled: bool = True


def _student(z: Tensor, m: Tensor, t: Tensor) -> Tensor:
    return 1.5 * torch.log1p(((z - m) * (-t).exp()) ** 2 / 2)


def _huber(z: Tensor, m: Tensor, _: Tensor) -> Tensor:
    return torch.where((z - m).abs() <= 1.5, (z - m) ** 2 / 2, 1.5 * ((z - m).abs() - 0.75))


LAWS = {
    "Gaussian": Law(
        plan.Law.GAUSSIAN, lambda z, m, t: (z - m) ** 2 * (-t).exp() / 2, lambda z, m, t: (z - m) * (-t).exp()
    ),
    "Laplace": Law(
        plan.Law.LAPLACE, lambda z, m, t: (z - m).abs() * (-t).exp(), lambda z, m, t: (z - m).sign() * (-t).exp()
    ),
    "Student, 2 degrees": Law(
        plan.Law.STUDENT, _student, lambda z, m, t: 3 * (z - m) / (2 * (2 * t).exp() + (z - m) ** 2), 2.0
    ),
    "Huber": Law(plan.Law.HUBER, _huber, lambda z, m, t: (z - m).clamp(-1.5, 1.5), 1.5, scaled=False),
    "Bernoulli": Law(
        plan.Law.BERNOULLI, lambda z, m, t: nn.functional.softplus(m) - z * m,
        lambda z, m, t: m.sigmoid() - z, given=1.0, scaled=False,
    ),
    "Poisson": Law(
        plan.Law.POISSON, lambda z, m, t: m.exp() - z * m, lambda z, m, t: m.exp() - z, given=3.0, scaled=False
    ),
}  # fmt: skip


def of_law(law: Law, x: Tensor, theta: float) -> tuple[Tensor, Tensor]:
    """Energies of predictions x, and their gradients: for the state, which is 0, or for x where the state is given."""
    state, energies = torch.zeros(len(x), 1), torch.empty(1, 1 if law.given is None else 2, len(x))
    written, read = [state, energies], [x[:, None], torch.tensor([theta])]
    node = plan.Node(0, True, law=law.kind, prior=2, theta=3 if law.scaled else None, law_parameter=law.parameter)
    nodes: tuple[plan.Node, ...] = (node,)
    edges: tuple[plan.Edge, ...] = ()
    if law.given is not None:  # what is free adds 0 to the prediction, and goes the other way
        read.append(torch.full_like(state, law.given))
        nodes, edges = (plan.Node(0, True), replace(node, state=4, free=False)), (plan.Edge(0, 1, None, first=0),)
    run_plan_(written, read, *plan.encode(plan.Plan(nodes, edges, plan.Descent(1.0), 1, energies=1)))
    return energies[0, -1], -state[:, 0]


def exactly(law: Law, x: Tensor, theta: float) -> tuple[Tensor, Tensor]:
    """The same by formulas, in the precision of x."""
    z, t = torch.full_like(x, law.given or 0.0), torch.tensor(theta).to(x)
    return law.energy(z, x, t), law.gradient(z, x, t)


def of_laws(law: Law, hard: bool) -> list[float]:
    """Errors of energies, the kernel's and PyTorch's in float32, and of gradients."""
    torch.manual_seed(0)
    x, thetas = torch.randn(5000), [0.3]
    if hard:
        x, thetas = numbers(torch.float32, every=65_537), [-10.0, 10.0]
        x = x[(x.abs() > 1e-14) & (x.abs() < 1e14)]
    found = []
    for theta in thetas if law.scaled else [0.0]:
        exact, given = exactly(law, x.double(), float(torch.tensor(theta))), law.given or 0.0
        sizes = given * x.abs(), torch.full_like(x, given)
        for made in (of_law(law, x, theta), exactly(law, x, theta)):
            found.append([_finite(got, of, size) for got, of, size in zip(made, exact, sizes, strict=True)])
    ours, theirs = (map(max, zip(*found[i::2], strict=True)) for i in range(2))
    return [error for pair in zip(ours, theirs, strict=True) for error in pair]


def _finite(got: Tensor, exact: Tensor, size: Tensor) -> float:
    """Of what is neither above float32's numbers nor below the normal ones."""
    of = torch.finfo(torch.float32)
    keep = (exact.abs() <= of.max) & ((exact == 0) | (exact.abs() >= of.tiny))
    return units(got[keep], exact[keep], size[keep])


# --- methods

STEPS = 20
METHODS: dict[str, tuple[methods.Method, methods.Method]] = {  # at a usual rate, and next to the stable one
    "Descent": (methods.Descent(0.1), methods.Descent(0.6)),
    "Descent, momentum": (methods.Descent(0.1, 0.5), methods.Descent(0.3, 0.9)),
    "Accelerated": (methods.Accelerated(), methods.Accelerated()),
    "Accelerated, a rate": (methods.Accelerated(0.1), methods.Accelerated(0.6)),
    "LBFGS": (methods.LBFGS(), methods.LBFGS()),
    "Adam": (methods.Adam(0.02), methods.Adam(0.5)),
    "Heun": (methods.Heun(0.1), methods.Heun(0.6)),
    "Sequential": (methods.Sequential(0.1), methods.Sequential(0.6)),
    "Langevin, no noise": (methods.Langevin(0.1, temperature=0.0), methods.Langevin(0.6, temperature=0.0)),
    "FixedPrediction": (methods.FixedPrediction(), methods.FixedPrediction()),
    "ZIL": (methods.ZIL(), methods.ZIL()),
}


def of_method(method: methods.Method, hard: bool) -> list[float]:
    """Of states after steps, in units of each sample's largest: the kernel's, and those of PyTorch's operators."""

    def states(executor: str, dtype: torch.dtype) -> list[Tensor]:
        torch.manual_seed(0)
        net = pyro.networks.mlp([20, 30, 30, 5], activation="tanh")
        x, y = torch.randn(100, 20), torch.randn(100, 5)
        if hard:  # samples of every size
            x, y = (t * torch.logspace(-4, 2, 100)[:, None] for t in (x, y))
        net, x, y = net.to(dtype), x.to(dtype), y.to(dtype)
        net.start(x, y)
        pyro.InferenceLoop(net.energy, net.e_params(), method=method, executor=executor).run(STEPS)
        return [p.detach() for p in net.e_params()]

    exact = states("graph", torch.float64)
    made = states("chain", torch.float32), states("graph", torch.float32)
    return [max(map(of_largest, found, exact)) for found in made]


# --- tables


def table() -> str:
    """All three, in Markdown."""
    lines = _head("operator", ["random", "PyTorch", "hard", "PyTorch"])
    lines += [_row(name, of_operator(operator)) for name, operator in OPERATORS.items()]
    columns = [f"{of}{how}" for how in ("", ", hard") for of in ("energy", "gradient")]
    lines += ["", *_head("law", [name for column in columns for name in (column, "PyTorch")])]
    lines += [_row(name, [*of_laws(law, False), *of_laws(law, True)]) for name, law in LAWS.items()]
    lines += ["", *_head("method", ["usual", "PyTorch", "hard", "PyTorch"])]
    lines += [_row(name, [*of_method(usual, False), *of_method(hard, True)]) for name, (usual, hard) in METHODS.items()]
    return "\n".join(lines)


def _head(first: str, others: list[str]) -> list[str]:
    return [f"| {' | '.join([first, *others])} |", "| --- |" + " ---: |" * len(others)]


def _row(name: str, found: list[float]) -> str:
    return f"| {' | '.join([name, *map(short, found)])} |"


def main(argv: list[str] | None = None) -> None:
    """Print the tables, or put them into a document between its two marks."""
    p = argparse.ArgumentParser(description="Errors of operators, laws and methods in float32.")
    p.add_argument("--into", type=Path, metavar="FILE", help="replace what stands between <!-- errors --> marks there")
    args = p.parse_args(argv)
    works, reason = backends.available("native")
    if not works:
        sys.exit(f"no compiled kernels: {reason}")
    found = table()
    if args.into is None:
        print(found)
    else:
        put(found, args.into, "<!-- errors -->")


if __name__ == "__main__":
    main()
