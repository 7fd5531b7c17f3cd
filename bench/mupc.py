"""muPC networks with skips: an EM batch against autograd, the graph executor and JAX, and depth 128 against backprop.

    python -m bench.mupc time
    python -m bench.mupc compare DIR    # MNIST's IDX files: gradients at equilibrium and by backpropagation
    python -m bench.mupc train DIR

All print tables. Each training run prints a line as it ends, so that a run that is broken off is not lost.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

import pyromancy
from pyromancy.methods import Accelerated
from pyromancy.networks import PCN, mlp

from .exact import EXACT, ROUNDING, exact_of_edges, outcome, require
from .general import GENERAL
from .loops import em_step, plain
from .rivals import EPS, NotHereError, jax_adam
from .settings import ADAM_RATE
from .timing import per_call

if TYPE_CHECKING:
    from .general import General
    from .network import Problem

Batch = Callable[[], object]


def graph(problem: Problem) -> Batch:
    """The documented loop by the executor that takes any network."""
    loop = pyromancy.InferenceLoop(problem.net.energy, problem.e_params, lr=problem.rate, executor="graph")
    m_opt = torch.optim.Adam(problem.m_params, lr=ADAM_RATE)

    def batch() -> None:
        problem.net.init_xy(problem.x, problem.y)
        loop.run(problem.steps)
        m_opt.zero_grad()
        loop.backward(problem.m_params)
        m_opt.step()

    return batch


def jax_scan(general: General) -> tuple[Batch, Callable[[], list[Tensor]]]:
    """The batch under one jit, a scan over the E-steps, and the states that it leaves.

    Raises:
        NotHereError: JAX is not installed.
    """
    try:
        jax = importlib.import_module("jax")
    except ImportError as error:
        raise NotHereError(str(error)) from None
    jnp = jax.numpy
    _, edges, x, y = general.parts()
    x, y = (jnp.asarray(t.numpy()) for t in (x, y))
    weights = [jnp.asarray(p.detach().numpy()) for p in edges.parameters()]
    scales = [m.scale for m in edges.modules() if hasattr(m, "scale")]

    def predict(edge: int, weights: Any, z: Any) -> Any:
        if edge == 0:
            return scales[0] * (z @ weights[0].T)
        product = scales[edge] * (jax.nn.relu(z) @ weights[edge].T)
        return product if edge == len(weights) - 1 else z + product

    def energy(weights: Any, states: Any, first: Any, y: Any) -> Any:
        predictions = [first, *(predict(i, weights, z) for i, z in enumerate(states, 1))]
        return sum(0.5 * jnp.sum((z - mu) ** 2) for z, mu in zip([*states, y], predictions, strict=True))

    def batch(weights: Any, mean: Any, square: Any, count: Any, x: Any, y: Any) -> Any:
        first = predict(0, weights, x)
        states = [first]
        for i in range(1, len(weights) - 1):
            states.append(predict(i, weights, states[-1]))

        def estep(states: Any, _: Any) -> Any:
            gradients = jax.grad(energy, 1)(weights, states, first, y)
            return [z - general.rate * g for z, g in zip(states, gradients, strict=True)], None

        states, _ = jax.lax.scan(estep, states, None, length=general.steps)
        gradients = jax.grad(lambda w: energy(w, states, predict(0, w, x), y) / general.batch)(weights)
        return *jax_adam(weights, mean, square, count, gradients), states

    with jax.default_matmul_precision("highest"):
        step = jax.jit(batch, donate_argnums=(0, 1, 2, 3))
        zeros = [[jnp.zeros_like(w) for w in weights] for _ in range(2)]
        program = step.lower(weights, *zeros, jnp.zeros(()), x, y).compile()
    kept: list[Any] = [weights, *zeros, jnp.zeros(()), None]

    def run() -> None:
        kept[:] = program(*kept[:4], x, y)
        jax.block_until_ready(kept)

    return run, lambda: [torch.tensor(jax.device_get(z)) for z in kept[4]]


def time_batches(rounds: int) -> None:
    """Print what a batch takes, and the time of the others over that of one call of `EM`."""
    general = GENERAL["muPC, 30 x 128"]
    few = replace(general, batch=8)
    _, edges, x, y = few.parts()
    exact = exact_of_edges(edges, x, y, few.steps, few.rate)
    for make in (plain, graph, em_step):
        problem = few.problem(pyromancy, torch.float64)
        make(problem)()
        require(outcome(problem).deviation(exact), EXACT, f"{make.__name__}: states or gradients are")
    runs: dict[str, Batch] = {}
    problems = {make.__name__: general.problem(pyromancy) for make in (plain, graph, em_step)}
    for make in (plain, graph, em_step):
        runs[make.__name__] = make(problems[make.__name__])
        runs[make.__name__]()
    ends = [problems[name].states for name in problems]
    try:
        runs["JAX scan"], states = jax_scan(general)
        runs["JAX scan"]()
        ends.append(states())
    except NotHereError as reason:
        print(f"no JAX: {reason}")
    for end in ends[1:]:
        off = [((a - b).norm() / b.norm()).item() for a, b in zip(end, ends[0], strict=True)]
        require(max(off), ROUNDING, "the states are")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(per_call(run))
    print("| | ms, median | over EM | autograd over it |\n| --- | --- | --- | --- |")
    for name, of in times.items():
        over_em, under_plain = (
            statistics.median(a / b for a, b in pairs)
            for pairs in (zip(of, times["em_step"], strict=True), zip(times["plain"], of, strict=True))
        )
        print(f"| {name} | {1e3 * statistics.median(of):.1f} | {over_em:.2f} | {under_plain:.2f} |")


def network(width: int, depth: int, variance: float = 1.0) -> PCN:
    """So many edges; the output has a variance, which does not learn."""
    return with_variance(mlp([784, *[width] * (depth - 1), 10], scaling="mupc", skips=True), variance)


def with_variance(net: PCN, variance: float) -> PCN:
    """The same edges under such an output."""
    if variance == 1:
        return net
    output = pyromancy.nodes.IsotropicGaussianNode(10, variance=variance).requires_grad_(False)
    nodes: list[Any] = [*list(net.nodes)[:-1], output]
    return PCN(nodes, net.edges)


def train(
    net: PCN, how: str, variance: float, rate: float, batches: Sequence[Tensor], x: Tensor, y: Tensor, tol: float
) -> str:
    """One run of Adam over batches of rows; what became of the sweeps.

    An output of variance v divides gradients by about v: Adam's epsilon, which they come close to here, follows.
    """
    adam = torch.optim.Adam(net.m_params(), lr=rate, eps=EPS / variance)
    if how == "backprop":
        for rows in batches:
            adam.zero_grad()
            by_backprop(net, x[rows], y[rows]).backward()
            adam.step()
        return ""
    em = pyromancy.EM(net.energy, net.e_params(), adam, start=net.start, steps=200, method=Accelerated(), tol=tol)
    sweeps = 0.0
    for rows in batches:
        taken = em.step(x[rows], y[rows]).taken
        sweeps += math.nan if taken is None else taken.float().mean().item()
    return f"{sweeps / len(batches):.1f} sweeps"


def by_backprop(net: PCN, x: Tensor, y: Tensor) -> Tensor:
    """Half the squared error of a forward sweep, a mean over samples."""
    return 0.5 * (y - net.predict(x)).square().sum(1).mean()


def compare(args: argparse.Namespace) -> None:
    """Print the share of the energy that inference takes, and what it makes of every edge's gradient."""
    x, y, _ = digits(args.folder)
    torch.manual_seed(args.seeds[0])
    net = network(args.width, args.depth)
    adam = torch.optim.Adam(net.m_params(), lr=args.rates[0])
    layers = shown(args.depth)
    print(f"| batches | v | share | sweeps | cosine with backprop's {[i + 1 for i in layers]} | size over it |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for done, rows in enumerate(torch.randperm(len(x)).split(64)[: args.batches + 1]):
        if done in (0, args.batches):
            for variance in sorted({variance for _, variance in args.ways}):
                compare_batch(net, variance, x[rows], y[rows], args.tol, f"| {done} ", layers)
        adam.zero_grad()
        by_backprop(net, x[rows], y[rows]).backward()
        adam.step()


def compare_batch(
    net: PCN, variance: float, x: Tensor, y: Tensor, tol: float, told: str, layers: Sequence[int]
) -> None:
    weights = list(net.edges.parameters())
    expected = torch.autograd.grad(by_backprop(net, x, y), weights)
    net = with_variance(net, variance)
    loop = pyromancy.InferenceLoop(net.energy, net.e_params(), method=Accelerated())

    def energy() -> float:
        """Without the normalizer."""
        return net.energy().mean().item() - 5 * math.log(variance)

    net.start(x, y)
    first = energy()
    taken = loop.run(200, tol=tol).taken
    share = 1 - energy() / first
    for w in weights:
        w.grad = None
    loop.backward(weights)
    pairs = [(w.grad, e) for w, e in zip(weights, expected, strict=True)]
    cosines = [F.cosine_similarity(g.flatten(), e.flatten(), dim=0).item() for g, e in pairs if g is not None]
    sizes = [(variance * g.norm() / e.norm()).item() for g, e in pairs if g is not None]
    sweeps = math.nan if taken is None else taken.float().mean().item()
    of = [", ".join(f"{values[i]:.2f}" for i in layers) for values in (cosines, sizes)]
    print(f"{told}| {variance:g} | {share:.3f} | {sweeps:.1f} | {of[0]} | {of[1]} |", flush=True)


def shown(depth: int) -> list[int]:
    """The edges that tables name."""
    return [0, 1, depth // 4, depth // 2, 3 * depth // 4, depth - 2, depth - 1]


def digits(folder: str) -> tuple[Tensor, Tensor, Any]:
    """Images, one-hot labels and all that there is."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    data = importlib.import_module("digits").load_idx(Path(folder))
    return data.train_x, F.one_hot(data.train_labels, 10).float(), data


def changes(net: PCN, before: Sequence[Tensor]) -> list[float]:
    """The norm of every weight's change."""
    return [(p.detach() - w).norm().item() for p, w in zip(net.edges.parameters(), before, strict=True)]


def accuracy(net: PCN, x: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        parts = zip(x.split(1000), labels.split(1000), strict=True)
        return 100 * sum((net.predict(a).argmax(1) == b).sum().item() for a, b in parts) / len(x)


def train_all(args: argparse.Namespace) -> None:
    """Print the accuracy of every way, rate and seed, and how far the weights of some layers went."""
    x, y, data = digits(args.folder)
    layers = shown(args.depth)
    print(f"784-{args.width}x{args.depth - 1}-10 ReLU, batch 64, {args.batches} batches, tol {args.tol:g}", flush=True)
    print(f"| way | v | Adam | seed | % | ms | sweeps | change of weights {[i + 1 for i in layers]} | least, most |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for seed, rate, (how, variance) in itertools.product(args.seeds, args.rates, args.ways):
        torch.manual_seed(seed)
        net = network(args.width, args.depth, variance)
        before = [p.detach().clone() for p in net.edges.parameters()]
        order = torch.cat([torch.randperm(len(x)) for _ in range(math.ceil(args.batches * 64 / len(x)))])
        start = time.perf_counter()
        told = train(net, how, variance, rate, order.split(64)[: args.batches], x, y, args.tol)
        ms = 1e3 * (time.perf_counter() - start) / args.batches
        moved = changes(net, before)
        of = ", ".join(f"{moved[i]:.1f}" for i in layers)
        hidden, right = moved[1:-1], accuracy(net, data.test_x, data.test_labels)
        print(
            f"| {how} | {variance:g} | {rate:g} | {seed} | {right:.2f} | {ms:.0f} | "
            f"{told} | {of} | {min(hidden):.1f}, {max(hidden):.1f} |",
            flush=True,
        )


def way(text: str) -> tuple[str, float]:
    """A way to learn, and the output's variance after a colon."""
    how, _, variance = text.partition(":")
    if how not in ("backprop", "em"):
        raise argparse.ArgumentTypeError(f"must be backprop or em, got {how!r}")
    return how, float(variance or 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    of = parser.add_subparsers(required=True, dest="what")
    timing = of.add_parser("time")
    timing.add_argument("--rounds", type=int, default=15)
    for name, rates, batches, ways in (
        ("compare", [0.01], 200, [("em", v) for v in (1.0, 10.0, 100.0, 1000.0)]),
        ("train", [0.003, 0.01, 0.03], 938, [("backprop", 1.0), ("em", 1.0), ("em", 1000.0)]),
    ):
        learning = of.add_parser(name)
        learning.add_argument("folder")
        learning.add_argument("--width", type=int, default=64)
        learning.add_argument("--depth", type=int, default=128, help="edges")
        learning.add_argument("--batches", type=int, default=batches)
        learning.add_argument("--tol", type=float, default=1e-2)
        learning.add_argument("--rates", type=float, nargs="+", default=rates)
        learning.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        learning.add_argument("--ways", type=way, nargs="+", default=ways)
    args = parser.parse_args()
    if args.what == "time":
        time_batches(args.rounds)
    else:
        {"compare": compare, "train": train_all}[args.what](args)


if __name__ == "__main__":
    main()
