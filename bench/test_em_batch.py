"""One whole EM batch per setting, in milliseconds and in multiples of the ideal time."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn as nn

import pyromancy
from pyromancy import backends

from . import timing
from .conftest import ORACLE, usable_backends
from .network import Outcome, Problem, exact_outcome, make_data, make_edges, make_problem, outcome
from .settings import ADAM_RATE, QUICK, SETTINGS, Setting

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def plain(problem: Problem) -> Callable[[], None]:
    """The documented loop, through autograd and PyTorch's optimizers."""
    net, e_params, m_params = problem.net, problem.e_params, problem.m_params
    e_opt = torch.optim.SGD(e_params, lr=problem.setting.rate)
    m_opt = torch.optim.Adam(m_params, lr=ADAM_RATE)

    def batch() -> None:
        net.init_xy(problem.x, problem.y)
        for _ in range(problem.setting.steps):
            net.zero_grad()
            net.energy().sum().backward(inputs=e_params)
            e_opt.step()
        net.zero_grad()
        net.energy().mean().backward(inputs=m_params)
        m_opt.step()

    return batch


def inference_loop(problem: Problem) -> Callable[[], None]:
    """The same batch through `pyromancy.InferenceLoop`."""
    net, e_params, m_params = problem.net, problem.e_params, problem.m_params
    loop = pyromancy.InferenceLoop(net.energy, e_params, lr=problem.setting.rate)
    m_opt = torch.optim.Adam(m_params, lr=ADAM_RATE)

    def batch() -> None:
        net.init_xy(problem.x, problem.y)
        loop.run(problem.setting.steps)
        m_opt.zero_grad()
        loop.backward(m_params)
        m_opt.step()

    return batch


# Loops over our nodes, by name: each makes of a problem the function that runs one batch.
LOOPS: dict[str, Callable[[Problem], Callable[[], None]]] = {"plain": plain, "InferenceLoop": inference_loop}


def backpropagation(setting: Setting) -> Callable[[], None]:
    """The same network trained by backpropagation: what a batch costs without inference."""
    net = nn.Sequential(*make_edges(setting))
    opt = torch.optim.Adam(net.parameters(), lr=ADAM_RATE)
    x, y = make_data(setting)

    def batch() -> None:
        opt.zero_grad()
        (0.5 * (net(x) - y).square().sum(1)).mean().backward()
        opt.step()

    return batch


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    small = metafunc.config.getoption("--sizes") == "small"
    metafunc.parametrize("setting", QUICK if small else SETTINGS)
    if "contender" in metafunc.fixturenames:
        theirs = ["pyromancy-ai"] if metafunc.config.stash[ORACLE] else []
        metafunc.parametrize("contender", ["backprop", *theirs])
    else:
        metafunc.parametrize("loop", LOOPS)
        metafunc.parametrize("backend", usable_backends())


@functools.lru_cache(maxsize=1)
def expectation(setting: Setting) -> Outcome:
    return exact_outcome(setting)


@functools.lru_cache(maxsize=2)
def their_deviation(oracle: ModuleType, setting: Setting, dtype: torch.dtype) -> float:
    return deviation(plain, oracle, setting, dtype)


def deviation(
    make: Callable[[Problem], Callable[[], None]], pyro: ModuleType, setting: Setting, dtype: torch.dtype
) -> float:
    """How far states and gradients after one batch are from the exact ones, relative to these."""
    problem = make_problem(pyro, setting, dtype)
    make(problem)()
    return outcome(problem).deviation(expectation(setting))


def test_em_batch(
    setting: str,
    loop: str,
    backend: str,
    oracle: ModuleType | None,
    ceilings: timing.Ceilings,
    benchmark: Any,
    record: Callable[..., None],
) -> None:
    benchmark.group = f"EM batch: {setting}"
    work, make = SETTINGS[setting], LOOPS[loop]
    with backends.use(backend):
        exact = deviation(make, pyromancy, work, torch.float64)
        assert exact <= 1e-10, f"in float64 states or gradients are off by {exact:.2g}: not timed"
        rounding = deviation(make, pyromancy, work, torch.float32)
        allowed = 1e-3
        if oracle is not None:
            exact, theirs = (their_deviation(oracle, work, dtype) for dtype in (torch.float64, torch.float32))
            assert exact <= 1e-10, f"pyromancy-ai is off by {exact:.2g} in float64, so it does other work: not timed"
            # sums over the widest node may round in another order; theirs shows how rounding grows over the steps
            allowed = 8 * torch.finfo(torch.float32).eps * max(work.sizes) ** 0.5 + 2 * theirs
        assert rounding <= allowed, f"states or gradients are off by {rounding:.2g}, allowed {allowed:.2g}: not timed"

        run = make(make_problem(pyromancy, work))
        baselines = {} if oracle is None else {"pyromancy-ai": plain(make_problem(oracle, work))}
        for function in (run, *baselines.values()):
            function()
        timed = timing.alternate(benchmark, run, baselines)
    keep(record, setting, f"{loop}, {backend}", timed, ceilings)


def test_baseline(
    setting: str,
    contender: str,
    oracle: ModuleType | None,
    ceilings: timing.Ceilings,
    benchmark: Any,
    record: Callable[..., None],
) -> None:
    benchmark.group = f"EM batch: {setting}"
    work = SETTINGS[setting]
    run = backpropagation(work) if contender == "backprop" else plain(make_problem(oracle, work))
    run()
    keep(record, setting, contender, timing.alternate(benchmark, run, {}, budget=1.0), ceilings)


def keep(
    record: Callable[..., None], setting: str, by: str, timed: timing.Timing | None, ceilings: timing.Ceilings
) -> None:
    if timed is None:
        return
    ideal = SETTINGS[setting].flops / ceilings.product
    record(
        kind="em-batch",
        setting=setting,
        loop=by,
        seconds=timed.seconds,
        ideal_seconds=ideal,
        multiple_of_ideal=timed.seconds / ideal,
        over_pyromancy_ai=timed.ratios.get("pyromancy-ai"),
    )
