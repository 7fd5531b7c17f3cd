"""Incremental inference learning, an M-step after every E-step: what it costs to leave the loop for each of them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
import torch

import pyromancy

from . import timing
from .exact import EXACT, ROUNDING, Outcome, exact_incremental, require
from .loops import loop_of
from .network import Problem, make_problem
from .settings import ADAM_RATE, QUICK, SETTINGS, Setting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from torch import Tensor

    Steps: TypeAlias = Callable[[int], object]
    Optimizer: TypeAlias = Callable[[Sequence[Tensor]], torch.optim.Optimizer]


def adam(learned: Sequence[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(learned, lr=ADAM_RATE)


def sgd(learned: Sequence[Tensor]) -> torch.optim.Optimizer:
    """For the comparison.

    The gradient of a unit that is off for all samples is the rounding of zero. Adam divides it by its own size, and
    its steps then part ways in any precision.
    """
    return torch.optim.SGD(learned, lr=ADAM_RATE)


def plain(problem: Problem, optimizer: Optimizer) -> tuple[Steps, Callable[[], None]]:
    """E-steps and M-step by autograd."""
    net, e_params, m_params = problem.net, problem.e_params, problem.m_params
    e_opt, m_opt = torch.optim.SGD(e_params, lr=problem.rate), optimizer(m_params)

    def run(steps: int) -> None:
        for _ in range(steps):
            net.zero_grad()
            net.energy().sum().backward(inputs=e_params)
            e_opt.step()

    def learn() -> None:
        net.zero_grad()
        net.energy().mean().backward(inputs=m_params)
        m_opt.step()

    return run, learn


def inference_loop(problem: Problem, optimizer: Optimizer) -> tuple[Steps, Callable[[], None]]:
    loop, m_opt = loop_of(problem), optimizer(problem.m_params)

    def learn() -> None:
        m_opt.zero_grad()
        loop.backward(problem.m_params)
        m_opt.step()

    return loop.run, learn


LOOPS = {"plain": plain, "InferenceLoop": inference_loop}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    small = metafunc.config.getoption("--sizes") == "small"
    metafunc.parametrize("setting", QUICK[:1] if small else ["pyromancy-tutorial"])
    metafunc.parametrize("loop", LOOPS)


@functools.lru_cache(maxsize=1)
def expectation(work: Setting) -> Outcome:
    return exact_incremental(work, sgd)


def check(loop: str, work: Setting, dtype: torch.dtype, allowed: float) -> None:
    problem = make_problem(pyromancy, work, dtype)
    run, learn = LOOPS[loop](problem, sgd)
    for _ in range(work.steps):
        run(1)
        learn()
    off = Outcome(problem.states, problem.m_params).deviation(expectation(work))
    require(off, allowed, f"states or weights in {dtype} are")


def test_incremental(setting: str, loop: str, benchmark: Any, record: Callable[..., None]) -> None:
    benchmark.group = f"incremental: {setting}"
    work = SETTINGS[setting]
    check(loop, work, torch.float64, EXACT)
    check(loop, work, torch.float32, ROUNDING)

    problem = make_problem(pyromancy, work)
    run, learn = LOOPS[loop](problem, adam)

    def alternating() -> None:
        problem.net.init_xy(problem.x, problem.y)
        for _ in range(work.steps):
            run(1)
            learn()

    def in_a_row() -> None:
        problem.net.init_xy(problem.x, problem.y)
        run(work.steps)
        for _ in range(work.steps):
            learn()

    baselines = {"in a row": in_a_row, "e-steps": lambda: run(work.steps)}
    for function in (alternating, *baselines.values()):
        function()
    timed = timing.alternate(benchmark, alternating, baselines, budget=2.0, rounds=(3, 100))
    if timed is None:
        return
    in_row, steps_alone = (timed.ratios[name] for name in baselines)  # in units of the time of alternating
    record(
        kind="incremental",
        setting=setting,
        loop=loop,
        steps=work.steps,
        seconds=timed.seconds,
        in_a_row_seconds=timed.baselines["in a row"],
        overhead_of_step=1 / in_row - 1,
        overhead_of_estep=(1 - in_row) / steps_alone,
    )
