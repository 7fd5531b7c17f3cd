"""What networks have learned after some epochs: at equilibrium without a rate, by descent, and by backpropagation.

    python -m bench.training --quick              # small networks, scikit-learn's digits, one seed: some seconds
    python -m bench.training --data DIR           # MNIST, from its IDX files in DIR: hours
    python -m bench.training --data DIR --tasks generative --learners equilibrium backpropagation --images 30000

All learners of a task have the same networks, samples in the same order, and Adam at the best of its rates on the
first seed. Classifiers are judged by forward sweeps on the test images, generative networks by their free energy at
equilibrium on some of them, which one method finds for all.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import pyromancy
from pyromancy.methods import Accelerated, Descent, Method
from pyromancy.networks import PCN, mlp
from pyromancy.nodes import IsotropicGaussianNode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

EXAMPLES = Path(__file__).parents[1] / "examples"  # which read the digits
JUDGED = 1000  # test samples that are brought to equilibrium
CLASSES = 10


@dataclass(frozen=True)
class Task:
    """A network, and how long it learns.

    Attributes:
        sizes: widths of the nodes, input first.
        activation: f of ``mu = W f(z) + b``, by name; the input has none.
        batch: samples.
        epochs: passes over the training images.
        learners: the names of those that are compared.
        rates: of Adam, to choose from.
        gain: weights are drawn from N(0, gain^2 / fan-in), biases are 0; None leaves both to `torch.nn.Linear`.
    """

    sizes: tuple[int, ...]
    activation: str
    batch: int
    epochs: int
    learners: tuple[str, ...]
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    gain: float | None = None

    @property
    def generative(self) -> bool:
        """Whether labels predict images, and not images labels."""
        return self.sizes[0] < self.sizes[-1]

    def network(self, seed: int, variance: float = 1.0) -> PCN:
        """One drawn by this seed, with so much variance at the output."""
        torch.manual_seed(seed)
        net = mlp(self.sizes, self.activation)
        for layer in net.sequential():
            if self.gain is not None and isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=self.gain * layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)
        if variance == 1:
            return net
        nodes: list[Any] = list(net.nodes)
        output = IsotropicGaussianNode(self.sizes[-1], variance=variance).requires_grad_(False)
        return PCN([*nodes[:-1], output], net.edges)


@dataclass(frozen=True)
class Learner:
    """How weights learn from a batch.

    Attributes:
        method: of the E-steps; None is backpropagation of the squared error.
        steps: E-steps, with `tol` at most.
        tol: where samples stop.
        variance: of the output.
    """

    method: Method | None = None
    steps: int = 0
    tol: float | None = None
    variance: float = 1.0


LEARNERS = {
    "backpropagation": Learner(),
    "descent T=20": Learner(Descent(0.1), 20),
    "descent T=20 rate 0.05": Learner(Descent(0.05), 20),
    "descent T=64": Learner(Descent(0.1), 64),
    "tol 0.1": Learner(Accelerated(), 100, 0.1),
    "tol 0.01": Learner(Accelerated(), 300, 0.01),
    "tol 0.001": Learner(Accelerated(), 1000, 0.001),
    "tol 0.01 v=10": Learner(Accelerated(), 300, 0.01, variance=10.0),
    "tol 0.1 v=10": Learner(Accelerated(), 100, 0.1, variance=10.0),
    "tol 0.1 v=100": Learner(Accelerated(), 100, 0.1, variance=100.0),
    "tol 0.1 v=1000": Learner(Accelerated(), 100, 0.1, variance=1000.0),
    "tol 0.1 v=10000": Learner(Accelerated(), 100, 0.1, variance=10000.0),
}
_DEEP = ("backpropagation", "descent T=64", "tol 0.1")
TASKS = {
    "tutorial": Task(
        (784, 256, 256, 10), "relu", 500, 6,
        ("backpropagation", "descent T=20", "tol 0.1", "tol 0.01", "tol 0.001", "tol 0.01 v=10"), (3e-4, 1e-3, 3e-3),
    ),
    "deep": Task((784, *[128] * 19, 10), "tanh", 64, 1, ("descent T=64", "tol 0.01"), gain=1.0),
    "generative": Task(
        (10, 256, 256, 784), "relu", 500, 6,
        ("descent T=20", "descent T=20 rate 0.05", "tol 0.1", "tol 0.01", "tol 0.001"), (3e-4, 1e-3, 3e-3),
    ),
    "tanh": Task((784, *[128] * 20, 10), "tanh", 64, 3, (*_DEEP, "tol 0.1 v=10", "tol 0.1 v=100"), gain=1.0),
    "gelu": Task((784, *[128] * 20, 10), "gelu", 64, 3, _DEEP, gain=2**0.5),
    "relu": Task((784, *[128] * 20, 10), "relu", 64, 3, (*_DEEP, "tol 0.1 v=1000", "tol 0.1 v=10000"), gain=2**0.5),
}  # fmt: skip
QUICK = {
    "tanh": Task((64, *[32] * 10, 10), "tanh", 32, 12, ("backpropagation", "tol 0.1", "tol 0.1 v=100"), (1e-3,), 1.0),
    "generative": Task((10, 32, 32, 64), "relu", 100, 12, ("descent T=20", "tol 0.1", "tol 0.01"), (3e-3,)),
}


class Pair(NamedTuple):
    """Inputs and targets, ``[N, in]`` and ``[N, out]``."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Data:
    """Images as rows of numbers in [0, 1] with their labels, one-hot."""

    train: Pair
    test: Pair

    @staticmethod
    def load(folder: Path | None, images: int | None = None) -> Data:
        """MNIST of a folder, or scikit-learn's digits; of the training images the first ones only."""
        if str(EXAMPLES) not in sys.path:
            sys.path.append(str(EXAMPLES))
        from digits import load_digits, load_idx

        found = load_digits() if folder is None else load_idx(folder)
        train, test = (F.one_hot(labels, CLASSES).float() for labels in (found.train_labels, found.test_labels))
        return Data(Pair(found.train_x[:images], train[:images]), Pair(found.test_x, test))

    def of(self, task: Task) -> Data:
        """With labels as inputs where they predict."""
        return Data(Pair(*self.train[::-1]), Pair(*self.test[::-1])) if task.generative else self


@dataclass(frozen=True)
class Result:
    """What one network has come to.

    Attributes:
        task: by name.
        learner: by name.
        rate: Adam's.
        seed: of the network and the order of samples.
        scores: after every epoch: % of the test images, or the free energy at equilibrium of a generative network.
        share: of the energy of a forward sweep, how much inference takes: before and after learning.
        sweeps: until `tol`, of a sample after learning; None without.
        ms: wall time of a batch.
    """

    task: str
    learner: str
    rate: float
    seed: int
    scores: list[float]
    share: tuple[float, float]
    sweeps: float | None
    ms: float


def energies(net: PCN, test: Pair) -> tuple[float, float]:
    """Free energy, less its normalizers, of a forward sweep and at equilibrium: means over samples, in nats."""
    x, y = test.x[:JUDGED], test.y[:JUDGED]
    net.start(x, y)
    loop = pyromancy.InferenceLoop(net.energy, net.e_params(), method=Accelerated())
    output: Any = net.nodes[-1]
    normalizers = 0.5 * y.shape[1] * output.logvar.item() if hasattr(output, "logvar") else 0.0
    before = net.energy().mean().item()
    loop.run(1000, tol=1e-3)
    return before - normalizers, net.energy().mean().item() - normalizers


@torch.no_grad()
def accuracy(net: PCN, test: Pair) -> float:
    """% of the samples whose largest prediction is at their label."""
    return 100 * (net.predict(test.x).argmax(1) == test.y.argmax(1)).double().mean().item()


def epochs(learner: Learner, net: PCN, rate: float, train: Pair, batch: int, order: torch.Generator) -> Iterator[None]:
    """Learns an epoch at every step."""
    if learner.method is None:
        layers, adam = net.sequential(), torch.optim.Adam(net.m_params(), rate, fused=True)
        while True:
            for rows in torch.randperm(len(train.x), generator=order).split(batch):
                adam.zero_grad()
                (0.5 * (layers(train.x[rows]) - train.y[rows]).square().sum(1)).mean().backward()
                adam.step()
            yield
    em = pyromancy.EM(
        net.energy, net.e_params(), torch.optim.Adam(net.m_params(), rate), start=net.start, steps=learner.steps,
        method=learner.method, tol=learner.tol,
    )  # fmt: skip
    while True:
        for _ in em.epoch(*train, batch_size=batch, generator=order):
            pass
        yield


def sweeps(learner: Learner, net: PCN, test: Pair) -> float | None:
    """How many a sample takes."""
    if learner.tol is None:
        return None
    net.start(test.x[:JUDGED], test.y[:JUDGED])
    trace = pyromancy.InferenceLoop(net.energy, net.e_params(), method=learner.method).run(
        learner.steps, tol=learner.tol
    )
    assert trace.taken is not None
    return trace.taken.double().mean().item()


def train(name: str, task: Task, by: str, rate: float, seed: int, data: Data) -> Result:
    """A network that learns, judged after every epoch."""
    data, learner = data.of(task), LEARNERS[by]
    net = task.network(seed, learner.variance)
    learned = epochs(learner, net, rate, data.train, task.batch, torch.Generator().manual_seed(seed))
    scores, seconds, (before, after) = [], 0.0, energies(net, data.test)
    first = 1 - after / before
    for _ in range(task.epochs):
        start = time.perf_counter()
        next(learned)
        seconds += time.perf_counter() - start
        if task.generative:
            before, after = energies(net, data.test)
        scores.append(after if task.generative else accuracy(net, data.test))
    if not task.generative:
        before, after = energies(net, data.test)
    ms = 1e3 * seconds / (task.epochs * math.ceil(len(data.train.x) / task.batch))
    return Result(name, by, rate, seed, scores, (first, 1 - after / before), sweeps(learner, net, data.test), ms)


def best(results: Sequence[Result], generative: bool) -> Result:
    """The one whose last score is best; one that is not finite is worst."""

    def order(result: Result) -> float:
        score = result.scores[-1]
        return math.inf if not math.isfinite(score) else score if generative else -score

    return min(results, key=order)


def race(name: str, task: Task, learners: Sequence[str], seeds: Sequence[int], data: Data) -> Iterator[Result]:
    """All results of a task: of the first seed at every rate, then of the others at each learner's best rate."""
    for by in learners:
        first = []
        for rate in task.rates:
            first.append(train(name, task, by, rate, seeds[0], data))
            yield first[-1]
        rate = best(first, task.generative).rate
        for seed in seeds[1:]:
            yield train(name, task, by, rate, seed, data)


def table(results: Sequence[Result], tasks: dict[str, Task]) -> str:
    """Of every learner at its best rate: the mean of its last scores and their range, over seeds."""
    lines = ["| task | learner | rate | seeds | score | range | share before, after | sweeps | ms |"]
    lines.append("| --- | --- | " + "---: | " * 6 + "---: |")
    for name, by in dict.fromkeys((r.task, r.learner) for r in results):
        of = [r for r in results if (r.task, r.learner) == (name, by)]
        rate = best([r for r in of if r.seed == of[0].seed], tasks[name].generative).rate
        of = [r for r in of if r.rate == rate]
        scores = [r.scores[-1] for r in of]
        share = ", ".join(f"{statistics.mean(r.share[i] for r in of):.2f}" for i in (0, 1))
        taken = "" if of[0].sweeps is None else f"{statistics.mean(r.sweeps or 0 for r in of):.1f}"
        lines.append(
            f"| {name} | {by} | {rate:g} | {len(of)} | {statistics.mean(scores):.2f} | {min(scores):.2f} to "
            f"{max(scores):.2f} | {share} | {taken} | {statistics.median(r.ms for r in of):.1f} |"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description="What networks learn at equilibrium, by descent and by backpropagation.")
    p.add_argument("--quick", action="store_true", help="small networks on scikit-learn's digits, one seed")
    p.add_argument("--data", type=Path, metavar="DIR", help="MNIST's IDX files, gzipped or not")
    p.add_argument("--tasks", nargs="+", choices=TASKS, metavar="TASK", help=f"of {', '.join(TASKS)} (all)")
    p.add_argument("--learners", nargs="+", choices=LEARNERS, metavar="LEARNER", help="(those of the task)")
    p.add_argument("--rates", nargs="+", type=float, metavar="RATE", help="of Adam, to choose from (those of the task)")
    p.add_argument("--seeds", nargs="+", type=int, default=None, metavar="SEED", help="(0 1 2; 0 with --quick)")
    p.add_argument("--images", type=int, metavar="N", help="learn from the first N images (all)")
    p.add_argument("--epochs", type=int, metavar="N", help="passes over them (those of the task)")
    p.add_argument("--out", type=Path, metavar="FILE", help="add results to this file, a line of JSON each")
    return p


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Run the command line, on one thread.

    Returns:
        All results.
    """
    p = parser()
    args = p.parse_args(argv)
    if args.quick == (args.data is not None):
        p.error("give either --quick or --data DIR")
    tasks = QUICK if args.quick else TASKS
    for name in args.tasks or ():
        if name not in tasks:
            p.error(f"argument --tasks: with --quick there are {' and '.join(tasks)}, not {name}")
    data, results = Data.load(args.data, args.images), []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in args.tasks or tasks:
            task = replace(
                tasks[name], epochs=args.epochs or tasks[name].epochs, rates=tuple(args.rates or tasks[name].rates)
            )
            seeds = args.seeds or ([0] if args.quick else [0, 1, 2])
            for result in race(name, task, args.learners or task.learners, seeds, data):
                results.append(result)
                line = json.dumps(asdict(result))
                if args.out is not None:
                    with args.out.open("a") as file:
                        file.write(line + "\n")
                print(line, file=sys.stderr, flush=True)
    finally:
        torch.set_num_threads(threads)
    print(table(results, tasks))
    return results


if __name__ == "__main__":
    main()
