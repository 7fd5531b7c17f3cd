"""``python -m pyromancy bench``: what it compares, when it refuses, and what it prints and draws."""

import re
import sys

import pytest
import torch

from pyromancy import command
from pyromancy.command import quick
from pyromancy.command.quick import Differs, Setting

TINY = {"tiny": Setting((7, 6, 5), 4, 3, "relu"), "less": Setting((5, 6, 6, 3), 8, 5, "tanh")}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setattr(quick, "SETTINGS", TINY)
    monkeypatch.setattr(quick, "_ROUND", 1e-4)
    monkeypatch.setattr(quick, "_ROUNDS", (5, 8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bench(*arguments):
    return command.main(["bench", "--seconds", "0.5", *map(str, arguments)])


@pytest.mark.parametrize("name", quick.SETTINGS)
def test_both_do_the_same_batch(name):
    quick.check(quick.SETTINGS[name])


def test_plain_pytorch_descends_and_learns():
    """By its own formulas: the first E-step and the first step of Adam, whose size is its rate."""
    setting = Setting((7, 6, 5), 4, 1, "tanh", lr=0.1)
    plain, _ = quick.batches(setting, torch.float64)
    w1, b1, w2, b2 = (p.detach().clone() for p in plain.weights)
    plain.run()
    z = plain.x @ w1.T + b1
    error = plain.y - z.tanh() @ w2.T - b2
    z = z + 0.1 * (1 - z.tanh() ** 2) * (error @ w2)
    torch.testing.assert_close(plain.states[0].detach(), z, rtol=1e-12, atol=1e-12)
    error = plain.y - z.tanh() @ w2.T - b2
    gradient = -(error.T @ z.tanh()) / 4
    torch.testing.assert_close(plain.weights[2].detach(), w2 - 1e-3 * gradient / (gradient.abs() + 1e-8))


def test_the_table_and_the_picture(tiny, capsys):
    assert bench() == 0
    printed = capsys.readouterr().out
    for told in ("7-6-5 relu, 4, 3", "5-6-6-3 tanh, 8, 5"):
        assert re.search(rf"^{told} +[\d.]+ ms +[\d.]+ ms +~?[\d.]+x$", printed, re.MULTILINE)
    assert printed.endswith("picture: pyromancy-bench.png\n")
    assert (tiny / "pyromancy-bench.png").read_bytes().startswith(b"\x89PNG")


def test_options(tiny, capsys):
    before = torch.get_num_threads()
    assert bench("--no-plot", "--threads", before + 1, "--setting", "tiny") == 0
    printed = capsys.readouterr().out
    assert f"{before + 1} threads" in printed
    assert "tanh" not in printed
    assert torch.get_num_threads() == before
    assert list(tiny.iterdir()) == []


def test_without_matplotlib_there_is_no_picture(tiny, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert bench("--setting", "tiny") == 0
    assert "no picture: pyromancy.plots needs matplotlib: pip install matplotlib" in capsys.readouterr().out


@pytest.mark.parametrize(("slip", "what"), [(1.01, "states"), (1.0 + 1e-6, "states")])
def test_results_that_differ_give_no_figure(tiny, capsys, monkeypatch, slip, what):
    """Of a rate that is wrong: the first of these in float32 too, the second in float64 alone."""
    batches = quick.batches

    def wrong(setting, dtype):
        plain, ours = batches(setting, dtype)
        ours.em.lr *= slip
        return plain, ours

    monkeypatch.setattr(quick, "batches", wrong)
    with pytest.raises(Differs, match=f"{what} in float64 are .* from those of PyTorch, where 1e-09 may be"):
        quick.check(TINY["tiny"])
    assert bench("--no-plot") == 1
    printed = capsys.readouterr().out
    assert printed.count("no figure: states in float64 are") == 2
    assert not re.search(r"\dx$", printed, re.MULTILINE)


def test_weights_that_differ_give_no_figure(monkeypatch):
    batches = quick.batches

    def wrong(setting, dtype):
        plain, ours = batches(setting, dtype)
        ours.em.optimizer.param_groups[0]["lr"] *= 1.1
        return plain, ours

    monkeypatch.setattr(quick, "batches", wrong)
    with pytest.raises(Differs, match="weights in float64 are"):
        quick.check(TINY["less"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "0"], "must be above 0, got 0"),
        (["--threads", "-1"], "must be above 0, got -1"),
        (["--setting", "huge"], "invalid choice: 'huge'"),
        (["--plot", "nowhere/at/all.png"], "argument --plot: nowhere/at is not a folder"),
    ],
)
def test_arguments_that_are_wrong(capsys, arguments, message):
    with pytest.raises(SystemExit) as status:
        command.main(["bench", *arguments])
    assert status.value.code == 2
    assert message in capsys.readouterr().err


def test_without_a_command_and_with_backends(capsys):
    assert command.main([]) == 0
    first = capsys.readouterr().out
    assert command.main(["backends"]) == 0
    assert capsys.readouterr().out == first
    assert "run_plan_" in first
