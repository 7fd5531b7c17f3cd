"""What the benchmark of networks in threads refuses to time, and what it prints."""

import importlib
from pathlib import Path

import pytest
import torch


@pytest.fixture
def threads(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    before = torch.get_num_threads()
    yield importlib.import_module("bench.threads")
    torch.set_num_threads(before)


def tiny(threads):
    return threads.Setting((6, 5, 3), 4, 2, "tanh")


def test_other_weights_are_not_timed(threads, monkeypatch):
    threads.require_same_bits(tiny(threads), 2, 2)
    monkeypatch.setattr(threads, "at_once", lambda works: works[0]())  # the second learns nothing
    with pytest.raises(AssertionError):
        threads.require_same_bits(tiny(threads), 2, 2)


@pytest.mark.parametrize("how", ["epoch", "step"])
def test_a_row_has_three_times_and_two_ratios(threads, how, monkeypatch):
    monkeypatch.setattr(threads, "LEAST", 1e-3)
    cells = threads.row(tiny(threads), how, 2, 1, 4)
    assert [cell.split()[-1] for cell in cells[:3]] == ["ms"] * 3
    assert all(cell.endswith("x") for cell in cells[3:])
    assert all(float(cell.strip("~x").split()[0]) > 0 for cell in cells)
