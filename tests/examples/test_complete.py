"""The example of generation and completion, as a person runs it, and what a linear network of it comes to."""

import pytest
import torch


@pytest.mark.slow
def test_it_completes_draws_and_says_how_well(example, tmp_path, capsys):
    path = tmp_path / "picture.png"
    errors, right = example.main(["--epochs", "25", "--plot", str(path)])
    assert errors["this network"] < 0.95 * errors["nearest of the kind"]
    assert errors["this network"] < 0.95 * errors["mean of the kind"]
    assert errors["linear regression"] == pytest.approx(0.037, abs=0.001)
    assert right > 0.6  # of ten kinds
    assert path.stat().st_size > 10_000
    assert f"{right:.1%} of draws are of their kind" in capsys.readouterr().out


def linear(example):
    """A network without its tanh, in float64: everything is one Gaussian."""
    net = example.Generator(30)
    net.edges[-1][0] = torch.nn.Identity()
    return net.double()


def moments(example, net, label):
    """Mean and covariance of the pixels of a label."""
    first, second, third = net.edges[0], net.edges[1], net.edges[2][1]
    mean = third(second(first(label))).detach()
    code, hidden = (third.weight @ second.weight).detach(), third.weight.detach()
    covariance = code @ code.T + example.HIDDEN_VARIANCE * hidden @ hidden.T
    return mean, covariance


def test_a_completion_is_the_conditional_mean(example):
    net = linear(example)
    label, given = torch.eye(10).double()[[3, 8]], torch.randn(2, 30).double()
    known = torch.rand(2, 30) < 0.5
    found = net.complete(label, given, known)
    mean, covariance = moments(example, net, label)
    covariance = covariance + example.PIXEL_VARIANCE * torch.eye(30)
    for i, k in enumerate(known):
        gain = torch.linalg.solve(covariance[k][:, k], covariance[k][:, ~k]).T
        torch.testing.assert_close(
            found[i, ~k], mean[i, ~k] + gain @ (given[i, k] - mean[i, k]), rtol=0, atol=1e-2 * mean.std().item()
        )
        assert torch.equal(found[i, k], given[i, k])


@pytest.mark.slow
def test_draws_have_the_moments_of_the_network(example):
    net = linear(example)
    label = torch.eye(10).double()[[3]]
    drawn = net.draw(label.expand(200_000, -1))
    mean, covariance = moments(example, net, label)
    size = covariance.diagonal().max().item()
    torch.testing.assert_close(drawn.mean(0), mean[0], rtol=0, atol=5 * (size / 200_000) ** 0.5)
    torch.testing.assert_close(drawn.T.cov(), covariance, rtol=0, atol=5 * size * (2 / 200_000) ** 0.5)
