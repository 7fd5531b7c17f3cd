"""An EM batch of a network with another law, beside the same of Gaussian nodes, and JAX with the same energy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import pyromancy
from pyromancy import nodes

from . import rivals, timing
from .exact import EXACT, ROUNDING, exact_of_edges, outcome, require
from .loops import em_of, em_step
from .network import PCN, Problem, make_data, make_edges, make_problem
from .settings import ADAM_RATE, SETTINGS, Setting


class Case(NamedTuple):
    """A law of one node of a setting.

    Attributes:
        place: of the node.
        node: of so many components.
        energy: of state and prediction, by name in `exact.ENERGIES` and in JAX.
        settings: that have it.
        rounding: how far off float32 may be.
    """

    place: int
    node: Callable[[int], nn.Module]
    energy: str
    settings: tuple[str, ...]
    rounding: float = ROUNDING


SHAPES = ("pyromancy-tutorial", "pcx", "generative")
CASES = {
    "categorical output": Case(-1, nodes.CategoricalNode, "categorical", SHAPES[:2]),  # what is generated is no class
    "Bernoulli output": Case(-1, nodes.BernoulliNode, "bernoulli", SHAPES),
    # where a state has come to its prediction up to rounding, that decides which way the next step goes
    "Laplace prior": Case(1, nodes.LaplaceNode, "laplace", SHAPES, rounding=0.1),
}


def problem_of(setting: Setting, case: Case, dtype: torch.dtype = torch.float32) -> Problem:
    """The setting's network with that node; scales do not learn."""
    net = PCN(pyromancy, [(n,) for n in setting.sizes], make_edges(setting))
    net.nodes[case.place] = case.node(setting.sizes[case.place])
    x, y = (t.to(dtype) for t in make_data(setting))
    problem = Problem.of(pyromancy, net.to(dtype), x, y, setting.steps, setting.rate)
    return replace(problem, m_params=list(net.edges.parameters()))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    small = metafunc.config.getoption("--sizes") == "small"
    found = [(law, name) for law, case in CASES.items() for name in (("small",) if small else case.settings)]
    metafunc.parametrize(("law", "setting"), found)


def test_laws(law: str, setting: str, ceilings: timing.Ceilings, benchmark: Any, record: Callable[..., None]) -> None:
    benchmark.group = f"EM batch: {setting}"
    case, work = CASES[law], SETTINGS[setting]
    exact = exact_of_edges(make_edges(work), *make_data(work), work.steps, work.rate, {case.place: case.energy})
    for dtype, allowed in ((torch.float64, EXACT), (torch.float32, case.rounding)):
        problem = problem_of(work, case, dtype)
        problem.adam = torch.optim.Adam(problem.m_params, lr=ADAM_RATE)
        em = em_of(problem, problem.adam)
        em.step(problem.x, problem.y)
        require(outcome(problem).deviation(exact), allowed, f"states or gradients in {dtype} are")
    assert "one call" in em.explain()
    run = functools.partial(em.step, problem.x, problem.y)
    baselines: dict[str, Callable[[], None]] = {"Gaussian": em_step(make_problem(pyromancy, work))}
    if rivals.has_jax():
        baselines["JAX"] = rivals.checked_jax_batch(work, exact, {case.place: case.energy}, case.rounding)
    contenders: list[Callable[[], object]] = [run, *baselines.values()]
    for function in contenders:
        function()
    timed = timing.alternate(benchmark, run, baselines, budget=2.0)
    if timed is None:
        return
    record(
        kind="laws",
        setting=setting,
        law=law,
        seconds=timed.seconds,
        gaussian_seconds=timed.baselines["Gaussian"],
        over_gaussian=1 / timed.ratios["Gaussian"],
        over_jax=timed.ratios.get("JAX"),
    )
