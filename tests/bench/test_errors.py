"""The table of errors: what it has is within bounds, and an error shows in it."""

import importlib
from pathlib import Path

import pytest
import torch

from pyromancy import backends

pytest.importorskip("mpmath")  # which what it takes numbers from needs

pytestmark = pytest.mark.usefixtures("native_backend")

# Units of random inputs and of hard ones
OPERATORS = {
    "gaussian_energy": (8, 10), "gaussian_energy, gradient": (4, 4), "gaussian_error": (4, 4), "estep_": (3, 3),
    "multivariate_energy": (6, 6), "multivariate_error": (40, 80), "attention_": (40, 700),
    "attention_backward_": (40, 400), "layer_norm_": (10, 500), "layer_norm_backward_": (10, 250),
    "secant_products_": (4, 4),
}  # fmt: skip
LAWS = {  # of energies and gradients
    "Gaussian": (4, 3), "Laplace": (3, 2), "Student, 2 degrees": (10, 7), "Huber": (3, 1), "Bernoulli": (6, 3),
    "Poisson": (4, 3),
}  # fmt: skip
# Methods that decide, or divide by what is next to 0, make much of a rounding
METHODS = {"Accelerated": 1e5, "Adam": 2e3, "Heun": 1e3}


@pytest.fixture
def errors(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    return importlib.import_module("bench.errors")


def test_all_have_bounds(errors):
    assert errors.OPERATORS.keys() == OPERATORS.keys()
    assert errors.LAWS.keys() == LAWS.keys()
    assert errors.METHODS.keys() >= METHODS.keys()


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(errors, name):
    for found, most in zip(errors.of_operator(errors.OPERATORS[name])[::2], OPERATORS[name], strict=True):
        assert found <= most


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("name", LAWS)
def test_laws(errors, name, hard):
    for found, most in zip(errors.of_laws(errors.LAWS[name], hard)[::2], LAWS[name], strict=True):
        assert found <= most


def test_methods(errors):
    for name, (usual, _) in errors.METHODS.items():
        found, _ = errors.of_method(usual, hard=False)
        assert found <= METHODS.get(name, 20), name


def test_an_error_shows(errors):
    exact = torch.tensor([[1.0, 4.0]], dtype=torch.float64)
    off = (exact + torch.tensor([[2.0**-20, 0.0]])).float()
    assert errors.units(off, exact) == 16
    assert errors.of_largest(off, exact) == 4
    assert errors.units(torch.tensor([[float("nan"), 4.0]]), exact) == float("inf")


def test_without_kernels_it_stops(errors, monkeypatch):
    monkeypatch.setattr(backends, "available", lambda name: (False, "none here"))
    with pytest.raises(SystemExit, match="no compiled kernels: none here"):
        errors.main([])
