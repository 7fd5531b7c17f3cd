"""A chain's E-steps on a GPU: which way and which layout is the fastest, and which is chosen.

    python -m bench.gpu_chain --out FILE.json    measure, write the figures as they come, print a table
    python -m bench.gpu_chain --show FILE.json   print the table again

The CUDA kernels run a chain in one kernel ("tile"), whose layout csrc/cuda/chain_plan.cpp chooses, or with the
library's products ("steps"), whichever it expects to take less. First the tutorial is timed in every layout that fits,
then chains of many sizes both ways and as chosen, which ought to be the faster way: what calibrates the estimates. All
are one CUDA graph each, and their states are compared with float64 before.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import statistics
import sys
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

import pyromancy
from pyromancy import backends, ops, plan
from pyromancy.plan import Activation, Descent, Edge, Law, MatmulPrecision, Node, Plan
from pyromancy.plan.activations import ACTIVATIONS

from . import gpu
from .exact import ExactChain, relative
from .rivals import graphed
from .settings import SETTINGS, Setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TUTORIAL, TUTORIAL_BATCHES = SETTINGS["pyromancy-tutorial"], (500, 4096)
ROUNDS_OF_EDGES, CLUSTERS, SAMPLE_TILES = (1, 2), (1, 2, 4, 8), (1, 2, 4)
WIDTHS, DEPTHS, BATCHES, STEPS = (64, 128, 256, 512, 1024), (2, 8), (64, 512, 4096), 20
WAYS = ("tile", "steps", "chosen")
ROUNDS, BUDGET = (3, 9), 0.3  # of the ways in a case; seconds
ENOUGH = 1.1  # times the faster way: no worse a choice than noise makes
# How far off states may be, in their norm, and roundings of a product's operand that they may be off besides: less than
# TF32 leaves at "highest"
OFF, UNITS, UNIT = 5e-6, 16, {"highest": 0.0, "high": 2.0**-11, "medium": 2.0**-8}


@contextmanager
def going(way: str) -> Iterator[None]:
    """Have the CUDA kernels go this way."""
    before = os.environ.pop("PYROMANCY_CUDA_CHAIN", None)
    if way != "chosen":
        os.environ["PYROMANCY_CUDA_CHAIN"] = way
    try:
        yield
    finally:
        os.environ.pop("PYROMANCY_CUDA_CHAIN", None)
        if before is not None:
            os.environ["PYROMANCY_CUDA_CHAIN"] = before


@contextmanager
def laid_out(rounds: int = 0, cluster: int = 0, sample_tiles: int = 0) -> Iterator[None]:
    """Have the CUDA kernels run chains in one kernel with this layout; 0 leaves a part to the plan."""
    assert pyromancy.native.MODULE is not None, pyromancy.native.REASON
    ask = ctypes.CDLL(pyromancy.native.MODULE.__file__).pyromancy_ask_chain_layout
    ask(rounds, cluster, sample_tiles)
    try:
        yield
    finally:
        ask(0, 0, 0)


def does_not_fit(error: RuntimeError) -> bool:
    """Whether that is why a layout is none for a chain."""
    return "must fit the layout that is asked for" in str(error)


class Chain:
    """A setting's E-steps after a forward sweep, in float32 by `run_plan_` and in float64 by formula."""

    def __init__(self, setting: Setting) -> None:
        exact = ExactChain(setting, gpu.DEVICE)
        self.setting = setting
        self.start = [z.float() for z in exact.states]
        self.states = [z.clone() for z in self.start]
        self.weights, self.biases = ([t.float() for t in tensors] for tensors in (exact.weights, exact.biases))
        for _ in range(setting.steps):
            exact.estep()
        self.expected = exact.states[1:-1]

    def run(self) -> None:
        """Take all steps, from where they began."""
        torch._foreach_copy_(self.states, self.start)
        first, *moved, last = self.states
        ops.run_plan_(moved, [first, last, *self.weights, *self.biases], *plan.encode(self.plan()))

    def plan(self) -> Plan:
        """With the states that move, then the first and the last one, weights and biases for operands."""
        edges, moved = len(self.weights), len(self.states) - 2
        nodes = [Node(moved, False), *(Node(i, True, law=Law.GAUSSIAN) for i in range(moved))]
        nodes.append(Node(moved + 1, False, law=Law.GAUSSIAN))
        before = Activation([*ACTIVATIONS].index(self.setting.activation))
        weights = len(self.states)  # the number of the first one
        joins = (Edge(i, i + 1, weights + i, weights + edges + i, before) for i in range(edges))
        precision = MatmulPrecision[torch.get_float32_matmul_precision().upper()]
        return Plan(tuple(nodes), tuple(joins), Descent(self.setting.rate), self.setting.steps, precision=precision)

    def off(self) -> float:
        """How far off the states are."""
        return relative(self.states[1:-1], self.expected)


def allowed() -> float:
    """How far off they may be."""
    return OFF + UNITS * UNIT[torch.get_float32_matmul_precision()]


def of_layout(chain: Chain, layout: tuple[int, int, int]) -> dict[str, Any]:
    """Microseconds of a chain in a layout, or None where it does not fit."""
    rounds, cluster, sample_tiles = layout
    case: dict[str, Any] = {"batch": chain.setting.batch, "rounds": rounds, "cluster": cluster}
    case |= {"sample_tiles": sample_tiles, "microseconds": None, "off": None, "right": True}
    with laid_out(*layout):
        try:
            chain.run()
        except RuntimeError as error:
            if does_not_fit(error):
                return case
            raise
        off = chain.off()
        times = gpu.alternate({"layout": gpu.Entry(graphed(chain.run))}, ROUNDS, BUDGET / len(WAYS))
    return case | {"microseconds": 1e6 * statistics.median(times["layout"]), "off": off, "right": off <= allowed()}


def of_ways(chain: Chain) -> dict[str, Any]:
    """Microseconds of each way."""
    setting = chain.setting
    entries, off = {}, {}
    for way in WAYS:
        with going(way):
            chain.run()
            off[way] = chain.off()
            entries[way] = gpu.Entry(graphed(chain.run))
    times = gpu.alternate(entries, ROUNDS, BUDGET)
    micros = {way: 1e6 * statistics.median(t) for way, t in times.items()}
    regret = micros["chosen"] / min(micros.values())
    case = {"width": setting.sizes[1], "depth": len(setting.sizes) - 2, "batch": setting.batch}
    right = all(o <= allowed() for o in off.values())
    return case | {"microseconds": micros, "regret": regret, "off": off, "right": right}


def measure(tell: Callable[[str], None], save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All figures, saved after every case."""
    result: dict[str, Any] = {"machine": gpu.machine(), "date": gpu.today(), "layouts": [], "cases": [], "failures": []}

    def keep(kind: str, case: dict[str, Any], what: str) -> None:
        result[kind].append(case)
        if not case["right"]:
            result["failures"].append(f"{what}: off by {case['off']}, allowed {allowed():.2g}")
        tell(what)
        save(result)

    with backends.use("native"):
        for batch in TUTORIAL_BATCHES:
            chain = Chain(replace(TUTORIAL, batch=batch))
            keep("layouts", of_layout(chain, (0, 0, 0)), f"tutorial, batch {batch}, as chosen")
            for layout in itertools.product(ROUNDS_OF_EDGES, CLUSTERS, SAMPLE_TILES):
                keep("layouts", of_layout(chain, layout), f"tutorial, batch {batch}, {layout}")
        for depth, width, batch in itertools.product(DEPTHS, WIDTHS, BATCHES):
            chain = Chain(Setting((784, *[width] * depth, 10), batch, STEPS, "relu"))
            keep("cases", of_ways(chain), f"{width} x {depth}, batch {batch}")
    return result


def table(result: dict[str, Any]) -> str:
    """Microseconds of each layout and way; a star where another one would have been faster."""
    lines = [gpu.title(result), "the tutorial's E-steps in microseconds; 0 is the plan's choice"]
    lines.append("  batch  rounds  cluster  sample tiles     time")
    for case in result["layouts"]:
        time = "does not fit" if case["microseconds"] is None else f"{case['microseconds']:9.1f}"
        lines.append(f"{case['batch']:7}{case['rounds']:8}{case['cluster']:9}{case['sample_tiles']:14}{time}")
    lines += [f"{STEPS} E-steps in microseconds", "hidden        batch     tile    steps   chosen"]
    for case in result["cases"]:
        micros = "".join(f"{case['microseconds'][way]:9.1f}" for way in WAYS)
        star = " *" if case["regret"] > ENOUGH else ""
        lines.append(f"{case['width']:5} x {case['depth']:<4}{case['batch']:7}{micros}{star}")
    return "\n".join([*lines, *(f"WRONG: {f}" for f in result["failures"])])


def main(arguments: list[str] | None = None) -> int:
    options = gpu.parser(__doc__ or "").parse_args(arguments)
    return gpu.command(options, "bench.gpu_chain", measure, table)


if __name__ == "__main__":
    sys.exit(main())
