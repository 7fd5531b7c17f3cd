"""The example of a network without a direction, as a person runs it, with fewer hidden units."""

import pytest


@pytest.mark.slow
def test_it_answers_and_draws(example, tmp_path):
    path = tmp_path / "picture.png"
    found = example.main(["--epochs", "3", "--hidden", "32", "--answer-steps", "100", "--plot", str(path)])
    assert found["accuracy"] > 0.75
    assert found["completed"] < 0.8 * found["upper half"]
    assert found["cleaned"] < 0.6 * found["noisy"]
    assert path.stat().st_size > 10_000
