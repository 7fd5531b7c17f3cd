"""Methods where theory says what comes out: equilibria, orders, and the law of what Langevin dynamics draws."""

import itertools
import math

import pytest
import torch

import networks
from inference import CONVERGENT
from pyromancy import InferenceLoop, get_estep_params, methods
from pyromancy.capture.capture import capture
from pyromancy.run.objective import OnErrors

BATCH = 4
TIGHT = {"rtol": 1e-10, "atol": 1e-10}
KINDS = {
    "unit": ("StandardGaussianNode",) * 4,
    "precisions": ("StandardGaussianNode", "FactorizedGaussianNode", "IsotropicGaussianNode", "FactorizedGaussianNode"),
    "full covariances": ("StandardGaussianNode", *["MultivariateGaussianNode"] * 3),
}
WIDTHS = (4, 3, 4, 2)


def linear(z):
    return z


def chain(kinds, widths=WIDTHS, batch=BATCH):
    """A linear network whose ends are clamped, its free states, and what is at its end: states, energy, and Hessian.

    With mu_l = W_l z_{l-1} and covariances S_l, ``z_L - W_L ... W_1 x`` has the covariance
    ``S = S_L + sum_l P_l S_l P_l^T``, P_l = W_L ... W_{l+1}, and the energy at equilibrium is
    ``1/2 (r^T S^-1 r + sum_l log|S_l|)``.
    """
    pcn = networks.Chain(kinds, widths, activation=linear, bias=False)
    x, y = (torch.randn(batch, n, dtype=torch.float64) for n in (widths[0], widths[-1]))
    pcn.init(x, y)
    free = list(get_estep_params(pcn, exclude=(pcn.nodes[0], pcn.nodes[-1])))
    covariances = []
    for node, n in zip(pcn.nodes[1:], widths[1:], strict=True):
        covariance = torch.eye(n, dtype=torch.float64)
        if hasattr(node, "covar_cf_logdiag"):
            node.covariance = covariance = networks.covariance_of(n)
        elif hasattr(node, "logvar"):
            torch.nn.init.normal_(node.logvar, std=0.5)
            covariance = covariance * torch.exp(node.logvar.detach()).expand(n)
        covariances.append(covariance)
    w = [edge.weight.detach() for edge in pcn.edges]
    p, s = torch.eye(widths[-1], dtype=torch.float64), covariances[-1]
    for weight, covariance in zip(reversed(w[1:]), reversed(covariances[:-1]), strict=True):
        p = p @ weight
        s = s + p @ covariance @ p.T
    r = y - x @ (p @ w[0]).T
    least = 0.5 * (r * torch.linalg.solve(s, r.T).T).sum(1) + 0.5 * sum(map(torch.logdet, covariances))

    inverse = [*map(torch.linalg.inv, covariances)]
    sizes = widths[1:-1]
    blocks = [[torch.zeros(b, a, dtype=torch.float64) for a in sizes] for b in sizes]
    for i in range(len(sizes)):
        blocks[i][i] = inverse[i] + w[i + 1].T @ inverse[i + 1] @ w[i + 1]
        if i:
            blocks[i][i - 1] = -inverse[i] @ w[i]
            blocks[i - 1][i] = blocks[i][i - 1].T
    hessian = torch.cat([torch.cat(row, 1) for row in blocks])
    right = [torch.zeros(batch, a, dtype=torch.float64) for a in sizes]
    right[0] += x @ w[0].T @ inverse[0]
    right[-1] += y @ inverse[-1] @ w[-1]
    end = torch.linalg.solve(hessian, torch.cat(right, 1).T).T
    return pcn, free, end, least, hessian


@pytest.mark.parametrize("method", CONVERGENT, ids=repr)
@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_equilibrium(kinds, method):
    pcn, free, end, least, _ = chain(kinds)
    loop = InferenceLoop(pcn.energy, free, method=method)
    for _ in range(60):
        loop.run(50)
        if max(g.abs().max() for g in torch.autograd.grad(pcn.energy().sum(), free)) < 1e-11:
            break
    torch.testing.assert_close(pcn.energy().detach(), least, **TIGHT)
    # who goes by energies is blind below their rounding, and so below its root in states
    near = 1e-7 if method.remembers_energy else 1e-10
    torch.testing.assert_close(torch.cat(free, 1).detach(), end, rtol=near, atol=near)


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_sweeps_beyond_rounding_lead_nowhere(kinds):
    """What gradients differ by is rounding there, of which no step may be made."""
    for seed in (29, 35, 41, 43, 51):  # of networks that were led away
        torch.manual_seed(seed)
        pcn, free, _, least, _ = chain(kinds)
        InferenceLoop(pcn.energy, free, method=methods.Accelerated()).run(60)
        torch.testing.assert_close(pcn.energy().detach(), least, **TIGHT)


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_without_a_rate_a_dozen_sweeps_are_enough(kinds):
    """Of a problem in as many dimensions as the target has, whatever its depth: quasi-Newton steps end there."""
    pcn, free, _, least, _ = chain(kinds)
    first = pcn.energy().detach()
    InferenceLoop(pcn.energy, free, method=methods.Accelerated()).run(12)
    assert (pcn.energy() - least <= 1e-4 * (first - least)).all()


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("method", [methods.Accelerated(), methods.Descent(0.02, coordinates="errors")], ids=repr)
def test_what_stops_a_sample_is_true(kinds, method):
    """Curvature in errors is at least their precision: the energy is within the share that was asked for."""
    pcn, free, _, least, _ = chain(kinds)
    first = pcn.energy().detach()
    trace = InferenceLoop(pcn.energy, free, method=method).run(4000, tol=1e-3)
    now = pcn.energy().detach()
    assert trace.converged.all()
    assert (now - least <= 1.25e-3 * (first - now)).all()


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_the_bound_on_the_gap(kinds, measured):
    """It is above the gap anywhere, and the gap itself where the target is one number: then its line is the whole dual.

    In both measures of errors, at states that are nowhere special.
    """
    for widths in (WIDTHS, (4, 3, 5, 1)):
        pcn, free, _, least, _ = chain(kinds, widths)
        with torch.no_grad():
            for z in free:
                z.normal_()
        problem = OnErrors(capture(pcn.energy, free), free, measured)
        problem.begin()
        found = problem.evaluate()
        gap = found.energy - least
        torch.testing.assert_close(found.energy, pcn.energy().detach(), **TIGHT)
        if widths[-1] == 1:
            torch.testing.assert_close(problem.gap(found), gap, **TIGHT)
        assert (problem.gap(found) >= gap - 1e-10).all()


def test_the_bound_where_no_target_feeds_back():
    """All of the energy is |e|^2 / 2, and above its least: the parts of the tighter bound are nothing but rounding."""
    pcn, free, _, _, _ = chain(KINDS["precisions"])
    free = [*free, pcn.nodes[-1].value]
    with torch.no_grad():
        for z in free:
            z.normal_()
    for measured in (True, False):
        problem = OnErrors(capture(pcn.energy, free), free, measured)
        problem.begin()
        found = problem.evaluate()
        torch.testing.assert_close(problem.gap(found), found.energy - problem.floor, **TIGHT)


def flow(free, end, hessian, time):
    """Where dz/dt = -H (z - z*) has come to."""
    begin = torch.cat(free, 1).detach()
    return end + (begin - end) @ torch.linalg.matrix_exp(-time * hessian)


@pytest.mark.parametrize(
    ("make", "order"),
    [
        (lambda h: methods.Descent(h, coordinates="states"), 1),
        (lambda h: methods.Heun(h, adaptive=False), 2),
    ],
    ids=["descent", "Heun"],
)
def test_order(make, order):
    """Half the step takes the distance to the exact flow down by 2^order, to a few per cent."""
    pcn, free, end, _, hessian = chain(KINDS["full covariances"])
    start = [z.detach().clone() for z in free]
    exact = flow(free, end, hessian, 0.2)
    distances = []
    for steps in (64, 128, 256):
        with torch.no_grad():
            for z, value in zip(free, start, strict=True):
                z.copy_(value)
        InferenceLoop(pcn.energy, free, method=make(0.2 / steps)).run(steps)
        distances.append((torch.cat(free, 1).detach() - exact).norm().item())
    for coarse, fine in itertools.pairwise(distances):
        assert coarse / fine == pytest.approx(2**order, rel=0.1)


def test_adaptive_steps_follow_the_flow():
    """From a step that is far too short, to where the flow ends."""
    pcn, free, end, *_ = chain(KINDS["precisions"])
    InferenceLoop(pcn.energy, free, method=methods.Heun(1e-3, rtol=1e-4, atol=1e-4)).run(400)
    assert (torch.cat(free, 1).detach() - end).abs().max() < 1e-3


def test_langevin_draws_from_the_posterior():
    """Every sample of a large batch is a chain of its own: their mean and covariance are those that theory has.

    At rate h a Gaussian posterior of precision H is drawn from as ``N(z*, T H^-1 (I - h H / 2)^-1)``.
    """
    count, temperature = 4000, 0.7
    pcn, free, _, _, hessian = chain(KINDS["precisions"], widths=(2, 2, 1, 2), batch=1)
    x, y = pcn.nodes[0].value.detach(), pcn.nodes[-1].value.detach()
    pcn.init(x.expand(count, -1), y.expand(count, -1))
    free = list(get_estep_params(pcn, exclude=(pcn.nodes[0], pcn.nodes[-1])))
    values = torch.linalg.eigvalsh(hessian)
    rate = 0.3 / values[-1].item()
    steps = math.ceil(-math.log(1e-4) / (rate * values[0].item()))
    InferenceLoop(pcn.energy, free, method=methods.LBFGS()).run(40)
    end = torch.cat(free, 1).detach()[0]
    generator = torch.Generator().manual_seed(20)
    InferenceLoop(pcn.energy, free, method=methods.Langevin(rate, temperature, generator)).run(steps)
    drawn = torch.cat(free, 1).detach()
    eye = torch.eye(len(hessian), dtype=torch.float64)
    expected = temperature * torch.linalg.inv(hessian @ (eye - 0.5 * rate * hessian))
    spread = expected.diagonal().sqrt()
    assert ((drawn.mean(0) - end).abs() < 4 * spread / math.sqrt(count)).all()
    # whitened, the covariance of so many draws is I within 4 standard deviations of its elements
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(expected), (drawn - drawn.mean(0)).T, upper=False)
    assert (white @ white.T / count - eye).abs().max() < 4 * math.sqrt(2 / count)
