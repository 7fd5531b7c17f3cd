"""Arguments of `infer_chain_`, and what it must do to them, by autograd and `torch.optim.SGD`."""

import itertools

import torch
import torch.nn.functional as F

from networks import covariance_of
from pyromancy.ops import activations

operator = torch.ops.pyromancy.infer_chain_.default
# the activations by name, from PyTorch; the second number is their parameter
FUNCTIONS = {
    "identity": (lambda x, _: x, 0.0),
    "relu": (lambda x, _: F.relu(x), 0.0),
    "leaky_relu": (F.leaky_relu, 0.2),
    "elu": (F.elu, 0.7),
    "silu": (lambda x, _: F.silu(x), 0.0),
    "gelu": (lambda x, _: F.gelu(x), 0.0),
    "gelu_tanh": (lambda x, _: F.gelu(x, approximate="tanh"), 0.0),
    "tanh": (lambda x, _: torch.tanh(x), 0.0),
    "sigmoid": (lambda x, _: torch.sigmoid(x), 0.0),
    "softplus": (F.softplus, 1.5),
}
STEPS, LR = 6, 0.05


def problem(widths, batch, before="identity", after="identity", *, prior=False, biases=True, covariances=False,
            clamped=(0, -1), momentum=None, record=False, dtype=torch.float64):  # fmt: skip
    """Arguments of the operator."""
    count = len(widths)
    free = [i not in {c % count for c in clamped} for i in range(count)]
    numbers = [*activations.ACTIVATIONS]
    precisions = [None] * count
    if covariances:
        kinds = (lambda n: torch.rand(n) + 0.5, covariance_of, lambda n: None)
        precisions = [kinds[i % 3](n) for i, n in enumerate(widths)]
    arguments = {
        "states": [torch.randn(batch, n) for n in widths],
        "weights": [torch.randn(b, a) / a**0.5 for a, b in itertools.pairwise(widths)],
        "biases": [torch.randn(n) if biases else None for n in widths[1:]],
        "precisions": precisions,
        "prior": torch.randn(batch if prior == "batch" else 1, widths[0]) if prior else None,
        "grams": [None] * (count - 1),
        "activations": [numbers.index(f) for _ in widths[1:] for f in (before, after)],
        "parameters": [FUNCTIONS[f][1] for _ in widths[1:] for f in (before, after)],
        "predicted": [bool(prior), *[True] * (count - 1)],
        "free": free,
        "steps": STEPS,
        "lr": LR,
        "velocities": [torch.zeros(batch, n) for n in widths] if momentum else [],
        "momentum": 0.0, "dampening": 0.0, "nesterov": False, "resume": False,
        "energies": torch.full((STEPS, count, batch), float("nan")) if record else None,
        **(momentum or {}),
    }  # fmt: skip
    return {k: to(x, dtype) for k, x in arguments.items()}


def to(x, dtype):
    if isinstance(x, list):
        return [to(y, dtype) for y in x]
    return x.to(dtype, copy=True) if isinstance(x, torch.Tensor) else x


def descend(a):
    """States, energies by step and node, and the predictions of clamped nodes, in float64 by autograd."""
    a = {k: to(x, torch.float64) for k, x in a.items()}
    names = [*activations.ACTIVATIONS]
    functions = [
        lambda x, f=FUNCTIONS[names[k]][0], p=p: f(x, p) for k, p in zip(a["activations"], a["parameters"], strict=True)
    ]
    states = [z.requires_grad_(is_free) for z, is_free in zip(a["states"], a["free"], strict=True)]

    def predictions():
        mu = [a["prior"]]
        for i, (w, b) in enumerate(zip(a["weights"], a["biases"], strict=True)):
            mu.append(functions[2 * i + 1](F.linear(functions[2 * i](states[i]), w, b)))
        return mu

    def energies():
        for z, mu, precision, predicted in zip(states, predictions(), a["precisions"], a["predicted"], strict=True):
            if not predicted:
                yield torch.zeros(z.shape[0], dtype=torch.float64)
                continue
            d = z - mu
            p = torch.eye(z.shape[1], dtype=torch.float64) if precision is None else precision
            p = p.diag() if p.dim() == 1 else p
            yield 0.5 * torch.einsum("bi,ij,bj->b", d, p, d)

    options = {k: a[k] for k in ("momentum", "dampening", "nesterov")}
    sgd = torch.optim.SGD([z for z in states if z.requires_grad], lr=a["lr"], **options)
    record = []
    for _ in range(a["steps"]):
        sgd.zero_grad()
        by_node = torch.stack([*energies()])
        record.append(by_node.detach())
        by_node.sum().backward()
        sgd.step()
    fixed = [mu.detach() for i, mu in enumerate(predictions()[1:]) if not a["free"][i]]
    velocities = [sgd.state[z].get("momentum_buffer") if z.requires_grad else None for z in states]
    return [z.detach() for z in states], torch.stack(record), fixed, velocities
