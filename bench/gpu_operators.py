"""Operators on a GPU: every backend against eager PyTorch and `torch.compile`, timed with CUDA events.

    python -m bench.gpu_operators --out FILE.json    measure, write the figures, print a table
    python -m bench.gpu_operators --show FILE.json   print the table again

Formulas, inputs and what counts as moved are those of `operators.py`. Nothing is timed whose results have not
been compared with float64 before, in the same run. Rounds of all contenders and of a copy alternate.
"""

from __future__ import annotations

import functools
import statistics
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from pyromancy import backends

from . import gpu, operators
from .gpu import FLOAT, Entry

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH = 1024
STREAMING = (
    "energy", "energy, logvar", "energy + backward", "energy + backward, logvar", "error", "error, logvar", "estep_",
    "estep_, momentum",
)  # fmt: skip
MATRICES = ("multivariate_energy", "multivariate_energy + backward", "multivariate_error")
MATRIX_SIZE = (4096, 128)
ROUNDS = 15
COMPILED = "torch.compile"


def contenders() -> list[str]:
    """What competes here: PyTorch, its compiler, and this package's backends."""
    return ["eager", COMPILED, *gpu.usable_backends()]


def measure(elements: int, log: Callable[[str], None], save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All figures, saved after every case; what failed is in there too, with the reason."""
    sizes = [(name, (elements // WIDTH, WIDTH)) for name in STREAMING] + [(name, MATRIX_SIZE) for name in MATRICES]
    source = torch.ones(elements, device=gpu.DEVICE)
    target = torch.zeros_like(source)
    copy_bytes = 2 * FLOAT * elements

    def copy() -> object:
        return target.copy_(source)

    gpu.seconds(copy, 5)
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    copies: list[float] = []
    result: dict[str, Any] = {}
    for name, size in sizes:
        case = operators.BY_NAME[name]
        timed, failed = race(case, size, copy)
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
            "machine": gpu.machine() | {"copy_gb_per_s": rate},
            "date": gpu.today(),
            "rows": rows,
            "failures": failures,
        }
        save(result)
        torch.cuda.empty_cache()
    return result


def race(
    case: operators.Case, size: tuple[int, int], copy: Callable[[], object]
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of each round by contender, the copy among them, and why the others did not run."""
    with torch.device(gpu.DEVICE):  # a host takes seconds to draw as many numbers
        inputs = case.inputs(*size)
    expected = operators.results(case, case.formula, [t.double() for t in inputs])
    entries = {"copy": Entry(copy)}
    failed: dict[str, str] = {}
    for who in contenders():
        function = case.ours
        choice: Callable[[], AbstractContextManager[object]] = functools.partial(backends.use, who)
        if who in ("eager", COMPILED):
            function, choice = case.formula, nullcontext
        try:
            if who == COMPILED:
                torch._dynamo.reset()
                function = torch.compile(case.formula, fullgraph=True, dynamic=False)
            with choice():
                operators.check(operators.results(case, function, inputs), expected, max(size))
                call = operators.bind(case, function, [t.detach().clone() for t in inputs])
                gpu.seconds(call, 3)
        except Exception as error:
            failed[who] = gpu.reason(error)
            continue
        entries[who] = Entry(call, choice)
    del expected
    return gpu.alternate(entries, (ROUNDS, ROUNDS)), failed


def table(result: dict[str, Any]) -> str:
    """The figures, aligned for a terminal."""
    lines = [
        gpu.title(result),
        f"copy {result['machine']['copy_gb_per_s']:.0f} GB/s",
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
    """Run the command."""
    parser = gpu.parser(__doc__)
    parser.add_argument("--elements", type=int, default=2**26, help="of each large state (default: 2^26)")
    options = parser.parse_args(arguments)
    return gpu.command(options, "bench.gpu_operators", functools.partial(measure, options.elements), table)


if __name__ == "__main__":
    sys.exit(main())
