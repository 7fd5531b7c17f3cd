"""Problems of inference alone, and who races to their equilibrium: methods of this package, JAX, and diffrax."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import pyromancy
from pyromancy.methods import LBFGS, Accelerated, Descent, Method

from .exact import ACTIVATIONS
from .rivals import NotHereError

GAPS = (1e-1, 1e-2, 1e-4)  # what is left of (F - F*) / (F_0 - F*)
AIM = 1e-2  # the one that rates are chosen for, and rivals compared at
WIDTH, CLASSES = 128, 10
MOST = 2000  # sweeps after which a method is given up, and in float64 that F* is taken from
WORK = 12_000  # sweeps times hidden layers after which one is given up on the grid; without a rate, four times that
END = 1e-6  # of the gap, in float64
HEUN_STEPS, HEUN_TIME, TOLERANCE = 1000, 1e4, 1e-3  # of the integrator as jpc has it


@dataclass(frozen=True)
class Setting:
    """A chain of so many hidden layers of width 128 without biases, input and one-hot target clamped.

    ``mu_1 = W_1 x`` and ``mu_l = W_l f(z_(l-1))``; weights are of variance gain^2 / fan-in, and inputs normal.
    """

    hidden: int
    activation: str
    batch: int
    inputs: int = 64

    def __str__(self) -> str:
        return f"{self.inputs}-{WIDTH}x{self.hidden}-{CLASSES} {self.activation}, batch {self.batch}"

    @property
    def on_grid(self) -> bool:
        """Whether it is one of many, for each of which there is half a minute."""
        return self not in (HEADLINE, SMALL)

    @property
    def most(self) -> int:
        """Sweeps after which a method with a rate is given up."""
        return min(MOST, WORK // self.hidden) if self.on_grid else MOST

    @property
    def gain(self) -> float:
        """Of the weights' scale: what keeps activations of one size, to first order."""
        return math.sqrt(2) if self.activation == "relu" else 1.0


HEADLINE = Setting(19, "tanh", 64, 784)
SMALL = Setting(3, "tanh", 16)
ALL = [
    HEADLINE,
    *(Setting(n, f, batch) for n in (3, 10, 19, 50, 128) for f in ("tanh", "relu") for batch in (16, 64)),
]


class Problem:
    """A setting's network, its states those of a forward sweep."""

    def __init__(self, setting: Setting, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(1)
        self.setting, self.f = setting, ACTIVATIONS[setting.activation][0]
        sizes = [setting.inputs, *[WIDTH] * setting.hidden, CLASSES]
        self.net = pyromancy.networks.mlp(sizes, setting.activation, bias=False)
        for p in self.net.m_params():
            torch.nn.init.normal_(p, std=setting.gain * p.shape[1] ** -0.5, generator=generator)
        self.weights = [p.detach().double() for p in self.net.m_params()]
        self.x = torch.randn(setting.batch, setting.inputs, generator=generator, dtype=torch.float64)
        self.y = torch.eye(CLASSES).double()[torch.randint(CLASSES, (setting.batch,), generator=generator)]
        self.net.to(dtype).start(self.x.to(dtype), self.y.to(dtype))
        self.states = list(self.net.e_params())
        self._starts: list[Tensor] = [z.detach().clone() for z in self.states]

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the forward sweep's states."""
        for z, start in zip(self.states, self._starts, strict=True):
            z.copy_(start)

    @torch.no_grad()
    def energy(self, states: Sequence[Tensor]) -> float:
        """F of free states, summed over the batch, in float64 and without this package."""
        below, total = self.x, 0.0
        for weight, z in zip(self.weights, [*(z.double() for z in states), self.y], strict=True):
            total += 0.5 * (z - below @ weight.T).square().sum().item()
            below = self.f(z)
        return total


class Contender(ABC):
    """One who goes from the forward sweep towards equilibrium."""

    @abstractmethod
    def energies(self, most: int) -> Tensor:
        """F before every step, until `most` of them, in float64."""

    @abstractmethod
    def run(self, steps: int) -> None:
        """From the forward sweep, so many steps."""

    @abstractmethod
    def states(self) -> Sequence[Tensor]:
        """The last run's."""

    def sweeps(self, steps: int) -> float:
        """Evaluations of the gradient in so many steps."""
        return steps


class Ours(Contender):
    """A method of this package."""

    def __init__(self, problem: Problem, method: Method) -> None:
        self.problem, self.method = problem, method
        self.loop = pyromancy.InferenceLoop(problem.net.energy, problem.states, method=method)

    def energies(self, most: int) -> Tensor:
        """As the loop records them, before every step."""
        self._begin()
        with _quiet():
            found = self.loop.run(most, record=True).energies
        assert found is not None
        return found[:-1].double().sum(1) * len(self.problem.states[0])

    def run(self, steps: int) -> None:
        """By the loop."""
        self._begin()
        self.loop.run(steps)

    def states(self) -> Sequence[Tensor]:
        """Those of the last run."""
        return self.problem.states

    def _begin(self) -> None:
        """At the forward sweep, at rest: momentum would go on from the run before."""
        self.problem.reset()
        self.loop.forget_velocities()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A rate that diverges is one that is not chosen."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* are not finite after .*")
        yield


class Jax(Contender):
    """Descent on states in JAX: all steps under one jit."""

    def __init__(self, problem: Problem, rate: float) -> None:
        self.jax, self.start, self.energy = _in_jax(problem)
        jax, energy = self.jax, self.energy
        gradient = jax.grad(energy)

        def step(_: Any, states: Any) -> Any:
            return jax.tree.map(lambda z, g: z - rate * g, states, gradient(states))

        self._many = jax.jit(lambda states, count: jax.lax.fori_loop(0, count, step, states))
        self._record = jax.jit(
            lambda states, none: jax.lax.scan(lambda z, _: (step(None, z), energy(z)), states, none)[1]
        )

    def energies(self, most: int) -> Tensor:
        """In a run of their own."""
        return _tensor(self.jax, self._record(self.start, self.jax.numpy.zeros(most)))

    def run(self, steps: int) -> None:
        """Until they are done."""
        self.end = self.jax.block_until_ready(self._many(self.start, steps))

    def states(self) -> Sequence[Tensor]:
        """Those of the last run."""
        return [_tensor(self.jax, z) for z in self.end]


class Heun(Contender):
    """The flow dz/dt = -g in diffrax as jpc runs it: Heun's method, whose steps a PID controller adapts."""

    def __init__(self, problem: Problem) -> None:
        self.jax, self.start, self.energy = _in_jax(problem)
        diffrax = _module("diffrax")
        jax, energy = self.jax, self.energy
        gradient = jax.grad(energy)
        steps = min(HEUN_STEPS, problem.setting.most)
        flow = diffrax.ODETerm(lambda t, z, args: jax.tree.map(jax.numpy.negative, gradient(z)))

        def solve(states: Any, end: Any, save: Any, throw: bool) -> Any:
            control = diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE)
            return diffrax.diffeqsolve(
                flow, diffrax.Heun(), 0.0, end, None, states,
                stepsize_controller=control, saveat=save, max_steps=steps, throw=throw,
            )  # fmt: skip

        path = diffrax.SaveAt(t0=True, steps=True, fn=lambda t, z, args: energy(z))
        self._record = jax.jit(lambda states, end: solve(states, end, path, throw=False))
        self._solve = jax.jit(lambda states, end: solve(states, end, diffrax.SaveAt(t1=True), throw=True))

    def energies(self, most: int) -> Tensor:
        """After every step that the controller accepts."""
        found = self._record(self.start, HEUN_TIME)
        self.times = _tensor(self.jax, found.ts)
        here = self.times.isfinite()  # of the accepted steps
        self.times = self.times[here]
        self._share = 2 * int(found.stats["num_steps"]) / int(found.stats["num_accepted_steps"])
        return _tensor(self.jax, found.ys)[here][:most]

    def run(self, steps: int) -> None:
        """Until the time that so many accepted steps come to."""
        self._found = self.jax.block_until_ready(self._solve(self.start, self.times[steps].item()))

    def states(self) -> Sequence[Tensor]:
        """Those of the last run."""
        return [_tensor(self.jax, z[0]) for z in self._found.ys]

    def sweeps(self, steps: int) -> float:
        """Two a step, and those of rejected steps on average."""
        return round(self._share * steps)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotHereError(f"no {name} here: {error}; pip install {name}") from None


def _tensor(jax: Any, array: Any) -> Tensor:
    return torch.tensor(jax.device_get(array)).double()


def _in_jax(problem: Problem) -> tuple[Any, Any, Callable[[Any], Any]]:
    """JAX, a problem's first states there, and its energy as a function of them."""
    jax = _module("jax")
    f = {"relu": jax.nn.relu, "tanh": jax.numpy.tanh}[problem.setting.activation]

    def put(t: Tensor) -> Any:
        return jax.numpy.asarray(t.detach().float().numpy())

    problem.reset()
    first, *weights = (put(w.T) for w in problem.weights)
    bottom, y, start = put(problem.x) @ first, put(problem.y), [put(z) for z in problem.states]

    def energy(states: Any) -> Any:
        predictions = [bottom, *(f(z) @ w for z, w in zip(states, weights, strict=True))]
        return sum(0.5 * jax.numpy.sum((z - mu) ** 2) for z, mu in zip([*states, y], predictions, strict=True))

    return jax, start, energy


@dataclass
class Entry:
    """Who takes part, at which rate, and the energies along the way.

    Attributes:
        contender: who.
        rate: at which, None without one.
        energies: before every step.
    """

    contender: Contender
    rate: float | None
    energies: Tensor


class Race:
    """A problem, and the best minimum that anyone there has found.

    Attributes:
        start: F_0, of the forward sweep.
        least: F*, of a long run in float64 without a rate, or of a contender where that has come lower.
        absent: why who cannot take part.
    """

    def __init__(self, setting: Setting) -> None:
        self.problem = Problem(setting)
        exact = Problem(setting, torch.float64)
        self.start = exact.energy(exact.states)
        Ours(exact, Accelerated()).loop.run(self.without_rate, tol=END)
        self.least = exact.energy(exact.states)
        self.entries: dict[str, Entry] = {}
        self.absent: dict[str, str] = {}
        for name, enter in CONTENDERS.items():
            try:
                self.entries[name] = enter(self)
            except NotHereError as reason:
                self.absent[name] = str(reason)
        lowest = [e.energies.nan_to_num(torch.inf).min().item() for e in self.entries.values()]
        self.least = min(self.least, *lowest)

    def gap(self, energy: Any) -> Any:
        """What of (F_0 - F*) is left."""
        return (energy - self.least) / (self.start - self.least)

    def first(self, energies: Tensor, gap: float) -> int | None:
        """After how many steps it is there; None where it never is."""
        there = self.gap(energies) <= gap
        return int(there.nonzero()[0]) if there.any() else None

    @property
    def without_rate(self) -> int:
        """Sweeps after which a method without a rate is given up, and in float64 that F* is taken from."""
        return min(MOST, 4 * self.problem.setting.most)

    def by(self, method: Method, most: int | None = None, gap: float = GAPS[-1]) -> Entry:
        """The entry of a method, with the energies until it is at a gap, in four times as many steps at every try."""
        ours, steps, most = Ours(self.problem, method), 4, most or self.problem.setting.most
        while True:
            steps = min(4 * steps, most)
            energies = ours.energies(steps)
            lost = not energies[-1].isfinite()
            if steps == most or lost or self.first(energies, gap) is not None:
                return Entry(ours, getattr(method, "lr", None), energies)

    def at_best(self, make: Callable[[float], Method], rates: Sequence[float]) -> Entry:
        """The entry whose rate comes to the aim first, of these from large to small, until one is worse.

        Where none comes there, of the one that has come lowest.
        """
        best, most = rates[-1], self.problem.setting.most
        lowest, reached = math.inf, False
        for rate in rates:
            energies = self.by(make(rate), most + 1, AIM).energies
            steps = self.first(energies, AIM)
            if steps is not None:
                best, most, reached = rate, steps, True
            elif reached:
                break
            elif energies[-1] < lowest:
                best, lowest = rate, energies[-1].item()
        return self.by(make(best))

    def descent(self) -> Entry:
        """On states, at rates around the largest that is stable at the start."""
        self.problem.reset()
        stable = pyromancy.max_rate(self.problem.net.energy, self.problem.states)
        shares = (1.1, 1.0, 0.9, 0.8) if self.problem.setting.on_grid else (1.2, 1.1, 1.0, 0.9, 0.8, 0.7)
        return self.at_best(Descent, [s * stable for s in shares])

    def on_errors(self, make: Callable[[float], Method]) -> Entry:
        """On errors, at powers of the root of 2, or on the grid of 2."""
        return self.at_best(make, [2.0 ** (-i / 2) for i in range(1, 21, 2 if self.problem.setting.on_grid else 1)])

    def jax_descent(self) -> Entry:
        """The same, in JAX."""
        rate = self.entries[DESCENT].rate
        assert rate is not None
        jax = Jax(self.problem, rate)
        return Entry(jax, rate, jax.energies(self.problem.setting.most))

    def heun(self) -> Entry:
        """The flow by an integrator."""
        heun = Heun(self.problem)
        return Entry(heun, None, heun.energies(self.problem.setting.most))


OURS, DESCENT, JAX, HEUN = "Accelerated()", "descent, best rate", "JAX descent, same rate", "diffrax Heun, PID"
CONTENDERS: dict[str, Callable[[Race], Entry]] = {
    OURS: lambda race: race.by(Accelerated(), race.without_rate),
    "Accelerated, best rate": lambda race: race.on_errors(Accelerated),
    "LBFGS()": lambda race: race.by(LBFGS()),
    "Accelerated() on states": lambda race: race.by(Accelerated(coordinates="states")),
    "descent on errors, 0.001": lambda race: race.by(Descent(1e-3, coordinates="errors")),
    "descent on errors, best rate": lambda race: race.on_errors(lambda rate: Descent(rate, coordinates="errors")),
    DESCENT: Race.descent,
    JAX: Race.jax_descent,
    HEUN: Race.heun,
}


@functools.cache
def race(setting: Setting) -> Race:
    return Race(setting)
