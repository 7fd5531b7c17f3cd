"""The table of accuracy: what it says of fewer numbers, and that an error would show there."""

import importlib
import math
from pathlib import Path

import pytest
import torch

from pyromancy import backends

pytest.importorskip("mpmath")

pytestmark = pytest.mark.usefixtures("native_backend")

# Units in the last place, where a function keeps its digits everywhere, and those of numbers near 1
BOUNDS = {
    "exp": (2, 2), "expm1": (3, 3), "log": (3, 3), "log1p": (5, 4), "sqrt": (1, 2), "log cosh": (None, 4),
    "tanh": (7, 7), "tanh, slope": (None, 14), "sigmoid": (4, 2), "sigmoid, slope": (None, 2), "softplus": (4, 3),
    "softplus, slope": (4, 2), "ELU": (3, 2), "ELU, slope": (None, 2), "SELU": (4, 3), "SELU, slope": (None, 3),
    "SiLU": (5, 4), "SiLU, slope": (None, 5), "GELU": (10, 3), "GELU, slope": (None, 5), "GELU by tanh": (None, 12),
    "GELU by tanh, slope": (None, 40),
}  # fmt: skip


@pytest.fixture
def accuracy(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    return importlib.import_module("bench.accuracy")


@pytest.mark.parametrize("name", BOUNDS)
def test_float32_is_within_its_bounds(accuracy, name):
    function = accuracy.FUNCTIONS[name]
    x = accuracy.numbers(torch.float32, function.low, every=65_521)
    if name == "GELU by tanh, slope":
        x = x[x.abs() < 1e10]  # beyond, its cube is not finite: NaN, as in PyTorch
    found = accuracy.error(accuracy.computed(function, x), accuracy.exactly(function, x), x)
    ulp, absolute = BOUNDS[name]
    assert found.absolute <= absolute
    assert ulp is None or found.ulp <= ulp


def test_every_function_has_bounds(accuracy):
    assert accuracy.FUNCTIONS.keys() == BOUNDS.keys()


def test_an_error_of_one_place_shows(accuracy):
    x = torch.tensor([1.0, 3.0])
    exact = x.double()
    assert accuracy.error(x.nextafter(torch.tensor(9.0)), exact, x).ulp == 1
    assert accuracy.error(torch.tensor([1.0, math.nan]), exact, x).ulp == math.inf
    tiny = torch.tensor([2.0**-140])
    assert accuracy.error(tiny * 2, tiny.double(), tiny).ulp == 2**9


def test_the_table_goes_between_the_marks(accuracy, tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "FUNCTIONS", {"sqrt": accuracy.FUNCTIONS["sqrt"]})
    document = tmp_path / "accuracy.md"
    document.write_text("before\n<!-- accuracy -->\nold\n<!-- accuracy -->\nafter\n")
    accuracy.main(["--into", str(document), "--every", "16777259"])
    lines = document.read_text().splitlines()
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert lines[4].startswith("| sqrt | 0.5 |")
    assert "old" not in lines
    document.write_text("no marks")
    with pytest.raises(SystemExit, match="must have two marks"):
        accuracy.main(["--into", str(document), "--every", "16777259"])


def test_without_kernels_it_stops(accuracy, monkeypatch):
    monkeypatch.setattr(backends, "available", lambda name: (False, "none here"))
    with pytest.raises(SystemExit, match="no compiled kernels: none here"):
        accuracy.main([])
