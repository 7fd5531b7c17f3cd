"""Chains as plans for `run_plan_`, and what it must do to them, by autograd and `torch.optim.SGD`."""

import functools
import itertools
import os
from dataclasses import replace

import torch
import torch.nn.functional as F

from networks import covariance_of
from numerics import assert_near, moved, same_bits
from pyromancy import plan
from pyromancy.capture.symbolic import Algebra
from pyromancy.ops import run_plan as definition
from pyromancy.plan import (
    Activation,
    Descent,
    Edge,
    Law,
    Learned,
    Learning,
    MatmulPrecision,
    Node,
    Plan,
    Rule,
    RuleKind,
    Target,
    activations,
)
from pyromancy.plan.expression import Op

run_plan_ = torch.ops.pyromancy.run_plan_.default
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
    "clipped_relu": (lambda x, p: F.hardtanh(x, 0.0, p), 0.75),
    "hardtanh": (lambda x, p: F.hardtanh(x, -p, p), 0.5),
    "selu": (lambda x, _: F.selu(x), 0.0),
}
# what the laws that go element by element make of states z, predictions mu, rates p = exp(-theta) and their parameter
DEVIATIONS = {
    Law.GAUSSIAN: lambda z, mu, p, _: 0.5 * p * (z - mu).square(),
    Law.LAPLACE: lambda z, mu, p, _: p * (z - mu).abs(),
    Law.BERNOULLI: lambda z, mu, p, _: F.binary_cross_entropy_with_logits(mu, z, reduction="none"),
    Law.POISSON: lambda z, mu, p, _: F.poisson_nll_loss(mu, z, reduction="none"),
    Law.STUDENT: lambda z, mu, p, v: (v + 1) / 2 * torch.log1p((p * (z - mu)).square() / v),
    Law.HUBER: lambda z, mu, p, bound: F.huber_loss(mu, z, reduction="none", delta=bound),
    Law.EXPRESSION: lambda z, mu, *_: (
        torch.log(torch.cosh(z - mu)) + 0.2 * z**4 + F.softplus(mu + 0.5) + 0.3 * (1 + z * mu + z**2 + mu**2).sqrt()
    ),
}
PARAMETERS = {Law.STUDENT: 2.5, Law.HUBER: 0.75}


def own_law():
    """What `DEVIATIONS` has of z, mu and their distance for a law of one's own."""
    g = Algebra()
    square = functools.reduce(g.add, [g.mul(g.z, g.mu), g.pow(g.z, 2.0), g.pow(g.mu, 2.0)])
    parts = [
        g.apply(Op.LOGCOSH, g.distance),
        g.times(0.2, g.pow(g.z, 4.0)),
        g.apply(Op.SOFTPLUS, g.add(g.mu, g.number(0.5))),
        g.times(0.3, g.apply(Op.SQRT, g.add(g.number(1.0), square))),
    ]
    return g.program(functools.reduce(g.add, parts))


OWN_LAW = own_law()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# the laws that go element by element
ELEMENTWISE = [law for law in Law if law.is_elementwise]
STEPS, LR = 6, 0.05
WIDTHS, BATCHES, MSTEP_BATCHES = (
    [(3, 1, 5), (63, 129, 2), (5, 40, 33, 17, 3), (4, 5)],
    (0, 1, 3, 129),
    (0, 1, 3, 17, 300),
)
SOME, MSTEP_FUNCTIONS = 17, tuple(FUNCTIONS)
if INTERPRETED:  # a program takes milliseconds there
    WIDTHS, BATCHES, MSTEP_BATCHES = [(3, 1, 5), (5, 70, 33, 3)], (0, 1, 19), (0, 17)
    SOME, MSTEP_FUNCTIONS = 3, ("tanh", "softplus")
OPTIONS = {
    "no-bias": {"biases": False},
    "prior": {"prior": "one", "clamped": (-1,)},
    "prior-per-sample": {"prior": "batch", "clamped": (-1,)},
    "all-free": {"prior": "one", "clamped": ()},
    "clamped-within": {"clamped": (0, 2, -1)},
    "open-end": {"clamped": (0,)},
    "covariances": {"covariances": True, "prior": "batch", "clamped": (-1,)},
    "one-variance-for-all": {"covariances": "one", "prior": "one", "clamped": (-1,)},
    "weighted": {"covariances": "one", "scales": True, "prior": "one", "clamped": (-1,), "after": "tanh"},
    "momentum": {"momentum": {"momentum": 0.8, "dampening": 0.3}},
    "nesterov": {"momentum": {"momentum": 0.8, "nesterov": True}},
    "everything": {
        "covariances": True, "prior": "one", "clamped": (-1,), "momentum": {"momentum": 0.8},
        "before": "relu", "after": "tanh",
    },
}  # fmt: skip
MSTEP_OPTIONS = [o for o in OPTIONS if "momentum" not in OPTIONS[o]]


def joined(widths):
    """Widths as a test id."""
    return "-".join(map(str, widths))


def problem(widths, batch, before="identity", after="identity", *, prior=False, biases=True, covariances=False,
            scales=False, clamped=(0, -1), momentum=None, record=False, dtype=torch.float64):  # fmt: skip
    """A chain, and its E-steps: what `planned` takes."""
    count = len(widths)
    free = [i not in {c % count for c in clamped} for i in range(count)]
    numbers = [*activations.ACTIVATIONS]
    precisions = [None] * count
    if covariances:
        kinds = (lambda n: torch.rand(n) + 0.5, covariance_of, lambda n: None)
        if covariances == "one":
            kinds = (lambda n: torch.rand(1) + 0.5, lambda n: torch.rand(n) + 0.5, lambda n: None)
        precisions = [kinds[i % 3](n) for i, n in enumerate(widths)]
    arguments = {
        "states": [torch.randn(batch, n) for n in widths],
        "weights": [torch.randn(b, a) / a**0.5 for a, b in itertools.pairwise(widths)],
        "biases": [torch.randn(n) if biases else None for n in widths[1:]],
        "precisions": precisions,
        "scales": [0.7 + 0.5 * i if scales else 1.0 for i in range(count)],
        "prior": torch.randn(batch if prior == "batch" else 1, widths[0]) if prior else None,
        "grams": [False] * (count - 1),
        "activations": [numbers.index(f) for _ in widths[1:] for f in (before, after)],
        "parameters": [FUNCTIONS[f][1] for _ in widths[1:] for f in (before, after)],
        "predicted": [bool(prior), *[True] * (count - 1)],
        "free": free,
        "steps": STEPS,
        "lr": LR,
        "velocities": [torch.zeros(batch, n) for n in widths] if momentum else [],
        "momentum": 0.0, "dampening": 0.0, "nesterov": False, "resume": False,
        "energies": torch.full((STEPS, count, batch), float("nan")) if record else None,
        "matmul_precision": "highest",
        **(momentum or {}),
    }  # fmt: skip
    return {k: to(x, dtype) for k, x in arguments.items()}


def with_laws(a, laws):
    """A problem whose nodes follow these laws, with no theta where a law has none."""
    plain = [not law.has_scale and law is not Law.FULL_GAUSSIAN for law in laws]
    for key in ("precisions", "thetas"):
        if key in a:
            a[key] = [None if is_plain else x for is_plain, x in zip(plain, a[key], strict=True)]
    return a | {"laws": list(laws), "law_parameters": [PARAMETERS.get(law, 0.0) for law in laws]}


def of_size(widths, batch, dtype):
    """A problem of a size; without a state between its ends, the first one is free."""
    short = len(widths) == 2
    return problem(widths, batch, "tanh", prior=short, clamped=(-1,) if short else (0, -1), record=True, dtype=dtype)


def with_gram(precision):
    """A problem whose feedback from the clamped node takes W^T P W; "unit" or "diagonal" P."""
    arguments = problem((5, 7, 63), 17, "tanh")
    if precision == "diagonal":
        arguments["precisions"][-1] = torch.rand(63, dtype=torch.float64) + 0.5
    arguments["grams"][-1] = True
    return arguments


def with_weights_and_scales(a):
    """A chain of three edges, two of whose nodes have weights per sample, and two of whose edges are scaled."""
    z = a["states"][0]
    a["sample_weights"] = [z.new_empty(len(z)).uniform_(0.5, 2.0) if of else None for of in (True, False, False, True)]
    a["forms"] = [(False, 1.0, 1.0), (True, 0.5, 0.3), (False, -0.8, 1.0)]
    a["weights"][1] = a["weights"][1].T.contiguous()
    return a


def with_skips(a, *shares):
    """A chain whose edges between nodes of one width add these shares of the state, in turn, or 1 and -0.6."""
    shares, forms = itertools.cycle(shares or (1.0, -0.6)), a.get("forms", [(False, 1.0, 1.0)] * len(a["weights"]))
    widths = [z.shape[1] for z in a["states"]]
    a["forms"] = [
        (*form[:3], next(shares)) if n == m else form
        for form, (n, m) in zip(forms, itertools.pairwise(widths), strict=True)
    ]
    return a


# what rounds nothing of small numbers
EXACT_FUNCTIONS = ("identity", "relu", "clipped_relu", "hardtanh")
EXACT_LAWS = (Law.GAUSSIAN, Law.FULL_GAUSSIAN, Law.LAPLACE)


def exact_problem(draw, widths, batch, functions=EXACT_FUNCTIONS, **options):
    """A chain of several laws, with weights per sample, in numbers of few binary digits: float32 rounds no state.

    Whatever the order of its sums. So states are on the same side of a kink in every dtype, and some are on it.

    Args:
        draw: a `random.Random`.
        functions: to draw from for before and after an edge.
        options: of `problem`.
    """
    a = problem(widths, batch, draw.choice(functions), draw.choice(functions), **options)
    numbers = {"dtype": a["states"][0].dtype}

    def whole(shape, most):
        return torch.randint(-most, most + 1, shape, **numbers)

    def sparse(rows, columns):
        some = torch.rand(rows, columns) < 1 / columns
        each = torch.arange(max(rows, columns))
        some[each % rows, each % columns] = True  # no row and no column without any
        return some * (2 * torch.randint(2, some.shape, **numbers) - 1)

    def matrix(n):
        beside = torch.ones(n - 1, **numbers).diag(1)
        return 2 * torch.eye(n, **numbers) - beside - beside.mT

    for key in ("states", "biases"):
        a[key] = [x if x is None else whole(x.shape, 4) / 4 for x in a[key]]
    a["prior"] = None if a["prior"] is None else whole(a["prior"].shape, 4) / 4
    a["weights"] = [sparse(*w.shape) for w in a["weights"]]
    a["laws"] = [draw.choice(EXACT_LAWS) for _ in widths]
    full = [law is Law.FULL_GAUSSIAN for law in a["laws"]]
    a["precisions"] = [matrix(n) if is_full else None for n, is_full in zip(widths, full, strict=True)]
    a["thetas"] = [
        draw.choice([None, torch.zeros(n, **numbers), torch.zeros(1, **numbers)]) if p is None else p
        for n, p in zip(widths, a["precisions"], strict=True)
    ]
    a["scales"] = [1.0 if is_full else draw.choice([1.0, 2.0]) for is_full in full]
    a["sample_weights"] = [
        torch.randint(3, (batch,), **numbers) if made and draw.random() < 0.6 else None for made in a["predicted"]
    ]
    a["lr"], a["steps"] = 0.0625, 2
    a["energies"] = None if a["energies"] is None else a["energies"][:2].clone()
    return a


class Operands:
    """The two lists of tensors of `run_plan_`, and the number of each tensor."""

    def __init__(self, written):
        self.written, self.read = [], []
        for t in written:
            if t is not None and self.find(t) is None:
                self.written.append(t)

    def find(self, tensor):
        return next((i for i, t in enumerate([*self.written, *self.read]) if t is tensor), None)

    def number(self, tensor):
        """Of a tensor, which is only read where it is new."""
        if tensor is None:
            return None
        if self.find(tensor) is None:
            self.read.append(tensor)
        return self.find(tensor)


def planned(a, targets=(), method=None, outcome=None, **options):
    """A chain's plan, and the tensors that it is for.

    Args:
        a: the chain; "laws", "thetas", "data", "swept", "sample_weights", "kept", "progress" and "forms" (whether the
            weight is the transpose, the scales of weight and bias, and the skip) need not be there. A weight is None
            without an edge.
        targets: what is learned: what, the edge's or node's place, the rule's, the tensor, and the rule's slots.
        method: in the place of the chain's descent.
        outcome: of it, ``[B, 2]``.
        options: of the plan.
    """
    count = len(a["states"])
    velocities, kept = (
        [v if free else None for v, free in zip(of or [None] * count, a["free"], strict=True)]
        for of in (a["velocities"], a.get("kept"))
    )
    progress = a.get("progress")
    data, swept = a.get("data", [None] * count), a.get("swept", [False] * count)
    moved = [z for z, free, d in zip(a["states"], a["free"], data, strict=True) if free or d is not None]
    learned = [t for *_, tensor, slots in targets for t in (tensor, *slots)]
    measures = isinstance(method, plan.Stepper) and (method.measures or method.tol > 0)
    operands = Operands([*moved, *velocities, *kept, a["energies"], *learned, outcome, progress])
    number = operands.number
    nodes = [
        Node(number(z), free, sweeps, law if predicted else Law.NONE, number(theta) if predicted else None,
             number(a["prior"]) if i == 0 else None, number(v), number(d), scale, number(s),
             number(k), parameter, expression=OWN_LAW if predicted and law is Law.EXPRESSION else None,
             factor=number(factor_of(theta)) if measures and free and predicted and law is Law.FULL_GAUSSIAN else None)
        for i, (z, free, sweeps, law, predicted, theta, v, k, d, scale, s, parameter) in enumerate(zip(
            a["states"], a["free"], swept, a.get("laws") or map(law_of, a["precisions"]), a["predicted"],
            a.get("thetas") or thetas(a), velocities, kept, data, a["scales"],
            a.get("sample_weights", [None] * count), a.get("law_parameters", [0.0] * count), strict=True,
        ))
    ]  # fmt: skip
    functions = [Activation(*f) for f in zip(a["activations"], a["parameters"], strict=True)]
    edges = [
        Edge(i, i + 1, number(w), number(b), *functions[2 * i : 2 * i + 2], gram, *form)
        for i, (w, b, gram, form) in enumerate(
            zip(a["weights"], a["biases"], a["grams"], a.get("forms", [()] * (count - 1)), strict=True)
        )
        if w is not None
    ]
    edge_at = {edge.source: place for place, edge in enumerate(edges)}
    if method is None:
        method = Descent(a["lr"], a["momentum"], a["dampening"], a["nesterov"], a["resume"])
    elif isinstance(method, plan.Stepper):
        method = replace(method, outcome=number(outcome), progress=number(progress))
    made = Plan(
        tuple(nodes), tuple(edges), method, a["steps"], number(a["energies"]),
        targets=tuple(
            Target(what, i if what is Learned.LOGVAR else edge_at[i], rule, number(t), tuple(map(number, slots)))
            for what, i, rule, t, slots in targets
        ),
        precision=MatmulPrecision[a["matmul_precision"].upper()],
        **{k: number(x) if k == "order" else x for k, x in options.items()},
    )  # fmt: skip
    return made, operands


def law_of(precision):
    return Law.FULL_GAUSSIAN if precision is not None and precision.dim() == 2 else Law.GAUSSIAN


def factor_of(precision):
    """L and its inverse, with L L^T the covariance."""
    factor = torch.linalg.cholesky(torch.linalg.inv(precision))
    return torch.stack([factor, torch.linalg.inv(factor)])


def thetas(a):
    """Log-variances, or the precision itself where it is a matrix, which a node's weight is part of."""
    return [
        p if p is None or (p.dim() == 2 and scale == 1) else p * scale if p.dim() == 2 else -torch.log(p)
        for p, scale in zip(a["precisions"], a["scales"], strict=True)
    ]


def everything_learned(a, rule):
    """Every weight, bias and log-variance as a target of the one rule, with new slots for each."""
    slots = {RuleKind.GRADIENT: 0, RuleKind.SGD: 1}.get(rule.kind, 4)
    parameters = [
        *((Learned.WEIGHT, i, t) for i, t in enumerate(a["weights"])),
        *((Learned.BIAS, i, t) for i, t in enumerate(a["biases"])),
        *((Learned.LOGVAR, i, t) for i, t in enumerate(a["thetas"]) if a["predicted"][i]),
    ]
    targets = []
    for what, i, t in parameters:
        if t is None or (what is Learned.LOGVAR and t.dim() == 2):
            continue
        own = [torch.zeros_like(t) for _ in range(slots)]
        if rule.kind.counts_steps:
            own[0] = torch.zeros(())
        tensor = torch.full_like(t, float("nan")) if rule.kind is RuleKind.GRADIENT else t
        targets.append((what, i, 0, tensor, tuple(own)))
    return targets


def call(made, operands):
    run_plan_(operands.written, operands.read, *plan.encode(made))


def operator(**a):
    """Take a chain's E-steps, in place."""
    call(*planned(a))


def mstep(**a):
    """Gradients for weights and biases, and what log-variances learn from: the means of P (z - mu)^2.

    Without a bias and without a precision, those of zeros and ones are given.
    """
    states, batch = a["states"], a["states"][0].shape[0]
    unit = [z.new_zeros(z.shape[1]) if p is None else t
            for z, p, t in zip(states, a["precisions"], thetas(a), strict=True)]  # fmt: skip
    biases = [w.new_zeros(w.shape[0]) if b is None else b for w, b in zip(a["weights"], a["biases"], strict=True)]
    parameters = {Learned.WEIGHT: a["weights"], Learned.BIAS: biases, Learned.LOGVAR: unit}
    wanted = {Learned.WEIGHT: a["for_weight"], Learned.BIAS: a["for_bias"], Learned.LOGVAR: a["for_precision"]}
    targets = [
        (what, i, 0, torch.empty_like(parameters[what][i], memory_format=torch.contiguous_format), ())
        for what, all_wanted in wanted.items()
        for i, want in enumerate(all_wanted)
        if want
    ]
    still = {"free": [False] * len(states), "velocities": [], "energies": None, "steps": 0, "lr": 0.0,
             "momentum": 0.0, "dampening": 0.0, "nesterov": False, "resume": False,
             "grams": [False] * len(biases)}  # fmt: skip
    call(*planned(a | still | {"thetas": unit, "biases": biases}, targets,
                  learning=Learning.AT_THE_END, rules=(Rule(),)))  # fmt: skip
    found = []
    for what, i, _, gradient, _ in targets:
        if what is Learned.LOGVAR:  # of weight / 2 (log variance + E[P (z - mu)^2]) for each that it serves
            ones = states[i].shape[1] / max(1, gradient.numel()) * a["scales"][i] if batch else 0.0
            gradient = ones - 2 * gradient
        found.append(gradient)
    return found


def on(device, a):
    """Arguments on a device, their strides kept, sharing nothing with the originals."""

    def there(x):
        if isinstance(x, list):
            return [there(y) for y in x]
        return moved(x, device) if isinstance(x, torch.Tensor) else x

    return {k: there(x) for k, x in a.items()}


def to(x, dtype=None):
    if isinstance(x, list):
        return [to(y, dtype) for y in x]
    return x.to(dtype=dtype, copy=True) if isinstance(x, torch.Tensor) else x


def descend(a):
    """States, energies by step and node, and velocities, in float64 by autograd."""
    a = {k: to(x, torch.float64) for k, x in a.items()}
    states = [z.requires_grad_(is_free) for z, is_free in zip(a["states"], a["free"], strict=True)]
    options = {k: a[k] for k in ("momentum", "dampening", "nesterov")}
    sgd = torch.optim.SGD([z for z in states if z.requires_grad], lr=a["lr"], **options)
    record = []
    for _ in range(a["steps"]):
        sgd.zero_grad()
        by_node = torch.stack(energies(a))
        record.append(by_node.detach())
        by_node.sum().backward()
        sgd.step()
    velocities = [sgd.state[z].get("momentum_buffer") if z.requires_grad else None for z in states]
    return [z.detach() for z in states], torch.stack(record), velocities


def energies(a):
    """Energies of the nodes per sample, without log-determinants, written out: differentiable."""
    names = [*activations.ACTIVATIONS]
    functions = [
        lambda x, f=FUNCTIONS[names[k]][0], p=p: f(x, p) for k, p in zip(a["activations"], a["parameters"], strict=True)
    ]
    states, predictions = a["states"], [a["prior"]]
    forms = a.get("forms", [(False, 1.0, 1.0)] * len(a["weights"]))
    for i, (w, b, form) in enumerate(zip(a["weights"], a["biases"], forms, strict=True)):
        transposed, scale, bias_scale, *skip = form
        w, b = scale * (w.mT if transposed else w), None if b is None else bias_scale * b
        product = F.linear(functions[2 * i](states[i]), w, b)
        predictions.append(functions[2 * i + 1](product + skip[0] * states[i] if skip else product))
    result = []
    for z, mu, law, precision, predicted, scale, of_samples, parameter in zip(
        states, predictions, a.get("laws") or map(law_of, a["precisions"]), a["precisions"], a["predicted"],
        a["scales"], a.get("sample_weights", [None] * len(states)),
        a.get("law_parameters", [0.0] * len(states)), strict=True
    ):  # fmt: skip
        if not predicted:
            result.append(z.new_zeros(z.shape[0]))
            continue
        d = z - mu
        p = d.new_ones(()) if precision is None else precision
        if law is Law.CATEGORICAL:
            energy = -scale * (z * F.log_softmax(mu, 1)).sum(1)
        elif law is Law.FULL_GAUSSIAN:
            energy = 0.5 * scale * torch.einsum("bi,ij,bj->b", d, p, d)
        else:
            energy = scale * DEVIATIONS[law](z, mu.expand_as(z), p, parameter).sum(1)
        result.append(energy if of_samples is None else of_samples * energy)
    return result


def everything_wanted(a):
    """Arguments of `mstep` for all that there is."""
    names = ("states", "weights", "biases", "precisions", "scales", "prior", "activations", "parameters", "predicted",
             "matmul_precision")  # fmt: skip
    edges = len(a["weights"])
    return {k: a[k] for k in (*names, *(["forms"] if "forms" in a else []))} | {
        "for_weight": [True] * edges,
        "for_bias": [True] * edges,
        "for_precision": [
            predicted and law_of(p) is Law.GAUSSIAN
            for p, predicted in zip(a["precisions"], a["predicted"], strict=True)
        ],
    }


def mstep_by_autograd(a):
    """What `mstep` must return, in float64: a precision's second moment is twice the energy's slope there."""
    a = {k: to(x, torch.float64) for k, x in a.items()}
    n = a["states"][0].shape[0]
    biases = [w.new_zeros(w.shape[0]) if b is None else b
              for w, b in zip(a["weights"], a["biases"], strict=True)]  # fmt: skip
    ones = [z.new_ones(z.shape[1]) if p is None else p
            for z, p in zip(a["states"], a["precisions"], strict=True)]  # fmt: skip
    inputs = [*a["weights"], *biases, *ones]
    for t in inputs:
        t.requires_grad_()
    total = torch.stack(energies(a | {"biases": biases, "precisions": ones})).sum() / max(n, 1)
    found = torch.autograd.grad(total, inputs, allow_unused=True)
    edges = len(biases)
    moments = [2 * p.detach() * g for p, g, predicted in zip(ones, found[2 * edges :], a["predicted"], strict=True)
               if predicted and p.dim() == 1]  # fmt: skip
    return [*found[: 2 * edges], *moments]


def check(arguments, run=operator, unit=0.0):
    """The E-steps leave what autograd does, and the clamped states alone.

    Args:
        arguments: of `operator`.
        run: it, or what stands for it.
        unit: what rounding changes an operand of a product by, where float32 is not kept.
    """
    length = STEPS * max(z.shape[1] for z in arguments["states"])
    clamped = [z.clone() for z, free in zip(arguments["states"], arguments["free"], strict=True) if not free]
    expected, energies, velocities = descend(arguments)
    run(**arguments)
    for z, e in zip(arguments["states"], expected, strict=True):
        assert_near(z, e, length, unit=unit)
    if arguments["energies"] is not None:
        assert_near(arguments["energies"], energies, length**2, unit=unit)
    for v, e in zip(arguments["velocities"], velocities, strict=False):
        if e is not None:
            assert_near(v, e, length, unit=unit)
    untouched = [z for z, free in zip(arguments["states"], arguments["free"], strict=True) if not free]
    assert all(same_bits(a, b) for a, b in zip(clamped, untouched, strict=True))


def check_exactly(a, run=run_plan_, device="cpu"):
    """The states and velocities of an `exact_problem` are the reference's in float32, too, and all gradients are near.

    Args:
        a: the problem, in float64 on the CPU.
        run: what runs its plan.
        device: where.
    """
    made, operands = planned(a, everything_learned(a, Rule()), learning=Learning.AT_THE_END, rules=(Rule(),))
    encoded = plan.encode(made)
    found, read = ([moved(x, device) for x in to(of, torch.float32)] for of in (operands.written, operands.read))
    run(found, read, *encoded)
    definition.run_plan_(operands.written, operands.read, *encoded)
    for f, e in zip(found, operands.written, strict=True):
        f = f.cpu().double()
        if any(e is z for z in (*a["states"], *a["velocities"])):
            assert torch.equal(f, e)
        else:  # has more digits
            torch.testing.assert_close(f, e, rtol=1e-5, atol=1e-5)


def check_alone(a):
    """No sample of 70 depends on others or on threads, in any bit: of a problem whose energies are recorded."""
    whole = {k: to(x) for k, x in a.items()}
    operator(**whole)
    threads = torch.get_num_threads()
    try:
        for n, rows in ((1, slice(0, 1)), (7, slice(0, 70)), (3, slice(5, 9)), (2, slice(20, 41)), (1, slice(3, 70))):
            torch.set_num_threads(n)
            part = {k: to(x) for k, x in a.items()}
            part["states"] = [z[rows].clone() for z in part["states"]]
            weights = part.get("sample_weights", [None] * len(part["states"]))
            part["sample_weights"] = [w if w is None else w[rows].clone() for w in weights]
            part["energies"] = part["energies"][..., rows].clone()
            operator(**part)
            assert same_bits(part["energies"], whole["energies"][..., rows])
            for found, exact in zip(part["states"], whole["states"], strict=True):
                assert same_bits(found, exact[rows])
    finally:
        torch.set_num_threads(threads)


def check_resumed(whole, run=operator):
    """Steps in two runs that hand on their velocities come to the same as in one."""
    halves = {k: to(x, torch.float64) for k, x in whole.items()}
    run(**whole)
    run(**halves | {"steps": STEPS // 2})
    run(**halves | {"steps": STEPS // 2, "resume": True})
    for a, b in zip(whole["states"], halves["states"], strict=True):
        assert_near(a, b, 50)


def check_mstep(arguments, run=mstep, unit=0.0):
    """`mstep` returns autograd's gradients: all, and one at a time."""
    batch, widest = arguments["states"][0].shape[0], max(z.shape[1] for z in arguments["states"])
    wanted = everything_wanted(arguments)
    exact = mstep_by_autograd(arguments)
    found = run(**wanted)
    for f, e in zip(found, exact, strict=True):
        assert_near(f, e, max(1, batch) * widest, unit=unit)
    edges = len(arguments["weights"])
    names = ("for_weight", "for_bias", "for_precision")
    nothing = {k: [False] * len(wanted[k]) for k in names}
    where = [(k, i) for k in names for i, want in enumerate(wanted[k]) if want]
    for at in (0, edges - 1, edges, len(where) - 1):
        k, i = where[at]
        (alone,) = run(**wanted | nothing | {k: [j == i for j in range(len(wanted[k]))]})
        assert same_bits(alone, found[at])
