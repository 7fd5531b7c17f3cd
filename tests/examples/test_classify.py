"""The example of classification, as a person runs it."""

import pytest
import torch


def test_it_learns_and_draws(example, tmp_path, capsys):
    path = tmp_path / "picture.png"
    accuracies = example.main(["--epochs", "3", "--hidden", "64", "--m-lr", "0.005", "--plot", str(path)])
    assert accuracies.keys() == {"categorical", "gaussian"}
    assert all(len(values) == 3 and values[-1] > 0.85 for values in accuracies.values())
    assert path.stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "1,437 images to learn from, 360 to test on" in printed
    assert f"categorical  epoch  3  test accuracy {accuracies['categorical'][-1]:.2%}" in printed
    assert float(printed.split("test labels: ")[1].split()[0]) < 0.6


def test_reliability_is_by_bins_of_probability(example):
    probabilities = torch.tensor([[0.95, 0.05], [0.91, 0.09], [0.3, 0.7], [1.0, 0.0]])
    count, sure, share = example.reliability(probabilities, torch.tensor([0, 1, 1, 0]))
    assert count.tolist() == [1, 3]
    torch.testing.assert_close(sure, torch.tensor([0.7, (0.95 + 0.91 + 1) / 3]))
    torch.testing.assert_close(share, torch.tensor([1.0, 2 / 3]))


def test_data_that_are_not_there_are_told(example, tmp_path, capsys):
    with pytest.raises(SystemExit):
        example.main(["--data", str(tmp_path)])
    assert "argument --data: " in capsys.readouterr().err
