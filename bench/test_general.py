"""An EM batch of networks that are no plain chain: the plain loop against `InferenceLoop` and `EM`."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import pyromancy

from . import timing
from .exact import EXACT, ROUNDING, exact_of_edges, outcome, require
from .general import GENERAL, General, written
from .loops import LOOPS, loop_of

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL_BATCH = 8


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    small = metafunc.config.getoption("--sizes") == "small"
    chosen = {name: replace(g, batch=SMALL_BATCH) if small else g for name, g in GENERAL.items()}
    metafunc.parametrize(("name", "general"), chosen.items(), ids=[name.split(",")[0] for name in chosen])


def test_general(name: str, general: General, benchmark: Any, record: Callable[..., None]) -> None:
    benchmark.group = "no chains"
    few = replace(general, batch=min(SMALL_BATCH, general.batch))  # in float64 a whole batch takes long
    _, edges, x, y = few.parts()
    exact = exact_of_edges(edges, x, y, few.steps, few.rate)
    runs, ends = {}, {}
    for loop, make in LOOPS.items():
        for dtype, allowed in ((torch.float64, EXACT), (torch.float32, ROUNDING)):
            problem = few.problem(pyromancy, dtype)
            make(problem)()
            require(outcome(problem).deviation(exact), allowed, f"{loop}: states or gradients in {dtype} are")
        problem = general.problem(pyromancy)
        runs[loop] = make(problem)
        runs[loop]()
        ends[loop] = outcome(problem)
    for loop, end in ends.items():
        require(end.deviation(ends["plain"]), ROUNDING, f"{loop}: states or gradients beside the plain loop's are")
    by_hand = {"autograd": written(general, False)}
    if shutil.which("c++"):  # the compiler of torch makes C++ for a CPU
        by_hand["torch.compile"] = written(general, True)
    for way, other in by_hand.items():
        off = other.batch().deviation(ends["plain"])
        require(off, ROUNDING, f"written out, by {way}: states or gradients beside the plain loop's are")
    executor = loop_of(problem).explain().splitlines()[0].removeprefix("executor: ")
    others = {name: run for name, run in runs.items() if name != "EM"}
    timed = timing.alternate(benchmark, runs["EM"], others, budget=5.0, rounds=(3, 100))
    if timed is None:
        return
    problem = general.problem(pyromancy)
    inference = loop_of(problem)

    def ours() -> None:
        problem.net.init_xy(problem.x, problem.y)
        inference.run(problem.steps)

    ours()
    ratios = timing.ratios(ours, {way: other.esteps for way, other in by_hand.items()})
    batches = timing.ratios(runs["EM"], {way: other.batch for way, other in by_hand.items()})
    least = timing.least(runs, rounds=6, calls=2)
    record(
        kind="general",
        network=name,
        batch=general.batch,
        steps=general.steps,
        executor=executor,
        seconds=timed.baselines["InferenceLoop"],
        plain_seconds=timed.baselines["plain"],
        over_plain=timed.ratios["plain"] / timed.ratios["InferenceLoop"],
        em_seconds=timed.seconds,
        plain_over_em=timed.ratios["plain"],
        processor_over_em=least["plain"] / least["EM"],
        esteps_over=ratios,
        batches_over=batches,
    )
