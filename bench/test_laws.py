"""An EM batch of a network with another law, beside the same of Gaussian nodes, and JAX with the same energy."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor, nn

import pyromancy
from pyromancy import nodes

from . import rivals, timing
from .exact import EXACT, ROUNDING, Outcome, exact_of_edges, require
from .loops import em_step
from .network import Problem, linears, make_data, make_edges, make_problem
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


class Network(nn.Module):
    """Nodes in a row, each but the first predicted by an edge from the one before."""

    def __init__(self, setting: Setting, case: Case) -> None:
        super().__init__()
        first, *others = setting.sizes
        made: list[Any] = [nodes.FixedNode(first), *map(nodes.StandardGaussianNode, others)]
        made[case.place] = case.node(setting.sizes[case.place])
        self.nodes: Any = nn.ModuleList(made)
        self.edges = make_edges(setting)

    @torch.no_grad()
    def start(self, x: Tensor, y: Tensor) -> None:
        """Set the states by a forward sweep, and the target."""
        z = self.nodes[0].init(x)
        for edge, node in zip(self.edges, self.nodes[1:-1], strict=False):
            z = node.init(edge(z))
        self.nodes[-1].init(y)

    def energy(self) -> Tensor:
        """Free energy per sample, ``[B]``."""
        links = zip(pairwise(self.nodes), self.edges, strict=True)
        return cast("Tensor", sum(above.energy(edge(below.value)) for (below, above), edge in links))


class Batch:
    """One of a network, by `EM.step` in one call, with what it leaves."""

    def __init__(self, setting: Setting, case: Case, dtype: torch.dtype = torch.float32) -> None:
        self.net = Network(setting, case).to(dtype)
        self.x, self.y = (t.to(dtype) for t in make_data(setting))
        self.net.start(self.x, self.y)
        self.weights = [
            p for linear in linears(self.net.edges) for p in linear.parameters()
        ]  # the scale stays as it is
        self.adam = torch.optim.Adam(self.weights, lr=ADAM_RATE)
        free = [node.value for node in self.net.nodes[1:-1]]
        self.em = pyromancy.EM(
            self.net.energy, free, self.adam, start=self.net.start, steps=setting.steps, lr=setting.rate
        )

    def __call__(self) -> None:
        """Run it."""
        self.em.step(self.x, self.y)

    def left(self) -> Outcome:
        """States and gradients, after the first batch."""
        beta = self.adam.param_groups[0]["betas"][0]
        gradients = [self.adam.state[p]["exp_avg"] / (1 - beta) for p in self.weights]
        return Outcome([node.value for node in self.net.nodes[1:-1]], gradients)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    small = metafunc.config.getoption("--sizes") == "small"
    found = [(law, name) for law, case in CASES.items() for name in (("small",) if small else case.settings)]
    metafunc.parametrize(("law", "setting"), found)


def jax_batch(setting: Setting, case: Case, exact: Outcome) -> Callable[[], None]:
    """The batch in JAX, which returns when it is done, compared with float64."""
    for dtype, allowed in ((torch.float64, EXACT), (torch.float32, case.rounding)):
        runner = rivals.jax_scan(setting, "cpu", dtype, {case.place: case.energy})
        runner.batch()
        require(runner.left()[0].deviation(exact), allowed, f"JAX: states or gradients in {dtype} are")
    batch, finish = runner.batch, runner.finish
    assert finish is not None

    def done() -> None:
        batch()
        finish()

    return done


def test_laws(law: str, setting: str, ceilings: timing.Ceilings, benchmark: Any, record: Callable[..., None]) -> None:
    benchmark.group = f"EM batch: {setting}"
    case, work = CASES[law], SETTINGS[setting]
    exact = exact_of_edges(make_edges(work), *make_data(work), work.steps, work.rate, {case.place: case.energy})
    for dtype, allowed in ((torch.float64, EXACT), (torch.float32, case.rounding)):
        run = Batch(work, case, dtype)
        run()
        require(run.left().deviation(exact), allowed, f"states or gradients in {dtype} are")
    assert "one call" in run.em.explain()
    gaussian: Problem = make_problem(pyromancy, work)
    baselines: dict[str, Callable[[], None]] = {"Gaussian": em_step(gaussian)}
    if rivals.has_jax():
        baselines["JAX"] = jax_batch(work, case, exact)
    contenders: list[Callable[[], None]] = [run, *baselines.values()]
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
