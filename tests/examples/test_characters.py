"""The example of a transformer, as a person runs it, on a short text."""

import math

import pytest


@pytest.fixture
def text(tmp_path):
    """A row of letters that goes round, so that each tells the next."""
    path = tmp_path / "text.md"
    path.write_text("abcdefghij" * 200)
    return path


@pytest.mark.slow
def test_it_learns_and_draws(example, text, tmp_path, capsys):
    path = tmp_path / "picture.png"
    arguments = [
        "--text",
        str(text),
        "--length",
        "8",
        "--width",
        "16",
        "--depth",
        "1",
        "--epochs",
        "6",
        "--m-lr",
        "0.01",
    ]
    losses = example.main([*arguments, "--plot", str(path)])
    assert losses["by the 0 before"] == pytest.approx(math.log(10), abs=0.02)
    assert losses["by the 1 before"] < 0.1
    assert losses["predictive coding"] < 1
    assert losses["backpropagation"] < 1
    assert path.stat().st_size > 10_000
    assert "2,000 characters, 10 of them different" in capsys.readouterr().out


def test_counts_are_mixed_as_witten_and_bell_have_it(example):
    train, test = "aabab", "ab"
    single = {c: (n + 2 * 0.5) / (5 + 2) for c, n in (("a", 3), ("b", 2))}
    after_a = (2 + 2 * single["b"]) / (3 + 2)
    assert example.counted(train, test, 0) == pytest.approx(-(math.log(single["a"]) + math.log(single["b"])) / 2)
    assert example.counted(train, test, 1) == pytest.approx(-math.log(after_a))


def test_no_text_is_told(example, tmp_path, capsys):
    with pytest.raises(SystemExit):
        example.main(["--text", str(tmp_path / "nowhere")])
    assert "argument --text: no Markdown files in" in capsys.readouterr().err
