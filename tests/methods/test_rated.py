"""What a step may do beside a plain rate: rates of states, schedules, ranges, masks, proximal steps, norms."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.optimize import lsq_linear
from sklearn.linear_model import Lasso
from torch import nn

import inference
import pyromancy as pyro
from inference import Rows
from pyromancy.methods import (
    LBFGS,
    Accelerated,
    Adam,
    Descent,
    Heun,
    Known,
    Langevin,
    Range,
    Sequential,
    Shrink,
    Stop,
)
from pyromancy.nodes import StandardGaussianNode
from pyromancy.run import stepwise

EXACT = {"rtol": 1e-12, "atol": 1e-12}
PROXIMAL = {
    "ISTA": lambda lr, **options: Descent(lr, **options),
    "FISTA": lambda lr, **options: Accelerated(lr, coordinates="states", **options),
    "momentum": lambda lr, **options: Accelerated(lr, momentum=0.5, coordinates="states", **options),
}
proximal = pytest.mark.parametrize("method", PROXIMAL.values(), ids=PROXIMAL)
ON_STATES = {
    "descent": lambda **options: Descent(0.02, **options),
    "velocity": lambda **options: Descent(0.02, momentum=0.5, **options),
    "accelerated": lambda **options: Accelerated(0.02, coordinates="states", **options),
    "adam": lambda **options: Adam(0.02, **options),
    "heun": lambda **options: Heun(0.02, adaptive=False, **options),
    "heun-adaptive": lambda **options: Heun(0.02, **options),
    "sequential": lambda **options: Sequential(0.02, **options),
    "langevin": lambda **options: Langevin(0.02, generator=torch.Generator().manual_seed(3), **options),
}
on_states = pytest.mark.parametrize("method", ON_STATES.values(), ids=ON_STATES)


class Codes(nn.Module):
    """Data of so many numbers, predicted by codes: ``1/2 |y - W z|^2``, which a prior may have a part of."""

    def __init__(self, batch, width, data):
        super().__init__()
        self.code = nn.Parameter(torch.zeros(batch, width, dtype=torch.float64))
        self.edge = nn.Linear(width, data, bias=False, dtype=torch.float64).requires_grad_(False)
        nn.init.normal_(self.edge.weight)
        self.node = StandardGaussianNode(data).double()
        self.node.init(torch.randn(batch, data, dtype=torch.float64))

    def energy(self):
        return self.node.energy(self.edge(self.code))

    @property
    def rate(self):
        return 1 / torch.linalg.eigvalsh(self.edge.weight.mT @ self.edge.weight)[-1].item()


def lasso(net, weight, positive=False):
    """Of ``1/2 |y - W z|^2 + weight |z|_1``; scikit-learn has the first over the number of data."""
    w, y = net.edge.weight.numpy(), net.node.value.detach().numpy()
    model = Lasso(weight / len(w), fit_intercept=False, tol=1e-14, max_iter=10**6, positive=positive)
    return torch.as_tensor(model.fit(w, y.T).coef_).reshape(len(y), -1)


@proximal
@pytest.mark.parametrize("positive", [False, True], ids=["signed", "positive"])
def test_sparse_codes_are_those_of_the_lasso(method, positive):
    net = Codes(9, 12, 20)
    constraints = {net.code: (Shrink(1.5), Range(0, None)) if positive else Shrink(1.5)}
    pyro.InferenceLoop(net.energy, [net.code], method=method(net.rate, constraints=constraints)).run(1500)
    expected = lasso(net, 1.5, positive)
    torch.testing.assert_close(net.code.detach(), expected, rtol=0, atol=1e-8)
    assert torch.equal(net.code == 0, expected.abs() < 1e-12)
    assert 0.2 < (expected == 0).double().mean() < 0.9


@proximal
def test_more_codes_than_data(method):
    """Where the energy alone has no one minimum."""
    net = Codes(5, 30, 12)
    loop = pyro.InferenceLoop(net.energy, [net.code], method=method(net.rate, constraints={net.code: Shrink(2.0)}))
    loop.run(6000)
    torch.testing.assert_close(net.code.detach(), lasso(net, 2.0), rtol=0, atol=1e-6)


@proximal
def test_shrinking_towards_another_point(method):
    """Is shrinking towards 0 of codes that are measured from there."""
    net = Codes(4, 12, 20)
    loop = pyro.InferenceLoop(net.energy, [net.code], method=method(net.rate, constraints={net.code: Shrink(1.5, 0.7)}))
    loop.run(1500)
    net.node.init(net.node.value.detach() - net.edge(torch.full_like(net.code, 0.7)).detach())
    torch.testing.assert_close(net.code.detach() - 0.7, lasso(net, 1.5), rtol=0, atol=1e-8)


@proximal
def test_norms_do_not_move_the_end(method):
    """Of a proximal step: a shorter gradient goes with a shorter step."""
    net = Codes(6, 12, 20)
    constraints = {net.code: Shrink(1.5)}
    loop = pyro.InferenceLoop(net.energy, [net.code], method=method(net.rate, constraints=constraints, max_norm=2.0))
    loop.run(4000)
    torch.testing.assert_close(net.code.detach(), lasso(net, 1.5), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "method", [*PROXIMAL.values(), *(ON_STATES[k] for k in ("velocity", "heun", "sequential"))],
    ids=[*PROXIMAL, "velocity", "heun", "sequential"],
)  # fmt: skip
def test_ranges_end_at_bounded_least_squares(method):
    net = Codes(5, 12, 20)
    limits = {"constraints": {net.code: Range(-0.2, 0.1)}}
    made = method(net.rate, **limits) if method in PROXIMAL.values() else replace(method(**limits), lr=net.rate / 2)
    pyro.InferenceLoop(net.energy, [net.code], method=made).run(3000)
    w, y = net.edge.weight.numpy(), net.node.value.detach().numpy()
    expected = torch.stack([torch.as_tensor(lsq_linear(w, row, (-0.2, 0.1), tol=1e-14).x) for row in y])
    torch.testing.assert_close(net.code.detach(), expected, rtol=0, atol=1e-6)
    assert -0.2 <= net.code.min() <= net.code.max() <= 0.1


@on_states
def test_what_is_known_holds_still(method):
    """In every bit, and all else moves as it does without: no two variables of this energy meet."""
    states, centers = inference.rows(6)
    start, free = [x.clone() for x in states], [x.clone() for x in states]
    masks = [torch.rand(6, 3) < 0.5, torch.tensor([True, False])]
    made = method(constraints={x: Known(mask) for x, mask in zip(states, masks, strict=True)})
    stepwise.run(made, Rows(states, centers), 7)
    if not isinstance(made, Heun) or not made.adaptive:  # whose samples take steps of one length
        stepwise.run(method(), Rows(free, centers), 7)
        for x, y, mask in zip(states, free, masks, strict=True):
            torch.testing.assert_close(x, torch.where(mask, x, y), **EXACT)
    for x, y, mask in zip(states, start, masks, strict=True):
        assert torch.equal(x[mask.expand_as(x)], y[mask.expand_as(x)])
        assert (x != y)[~mask.expand_as(x)].any()


@on_states
def test_ranges_are_kept(method):
    states, centers = inference.rows(6, scale=3.0)
    made = method(constraints={states[0]: Range(-0.5, 0.5), states[1]: (Range(0, None), Known(states[1] < 0))})
    before = states[1].clone()
    stepwise.run(made, Rows(states, centers), 9)
    if not (isinstance(made, Heun) and made.adaptive):  # which may not have moved
        assert (states[0].abs() <= 0.5).all()
        assert (states[0].abs() == 0.5).any()
    assert torch.equal(states[1] < 0, before < 0)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str)
def test_rates_of_states_are_parameter_groups(options):
    states, centers = inference.rows(4)
    twins = [x.clone().requires_grad_() for x in states]
    groups = [{"params": [x], "lr": lr} for x, lr in zip(twins, (0.02, 0.005), strict=True)]
    stepwise.run(Descent({states[1]: 0.005, None: 0.02}, **options), Rows(states, centers), 7)
    as_torch(torch.optim.SGD(groups, **options), twins, centers, states)


def test_rates_of_adam():
    states, centers = inference.rows(4)
    twins = [x.clone().requires_grad_() for x in states]
    groups = [{"params": [x], "lr": lr} for x, lr in zip(twins, (0.02, 0.005), strict=True)]
    stepwise.run(Adam({states[0]: 0.02, states[1]: 0.005}), Rows(states, centers), 7)
    as_torch(torch.optim.Adam(groups), twins, centers, states)


def decay(step):
    return 0.0 if step == 2 else 0.9**step


@pytest.mark.parametrize("schedule", [decay, [decay(i) for i in range(7)]], ids=["function", "sequence"])
@pytest.mark.parametrize("method", [Descent(0.02, momentum=0.5), Adam(0.02)], ids=repr)
def test_schedules_are_those_of_torch(method, schedule):
    """Also where a run goes on from another."""
    states, centers = inference.rows(4)
    twins = [x.clone().requires_grad_() for x in states]
    made = replace(method, schedule=schedule)
    first = stepwise.run(made, Rows(states, centers), 3)
    stepwise.run(made, Rows(states, centers), 4, resumed=first.resumed)
    optimizer = (
        torch.optim.SGD(twins, 0.02, momentum=0.5) if isinstance(method, Descent) else torch.optim.Adam(twins, 0.02)
    )
    as_torch(optimizer, twins, centers, states, torch.optim.lr_scheduler.LambdaLR(optimizer, decay))


def as_torch(optimizer, twins, centers, states, scheduler=None):
    for _ in range(7):
        optimizer.zero_grad()
        problem = Rows(twins, centers)
        problem.point = twins
        problem.value().sum().backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    for a, b in zip(states, twins, strict=True):
        torch.testing.assert_close(a, b.detach(), **EXACT)


def test_norms_by_hand():
    """A sample's gradient for a state goes down to the norm, and a shorter one stays."""
    states, centers = inference.rows(9)
    problem = Rows([x.clone() for x in states], centers)
    problem.begin()
    gradients = problem.evaluate().gradient
    expected = []
    for x, g in zip(states, gradients, strict=True):
        norm = g.pow(2).sum(1, keepdim=True).sqrt()
        expected.append(x - 0.1 * torch.where(norm > 8.0, 8.0 * g / norm, g))
    assert any((g.norm(dim=1) > 8).any() and (g.norm(dim=1) < 8).any() for g in gradients)
    stepwise.run(Descent(0.1, max_norm=8.0), Rows(states, centers), 1)
    for x, y in zip(states, expected, strict=True):
        torch.testing.assert_close(x, y, **EXACT)


@pytest.mark.parametrize("method", [m for k, m in ON_STATES.items() if k != "langevin"])  # whose noise is a batch's
@pytest.mark.parametrize("stop", [None, Stop(1e-2)], ids=repr)
def test_a_sample_does_not_depend_on_its_batch(method, stop):
    def options(states):
        known = torch.tensor([True, False, False])
        return {"max_norm": 1.5, "constraints": {states[0]: Known(known), states[1]: Range(-0.5, None)}}

    states, centers = inference.rows(5)
    starts = [x.clone() for x in states]
    made = method(**options(states))
    together = stepwise.run(made, Rows(states, centers), 12, stop)
    for i in range(5):
        mine = [x[i : i + 1].clone() for x in starts]
        alone = stepwise.run(method(**options(mine)), Rows(mine, [c[i : i + 1] for c in centers]), 12, stop)
        assert all(torch.equal(a[0], b[i]) for a, b in zip(mine, states, strict=True))
        assert alone.taken[0] == together.taken[i]


@proximal
@pytest.mark.parametrize("tol", [1e-3, 1e-6])
def test_samples_stop_near_the_lasso(method, tol):
    """By how short their steps have become, and where a step ends: entries that shrink away are 0."""
    net = Codes(9, 12, 20)
    expected = lasso(net, 1.5)
    loop = pyro.InferenceLoop(net.energy, [net.code], method=method(net.rate, constraints={net.code: Shrink(1.5)}))
    trace = loop.run(2000, tol=tol)
    assert trace.converged.all()
    assert trace.steps < 2000
    code = net.code.detach()
    assert ((code - expected).abs().amax(1) < 10 * tol).all()
    assert (code == 0).any()
    loop.run(1, tol=tol)
    assert "constraints hold states" in loop.explain()


def test_a_start_out_of_range_is_no_measure():
    """The step into the range is long, and those after it are not short for that."""
    net = Codes(5, 12, 20)
    with torch.no_grad():
        net.code.fill_(40.0)
    method = PROXIMAL["FISTA"](net.rate, constraints={net.code: Range(-0.2, 0.1)})
    loop = pyro.InferenceLoop(net.energy, [net.code], method=method)
    assert loop.run(2000, tol=1e-4).converged.all()
    w, y = net.edge.weight.numpy(), net.node.value.detach().numpy()
    expected = torch.stack([torch.as_tensor(lsq_linear(w, row, (-0.2, 0.1), tol=1e-14).x) for row in y])
    torch.testing.assert_close(net.code.detach(), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("key", ["state", "node"])
def test_states_are_named_by_tensors_or_by_nodes(key):
    """A node's state when a run is made, and not when it was named."""
    net = pyro.networks.mlp([4, 5, 3, 2]).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    first, second = net.nodes[1:3]
    if key == "state":
        net.start(x, y)
    one, other = (n if key == "node" else n.value for n in (first, second))
    loop = pyro.InferenceLoop(net.energy, net.e_params(), method=Descent({one: 0.0, other: 0.1}))
    net.start(x, y)
    before = [n.value.detach().clone() for n in (first, second)]
    loop.run(2)
    assert torch.equal(first.value, before[0])
    assert not torch.equal(second.value, before[1])


def test_bad_input():
    z, other = (nn.Parameter(torch.zeros(3, 2)) for _ in range(2))
    energy = lambda: (z.square() + other).sum(1)  # noqa: E731

    def loop(method, params=(z, other)):
        return pyro.InferenceLoop(energy, params, method=method)

    with pytest.raises(ValueError, match=r"Shrink cannot be used with Adam, whose steps.* Descent and Accelerated"):
        Adam(constraints={z: Shrink(1.0)})
    with pytest.raises(ValueError, match=r"Shrink cannot be used with Heun, whose steps go by two gradients"):
        Heun(constraints={z: Shrink(1.0)})
    with pytest.raises(ValueError, match=r"Shrink cannot be used with Langevin, whose noise"):
        Langevin(0.1, constraints={z: Shrink(1.0)})
    with pytest.raises(ValueError, match=r"Shrink cannot be used with a velocity.*Accelerated"):
        Descent(0.1, momentum=0.5, constraints={z: Shrink(1.0)})
    with pytest.raises(ValueError, match=r"constraints need coordinates='states'"):
        Accelerated(0.1, constraints={z: Range(0)})
    for options in ({"schedule": decay}, {"max_norm": 1.0}, {"constraints": {}}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be left out without lr"):
            Accelerated(**options)
    with pytest.raises(ValueError, match="schedule must be left out with adaptive=True"):
        Heun(schedule=decay)
    with pytest.raises(TypeError, match="lr must be a number, got"):
        Heun({z: 0.1})
    with pytest.raises(TypeError, match="unexpected keyword argument 'constraints'"):
        LBFGS(constraints={z: Range(0)})
    with pytest.raises(TypeError, match=r"lr must name states by tensors or nodes, got 'z'"):
        Descent({"z": 0.1})
    with pytest.raises(ValueError, match=r"lr of a state \[3, 2\] must be finite, not negative, got -1.0"):
        Descent({z: -1.0})
    with pytest.raises(TypeError, match=r"lr of None must be a number, got '1'"):
        Descent({None: "1"})
    with pytest.raises(ValueError, match=r"lr must have a rate for every state.*got none for a state \[3, 2\]"):
        loop(Descent({z: 0.1}))
    with pytest.raises(ValueError, match=r"lr must name states that E-steps move, got a state \[3, 2\]"):
        loop(Descent({z: 0.1, other: 0.2}), [z])
    with pytest.raises(ValueError, match=r"constraints must name states that E-steps move, got Linear"):
        loop(Descent(0.1, constraints={nn.Linear(2, 2): Range(0)}))
    holds = nn.ParameterList([z, other])
    with pytest.raises(ValueError, match=r"lr must name every state once, got ParameterList"):
        loop(Descent({z: 0.1, holds: 0.2}))
    for mask, told in (
        (torch.zeros(2, 2, dtype=torch.bool), r"\(2, 2\)"),
        (torch.zeros(1, 3, 2).bool(), r"\(1, 3, 2\)"),
    ):
        with pytest.raises(
            ValueError, match=rf"mask must be of a shape that broadcasts to the state's, \(3, 2\), got {told}"
        ):
            loop(Descent(0.1, constraints={z: Known(mask)})).run(1)
    with pytest.raises(TypeError, match=r"mask must be a tensor of bools, got one of torch.float32"):
        Known(torch.zeros(3))
    with pytest.raises(TypeError, match="mask must be a tensor of bools, got list"):
        Known([True])
    with pytest.raises(ValueError, match="Range must have a limit"):
        Range()
    with pytest.raises(ValueError, match="low must not be above high, got 1 and 0"):
        Range(1, 0)
    with pytest.raises(ValueError, match="high must be finite"):
        Range(0, math.inf)
    with pytest.raises(ValueError, match=r"weight must be finite, not negative, got -1.0"):
        Shrink(-1.0)
    with pytest.raises(TypeError, match=r"constraints of a state \[3, 2\] must be of Range, Known and Shrink, got 0"):
        Descent(0.1, constraints={z: 0})
    with pytest.raises(ValueError, match=r"constraints of a state \[3, 2\] must be one of a kind"):
        Descent(0.1, constraints={z: (Range(0), Range(1))})
    with pytest.raises(TypeError, match="constraints must be a mapping of states, got Range"):
        Descent(0.1, constraints=Range(0))
    with pytest.raises(ValueError, match=r"max_norm must be finite, above 0, got 0.0"):
        Descent(0.1, max_norm=0)
    with pytest.raises(TypeError, match=r"schedule must be a function or a sequence of factors, got 0.5"):
        Descent(0.1, schedule=0.5)
    with pytest.raises(ValueError, match=r"schedule\[1\] must be finite, not negative, got -1.0"):
        Descent(0.1, schedule=[1.0, -1.0])
    before = z.detach().clone()
    with pytest.raises(ValueError, match="schedule must have a factor for each of 3 steps, got 2"):
        loop(Descent(0.1, schedule=[1.0, 1.0])).run(3)
    with pytest.raises(ValueError, match=r"schedule\(1\) must be finite, not negative, got nan"):
        loop(Descent(0.1, schedule=lambda t: math.nan if t else 1.0)).run(3)
    assert torch.equal(z, before)


def test_methods_are_told_in_short():
    z = nn.Parameter(torch.zeros(3, 2))
    assert repr(Descent(0.1)) == "Descent(lr=0.1, momentum=0.0, dampening=0.0, nesterov=False, coordinates='states')"
    made = Accelerated(
        {StandardGaussianNode(2): 0.1, None: 0.2}, coordinates="states", schedule=decay,
        constraints={z: (Range(0), Known(torch.ones(2).bool()))},
    )  # fmt: skip
    assert repr(made) == (
        "Accelerated(lr={StandardGaussianNode: 0.1, None: 0.2}, momentum='restart', coordinates='states', "
        "schedule=decay, constraints={a state [3, 2]: (Range(low=0, high=None), Known(mask [2]))})"
    )
