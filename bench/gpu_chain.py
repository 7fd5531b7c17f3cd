"""Which way a chain's E-steps take on a GPU, and which they should: what calibrates the estimates in csrc/cuda.

    python -m bench.gpu_chain --out FILE.json    measure, write the figures, print a table
    python -m bench.gpu_chain --show FILE.json   print the table again

The CUDA kernels run a chain in one kernel ("tile") or with the library's products ("steps"), whichever
csrc/cuda/chain_plan.cpp expects to take less. Both are timed here, each as one CUDA graph, and what is chosen too: it
ought to be the faster one. Their results are compared before.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyromancy import backends, ops

from . import gpu
from .rivals import graphed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WIDTHS, DEPTHS, BATCHES = (64, 128, 256, 512, 1024), (2, 8), (64, 512, 4096)
STEPS, RATE = 20, 0.05
RELU = 1  # its number among the activations of `infer_chain_`
WAYS = ("tile", "steps", "chosen")
ROUNDS, BUDGET = (3, 9), 0.3  # of the ways in a case; seconds
ENOUGH = 1.1  # times the faster way: no worse a choice than noise makes


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


def chain(width: int, depth: int, batch: int) -> tuple[list[Tensor], Callable[[], object]]:
    """The states of a chain 784-width-...-10 clamped at both ends, and what runs its E-steps from where they began."""
    widths = (784, *[width] * depth, 10)
    start = [torch.randn(batch, n, device=gpu.DEVICE) for n in widths]
    states = [z.clone() for z in start]
    weights = [torch.randn(b, a, device=gpu.DEVICE) / a**0.5 for a, b in itertools.pairwise(widths)]
    biases = [torch.zeros(w.shape[0], device=gpu.DEVICE) for w in weights]
    edges, nodes = len(weights), len(widths)

    def run() -> None:
        torch._foreach_copy_(states, start)
        ops.infer_chain_(
            states, weights, biases, [None] * nodes, None, [None] * edges, [RELU, 0] * edges, [0.0, 0.0] * edges,
            [False] + [True] * edges, [False] + [True] * (nodes - 2) + [False], STEPS, RATE, [], 0.0, 0.0, False,
            False, None, torch.get_float32_matmul_precision(),
        )  # fmt: skip

    return states, run


def measured(width: int, depth: int, batch: int) -> dict[str, Any]:
    """Microseconds of each way."""
    torch.manual_seed(3)
    states, run = chain(width, depth, batch)
    entries, found = {}, {}
    for way in WAYS:
        with going(way):
            run()
            found[way] = torch.cat([z.flatten() for z in states])
            entries[way] = gpu.Entry(graphed(run))
    error = (found["tile"] - found["steps"]).abs().max().item()
    bound = 64 * torch.finfo(torch.float32).eps * STEPS * width**0.5
    times = gpu.alternate(entries, ROUNDS, BUDGET)
    micros = {way: 1e6 * statistics.median(t) for way, t in times.items()}
    regret = micros["chosen"] / min(micros.values())
    case = {"width": width, "depth": depth, "batch": batch, "microseconds": micros, "regret": regret}
    return case | {"error": error, "bound": bound, "right": error <= bound}


def measure(tell: Callable[[str], None], save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All figures."""
    result: dict[str, Any] = {"machine": gpu.machine(), "date": gpu.today(), "cases": [], "failures": []}
    with backends.use("native"):
        for depth, width, batch in itertools.product(DEPTHS, WIDTHS, BATCHES):
            case = measured(width, depth, batch)
            result["cases"].append(case)
            if not case["right"]:
                result["failures"].append(f"{width} x {depth}, batch {batch}: off by {case['error']:.2g}")
            tell(f"{width} x {depth}, batch {batch}")
            save(result)
    return result


def table(result: dict[str, Any]) -> str:
    """Microseconds of each way; a star where the other one would have been faster."""
    lines = [gpu.title(result), f"{STEPS} E-steps in microseconds", "hidden        batch     tile    steps   chosen"]
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
