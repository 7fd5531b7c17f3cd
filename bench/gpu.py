"""What the benchmarks on a GPU share: device time, alternating rounds, what the device is, and the command."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import pyromancy
from pyromancy import backends

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEVICE = "cuda"
FLOAT = 4  # bytes
SECONDS = 0.004  # that a round of a contender lasts at least
WARM = 3  # calls before any is timed: a loop captures its graph in one of them


@dataclass(frozen=True)
class Entry:
    """Something to time.

    Attributes:
        call: what is timed.
        choice: what it is called under.
        finish: waits until the device is done, where that is not PyTorch's stream: then a host's clock times it.
    """

    call: Callable[[], object]
    choice: Callable[[], AbstractContextManager[Any]] = nullcontext
    finish: Callable[[], object] | None = None

    def time(self, calls: int) -> float:
        """Seconds per call."""
        with self.choice():
            return seconds(self.call, calls) if self.finish is None else waited(self.call, calls, self.finish)


def seconds(run: Callable[[], object], calls: int = 1) -> float:
    """Device time per call."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3 / calls


def waited(run: Callable[[], object], calls: int, finish: Callable[[], object]) -> float:
    """Time per call on the host's clock, from an idle device until it is done."""
    finish()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    finish()
    return (time.perf_counter() - start) / calls


def alternate(
    entries: Mapping[str, Entry], rounds: tuple[int, int], budget: float = math.inf
) -> dict[str, list[float]]:
    """Seconds per call in every round, by contender; a round of each follows a round of every other.

    Args:
        entries: the contenders.
        rounds: the fewest and the most; the fewest are taken whatever the budget says.
        budget: seconds after which no further round starts.
    """
    start = time.perf_counter()
    for entry in entries.values():
        entry.time(WARM)
    calls = {name: max(1, math.ceil(SECONDS / entry.time(2))) for name, entry in entries.items()}
    times: dict[str, list[float]] = {name: [] for name in entries}
    for done in range(rounds[1]):
        if done >= rounds[0] and time.perf_counter() - start > budget:
            break
        for name, entry in entries.items():
            times[name].append(entry.time(calls[name]))
    return times


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


def title(result: dict[str, Any]) -> str:
    """Device, versions and date of a result."""
    m = result["machine"]
    return (
        f"{m['device']}, torch {m['torch']}, CUDA {m['cuda']}, Triton {m['triton']}, "
        f"pyromancy {m['pyromancy']}, {result['date']}"
    )


def today() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def usable_backends() -> list[str]:
    """Backends of this package that serve the device."""
    return [name for name in backends.BACKENDS if backends.available(name, torch.device(DEVICE).type)[0]]


def reason(error: Exception) -> str:
    """What went wrong, in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def parser(description: str) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=description.split("\n", 1)[0])
    options.add_argument("--out", type=Path, help="file for the figures")
    options.add_argument("--show", type=Path, help="print the table of this file and measure nothing")
    return options


def command(
    options: argparse.Namespace,
    name: str,
    measure: Callable[[Callable[[str], None], Callable[[dict[str, Any]], None]], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
) -> int:
    """Measure or read, then print; the status tells whether everything that competes was right.

    Args:
        options: of `parser`.
        name: of the command.
        measure: takes where to tell what is done, and where to leave the figures that there are so far.
        table: of the figures.
    """
    if options.show:
        result = json.loads(options.show.read_text())
    else:
        if torch.device(DEVICE).type == "cuda" and not torch.cuda.is_available():
            print(f"{name}: no CUDA device", file=sys.stderr)
            return 3

        def save(figures: dict[str, Any]) -> None:
            if options.out:  # who stops the run while this writes finds the figures of before
                whole = options.out.with_name(options.out.name + ".new")
                whole.write_text(json.dumps(figures, indent=1) + "\n")
                whole.replace(options.out)

        result = measure(lambda line: print(line, file=sys.stderr, flush=True), save)
    print(table(result))
    return 1 if result["failures"] else 0
