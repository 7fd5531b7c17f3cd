"""Timing by alternation, so that a ratio compares rounds taken moments apart and not two moods of a machine."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROUND = 5e-4  # seconds that a round lasts at least: quick functions are called several times in it
COPY_ELEMENTS = 2**24
COPY_BYTES = 2 * 4 * COPY_ELEMENTS  # read and written, float32
PRODUCT_WIDTH = 1024


@dataclass(frozen=True)
class Ceilings:
    """What the machine can do, measured in the run whose figures are divided by it.

    Attributes:
        copy: bytes per second, read plus written, of a copy of 2^24 float32: the median.
        product: floating-point operations per second of a 1024^3 float32 matrix product: the best.
    """

    copy: float
    product: float


@dataclass(frozen=True)
class Timing:
    """How long a function took.

    Attributes:
        seconds: per call, median over rounds.
        ratios: for every baseline, its time over the function's, median over rounds: above 1 the function is faster.
        baselines: seconds per call of every baseline, median over rounds.
    """

    seconds: float
    ratios: dict[str, float]
    baselines: dict[str, float]


def per_call(run: Callable[[], object], calls: int = 1) -> float:
    """Seconds per call."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def copier() -> Callable[[], object]:
    """The copy that defines the copy rate."""
    source, target = torch.ones(COPY_ELEMENTS), torch.zeros(COPY_ELEMENTS)
    return lambda: target.copy_(source)


def measure_ceilings() -> Ceilings:
    copy = copier()
    a, b, out = (torch.ones(PRODUCT_WIDTH, PRODUCT_WIDTH) for _ in range(3))
    copies = [per_call(copy) for _ in range(22)][2:]
    products = [per_call(lambda: torch.mm(a, b, out=out)) for _ in range(42)][2:]
    return Ceilings(copy=COPY_BYTES / statistics.median(copies), product=2 * PRODUCT_WIDTH**3 / min(products))


def alternate(
    benchmark: Any,
    run: Callable[[], object],
    baselines: Mapping[str, Callable[[], object]],
    budget: float = 0.8,
    rounds: tuple[int, int] = (5, 100),
    prepare: Callable[[], object] = lambda: None,
) -> Timing | None:
    """Time a function through pytest-benchmark, with one round of each baseline before each of its rounds.

    Args:
        benchmark: pytest-benchmark's fixture.
        run: what to time; everything must have been called once before, to be warm.
        baselines: what to compare with.
        budget: seconds that all rounds together should take.
        rounds: the fewest and the most rounds; the fewest are taken whatever the budget says.
        prepare: called before each round of the function, not timed.

    Returns:
        The timing; None where ``--benchmark-disable`` leaves nothing to time.
    """
    calls, cost = _calls(run)
    plan = {name: _calls(baseline) for name, baseline in baselines.items()}
    total = cost + sum(cost for _, cost in plan.values())
    times: dict[str, list[float]] = {name: [] for name in baselines}

    def time_baselines() -> None:
        if benchmark.stats is not None:
            benchmark.stats.iterations = calls  # it divides each round by this; a setup function bars the argument
        for name, baseline in baselines.items():
            times[name].append(per_call(baseline, plan[name][0]))
        prepare()

    def round_of_calls() -> None:
        for _ in range(calls):
            run()

    count = min(max(math.floor(budget / total), rounds[0]), rounds[1])
    benchmark.pedantic(round_of_calls, setup=time_baselines, rounds=count)
    if benchmark.stats is None:
        return None
    own = benchmark.stats.stats.data
    ratios = {name: statistics.median(map(float.__truediv__, t, own)) for name, t in times.items()}
    return Timing(statistics.median(own), ratios, {name: statistics.median(t) for name, t in times.items()})


def ratios(
    run: Callable[[], object], baselines: Mapping[str, Callable[[], object]], rounds: int = 7
) -> dict[str, float]:
    """The time of every baseline over a function's, median over rounds in which they alternate."""
    found: dict[str, list[float]] = {name: [] for name in baselines}
    for _ in range(rounds):
        own = per_call(run)
        for name, baseline in baselines.items():
            found[name].append(per_call(baseline) / own)
    return {name: statistics.median(f) for name, f in found.items()}


def least(functions: Mapping[str, Callable[[], object]], rounds: int = 12, calls: int = 8) -> dict[str, float]:
    """Seconds of processor time per call, the least of rounds in which functions alternate, several calls in each.

    That is what a busy machine tells best: it leaves out waiting, though not what others do to caches and clocks.
    """
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, run in functions.items():
            start = time.process_time()
            for _ in range(calls):
                run()
            found[name].append((time.process_time() - start) / calls)
    return {name: min(times) for name, times in found.items()}


def _calls(run: Callable[[], object]) -> tuple[int, float]:
    """How many calls make a round, and how many seconds that takes."""
    samples = [per_call(run)]
    if samples[0] < 20 * ROUND:
        samples += [per_call(run) for _ in range(3)]
    calls = max(1, math.ceil(ROUND / min(samples)))
    return calls, calls * statistics.mean(samples)
