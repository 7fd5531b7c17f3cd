"""Sweeps and wall time from a forward sweep to equilibrium, by method; and what a sweep costs."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pyromancy.methods import Accelerated, Descent

from . import timing
from .equilibrium import AIM, ALL, CONTENDERS, DESCENT, GAPS, HEADLINE, OURS, SMALL, Ours, Problem, Race, Setting, race
from .exact import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .equilibrium import Entry

SLACK = 1e-2  # of a gap, between energies in float32, by which steps are counted, and in float64
MORE = 3  # steps, as a method with a momentum records energies of points that it leaps ahead to
POINTS = 80  # of a curve that are kept
AGAIN = 10  # runs of ours in a round against others, which last longer; on the grid one
MANY, SOME = 60, 10  # sweeps, whose difference in time is that of 50
BUDGET, GRID_BUDGET = (1.5, (3, 30)), (0.3, (2, 10))  # seconds and rounds


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = [SMALL] if metafunc.config.getoption("--sizes") == "small" else [HEADLINE]
    if metafunc.config.getoption("--equilibria") == "all":
        chosen = ALL
    metafunc.parametrize("setting", chosen, ids=str)
    if "contender" in metafunc.fixturenames:
        metafunc.parametrize("contender", CONTENDERS)


def checked(held: Race, entry: Entry, gap: float) -> int | None:
    """Steps to a gap, where the states after so many are there in float64; None where it is never reached."""
    steps = held.first(entry.energies, gap)
    if steps is None:
        return None
    rounding = torch.finfo(torch.float32).eps * held.gap(held.start + held.least)
    allowed, last = gap * (1 + SLACK) + 4 * rounding, min(steps + MORE, len(entry.energies) - 1)
    while True:
        entry.contender.run(steps)
        off = held.gap(held.problem.energy(entry.contender.states()))
        if off <= allowed or steps == last:
            break
        steps += 1
    require(off, allowed, f"after {steps} steps the gap is")
    return steps


def curve(held: Race, entry: Entry, reached: Iterable[int]) -> list[tuple[float, float]]:
    """Sweeps and gap, at so many steps on a logarithmic scale and at those that are timed."""
    last = len(entry.energies) - 1
    steps = sorted({0, *reached, *(round(last ** (i / POINTS)) for i in range(POINTS + 1))})
    return [(entry.contender.sweeps(k), held.gap(entry.energies[k].item())) for k in steps]


def _again(ours: Entry, steps: int, times: int) -> None:
    for _ in range(times):
        ours.contender.run(steps)


def on_line(steps: int, short: float, count: int, long: float) -> float:
    """Seconds of so many steps, of a run of one and one of `count` that take `short` and `long`."""
    return short + (steps - 1) * (long - short) / max(1, count - 1)


def test_equilibrium(setting: Setting, contender: str, benchmark: Any, record: Callable[..., None]) -> None:
    """Times a run of just so many steps as bring the batch to 0.01 of the gap, and to 0.1 and 0.0001 beside it.

    On the grid, beside it, one of a single step: the times to the other gaps are on the line through the two.
    """
    benchmark.group = f"equilibrium: {setting}"
    held = race(setting)
    if contender in held.absent:
        pytest.skip(held.absent[contender])
    entry, ours = held.entries[contender], held.entries[OURS]
    steps = {gap: checked(held, entry, gap) for gap in GAPS}
    reached = {gap: k for gap, k in steps.items() if k is not None}
    aim = AIM if AIM in reached else min(reached, default=None)
    others = {str(gap): k for gap, k in reached.items() if gap != aim}
    if setting.on_grid:
        others = {"1": 1}
    runs: dict[str, Callable[[], object]] = {
        name: functools.partial(entry.contender.run, k) for name, k in others.items()
    }
    again = 1 if setting.on_grid else AGAIN
    if aim == AIM and contender != OURS and (best := checked(held, ours, AIM)) is not None:
        runs[OURS] = functools.partial(_again, ours, best, again)
    count = max(1, len(entry.energies) - 1) if aim is None else reached[aim]
    budget, rounds = GRID_BUDGET if setting.on_grid else BUDGET
    timed = timing.alternate(benchmark, functools.partial(entry.contender.run, count), runs, budget, rounds)
    if timed is None:
        return
    of = {gap: timed.seconds if gap == aim else timed.baselines.get(str(gap)) for gap in GAPS}
    if setting.on_grid:
        of |= {gap: on_line(k, timed.baselines["1"], count, timed.seconds) for gap, k in reached.items() if gap != aim}
    seconds = {str(gap): s for gap, s in of.items()}
    record(
        kind="equilibrium",
        problem=str(setting),
        contender=contender,
        rate=entry.rate,
        sweeps={str(gap): None if k is None else entry.contender.sweeps(k) for gap, k in steps.items()},
        seconds=seconds,
        given_up=entry.contender.sweeps(len(entry.energies)),
        per_sweep=timed.seconds / entry.contender.sweeps(count),
        of_ours=again / timed.ratios[OURS] if OURS in timed.ratios else None,
        curve=curve(held, entry, reached.values()),
    )


def test_sweep(setting: Setting, benchmark: Any, record: Callable[..., None]) -> None:
    """What a sweep of `Accelerated()` costs over an E-step of plain descent, runs' beginnings and ends left out."""
    benchmark.group = f"equilibrium: {setting}"
    held = race(setting)
    problem = Problem(setting)
    rate = held.entries[DESCENT].rate
    assert rate is not None
    methods = {"errors": Ours(problem, Accelerated()), "descent": Ours(problem, Descent(rate))}
    for name, contender in methods.items():
        contender.run(MANY)
        after = held.gap(problem.energy(problem.states))
        allowed = held.gap(contender.energies(MANY + 1)[MANY].item())
        # without a rate a sample stays where it was if the point that is looked at, and recorded, is worse
        off = after - allowed if name == "errors" else abs(after - allowed)
        require(off, 1e-4, "the energy that is left is")
    runs = {f"{name}, {n}": functools.partial(c.run, n) for name, c in methods.items() for n in (SOME, MANY)}
    run = runs.pop(f"errors, {MANY}")
    timed = timing.alternate(benchmark, run, runs, *((1.0, (3, 20)) if setting.on_grid else (3.0, (5, 60))))
    if timed is None:
        return
    own = timed.seconds - timed.baselines[f"errors, {SOME}"]
    theirs = timed.baselines[f"descent, {MANY}"] - timed.baselines[f"descent, {SOME}"]
    record(
        kind="sweep-cost",
        problem=str(setting),
        seconds=own / (MANY - SOME),
        descent_seconds=theirs / (MANY - SOME),
        over_descent=own / theirs,
    )
