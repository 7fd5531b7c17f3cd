"""The example of convolutional networks, as a person runs it, on fewer channels."""

import functools

import pytest
import torch


@pytest.mark.slow
def test_they_learn_and_draw(example, tmp_path, capsys, monkeypatch):
    narrow = {
        "vgg": functools.partial(example.vgg, widths=(8, 16)),
        "resnet": functools.partial(example.resnet, widths=(8,)),
    }
    monkeypatch.setattr(example, "NETWORKS", narrow)
    path = tmp_path / "picture.png"
    arguments = ["--epochs", "2", "--batch-size", "32", "--m-lr", "0.01", "--plot", str(path)]
    accuracies = example.main(arguments)
    assert len(accuracies) == 4
    assert all(len(values) == 2 for values in accuracies.values())
    assert all(accuracies[f"{name}, predictive coding"][-1] > 0.7 for name in narrow)
    assert path.stat().st_size > 10_000
    assert "1,437 images to learn from, 360 to test on" in capsys.readouterr().out


def test_the_networks_take_images_of_any_size(example):
    for make in example.NETWORKS.values():
        for side in (8, 28):
            assert make(10)(torch.rand(2, 1, side, side)).shape == (2, 10)
