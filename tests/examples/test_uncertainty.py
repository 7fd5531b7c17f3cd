"""The example of learned variances, as a person runs it, and what it learns of noise that is known."""

import math

import pytest
import torch

from pyromancy.nodes import FactorizedGaussianNode


@pytest.mark.slow
def test_it_knows_which_pixels_are_uncertain_and_draws(example, tmp_path, capsys):
    path = tmp_path / "picture.png"
    results = example.main(["--epochs", "20", "--plot", str(path)])
    one, each = results["one variance"], results["one per pixel"]
    assert each["one"] == pytest.approx(0.683, abs=0.03)
    assert each["two"] == pytest.approx(0.954, abs=0.02)
    assert each["most"] - each["least"] < 0.8 * (one["most"] - one["least"])
    assert each["nats"] < one["nats"] - 0.05
    assert path.stat().st_size > 10_000
    assert f"within 2: {each['two']:.1%}" in capsys.readouterr().out


def test_it_learns_the_variances_of_noise(example):
    deviation = torch.tensor([0.1, 0.2, 0.4])
    x = torch.rand(2000, 5)
    y = x[:, :3] + deviation * torch.randn(2000, 3)
    output = FactorizedGaussianNode(3)
    example.learn(x, y, output, 30, seed=0)
    torch.testing.assert_close((0.5 * output.logvar).exp().detach(), deviation, rtol=0.1, atol=0)


def test_likelihood_and_shares_of_known_errors(example):
    errors, deviation = torch.tensor([[0.5, -2.0], [1.5, 2.0]]), torch.tensor([1.0, 4.0])
    expected = (0.25 + 0.25 + 2.25 + 0.25) / 8 + math.log(4) / 2
    assert example.likelihood(errors, deviation) == pytest.approx(expected)
    assert example.within(errors, deviation, 1).tolist() == [0.5, 1.0]
