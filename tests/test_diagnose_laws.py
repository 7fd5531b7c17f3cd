"""Curvature of networks with other laws than Gaussian ones, against dense float64 Hessians of plain formulas."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyromancy as pyro
from pyromancy import functional
from pyromancy.nodes import BernoulliNode, CategoricalNode, FixedNode, PoissonNode, StandardGaussianNode, StudentNode

BATCH, SIZES = 5, (3, 7, 6, 4)
# Per sample, of vectors z and mu: the energy by PyTorch's own operations, without what does not depend on states
FORMULAS = {
    "categorical": lambda z, mu: -(z * (mu - mu.logsumexp(0))).sum(),
    "bernoulli": lambda z, mu: (torch.log(1 + mu.exp()) - z * mu).sum(),
    "poisson": lambda z, mu: (mu.exp() - z * mu).sum(),
    "student": lambda z, mu: (2.5 * torch.log(1 + (z - mu) ** 2 / 4)).sum(),
    "huber": lambda z, mu: torch.where(
        (z - mu).abs() <= 0.5, 0.5 * (z - mu) ** 2, 0.5 * ((z - mu).abs() - 0.25)
    ).sum(),
}  # fmt: skip
CONVEX = ("categorical", "bernoulli", "poisson")


def energy_of(law, z, mu):
    """By the nodes and functions of this package, or what the kernels know by another name."""
    if law == "huber":
        return F.huber_loss(mu, z, reduction="none", delta=0.5).sum(1)
    if law == "student":
        return functional.student_energy(z, mu, None, 4.0)
    return {
        "categorical": functional.categorical_energy, "bernoulli": functional.bernoulli_energy,
        "poisson": functional.poisson_energy,
    }[law](z, mu)  # fmt: skip


def targets(law):
    generator = torch.Generator().manual_seed(3)
    if law == "categorical":
        return F.one_hot(torch.randint(SIZES[-1], (BATCH,), generator=generator), SIZES[-1]).double()
    if law == "bernoulli":
        return torch.randint(2, (BATCH, SIZES[-1]), generator=generator).double()
    if law == "poisson":
        return torch.randint(5, (BATCH, SIZES[-1]), generator=generator).double()
    return 2 * torch.randn(BATCH, SIZES[-1], generator=generator).double()


class Net(nn.Module):
    """x - h1 - h2 - y with a law for the output, or for h1 as well where it is one of a distance."""

    def __init__(self, law, hidden=False, linear=False):
        super().__init__()
        torch.manual_seed(0)
        self.law, self.hidden, self.linear = law, hidden, linear
        self.edges = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(SIZES)).double()
        self.x, self.y = torch.randn(BATCH, SIZES[0]).double(), targets(law)
        self.states = [nn.Parameter(torch.randn(BATCH, n).double()) for n in SIZES[1:-1]]

    def f(self, z):
        return z if self.linear else z.tanh()

    def energy(self):
        (a, b), (up, across, top) = self.states, self.edges
        first = energy_of(self.law, a, up(self.x)) if self.hidden else functional.gaussian_energy(a, up(self.x))
        return first + functional.gaussian_energy(b, across(self.f(a))) + energy_of(self.law, self.y, top(self.f(b)))

    def plain(self, row):
        """The energy of one sample's states, by formulas."""
        up, across, top = self.edges

        def energy(z):
            a, b = z.split(SIZES[1:-1])
            gaussian, own = lambda x, mu: 0.5 * ((x - mu) ** 2).sum(), FORMULAS[self.law]
            first = (own if self.hidden else gaussian)(a, up(self.x[row]))
            return first + gaussian(b, across(self.f(a))) + own(self.y[row], top(self.f(b)))

        return energy

    def points(self):
        return torch.cat([s.detach() for s in self.states], 1)


def checked(net, **options):
    """A diagnosis with all eigenvalues, the extreme ones of which are those of dense Hessians."""
    found = pyro.diagnose(net.energy, net.states, products=sum(SIZES[1:-1]), tol=0.0, **options)
    for row, z in enumerate(net.points()):
        energy = net.plain(row)
        values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(energy, z))
        assert found.energy[row].item() == pytest.approx(energy(z).item(), rel=1e-12)
        assert found.lambda_max[row].item() == pytest.approx(values[-1].item(), rel=1e-9)
        assert found.lambda_min[row].item() == pytest.approx(values[0].item(), rel=1e-7, abs=1e-9)
        condition = (values[-1] / values[0]).item() if values[0] > 1e-9 else math.inf
        assert found.condition[row].item() == pytest.approx(condition, rel=1e-6)
        assert found.max_rate[row].item() == pytest.approx(2 / values[-1].item(), rel=1e-6)
    rate = pyro.max_rate(net.energy, net.states, products=40, tol=0.0)
    assert rate == pytest.approx(found.max_rate.min().item(), rel=1e-6)
    return found


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("law", FORMULAS)
def test_eigenvalues(law, linear):
    found = checked(Net(law, linear=linear))
    assert found.kinks == (law == "huber")
    assert found.equilibrium is None


@pytest.mark.parametrize("law", ["student", "huber"])
def test_eigenvalues_of_laws_of_free_states(law):
    found = checked(Net(law, hidden=True))
    assert found.certificate != "the curvature of errors"


def least(net, row):
    """Of a sample of a convex network, by Newton's method with line search on the plain formula."""
    energy, z = net.plain(row), net.points()[row]
    for _ in range(100):
        slope = torch.autograd.functional.jacobian(energy, z)
        step = torch.linalg.solve(torch.autograd.functional.hessian(energy, z), slope)
        if slope @ step < 1e-20:  # twice what is left to fall, which rounding hides by now
            break
        t = 1.0
        while energy(z - t * step) > energy(z) - 0.25 * t * (slope @ step) and t > 1e-10:
            t /= 2
        z = z - t * step
    return energy(z).item()


@pytest.mark.slow
@pytest.mark.parametrize("law", CONVEX)
def test_gaps_are_certified_where_the_energy_is_convex(law):
    """In linear networks the bound holds exactly: outputs add to the curvature of the errors."""
    net = Net(law, linear=True)
    found = pyro.diagnose(net.energy, net.states)
    assert found.certificate == "the curvature of errors"
    for row in range(BATCH):
        gap = found.energy[row].item() - least(net, row)
        assert 0 < gap <= found.gap[row].item()
        assert found.gap[row].item() < 1e3 * gap


@pytest.mark.parametrize("law", ["student", "huber"])
def test_output_laws_that_bend_the_other_way_certify_nothing_false(law):
    """Where a Hessian has a negative eigenvalue there is no gap; elsewhere a local one, as the words say."""
    net = Net(law, linear=True)
    net.y *= 3
    found = pyro.diagnose(net.energy, net.states, products=sum(SIZES[1:-1]), tol=0.0)
    for row, z in enumerate(net.points()):
        negative = torch.linalg.eigvalsh(torch.autograd.functional.hessian(net.plain(row), z))[0] < -1e-9
        if negative:
            assert found.gap[row].isinf()
            assert found.condition[row].isinf()


@pytest.mark.parametrize("law", FORMULAS)
def test_the_share_is_how_far_gradients_go(law):
    """For the quadratic energy that the Hessian is of, by the powers of a dense matrix."""
    net, steps, lr = Net(law), 12, 0.05
    found = pyro.diagnose(net.energy, net.states, steps=steps, lr=lr)
    for row, z in enumerate(net.points()):
        energy = net.plain(row)
        slope = torch.autograd.functional.jacobian(energy, z)
        hessian = torch.autograd.functional.hessian(energy, z)
        left = torch.linalg.matrix_power(torch.eye(len(z)).double() - lr * hessian, steps) @ slope
        assert found.share[row].item() == pytest.approx(1 - (slope @ left / (slope @ slope)).item(), rel=1e-8)


@pytest.mark.parametrize("kind", [CategoricalNode, BernoulliNode, PoissonNode])
def test_nodes(kind):
    """Of the nodes themselves, Student's free one with a learned scale below them."""
    torch.manual_seed(0)
    below, hidden, above = FixedNode(3), StudentNode(6, dof=5.0).double(), kind(4).double()
    up, top = nn.Linear(3, 6).double(), nn.Linear(6, 4).double()
    below.double().init(torch.randn(BATCH, 3).double())
    hidden.init(torch.randn(BATCH, 6).double())
    law = {CategoricalNode: "categorical", BernoulliNode: "bernoulli", PoissonNode: "poisson"}[kind]
    above.init(targets(law))
    with torch.no_grad():
        hidden.logscale.copy_(0.3 * torch.randn_like(hidden.logscale))
    found = pyro.diagnose(
        lambda: hidden.energy(up(below.value)) + above.energy(top(hidden.value.tanh())), [hidden.value],
        products=6, tol=0.0,
    )  # fmt: skip
    scale = hidden.logscale.detach().exp()
    for row in range(BATCH):
        mu = up(below.value[row]).detach()

        def energy(z, mu=mu, row=row):
            own = (3.0 * torch.log(1 + ((z - mu) / scale) ** 2 / 5)).sum()
            return own + FORMULAS[law](above.value[row], top(z.tanh()))

        values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(energy, hidden.value[row].detach()))
        assert found.lambda_max[row].item() == pytest.approx(values[-1].item(), rel=1e-9)
        assert found.lambda_min[row].item() == pytest.approx(values[0].item(), rel=1e-7, abs=1e-9)


def test_standard_nodes_beside_them():
    """The errors of Gaussian nodes certify below a cross-entropy, and the sentence says by what."""
    torch.manual_seed(0)
    net = pyro.networks.mlp([3, 8, 8, 4], "tanh", output="categorical").double()
    net.start(torch.randn(BATCH, 3).double(), torch.randint(4, (BATCH,)))
    told = str(pyro.diagnose(net.energy, net.e_params(), steps=3, lr=0.1))
    assert "above equilibrium, by the curvature of errors" in told
    assert isinstance(net.nodes[1], StandardGaussianNode)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("law", ["gaussian", "categorical"])
def test_entries_that_are_data(law, linear):
    """They are no states: eigenvalues are of the others alone, and a mask is no kink."""
    torch.manual_seed(0)
    net = Net("categorical", linear=linear)
    known, data = torch.rand(BATCH, SIZES[2]) < 0.5, torch.randn(BATCH, SIZES[2]).double()

    def output(z, mu):
        return 0.5 * (z - mu).square().sum(-1) if law == "gaussian" else -(z * torch.log_softmax(mu, -1)).sum(-1)

    def energy():
        (a, b), (up, across, top) = net.states, net.edges
        b = torch.where(known, data, b)
        below = functional.gaussian_energy(a, up(net.x)) + functional.gaussian_energy(b, across(net.f(a)))
        return below + output(net.y, top(net.f(b)))

    found = pyro.diagnose(energy, net.states, products=20, tol=0.0)
    assert not found.kinks
    for row, z in enumerate(net.points()):

        def one(z, row=row):
            a, b = z.split(SIZES[1:-1])
            up, across, top = net.edges
            b = torch.where(known[row], data[row], b)
            below = 0.5 * ((a - up(net.x[row])) ** 2).sum() + 0.5 * ((b - across(net.f(a))) ** 2).sum()
            return below + output(net.y[row], top(net.f(b)))

        moves = torch.cat([torch.ones(SIZES[1], dtype=torch.bool), ~known[row]])
        hessian = torch.autograd.functional.hessian(one, z)[moves][:, moves]
        values = torch.linalg.eigvalsh(hessian)
        assert found.lambda_max[row].item() == pytest.approx(values[-1].item(), rel=1e-9)
        assert found.lambda_min[row].item() == pytest.approx(values[0].item(), rel=1e-7)
        if linear and law == "gaussian":
            slope = torch.autograd.functional.jacobian(one, z)[moves]
            expected = one(z) - 0.5 * slope @ torch.linalg.solve(hessian, slope)
            assert found.equilibrium[row].item() == pytest.approx(expected.item(), rel=1e-9)


def test_a_choice_by_states_is_a_kink():
    """Also where what is chosen by has been computed of states in between, or goes by another name."""
    z = nn.Parameter(torch.randn(3, 2).double())
    masks = [lambda: z > 0, lambda: (z > 0) & True, lambda: ~(z.detach() > 0), lambda: (2 * z).detach() >= 0.1]
    for mask in masks:
        assert pyro.diagnose(lambda: torch.where(mask(), z, 0.5 * z).square().sum(1), [z]).kinks  # noqa: B023
    fixed = torch.rand(3, 2) > 0.5
    assert not pyro.diagnose(lambda: torch.where(fixed, z, 0.5 * z).square().sum(1), [z]).kinks
    assert not pyro.diagnose(lambda: z.where(fixed, 0.5 * z).square().sum(1), [z]).kinks


def test_entries_that_are_taken_elsewhere_are_states():
    z = nn.Parameter(torch.randn(3, 2).double())
    known = torch.tensor([True, False])
    found = pyro.diagnose(lambda: torch.where(known, 0.5, z).square().sum(1) + 4 * z.square().sum(1), [z])
    assert found.lambda_max.tolist() == pytest.approx([10.0] * 3)
    assert found.lambda_min.tolist() == pytest.approx([8.0] * 3)
