"""A long training of many small networks at once, over which nothing may grow: `python -m bench.soak`.

Networks that move by every method, in plans, on traced graphs and on autograd, learn from batches of changing sizes.
After every window of batches each is made anew, and takes over the state of the old one. A window is the same sequence
of sizes and networks every time, so that windows can be compared: memory, descriptors, threads, objects that Python's
collector knows, and processor time. What grows ends the program with 1.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import random
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

import pyromancy as pyro
from pyromancy import methods

INPUTS, OUTPUTS, SIZES = 12, 4, range(1, 49)
METHODS: dict[str, methods.Method] = {
    "descent": methods.Descent(0.1),
    "momentum": methods.Descent(0.05, 0.5),
    "Nesterov": methods.Accelerated(0.05),
    "accelerated": methods.Accelerated(),
    "states": methods.Accelerated(coordinates="states"),
    "LBFGS": methods.LBFGS(),
    "Adam": methods.Adam(0.01),
    "Heun": methods.Heun(0.05),
    "Langevin": methods.Langevin(0.05),
    "sequential": methods.Sequential(0.1),
    "fixed prediction": methods.FixedPrediction(),
    "ZIL": methods.ZIL(),
}


class Training:
    """A network and what trains it; `kind` is a method's name, or one of `OTHERS`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        layers: tuple[nn.Module, ...]
        if kind == "convolutions":
            layers = nn.Unflatten(1, (1, INPUTS)), nn.Conv1d(1, 3, 3), nn.ReLU(), nn.Flatten()
            self.net = pyro.networks.from_sequential(nn.Sequential(*layers, nn.Linear(3 * (INPUTS - 2), OUTPUTS)))
        elif kind == "dropout":
            layers = nn.Linear(INPUTS, 8), nn.Tanh(), nn.Dropout(0.2)
            self.net = pyro.networks.from_sequential(nn.Sequential(*layers, nn.Linear(8, OUTPUTS)))
        else:
            self.net = pyro.networks.mlp([INPUTS, 16, 10, OUTPUTS], activation="tanh")
        learned = self.net.m_params()
        optimizer = torch.optim.NAdam(learned, 1e-3) if kind == "NAdam" else torch.optim.Adam(learned, 1e-3)
        self.em = pyro.EM(
            self.net.energy, self.net.e_params(), optimizer, start=self.net.start, steps=4,
            method=METHODS.get(kind), lr=None if kind in METHODS else 0.1, tol=1e-2 if kind == "tol" else None,
            incremental=kind == "incremental",
        )  # fmt: skip
        self.loop = pyro.InferenceLoop(self.net.energy, self.net.e_params(), lr=0.1)

    def batch(self, x: Tensor, y: Tensor) -> None:
        """One batch."""
        if self.kind == "loop":
            self.net.start(x, y)
            self.loop.run(4, record=True)
            self.loop.backward(self.net.m_params())
            self.em.optimizer.step()
            self.em.optimizer.zero_grad()
        elif self.kind == "options":  # that change from batch to batch
            self.em.steps, self.em.lr, self.em.momentum = 1 + len(x) % 5, 0.1 / (1 + len(x) % 3), 0.5 * (len(x) % 2)
            self.em.step(x, y)
        else:
            self.em.step(x, y)

    def renewed(self) -> Training:
        """Another, which goes on from here."""
        other = Training(self.kind)
        other.net.load_state_dict(self.net.state_dict())
        if self.kind != "loop":
            other.em.load_state_dict(self.em.state_dict())
        return other


OTHERS = ("NAdam", "convolutions", "dropout", "incremental", "tol", "loop", "options")


@dataclass(frozen=True)
class Window:
    """What the process held after a number of batches, and what these took.

    Attributes:
        batches: done since the beginning.
        memory: resident, MiB.
        descriptors: open ones.
        threads: of the process.
        objects: that the collector knows, after a collection.
        milliseconds: of processor time a batch.
    """

    batches: int
    memory: float
    descriptors: int
    threads: int
    objects: int
    milliseconds: float


# By how much the last quarter may be above the second one; the first one is for what is kept on purpose.
MOST_MORE = {"memory": 2.0, "descriptors": 0, "threads": 0, "objects": 200}
MOST_TIMES = {"milliseconds": 1.25}


def grown(windows: list[Window]) -> list[str]:
    """What has grown, in words."""
    quarter = len(windows) // 4
    if quarter < 1:
        raise ValueError(f"windows must be at least 4, got {len(windows)}")
    told = []
    for name in (*MOST_MORE, *MOST_TIMES):
        before, after = (
            median(float(getattr(w, name)) for w in part)
            for part in (windows[quarter : 2 * quarter], windows[-quarter:])
        )
        most = before + MOST_MORE[name] if name in MOST_MORE else before * MOST_TIMES[name]
        if after > most:
            told.append(f"{name} went from {before:.6g} to {after:.6g}")
    return told


def soak(batches: int, windows: int) -> Iterator[Window]:
    """Train, and look after every window."""
    torch.manual_seed(0)
    kinds = (*METHODS, *OTHERS)
    trainings = {kind: Training(kind) for kind in kinds}
    x, y = torch.rand(SIZES.stop, INPUTS), torch.rand(SIZES.stop, OUTPUTS)
    for window in range(1, windows + 1):
        began, draw = time.process_time(), random.Random(0)
        for kind in itertools.islice(itertools.cycle(kinds), batches // windows):
            size = draw.choice(SIZES)
            trainings[kind].batch(x[:size], y[:size])
        seconds = time.process_time() - began
        trainings = {kind: training.renewed() for kind, training in trainings.items()}
        for training in trainings.values():
            training.batch(x, y)
            training.em.loop.explain()
        gc.collect()
        yield Window(window * (batches // windows), *held(), 1e3 * seconds / (batches // windows))


def held() -> tuple[float, int, int, int]:
    """Of this process: resident MiB, descriptors, threads, objects."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return (
        pages * resource.getpagesize() / 2**20,
        len(os.listdir("/proc/self/fd")) - 1,
        len(os.listdir("/proc/self/task")),
        len(gc.get_objects()),
    )


def main(argv: list[str] | None = None) -> None:
    """Print a row for every window."""
    p = argparse.ArgumentParser(description="Many batches, over which nothing may grow.")
    p.add_argument("--batches", type=int, default=100_000)
    p.add_argument("--windows", type=int, default=20, help="rows of the table, at least 4")
    args = p.parse_args(argv)
    print("| " + " | ".join(f.name for f in fields(Window)) + " |")
    print("|" + " ---: |" * len(fields(Window)))
    windows = []
    for window in soak(args.batches, args.windows):
        windows.append(window)
        print(
            "| " + " | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in astuple(window)) + " |",
            flush=True,
        )
    if told := grown(windows):
        sys.exit("; ".join(told))
    print("nothing has grown")


if __name__ == "__main__":
    main()
