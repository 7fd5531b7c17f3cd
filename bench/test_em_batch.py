"""One whole EM batch per setting, one of an epoch, and E-steps alone, in milliseconds and multiples of the ideal time.

Where JAX is installed it takes part: the batch of `rivals.py`, to which the rows of InferenceLoop and EM have a ratio.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn as nn

import pyromancy
from pyromancy import backends

from . import rivals, timing
from .conftest import ORACLE, usable_backends
from .exact import EXACT, ROUNDING, Outcome, exact_epoch, exact_outcome, outcome, relative, require
from .loops import LOOPS, em_of, inference_loop, loop_of, plain
from .network import Problem, make_data, make_edges, make_problem
from .settings import ADAM_RATE, QUICK, SETTINGS, Setting

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

EPOCH = 16  # batches of a timed epoch
FEW = 3  # of one that is compared with float64


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


@functools.lru_cache(maxsize=1)
def jax_batch(setting: Setting) -> Callable[[], None]:
    """The batch in JAX, compiled."""
    return rivals.checked_jax_batch(setting, expectation(setting))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    small = metafunc.config.getoption("--sizes") == "small"
    metafunc.parametrize("setting", QUICK if small else SETTINGS)
    if "contender" in metafunc.fixturenames:
        theirs = ["pyromancy-ai"] if metafunc.config.stash[ORACLE] else []
        metafunc.parametrize("contender", ["backprop", *theirs, *(["JAX"] if rivals.has_jax() else [])])
    if "loop" in metafunc.fixturenames:
        metafunc.parametrize("loop", LOOPS)
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", usable_backends())
    if "fastest" in metafunc.fixturenames:
        metafunc.parametrize("fastest", usable_backends()[:1])


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
        require(deviation(make, pyromancy, work, torch.float64), EXACT, "in float64 states or gradients are")
        rounding = deviation(make, pyromancy, work, torch.float32)
        allowed = ROUNDING
        if oracle is not None:
            exact, theirs = (their_deviation(oracle, work, dtype) for dtype in (torch.float64, torch.float32))
            require(exact, EXACT, "pyromancy-ai does other work: in float64 it is")
            # sums over the widest node may round in another order; theirs shows how rounding grows over the steps
            allowed = 8 * torch.finfo(torch.float32).eps * max(work.sizes) ** 0.5 + 2 * theirs
        require(rounding, allowed, "states or gradients are")

        run = make(make_problem(pyromancy, work))
        baselines = {} if oracle is None else {"pyromancy-ai": plain(make_problem(oracle, work))}
        if loop != "plain" and rivals.has_jax():
            baselines["JAX"] = jax_batch(work)
        if loop == "EM":
            baselines["InferenceLoop"] = inference_loop(make_problem(pyromancy, work))
        for function in (run, *baselines.values()):
            function()
        timed = timing.alternate(benchmark, run, baselines, budget=1.0)
    keep(record, setting, f"{loop}, {backend}", timed, ceilings)


def test_em_epoch(
    setting: str, fastest: str, ceilings: timing.Ceilings, benchmark: Any, record: Callable[..., None]
) -> None:
    """A shuffled pass over so many batches by `EM.epoch`; the time is that of one."""
    benchmark.group = f"EM batch: {setting}"
    work = SETTINGS[setting]
    with backends.use(fastest):
        few = replace(work, batch=FEW * work.batch)
        x, y = make_data(few)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split(work.batch)
        exact = exact_epoch(work, [(x[rows], y[rows]) for rows in order], ADAM_RATE)
        for dtype, allowed in ((torch.float64, EXACT), (torch.float32, ROUNDING)):
            problem = make_problem(pyromancy, few, dtype)
            # Adam's steps from gradients that should be 0 are anyone's guess
            em = em_of(problem, torch.optim.SGD(problem.m_params, lr=ADAM_RATE))
            for _ in em.epoch(problem.x, problem.y, batch_size=work.batch, generator=torch.Generator().manual_seed(0)):
                pass
            off = Outcome(problem.states, problem.m_params).deviation(exact)
            require(off, allowed, f"states or weights in {dtype} are")
            assert "one call" in em.explain()

        problem = make_problem(pyromancy, replace(work, batch=EPOCH * work.batch))
        em = em_of(problem, torch.optim.Adam(problem.m_params, lr=ADAM_RATE))

        def run() -> None:
            for _ in em.epoch(problem.x, problem.y, batch_size=work.batch):
                pass

        baselines = {"InferenceLoop": inference_loop(make_problem(pyromancy, work))}
        for function in (run, *baselines.values()):
            function()
        timed = timing.alternate(benchmark, run, baselines, budget=1.0, rounds=(3, 100))
    keep(record, setting, f"EM.epoch, {fastest}", timed, ceilings, EPOCH)


def test_esteps(
    setting: str, backend: str, ceilings: timing.Ceilings, benchmark: Any, record: Callable[..., None]
) -> None:
    """`InferenceLoop.run` from the states that a forward sweep sets, without that sweep and without an M-step."""
    benchmark.group = f"E-steps: {setting}"
    work = SETTINGS[setting]
    with backends.use(backend):
        for dtype, allowed in ((torch.float64, EXACT), (torch.float32, ROUNDING)):
            problem = make_problem(pyromancy, work, dtype)
            loop = loop_of(problem)
            loop.run(problem.steps)
            require(relative(problem.states, expectation(work).states), allowed, f"states in {dtype} are")
        timed = timing.alternate(
            benchmark,
            lambda: loop.run(problem.steps),
            {},
            budget=0.5,
            prepare=lambda: problem.net.init_xy(problem.x, problem.y),
        )
    if timed is None:
        return
    ideal = work.estep_flops / ceilings.product
    record(
        kind="e-steps",
        setting=setting,
        loop=f"InferenceLoop, {backend}",
        seconds=timed.seconds,
        ideal_seconds=ideal,
        multiple_of_ideal=timed.seconds / ideal,
    )


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
    if contender == "JAX":
        run = jax_batch(work)
    elif contender == "backprop":
        run = backpropagation(work)
    else:
        assert oracle is not None
        run = plain(make_problem(oracle, work))
    run()
    keep(record, setting, contender, timing.alternate(benchmark, run, {}), ceilings)


def keep(
    record: Callable[..., None],
    setting: str,
    by: str,
    timed: timing.Timing | None,
    ceilings: timing.Ceilings,
    batches: int = 1,
) -> None:
    """Record one batch of so many that were timed, each against one of the baselines."""
    if timed is None:
        return
    ideal, seconds = SETTINGS[setting].flops / ceilings.product, timed.seconds / batches
    over = {name: batches * ratio for name, ratio in timed.ratios.items()}
    record(
        kind="em-batch",
        setting=setting,
        loop=by,
        seconds=seconds,
        ideal_seconds=ideal,
        multiple_of_ideal=seconds / ideal,
        over_pyromancy_ai=over.get("pyromancy-ai"),
        over_jax=over.get("JAX"),
        over_inference_loop=over.get("InferenceLoop"),
    )
