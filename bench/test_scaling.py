"""How the time of an EM batch grows with the network, the batch and the E-steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import pyromancy

from . import timing
from .exact import EXACT, ROUNDING, exact_outcome, outcome, require
from .loops import LOOPS
from .network import make_problem
from .settings import BASE, SWEEPS, Setting

if TYPE_CHECKING:
    from collections.abc import Callable


def points() -> dict[Setting, dict[str, int]]:
    """Every setting of the sweeps once, with its place in those that it belongs to."""
    found: dict[Setting, dict[str, int]] = {}
    for variable, sweep in SWEEPS.items():
        for value, setting in sweep.items():
            found.setdefault(setting, {})[variable] = value
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    small = metafunc.config.getoption("--sizes") == "small"
    chosen = {s: at for s, at in points().items() if not small or s == BASE}
    ids = ["base" if s == BASE else "-".join(map(str, *at.items())) for s, at in chosen.items()]
    metafunc.parametrize(("setting", "at"), chosen.items(), ids=ids)


def test_scaling(
    setting: Setting,
    at: dict[str, int],
    ceilings: timing.Ceilings,
    benchmark: Any,
    record: Callable[..., None],
) -> None:
    benchmark.group = "scaling"
    exact = exact_outcome(setting)
    runs = {}
    for name, make in LOOPS.items():
        for dtype, allowed in ((torch.float64, EXACT), (torch.float32, ROUNDING)):
            problem = make_problem(pyromancy, setting, dtype)
            runs[name] = make(problem)
            runs[name]()
            require(outcome(problem).deviation(exact), allowed, f"{name}: states or gradients in {dtype} are")
    timed = timing.alternate(benchmark, runs["InferenceLoop"], {"plain": runs["plain"]}, rounds=(3, 100))
    if timed is None:
        return
    record(
        kind="scaling",
        at=at,
        base=f"{'-'.join(map(str, BASE.sizes))}, batch {BASE.batch}, {BASE.steps} E-steps",
        seconds=timed.seconds,
        plain_seconds=timed.baselines["plain"],
        over_plain=timed.ratios["plain"],
        ideal_seconds=setting.flops / ceilings.product,
    )
