"""The benchmark of chains on a GPU and its smoke, without one: what they measure on stand-ins, their tables."""

import contextlib
import importlib
import json
import os
import subprocess
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
    small = {"WIDTHS": (5,), "DEPTHS": (2,), "BATCHES": (3,), "TUTORIAL_BATCHES": (7,), "graphed": lambda run: run}
    small |= {"TUTORIAL": bench.Setting((9, 6, 6, 4), 500, 3, "relu")}
    for name, value in small.items():
        monkeypatch.setattr(bench, name, value)

    @contextlib.contextmanager
    def laid_out(*layout):  # as the kernels do: chains in layouts for which there is no room are refused
        right = bench.Chain.run

        def run(self):
            if layout == (1, 1, 4):
                raise RuntimeError("the chain must fit the layout that is asked for, 1 rounds, and it does not")
            right(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bench.Chain, "run", run)
            yield

    monkeypatch.setattr(bench, "laid_out", laid_out)
    monkeypatch.setattr(bench.backends, "use", lambda _: bench.gpu.nullcontext())
    return bench


@pytest.fixture
def smoke(bench, monkeypatch):
    smoke = importlib.import_module("bench.gpu_smoke")
    monkeypatch.setattr(smoke, "laid_out", bench.laid_out)
    small = {"small": bench.Setting((9, 7, 5, 3), 6, 2, "tanh"), "tutorial": bench.TUTORIAL}
    monkeypatch.setattr(smoke, "CHAINS", small)
    before = torch.get_float32_matmul_precision()
    yield smoke
    torch.set_float32_matmul_precision(before)


def spoil(bench, monkeypatch):
    """Have every run in a layout come out a little wrong: as much as TF32 in place of float32 may make it."""
    right = bench.Chain.run

    def run(self):
        right(self)
        self.states[1].mul_(1 + 2.0**-12)

    monkeypatch.setattr(bench.Chain, "run", run)


def test_measures_all_layouts_and_ways_and_shows_them(bench, tmp_path, capsys):
    out = tmp_path / "chain.json"
    assert bench.main(["--out", str(out)]) == 0
    result = json.loads(out.read_text())
    layouts = {(c["rounds"], c["cluster"], c["sample_tiles"]): c["microseconds"] for c in result["layouts"]}
    assert len(layouts) == 1 + 2 * 4 * 3
    assert [layout for layout, micros in layouts.items() if micros is None] == [(1, 1, 4)]
    (case,) = result["cases"]
    assert (case["width"], case["depth"], case["batch"]) == (5, 2, 3)
    assert max(case["off"].values()) < 1e-6
    assert set(case["microseconds"]) == {*bench.WAYS}
    first = capsys.readouterr().out
    assert bench.main(["--show", str(out)]) == 0
    assert capsys.readouterr().out == first
    assert "5 x 2" in first
    assert first.count("does not fit") == 1


def test_a_wrong_result_fails(bench, monkeypatch, tmp_path):
    spoil(bench, monkeypatch)
    out = tmp_path / "chain.json"
    assert bench.main(["--out", str(out)]) == 1
    result = json.loads(out.read_text())
    assert len(result["failures"]) == 24 + 1


def test_a_smoke_compares_all_layouts(smoke, capsys):
    assert smoke.main(["--case", "highest-chosen", "highest-1", "medium-8"]) == 0
    errors = json.loads(capsys.readouterr().out)
    assert list(errors) == ["highest-chosen", "highest-1", "medium-8"]
    assert all(0 < e < 1 for e in errors.values())


def test_a_smoke_finds_what_is_wrong(smoke, bench, monkeypatch):
    spoil(bench, monkeypatch)
    with pytest.raises(AssertionError, match=r"small chain in layout \(1, 2, 1\) is off by 0.0002"):
        smoke.main(["--case", "highest-2"])
    assert smoke.main(["--case", "high-2"]) == 0  # which promises no more
    monkeypatch.setattr(smoke, "layouts", lambda _: iter([(1, 1, 4)]))
    with pytest.raises(AssertionError, match="small chain fits no layout"):
        smoke.main(["--case", "high-1"])


def test_a_smoke_survives_its_cases(smoke, monkeypatch, tmp_path, capsys):
    """Whatever ends the process of one, the others are told."""

    def process(command, timeout, **_):
        name = command[-1]
        if name == "highest-4":
            raise subprocess.TimeoutExpired(command, timeout)
        if name == "high-8":
            return subprocess.CompletedProcess(command, 1, "", "Traceback\nRuntimeError: an illegal memory access\n")
        if name == "medium-1":
            return subprocess.CompletedProcess(command, -11, "", "")
        return subprocess.CompletedProcess(command, 0, json.dumps({name: 0.125}), "")

    monkeypatch.setattr(smoke.subprocess, "run", process)
    out = tmp_path / "smoke.json"
    assert smoke.main(["--out", str(out)]) == 1
    result = json.loads(out.read_text())
    assert [c["case"] for c in result["cases"]] == [*smoke.CASES]
    assert result["failures"] == [
        "highest-4: not done after 30 s",
        "high-8: status 1: RuntimeError: an illegal memory access",
        "medium-1: status -11: nothing was said",
    ]
    assert {c["of_allowed"] for c in result["cases"] if c["right"]} == {0.125}
    assert len(smoke.CASES) == 1 + 3 * 4
    assert "high-8           WRONG" in capsys.readouterr().out


def test_a_choice_that_costs_time_gets_a_star(bench):
    case = {"width": 64, "depth": 2, "batch": 64, "microseconds": {"tile": 10.0, "steps": 20.0, "chosen": 20.0}}
    result = {"machine": bench.gpu.machine(), "date": "today", "layouts": [], "failures": []}
    result["cases"] = [case | {"regret": 2.0}]
    assert bench.table(result).endswith("*")
    result["cases"][0]["regret"] = 1.0
    assert not bench.table(result).endswith("*")


def test_the_environment_is_as_before(bench, monkeypatch):
    monkeypatch.setenv("PYROMANCY_CUDA_CHAIN", "steps")
    with bench.going("chosen"):
        assert "PYROMANCY_CUDA_CHAIN" not in os.environ
    assert os.environ["PYROMANCY_CUDA_CHAIN"] == "steps"
