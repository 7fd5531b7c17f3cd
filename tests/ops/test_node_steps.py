"""What `run_plan_` refuses of ways, norms and factors; what it does by them is told in tests/methods."""

import re
from dataclasses import replace

import pytest
import torch

from chains import call, planned, problem
from pyromancy.plan import Adam, Descent, Heun, Langevin, Momentum, Nesterov, NodeStep, QuasiNewton

pytestmark = pytest.mark.usefixtures("native_backend")  # the only one that takes them

CHAIN = (3, 5, 4, 2)
STATES = Nesterov(lr=0.1, restarts=True, errors=False)
OTHERS = [
    Descent(0.1), QuasiNewton(errors=False), Momentum(lr=0.1, momentum=0.5, errors=False), Heun(lr=0.1, errors=False),
    Adam(lr=0.1, errors=False), Langevin(lr=0.1, errors=False),
]  # fmt: skip


def with_way(made, way, node=1):
    nodes = [replace(n, way=way) if i == node else n for i, n in enumerate(made.nodes)]
    return replace(made, nodes=tuple(nodes))


@pytest.fixture
def made():
    return planned(problem(CHAIN, 6, clamped=(0, -1)) | {"velocities": []}, method=STATES)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        (NodeStep(relative_rate=-1.0), "relative rate and shrink of node 1 must not be negative, got -1 and 0"),
        (NodeStep(shrink=-1.0), "relative rate and shrink of node 1 must not be negative, got 1 and -1"),
        (NodeStep(low=1.0, high=0.0), "low of node 1 must not be above its high, got 1 and 0"),
        (NodeStep(known=0), "mask of node 1 must be bool of shape (1, 5) or (6, 5), got Double of"),
    ],
)
def test_ways_are_checked(made, way, message):
    with pytest.raises(RuntimeError, match=re.escape(message)):
        call(with_way(made[0], way), made[1])


@pytest.mark.parametrize("shape", [(5,), (2, 5), (6, 4), (6, 1)])
def test_masks_are_checked(made, shape):
    plan, operands = made
    made = with_way(plan, NodeStep(known=operands.number(torch.zeros(shape, dtype=torch.bool))))
    with pytest.raises(
        RuntimeError, match=re.escape("mask of node 1 must be bool of shape (1, 5) or (6, 5), got Bool of")
    ):
        call(made, operands)


def test_masks_are_of_free_nodes(made):
    plan, operands = made
    known = operands.number(torch.ones(6, 3, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="mask of node 0 needs a free node"):
        call(with_way(plan, NodeStep(known=known), 0), operands)


@pytest.mark.parametrize("way", [NodeStep(relative_rate=0.5), NodeStep(shrink=1.0), NodeStep(high=1.0)], ids=repr)
@pytest.mark.parametrize("method", OTHERS, ids=lambda m: type(m).__name__)
def test_ways_are_of_steps_at_a_rate(made, way, method):
    plan, operands = made
    with pytest.raises(RuntimeError, match="way of node 1 needs steps at a rate, without a velocity, and a free node"):
        call(with_way(replace(plan, method=method), way), operands)


def test_ways_are_of_free_nodes(made):
    with pytest.raises(RuntimeError, match="way of node 0 needs steps at a rate, without a velocity, and a free node"):
        call(with_way(made[0], NodeStep(relative_rate=0.5), 0), made[1])


def test_constraints_are_of_states(made):
    plan, operands = made
    with pytest.raises(RuntimeError, match="constraints of node 1 need steps that move states"):
        call(with_way(replace(plan, method=replace(STATES, errors=True)), NodeStep(low=0.0)), operands)


@pytest.mark.parametrize("method", OTHERS, ids=lambda m: type(m).__name__)
def test_norms_and_factors_are_of_steps_at_a_rate(made, method):
    plan, operands = made
    for changes in ({"max_norm": 1.0}, {"factors": (1.0,) * plan.steps}):
        with pytest.raises(RuntimeError, match="max_norm and factors need steps at a rate, without a velocity"):
            call(replace(plan, method=method, **changes), operands)


def test_norms_and_factors_are_checked(made):
    plan, operands = made
    factors = (1.0,) * plan.steps
    with pytest.raises(RuntimeError, match="max_norm must not be negative, got -1"):
        call(replace(plan, max_norm=-1.0), operands)
    with pytest.raises(RuntimeError, match="factors must not be negative, got -2"):
        call(replace(plan, factors=(-2.0, *factors[1:])), operands)


@pytest.mark.parametrize("changes", [{"max_norm": 1.0}, {"factors": (1.0,)}, {"way": NodeStep(low=0.0)}], ids=str)
def test_who_knows_plain_descent_alone_refuses_them(made, changes):
    plan = replace(made[0], method=Descent(0.1), steps=1)
    plan = with_way(plan, changes["way"]) if "way" in changes else replace(plan, **changes)
    with pytest.raises(NotImplementedError, match="E-steps other than plain descent"):
        _ = plan.descent
