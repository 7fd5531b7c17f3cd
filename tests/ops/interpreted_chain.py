"""Both ways to take a chain's steps with Triton, what decides between them, and refusals; test_triton.py runs this."""

import re

import pytest
import torch

from chains import FUNCTIONS, check, everything_wanted, mstep, operator, problem, to
from numerics import same_bits
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


def refuses(call, arguments, message):
    before = to(arguments["states"], arguments["states"][0].dtype)
    with pytest.raises(RuntimeError, match=re.escape(message)):
        call(**arguments)
    assert all(same_bits(a, b) for a, b in zip(arguments["states"], before, strict=True))


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
    check(problem((5, 33, 7, 3), 17, "tanh", dtype=torch.float32) | {"precision": precision}, unit=unit)


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"lr": float("nan")}, "lr must be finite, got nan"),
            ({"steps": -1}, "steps must not be negative, got -1"),
            ({"free": [True]}, "free must have 3 entries for 3 states, got 1"),
            ({"predicted": [True, True, True]}, "predicted[0] must be true exactly where there is a prior"),
            ({"activations": [0, 0, 10, 0]}, "activations must be from 0 to 9, got 10"),
            ({"biases": [None, torch.zeros(7)]}, "biases[1] must have shape (3,), got (7,)"),
            (
                {"precisions": [None, torch.zeros(3, 3), None]},
                "precisions[1] must have shape (7,) or (7, 7), got (3, 3)",
            ),
            ({"prior": torch.zeros(3, 5)}, "prior must have shape (1, 5) or (4, 5), got (3, 5)"),
            ({"grams": [torch.eye(5), None]}, "grams[0] needs a free source"),
            (
                {"velocities": [torch.zeros(4, 5), torch.zeros(7, 4).T, torch.zeros(4, 3)]},
                "velocities[1] must be contig",
            ),
            ({"precision": "low"}, "precision must be highest, high or medium, got low"),
            (
                {"grams": [None, torch.eye(7)], "energies": torch.zeros(6, 3, 4)},
                "grams[1] must be None where energies are recorded",
            ),
            ({"energies": torch.zeros(6, 3, 5)}, "energies must have shape (6, 3, 4), got (6, 3, 5)"),
        ],
        ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
    )
    def test_operands(self, change, message):
        refuses(operator, problem((5, 7, 3), 4, dtype=torch.float32) | change, message)

    def test_states(self):
        for dtype in (torch.bfloat16, torch.int64):
            refuses(operator, problem((5, 7, 3), 4, dtype=dtype), f"states must be float32 or float64, got {dtype}")
        arguments = problem((5, 7, 3), 4)
        arguments["states"][1] = torch.zeros(7, 4, dtype=torch.float64).T
        refuses(operator, arguments, "states[1] must be contiguous, got strides (1, 4)")
        arguments["states"][1] = torch.zeros(3, 7, dtype=torch.float64)
        refuses(operator, arguments, "states[1] must have shape (4, 7), got (3, 7)")

    def test_mstep(self):
        arguments = everything_wanted(problem((5, 7, 3), 4))
        refuses(mstep, arguments | {"for_bias": [True]}, "for_bias must have 2 entries for 3 states, got 1")
        refuses(mstep, arguments | {"for_precision": [True] * 3}, "for_precision[0] needs a predicted node, and node 0")
        refuses(mstep, arguments | {"predicted": [False, False, True], "for_precision": [False] * 3},
                "for_weight[0] needs a predicted node, and node 1 is not")  # fmt: skip
