"""The benchmark of what networks learn: its judge against closed forms, its choice of rates, and a quick run."""

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
if not (ROOT / "bench" / "training.py").exists():
    pytest.skip("this copy has no benchmarks", allow_module_level=True)
pytest.importorskip("sklearn")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("bench.training")


@pytest.mark.parametrize("variance", [1.0, 100.0])
def test_energies_of_linear_networks(bench, variance):
    """Errors e_l of unit variance reach the output by J_l: F* = 1/2 r^T (v I + sum over l of J_l J_l^T)^-1 r."""
    task = bench.Task((6, 9, 8, 4), "identity", 5, 1, (), gain=1.5)
    net = task.network(0, variance).double()
    torch.manual_seed(1)
    x, y = torch.randn(5, 6).double(), torch.randn(5, 4).double()

    *_, w2, w3 = (layer.weight for layer in net.sequential() if hasattr(layer, "weight"))
    r = y - net.predict(x)
    covariance = variance * torch.eye(4).double() + w3 @ w3.T + w3 @ w2 @ w2.T @ w3.T
    before, after = (
        0.5 * (r @ p * r).sum(1).mean().item() for p in (torch.eye(4).double() / variance, covariance.inverse())
    )

    found = bench.energies(net, bench.Pair(x, y))
    assert found[0] == pytest.approx(before, rel=1e-6)
    assert after * (1 - 1e-6) <= found[1] <= after + 1e-3 * (before - after)


def test_one_network_for_all_variances(bench):
    task = bench.Task((6, 9, 4), "tanh", 5, 1, (), gain=2.0)
    one, other = (dict(task.network(3, v).edges.named_parameters()) for v in (1.0, 10.0))
    assert all(torch.equal(p, other[name]) for name, p in one.items())
    assert one["0.weight"].std().item() == pytest.approx(2.0 / math.sqrt(6), rel=0.3)
    assert not torch.equal(one["0.weight"], next(iter(task.network(4).edges.parameters())))


def test_best_rate(bench):
    result = bench.Result("a", "b", 0.1, 0, [1.0, 2.0], (0.5, 0.5), None, 1.0)
    others = [result, replace(result, rate=0.2, scores=[0.0, 3.0]), replace(result, rate=0.3, scores=[9.0, math.nan])]
    assert bench.best(others, generative=False).rate == 0.2
    assert bench.best(others, generative=True).rate == 0.1
    assert bench.best(others[2:], generative=True).rate == 0.3


def test_race_and_table(bench, monkeypatch):
    """Other seeds run at the rate that the first one has found to be best; the table has the mean and the range."""
    right = {(1.0, 5): 70.0, (2.0, 5): 80.0, (2.0, 6): 90.0, (2.0, 7): 82.0}

    def train(name, task, by, rate, seed, data):
        return bench.Result(name, by, rate, seed, [0.0, right[rate, seed]], (0.5, 0.9), 3.0, rate + seed)

    monkeypatch.setattr(bench, "train", train)
    task = bench.Task((6, 9, 4), "tanh", 5, 2, ("tol 0.1",), (1.0, 2.0))
    results = list(bench.race("some", task, task.learners, [5, 6, 7], None))
    assert [(r.rate, r.seed) for r in results] == list(right)
    cells = bench.table(results, {"some": task}).splitlines()[-1].split(" | ")
    assert cells[2:8] == ["2", "3", "84.00", "80.00 to 90.00", "0.50, 0.90", "3.0"]


@pytest.mark.slow
def test_quick(bench, tmp_path, capsys):
    threads = torch.get_num_threads()
    results = bench.main(["--quick", "--out", str(tmp_path / "results.jsonl")])
    assert torch.get_num_threads() == threads
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["learner"] for line in lines] == [r.learner for r in results]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + len(results)

    by = {(r.task, r.learner): r for r in results}
    assert set(by) == {(name, learner) for name, task in bench.QUICK.items() for learner in task.learners}
    digits, energy = ({k[1]: r for k, r in by.items() if k[0] == name} for name in ("tanh", "generative"))
    assert all(r.scores[-1] > 90 for r in digits.values())
    assert digits["tol 0.1"].share[0] > 0.5 > 0.2 > digits["tol 0.1 v=100"].share[0] > 0
    # v = 100 learns as backpropagation does, which the other does not
    far = [abs(digits[k].scores[1] - digits["backpropagation"].scores[1]) for k in ("tol 0.1 v=100", "tol 0.1")]
    assert far[0] < far[1]
    assert all(0.2 < r.scores[-1] < 0.4 * r.scores[0] for r in energy.values())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give either --quick or --data DIR"),
        (["--quick", "--data", "."], "give either --quick or --data DIR"),
        (["--quick", "--tasks", "relu"], "with --quick there are tanh and generative, not relu"),
    ],
)
def test_arguments(bench, capsys, argv, message):
    with pytest.raises(SystemExit):
        bench.main(argv)
    assert message in capsys.readouterr().err
