"""The GPU benchmark without a GPU: its table, its measuring on stand-ins, and what it says where it cannot run."""

import importlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
if not (ROOT / "bench" / "gpu_operators.py").exists():
    pytest.skip("this copy has no benchmarks", allow_module_level=True)

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def row(case, contender, milliseconds, fraction=None, over_eager=None, unit="GB/s"):
    return {
        "kind": "operator",
        "case": case,
        "size": [65536, 1024],
        "contender": contender,
        "seconds": milliseconds / 1e3,
        "rate": 1234.4,
        "unit": unit,
        "fraction": fraction,
        "over_eager": over_eager,
    }


RESULT = {
    "machine": {
        "device": "Abacus 9",
        "torch": "2.11.0",
        "cuda": "13.0",
        "triton": None,
        "pyromancy": "1.2",
        "copy_gb_per_s": 3999.6,
    },
    "date": "2026-02-03T04:05:06+0000",
    "rows": [
        row("energy", "eager", 1.5, 0.25, 1.0),
        row("energy", "native", 0.25, 0.9, 6.0),
        row("multivariate_error", "native", 0.125, unit="GFLOP/s"),
    ],
    "failures": [{"case": "energy", "contender": "triton", "reason": "RuntimeError: no"}],
}


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("bench.gpu_operators")


def test_table(bench):
    lines = bench.table(RESULT).splitlines()
    assert lines[0] == "Abacus 9, torch 2.11.0, CUDA 13.0, Triton None, pyromancy 1.2, 2026-02-03T04:05:06+0000"
    assert lines[1] == "copy 4000 GB/s"
    assert lines[3].split() == ["energy", "65536x1024", "eager", "1.500", "ms", "1234", "GB/s", "0.25", "1.00x"]
    assert lines[4].split() == ["native", "0.250", "ms", "1234", "GB/s", "0.90", "6.00x"]
    assert lines[5].split() == ["multivariate_error", "65536x1024", "native", "0.125", "ms", "1234", "GFLOP/s"]
    assert lines[6] == "failed: energy, triton: RuntimeError: no"
    assert {len(line) for line in lines[2:5]} == {len(lines[2])}


def test_shows_a_file_again(bench, tmp_path, capsys):
    file = tmp_path / "figures.json"
    file.write_text(json.dumps(RESULT))
    assert bench.main(["--show", str(file)]) == 1  # something failed in it
    assert "Abacus 9" in capsys.readouterr().out


def test_measures_on_stand_ins(bench, monkeypatch, tmp_path, capsys):
    def seconds(run, calls=1):
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls

    def wrong(*_):
        raise ValueError("out of order")

    suite = importlib.import_module("bench.operators")
    monkeypatch.setattr(bench, "MATRIX_SIZE", (33, 5))
    monkeypatch.setattr(bench, "contenders", lambda: ["eager", "reference"])
    monkeypatch.setattr(bench.gpu, "DEVICE", "cpu")
    monkeypatch.setattr(bench.gpu, "SECONDS", 0.0)
    monkeypatch.setattr(bench.gpu, "seconds", seconds)
    monkeypatch.setattr(bench.gpu, "machine", lambda: dict(RESULT["machine"]))
    monkeypatch.setitem(suite.BY_NAME, "error", type(suite.BY_NAME["error"])(
        "error", (), suite.error, wrong, suite.states, ("large",), streams=3))  # fmt: skip
    file = tmp_path / "figures.json"
    assert bench.main(["--elements", "8192", "--out", str(file)]) == 1
    result = json.loads(file.read_text())
    assert [(f["case"], f["contender"]) for f in result["failures"]] == [("error", "reference")]
    assert len(result["rows"]) == 2 * len(bench.STREAMING + bench.MATRICES) - 1
    assert all(r["seconds"] > 0 and r["rate"] > 0 for r in result["rows"])
    assert "failed: error, reference: ValueError: out of order" in capsys.readouterr().out


@without_gpu
def test_says_that_there_is_no_gpu(bench, capsys):
    assert bench.main([]) == 3
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.slow
@without_gpu
def test_script_stops_at_once(tmp_path):
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    start = time.monotonic()
    run = subprocess.run(
        ["bash", ROOT / "bench" / "gpu.sh", tmp_path / "out"],
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 66
    assert "no CUDA device" in run.stderr or "is built without CUDA" in run.stderr
    assert time.monotonic() - start < 60


def test_script_is_valid_bash():
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    assert subprocess.run(["bash", "-n", ROOT / "bench" / "gpu.sh"]).returncode == 0
