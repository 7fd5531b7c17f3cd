"""Laws of one's own with a theta, in plans, against autograd in float64: states, energies and gradients."""

import pytest
import torch
import torch.nn.functional as F

from chains import run_plan_
from kernels import EMULATED, running
from numerics import FLOATS, assert_near, name
from pyromancy import backends, plan
from pyromancy.capture.symbolic import Algebra
from pyromancy.plan import Law, Learned, Learning, Rule, Target
from pyromancy.plan.expression import Op

KERNELS = ["emulated"] if EMULATED else [b for b in ("native", "reference") if backends.available(b)[0]]
STEPS, LR = 4, 0.05
SHAPES = {"one-for-all": (), "one": (1,), "per-feature": (None,), "per-element": ("batch", None)}


def logistic(z, mu, theta):
    """A logistic law of log-scale theta, and something of z alone: it pulls and pushes apart."""
    d = (z - mu) * torch.exp(-theta)
    return d + 2 * F.softplus(-d) + theta + 0.1 * z.square()


def own_logistic():
    g = Algebra()
    d = g.mul(g.distance, g.apply(Op.EXP, g.neg(g.theta)))
    soft = g.times(2.0, g.apply(Op.SOFTPLUS, g.neg(d)))
    return g.program(g.add(g.add(g.add(d, soft), g.theta), g.times(0.1, g.pow(g.z, 2.0))))


@pytest.fixture(params=KERNELS, scope="module", autouse=True)
def kernels(request):
    with running(request.param, may_step=True):
        yield


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("batch", [1, 5, 70])
@pytest.mark.parametrize("shape", SHAPES)
def test_states_energies_and_gradients(shape, batch, dtype):
    """Of two nodes, the second clamped; the first has a prior, and weights per sample."""
    n, m, law = 13, 9, own_logistic()

    def theta_of(width):
        sizes = [batch if size == "batch" else size or width for size in SHAPES[shape]]
        return 0.3 * torch.randn(sizes, dtype=torch.float64)

    z, y, prior, weights = (torch.randn(*s, dtype=torch.float64) for s in ((batch, n), (batch, m), (1, n), (batch,)))
    w, weights = torch.randn(m, n, dtype=torch.float64) / n**0.5, weights.abs()
    thetas = [theta_of(n), theta_of(m)]
    learns = thetas[0].dim() < 2

    gradients = [torch.full_like(t, torch.nan).to(dtype) for t in (*thetas, w)]
    energies = torch.full((STEPS, 2, batch), torch.nan, dtype=dtype)
    written = [z.to(dtype, copy=True), energies, *gradients]
    read = [t.to(dtype, copy=True) for t in (y, prior, w, *thetas, weights)]
    nodes = (
        plan.Node(0, True, law=Law.EXPRESSION, theta=8, prior=6, weight=0.7, sample_weights=10, expression=law),
        plan.Node(5, False, law=Law.EXPRESSION, theta=9, expression=law),
    )
    of_thetas = (Target(Learned.LOGVAR, 0, 0, 2), Target(Learned.LOGVAR, 1, 0, 3)) if learns else ()
    made = plan.Plan(
        nodes, (plan.Edge(0, 1, 7),), plan.Descent(LR), STEPS, 1, learning=Learning.AT_THE_END, rules=(Rule(),),
        targets=(*of_thetas, Target(Learned.WEIGHT, 0, 0, 4)),
    )  # fmt: skip
    run_plan_(written, read, *plan.encode(made))

    z.requires_grad_(), w.requires_grad_(), [t.requires_grad_() for t in thetas]

    def by_node():
        first = 0.7 * weights * logistic(z, prior, thetas[0]).sum(1)
        return torch.stack([first, logistic(y, z @ w.T, thetas[1]).sum(1)])

    for step in range(STEPS):
        exact = by_node()
        assert_near(energies[step], exact.detach(), 40 * n)
        (slope,) = torch.autograd.grad(exact.sum(), z)
        with torch.no_grad():
            z -= LR * slope
    assert_near(written[0], z.detach(), 20 * n)
    expected = torch.autograd.grad(by_node().sum() / batch, [*thetas, w])
    for found, gradient in zip(
        gradients if learns else gradients[2:], expected if learns else expected[2:], strict=True
    ):
        assert_near(found, gradient, 40 * n)


def test_a_theta_that_does_not_fit_is_refused():
    law, z, energies = own_logistic(), torch.zeros(4, 3), torch.zeros(1, 1, 4)
    prior, wrong = torch.zeros(1, 3), torch.zeros(2)
    node = plan.Node(0, True, law=Law.EXPRESSION, prior=2, expression=law)
    for theta, read, told in (
        (None, [prior], "theta of node 0 must be there, as its expression takes one"),
        (3, [prior, wrong], r"theta of node.*must have shape"),
        (3, [prior, torch.zeros(3, dtype=torch.float64)], "theta of node.*must have dtype"),
    ):
        made = plan.Plan((plan.Node(**vars(node) | {"theta": theta}),), (), plan.Descent(LR), 1, 1)
        with pytest.raises(RuntimeError, match=told):
            run_plan_([z, energies], read, *plan.encode(made))
