"""Laplace nodes: densities by the distribution they stand for, scales, samples, and what is learned."""

import math

import pytest
import torch

import formulas
import pyromancy
from numerics import FLOATS, LOW, assert_near, name
from pyromancy.nodes import LaplaceNode

SHAPES = [((63,), (63,)), ((3, 5), (3, 5)), ((3, None), (3, 7)), ((None, 3, None), (2, 3, 5)), ((None,), (7,))]


@pytest.mark.parametrize(("dims", "filled"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_energy_is_the_log_density_and_error_its_gradient(dims, filled, dtype):
    node = LaplaceNode(*dims, scale=torch.rand(math.prod(d for d in dims if d)) + 0.5).to(dtype)
    value, pred = torch.randn(2, 3, *filled).to(dtype)
    node.init(value)
    shape = [d or 1 for d in dims]
    scale = node.logscale.detach().double().exp().view(shape).requires_grad_()
    expected = formulas.laplace_energy(value.double(), pred.double(), scale.expand(3, *filled))
    energy = node.energy(pred)
    assert_near(energy, expected, 63 * 63)
    assert_near(node.error(pred), (value.double() - pred.double()).sign() / scale)
    of_state, of_scale = torch.autograd.grad(energy.sum(), [node.value, node.logscale])
    assert_near(of_state, node.error(pred).double())
    (wanted,) = torch.autograd.grad(expected.sum(), scale)
    assert_near(of_scale, (wanted * scale).flatten(), 63 * 63)


@pytest.mark.parametrize("dtype", LOW, ids=name)
def test_low_precision(dtype):
    node = LaplaceNode(63).to(dtype)
    value, pred = torch.randn(2, 3, 63).to(dtype)
    node.init(value)
    assert_near(node.energy(pred), (value.double() - pred.double()).abs().sum(1), 63)


def test_no_pull_where_the_state_is_its_prediction():
    node, value = LaplaceNode(3, scale=0.1), torch.tensor([[1.0, -2.0, 0.0]])
    node.init(value)
    assert not node.error(value).any()
    assert not torch.autograd.grad(node.energy(value).sum(), node.value)[0].any()


@pytest.mark.parametrize("form", [3, 3.0, torch.tensor(3), torch.tensor([3.0, 1.0])], ids=repr)
def test_scale_of_a_number_or_a_vector(form):
    wanted = torch.as_tensor(form).double().expand(2)
    assert_near(LaplaceNode(2, scale=form).scale, wanted)
    node = LaplaceNode(2).double()
    node.scale = form
    assert_near(node.scale, wanted)
    assert [n for n, _ in pyromancy.get_named_mstep_params(node)] == ["logscale"]


BAD = {
    "zero": (0.0, "every scale must be positive and finite, got 0"),
    "negative-element": (torch.tensor([1.0, -2.0]), r"every scale must be positive and finite, got \[1.0, -2.0\]"),
    "nan": (math.nan, "every scale must be positive and finite, got nan"),
    "infinite": (math.inf, "every scale must be positive and finite, got inf"),
    "short": (torch.ones(1), r"scale must be a scalar or a vector of 2 scales, got shape \(1,\)"),
    "matrix": (torch.eye(2), r"scale must be a scalar or a vector of 2 scales, got shape \(2, 2\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_scales_that_are_none(case):
    value, message = BAD[case]
    node = LaplaceNode(2)
    with pytest.raises(ValueError, match=message):
        node.scale = value
    assert torch.equal(node.scale, torch.ones(2))
    for wrong, told in (("1", "scale must be a number or a tensor, got '1'"), (torch.tensor(1j), "scale must be real")):
        with pytest.raises(TypeError, match=told):
            LaplaceNode(2, scale=wrong)


class TestSample:
    def test_has_the_distribution(self):
        node = LaplaceNode(2, None, scale=torch.tensor([0.5, 3.0])).double()
        mean = torch.randn(1, 2, 1).double()
        noise = node.sample(mean.expand(4, 2, 50_000), torch.Generator().manual_seed(0)) - mean
        scale = torch.tensor([0.5, 3.0]).double().view(2, 1)
        for x in (0.3, 1.0, 2.5):  # in scales; the deviation of 200000 draws is below 0.0012
            cdf = torch.distributions.Laplace(0.0, 1.0).cdf(torch.tensor(x)).item()
            for sign in (1, -1):
                assert ((sign * noise < x * scale).double().mean((0, 2)) - cdf).abs().max() < 0.006

    def test_repeats_and_is_differentiable(self):
        node, mean = LaplaceNode(3, scale=2.0), torch.randn(4, 3, requires_grad=True)
        a, b = (node.sample(mean, torch.Generator().manual_seed(1)) for _ in range(2))
        assert torch.equal(a, b)
        of_mean, of_scale = torch.autograd.grad(a.sum(), [mean, node.logscale])
        assert torch.equal(of_mean, torch.ones(4, 3))
        assert_near(of_scale, (a - mean).detach().double().sum(0), 8)

    def test_wrong_shape(self):
        with pytest.raises(ValueError, match=r"value must fit the node's shape"):
            LaplaceNode(3).sample(torch.zeros(2, 4))


@pytest.mark.parametrize("skip", [1.0, -0.7])
def test_one_that_a_skip_predicts_rests_after_a_sweep(skip):
    # the state below takes the last bits of the chain's products, and takes this one along
    below, above = pyromancy.nodes.StandardGaussianNode(5).double(), LaplaceNode(5).double()
    x, first, second = (torch.randn(*shape, dtype=torch.float64) for shape in ((40, 17), (5, 17), (5, 8)))

    def predicted():
        return torch.nn.functional.linear(x.sigmoid(), first) + torch.nn.functional.linear(x[:, 9:], second)

    below.init(predicted())
    above.init(skip * below.value.detach())
    loop = pyromancy.InferenceLoop(
        lambda: below.energy(predicted()) + above.energy(skip * below.value), [below.value, above.value], lr=0.1
    )
    before = [node.value.detach().clone() for node in (below, above)]
    loop.run(2)
    assert loop.explain().startswith("executor: chain")
    for node, value in zip((below, above), before, strict=True):
        torch.testing.assert_close(node.value.detach(), value, rtol=0, atol=1e-14)
