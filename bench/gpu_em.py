"""Whole EM batches on a GPU: the inference loop and `EM` on every backend against what experts write without them.

    python -m bench.gpu_em --out FILE.json    measure, write the figures as they come, print a table
    python -m bench.gpu_em --show FILE.json   print the table again

All settings of `settings.py` at several batch sizes. Nothing is timed whose states, gradients and parameters after a
batch have not been compared with float64 before, in the same run. Rounds of all contenders of a race alternate.
"""

from __future__ import annotations

import gc
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import pyromancy
from pyromancy import backends

from . import gpu, rivals
from .exact import ROUNDING, Outcome, exact_outcome, outcome, relative, require
from .gpu import FLOAT, Entry
from .loops import em_step, inference_loop, loop_of, plain
from .network import Problem, make_edges, make_problem
from .rivals import EPS, NotHereError, Runner, fused_adam, graph_runner
from .settings import ADAM_RATE, SETTINGS, Setting

FIRST, FIRST_BATCHES = "pyromancy-tutorial", (500, 4096)  # before all others, so that a run cut short has them
BATCHES = (512, 64, 4096)  # of the others
# Rivals that compile for each shape anew, which takes long, race by themselves; no run takes longer for all of them
COMPILING, ONE_COMPILATION = 75.0, 30.0  # seconds
ROUNDS, BUDGET = (3, 15), 2.0  # of a batch size in a setting; seconds
COPY_ELEMENTS, PRODUCT_WIDTH = 2**26, 8192
PRECISIONS = ("highest", "high", "medium")
# What rounding the operands of a product at most changes them by, where float32 is not kept. With operands rounded so
# and all else in float64, these settings come out wrong by up to 6 times this; hardware that cuts off doubles it
UNIT = {"highest": 0.0, "high": 2.0**-11, "medium": 2.0**-8}
EM, ESTEPS = "em-batch", "e-steps"
OURS = "InferenceLoop"


@dataclass(frozen=True)
class Contender:
    """What competes.

    Attributes:
        name: of the way to run a batch; of this package's also what serves it.
        make: of a setting and a device.
        precision: of float32 matrix products.
        backend: of this package, or None where it is its default or has no part.
        kind: a whole batch, or the E-steps alone.
        compiled: whether every shape costs a compilation.
    """

    name: str
    make: Callable[[Setting, str], Runner]
    precision: str = "highest"
    backend: str | None = None
    kind: str = EM
    compiled: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is this package's."""
        return self.backend is not None

    @property
    def allowed(self) -> float:
        """How far off it may be."""
        return ROUNDING + 16 * UNIT[self.precision]

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """What it runs under."""
        with precision(self.precision):
            if self.backend is None:
                yield
            else:
                with backends.use(self.backend):
                    yield


@contextmanager
def precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def of_loop(loop: Callable[[Problem], Callable[[], object]], setting: Setting, device: str) -> Runner:
    """A loop over this package's nodes."""
    problem = make_problem(pyromancy, setting, device=device)
    return Runner(loop(problem), lambda: (outcome(problem), problem.m_params))


def esteps(problem: Problem) -> Callable[[], object]:
    return partial(loop_of(problem).run, problem.steps)


def fused(problem: Problem) -> Callable[[], object]:
    return inference_loop(problem, fused_adam(problem.m_params))


def in_one_graph(setting: Setting, device: str) -> Runner:
    """This package's loop with all of its batch in a graph of the user's, as rivals have it."""
    problem = make_problem(pyromancy, setting, device=device)
    adam = fused_adam(problem.m_params)
    data = [(t, t.clone()) for t in (problem.x, problem.y)]
    return graph_runner(inference_loop(problem, adam), data, adam, lambda: problem.states)


@dataclass(frozen=True)
class Race:
    """A setting at a batch size, for rivals that compile or for all others; ours takes part in both."""

    name: str
    batch: int
    compiled: bool = False

    @property
    def setting(self) -> Setting:
        """What is run."""
        return replace(SETTINGS[self.name], batch=self.batch)

    def contenders(self) -> list[Contender]:
        """All that compete, rivals first."""
        rows = [
            Contender("autograd", partial(of_loop, plain)),
            Contender("autograd, graph", rivals.autograd_graph),
            *(Contender("by hand, graph", rivals.hand_graph, p) for p in PRECISIONS),
            Contender("torch.compile, graph", rivals.compiled_graph, compiled=True),
            Contender("JAX", rivals.jax_scan, compiled=True),
        ]
        for backend in gpu.usable_backends():
            name = f"{OURS}, {backend}"
            rows.append(Contender(name, partial(of_loop, inference_loop), backend=backend))
            rows.append(Contender(name, partial(of_loop, esteps), backend=backend, kind=ESTEPS))
            if backend == "reference":
                continue
            # Triton compiles for every precision anew
            precisions = PRECISIONS if backend != "triton" or self.name == FIRST else PRECISIONS[:1]
            rows += [Contender(f"{name}, fused Adam", partial(of_loop, fused), p, backend) for p in precisions]
            rows += [Contender(f"{name}, one graph", in_one_graph, p, backend) for p in precisions]
            rows += [Contender(f"EM, {backend}", partial(of_loop, em_step), p, backend) for p in precisions]
        if self.compiled:
            return [c for c in rows if c.compiled or (c.ours and c.precision == "highest" and c.kind == EM)]
        return [c for c in rows if not c.compiled]


def parts() -> dict[str, list[Race]]:
    """All races by the part of a run that they are."""
    others = [name for name in SETTINGS if name != FIRST]
    return {
        "tutorial": [Race(FIRST, batch) for batch in FIRST_BATCHES],
        "others": [Race(name, BATCHES[0]) for name in others],
        "compiled": [Race(FIRST, FIRST_BATCHES[0], True), *(Race(name, BATCHES[0], True) for name in others)],
        "sizes": [Race(name, batch) for batch in BATCHES[1:] for name in others],
    }


def least_bytes(setting: Setting, kind: str) -> int:
    """What must move between the device's memory and its processor, if everything does so once.

    Input, target and parameters are read and the free states written. A batch also writes the parameters, and reads
    and writes Adam's two moments; E-steps alone start from states that they read.
    """
    ends, free = setting.sizes[0] + setting.sizes[-1], sum(setting.sizes[1:-1])
    parameters = sum((a + 1) * b for a, b in pairwise(setting.sizes))
    if kind == ESTEPS:
        return FLOAT * (setting.batch * (ends + 2 * free) + parameters)
    return FLOAT * (setting.batch * (ends + free) + 6 * parameters)


class TooLong(BaseException):
    """A compilation ran out of time. No Exception: a compiler that tries things out catches those."""


@contextmanager
def at_most(limit: float) -> Iterator[None]:
    """Stop what runs inside after so many seconds."""

    def stop(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Clock:
    """The time that compilations may still take in this run."""

    def __init__(self) -> None:
        self.left = COMPILING

    def build(self, contender: Contender, setting: Setting) -> Runner:
        """Make a contender.

        Raises:
            NotHereError: it is to compile no longer.
        """
        if not contender.compiled:
            return contender.make(setting, gpu.DEVICE)
        limit = min(self.left, ONE_COMPILATION)
        if limit <= 0:
            raise NotHereError(f"the {COMPILING:.0f} s for compilations are used up")
        start = time.perf_counter()
        try:
            with at_most(limit):
                return contender.make(setting, gpu.DEVICE)
        except TooLong:
            raise NotHereError(f"not compiled within {limit:.0f} s") from None
        finally:
            self.left -= time.perf_counter() - start


def adam_step(gradients: Sequence[Tensor]) -> list[Tensor]:
    """How far the first step of Adam moves parameters, in float64."""
    return [-ADAM_RATE * g / (g.abs() + EPS) for g in (g.double() for g in gradients)]


def check(contender: Contender, setting: Setting, runner: Runner, exact: Outcome) -> float:
    """Run the first batch and refuse what it comes to if it is further off than allowed.

    Parameters are compared by how Adam moved them for the gradients at hand: its first step is nearly a sign, and that
    of the rounding of a gradient that should be 0 is anyone's guess.

    Returns:
        How far off it is.
    """
    runner.batch()
    if runner.finish is not None:
        runner.finish()
    left, parameters = runner.left()
    if contender.kind == ESTEPS:
        off = relative(left.states, exact.states)
    else:
        off = left.deviation(exact)
        before = [p.detach().to(gpu.DEVICE) for p in make_edges(setting).parameters()]
        moved = [p.detach() - old for p, old in zip(parameters, before, strict=True)]
        require(relative(moved, adam_step(left.learned)), ROUNDING, "what Adam did to the parameters is")
    require(off, contender.allowed, "states or gradients are")
    return off


def ceilings() -> dict[str, Any]:
    """Rates of a copy, and of a matrix product at each precision: medians."""
    source = torch.ones(COPY_ELEMENTS, device=gpu.DEVICE)
    target = torch.zeros_like(source)
    a, b, out = (torch.rand(PRODUCT_WIDTH, PRODUCT_WIDTH, device=gpu.DEVICE) for _ in range(3))
    entries = {"copy": Entry(lambda: target.copy_(source))}
    entries |= {p: Entry(lambda: torch.mm(a, b, out=out), partial(precision, p)) for p in PRECISIONS}
    typical = {name: statistics.median(times) for name, times in gpu.alternate(entries, (7, 7)).items()}
    return {
        "copy_gb_per_s": 2 * FLOAT * COPY_ELEMENTS / typical["copy"] / 1e9,
        "product_tflop_per_s": {p: 2 * PRODUCT_WIDTH**3 / typical[p] / 1e12 for p in PRECISIONS},
    }


def measure(
    limit: float, wanted: Sequence[str], log: Callable[[str], None], save: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """All figures, saved after every race, with what was wrong or left out, and why.

    Args:
        limit: seconds after which no race is begun.
        wanted: names of parts.
        log: told what was measured.
        save: told all figures that there are.
    """
    start = time.perf_counter()
    rates = ceilings()
    result: dict[str, Any] = {
        "machine": gpu.machine() | rates | {"jax": rivals.version_of_jax()},
        "date": gpu.today(),
        "rows": [],
        "failures": [],
        "left_out": [],
    }
    clock = Clock()
    for race in (race for part in wanted for race in parts()[part]):
        at = {"setting": race.name, "batch": race.batch, "compiled": race.compiled}
        if time.perf_counter() - start > limit:
            result["left_out"].append(at | {"contender": "all", "reason": f"the {limit:.0f} s were over"})
            continue
        rows, troubles = run(race, clock, rates)
        for row in rows:
            result["rows"].append(at | row)
        for key, entries in troubles.items():
            result[key] += [at | entry for entry in entries]
        save(result)
        log(f"{race.name}, batch {race.batch}: {len(rows)} contenders, {time.perf_counter() - start:.0f} s so far")
        gc.collect()  # graphs hold on to their memory
        torch.cuda.empty_cache()
    save(result)
    return result


def serving() -> str:
    """What serves chains now: a backend leaves to the others what it has no kernel for."""
    at = "run_plan_", torch.device(gpu.DEVICE).type
    return next(s.backend for s in backends.report() if (s.operator, s.device) == at)


def run(
    race: Race, clock: Clock, rates: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, str]]]]:
    """Rows of a race; its failures, and what was left out."""
    setting = race.setting
    exact = exact_outcome(setting, gpu.DEVICE)
    entries: dict[str, Entry] = {}
    off: dict[str, float] = {}
    served: dict[str, str] = {}
    troubles: dict[str, list[dict[str, str]]] = {"failures": [], "left_out": []}
    by_key = {f"{c.name}, {c.precision}, {c.kind}": c for c in race.contenders()}
    for key, contender in by_key.items():
        who = {"contender": contender.name, "precision": contender.precision, "kind": contender.kind}
        try:
            with contender.at_work():
                runner = clock.build(contender, setting)
                off[key] = check(contender, setting, runner, exact)
                served[key] = serving() if contender.ours else contender.name
        except NotHereError as reason:
            troubles["left_out"].append(who | {"reason": str(reason)})
        except Exception as error:
            troubles["failures"].append(who | {"reason": gpu.reason(error)})
        else:
            entries[key] = Entry(runner.batch, contender.at_work, runner.finish)

    rows = []
    for key, times in gpu.alternate(entries, ROUNDS, BUDGET).items():
        contender, typical = by_key[key], statistics.median(times)
        flops = setting.flops if contender.kind == EM else setting.estep_flops
        rate = flops / typical
        moved = least_bytes(setting, contender.kind)
        rows.append(
            {
                "kind": contender.kind,
                "contender": contender.name,
                "precision": contender.precision,
                "ours": contender.ours,
                "served_by": served[key],
                "clock": "device" if entries[key].finish is None else "host",
                "seconds": typical,
                "best_seconds": min(times),
                "rounds": len(times),
                "tflop_per_s": rate / 1e12,
                "of_arithmetic": rate / 1e12 / rates["product_tflop_per_s"][contender.precision],
                "of_memory": moved / typical / 1e9 / rates["copy_gb_per_s"],
                "off": off[key],
                "allowed": contender.allowed,
            }
        )
    return rows, troubles


def table(result: dict[str, Any]) -> str:
    """The fastest of ours against the fastest rival, aligned for a terminal, and what is missing."""
    m = result["machine"]
    products = ", ".join(f"{rate:.0f} at {p}" for p, rate in m["product_tflop_per_s"].items())
    lines = [
        gpu.title(result),
        f"copy {m['copy_gb_per_s']:.0f} GB/s; product {products} TFLOP/s",
        "at medium the product is TF32, as torch has it there, and ours in one kernel is bfloat16",
        "microseconds a batch; of which floor: share of the product rate, of the copy rate",
        f"{'setting':20}{'batch':>6}  {'ours':21}{'time':>9}{'TFLOP/s':>9}{'of arith.':>10}{'of mem.':>9}  "
        f"{'fastest rival':21}{'time':>9}{'ratio':>8}{'E-steps':>9}{'high':>9}{'medium':>9}",
    ]
    races: dict[tuple[str, int, bool], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        races.setdefault((row["setting"], row["batch"], row["compiled"]), []).append(row)
    for (name, batch, _), rows in races.items():
        ours = {p: fastest(rows, ours=True, precision=p) for p in PRECISIONS}
        mine, rival = ours["highest"], fastest(rows, ours=False, precision="highest")
        alone = fastest(rows, kind=ESTEPS, ours=True)
        served = ", ".join([mine["served_by"], *mine["contender"].split(", ")[2:]]) if mine else "none"
        ratio = f"{rival['seconds'] / mine['seconds']:.2f}x" if mine and rival else ""
        lines.append(
            f"{name:20}{batch:>6}  {served:21}{micro(mine):>9}"
            f"{number(mine, 'tflop_per_s', 2):>9}{number(mine, 'of_arithmetic', 3):>10}"
            f"{number(mine, 'of_memory', 4):>9}  {rival['contender'] if rival else 'none':21}{micro(rival):>9}"
            f"{ratio:>8}{micro(alone):>9}{micro(ours['high']):>9}{micro(ours['medium']):>9}"
        )
    for key, word in (("failures", "failed"), ("left_out", "left out")):
        where: dict[tuple[str, str], list[str]] = {}
        for f in result[key]:
            who = ", ".join(f[k] for k in ("contender", "precision", "kind") if k in f)
            where.setdefault((who, f["reason"]), []).append(f"{f['setting']} {f['batch']}")
        lines += [f"{word}: {who}: {reason} ({', '.join(at)})" for (who, reason), at in where.items()]
    return "\n".join(lines)


def fastest(rows: list[dict[str, Any]], kind: str = EM, **what: object) -> dict[str, Any] | None:
    some = [row for row in rows if row["kind"] == kind and all(row[k] == v for k, v in what.items())]
    return min(some, key=lambda row: row["seconds"], default=None)


def micro(row: dict[str, Any] | None) -> str:
    return f"{row['seconds'] * 1e6:.1f}" if row else ""


def number(row: dict[str, Any] | None, key: str, digits: int) -> str:
    return f"{row[key]:.{digits}f}" if row else ""


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = gpu.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=220.0, help="begin nothing after these (default: 220)")
    parser.add_argument("--parts", nargs="+", choices=[*parts()], default=[*parts()], help="in this order")
    options = parser.parse_args(arguments)
    return gpu.command(options, "bench.gpu_em", partial(measure, options.seconds, options.parts), table)


if __name__ == "__main__":
    sys.exit(main())
