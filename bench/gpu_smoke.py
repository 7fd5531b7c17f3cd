"""Whether the kernel that runs all E-steps of a chain is right on this GPU, before anything relies on it.

    python -m bench.gpu_smoke --out FILE.json    every case, each in a process of its own: an illegal access ends that
    python -m bench.gpu_smoke --case NAME ...    cases in this process, as for a profiler or a sanitizer

A case is a precision of products and a size of clusters. It runs a small chain and the tutorial's in every number of
rounds and of sample tiles that fits, and compares the states with float64.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

from pyromancy import backends

from . import gpu
from .gpu_chain import CLUSTERS, ROUNDS_OF_EDGES, SAMPLE_TILES, TUTORIAL, UNIT, Chain, allowed, does_not_fit, laid_out
from .settings import Setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHAINS = {"small": Setting((20, 129, 40, 10), 70, 5, "tanh"), "tutorial": TUTORIAL}
CHOSEN = "highest-chosen"  # the layout that the plan takes
CASES = {CHOSEN: ("highest", 0), **{f"{p}-{c}": (p, c) for p, c in itertools.product(UNIT, CLUSTERS)}}
LIMIT, AT_ONCE = 30.0, 4  # seconds of a case; processes


def layouts(cluster: int) -> Iterator[tuple[int, int, int]]:
    """Those with clusters of a size, or the one that is chosen."""
    if cluster == 0:
        return iter([(0, 0, 0)])
    return itertools.product(ROUNDS_OF_EDGES, (cluster,), SAMPLE_TILES)


def run(name: str, chains: list[str]) -> float:
    """A case in this process.

    Returns:
        How far off the worst result is, over what is allowed.

    Raises:
        AssertionError: that is too far, or nothing fitted.
    """
    precision, cluster = CASES[name]
    torch.set_float32_matmul_precision(precision)
    worst = 0.0
    for which in chains:
        chain, ran = Chain(CHAINS[which]), 0
        for layout in layouts(cluster):
            with laid_out(*layout):
                try:
                    chain.run()
                except RuntimeError as error:
                    if does_not_fit(error):
                        continue
                    raise
            off = chain.off()
            assert off <= allowed(), f"{which} chain in layout {layout} is off by {off:.2g}, allowed {allowed():.2g}"
            worst, ran = max(worst, off / allowed()), ran + 1
        assert ran, f"the {which} chain fits no layout with clusters of {cluster}"
    return worst


def in_a_process(name: str) -> dict[str, Any]:
    """A case in a process of its own: how long it took, and what came of it."""
    start = time.perf_counter()
    case: dict[str, Any] = {"case": name, "right": False, "of_allowed": None, "reason": None}
    command = [sys.executable, "-m", "bench.gpu_smoke", "--case", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        case["reason"] = f"not done after {LIMIT:.0f} s"
    else:
        last = (done.stderr.splitlines() or ["nothing was said"])[-1]
        if done.returncode == 0:
            case |= {"right": True, "of_allowed": json.loads(done.stdout)[name]}
        else:
            case["reason"] = f"status {done.returncode}: {last[:300]}"
    return case | {"seconds": time.perf_counter() - start}


def measure(tell: Callable[[str], None], save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All cases, saved after each."""
    result: dict[str, Any] = {"machine": gpu.machine(), "date": gpu.today(), "cases": [], "failures": []}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for case in pool.map(in_a_process, CASES):
            result["cases"].append(case)
            if not case["right"]:
                result["failures"].append(f"{case['case']}: {case['reason']}")
            tell(case["case"])
            save(result)
    return result


def table(result: dict[str, Any]) -> str:
    """How far off each case is, in parts of what is allowed."""
    lines = [gpu.title(result), "all E-steps in one kernel: error over what is allowed"]
    for case in result["cases"]:
        lines.append(f"{case['case']:16}" + (f"{case['of_allowed']:6.2f}" if case["right"] else " WRONG"))
    return "\n".join([*lines, *(f"WRONG: {f}" for f in result["failures"])])


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = gpu.parser(__doc__ or "")
    parser.add_argument("--case", nargs="+", choices=[*CASES], help="run these in this process and print their errors")
    parser.add_argument("--chains", nargs="+", choices=[*CHAINS], default=[*CHAINS], help="with --case, run only these")
    options = parser.parse_args(arguments)
    if options.case:
        with backends.use("native"):
            print(json.dumps({name: run(name, options.chains) for name in options.case}))
        return 0
    return gpu.command(options, "bench.gpu_smoke", measure, table)


if __name__ == "__main__":
    sys.exit(main())
