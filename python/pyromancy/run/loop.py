"""The inference loop as one call."""

from __future__ import annotations

import functools
import math
import numbers
import operator
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
import torch.nn as nn
from torch import Tensor
from torch._compile import _disable_dynamo  # as torch.compiler.disable, without importing the compiler at once
from torch.multiprocessing.reductions import StorageWeakRef

from .. import plan
from ..arguments import check_energy_argument, listed_params
from ..capture.program import Program
from ..methods import ZIL, Descent, FixedPrediction, Langevin, Method, Rated, Stop
from ..nodes import FixedNode, TargetNode
from ..nodes.base import StateNode
from . import divergence, readings, stepwise
from .autograd import AutogradExecutor
from .chain import ChainExecutor
from .choice import EXECUTORS, Choice
from .copies import check_copied, deep_copy
from .distributed import check_whole
from .executor import Executor, ReplayingExecutor, Run, check_energy
from .explained import doubts, doubts_of_shape, stopping_in_words
from .objective import OnAutograd, OnFixedPredictions, Problem, check_samples
from .problems import posed
from .reach import called, learned_in, modules_of, names_of, parameters_of, tensors_of
from .steppers import Carried
from .stepwise import Resumed
from .trace import Trace
from .warn import warn

_M = TypeVar("_M", bound=Callable[..., Any])
_FUSED = "fused: all sweeps in one operator"


def _normally(method: _M) -> _M:
    """Run a method outside inference mode, where what it makes could not be used after that mode.

    Unless the states were made in it, and can be written nowhere else. Compilers do not look into it: what it calls
    depends on more than they would see, and has been compiled already.
    """

    @functools.wraps(method)
    def outside(self: InferenceLoop, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return uncompiled(self, *args, **kwargs)
        enabled = torch.is_grad_enabled()
        try:
            if not torch.is_inference_mode_enabled() or any(p.is_inference() for p in self._params):
                return method(self, *args, **kwargs)
            with torch.inference_mode(False), torch.no_grad():
                return method(self, *args, **kwargs)
        except BaseException:
            torch.set_grad_enabled(enabled)  # which Ctrl-C as `no_grad` is entered or left keeps it from doing
            raise

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
        self._params = listed_params(
            params, "pyromancy.get_estep_params", ", and a network without hidden nodes has no free state"
        )
        if len({id(p) for p in self._params}) < len(self._params):
            raise ValueError("params must hold every state once, got one of them twice")
        modules = [module for root in modules_of(energy).values() for module in root.modules()]
        check_whole("energy", modules, {called: p for called, _, _, p in parameters_of(energy)})
        self._energy = energy
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
        if learned := learned_in(energy, self._params):
            warn(
                f"params are the states that E-steps move, and hold what is learned: {', '.join(learned)}; "
                "pyromancy.get_estep_params(net) gives the states alone"
            )
        self._choice = Choice(energy, self._params, executor)
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
        return self._choice.program

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
        divergence.check_finite(self._params, self._energy, self._taken)
        for _ in range(steps):
            traces.append(self._run(1, record))
            self.restore()
            divergence.check_finite(self._params, self._energy, self._taken)
        last = traces[-1]
        energies = [t.energies[:1] for t in traces[1:] if t.energies is not None]
        energies += [] if last.energies is None else [last.energies[-1:]]
        return replace(last, steps=steps, energies=torch.cat(energies) if energies else None)

    def _run(self, steps: int, record: bool) -> Trace:
        executor, memory = self.prepared(), self._memory()
        if self._begun != memory:
            self._taken = 0
        if steps == 0:  # not even a velocity has begun
            return self._recorded(Trace(0), executor, None) if record else Trace(0)
        lr, momentum, dampening = float(self.lr), float(self.momentum), float(self.dampening)
        mean = self.reduction == "mean"
        if self.program is not None:
            result = self.program.stand_ins[self.program.result]
            check_energy(result, record)
            lr, mean = lr / max(1, result.numel()) if mean else lr, False
        resume = self._velocities is not None and self._seen == memory
        if not resume:
            self._velocities = [p.new_zeros(p.shape) for p in self._params] if momentum else None
        settle, self._begun = settles(self._params[0].device) and self._begun != memory, memory
        run = Run(steps, lr, momentum, dampening, self.nesterov, resume, record, settle, mean)
        energies = executor.run(run, self._velocities if momentum else None)
        self._taken += steps
        for reason in doubts_of_shape(self._energy, self._params, executor):
            warn(reason)
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
            divergence.check_finite(self._params, self._energy, self._taken)

        starts = [p.detach().clone() for p in self._params]
        outcome = stepwise.run(method, problem, steps, stop, record, resumed, watch if self.check_finite else None)
        self._taken = taken + outcome.steps
        whose = problem, method, self._read() if method.remembers_energy else ()
        self._resumed, self._seen = (whose, outcome.resumed), self._memory()
        self._runner += stopping_in_words(stop, problem.bound, method.is_constrained)
        self.note_divergence(not divergence.are_finite(self._params), starts)
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
        if self._choice.wanted not in (None, "chain"):
            return f"executor {self._choice.wanted!r} was asked for"
        if self._method is None and stop is None:
            return "plain descent of so many steps is the executor's"
        if not isinstance(self._choice.executor, ChainExecutor):
            return "the energy is no chain"
        return self._choice.executor.fused(self.method, stop)

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
        program = self.program
        read = [*self._params, *tensors_of(self._energy)] if program is None else program.leaves
        written = [None if t.is_inference() else t._version for t in read]
        if program is not None:
            return [program.replacements, *written]
        return [*written, *((StorageWeakRef(t.untyped_storage()), t.data_ptr(), t.shape) for t in read)]

    def _problem(self, method: Method, stop: Stop | None, executor: Executor) -> tuple[Problem, list[str]]:
        """What a method runs on, and how it is run."""
        reason = self.fused(stop)
        assert isinstance(reason, str)
        if self._choice.wanted == "chain":
            raise RuntimeError(f"executor 'chain' cannot run {method!r}: {reason}")
        kind = method.moves, method.moves == "errors" and method.measures
        if kind not in executor.problems:
            program = None if isinstance(executor, AutogradExecutor) else self.program
            obstacle = "; ".join(self._choice.reasons.values()) or "executor 'autograd' was asked for"
            executor.problems[kind] = posed(method, self._energy, self._params, program, obstacle)
        problem = executor.problems[kind]
        how = "on autograd" if isinstance(problem, OnAutograd) else "on what was captured"
        return problem, [f"stepwise, {how}", f"not fused: {reason}"]

    def note_divergence(self, diverged: bool, starts: Sequence[Tensor] = (), learned: Collection[int] = ()) -> None:
        """Warn where states are no longer finite.

        Args:
            diverged: whether they are not.
            starts: what they were before; by default their predictions serve.
            learned: the ids of what has learned from them since.
        """
        if diverged and not self._lost and not self.check_finite:
            warn(divergence.in_words(self.method, self._energy, self._params, self.program, starts, learned))
        self._lost = diverged

    def note_divergence_of_states(self) -> None:
        """Warn where states are no longer finite."""
        self.note_divergence(not divergence.are_finite(self._params))

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
                reason = "; ".join(self._choice.reasons.values()) or "executor 'autograd' was asked for"
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
        wanted = list({id(p): p for p in listed_params(params, "pyromancy.get_mstep_params")}.values())
        try:
            executor = self.prepared()
            found: list[Tensor | None] | str | None = self._fixed_gradients(wanted, executor)
            if found is None:
                found = executor.gradients(wanted, settles(self._params[0].device) and self._begun != self._memory())
            if isinstance(found, str):
                self._choice.reasons["fused M-step gradients"] = found
                learned = [p for p in wanted if p.requires_grad]
                with torch.enable_grad():
                    if learned:
                        evaluated = executor.take_evaluated() if isinstance(executor, AutogradExecutor) else None
                        (self._energy() if evaluated is None else evaluated).mean().backward(inputs=learned)
                return
        finally:
            self.restore()
        self._choice.reasons.pop("fused M-step gradients", None)
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
        executor = self._choice.executor
        if executor is None or (self._method is not None and not self._runner):  # no run of its method yet
            executor = self.prepared()
            if self._choice.wanted == "autograd":
                self.energy()
            self.restore()
        named = names_of(self._energy)
        moved = ", ".join(f"{named.get(id(p), 'a state')} {list(p.shape)}" for p in self._params)
        how = [] if self._method is None and not self._runner else [f"method: {self.method!r}", *self._how(executor)]
        notes = [
            f"E-steps move {moved}",
            *how,
            *doubts(self._energy, self._params, executor, self.program),
            *executor.notes(),
            *self._choice.history(),
        ]
        lines = [f"executor: {executor.name}", *(f"  {note}" for note in notes)]
        lines += [f"not {name}: {reason}" for name, reason in self._choice.reasons.items()]
        return "\n".join(lines)

    def _how(self, executor: Executor) -> list[str]:
        if not self._runner and isinstance(executor, ChainExecutor) and not isinstance(self.fused(None), str):
            return [_FUSED]
        return self._runner or self._problem(self.method, None, executor)[1]

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
                node = self._node_of(p)
                why = f": it is the state of a {node._described}" if node else ""
                if isinstance(node, (FixedNode, TargetNode)):
                    why += ", which is clamped"
                elif node:
                    why += ", and requires_grad_(False) of a whole network freezes its states: freeze its edges alone"
                raise ValueError(f"params must require gradients, got one of shape {tuple(p.shape)} that does not{why}")

    def _node_of(self, state: Tensor) -> StateNode | None:
        """The node among what the energy can reach that holds a state."""
        for root in modules_of(self._energy).values():
            for module in root.modules():
                if isinstance(module, StateNode) and module.value is state:
                    return module
        return None

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

    def prepared(self) -> Executor:
        """An executor for the energy as it is now."""
        return self._choice.prepared()

    def forget_velocities(self) -> None:
        """Start what a method remembers anew at the next run: the states have been moved by others."""
        self._velocities, self._resumed, self._begun = None, None, []

    def restore(self) -> None:
        """Complete what the energy's code has stored in a dry run, and let go of an evaluation: states may change."""
        if self.program is not None and self.program.lent:
            self.program.mend()
        if isinstance(self._choice.executor, AutogradExecutor):
            self._choice.executor.take_evaluated()

    def _memory(self) -> list[tuple[Any, ...]]:
        """Of the states: new where `init` has set one, and the same where it was changed in place."""
        return [(StorageWeakRef(p.untyped_storage()), p.data_ptr(), p.shape) for p in self._params]

    def __repr__(self) -> str:
        named = names_of(self._energy)
        states = ", ".join(named.get(id(p), "a state").removesuffix(".value") for p in self._params)
        runner = "not run yet" if self._choice.executor is None else f"executor {self._choice.executor.name}"
        return f"InferenceLoop({called(self._energy)}, states {states}, {self.method!r}, {runner})"

    def __deepcopy__(self, memo: dict[int, Any]) -> InferenceLoop:
        check_copied(self, energy=self._energy)
        return deep_copy(self, memo)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        anew: dict[str, Any] = {
            "_velocities": None,
            "_resumed": None,
            "_runner": [],
            "_seen": [],
            "_begun": [],
            "_lost": False,
        }
        return state | anew


def settles(device: torch.device) -> bool:
    """Whether the kernels of a device take states for their predictions where rounding alone tells the two apart."""
    return device.type == "cpu"
