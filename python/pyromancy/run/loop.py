"""The inference loop as one call."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import math
import numbers
import operator
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.nn as nn
from torch import Tensor
from torch._compile import _disable_dynamo  # as torch.compiler.disable, without importing the compiler at once
from torch.multiprocessing.reductions import StorageWeakRef

from .. import backends, functional, plan
from ..arguments import check_energy_argument
from ..capture import language  # noqa: F401 (tells nodes what laws may be made of)
from ..capture.apart import apart
from ..capture.capture import NotCapturable, Recording, capture, check, obstacle
from ..capture.errors import NoErrors
from ..capture.joined import joined
from ..capture.lowering import NotAChain, idle, lower
from ..capture.normal import normal
from ..capture.program import Program, form_of
from ..capture.watch import PROVEN_AFTER
from ..diagnose import max_rate
from ..methods import ZIL, Adam, Descent, FixedPrediction, Langevin, Method, Rated, Stop
from ..methods.base import rows
from ..nodes.base import StateNode
from ..plan import Law
from ..registration import is_learned, is_state
from . import readings, stepwise
from .autograd import AutogradExecutor
from .chain import ChainExecutor
from .distributed import check_whole
from .executor import Executor, ReplayingExecutor, Run, check_energy
from .graph import GraphExecutor
from .objective import OnAutograd, OnErrors, OnFixedPredictions, OnStates, Problem, check_samples
from .replay import Replay
from .steppers import Carried
from .stepwise import Resumed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_M = TypeVar("_M", bound=Callable[..., Any])
_P = TypeVar("_P", bound=Problem)
_C = TypeVar("_C")
EXECUTORS = ("chain", "graph", "autograd")
_FUSED = "fused: all sweeps in one operator"
_STATELESS = (
    *(bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, torch.layout),
    *(BuiltinFunctionType, torch.Size),
)
# Runs on autograd after which something faster is tried again, at most: after a capture, which takes about as long
# as a few steps; and after a trace, which takes a hundred times as long, and fails again unless its cause has passed.
_PATIENCE = 31
_LONG_PATIENCE = 1023
# Energies that a loop is ready for at a time: in all, as of different batch sizes; and on states of one form, as of
# phases that weigh their terms differently, each of which takes a dry run to tell from the others.
READY = 64
ALIKE = 8


@dataclass(frozen=True, eq=False)
class _Ready:
    """An energy that was captured, on states of these forms; while another has its turn its program rests."""

    forms: list[tuple[Any, ...]]
    program: Program
    executor: Executor
    reasons: dict[str, str]


@dataclass(frozen=True)
class Trace:
    """What a run did.

    Attributes:
        steps: number of E-steps.
        energies: with ``record=True``, the energy of every term (node) before every step and after the last, means over
            samples, ``[steps + 1, terms]``; else None. Autograd records the total as one term.
        taken: E-steps of every sample, int64 ``[B]``; None of descent on states without `tol`, and of a batch of `EM`
            that is one call without `tol`, where all samples took all steps.
        converged: with `tol`, whether a sample stopped by itself, ``[B]``; else None.
        names: of the terms whose energies are recorded; those of nodes are called as their states are.
    """

    steps: int
    energies: Tensor | None = None
    taken: Tensor | None = None
    converged: Tensor | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, outcome: Tensor) -> Trace:
        """Of what an operator tells of every sample, ``[B, 2]``: the sweeps it took, and 1 where it stopped."""
        taken, stopped = outcome.unbind(1)
        return cls(int(taken.max()) if len(taken) else 0, None, taken.long(), stopped.bool())

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the recorded energies over the steps, by `pyromancy.plots.energies`."""
        from .. import plots  # which needs matplotlib

        return plots.energies(self, ax)


def _normally(method: _M) -> _M:
    """Run a method outside inference mode, where what it makes could not be used after that mode.

    Unless the states were made in it, and can be written nowhere else. Compilers do not look into it: what it calls
    depends on more than they would see, and has been compiled already.
    """

    @functools.wraps(method)
    def outside(self: InferenceLoop, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return uncompiled(self, *args, **kwargs)
        if not torch.is_inference_mode_enabled() or any(p.is_inference() for p in self._params):
            return method(self, *args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return method(self, *args, **kwargs)

    uncompiled = _disable_dynamo(outside)
    return cast("_M", outside)


class InferenceLoop:
    """Runs E-steps of an energy without autograd, where it can, and says what it does.

    ``run(T)`` computes what this loop computes, to rounding::

        for _ in range(T):
            optimizer.zero_grad()
            energy().sum().backward(inputs=params)
            optimizer.step()  # torch.optim.SGD(params, lr, momentum, dampening, nesterov=nesterov)

    The energy is captured once: which states, parameters and operations make each prediction. Before every run a dry
    run of the callable, which computes nothing, compares it with what was captured, unless nothing has changed that it
    can reach; where they differ it is captured again. So changed weights, replaced parameters, new batch sizes, dtypes,
    devices and train or eval mode are all noticed; tensors that nothing learns, such as a batch's data, may be replaced
    without another capture.

    Once captured, the callable runs twice per run at most, however many steps there are, so it must have no effects
    that matter, such as counting. It is never cut off, so caches that it fills and flags that it clears are whole.
    Tensors that it stores (``self.error = ...``, pruning, hooks that log) hold afterwards what they are at the states
    that the run ended in. What a dry run cannot see: values that the callable takes from elsewhere than PyTorch's
    functions of fixed tensors, such as a NumPy array.

    On a GPU all steps of a run are one CUDA graph, where no kernel waits for its launch: captured at the second run of
    its kind, replayed from then on. Another number of steps or rate, moved parameters or another choice of kernels
    make it another kind; new states and data do not.

    What a momentum or another method remembers starts anew when a state was set since the last run, as by `init`.

    Args:
        energy: zero-argument callable returning per-sample energies, ``[B]``; one number for states of several samples
            counts as one sample, with a warning.
        params: the free states, as `pyromancy.get_estep_params` gives them.
        lr: E-step rate; this and the next three are the short form of `pyromancy.methods.Descent` on states.
        momentum: as in `torch.optim.SGD`.
        dampening: as in `torch.optim.SGD`.
        nesterov: as in `torch.optim.SGD`.
        method: how E-steps move, of `pyromancy.methods`, in the place of these four.
        reduction: "sum" descends the energy summed over the batch, "mean" its mean.
        executor: "chain", "graph" or "autograd" to insist on one; None takes the fastest that can.
        check_finite: whether to look at all states after every E-step, and raise where one is NaN or infinite. The
            steps then are as many runs, which takes longer.

    Raises:
        TypeError: `energy` is not callable, or of a network that is wrapped or spread over processes; a parameter is
            not a tensor, a rate is not a number, or neither a rate nor a method is given.
        ValueError: no parameters, one given twice or frozen, a rate beside a method, or another argument out of range;
            the message says which.
    """

    def __init__(
        self,
        energy: Callable[[], Tensor],
        params: Iterable[nn.Parameter],
        lr: float | None = None,
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        method: Method | None = None,
        reduction: str = "sum",
        executor: str | None = None,
        check_finite: bool = False,
    ) -> None:
        check_energy_argument(energy)
        self._params = _listed(
            params, "pyromancy.get_estep_params", ", and a network without hidden nodes has no free state"
        )
        if len({id(p) for p in self._params}) < len(self._params):
            raise ValueError("params must hold every state once, got one of them twice")
        modules = [module for root in _reached(energy).values() for module in root.modules()]
        check_whole("energy", modules, {called: p for called, _, _, p in _parameters(energy)})
        self._energy, self._wanted = energy, executor
        self.lr: Any = lr
        self.momentum, self.dampening, self.nesterov = momentum, dampening, nesterov
        self._method = self._taken_apart(method)
        self.check_options()
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
        if executor is not None and executor not in EXECUTORS:
            raise ValueError(f"executor must be one of {', '.join(EXECUTORS)} or None, got {executor!r}")
        if reduction != "sum" and self._method is not None:
            raise ValueError(
                f"reduction must be 'sum' with {type(method).__name__}, which descends samples by themselves"
            )
        self.reduction, self.check_finite = reduction, check_finite
        if learned := _learned(energy, self._params):
            _warn(
                f"params are the states that E-steps move, and hold what is learned: {', '.join(learned)}; "
                "pyromancy.get_estep_params(net) gives the states alone"
            )
        self._program: Program | None = None
        self._executor: Executor | None = None
        self._reasons: dict[str, str] = {}  # executor -> why it cannot run this energy
        self._ready: list[_Ready] = []  # for what the energy has been, latest last
        self._captures = self._given_up = 0
        self._change: str | None = None  # which the last capture was for
        self._refusals = self._patience = 0  # failed attempts in a row, and runs until the next
        self._training: list[bool] = []  # the modes of the modules at the last attempt
        self._replay = Replay()
        self._velocities: list[Tensor] | None = None
        self._resumed: tuple[tuple[Any, ...], Resumed | Carried] | None = (
            None  # whose, and what another run goes on from
        )
        self._runner: list[str] = []  # how the last run was run, where it was not the executor's
        self._seen: list[tuple[Any, ...]] = []  # the memory of the states in the last run with a momentum
        self._begun: list[tuple[Any, ...]] = []  # and in the last that was begun
        self._taken = 0  # E-steps since the states were set
        self._lost = False  # whether the last run left states that are not finite

    @property
    def program(self) -> Program | None:
        """What was captured; None before the first run, and where the energy cannot be captured."""
        return self._program

    @property
    def method(self) -> Method:
        """How E-steps move."""
        return self._method or Descent(self.lr, self.momentum, self.dampening, self.nesterov)

    def _taken_apart(self, method: Method | None) -> Method | None:
        """A method, but None for descent on states, whose rates become the loop's."""
        if method is None:
            if self.lr is None:
                raise TypeError("lr or method must be given, got neither")
            return None
        if not isinstance(method, Method):
            raise TypeError(f"method must be of pyromancy.methods, such as Accelerated(), got {method!r}")
        if (self.lr, self.momentum, self.dampening, self.nesterov) != (None, 0.0, 0.0, False):
            raise ValueError("method must be given without lr, momentum, dampening and nesterov, which are its own")
        if not (isinstance(method, Descent) and method.coordinates == "states" and method.is_plain):
            return method
        self.lr, self.momentum = method.lr, method.momentum
        self.dampening, self.nesterov = method.dampening, method.nesterov
        return None

    @_normally
    def run(self, steps: int, record: bool = False, tol: float | None = None) -> Trace:
        """Run E-steps in place on the states.

        Args:
            steps: how many; with `tol` at most.
            record: whether to return the energies before every step and after the last.
            tol: where what a sample's energy can still fall is at most this share of what it has fallen, or looks like
                that, the sample stops; see `pyromancy.methods.Stop`. None runs all steps.

        Returns:
            What was done.

        Raises:
            TypeError: `steps` is not an integer, or `tol` no number.
            ValueError: `steps` is negative, or 0 with `tol`; an option set since, or a state, is not what the
                constructor takes; the energy does not depend on a state; there is none per sample to record or to
                decide by; `tol` is not above 0; or the method cannot run this energy, or not to a tolerance.
            RuntimeError: the executor that was insisted on cannot run this energy, or this method.
            FloatingPointError: a state is not finite, where `check_finite` asks for that.
        """
        try:
            steps = operator.index(steps)
        except TypeError:
            raise TypeError(f"steps must be an integer, got {steps!r}") from None
        if steps < 0:
            raise ValueError(f"steps must not be negative, got {steps}")
        self.check_options()
        if not isinstance(record, bool):
            raise TypeError(f"record must be True or False, got {record!r}; tol={record!r} stops samples")
        stop = None if tol is None else Stop(tol)
        if stop is not None and steps == 0:
            raise ValueError("steps must be above 0 with tol, which is looked at in every step, got 0")
        if stop is not None and not self.method.converges:
            raise ValueError(f"tol must be None with {type(self.method).__name__}, which does not converge")
        try:
            if self._method is not None or stop is not None:
                return self._run_method(steps, record, stop)
            return self._run_checked(steps, record) if self.check_finite else self._run(steps, record)
        finally:
            self.restore()

    def _run_checked(self, steps: int, record: bool) -> Trace:
        """One E-step at a time, before and after each of which all states must be finite."""
        traces = [self._run(0, record)]
        self._check_finite()
        for _ in range(steps):
            traces.append(self._run(1, record))
            self.restore()
            self._check_finite()
        last = traces[-1]
        energies = [t.energies[:1] for t in traces[1:] if t.energies is not None]
        energies += [] if last.energies is None else [last.energies[-1:]]
        return replace(last, steps=steps, energies=torch.cat(energies) if energies else None)

    def _check_finite(self) -> None:
        for p in self._params:
            wrong = ~p.detach().isfinite()
            if wrong.any():
                place = wrong.nonzero()[0].tolist()
                name = names_of(self._energy).get(id(p), "a state")
                when = f"after E-step {self._taken}" if self._taken else "before the first E-step"
                raise FloatingPointError(f"{name}{place} is {p.detach()[tuple(place)].item()} {when}")

    def _run(self, steps: int, record: bool) -> Trace:
        executor, memory = self.prepared(), self._memory()
        if self._begun != memory:
            self._taken = 0
        if steps == 0:  # not even a velocity has begun
            return self._recorded(Trace(0), executor, None) if record else Trace(0)
        lr, momentum, dampening = float(self.lr), float(self.momentum), float(self.dampening)
        mean = self.reduction == "mean"
        if self._program is not None:
            result = self._program.stand_ins[self._program.result]
            check_energy(result, record)
            lr, mean = lr / max(1, result.numel()) if mean else lr, False
        resume = self._velocities is not None and self._seen == memory
        if not resume:
            self._velocities = [p.new_zeros(p.shape) for p in self._params] if momentum else None
        settle, self._begun = settles(self._params[0].device) and self._begun != memory, memory
        run = Run(steps, lr, momentum, dampening, self.nesterov, resume, record, settle, mean)
        energies = executor.run(run, self._velocities if momentum else None)
        self._taken += steps
        for reason in (self._one_number(executor), self._one_row(executor)):
            if reason:
                _warn(reason)
        if self._velocities is not None:
            self._seen = self._memory()
        if isinstance(executor, ChainExecutor):
            self.note_divergence(executor.diverged)
        elif self._params[0].is_cpu:  # another device would be waited for
            self.note_divergence_of_states()
        return self._recorded(Trace(steps), executor, energies) if record else Trace(steps)

    def _recorded(self, trace: Trace, executor: Executor, before: Tensor | None) -> Trace:
        """With the energies that were recorded before every step, ``[steps, terms, B]``, and those that there are."""
        after = self._read_energies(executor)[1].unsqueeze(0)
        energies = after if before is None else torch.cat([before, after])
        return replace(trace, energies=energies.mean(2), names=self._names_of_terms(executor))

    def _names_of_terms(self, executor: Executor) -> tuple[str, ...]:
        program = executor.program if isinstance(executor, ReplayingExecutor) else None
        return ("energy",) if program is None else readings.names_of_terms(program)

    def _read_energies(self, executor: Executor) -> tuple[tuple[str, ...], Tensor]:
        """Of every term at the states as they are, ``[terms, B]``, and what they are called."""
        if isinstance(executor, ReplayingExecutor):
            check_energy(executor.program.stand_ins[executor.program.result], record=True)
            return self._names_of_terms(executor), readings.energies(executor.program)
        with torch.no_grad():
            energy = self._energy()
        check_energy(energy, record=True)
        return self._names_of_terms(executor), energy.unsqueeze(0)

    def _run_method(self, steps: int, record: bool, stop: Stop | None) -> Trace:
        """By a method, or to a tolerance: in one operator, or stepwise."""
        method, executor, memory = self.method, self.prepared(), self._memory()
        if self._begun != memory:
            self._taken = 0
        if isinstance(executor, ChainExecutor) and not isinstance(found := self.fused(stop), str):
            return self._run_fused(found, executor, steps, record, stop)
        problem, self._runner = self._problem(method, stop, executor)
        whose = problem, method, self._read() if method.remembers_energy else ()
        resumed = None
        if self._resumed is not None and self._resumed[0] == whose and self._seen == memory:
            resumed = cast("Resumed", self._resumed[1])
        self._begun, taken = memory, self._taken

        def watch(count: int) -> None:
            self._taken = taken + count
            self._check_finite()

        starts = [p.detach().clone() for p in self._params]
        outcome = stepwise.run(method, problem, steps, stop, record, resumed, watch if self.check_finite else None)
        self._taken = taken + outcome.steps
        whose = problem, method, self._read() if method.remembers_energy else ()
        self._resumed, self._seen = (whose, outcome.resumed), self._memory()
        self._runner += stopping_in_words(stop, problem.bound, method.is_constrained)
        self.note_divergence(not self._are_finite(), starts)
        trace = Trace(outcome.steps, None, outcome.taken, outcome.converged)
        if outcome.energies is None:
            return trace
        program = getattr(problem, "program", None)
        names = ("energy",) if program is None else readings.names_of_terms(program)
        return replace(trace, energies=outcome.energies.mean(2), names=names)

    @property
    def rated(self) -> Rated | None:
        """The method, where its steps do more than go by one rate."""
        return self._method if isinstance(self._method, Rated) and not self._method.is_plain else None

    @property
    def has_method(self) -> bool:
        """Whether E-steps are other than descent on states."""
        return self._method is not None

    def fused(self, stop: Stop | None) -> plan.Stepper | plan.Descent | str:
        """The method as plans of chains have it; or why they have none."""
        if self.check_finite:
            return "check_finite looks at every step"
        if self._wanted not in (None, "chain"):
            return f"executor {self._wanted!r} was asked for"
        if self._method is None and stop is None:
            return "plain descent of so many steps is the executor's"
        if not isinstance(self._executor, ChainExecutor):
            return "the energy is no chain"
        return self._executor.fused(self.method, stop)

    def _run_fused(
        self, method: plan.Stepper | plan.Descent, executor: ChainExecutor, steps: int, record: bool, stop: Stop | None
    ) -> Trace:
        check_samples(executor.program.stand_ins[executor.program.result], self._params)
        memory = self._memory()
        # with ZIL what has not had its turn in runs before is still where a sweep has set it
        settle = settles(self._params[0].device) and (self._begun != memory or isinstance(self.method, ZIL))
        whose = executor, self.method, self._read() if self.method.remembers_energy else ()
        last: Carried | None = None
        if self._resumed is not None and self._resumed[0] == whose and self._seen == memory:
            last = cast("Carried", self._resumed[1])
        factors = self.method.factors(0 if last is None else last.taken, steps)
        self._resumed = None
        seed = 0.0
        if steps and last is None and isinstance(self.method, Langevin):
            seed = float(self.method.seed(self._params[0].device))
        starts = [] if self.method.measures else [p.detach().clone() for p in self._params]
        energies, outcome, carried = executor.run_method(method, steps, record, settle, last, seed, self.rated, factors)
        whose = executor, self.method, self._read() if self.method.remembers_energy else ()
        self._begun = self._seen = self._memory()
        if steps or last is not None:
            self._resumed = whose, carried
        trace = Trace.of(outcome)
        self._taken += trace.steps
        self._runner = [_FUSED, *stopping_in_words(stop, executor.bound, self.method.is_constrained)]
        self.note_divergence(executor.diverged, starts)
        trace = replace(trace, converged=None if stop is None else trace.converged)
        return trace if energies is None else self._recorded(trace, executor, energies[: trace.steps])

    def _read(self) -> list[Any]:
        """What the energy reads, as far as is known: which tensors, and how often they have been written to."""
        program = self._program
        read = [*self._params, *_tensors(self._energy)] if program is None else program.leaves
        written = [None if t.is_inference() else t._version for t in read]
        if program is not None:
            return [program.replacements, *written]
        return [*written, *((StorageWeakRef(t.untyped_storage()), t.data_ptr(), t.shape) for t in read)]

    def _problem(self, method: Method, stop: Stop | None, executor: Executor) -> tuple[Problem, list[str]]:
        """What a method runs on, and how it is run."""
        reason = self.fused(stop)
        assert isinstance(reason, str)
        if self._wanted == "chain":
            raise RuntimeError(f"executor 'chain' cannot run {method!r}: {reason}")
        kind = method.moves, method.moves == "errors" and method.measures
        if kind not in executor.problems:
            executor.problems[kind] = self._posed(method, executor)
        problem = executor.problems[kind]
        how = "on autograd" if isinstance(problem, OnAutograd) else "on what was captured"
        return problem, [f"stepwise, {how}", f"not fused: {reason}"]

    def _posed(self, method: Method, executor: Executor) -> Problem:
        program, on_errors = self._program, method.moves == "errors"
        reason = "; ".join(self._reasons.values()) or "executor 'autograd' was asked for"
        if program is not None and not isinstance(executor, AutogradExecutor):
            if program.addresses_memory:
                reason = "it takes elements by their places in memory"
            else:
                try:
                    if isinstance(method, FixedPrediction):
                        return _of_nodes(program, lambda of: OnFixedPredictions(of, self._params))
                    if not on_errors:
                        return OnStates(program, self._params)
                    return _on_errors(program, self._params, method.measures)
                except NoErrors as refusal:
                    what = "coordinates='errors'" if on_errors else type(method).__name__
                    raise ValueError(f"{what} cannot be used: {refusal}") from None
                except NotCapturable as refusal:
                    reason = str(refusal)
        if on_errors or isinstance(method, FixedPrediction):
            what, instead = (
                ("coordinates='errors'", "coordinates='states'") if on_errors else ("fixed predictions", "ZIL")
            )
            raise ValueError(
                f"{what} need an energy that is captured, and this one is not: {reason}; {instead} can be used"
            )
        return OnAutograd(self._energy, self._params)

    def note_divergence(self, diverged: bool, starts: Sequence[Tensor] = (), learned: Collection[int] = ()) -> None:
        """Warn where states are no longer finite.

        Args:
            diverged: whether they are not.
            starts: what they were before; by default their predictions serve.
            learned: the ids of what has learned from them since.
        """
        if diverged and not self._lost and not self.check_finite:
            _warn(self._diverged(self.method, starts, learned))
        self._lost = diverged

    def note_divergence_of_states(self) -> None:
        """Warn where states are no longer finite."""
        self.note_divergence(not self._are_finite())

    def _are_finite(self) -> bool:
        # of the extremes, in one pass: each is NaN where an element is
        states = [p.detach() for p in self._params if p.numel()]
        states = [torch.view_as_real(p) if p.is_complex() else p for p in states]
        return all(math.isfinite(x) for p in states for x in (float(e) for e in torch.aminmax(p)))

    def _predictions(self) -> list[Tensor]:
        """The free states of a forward sweep; 0 where nothing predicts them."""
        assert self._program is not None
        problem = _on_errors(self._program, self._params, measured=False)
        problem.begin()
        problem.point = [torch.zeros_like(x) for x in problem.point]
        problem.end()
        problem.release()
        return [p.detach().clone() for p in self._params]

    def _not_finite(self) -> list[int]:
        """The leaves beside the states that are not finite, but for data that may have gaps."""
        program = self._program
        if program is None:
            return []
        gaps = {s for call in program.calls if call.meaning == "where" for s in call.inputs}
        fixed = [(i, t) for i, t in enumerate(program.leaves) if i not in program.free | gaps]
        return [i for i, t in fixed if t.is_floating_point() and not bool(t.isfinite().all())]

    def _diverged(self, method: Method, starts: Sequence[Tensor], learned: Collection[int]) -> str:
        """That states are not finite, in a sentence, and in another what to do."""
        rate = getattr(method, "lr", None)
        how = type(method).__name__ + (f"(lr={rate:g})" if isinstance(rate, numbers.Real) else "")
        with torch.no_grad():
            wrong = torch.stack([(~rows(p).isfinite()).any(1) for p in self._params]).any(0)
            told = f"states of {int(wrong.sum())} of {len(wrong)} samples are not finite after {how}"
            if odd := self._not_finite():
                assert self._program is not None
                told = f"{told}, nor {'is' if len(odd) == 1 else 'are'} {_few([*map(self._program.in_words, odd)])}"
                if not all(id(self._program.leaves[i]) in learned for i in odd):
                    return f"{told}, which the energy reads. Make anew what has learned from such states or data"
                return (
                    f"{told}, which learn from them. Make these anew, and take a lower rate (pyromancy.max_rate) or "
                    "pyromancy.methods.Accelerated(), which needs none"
                )
            if rate is None:
                return f"{told}. check_finite=True tells where, and when first"
            if method.moves == "errors" or isinstance(method, Adam):  # whose rates are others than those of descent
                return f"{told}. pyromancy.methods.Accelerated() needs no rate"
            ends = [p.detach().clone() for p in self._params]
            try:
                for p, start in zip(self._params, starts or self._predictions(), strict=True):
                    p.copy_(start)
                stable = max_rate(self._energy, self._params)
            except Exception:  # what is told stays true without it
                return f"{told}. Take a lower rate, or pyromancy.methods.Accelerated(), which needs none"
            finally:
                for p, end in zip(self._params, ends, strict=True):
                    p.copy_(end)
        if not math.isfinite(stable):
            return f"{told}. pyromancy.max_rate tells beforehand which rates are stable"
        where = "where they began" if starts else "at their predictions"
        return (
            f"{told}. Take a rate below {stable:.3g}, up to which descent is stable {where} (pyromancy.max_rate), or "
            "pyromancy.methods.Accelerated(), which needs none"
        )

    def energy(self) -> Tensor:
        """Energies of the states at hand, per sample, ``[B]``, without gradient."""
        with torch.no_grad():
            energy = self._energy()
        check_energy(energy, record=False)
        return energy

    @_normally
    def node_energies(self) -> dict[str, Tensor]:
        """Energies of every term (node) at the states at hand, per sample, ``[B]``, by their names.

        Nodes are called as the energy reaches their states, such as ``"hidden"`` or ``"nodes.1"``. Where the energy is
        not captured there is the total alone, ``"energy"``.

        Raises:
            ValueError: the energy is not one number per sample.
        """
        try:
            return dict(zip(*self._read_energies(self.prepared()), strict=True))
        finally:
            self.restore()

    @_normally
    def errors(self) -> dict[str, Tensor]:
        """Errors of all nodes at the states at hand, of the shape of their predictions, by the names of their states.

        An error is minus the gradient of the node's energy for its prediction, as the nodes' own `error`: ``(z - mu) /
        variance`` of Gaussian nodes, ``z - softmax(mu)`` of categorical ones. A node that nothing predicts, as one with
        a prior, is pulled to 0 by it.

        Raises:
            RuntimeError: the energy cannot be captured, so that there are no predictions to be told.
        """
        try:
            executor = self.prepared()
            if not isinstance(executor, ReplayingExecutor):
                reason = "; ".join(self._reasons.values()) or "executor 'autograd' was asked for"
                raise RuntimeError(f"errors need an energy that is captured, and this one is not: {reason}")
            return readings.errors(executor.program)
        finally:
            self.restore()

    @_normally
    def gradients(self) -> dict[str, Tensor]:
        """Gradients of the energy for every free state, summed over samples, by the names of the states.

        They are 0 at equilibrium. No ``.grad`` is touched.
        """
        try:
            self.prepared()
            with torch.enable_grad():
                found = torch.autograd.grad(self._energy().sum(), self._params, materialize_grads=True)
        finally:
            self.restore()
        named = names_of(self._energy)
        names = readings.distinct(named.get(id(p), f"a state {[*p.shape]}") for p in self._params)
        return dict(zip(names, found, strict=True))

    @_normally
    def backward(self, params: Iterable[nn.Parameter]) -> None:
        """Accumulate into ``.grad`` of parameters what ``energy().mean().backward(inputs=params)`` would.

        Args:
            params: M-step parameters, as `pyromancy.get_mstep_params` gives them; what is frozen is passed over.

        Raises:
            TypeError: `params` is not an iterable of tensors.
            ValueError: it holds none, as an iterator that has been used up.
        """
        wanted = list({id(p): p for p in _listed(params, "pyromancy.get_mstep_params")}.values())
        try:
            executor = self.prepared()
            found: list[Tensor | None] | str | None = self._fixed_gradients(wanted, executor)
            if found is None:
                found = executor.gradients(wanted, settles(self._params[0].device) and self._begun != self._memory())
            if isinstance(found, str):
                self._reasons["fused M-step gradients"] = found
                learned = [p for p in wanted if p.requires_grad]
                with torch.enable_grad():
                    if learned:
                        evaluated = executor.take_evaluated() if isinstance(executor, AutogradExecutor) else None
                        (self._energy() if evaluated is None else evaluated).mean().backward(inputs=learned)
                return
        finally:
            self.restore()
        self._reasons.pop("fused M-step gradients", None)
        for p, gradient in zip(wanted, found, strict=True):
            if gradient is None or not p.requires_grad:
                continue
            if p.grad is None:
                p.grad = gradient
            else:
                with torch.no_grad():
                    if p.grad.layout is gradient.layout:
                        p.grad.add_(gradient)
                    else:
                        p.grad = gradient + p.grad

    def _fixed_gradients(self, wanted: list[Tensor], executor: Executor) -> list[Tensor | None] | None:
        """Those at fixed predictions, where the states came of them."""
        if self._resumed is None or self._seen != self._memory():
            return None
        (problem, *_), resumed = self._resumed
        if problem is executor and isinstance(executor, ChainExecutor) and isinstance(self._method, FixedPrediction):
            kept = cast("Carried", resumed).kept
            found = executor.gradients(wanted, False, kept)
            if not isinstance(found, str):
                return found
            return OnFixedPredictions(executor.program, self._params).gradients(wanted, executor.in_order(kept))
        if not isinstance(problem, OnFixedPredictions) or problem not in executor.problems.values():
            return None
        return problem.gradients(wanted, cast("Resumed", resumed).state.states)

    @_normally
    def explain(self) -> str:
        """Which executor runs the steps, on which states, what it hoists, and what keeps a faster one from it.

        Also what may not be meant, and where the energy was captured more than once, why, and how many are kept.

        Of the last run or `backward`; before the first, of the energy as it is, which is evaluated for that.
        """
        executor = self._executor
        if executor is None or (self._method is not None and not self._runner):  # no run of its method yet
            executor = self.prepared()
            if self._wanted == "autograd":
                self.energy()
            self.restore()
        named = names_of(self._energy)
        moved = ", ".join(f"{named.get(id(p), 'a state')} {list(p.shape)}" for p in self._params)
        how = [] if self._method is None and not self._runner else [f"method: {self.method!r}", *self._how(executor)]
        notes = [f"E-steps move {moved}", *how, *self._doubts(executor, named), *executor.notes(), *self._history()]
        lines = [f"executor: {executor.name}", *(f"  {note}" for note in notes)]
        lines += [f"not {name}: {reason}" for name, reason in self._reasons.items()]
        return "\n".join(lines)

    def _how(self, executor: Executor) -> list[str]:
        if not self._runner and isinstance(executor, ChainExecutor) and not isinstance(self.fused(None), str):
            return [_FUSED]
        return self._runner or self._problem(self.method, None, executor)[1]

    def _doubts(self, executor: Executor, named: dict[int, str]) -> list[str]:
        """What may not be meant."""
        doubts = [reason for reason in (self._one_number(executor), self._one_row(executor)) if reason]
        if (program := self._program) is not None:
            laws = {t.node.state: t.node.law for t in program.terms if t.node is not None}
            for slot in idle(program):
                name, law = named.get(id(program.leaves[slot]), "a state"), laws[slot]
                moves = " and moves to its prediction" if law.is_of_distance else ""
                if law in (Law.BERNOULLI, Law.POISSON):
                    moves = " and never rests, as its energy has no least"
                doubts.append(f"{name} predicts nothing{moves}: exclude a target")
            for call in program.calls:
                of_node = call.function is functional.categorical_energy
                if not of_node and call.meaning != "cross_entropy":
                    continue
                logits = program.producer.get(call.inputs[of_node])
                if logits is not None and logits.name == "softmax":
                    doubts.append(
                        "a cross-entropy takes logits, and is given probabilities, of softmax: leave that out"
                    )
        return doubts

    def _one_number(self, executor: Executor) -> str | None:
        """What it means that the energy is one number for a whole batch, where it is."""
        samples = max((p.shape[0] for p in self._params if p.dim() > 1), default=1)
        if executor.shape != () or samples < 2:
            return None
        return (
            f"the energy is one number for states of {samples} samples, not one per sample, [B]: the states descend "
            f"it as it is, a mean over the batch at 1/{samples} of the rate"
        )

    def _one_row(self, executor: Executor) -> str | None:
        """What it means that a state has one row where the energy has more samples."""
        shape = executor.shape
        if shape is None or len(shape) != 1 or shape[0] < 2:
            return None
        shared = [p for p in self._params if p.dim() > 1 and p.shape[0] == 1]
        if not shared:
            return None
        named = names_of(self._energy)
        told = ", ".join(f"{named.get(id(p), 'a state')} {list(p.shape)}" for p in shared)
        return (
            f"the energy is of {shape[0]} samples, which share {told}, without a row of their own, and move it together"
        )

    def _history(self) -> list[str]:
        """Why the callable is run dry before every run, and what captures there were, where it was more than one."""
        watching = [f"run dry before every run: {reason}"] if (reason := self._dry()) else []
        if self._captures < 2:
            return watching
        last = f", the last because {self._change}" if self._change else ""
        lines = [f"captured {self._captures} times so far{last}; ready for {len(self._ready)} energies"]
        if self._given_up:
            lines.append(
                f"{self._given_up} given up, as a loop is ready for {READY} energies at a time, and for {ALIKE} on "
                "states of one form: where they come again they are captured anew"
            )
        return watching + lines

    def _dry(self) -> str:
        """Why the callable goes on being run dry, where there is a reason but that it is new."""
        if self._program is None:
            return ""
        guard = self._program.guard
        if guard is not None and (guard.watch is not None or guard.obstacle):
            return guard.obstacle
        return f"it has not been the same {PROVEN_AFTER} times in a row" if self._captures > 1 else ""

    def check_options(self) -> None:
        """Of what may change between runs; for all of it `torch.optim.SGD` has the same bounds, infinity aside."""
        if self._method is not None:
            if (self.lr, self.momentum, self.dampening, self.nesterov) != (None, 0.0, 0.0, False):
                raise ValueError(f"lr, momentum, dampening and nesterov must be left to {type(self._method).__name__}")
            self._method.check(self._params)
        else:
            self._check_rates()
        for p in self._params:
            if p.is_meta:
                raise ValueError(
                    f"params must hold data, got one of shape {tuple(p.shape)} on meta; collect it after the first init"
                )
            if not p.requires_grad:
                clamped = self._node_of(p)
                why = f": it is the state of a {clamped}, which is clamped" if clamped else ""
                raise ValueError(f"params must require gradients, got one of shape {tuple(p.shape)} that does not{why}")

    def _node_of(self, state: Tensor) -> str:
        """The node among what the energy can reach that holds a state; or ""."""
        for root in _reached(self._energy).values():
            for module in root.modules():
                if isinstance(module, StateNode) and module.value is state:
                    return module._described
        return ""

    def _check_rates(self) -> None:
        for name, value in (("lr", self.lr), ("momentum", self.momentum), ("dampening", self.dampening)):
            if not isinstance(value, float | numbers.Real):  # of an abstract class alone the answer takes longer
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not math.isfinite(value) or (value < 0 and name != "dampening"):
                least = "" if name == "dampening" else " and not negative"
                raise ValueError(f"{name} must be finite{least}, got {value}")
        if not isinstance(self.nesterov, bool):
            raise TypeError(f"nesterov must be True or False, got {self.nesterov!r}")
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise ValueError("nesterov needs a momentum above 0 and no dampening")

    @property
    def params(self) -> list[Tensor]:
        """The free states."""
        return [*self._params]

    def forget_velocities(self) -> None:
        """Start what a method remembers anew at the next run: the states have been moved by others."""
        self._velocities, self._resumed, self._begun = None, None, []

    def restore(self) -> None:
        """Complete what the energy's code has stored in a dry run, and let go of an evaluation: states may change."""
        if self._program is not None and self._program.lent:
            self._program.mend()
        if isinstance(self._executor, AutogradExecutor):
            self._executor.take_evaluated()

    def _memory(self) -> list[tuple[Any, ...]]:
        """Of the states: new where `init` has set one, and the same where it was changed in place."""
        return [(StorageWeakRef(p.untyped_storage()), p.data_ptr(), p.shape) for p in self._params]

    def prepared(self) -> Executor:
        """An executor for the energy as it is now."""
        last, change = self._program, None
        if last is not None and self._executor is not None:
            change = check(self._energy, last)
            if change is None:
                given_up = isinstance(self._executor, AutogradExecutor) and not self._is_patient()
                if given_up or (isinstance(self._executor, ChainExecutor) and self._executor.obstacle):
                    self._try_again(last)
                return self._executor
            last.rest()
        elif isinstance(self._executor, AutogradExecutor) and self._is_patient():
            return self._executor
        self._program, self._executor, self._reasons = None, None, {}
        forms = [form_of(p) for p in self._params]
        recording = None if change is None else change.recording
        ready, recording = self._met_before(forms, last, recording)
        if ready is not None:
            self._program, self._executor, self._reasons = ready.program, ready.executor, ready.reasons
            return ready.executor
        self._executor = self._choose(recording)
        if self._program is not None:
            self._change = None if change is None else change.reason
            self._keep(_Ready(forms, self._program, self._executor, self._reasons))
        return self._executor

    def _met_before(
        self, forms: list[tuple[Any, ...]], last: Program | None, recording: Recording | None
    ) -> tuple[_Ready | None, Recording | None]:
        """What is ready for the energy, which is no longer the last; and a recording of it, if there is one."""
        for ready in [r for r in reversed(self._ready) if r.forms == forms and r.program is not last]:
            if recording is not None and recording.refusal is not None:
                break  # it has done what no program does, and may have had effects
            if not ready.program.wake():  # and never will
                self._forget(ready)
                continue
            change = check(self._energy, ready.program)
            if change is None:
                self._ready.remove(ready)
                self._ready.append(ready)
                return ready, None
            ready.program.rest()
            recording = change.recording or recording
        return None, recording

    def _try_again(self, program: Program) -> None:
        """To run a program otherwise: only autograd could, or chains no longer can."""
        ready = next(r for r in self._ready if r.program is program)
        self._reasons = {}
        self._executor = self._executor_of(program)
        self._ready[self._ready.index(ready)] = _Ready(ready.forms, program, self._executor, self._reasons)

    def _is_patient(self) -> bool:
        """Whether to leave it at autograd, as an attempt at something faster has failed not long ago."""
        if self._wanted == "autograd":
            return True
        if self._patience == 0 or obstacle(self._params) or self._modes() != self._training:
            return False
        self._patience -= 1
        return True

    def _modes(self) -> list[bool]:
        return [m.training for module in _reached(self._energy).values() for m in module.modules()]

    def _keep(self, ready: _Ready) -> None:
        """Be ready for this energy when another has had its turn."""
        self._ready.append(ready)
        self._captures += 1
        alike = [r for r in self._ready if r.forms == ready.forms]
        for old in alike[:-ALIKE] or self._ready[:-READY]:
            self._forget(old)
            self._given_up += 1

    def _forget(self, ready: _Ready) -> None:
        self._ready.remove(ready)
        self._replay.forget(ready.executor)

    def _choose(self, recording: Recording | None) -> Executor:
        if self._wanted == "autograd":
            return AutogradExecutor(self._energy, self._params)
        if reason := obstacle(self._params):
            self._reasons["chain or graph"] = reason
            self._patience = 0  # once it has passed
            return self._instead(AutogradExecutor(self._energy, self._params))
        try:
            program = capture(self._energy, self._params, recording)
        except NotCapturable as refusal:
            self._reasons["chain or graph"] = str(refusal)
            self._retreat(_PATIENCE)
            return self._instead(AutogradExecutor(self._energy, self._params, refusal.evaluated))
        self._program = program
        named = names_of(self._energy)
        program.names = {i: named[id(t)] for i, t in enumerate(program.leaves) if id(t) in named}
        _check_clamped(program)
        return self._executor_of(program)

    def _executor_of(self, program: Program) -> Executor:
        executor: Executor | None = None
        if self._wanted != "graph":
            try:
                paths = backends.without_graphs(self._params[0].device.type)
                written = joined(normal(program, program.batch[0] if program.batch else 1))
                written = apart(written, differences=not paths)
                chains = lower(written, paths)
                chain = ChainExecutor(written, chains, self._params, self._replay)
                if reason := chain.obstacle:
                    raise NotAChain(reason)
                executor = chain
            except NotAChain as refusal:
                self._reasons["chain"] = str(refusal)
        try:
            executor = executor or GraphExecutor(program, self._params, self._replay)
        except NotCapturable as reason:
            self._reasons["graph"] = str(reason)
            self._retreat(_LONG_PATIENCE)
            return self._instead(AutogradExecutor(self._energy, self._params))
        self._refusals = self._patience = 0
        return self._instead(executor)

    def _retreat(self, patience: int) -> None:
        """To autograd, for longer every time."""
        self._patience = min(4**self._refusals - 1, patience)
        self._refusals, self._training = self._refusals + 1, self._modes()

    def _instead(self, executor: Executor) -> Executor:
        if self._wanted not in (None, executor.name):
            reasons = "; ".join(self._reasons.values())
            raise RuntimeError(f"executor {self._wanted!r} cannot run this energy: {reasons}")
        return executor

    def __repr__(self) -> str:
        named = names_of(self._energy)
        states = ", ".join(named.get(id(p), "a state").removesuffix(".value") for p in self._params)
        runner = "not run yet" if self._executor is None else f"executor {self._executor.name}"
        return f"InferenceLoop({called(self._energy)}, states {states}, {self.method!r}, {runner})"

    def __deepcopy__(self, memo: dict[int, Any]) -> InferenceLoop:
        check_copied(self, energy=self._energy)
        return deep_copy(self, memo)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        anew: dict[str, Any] = {
            "_program": None,
            "_executor": None,
            "_ready": [],
            "_captures": 0,
            "_given_up": 0,
            "_change": None,
            "_refusals": 0,
            "_patience": 0,
            "_replay": Replay(),
            "_velocities": None,
            "_resumed": None,
            "_runner": [],
            "_seen": [],
            "_begun": [],
            "_lost": False,
        }
        return state | anew


def check_copied(owner: object, **functions: Callable[..., Any]) -> None:
    """Refuse to copy what would go on with the original's network: `copy.deepcopy` leaves functions as they are.

    Methods are copied with what they are of, and a `functools.partial` with its arguments; a function may be left where
    it knows nothing but what it is given.
    """
    for name, function in functions.items():
        inner = function
        while isinstance(inner, functools.partial):
            inner = inner.func
        if inspect.isfunction(inner) and (known := _knows(inner, set())):
            raise TypeError(
                f"{name} must be a method, or a function of its arguments alone, to be copied, got the function "
                f"{called(inner)}, which knows {known}: copy.deepcopy leaves it with the original's; write it as a "
                f"method of the network, or as functools.partial(function, net), or make another {type(owner).__name__}"
            )


def _knows(function: FunctionType, seen: set[int]) -> str:
    """The first name by which a function reaches something that has a state, other than its arguments; or none."""
    if id(function) in seen or function.__module__.partition(".")[0] in ("torch", __package__.partition(".")[0]):
        return ""
    seen.add(id(function))
    names, code = set[str](), [function.__code__]
    while code:
        one = code.pop()
        names |= {*one.co_names}
        code += [c for c in one.co_consts if isinstance(c, CodeType)]
    held = {name: function.__globals__[name] for name in sorted(names & function.__globals__.keys())}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell
            held[name] = cell.cell_contents
    given = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    defaults = [(f"a default of {function.__name__}", value) for value in given]
    for name, value in (*held.items(), *defaults):
        if isinstance(value, FunctionType):
            if known := _knows(value, seen):
                return f"{known} by {name}"
        elif isinstance(value, ModuleType):  # of which it may name what is in it
            inside = [f"{name}.{n}" for n in names if isinstance(vars(value).get(n), (nn.Module, Tensor))]
            if inside:
                return inside[0]
        elif not isinstance(value, _STATELESS):
            return name
    return ""


def deep_copy(owner: _C, memo: dict[int, Any]) -> _C:
    """As `copy.deepcopy` copies what has no method for it."""
    twin = object.__new__(type(owner))
    memo[id(owner)] = twin
    vars(twin).update(copy.deepcopy(cast("dict[str, Any]", owner.__getstate__()), memo))
    return twin


def _few(names: Sequence[str], most: int = 3) -> str:
    """Some names, and how many more there are."""
    return ", ".join([*names[:most], *([f"and {len(names) - most} more"] if len(names) > most else [])])


def called(function: Callable[..., Any]) -> str:
    """What a function is called where it was defined."""
    return getattr(function, "__qualname__", type(function).__name__)


def stopping_in_words(stop: Stop | None, bound: str, constrained: bool = False) -> list[str]:
    """By what samples stop."""
    if stop is None:
        return []
    if constrained:
        return ["tol by the gradients of steps, or by what sweeps gain; no bound: constraints hold states"]
    if bound.startswith("none: "):
        return [f"tol by what sweeps gain; no bound: {bound.removeprefix('none: ')}"]
    return [f"tol by a bound from {bound}, or by what sweeps gain"]


def _on_errors(program: Program, states: Sequence[Tensor], measured: bool) -> OnErrors:
    return _of_nodes(program, lambda of: OnErrors(of, states, measured))


def _of_nodes(program: Program, posed: Callable[[Program], _P]) -> _P:
    """A problem of a program, or where that tells no errors of the same in its normal form."""
    try:
        return posed(program)
    except NoErrors:
        written = joined(normal(program, program.batch[0] if program.batch else 1))
        if [t.node for t in written.terms] == [t.node for t in program.terms]:
            raise
        return posed(written)


def _check_clamped(program: Program) -> None:
    """Raise where the state of a categorical node is free."""
    for call in program.calls:
        if call.function is functional.categorical_energy and call.inputs[0] in program.free:
            raise ValueError(
                f"params must not hold the state of a categorical node, got {program.in_words(call.inputs[0])}: it is "
                "a distribution, which E-steps would leave; clamp it, as get_estep_params(net, exclude=[node]) does"
            )


def settles(device: torch.device) -> bool:
    """Whether the kernels of a device take states for their predictions where rounding alone tells the two apart."""
    return device.type == "cpu"


def _warn(message: str) -> None:
    """Of what was called from outside of this layer, there."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith(f"{__package__}."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def _listed(params: Iterable[Tensor], source: str, more: str = "") -> list[Tensor]:
    """Parameters, as a list of tensors that is not empty; `more` is what else may have made it so."""
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise TypeError(f"params must be an iterable of tensors, as {source} gives them, got {type(params).__name__}")
    listed = list(params)
    if not listed:
        raise ValueError(f"params must hold at least one tensor, got none; an iterator gives its tensors once{more}")
    for p in listed:
        if not isinstance(p, Tensor):
            raise TypeError(f"params must hold tensors, as {source} gives them, got {type(p).__name__}")
    return listed


def _tensors(energy: Callable[[], Tensor]) -> list[Tensor]:
    """The tensors that an energy can reach by name, those of modules among them."""
    found = [t for t in _variables(energy).values() if isinstance(t, Tensor)]
    for root in _reached(energy).values():
        for module in root.modules():
            kept = (*module._parameters.values(), *module._buffers.values(), *vars(module).values())
            found += [t for t in kept if isinstance(t, Tensor)]
    return found


def _reached(energy: Callable[[], Tensor]) -> dict[str, nn.Module]:
    """The modules that an energy can reach by name."""
    return {name: module for name, module in _variables(energy).items() if isinstance(module, nn.Module)}


def _variables(energy: Callable[[], Tensor]) -> dict[str, Any]:
    """What an energy can reach by name; a module of which it is a method has none."""
    owner = energy if isinstance(energy, nn.Module) else getattr(energy, "__self__", None)
    if isinstance(owner, nn.Module):
        return {"": owner}
    reached: dict[str, Any] = {}
    if inspect.isfunction(energy):
        names = energy.__code__.co_names
        reached = {name: energy.__globals__[name] for name in names if name in energy.__globals__}
        for name, cell in zip(energy.__code__.co_freevars, energy.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # an empty cell: a variable that is not set yet, or no longer
                reached[name] = cell.cell_contents
    elif owner is not None:
        reached = getattr(owner, "__dict__", {})
    return reached


def _learned(energy: Callable[[], Tensor], params: Sequence[Tensor]) -> list[str]:
    """The names of those of these parameters that can only be meant for the M-step."""
    given = {id(p) for p in params}
    return [called for called, module, name, p in _parameters(energy) if id(p) in given and is_learned(module, name)]


def states_of(energy: Callable[[], Tensor]) -> dict[int, str]:
    """The names of the states that an energy can reach by name, clamped ones among them, by their ids."""
    return {id(p): called for called, module, name, p in _parameters(energy) if is_state(module, name)}


def _parameters(energy: Callable[[], Tensor]) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """The parameters that an energy can reach by name, with their modules and what these call them."""
    for prefix, root in _reached(energy).items():
        for path, module in root.named_modules(prefix=prefix):
            for name, p in module._parameters.items():
                if p is not None:
                    yield f"{path}.{name}" if path else name, module, name, p


def names_of(energy: Callable[[], Tensor]) -> dict[int, str]:
    """What to call the tensors that an energy can reach by name, by their ids: where one has several, the first."""
    names: dict[int, str] = {}
    variables = _variables(energy)
    for prefix, module in variables.items():
        if isinstance(module, nn.Module):
            for name, t in [*module.named_parameters(prefix), *module.named_buffers(prefix)]:
                names.setdefault(id(t), name)
    for prefix, value in variables.items():  # of objects and lists what they hold themselves
        dot, bracket = (f"{prefix}.", f"{prefix}[{{}}]") if prefix else ("", "[{}]")
        held: dict[str, Any] = {prefix: value}
        if isinstance(value, list | tuple):
            held = {bracket.format(i): t for i, t in enumerate(value)}
        elif hasattr(value, "__dict__") and not isinstance(value, Tensor | type | ModuleType):
            held = {dot + name: t for name, t in vars(value).items()}
        for name, t in held.items():
            if isinstance(t, Tensor):
                names.setdefault(id(t), name)
    return names
