"""An EM batch of networks of Linear layers that are no chains by `EM.step`, beside the JAX scan."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import pyromancy

from . import rivals, timing
from .exact import EXACT, ROUNDING, exact_of_edges, outcome, require
from .general import GENERAL, General
from .loops import em_of
from .products import products_and_adam
from .settings import ADAM_RATE

if TYPE_CHECKING:
    from collections.abc import Callable

NETWORKS = ("muPC", "two parents", "all to all", "temporal", "residual, 4")
SMALL_BATCH = 8
SETTLED = 40  # batches after which `EM.step` repeats itself


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    small = metafunc.config.getoption("--sizes") == "small"
    chosen = {name: g for name, g in GENERAL.items() if name.startswith(NETWORKS)}
    chosen = {name: replace(g, batch=SMALL_BATCH) if small else g for name, g in chosen.items()}
    metafunc.parametrize(("name", "general"), chosen.items(), ids=[name.split(",")[0] for name in chosen])


def _ours(general: General, dtype: torch.dtype = torch.float32) -> tuple[Any, Callable[[], object]]:
    """The problem, and a batch of it in one call."""
    problem = general.problem(pyromancy, dtype)
    problem.adam = torch.optim.Adam(problem.m_params, lr=ADAM_RATE)
    em = em_of(problem, problem.adam)
    em.step(problem.x, problem.y)
    assert "a batch: one call of an operator" in em.explain()
    return problem, lambda: em.step(problem.x, problem.y)


@pytest.mark.skipif(not rivals.has_jax(), reason="JAX is not installed")
def test_networks(name: str, general: General, benchmark: Any, record: Callable[..., None]) -> None:
    from .jax_general import jax_general

    benchmark.group = "networks beside JAX"
    few = replace(general, batch=min(SMALL_BATCH, general.batch))
    _, edges, x, y = few.parts()
    exact = exact_of_edges(edges, x, y, few.steps, few.rate)
    for dtype, allowed in ((torch.float64, EXACT), (torch.float32, ROUNDING)):
        problem, _ = _ours(few, dtype)
        require(outcome(problem).deviation(exact), allowed, f"states or gradients in {dtype} are")
        theirs = jax_general(few, dtype)
        theirs.run()
        require(theirs.left().deviation(exact), allowed, f"JAX: states or gradients in {dtype} are")
    _, run = _ours(general)
    _, without = _ours(replace(general, steps=0))
    jax = jax_general(general)
    for function in (run, without, jax.run):
        for _ in range(SETTLED):
            function()
    timed = timing.alternate(benchmark, run, {"JAX": jax.run}, budget=2.0)
    if timed is None:
        return
    products = products_and_adam(general)
    least = timing.least({"EM": run, "JAX": jax.run, "no steps": without, "products and Adam": products})
    record(
        kind="network",
        network=name,
        batch=general.batch,
        steps=general.steps,
        seconds=timed.seconds,
        over_jax=timed.ratios["JAX"],
        processor_seconds=least["EM"],
        jax_processor_seconds=least["JAX"],
        processor_seconds_without_steps=least["no steps"],
        processor_seconds_of_products_and_adam=least["products and Adam"],
        products=jax.products,
        jax_flops=jax.flops,
    )
