"""The example of temporal prediction, as a person runs it, on few sequences."""

import torch


def test_states_are_those_of_the_smoother_and_the_system_is_learned(example, tmp_path):
    path = tmp_path / "picture.png"
    found = example.main(
        ["--sequences", "128", "--length", "6", "--epochs", "40", "--m-lr", "0.03", "--plot", str(path)]
    )
    assert found["from the smoother"] < 1e-10
    assert found["the system itself"] < found["what was last seen"]
    assert found["learned"] < 0.7 * found["what was last seen"]
    assert path.stat().st_size > 10_000


def test_the_smoother_is_a_posterior_mean(example):
    """Of the joint Gaussian of all states and all that is seen, by its covariance."""
    torch.manual_seed(0)
    q, r, length = 0.2, 0.5, 4
    a, c = example.system(q, r)
    n, one = example.HIDDEN, torch.eye(example.HIDDEN, dtype=torch.float64)
    noise = torch.block_diag(one, *[q * one] * (length - 1))
    power = [torch.linalg.matrix_power(a, i) for i in range(length)]
    zero = torch.zeros_like(a)
    flow = torch.cat([torch.cat([power[i - j] if i >= j else zero for j in range(length)], 1) for i in range(length)])
    states = flow @ noise @ flow.T
    sees = torch.block_diag(*[c] * length)
    y = torch.randn(3, length, example.SEEN, dtype=torch.float64)
    seen = sees @ states @ sees.T + r * torch.eye(length * example.SEEN, dtype=torch.float64)
    expected = (states @ sees.T @ torch.linalg.solve(seen, y.flatten(1).T)).T.view(3, length, n)
    last, smooth = example.smoothed(a, c, q, r, y)
    torch.testing.assert_close(smooth, expected)
    torch.testing.assert_close(last, expected[:, -1])
