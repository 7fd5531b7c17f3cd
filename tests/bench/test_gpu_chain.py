"""The benchmark that calibrates a chain's two ways on a GPU, without one: what it measures on stand-ins, its table."""

import importlib
import json
import os
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
if not (ROOT / "bench" / "gpu_chain.py").exists():
    pytest.skip("this copy has no benchmarks", allow_module_level=True)


@pytest.fixture
def bench(monkeypatch):
    """The benchmark on the CPU, in a size that takes no time."""
    monkeypatch.syspath_prepend(ROOT)
    bench = importlib.import_module("bench.gpu_chain")
    machine = {"device": "Abacus 9", "torch": "2.11.0", "cuda": "13.0", "triton": None, "pyromancy": "1.2"}
    for name, value in {"DEVICE": "cpu", "SECONDS": 0.0, "machine": lambda: machine}.items():
        monkeypatch.setattr(bench.gpu, name, value)

    def seconds(run, calls=1):
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls

    monkeypatch.setattr(bench.gpu, "seconds", seconds)
    for name, value in {"WIDTHS": (5,), "DEPTHS": (2,), "BATCHES": (3,), "graphed": lambda run: run}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench.backends, "use", lambda _: bench.gpu.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return bench


def test_measures_all_ways_and_shows_them(bench, tmp_path, capsys):
    out = tmp_path / "chain.json"
    assert bench.main(["--out", str(out)]) == 0
    (case,) = json.loads(out.read_text())["cases"]
    assert case["error"] == 0
    assert set(case["microseconds"]) == {*bench.WAYS}
    first = capsys.readouterr().out
    assert bench.main(["--show", str(out)]) == 0
    assert capsys.readouterr().out == first
    assert "5 x 2" in first


def test_a_wrong_result_fails(bench, monkeypatch):
    right = bench.chain

    def wrong(*size):
        states, run = right(*size)
        return states, lambda: (run(), os.environ.get("PYROMANCY_CUDA_CHAIN") == "tile" and states[1].add_(1))

    monkeypatch.setattr(bench, "chain", wrong)
    assert bench.main([]) == 1


def test_a_choice_that_costs_time_gets_a_star(bench):
    case = {"width": 64, "depth": 2, "batch": 64, "microseconds": {"tile": 10.0, "steps": 20.0, "chosen": 20.0}}
    result = {"machine": bench.gpu.machine(), "date": "today", "cases": [case | {"regret": 2.0}], "failures": []}
    assert bench.table(result).endswith("*")
    result["cases"][0]["regret"] = 1.0
    assert not bench.table(result).endswith("*")


def test_the_environment_is_as_before(bench, monkeypatch):
    monkeypatch.setenv("PYROMANCY_CUDA_CHAIN", "steps")
    with bench.going("chosen"):
        assert "PYROMANCY_CUDA_CHAIN" not in os.environ
    assert os.environ["PYROMANCY_CUDA_CHAIN"] == "steps"
