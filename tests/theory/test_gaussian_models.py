"""Inference is the posterior mean of a linear-Gaussian model, and learning ends at sample covariances."""

import pytest
import torch
import torch.nn.functional as F

import networks
from descent import CHAIN, WAYS, descent, mean_gradients
from networks import KINDS, LEARNED
from pyromancy import functional, get_mstep_params

pytestmark = pytest.mark.usefixtures("backend")

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64)


def with_covariance(kind, *dims):
    covariance = networks.covariance_of(networks.node(kind, *dims).size) if kind in LEARNED else None
    return networks.node(kind, *dims, covariance=covariance)


class TestPosterior:
    """z ~ N(m, A), y ~ N(W z, R): the mode is m + K (y - W m) with K = A W^T (W A W^T + R)^-1."""

    def model(self, prior, likelihood):
        top, bottom, w = with_covariance(prior, 4), with_covariance(likelihood, 3), randn(3, 4)
        m, y = randn(5, 4), randn(5, 3)
        a, r = top.covariance.detach(), bottom.covariance.detach()
        gain = a @ w.T @ torch.linalg.inv(w @ a @ w.T + r)
        expected = m + (y - m @ w.T) @ gain.T
        curvature = torch.linalg.inv(a) + w.T @ torch.linalg.inv(r) @ w
        least = 0.5 * ((y - m @ w.T) @ torch.linalg.inv(w @ a @ w.T + r) * (y - m @ w.T)).sum(1)
        least = least + 0.5 * (torch.logdet(a) + torch.logdet(r))
        bottom.init(y)
        return top, bottom, w, m, expected, curvature, least

    @pytest.mark.parametrize("likelihood", KINDS)
    @pytest.mark.parametrize("prior", KINDS)
    def test_gradient_vanishes_there(self, prior, likelihood):
        top, bottom, w, m, expected, curvature, least = self.model(prior, likelihood)
        z = top.init(expected)
        energy = top.energy(m) + bottom.energy(z @ w.T)
        torch.testing.assert_close(energy, least, **TIGHT)
        assert torch.autograd.grad(energy.sum(), z)[0].abs().max() < 1e-10
        away = randn(5, 4)
        z = top.init(expected + away)
        energy = top.energy(m) + bottom.energy(z @ w.T)
        torch.testing.assert_close(energy, least + 0.5 * (away @ curvature * away).sum(1), **TIGHT)
        torch.testing.assert_close(torch.autograd.grad(energy.sum(), z)[0], away @ curvature, **TIGHT)

    @pytest.mark.parametrize("how", ["functional", *WAYS])
    @pytest.mark.parametrize("kind", KINDS)
    def test_descent_ends_there(self, kind, how):
        top, bottom, w, m, expected, curvature, least = self.model(kind, kind)
        eigenvalues = torch.linalg.eigvalsh(curvature)
        lr = 2 / (eigenvalues[0] + eigenvalues[-1]).item()
        steps = int(-30 / (1 - lr * eigenvalues[0]).log())
        z = top.init(m)

        def energy():
            return top.energy(m) + bottom.energy(F.linear(top.value, w))

        if how == "functional":
            with torch.no_grad():
                for _ in range(steps):
                    functional.estep_(z, top.error(m), bottom.error(z @ w.T) @ w, lr=lr)
        else:
            descent(energy, [z], lr, how)(steps)
        torch.testing.assert_close(z.detach(), expected, **TIGHT)
        torch.testing.assert_close(energy().detach(), least, **TIGHT)


# node dimensions, and a batch of states
SHAPES = [((5,), (40, 5)), ((2, 3), (40, 2, 3)), ((3, None), (12, 3, 4)), ((None, 3, None), (10, 2, 3, 4))]
# chains have states of one dimension
WAYS_OF_SHAPES = [(how, *of) for of in SHAPES for how in WAYS if how != CHAIN or len(of[0]) == 1]


class TestLearnedCovariance:
    """The mean energy over a batch is least where the covariance is that of the sample, placeholders pooled."""

    def problem(self, kind, dims, shape):
        node = networks.node(kind, *dims)
        residual, pred = randn(*shape) * 1.7, randn(*shape)
        node.init(pred + residual)
        concrete = tuple(i + 1 for i, d in enumerate(dims) if d is not None)
        rows = residual.movedim(concrete, tuple(range(-len(concrete), 0))).reshape(-1, node.size)
        second = rows.T @ rows / rows.shape[0]
        if kind == "FactorizedGaussianNode":
            second = second.diagonal().diag()
        elif kind == "IsotropicGaussianNode":
            second = second.diagonal().mean() * torch.eye(node.size, dtype=torch.float64)
        return node, pred, second

    def gradients(self, node, pred, how):
        learned = [*get_mstep_params(node)]
        assert learned
        return mean_gradients(lambda: node.energy(pred), [node.value], learned, how)

    @pytest.mark.parametrize(("how", "dims", "shape"), WAYS_OF_SHAPES, ids=str)
    @pytest.mark.parametrize("kind", LEARNED)
    def test_gradient_vanishes_there_and_only_there(self, kind, how, dims, shape):
        node, pred, second = self.problem(kind, dims, shape)
        gradients = self.gradients(node, pred, how)
        assert max(g.abs().max() for g in gradients()) > 0.1
        node.covariance = second
        torch.testing.assert_close(node.covariance.detach(), second, **TIGHT)
        assert max(g.abs().max() for g in gradients()) < 1e-10

    @pytest.mark.parametrize(("dims", "shape"), SHAPES, ids=str)
    @pytest.mark.parametrize("kind", LEARNED)
    def test_every_step_away_raises_the_energy(self, kind, dims, shape):
        node, pred, second = self.problem(kind, dims, shape)
        node.covariance = second
        least = node.energy(pred).mean().item()
        for _ in range(10):
            node.covariance = second
            with torch.no_grad():
                for p in get_mstep_params(node):
                    p.add_(0.05 * torch.randn_like(p))
                assert node.energy(pred).mean().item() > least

    @pytest.mark.parametrize(("how", "dims", "shape"), [w for w in WAYS_OF_SHAPES if w[1:] in SHAPES[::2]], ids=str)
    @pytest.mark.parametrize("kind", LEARNED)
    def test_gradient_steps_end_there(self, kind, how, dims, shape):
        node, pred, second = self.problem(kind, dims, shape)
        learned, gradients = [*get_mstep_params(node)], self.gradients(node, pred, how)
        optimizer = torch.optim.LBFGS(learned, max_iter=300, tolerance_grad=1e-13, tolerance_change=0.0,
                                      line_search_fn="strong_wolfe")  # fmt: skip

        def closure():
            for p, gradient in zip(learned, gradients(), strict=True):
                p.grad = gradient
            return node.energy(pred).mean()

        optimizer.step(closure)
        torch.testing.assert_close(node.covariance.detach(), second, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_covariance(kind):
    node = with_covariance(kind, 3, None)
    mean = randn(1, 3, 1).expand(4000, 3, 10)
    noise = (node.sample(mean) - mean).movedim(1, 2).reshape(-1, 3)
    error = 6 * node.covariance.detach().abs().max() / noise.shape[0] ** 0.5
    assert (noise.mean(0)).abs().max() < error
    assert (noise.T @ noise / noise.shape[0] - node.covariance.detach()).abs().max() < error
