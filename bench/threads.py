"""Networks that learn at once, each in a thread on one core, beside the same one after another on one core or on all.

    python -m bench.threads                  # as many networks as this process may use cores; --networks 4 --rounds 9

Prints a table. Nothing is timed unless the weights that both ways come to are the same to the bit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import pyromancy as pyro

from .settings import ADAM_RATE, SETTINGS, Setting
from .timing import per_call

QUIET = 0.3  # interquartile range over median, above which rounds are disturbed
Work = Callable[[], None]
BATCHES = 8  # of an epoch
LEAST = 0.1  # seconds for which a network learns in a round


@dataclass
class Learner:
    """A network, and what it learns from: an epoch at a time below Python, or batch by batch."""

    em: pyro.EM
    net: pyro.networks.PCN
    x: Tensor
    y: Tensor
    batch: int

    @classmethod
    def of(cls, setting: Setting, seed: int) -> Learner:
        """Weights and data of a seed."""
        torch.manual_seed(seed)
        net = pyro.networks.mlp(setting.sizes, activation=setting.activation)
        x, y = (
            torch.rand(BATCHES * setting.batch, setting.sizes[0]),
            torch.rand(BATCHES * setting.batch, setting.sizes[-1]),
        )
        em = pyro.EM(
            net.energy, net.e_params(), torch.optim.Adam(net.m_params(), ADAM_RATE), start=net.start,
            steps=setting.steps, lr=setting.rate,
        )  # fmt: skip
        return cls(em, net, x, y, setting.batch)

    def epoch(self) -> None:
        """All batches, below Python."""
        for _ in self.em.epoch(self.x, self.y, batch_size=self.batch, shuffle=False):
            pass

    def step(self) -> None:
        """All batches, one call for each."""
        for x, y in zip(self.x.split(self.batch), self.y.split(self.batch), strict=True):
            self.em.step(x, y)


def in_turn(works: list[Work], cores: int) -> None:
    """One after another, each with so many cores."""
    torch.set_num_threads(cores)
    for work in works:
        work()


def at_once(works: list[Work]) -> None:
    """Each in a thread, with a core."""

    def alone(work: Work) -> None:
        torch.set_num_threads(1)  # of this thread
        work()

    threads = [threading.Thread(target=alone, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def require_same_bits(setting: Setting, networks: int, cores: int) -> None:
    """Raise AssertionError unless all ways come to the same weights."""
    ways: list[Callable[[list[Work]], None]] = [at_once, partial(in_turn, cores=1), partial(in_turn, cores=cores)]
    found = []
    for way in ways:
        learners = [Learner.of(setting, seed) for seed in range(networks)]
        way([learner.epoch for learner in learners])
        found.append([p for learner in learners for p in learner.net.m_params()])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True)), setting


def row(setting: Setting, how: str, networks: int, cores: int, rounds: int) -> list[str]:
    """Milliseconds of a batch in the three ways, and what at once is over the other two."""
    once: list[Work] = [getattr(Learner.of(setting, seed), how) for seed in range(networks)]
    in_turn(once, cores)  # to be warm
    passes = max(1, round(LEAST * networks / per_call(partial(in_turn, once, cores))))
    works: list[Work] = [partial(_repeated, work, passes) for work in once]
    ways = [partial(in_turn, works, 1), partial(in_turn, works, cores), partial(at_once, works)]
    at_once(works)
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for way, taken in zip(ways, times, strict=True):
            taken.append(per_call(way))
    batches = networks * passes * BATCHES
    marks = ["" if is_quiet(taken) else "~" for taken in times]
    cells = [f"{mark}{1e3 * statistics.median(t) / batches:.3g} ms" for mark, t in zip(marks, times, strict=True)]
    for mark, taken in zip(marks, times[:2], strict=False):
        ratio = statistics.median(a / b for a, b in zip(taken, times[2], strict=True))
        cells.append(f"{max(mark, marks[2])}{ratio:.2f}x")
    return cells


def _repeated(work: Work, count: int) -> None:
    for _ in range(count):
        work()


def is_quiet(taken: list[float]) -> bool:
    """Whether rounds were not disturbed."""
    low, middle, high = statistics.quantiles(taken, n=4)
    return high - low <= QUIET * middle


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--networks", type=int, default=cores)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=[*SETTINGS])
    options = parser.parse_args()
    print(f"{options.networks} networks, torch {torch.__version__}; for a batch of one of them\n")
    print(f"| EM batch | by | in turn, 1 core | in turn, {cores} cores | at once | over 1 core | over {cores} |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name in options.settings:
        require_same_bits(SETTINGS[name], options.networks, cores)
        for how in ("epoch", "step"):
            cells = row(SETTINGS[name], how, options.networks, cores, options.rounds)
            print(f"| {name} | `{how}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
