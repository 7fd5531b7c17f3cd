"""Both ways to take a chain's steps with Triton, and what decides between them; test_triton.py runs this."""

import pytest
import torch

from chains import FUNCTIONS, check, problem
from pyromancy import backends
from pyromancy.ops.triton import chain, persistent


@pytest.fixture(autouse=True, scope="module")
def in_the_interpreter():
    with backends.use("triton"):
        yield


@pytest.fixture(params=[0, 16, 64], ids=["one-by-one", "tiles-of-16", "tiles-of-64"])
def way(request, monkeypatch):
    """The way that every chain takes which can, and which of the two ran."""
    monkeypatch.setattr(persistent, "height", lambda *_: request.param)
    taken = []
    at_once, one_by_one = persistent.descend, chain._descend
    for module, function in ((persistent, at_once), (chain, one_by_one)):
        monkeypatch.setattr(module, function.__name__, lambda *args, f=function: (taken.append(f), f(*args)))
    return {"taken": taken, "one by one": one_by_one, "expected": at_once if request.param else one_by_one}


class TestBothWays:
    @pytest.mark.parametrize("widths", [(3, 1, 5), (4, 70, 33)], ids=lambda w: "-".join(map(str, w)))
    def test_sizes(self, way, widths):
        for batch in (0, 18):
            arguments = problem(widths, batch, "tanh", prior="batch", clamped=(-1,), record=True, dtype=torch.float32)
            arguments["precisions"] = [torch.rand(n) + 0.5 for n in widths]
            check(arguments)
        assert way["taken"] == 2 * [way["expected"]]

    def test_activations_that_differ_from_edge_to_edge(self, way):
        edges = [("relu", "elu"), ("gelu_tanh", "softplus"), ("leaky_relu", "gelu"), ("identity", "silu")]
        arguments = problem((5, 9, 7, 6, 3), 3, prior="one", clamped=(), dtype=torch.float32)
        names = [f for edge in edges for f in edge]
        arguments["activations"] = [[*FUNCTIONS].index(f) for f in names]
        arguments["parameters"] = [FUNCTIONS[f][1] for f in names]
        check(arguments)
        assert way["taken"] == [way["expected"]]

    def test_grams(self, way):
        arguments = problem((5, 7, 9, 70), 17, "tanh", momentum={"momentum": 0.8}, dtype=torch.float32)
        arguments["precisions"][-1] = torch.rand(70) + 0.5
        w = arguments["weights"][-1]
        arguments["grams"][-1] = w.T @ (arguments["precisions"][-1][:, None] * w)
        check(arguments)
        assert way["taken"] == [way["expected"]]

    def test_what_one_kernel_does_not_take_goes_one_by_one(self, way):
        check(problem((5, 7, 3), 4))
        check(problem((5, 7, 6, 3), 4, covariances=True, prior="one", clamped=(-1,), dtype=torch.float32))
        check(problem((5, 7, 3), 4, clamped=(0, 1), dtype=torch.float32))  # nothing varies but the state
        assert set(way["taken"]) == {way["one by one"]}


class TestDecision:
    """784-256-256-10, clamped at both ends, and wider ones; 132 multiprocessors."""

    def height(self, batch, width, processors=132):
        return persistent.height(batch, 2 * 4 * (width * width + 10 * width), 9, processors)

    def test_narrow_chains_take_one_launch(self):
        assert self.height(500, 256) == 16

    def test_wide_chains_do_not(self):
        assert self.height(500, 2048) == 0

    def test_more_samples_take_taller_tiles_until_there_are_too_many(self):
        heights = [self.height(batch, 128) for batch in (100, 16 * 132, 32 * 132, 64 * 132, 10**6)]
        assert heights == [16, 16, 32, 64, 0]

    def test_nothing_to_launch(self):
        assert persistent.height(500, 0, 0, 132) == 0


@pytest.mark.parametrize(("precision", "unit"), [("high", 2.0**-11), ("medium", 2.0**-8)])
def test_less_precise_products(way, precision, unit):
    check(problem((5, 33, 7, 3), 17, "tanh", dtype=torch.float32) | {"matmul_precision": precision}, unit=unit)
