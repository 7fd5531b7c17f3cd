"""The gallery's jobs: each in at most forty lines, on the path that it claims, and with the result that theory has."""

import ast
import math
import runpy
from pathlib import Path

import pytest
import torch

from pyromancy import backends
from pyromancy.methods import Descent

FOLDER = Path(__file__).parents[2] / "docs" / "gallery" / "jobs"
ONE_CALL = "a batch: one call of an operator"
JOBS = {
    "all_to_all": lambda s: s["accuracy"] > 0.75 and learns_in_one_call(s),
    "amortize": lambda s: s["gaps"][0][0] < s["gaps"][1][0] / 2 and learns_in_one_call(s),
    "bidirectional": lambda s: s["accuracy"] > 0.82 and s["error"] < 5e-3 and learns_in_one_call(s),
    "classify": lambda s: min(s["accuracy"].values()) > 0.87 and learns_in_one_call(s),
    "errors": lambda s: s["left"]["errors"] < 0.1 < 0.4 < s["left"]["states"] and learns_in_one_call(s),
    "generate": lambda s: s["error"] < 5e-3 and s["accuracy"] > 0.85 and learns_in_one_call(s),
    "lateral": lambda s: s["error"] < 1e-10 and s["right"][0] > 0.97 and learns_in_one_call(s),
    "linear_theory": lambda s: s["error"] < 1e-10,
    "memory": lambda s: s["error"] < 0.25 * s["images"][:, ~s["half"]].var(0).mean(),
    "monte_carlo": lambda s: drawn(s),
    "mupc": lambda s: s["accuracy"] > 0.88 and min(s["moved"]) > max(s["moved"]) / 5 and learns_in_one_call(s),
    "sparse_coding": lambda s: s["error"] < 1e-10 and s["costs"][-1] < 0.6 * s["costs"][0] and 0.5 < s["zeros"] < 0.95,
    "temporal": lambda s: s["error"] < 1e-10,
    "torch2pc": lambda s: max(s["errors"]["FixedPred"], s["errors"]["Exact"]) < 1e-12 and strict(s),
}  # fmt: skip


def learns_in_one_call(shown):
    """Which without compiled kernels only plain descent does."""
    em = shown["em"]
    method = em.loop.method
    plain = type(method) is Descent and method.is_plain and method.moves == "states"
    return (em.explain().splitlines()[0] == ONE_CALL) == (plain or backends.available("native")[0])


def drawn(shown):
    """Within five standard errors of the law of independent chains."""
    covariance, count = shown["covariance"].detach(), shown["chains"]
    of_mean = covariance.diagonal().max().sqrt() / count**0.5
    of_covariance = covariance.max() * math.sqrt(2 / count)
    return shown["error"][0] < 5 * of_mean and shown["error"][1] < 5 * of_covariance


def strict(shown):
    """The gradient after as many steps of plain autograd on the states."""
    net, params = shown["net"], shown["params"]
    net.start(shown["x"], shown["y"])
    steps = torch.optim.SGD(net.e_params(), lr=0.1)
    for _ in range(500):
        steps.zero_grad()
        net.energy().sum().backward(inputs=net.e_params())
        steps.step()
    gradient = shown["flat"](torch.autograd.grad(net.energy().mean(), params))
    backprop = shown["backprop"]
    cosine = torch.nn.functional.cosine_similarity(gradient, backprop, dim=0).item()
    error = ((gradient - backprop).abs().max() / backprop.abs().max()).item()
    return math.isclose(shown["cosines"]["Strict"], cosine, rel_tol=1e-9) and math.isclose(
        shown["errors"]["Strict"], error, rel_tol=1e-9
    )


def test_every_job_is_here():
    assert {path.stem for path in FOLDER.glob("*.py")} == JOBS.keys()


@pytest.mark.parametrize("job", JOBS)
def test_it_runs_in_forty_lines_and_shows_what_it_should(job, capsys):
    path = FOLDER / f"{job}.py"
    source = path.read_text()
    words = ast.parse(source).body[0]
    code = source.splitlines()[words.end_lineno :]
    assert len([line for line in code if line.strip() and not line.strip().startswith("#")]) <= 40
    shown = runpy.run_path(str(path))
    assert JOBS[job](shown)
    printed = capsys.readouterr().out
    assert "executor: graph" not in printed
    assert "executor: autograd" not in printed
    assert "executor: chain" in printed or ONE_CALL in printed
    for loop in [shown["em"].loop] if "em" in shown else [shown["loop"]]:
        explained = loop.explain()
        assert explained.startswith("executor: chain")
        fused = "method:" not in explained or "fused: all sweeps in one operator" in explained
        if not backends.available("native")[0]:
            fused = fused or "not fused: the reference kernels on cpu do plain descent" in explained
        assert fused
