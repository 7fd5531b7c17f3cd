"""Nodes of targets: densities by the distributions they stand for, samples, and targets that are none."""

import math

import pytest
import torch

import pyromancy
from numerics import FLOATS, LOW, assert_near, name
from pyromancy.nodes import BernoulliNode, PoissonNode

SHAPES = [((63,), (63,)), ((3, 5), (3, 5)), ((3, None), (3, 7)), ((None,), (7,))]
KINDS = {
    BernoulliNode: (lambda x: x.sigmoid().round(decimals=2), lambda mu: torch.distributions.Bernoulli(logits=mu)),
    PoissonNode: (lambda x: x.abs().mul(3).floor(), lambda mu: torch.distributions.Poisson(mu.exp())),
}


def log_density(kind, value, pred):
    """Without what a Poisson node leaves out; of probabilities as of zeros and ones in these shares."""
    distribution = KINDS[kind][1](pred)
    if kind is PoissonNode:
        return distribution.log_prob(value) + torch.lgamma(value + 1)
    ones, zeros = (distribution.log_prob(torch.full_like(value, x)) for x in (1.0, 0.0))
    return value * ones + (1 - value) * zeros


@pytest.mark.parametrize(("dims", "filled"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("kind", KINDS)
def test_energy_is_the_log_density_and_error_its_gradient_for_the_prediction(kind, dtype, dims, filled):
    value, pred = KINDS[kind][0](torch.randn(3, *filled)).to(dtype), torch.randn(3, *filled).to(dtype).requires_grad_()
    node = kind(*dims).to(dtype)
    assert node.init(value) is node.value
    wide = pred.detach().double().requires_grad_()
    expected = -log_density(kind, value.double(), wide).flatten(1).sum(1)
    energy = node.energy(pred)
    assert_near(energy, expected, 63 * 63)
    (of_pred,) = torch.autograd.grad(energy.sum(), pred)
    (gradient,) = torch.autograd.grad(expected.sum(), wide)
    assert_near(node.error(pred), -gradient, 63)
    assert_near(of_pred, gradient, 63)


@pytest.mark.parametrize("dtype", LOW, ids=name)
@pytest.mark.parametrize("kind", KINDS)
def test_low_precision(kind, dtype):
    node, value, pred = kind(63).to(dtype), KINDS[kind][0](torch.randn(3, 63)).to(dtype), torch.randn(3, 63).to(dtype)
    node.init(value)
    assert_near(node.energy(pred), -log_density(kind, value.double(), pred.double()).sum(1), 63)


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_extreme_logits(dtype):
    node = BernoulliNode(1).to(dtype)
    node.init(torch.tensor([[0.0], [1.0], [0.0], [1.0], [0.0]]).to(dtype))
    logits = torch.tensor([[-1e4], [1e4], [1e4], [-1e4], [0.0]]).to(dtype).requires_grad_()
    energy = node.energy(logits)
    assert_near(energy, torch.tensor([0.0, 0.0, 1e4, 1e4, math.log(2)], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(energy.sum(), logits)
    assert gradient.flatten().tolist() == [0, 0, 1, -1, 0.5]
    assert torch.equal(node.error(logits), -gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_are_clamped(kind):
    node = kind(3)
    assert not list(pyromancy.get_estep_params(node))
    assert not list(pyromancy.get_mstep_params(node))
    assert "value" not in node.state_dict()
    with pytest.raises(RuntimeError, match="call init"):
        node.energy(torch.zeros(2, 3))


BAD = {
    "above": (BernoulliNode, [0.5, 1.5], "value must be from 0 to 1 everywhere, got 1.5"),
    "below": (BernoulliNode, [-0.25, 0.0], "value must be from 0 to 1 everywhere, got -0.25"),
    "nan": (BernoulliNode, [0.0, math.nan], "value must be from 0 to 1 everywhere, got nan"),
    "negative": (PoissonNode, [1.0, -2.0], "value must be counts, finite and not negative, got -2.0"),
    "infinite": (PoissonNode, [math.inf, 1.0], "value must be counts, finite and not negative, got inf"),
    "not-a-number": (PoissonNode, [math.nan, 1.0], "value must be counts, finite and not negative, got nan"),
}


@pytest.mark.parametrize("case", BAD)
def test_targets_that_are_none(case):
    kind, wrong, message = BAD[case]
    node, right = kind(2), torch.ones(1, 2)
    node.init(right)
    with pytest.raises(ValueError, match=message):
        node.init(torch.tensor([wrong]))
    assert torch.equal(node.value, right)
    with pytest.raises(TypeError, match="value must be real"):
        node.init(torch.ones(1, 2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="value must fit the node's shape"):
        node.init(torch.ones(1, 3))


class TestSample:
    @pytest.mark.parametrize("kind", KINDS)
    def test_has_the_distribution(self, kind):
        """Means within five deviations of 100,000 draws, and variances likewise, whose fourth moments are known."""
        pred = torch.tensor([[-1.0], [0.3], [1.5]]).double()
        draws = kind(None).sample(pred.expand(3, 100_000), torch.Generator().manual_seed(0))
        expected = KINDS[kind][1](pred[:, 0])
        bound = 5 * (expected.variance / 100_000).sqrt()
        assert ((draws.mean(1) - expected.mean).abs() < bound).all()
        assert ((draws.var(1) / expected.variance - 1).abs() < 0.05).all()
        assert torch.equal(draws, draws.floor())
        assert draws.min() == 0

    @pytest.mark.parametrize("kind", KINDS)
    def test_repeats(self, kind):
        pred = torch.randn(4, 3)
        a, b = (kind(3).sample(pred, torch.Generator().manual_seed(1)) for _ in range(2))
        assert torch.equal(a, b)
        with pytest.raises(ValueError, match=r"value must fit the node's shape"):
            kind(3).sample(torch.zeros(2, 4))
