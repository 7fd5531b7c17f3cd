"""States that predict one another: without a bound `tol` tells of gains, and these of little where curvature is low."""

import math

import pytest
import torch
from torch import nn

import pyromancy as pyro
from pyromancy import methods
from pyromancy.functional import gaussian_energy

RATE, TOL = 0.25, 1e-2


class Pair:
    """Two units that predict each other by w, one of them with an input of its own: the least energy is 0."""

    def __init__(self, w):
        self.a, self.b = (nn.Parameter(torch.zeros(5, 1, dtype=torch.float64)) for _ in range(2))
        self.x = torch.tensor([[1.0], [2.0], [-1.0], [0.5], [3.0]], dtype=torch.float64)
        self.w = torch.full((1, 1), w, dtype=torch.float64)

    def energy(self):
        return gaussian_energy(self.a, self.x + self.b @ self.w.T) + gaussian_energy(self.b, self.a @ self.w.T)


def energies_of_descent(w, x, steps):
    """In Python's numbers, from 0: `1/2 (a - w b - x)^2 + 1/2 (b - w a)^2` before every step, and after the last."""
    a = b = 0.0
    found = []
    for _ in range(steps + 1):
        e, f = a - w * b - x, b - w * a
        found.append(0.5 * (e * e + f * f))
        a, b = a - RATE * (e - w * f), b - RATE * (f - w * e)
    return found


def sweeps_until_idle(energies):
    """The first after which the last half of the sweeps, at least four, gained no more than `tol` of all that fell."""
    for n in range(4, 32):
        window = max(4, math.ceil(n / 2))
        fallen = energies[0] - energies[n]
        if energies[n - window] - energies[n] <= TOL * fallen:
            return n
    raise AssertionError("never")


@pytest.mark.parametrize("executor", [None, "graph"])
@pytest.mark.parametrize("w", [0.95, 0.3])
def test_descent_stops_by_what_sweeps_gain(w, executor):
    pair = Pair(w)
    loop = pyro.InferenceLoop(pair.energy, [pair.a, pair.b], method=methods.Descent(RATE), executor=executor)
    trace = loop.run(100, tol=TOL)
    expected = [energies_of_descent(w, float(x), 40) for x in pair.x]
    ends = [sweeps_until_idle(of) for of in expected]
    assert trace.taken.tolist() == [n + 1 for n in ends]  # the last of which finds that it is at its end
    assert trace.converged.all()
    left = pair.energy().detach()
    least = torch.tensor([of[n] for of, n in zip(expected, ends, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(left, least, rtol=1e-10, atol=0)
    share = left / (torch.tensor([of[0] for of in expected], dtype=torch.float64) - left)
    # what docs/methods.md says: no bound at all where they keep nearly all of one another, though it may look like one
    assert (share > 0.9).all() if w == 0.95 else (share < TOL).all()
    told = [line.strip() for line in loop.explain().splitlines()]
    expected = "tol by what sweeps gain; no bound: states predict one another in a circle"
    assert any(line in (expected, f"{expected}, b, a", f"{expected}, a, b") for line in told), told


@pytest.mark.parametrize("executor", [None, "graph"])
@pytest.mark.parametrize("w", [0.95, 0.3, -0.9])
@pytest.mark.parametrize(
    "method", [methods.Accelerated(coordinates="states"), methods.LBFGS(coordinates="states")], ids=["none", "lbfgs"]
)
def test_methods_without_a_rate_come_near(method, w, executor):
    """To the least energy, 0, which is known here."""
    pair = Pair(w)
    first = pair.energy().detach()
    loop = pyro.InferenceLoop(pair.energy, [pair.a, pair.b], method=method, executor=executor)
    assert loop.run(100, tol=TOL).converged.all()
    left = pair.energy().detach()
    assert (left <= TOL * (first - left)).all()
