"""Operators on a GPU: every backend against eager PyTorch and `torch.compile`, timed with CUDA events.

    python -m bench.gpu_operators --out FILE.json    measure, write the figures, print a table
    python -m bench.gpu_operators --show FILE.json   print the table again

Formulas, inputs and what counts as moved are those of `test_operators.py`. Nothing is timed whose results have not
been compared with float64 before, in the same run. Rounds of all contenders and of a copy alternate.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import pyromancy
from pyromancy import backends

if TYPE_CHECKING:
    from collections.abc import Callable

DEVICE = "cuda"
WIDTH = 1024
STREAMING = (
    "energy", "energy, logvar", "energy + backward", "energy + backward, logvar", "error", "error, logvar", "estep_",
    "estep_, momentum",
)  # fmt: skip
MATRICES = ("multivariate_energy", "multivariate_energy + backward", "multivariate_error")
MATRIX_SIZE = (4096, 128)
FLOAT = 4  # bytes
ROUNDS, SECONDS = 15, 0.004  # of each contender; that a round lasts at least
COMPILED = "torch.compile"


def seconds(run: Callable[[], object], calls: int = 1) -> float:
    """Device time per call."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3 / calls


def machine() -> dict[str, Any]:
    """Device and versions."""
    properties = torch.cuda.get_device_properties(0)
    try:
        import triton
    except ImportError:
        triton = None
    native = pyromancy.native.MODULE
    return {
        "device": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_gb": round(properties.total_memory / 1e9),
        "pyromancy": pyromancy.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton and triton.__version__,
        "python": sys.version.split()[0],
        "build": native and {k: native.build_info()[k] for k in ("compiler", "cuda")},
    }


def contenders() -> list[str]:
    """What competes here: PyTorch, its compiler, and this package's backends."""
    return ["eager", COMPILED, *(n for n in backends.BACKENDS if backends.available(n, "cuda")[0])]


def measure(elements: int, log: Callable[[str], None], save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All figures, saved after every case; what failed is in there too, with the reason."""
    from . import test_operators as suite  # which needs pytest-benchmark

    sizes = [(name, (elements // WIDTH, WIDTH)) for name in STREAMING] + [(name, MATRIX_SIZE) for name in MATRICES]
    source = torch.ones(elements, device=DEVICE)
    target = torch.zeros_like(source)
    copy_bytes = 2 * FLOAT * elements

    def copy() -> object:
        return target.copy_(source)

    seconds(copy, 5)
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    copies: list[float] = []
    result: dict[str, Any] = {}
    for name, size in sizes:
        case = suite.BY_NAME[name]
        timed, failed = race(suite, case, size, copy)
        copies += timed.pop("copy")
        failures += [{"case": name, "contender": who, "reason": reason} for who, reason in failed.items()]
        eager = timed.get("eager")
        for who, times in timed.items():
            typical = statistics.median(times)
            work = case.flops * size[0] * size[1] ** 2 or case.streams * FLOAT * size[0] * size[1]
            rows.append(
                {
                    "kind": "operator",
                    "case": name,
                    "size": list(size),
                    "contender": who,
                    "seconds": typical,
                    "best_seconds": min(times),
                    "rate": work / typical / 1e9,
                    "unit": "GFLOP/s" if case.flops else "GB/s",
                    "fraction": None,
                    "over_eager": eager and statistics.median(eager) / typical,
                }
            )
            log(f"{name} {who}: {typical * 1e3:.3f} ms")
        rate = copy_bytes / statistics.median(copies) / 1e9
        for row in rows:
            row["fraction"] = row["rate"] / rate if row["unit"] == "GB/s" else None
        result = {
            "machine": machine() | {"copy_gb_per_s": rate},
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "rows": rows,
            "failures": failures,
        }
        save(result)
        torch.cuda.empty_cache()
    return result


def race(
    suite: Any, case: Any, size: tuple[int, int], copy: Callable[[], object]
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of each round by contender, the copy among them, and why the others did not run."""
    inputs = [t.to(DEVICE) for t in case.inputs(*size)]
    expected = suite.results(case, case.formula, [t.double() for t in inputs])
    runs: dict[str, tuple[Callable[[], object], Callable[[], Any]]] = {"copy": (copy, nullcontext)}
    failed: dict[str, str] = {}
    for who in contenders():
        function, choice = case.ours, lambda who=who: backends.use(who)
        if who in ("eager", COMPILED):
            function, choice = case.formula, nullcontext
        try:
            if who == COMPILED:
                torch._dynamo.reset()
                function = torch.compile(case.formula, fullgraph=True, dynamic=False)
            with choice():
                suite.check(suite.results(case, function, inputs), expected, max(size))
                call = suite.bind(case, function, [t.detach().clone() for t in inputs])
                seconds(call, 3)
        except Exception as error:
            failed[who] = f"{type(error).__name__}: {error}"[:300]
            continue
        runs[who] = (call, choice)

    del expected
    calls, times = {}, {}
    for who, (call, choice) in runs.items():
        with choice():
            calls[who] = max(1, math.ceil(SECONDS / seconds(call, 3)))
        times[who] = []
    for _ in range(ROUNDS):
        for who, (call, choice) in runs.items():
            with choice():
                times[who].append(seconds(call, calls[who]))
    return times, failed


def table(result: dict[str, Any]) -> str:
    """The figures, aligned for a terminal."""
    m = result["machine"]
    lines = [
        f"{m['device']}, torch {m['torch']}, CUDA {m['cuda']}, Triton {m['triton']}, "
        f"pyromancy {m['pyromancy']}, {result['date']}",
        f"copy {m['copy_gb_per_s']:.0f} GB/s",
        f"{'operator':32}{'size':>14}  {'served by':14}{'time':>10}{'rate':>16}{'of copy':>9}{'vs eager':>10}",
    ]
    before = None
    for row in result["rows"]:
        first = row["case"] != before
        before = row["case"]
        share = "" if row["fraction"] is None else f"{row['fraction']:.2f}"
        ratio = "" if row["over_eager"] is None else f"{row['over_eager']:.2f}x"
        lines.append(
            f"{row['case'] if first else '':32}{'x'.join(map(str, row['size'])) if first else '':>14}  "
            f"{row['contender']:14}{row['seconds'] * 1e3:>7.3f} ms{row['rate']:>8.0f} {row['unit']:7}"
            f"{share:>9}{ratio:>10}"
        )
    lines += [f"failed: {f['case']}, {f['contender']}: {f['reason']}" for f in result["failures"]]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the status tells whether everything that competes was right."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help="file for the figures")
    parser.add_argument("--show", type=Path, help="print the table of this file and measure nothing")
    parser.add_argument("--elements", type=int, default=2**26, help="of each large state (default: 2^26)")
    options = parser.parse_args(arguments)
    if options.show:
        result = json.loads(options.show.read_text())
    else:
        if not torch.cuda.is_available():
            print("bench.gpu_operators: no CUDA device", file=sys.stderr)
            return 3

        def save(figures: dict[str, Any]) -> None:
            if options.out:
                options.out.write_text(json.dumps(figures, indent=1) + "\n")

        result = measure(options.elements, lambda line: print(line, file=sys.stderr, flush=True), save)
    print(table(result))
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
