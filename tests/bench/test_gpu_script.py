"""bench/gpu.sh without a GPU: the order of its phases, and what it keeps, with stand-ins for all that it calls."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "gpu.sh"
if not SCRIPT.exists():
    pytest.skip("this copy has no benchmarks", allow_module_level=True)
if shutil.which("bash") is None or shutil.which("timeout") is None:
    pytest.skip("no bash, or no timeout", allow_module_level=True)

# In place of the interpreter and the tools: writes down how it was called, fails or hangs where it is told to, and
# leaves the figures that it is asked for
STAND_IN = f"""#!{sys.executable} -S
import json, os, signal, sys, time
line = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
if line.startswith("python -c") and "torch" in line:
    print(json.dumps({{"device": "Abacus 9", "compute_capability": [9, 0], "xdist": bool(os.environ.get("XDIST"))}}))
    sys.exit()
if sys.argv[1] in ("-", "-c"):
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
keys = ("PYROMANCY_CUDA_CHAIN", "PYTORCH_NO_CUDA_MEMORY_CACHING", "PYROMANCY_CUDA_ARCHS")
with open(os.environ["CALLS"], "a") as calls:
    seen = {{k: os.environ[k] for k in keys if k in os.environ}}
    if os.getpgrp() != os.getppid():  # otherwise who stops it signals to it and to its group, which is twice
        seen["SIGNALLED"] = "once"
    print(json.dumps([line, seen]), file=calls)
if line.startswith("nvcc"):
    with open(sys.argv[sys.argv.index("-o") + 1], "w") as program:
        program.write("#!/bin/sh\\necho '{{}}'\\n")
    os.chmod(program.name, 0o755)
if "--out" in sys.argv:
    with open(sys.argv[sys.argv.index("--out") + 1], "w") as figures:
        figures.write("{{}}")
if os.environ.get("HANGS", "none") in line:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print("3 passed, then interrupted", flush=True)
        sys.exit(2)
print("17 passed" if "-m pytest" in line else "ERROR SUMMARY: 0 errors")
sys.exit(os.environ.get("FAILS", "none") in line and "--show" not in line)
"""
PHASES = [
    "build", "probe", "smoke", "chain", "em", "native", "triton", "memcheck", "racecheck", "profile", "em_more",
    "operators", "memcheck_operators",
]  # fmt: skip


@pytest.fixture
def script(tmp_path):
    """Runs it among stand-ins: its result, the summary, and the calls with their environments."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("python", "nvcc", "compute-sanitizer", "ncu"):
        (tools / name).write_text(STAND_IN)
        (tools / name).chmod(0o755)
    out = tmp_path / "out"

    def start(*arguments, without=(), **environment):
        for name in without:
            (tools / name).unlink()
        paths = {"PATH": f"{tools}:/usr/bin:/bin", "PYTHON": str(tools / "python"), "TMPDIR": str(tmp_path)}
        environment |= paths | {"CALLS": str(tmp_path / "calls")}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(["bash", SCRIPT, out, *arguments], env=environment, **pipes)

    def run(*arguments, **options):
        process = start(*arguments, **options)
        printed, errors = process.communicate(timeout=100)
        done = subprocess.CompletedProcess(process.args, process.returncode, printed, errors)
        seen = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
        return done, json.loads((out / "summary.json").read_text()), seen

    run.start = start
    run.out = out
    return run


@pytest.mark.slow
def test_what_tells_most_comes_first(script):
    done, summary, calls = script(XDIST="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(summary["phases"]) == PHASES
    assert {p["status"] for p in summary["phases"].values()} == {0}
    assert summary["device"] == "Abacus 9"
    assert summary["chains"] == "chosen"
    assert summary["tests"] == {"native": ["17 passed"], "triton": ["17 passed"]}
    assert ["python setup.py build_ext --inplace", {"PYROMANCY_CUDA_ARCHS": "90"}] in calls[:2]
    pytests = [line for line, _ in calls if "-m pytest" in line]
    assert all("-n 8" in line for line in pytests[:2])
    assert [env["SIGNALLED"] for line, env in calls if line.startswith("python -m pytest")] == ["once"] * 2
    assert pytests[0].endswith("-k not reference and not triton")
    assert pytests[1].endswith("-k not reference and triton")
    uncached = [line.split()[0] for line, env in calls if env.get("PYTORCH_NO_CUDA_MEMORY_CACHING") == "1"]
    assert uncached == ["compute-sanitizer"] * 3
    assert not any("PYROMANCY_CUDA_CHAIN" in env for _, env in calls)
    figures = {f"{name}.json" for name in ("summary", "probe", "smoke", "chain", "em", "em_more", "operators")}
    assert {*os.listdir(script.out)} == {*figures, "logs.tar.gz"}
    with tarfile.open(script.out / "logs.tar.gz") as archive:
        logs = {Path(name).stem for name in archive.getnames()}
    assert {*PHASES} <= logs
    assert json.loads((script.out / "probe.json").read_text()) == {}


@pytest.mark.slow
def test_without_the_fused_kernel_all_else_goes_on(script):
    done, summary, calls = script(FAILS="gpu_smoke --out")
    assert done.returncode == 1
    assert "chains go the stepwise way" in done.stdout
    assert summary["chains"] == "steps"
    assert summary["phases"]["smoke"]["status"] == 1
    left_out = [name for name, p in summary["phases"].items() if p["status"] == "left-out"]
    assert left_out == ["chain", "memcheck", "racecheck", "profile"]
    ways = [env.get("PYROMANCY_CUDA_CHAIN") for line, env in calls if "gpu_em" in line or "-m pytest" in line]
    assert len(ways) >= 5
    assert {*ways} == {"steps"}
    pytests = [line for line, _ in calls if "-m pytest tests/gpu " in line]
    assert all("-k not reference and not tile and " in line for line in pytests)
    assert not any("-n 8" in line for line in pytests)


@pytest.mark.slow
def test_what_is_missing_is_told(script):
    done, summary, _ = script(without=("compute-sanitizer", "ncu"))
    assert done.returncode == 0
    left_out = [name for name, p in summary["phases"].items() if p["status"] == "left-out"]
    assert left_out == ["memcheck", "racecheck", "profile", "memcheck_operators"]
    assert "ncu is not on the PATH" in done.stdout


@pytest.mark.slow
def test_a_phase_that_is_stopped_says_how_far_it_came(script):
    done, summary, _ = script("42", HANGS="not triton")
    assert done.returncode == 1
    assert summary["phases"]["native"]["status"] == 124
    assert summary["tests"] == {"native": ["3 passed, then interrupted"]}
    assert [name for name, p in summary["phases"].items() if p["status"] == "left-out"] == PHASES[6:]
    assert "stopped after" in done.stdout


@pytest.mark.slow
def test_whoever_stops_it_has_what_there_was(script):
    summary, deadline = script.out / "summary.json", time.monotonic() + 100
    with script.start(HANGS="not triton") as process:
        while not (summary.exists() and '"em"' in summary.read_text()) and time.monotonic() < deadline:
            time.sleep(0.2)
        process.kill()
    assert list(json.loads(summary.read_text())["phases"]) == PHASES[:5]
    with tarfile.open(script.out / "logs.tar.gz") as archive:
        assert "./em.log" in archive.getnames()


@pytest.mark.parametrize("arguments", [[], ["out", "9m"], ["out", "9", "9"]], ids=" ".join)
def test_says_how_it_is_called(arguments, tmp_path):
    done = subprocess.run(["bash", SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 64
    assert "usage: bash bench/gpu.sh OUTDIR [SECONDS]" in done.stderr
