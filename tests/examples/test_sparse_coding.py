"""The example of sparse coding, as a person runs it, and its codes beside scikit-learn's lasso."""

import pytest
import torch
from sklearn.linear_model import Lasso


@pytest.mark.slow
def test_it_learns_and_draws(example, tmp_path, capsys):
    path = tmp_path / "picture.png"
    costs, off = example.main(["--patches", "1500", "--epochs", "5", "--plot", str(path)])
    assert costs["learned"] < 0.85 * costs["random"]
    assert costs["learned"] < 1.2 * costs["scikit-learn's"]
    assert off < 1e-6
    assert path.stat().st_size > 10_000
    assert f"learned atoms {costs['learned']:.3f}" in capsys.readouterr().out


def test_codes_are_those_of_the_lasso(example):
    net = example.Patches().double()
    x = 2 * torch.randn(3, 64).double()
    net.infer(x, 3000)
    atoms = net.atoms.weight.detach()
    lasso = Lasso(example.WEIGHT / 64, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(atoms, x.T)
    expected = torch.from_numpy(lasso.coef_)
    assert 0.2 < (expected == 0).double().mean() < 0.9
    torch.testing.assert_close(net.code.value.detach(), expected, rtol=0, atol=1e-6)
    residual = x - expected @ atoms.T
    cost = 0.5 * residual.square().sum(1) + example.WEIGHT * expected.abs().sum(1)
    assert net.cost() == pytest.approx(cost.mean().item(), rel=1e-9)


def test_patches_have_mean_0_and_together_variance_1(example):
    x = example.load_patches(400)
    assert x.shape == (400, 64)
    torch.testing.assert_close(x.mean(1), torch.zeros(400).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(x.square().mean(), torch.ones([]).double())
