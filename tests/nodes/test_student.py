"""Student nodes: densities by the distribution they stand for, degrees of freedom, samples."""

import math

import pytest
import torch

import formulas
import pyromancy
from numerics import FLOATS, LOW, assert_near, name
from pyromancy.nodes import StandardGaussianNode, StudentNode

SHAPES = [((63,), (63,)), ((3, 5), (3, 5)), ((3, None), (3, 7)), ((None, 3, None), (2, 3, 5)), ((None,), (7,))]


@pytest.mark.parametrize(("dims", "filled"), SHAPES, ids=str)
@pytest.mark.parametrize("dof", [1, 2.5, 30])
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_energy_is_the_log_density_and_error_its_gradient(dims, filled, dof, dtype):
    node = StudentNode(*dims, dof=dof, scale=torch.rand(math.prod(d for d in dims if d)) + 0.5).to(dtype)
    value, pred = torch.randn(2, 3, *filled).to(dtype)
    node.init(value)
    scale = node.logscale.detach().double().exp().view([d or 1 for d in dims]).requires_grad_()
    wide = value.double().requires_grad_()
    expected = formulas.student_energy(wide, pred.double(), scale.expand(3, *filled), dof)
    energy = node.energy(pred)
    assert_near(energy, expected, 63 * 63)
    of_state, of_scale = torch.autograd.grad(energy.sum(), [node.value, node.logscale])
    gradient, wanted = torch.autograd.grad(expected.sum(), [wide, scale])
    assert_near(node.error(pred), gradient, 63)
    assert_near(of_state, gradient, 63)
    assert_near(of_scale, (wanted * scale).flatten(), 63 * 63)


@pytest.mark.parametrize("dtype", LOW, ids=name)
def test_low_precision(dtype):
    node = StudentNode(63, dof=3).to(dtype)
    value, pred = torch.randn(2, 3, 63).to(dtype)
    node.init(value)
    expected = formulas.student_energy(value.double(), pred.double(), torch.ones(63).double(), 3)
    assert_near(node.energy(pred), expected, 63)


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_far_away_and_near(dtype):
    """Where the square of a distance is no number."""
    node = StudentNode(1, dof=3).to(dtype)
    node.init(torch.tensor([[1e20], [-1e20], [1e-20], [0.0]], dtype=dtype))
    energy, pred = node.energy(torch.zeros(4, 1).to(dtype)), torch.zeros(4, 1).to(dtype)
    far = 2 * (2 * math.log(1e20) - math.log(3))
    assert_near(energy, torch.tensor([far, far, 0.0, 0.0], dtype=torch.float64), 100)
    expected = torch.tensor([4e-20, -4e-20, 4e-20 / 3, 0.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(energy.sum(), node.value)
    for found in (node.error(pred), gradient):
        torch.testing.assert_close(found.double().flatten(), expected, rtol=1e-5, atol=0)


def test_many_degrees_of_freedom_are_a_gaussians():
    value, pred = torch.randn(2, 4, 5).double()
    node, gaussian = StudentNode(5, dof=1e9).double(), StandardGaussianNode(5).double()
    node.init(value), gaussian.init(value)
    torch.testing.assert_close(node.energy(pred), gaussian.energy(pred), rtol=1e-7, atol=0)


def test_what_it_learns():
    node = StudentNode(2, dof=3)
    assert [n for n, _ in pyromancy.get_named_mstep_params(node)] == ["logscale"]


@pytest.mark.parametrize("wrong", [0, -1.0, math.nan, math.inf], ids=str)
def test_degrees_of_freedom_that_are_none(wrong):
    node = StudentNode(2, dof=3)
    with pytest.raises(ValueError, match=f"dof must be positive and finite, got {wrong}"):
        node.dof = wrong
    assert node.dof == 3
    for other in ("1", True, None):
        with pytest.raises(TypeError, match="dof must be a number, got"):
            StudentNode(2, dof=other)
    with pytest.raises(ValueError, match=f"dof must be finite and above 0, got {wrong}"):
        pyromancy.functional.student_energy(torch.zeros(1, 2), torch.zeros(1, 2), dof=wrong)


def test_scales_that_are_none():
    with pytest.raises(ValueError, match="every scale must be positive and finite, got 0"):
        StudentNode(2, scale=0.0)


class TestSample:
    @pytest.mark.parametrize(("dof", "cdf"), [
        (1, lambda x: 0.5 + math.atan(x) / math.pi),
        (2, lambda x: 0.5 + x / (2 * math.sqrt(2 + x * x))),
        (3, lambda x: 0.5 + (x / math.sqrt(3) / (1 + x * x / 3) + math.atan(x / math.sqrt(3))) / math.pi),
    ], ids=["cauchy", "2", "3"])  # fmt: skip
    def test_has_the_distribution(self, dof, cdf):
        scale = torch.tensor([0.5, 3.0]).double()
        node, mean = StudentNode(2, None, dof=dof, scale=scale).double(), torch.randn(1, 2, 1).double()
        noise = node.sample(mean.expand(4, 2, 50_000), torch.Generator().manual_seed(0)) - mean
        for x in (0.3, 1.0, 4.0):  # in scales; the deviation of 200000 draws is below 0.0012
            for sign in (1, -1):
                share = (sign * noise < x * scale.view(2, 1)).double().mean((0, 2))
                assert (share - cdf(x)).abs().max() < 0.006

    def test_repeats_and_is_differentiable(self):
        node, mean = StudentNode(3, dof=4, scale=2.0), torch.randn(4, 3, requires_grad=True)
        a, b = (node.sample(mean, torch.Generator().manual_seed(1)) for _ in range(2))
        assert torch.equal(a, b)
        of_mean, of_scale = torch.autograd.grad(a.sum(), [mean, node.logscale])
        assert torch.equal(of_mean, torch.ones(4, 3))
        assert_near(of_scale, (a - mean).detach().double().sum(0), 8)
        with pytest.raises(ValueError, match=r"value must fit the node's shape"):
            node.sample(torch.zeros(2, 4))
