"""The example of anomalies, as a person runs it, and the scores of a linear network."""

import pytest
import torch


@pytest.mark.slow
def test_it_tells_what_it_never_learned_and_draws(example, tmp_path, capsys):
    path = tmp_path / "picture.png"
    means = example.main(["--kinds", "0", "6", "--epochs", "10", "--plot", str(path)])
    assert [*means] == list(example.SCORES)
    langevin, likeliest, components = means.values()
    assert langevin > 0.8
    assert langevin > likeliest
    assert 0.75 < components < 0.9
    assert path.stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "digit 6 left out: AUC" in printed
    assert f"mean AUC: Langevin's E-steps {langevin:.3f}" in printed


def test_scores_of_a_linear_network_are_those_of_a_gaussian(example):
    net = example.Decoder(torch.rand(20)).double()
    net.above[0] = torch.nn.Identity()
    x = torch.randn(5, 20).double()
    above, below = net.above[1], net.below
    mean = above(below.bias)
    both = above.weight @ below.weight
    covariance = both @ both.T + example.HIDDEN_VARIANCE * above.weight @ above.weight.T
    covariance = covariance + example.PIXEL_VARIANCE * torch.eye(20)
    expected = 0.5 * ((x - mean) * torch.linalg.solve(covariance, (x - mean).T).T).sum(1)
    constant = (
        example.HIDDEN * torch.tensor(example.HIDDEN_VARIANCE).log() + 20 * torch.tensor(example.PIXEL_VARIANCE).log()
    )
    at_mean = 0.5 * (x - mean).square().sum(1) / example.PIXEL_VARIANCE
    above_least = net.scores(x) - (expected + 0.5 * constant).detach()
    assert (above_least >= -1e-9).all()
    assert (above_least <= 1e-3 * (at_mean - expected)).all()  # as tol has it, in a linear network
