"""What all methods promise, and what each computes, on objectives of one's own."""

import pytest
import torch

import inference
from inference import ALL, CONVERGENT, Rows
from pyromancy import methods
from pyromancy.methods import Stop
from pyromancy.run import stepwise

every = pytest.mark.parametrize("method", ALL, ids=repr)
WAYS = [(m, stop) for m in ALL for stop in (None, Stop(1e-3)) if m.converges or stop is None]


@pytest.mark.parametrize(("method", "stop"), WAYS, ids=repr)
def test_a_sample_does_not_depend_on_its_batch(method, stop):
    """To the last bit, however it is stopped: five samples together, and one by one."""
    states, centers = inference.rows(5)
    starts = [x.clone() for x in states]
    together = stepwise.run(method, Rows(states, centers), 12, stop)
    for i in range(5):
        mine = [x[i : i + 1].clone() for x in starts]
        alone = stepwise.run(method, Rows(mine, [c[i : i + 1] for c in centers]), 12, stop)
        assert all(torch.equal(a[0], b[i]) for a, b in zip(mine, states, strict=True))
        assert alone.taken[0] == together.taken[i]
        assert stop is None or alone.converged[0] == together.converged[i]


@every
def test_a_run_can_be_made_in_parts(method):
    states, centers = inference.rows(4)
    parts = [x.clone() for x in states]
    stepwise.run(method, Rows(states, centers), 9)
    first = stepwise.run(method, Rows(parts, centers), 4)
    stepwise.run(method, Rows(parts, centers), 5, resumed=first.resumed)
    for a, b in zip(parts, states, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", CONVERGENT, ids=repr)
@pytest.mark.parametrize("tol", [1e-1, 1e-3])
def test_a_tolerance_is_kept(method, tol):
    """To what was asked for where the bound stops a sample, and nearly so where what it gains does."""
    states, centers = inference.rows(6)
    problem = Rows([x.clone() for x in states], centers)
    stepwise.run(methods.LBFGS(), problem, 200)
    problem.begin()
    least = problem.value()
    problem = Rows(states, centers)
    problem.begin()
    first = problem.value()
    outcome = stepwise.run(method, problem, 3000, Stop(tol))
    problem.begin()
    assert outcome.converged.all()
    assert (problem.value() - least <= 1.25 * tol * (first - problem.value()) + 1e-12).all()
    assert outcome.taken.max() == outcome.steps < 3000


def test_those_that_are_done_do_not_move():
    states, centers = inference.rows(3)
    with torch.no_grad():
        states[0][1], states[1][1] = 0.0, 0.0  # the middle sample begins at its minimum
        centers[0][1], centers[1][1] = 0.0, 0.0
    problem = Rows(states, centers)
    outcome = stepwise.run(methods.Descent(0.02, coordinates="errors"), problem, 40, Stop(1e-2))
    assert outcome.taken[1] == 1
    assert outcome.converged[1]
    assert (outcome.taken[[0, 2]] > 1).all()
    assert not states[0][1].any()
    assert not states[1][1].any()


def test_without_a_rate_the_energy_never_rises():
    states, centers = inference.rows(8, scale=20.0)
    recorded = stepwise.run(methods.Accelerated(), problem := Rows(states, centers), 30, record=True).energies[:, 0]
    assert (recorded.diff(dim=0) <= 0).all()
    problem.begin()
    assert (problem.value() <= recorded[-1]).all()


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.3},
                                     {"momentum": 0.9, "nesterov": True}], ids=str)  # fmt: skip
def test_descent_is_that_of_torch(options):
    states, centers = inference.rows(4)
    twins = [x.clone().requires_grad_() for x in states]
    stepwise.run(methods.Descent(0.02, **options), Rows(states, centers), 7)
    assert_as(torch.optim.SGD(twins, 0.02, **options), twins, centers, states)


@pytest.mark.parametrize("options", [{}, {"betas": (0.5, 0.8), "eps": 1e-3}], ids=str)
def test_adam_is_that_of_torch(options):
    states, centers = inference.rows(4)
    twins = [x.clone().requires_grad_() for x in states]
    stepwise.run(methods.Adam(0.02, **options), Rows(states, centers), 7)
    assert_as(torch.optim.Adam(twins, 0.02, **options), twins, centers, states)


def assert_as(optimizer, twins, centers, states):
    """Seven steps of an optimizer on the energy's gradient by autograd come to the same."""
    for _ in range(7):
        optimizer.zero_grad()
        problem = Rows(twins, centers)
        problem.point = twins
        problem.value().sum().backward()
        optimizer.step()
    for a, b in zip(states, twins, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-12, atol=1e-12)


def test_nesterov_by_hand():
    """F = x^2 / 2 from x = 1 at a rate of 1/2: v = x at first, and then the momentum is (t - 1) / t'."""
    x = torch.ones(1, 1, dtype=torch.float64)

    class Parabola(Rows):
        def value(self):
            return 0.5 * self.point[0][:, 0] ** 2

        def evaluate(self):
            return methods.Evaluation(self.value(), [self.point[0]])

    found = []
    resumed = None
    for _ in range(3):
        resumed = stepwise.run(methods.Accelerated(lr=0.5), Parabola([x], None), 1, resumed=resumed).resumed
        found.append(x.item())
    t, u = 0.5 * (1 + 5**0.5), 0.5 * (1 + (1 + (1 + 5**0.5) ** 2) ** 0.5)
    v = 0.25 + (t - 1) / u * (0.25 - 0.5)
    assert found == pytest.approx([0.5, 0.25, 0.5 * v], abs=1e-15)


def test_heun_takes_back_a_step_that_is_too_long():
    states, centers = inference.rows(5, scale=3.0)
    problem = Rows(states, centers)
    problem.begin()
    before = problem.value()
    stepwise.run(methods.Heun(lr=100.0, rtol=1e-3), problem, 1)
    problem.begin()
    assert torch.equal(problem.value(), before)
    stepwise.run(methods.Heun(lr=100.0, rtol=1e-3), problem, 60)
    problem.begin()
    assert (problem.value() < 0.5 * before).all()


def test_langevin_draws_by_its_generator():
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(20)
        states, centers = inference.rows(4)
        generator = torch.Generator().manual_seed(seed)
        stepwise.run(methods.Langevin(0.01, generator=generator), Rows(states, centers), 5)
        drawn.append(states[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_langevin_without_heat_is_descent():
    states, centers = inference.rows(4)
    twins = [x.clone() for x in states]
    stepwise.run(methods.Langevin(0.02, temperature=0.0), Rows(states, centers), 5)
    stepwise.run(methods.Descent(0.02), Rows(twins, centers), 5)
    for a, b in zip(states, twins, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_sequential_moves_one_after_the_other():
    """The second variable goes by the gradient where the first has been moved."""

    class Coupled(Rows):
        """``(a - b)^2 / 2 + b^2``."""

        def value(self):
            a, b = (x[:, 0] for x in self.point)
            return 0.5 * (a - b) ** 2 + b**2

        def evaluate(self):
            a, b = self.point
            return methods.Evaluation(self.value(), [a - b, b - a + 2 * b])

    states = [torch.full((1, 1), 2.0, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)]
    stepwise.run(methods.Sequential(0.5), Coupled(states, None), 1)
    assert [x.item() for x in states] == [1.5, 1 - 0.5 * (1 - 1.5 + 2)]


class TestStop:
    """A sample of energies that are given, one after another."""

    def stopped(self, energies, gaps, tol):
        stop, progress = Stop(tol), None
        for sweep, (energy, gap) in enumerate(zip(energies, gaps, strict=True)):
            energy = torch.tensor([energy], dtype=torch.float64)
            progress = progress or stop.begin(energy)
            progress = stop.look(progress, energy, torch.tensor([gap], dtype=torch.float64))
            if progress.done:
                return sweep
        return None

    def test_by_a_bound(self):
        assert self.stopped([10.0, 5.0, 4.0], [9.0, 0.51, 0.59], 0.1) == 2
        assert self.stopped([10.0, 5.0, 4.0], [9.0, 0.5, 0.5], 0.1) == 1
        assert self.stopped([10.0], [0.0], 0.1) == 0

    def test_by_gains(self):
        """In the last four sweeps at most a tenth of what the energy has fallen, and it is as near to its least."""
        never = [float("inf")] * 8
        assert self.stopped([10.0, 2.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5], never, 0.1) == 6
        assert self.stopped([10.0, 2.0, 1.0, 0.9, 0.8, 0.7, 0.8, 0.65], never, 0.1) == 6
        assert self.stopped([10.0, 2.0, 1.0, 0.9, 0.8, 0.7, 1.8, 0.65], never, 0.1) == 7
        assert self.stopped([10.0] * 8, never, 0.1) is None
        assert self.stopped([10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0], never, 0.1) is None

    def test_by_gains_of_half_of_all_sweeps(self):
        """Energies that fall by 1 a sweep from 100 on have gained half at any sweep: more than 0.4, and not 0.6."""
        energies = [100.0 - i for i in range(60)]
        assert self.stopped(energies, [float("inf")] * 60, 0.4) is None
        assert self.stopped(energies, [float("inf")] * 60, 0.6) == 7


def test_an_empty_batch():
    for method in ALL:
        states, centers = inference.rows(0)
        outcome = stepwise.run(method, Rows(states, centers), 3, Stop(0.1) if method.converges else None)
        assert outcome.taken.shape == (0,)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: methods.Descent("fast"), TypeError, "lr must be a number, got 'fast'"),
        (lambda: methods.Descent(-1.0), ValueError, "lr must be finite, not negative, got -1.0"),
        (lambda: methods.Descent(0.1, nesterov=True), ValueError, "nesterov needs a momentum"),
        (lambda: methods.Descent(0.1, coordinates="error"), ValueError, "coordinates must be 'states' or 'errors'"),
        (lambda: methods.Adam(0.1, betas=(0.9, 1.0)), ValueError, r"betas\[1\] must be finite, not negative and"),
        (lambda: methods.Adam(0.1, betas=0.9), ValueError, "betas must be two numbers"),
        (lambda: methods.Accelerated(momentum=0.5), ValueError, "momentum must be left out without lr"),
        (lambda: methods.Accelerated(0.1, momentum="heavy"), ValueError, "momentum must be 'restart', 'depth' or"),
        (lambda: methods.Accelerated(0.1, momentum=1.0), ValueError, "momentum must be finite, not negative and"),
        (lambda: methods.Heun(0.0), ValueError, "lr must be finite, above 0"),
        (lambda: methods.Heun(0.1, atol=0.0), ValueError, "atol must be finite, above 0"),
        (lambda: methods.LBFGS(memory=0), ValueError, "memory must be at least 1, got 0"),
        (lambda: methods.LBFGS(memory=2.0), TypeError, "memory must be an int"),
        (lambda: methods.Langevin(0.1, temperature=float("nan")), ValueError, "temperature must be finite"),
        (lambda: methods.Langevin(0.1, generator=3), TypeError, "generator must be a torch.Generator or None"),
        (lambda: methods.Sequential(True), TypeError, "lr must be a number, got True"),
        (lambda: Stop(0), ValueError, "tol must be finite and above 0"),
        (lambda: Stop(float("nan")), ValueError, "tol must be finite and above 0"),
        (lambda: Stop("tight"), TypeError, "tol must be a number"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
