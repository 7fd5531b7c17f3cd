"""The GPU benchmark of EM batches without a GPU: its checks, its measuring on stand-ins, its table."""

import dataclasses
import importlib
import importlib.util
import json
import math
import signal
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
if not (ROOT / "bench" / "gpu_em.py").exists():
    pytest.skip("this copy has no benchmarks", allow_module_level=True)

MACHINE = {"device": "Abacus 9", "torch": "2.11.0", "cuda": "13.0", "triton": None, "pyromancy": "1.2"}


@pytest.fixture
def bench(monkeypatch):
    """The benchmark on the CPU, whose calls are timed by the host and held by no graph."""
    monkeypatch.syspath_prepend(ROOT)
    bench = importlib.import_module("bench.gpu_em")

    def seconds(run, calls=1):
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls

    def graphed(batch):
        batch()
        return batch

    monkeypatch.setattr(bench.gpu, "DEVICE", "cpu")
    monkeypatch.setattr(bench.gpu, "SECONDS", 0.0)
    monkeypatch.setattr(bench.gpu, "WARM", 1)
    monkeypatch.setattr(bench.gpu, "seconds", seconds)
    monkeypatch.setattr(bench.gpu, "machine", lambda: dict(MACHINE))
    monkeypatch.setattr(bench.rivals, "graphed", graphed)
    monkeypatch.setattr(bench, "COPY_ELEMENTS", 2**10)
    monkeypatch.setattr(bench, "PRODUCT_WIDTH", 64)
    monkeypatch.setattr(bench, "ROUNDS", (2, 15))
    monkeypatch.setattr(bench, "BUDGET", 0.0)
    monkeypatch.setattr(bench, "BATCHES", (6, 3))
    monkeypatch.setattr(bench, "FIRST_BATCHES", (5, 2))
    monkeypatch.setattr(bench, "FIRST", "wide")
    settings = importlib.import_module("bench.settings")
    tiny = {
        "narrow": settings.Setting((9, 7, 5), 1, 4, "tanh"),
        "wide": settings.Setting((4, 12, 11, 21), 1, 5, "sigmoid"),
        "kinks": settings.Setting((9, 8, 8, 8, 3), 1, 3, "relu"),
    }
    monkeypatch.setattr(bench, "SETTINGS", tiny)
    return bench


def without_compiler(bench, monkeypatch):
    """What takes long to compile is tested by itself."""
    monkeypatch.setattr(bench.rivals, "compiled_graph", bench.rivals.hand_graph)


@pytest.mark.slow
def test_measures_on_stand_ins(bench, monkeypatch, tmp_path, capsys):
    without_compiler(bench, monkeypatch)
    # Triton's kernels need a device, and the compiled ones may not be here: who competes is the same
    serving = {"reference": "reference", "native": "reference", "triton": "reference"}
    monkeypatch.setattr(bench.gpu, "usable_backends", lambda: list(serving))
    monkeypatch.setattr(bench.backends, "use", lambda _, use=bench.backends.use: use("reference"))
    file = tmp_path / "figures.json"
    assert bench.main(["--out", str(file)]) == 0
    result = json.loads(file.read_text())
    assert result["failures"] == []
    assert result["machine"]["product_tflop_per_s"].keys() == set(bench.PRECISIONS)
    races = {}
    for r in result["rows"]:
        races.setdefault((r["setting"], r["batch"], r["compiled"]), []).append(r)
    assert list(races) == [
        ("wide", 5, False), ("wide", 2, False), ("narrow", 6, False), ("kinks", 6, False),
        ("wide", 5, True), ("narrow", 6, True), ("kinks", 6, True), ("narrow", 3, False), ("kinks", 3, False),
    ]  # fmt: skip
    assert bench.gpu.usable_backends() == ["reference", "native", "triton"]
    for (name, _, compiled), rows in races.items():
        rivals = {r["contender"] for r in rows if not r["ours"]} - {"JAX"}
        assert rivals == ({"torch.compile, graph"} if compiled else {"autograd", "autograd, graph", "by hand, graph"})
        for backend, precisions in {"reference": 0, "native": 3, "triton": 3 if name == "wide" else 1}.items():
            ours = f"InferenceLoop, {backend}"
            expected = [(ours, "highest", "em-batch"), (ours, "highest", "e-steps")]
            whole = f"EM, {backend}"
            for way in (f"{ours}, fused Adam", f"{ours}, one graph", whole):
                expected += [(way, p, "em-batch") for p in bench.PRECISIONS[:precisions]]
            if compiled:
                expected = [e for e in expected if e[1:] == ("highest", "em-batch")]
            mine = [r for r in rows if r["contender"].startswith((ours, whole))]
            assert [(r["contender"], r["precision"], r["kind"]) for r in mine] == expected
            assert {r["served_by"] for r in mine} == {serving[backend]}
    for r in result["rows"]:
        assert r["seconds"] >= r["best_seconds"] > 0
        assert 0 <= r["off"] <= r["allowed"]
        setting = dataclasses.replace(bench.SETTINGS[r["setting"]], batch=r["batch"])
        flops = setting.flops if r["kind"] == "em-batch" else setting.estep_flops
        assert r["tflop_per_s"] == pytest.approx(flops / r["seconds"] / 1e12)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Abacus 9, torch 2.11.0")
    assert [line.split()[:2] for line in lines[5:14]] == [[name, str(batch)] for name, batch, _ in races]
    assert {len(line) for line in lines[4:14]} == {len(lines[4])}
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.slow
def test_who_is_wrong_is_not_timed(bench, monkeypatch, tmp_path, capsys):
    without_compiler(bench, monkeypatch)
    loop, plain = bench.inference_loop, bench.plain

    def impatient(problem):
        problem.steps -= 1
        return loop(problem)

    def hasty(problem):
        batch = plain(problem)

        def twice():
            before = [p.detach().clone() for p in problem.m_params]
            batch()
            with torch.no_grad():
                for p, old in zip(problem.m_params, before, strict=True):
                    p.add_(p - old)

        return twice

    def broken(*_):
        raise ValueError("out of\norder")

    monkeypatch.setattr(bench, "inference_loop", impatient)
    monkeypatch.setattr(bench, "plain", hasty)
    monkeypatch.setattr(bench.rivals, "hand_graph", broken)
    file = tmp_path / "figures.json"
    assert bench.main(["--out", str(file)]) == 1
    result = json.loads(file.read_text())
    timed = {(r["kind"], r["contender"]) for r in result["rows"] if r["precision"] == "highest"}
    assert ("em-batch", "autograd, graph") in timed
    assert ("e-steps", "InferenceLoop, reference") in timed
    wrong = {f["contender"]: f["reason"] for f in result["failures"] if f["precision"] == "highest"}
    assert "states or gradients are off by" in wrong["InferenceLoop, reference"]
    assert "what Adam did to the parameters is off by 1" in wrong["autograd"]
    assert wrong["by hand, graph"] == "ValueError: out of order"
    assert not {("em-batch", who) for who in wrong} & timed
    table = capsys.readouterr().out
    assert "failed: by hand, graph, highest, em-batch: ValueError: out of order (wide 5, wide 2, narrow 6" in table
    assert bench.main(["--show", str(file)]) == 1
    assert capsys.readouterr().out == table


@pytest.mark.slow
def test_what_was_measured_is_kept_when_it_is_stopped(bench, monkeypatch, tmp_path):
    run = bench.run

    def stopped(race, *rest):
        if race.name == "kinks":
            raise KeyboardInterrupt
        return run(race, *rest)

    monkeypatch.setattr(bench, "run", stopped)
    monkeypatch.setattr(bench.Race, "contenders", lambda _: [bench.Contender("autograd", bench.rivals.autograd_graph)])
    file = tmp_path / "figures.json"
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--out", str(file)])
    found = [(r["setting"], r["batch"]) for r in json.loads(file.read_text())["rows"]]
    assert found == [("wide", 5), ("wide", 2), ("narrow", 6)]
    assert bench.main(["--show", str(file)]) == 0


def test_begins_nothing_after_its_time(bench, tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert bench.main(["--seconds", "0", "--parts", "sizes", "tutorial", "--out", str(file)]) == 0
    result = json.loads(file.read_text())
    assert result["rows"] == []
    assert len(result["left_out"]) == 4
    assert "left out: all: the 0 s were over (narrow 3, kinks 3, wide 5, wide 2)" in capsys.readouterr().out


def test_compilations_are_stopped_and_counted(bench, monkeypatch):
    def endless(setting, device):
        try:
            time.sleep(60)
        except Exception:  # as a compiler does that tries things out
            pytest.fail("caught")

    setting = dataclasses.replace(bench.SETTINGS["narrow"], batch=6)
    contender = bench.Contender("slow", endless, compiled=True)
    monkeypatch.setattr(bench, "COMPILING", 0.3)
    monkeypatch.setattr(bench, "ONE_COMPILATION", 0.2)
    clock, before = bench.Clock(), signal.getsignal(signal.SIGALRM)
    with pytest.raises(bench.NotHereError, match="not compiled within 0 s"):
        clock.build(contender, setting)
    assert 0 < clock.left <= 0.1
    with pytest.raises(bench.NotHereError, match="not compiled within"):
        clock.build(contender, setting)
    with pytest.raises(bench.NotHereError, match="used up"):
        clock.build(contender, setting)
    assert signal.getsignal(signal.SIGALRM) is before


@pytest.mark.slow
def test_jax(bench):
    setting = dataclasses.replace(bench.SETTINGS["wide"], batch=6)
    if importlib.util.find_spec("jax") is None:
        with pytest.raises(bench.NotHereError, match="no JAX for cpu here"):
            bench.rivals.jax_scan(setting, "cpu")
        return
    runner = bench.rivals.jax_scan(setting, "cpu")
    exact = bench.exact_outcome(setting)
    assert bench.check(bench.Contender("JAX", bench.rivals.jax_scan), setting, runner, exact) < 1e-5


def test_bytes_that_must_move(bench):
    setting = dataclasses.replace(bench.SETTINGS["narrow"], batch=6)
    parameters = 9 * 7 + 7 + 7 * 5 + 5
    assert bench.least_bytes(setting, "em-batch") == 4 * (6 * (9 + 5 + 7) + 6 * parameters)
    assert bench.least_bytes(setting, "e-steps") == 4 * (6 * (9 + 5 + 2 * 7) + parameters)


def test_nan_is_too_far(bench):
    exact = bench.Outcome([torch.ones(2)], [torch.ones(2)])
    for states, learned in ((math.nan, 1.0), (1.0, math.nan)):
        off = bench.Outcome([torch.tensor([1.0, states])], [torch.tensor([1.0, learned])]).deviation(exact)
        with pytest.raises(AssertionError, match="not timed"):
            bench.require(off, 1e9, "it is")
