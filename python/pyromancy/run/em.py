"""Whole EM batches: how a batch starts, its E-steps, its M-step and the optimizer, in one call."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.optim import Optimizer

from ..capture.interrupt import Uninterrupted
from ..capture.recording import NotCapturable
from ..methods import FixedPrediction, Method, Stop
from ..plan import Langevin
from .autograd import AutogradExecutor
from .copies import check_copied, deep_copy
from .distributed import check_whole, group_of, others
from .epoch import Epoch, Part, size_of_batches
from .executor import Executor
from .explained import stopping_in_words
from .fused_batch import FusedBatch, NotFused, refuse_unused
from .graph import GraphExecutor
from .loop import InferenceLoop
from .optimizer import check_averages, needs_closure, without_eps
from .reach import called, names_of, states_of
from .repeat import Repeat
from .saved import check_saved
from .scheduled import Scheduled
from .start import Start
from .starts import Starts
from .trace import Trace
from .warn import warn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

INCREMENTAL = (False, True, "joint")
_OPTIONS = ("steps", "tol", "incremental", "lr", "momentum", "dampening", "nesterov")
_PART = 0.1  # seconds after which `epoch` gives a sign of life
_FIRST, _MOST = 2, 1024  # bounds of `EM._wait`


def _of_loop(name: str) -> property:
    """An option of E-steps without a method, which the loop has, and which may be set between batches."""
    return property(lambda em: getattr(em.loop, name), lambda em, value: setattr(em.loop, name, value))


class EM:
    """Trains a network by whole EM batches, below Python where it can, and says what it does.

    ``em.step(x, y)`` does what these lines do, to rounding::

        start(x, y)
        loop.run(steps)  # an InferenceLoop of the same energy, states and rate
        optimizer.zero_grad()
        loop.backward(parameters)  # those of the optimizer
        optimizer.step()

    Where all of it can be one plan, the forward sweep that `start` makes uses the very products that E-steps
    use. Errors that a sweep leaves are then exactly zero, and so are the gradients of weights that no E-step has
    reached yet. Gradients are not kept then: ``.grad`` is None afterwards.

    `start` is captured as the energy is: it may be called more often than there are batches, and it must have no
    effects that matter beside setting states by their nodes' `init`.

    Args:
        energy: zero-argument callable returning per-sample energies, ``[B]``.
        params: the free states, as `pyromancy.get_estep_params` gives them.
        optimizer: of the learned parameters. SGD, Adam, AdamW and RMSprop of `torch.optim` run inside, with
            their options and on their own state; others are called.
        start: sets all states for a batch, by `init`; takes what `step` takes.
        steps: E-steps of a batch; with `tol` at most.
        lr: E-step rate; this and the next three are the short form of `pyromancy.methods.Descent` on states.
        momentum: as in `torch.optim.SGD`; the velocity starts anew with every batch.
        dampening: as in `torch.optim.SGD`.
        nesterov: as in `torch.optim.SGD`.
        method: how E-steps move, of `pyromancy.methods`, in the place of these four.
        tol: as in `InferenceLoop.run`: where every sample stops by itself.
        incremental: False learns once after all E-steps; True after every E-step, from the states it has made; "joint"
            with every E-step, weights and states moving from the same errors.
        check_finite: as in `InferenceLoop`; no batch is one call then.
        distributed: True learns with all processes of `torch.distributed`, each of which gives `step` samples of its
            own: gradients are averaged over all samples, in one all-reduce, before the optimizer steps. A group does so
            with its processes. They begin with the parameters of the first. False learns in this process alone; None
            too, and warns where there are others.

    Attributes:
        batches: how many it has done.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range, or the optimizer moves a state; the message says which.
    """

    def __init__(
        self,
        energy: Callable[[], Tensor],
        params: Iterable[nn.Parameter],
        optimizer: Optimizer,
        *,
        start: Callable[..., Any],
        steps: int,
        lr: float | None = None,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        method: Method | None = None,
        tol: float | None = None,
        incremental: bool | str = False,
        check_finite: bool = False,
        distributed: bool | ProcessGroup | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be of torch.optim, got {type(optimizer).__name__}")
        if needs_closure(optimizer):
            raise TypeError(
                f"optimizer must step without a closure, got {type(optimizer).__name__}, which would evaluate the "
                "energy several times in a step: SGD, Adam, AdamW and RMSprop run in the same call as E-steps"
            )
        if not callable(start):
            raise TypeError(f"start must be callable, got {type(start).__name__}")
        self.loop = InferenceLoop(
            energy, params, lr, momentum=momentum, dampening=dampening, nesterov=nesterov, method=method,
            check_finite=check_finite,
        )  # fmt: skip
        self.optimizer, self.start, self.steps, self.incremental = optimizer, start, steps, incremental
        self.tol, self.batches = tol, 0
        # the ids and dtypes of the optimizer's parameters, which have been looked at
        self._learned: tuple[list[int], list[torch.dtype]] = [], []
        self._check()
        self._group = group_of(distributed)
        if self._group is not None:
            self._group.begin(self._parameters)
        elif distributed is None and (more := others()):
            warn(
                f"this EM learns by itself, beside {more} other processes of torch.distributed: distributed=True "
                "averages gradients over all, and distributed=False says that it is meant to be alone"
            )
        self._starts = Starts()
        self._fused: FusedBatch | None = None
        self._scheduled: Scheduled | None = None  # what starts a batch that is done by parts, if not `start` itself
        self._called = ""  # why it is `start`
        self._repeat: Repeat | None = None
        self._warned = False  # of a target that is missing
        self._wait = _FIRST  # batches that one call does in a row, before the next may be a repetition
        self._reason = ""  # why a batch is not one plan
        self._pace: tuple[object, int] = None, 1  # batches of a part, of the kind of the last
        self._order: Tensor | None = None  # samples of the epoch that are left
        self._source: torch.Generator | None = None  # of its order
        self._marks: dict[str, Tensor] = {}  # what `changes` compares with
        self._loaded: dict[str, Any] = {}  # where the next epoch is to go on

    lr, momentum, dampening, nesterov = (_of_loop(name) for name in ("lr", "momentum", "dampening", "nesterov"))

    def step(self, *batch: Any) -> Trace:
        """One batch.

        Args:
            *batch: what `start` takes; tensors have one row per sample.

        Returns:
            What was done.

        Raises:
            ValueError: `start` sets no state; the optimizer's parameters have no part in the energy.
            FloatingPointError: a state is not finite, where `check_finite` asks for that.
        """
        enabled = torch.is_grad_enabled()
        try:
            trace = self._step(batch)
        except BaseException:
            torch.set_grad_enabled(enabled)  # which Ctrl-C as `no_grad` is entered or left keeps it from doing
            self.loop.restore()
            raise
        self.batches += 1
        return trace

    def _step(self, batch: tuple[Any, ...]) -> Trace:
        if self._repeat is not None:
            if self._repeat.run(self, batch):
                self._fused, self._reason = self._repeat.fused, ""
                return self._repeat.fused.trace(self)
            # the next will have to prove itself, and for longer where this one has not been of use
            self._wait = _FIRST if self._repeat.ended() > _MOST else min(2 * self._wait, _MOST)
            self._repeat = None
        self._check()
        fused = self._prepared(batch)
        if fused is None or not fused.run(self):
            return self._step_unfused(batch)
        self._repeat = fused.repeat(self)
        return fused.trace(self)

    def epoch(
        self,
        *data: Tensor,
        batch_size: int,
        shuffle: bool = True,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
    ) -> Iterator[Part]:
        """A pass over data, in parts of about 0.1 s.

        Where a batch is one plan, and `start` clamps nodes to the data as they are, the batches of a part are one call.
        Ctrl-C is heeded between batches, and between parts that are one call; `state_dict` then has what is left, and
        so it has after an exception of `start` or of the energy. After `load_state_dict` the next call goes on with it.

        An epoch begins when its first part is asked for. One that nobody iterates changes nothing, and warns of it. One
        that is left early, as by ``break``, has learned from the whole batches of its parts; the next begins anew.

        Args:
            *data: tensors of the same length, whose rows `start` takes; with `distributed` the same in all processes,
                which share every batch among them, in the order of the first.
            batch_size: samples of a batch, of all processes together; the last one may have fewer.
            shuffle: whether to take them in the order of ``torch.randperm(n, generator=generator)``.
            drop_last: whether to leave out a last batch of fewer samples.
            generator: source of randomness; None is PyTorch's own.

        Yields:
            What was done since the last one.

        Raises:
            TypeError: `data` are not tensors, or `batch_size` is no integer.
            ValueError: they differ in length, there are none, or `batch_size` is not positive; or the epoch that is to
                be finished had more samples, a generator where there is none now, or none where there is one.
        """
        size = size_of_batches(data, batch_size)
        n = len(data[0])
        self._to_finish(n, generator)

        def begun() -> Iterator[Part]:
            with Uninterrupted():  # the generator goes on as the order is kept that it drew
                order, drawn = self._to_finish(n, generator)
                if generator is not None and drawn is not None:
                    generator.set_state(drawn)
                if order is None:
                    order = torch.randperm(n, generator=generator) if shuffle else torch.arange(n)
                    order = order[: n - n % size] if drop_last else order
                    order = order if self._group is None else self._group.order(order)
                self._order, self._source, self._loaded = order, generator, {}
            yield from self._epoch(data, order, size)

        return Epoch(begun())

    def _to_finish(self, n: int, generator: torch.Generator | None) -> tuple[Tensor | None, Tensor | None]:
        """What is left of an epoch that was loaded, and the state of its generator; for an epoch of so many samples."""
        order, drawn = self._loaded.get("order"), self._loaded.get("generator")
        if order is not None and len(order) and int(order.max()) >= n:
            raise ValueError(f"data must be those of the epoch that is to be finished, got {n} samples")
        if drawn is not None and generator is None:
            raise ValueError("generator must be given, as one was when the state was saved that is to be gone on from")
        if drawn is None and generator is not None and order is not None:
            raise ValueError("generator must be None, as it was in the epoch that is to be finished")
        return order, drawn

    def _epoch(self, data: tuple[Tensor, ...], order: Tensor, size: int) -> Iterator[Part]:
        kind = size, self.steps, self.incremental
        batches = self._pace[1] if self._pace[0] == kind else 1
        while len(order):
            began = time.perf_counter()
            known = self._starts.knows(self.start) or self._group is not None
            count = min(batches, max(1, len(order) // size)) if known else 1
            rows = order[: count * size]
            done = self._part(data, order, size, count)
            order = order[len(rows) :]
            yield Part(done, len(rows))
            seconds = max(1e-6, time.perf_counter() - began)
            if self._group is not None:  # whose parts are the same
                seconds = self._group.slowest(seconds)
            batches = max(1, int(count * min(8.0, _PART / seconds)))
            self._pace = kind, batches
        self._order = None

    def _part(self, data: tuple[Tensor, ...], order: Tensor, size: int, count: int) -> int:
        """So many batches of the first rows of an order; what is left of it is kept for `state_dict`."""
        rows = order[: count * size]
        # or else `start` would be run on other rows, and what it draws be drawn once more
        captured = self._starts.knows(self.start) and not self._starts.refuses(self.start)
        if len(rows) >= size and captured and self._group is None:
            self._check()
            fused = self._prepared(tuple(t[:size] for t in data), set_=False)
            if fused is not None:
                with Uninterrupted():  # what is left of the order follows what has been learned
                    if fused.run(self, data, rows):
                        self._order = order[len(rows) :]
                        self.batches += count
                        return count
        batches = rows.split(size)
        for batch in batches:
            with Uninterrupted():
                own = batch if self._group is None else batch.tensor_split(self._group.size)[self._group.rank]
                if len(own):
                    self.step(*(t[own] for t in data))
                else:
                    self._step_without_samples()
                self._order = order = order[len(batch) :]
        return len(batches)

    def changes(self) -> dict[str, float]:
        """How far every learned tensor has moved since the last call, as the norm of the difference, by its name.

        The first call sets the mark, and gives zeros. A copy of all that is learned is kept from then on.
        """
        named, marks, moved = names_of(self.loop._energy), {}, {}
        for i, p in enumerate(self._parameters):
            name = named.get(id(p), f"parameter {i}")
            marks[name] = p.detach().clone()
            before = self._marks.get(name)
            if before is None or (before.shape, before.device) != (p.shape, p.device):
                before = marks[name]
            moved[name] = float(torch.linalg.vector_norm(marks[name] - before))
        self._marks = marks
        return moved

    def explain(self) -> str:
        """What runs a batch, and why nothing faster does; of the last one, so that there has to be one."""
        if self._fused is None and not self._reason:
            return "no batch so far: call step(*batch), or go through epoch(*data), and explain() tells what runs it"
        whole = self._fused is not None
        outside = "" if self._fused is None else self._fused.outside
        how = "one call of an operator" if whole else "start, E-steps, gradients, optimizer"
        lines = [f"a batch: {how}, then the optimizer" if outside else f"a batch: {how}"]
        if self._reason:
            lines.append(f"  not one call: {self._reason}")
        if self._called:
            lines.append(f"  {self._called}")
        if whole and self._fused is not None:
            if outside:
                lines.append(f"  the optimizer is called: {outside}")
            lines += [f"  {told}" for told in stopping_in_words(self._stop, self._fused.executor.bound)]
        if (group := self._group) is not None:
            numbers, when = sum(p.numel() for p in self._parameters), "E-step" if self.incremental else "batch"
            lines.append(
                f"  process {group.rank} of {group.size}: gradients, {numbers} numbers, are averaged over all in one "
                f"all-reduce per {when}"
            )
        if reason := self._starts.obstacle:
            lines.append(f"  start is run dry before every batch: {reason}")
        return "\n".join([*lines, self.loop.explain()])

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from, to the same bits, beside the network's own `state_dict`.

        The optimizer's state, the options that may be set between batches, how many batches are done, what is left of
        an epoch in the middle, and the states of its generator and of a method's own.
        """
        source, noise, method = self._source, self._noise, self.loop.method
        epoch = {"order": self._order, "generator": None if source is None else source.get_state()}
        return {
            "optimizer": self.optimizer.state_dict(),
            "method": f"{type(method).__name__} on {method.moves}",
            "options": {name: getattr(self, name) for name in _OPTIONS},
            "batches": self.batches,
            "noise": None if noise is None else noise.get_state(),
            **(self._loaded or epoch),  # which no epoch has gone on from yet
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where another `EM` was.

        Args:
            state: what its `state_dict` gave.

        Raises:
            TypeError: it is no dictionary, or an option is of the wrong type.
            ValueError: an entry is missing, cannot be of a `state_dict`, or is of another method or optimizer. After
                an exception nothing is loaded.
        """
        check_saved(state, self.state_dict())
        before, kept = {name: getattr(self, name) for name in _OPTIONS}, self.optimizer.state_dict()
        # PyTorch adds defaults as it loads, which the groups of an optimizer of one's own do not have
        needed = {*self.optimizer.defaults}.intersection(*self.optimizer.param_groups)
        try:
            self._set(state["options"])
            self._check()
            self.optimizer.load_state_dict(state["optimizer"])
            if lacking := needed.difference(*self.optimizer.param_groups):
                kind, names = type(self.optimizer).__name__, ", ".join(sorted(lacking))
                raise ValueError(f"optimizer must be of this EM's kind, {kind}, got one without {names}")
            check_averages(self.optimizer, self._named)
        except BaseException:
            self._set(before)
            self.optimizer.load_state_dict(kept)
            raise
        if self._noise is not None:
            self._noise.set_state(state["noise"])
        self.batches = state["batches"]
        self._loaded = {"order": state["order"], "generator": state["generator"]}

    def _set(self, options: dict[str, Any]) -> None:
        for name, value in options.items():
            setattr(self, name, value)

    @property
    def _noise(self) -> torch.Generator | None:
        """What a method draws from that is its own."""
        return getattr(self.loop.method, "generator", None)

    def _check(self) -> None:
        self.loop.check_options()
        try:
            self.steps = operator.index(self.steps)
        except TypeError:
            raise TypeError(f"steps must be an integer, got {self.steps!r}") from None
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, got {self.steps}")
        self._stop = None if self.tol is None else Stop(self.tol)
        if self.tol is not None:
            if self.incremental:
                raise ValueError(f"tol must be None with incremental={self.incremental!r}, got {self.tol}")
            if self.steps == 0:
                raise ValueError(f"tol must be None without steps, got {self.tol}")
            if not self.loop.method.converges:
                name = type(self.loop.method).__name__
                raise ValueError(f"tol must be None with {name}, which does not converge, got {self.tol}")
        if self.incremental not in INCREMENTAL:
            raise ValueError(f"incremental must be False, True or 'joint', got {self.incremental!r}")
        for i, group in enumerate(self.optimizer.param_groups):
            for name, given in group.items():
                value = given.item() if isinstance(given, Tensor) and given.is_cpu and given.dim() == 0 else given
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(f"optimizer.param_groups[{i}][{name!r}] must be finite, got {value}")
        self._check_learned()

    def _check_learned(self) -> None:
        """Refuse to learn a state, be it clamped: `start` sets it anew for every batch."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        ids, dtypes = [id(p) for p in parameters], [p.dtype for p in parameters]
        if (ids, dtypes) == self._learned:
            return
        named = names_of(self.loop._energy)
        states = {id(p): f"a state of shape {tuple(p.shape)}" for p in self.loop.params}
        states |= {i: named[i] for i in states if i in named} | states_of(self.loop._energy)
        if moved := [states[i] for i in ids if i in states]:
            raise ValueError(
                f"optimizer must not move states, got {', '.join(moved)}; pyromancy.get_mstep_params(net) gives what "
                "is learned"
            )
        check_whole("optimizer", (), {named.get(id(p), "one"): p for p in self._parameters})
        if lost := without_eps(self.optimizer):
            eps, p = lost[0]
            warn(
                f"optimizer's eps={eps:g} is 0 in {p.dtype}, of which {named.get(id(p), 'a parameter')} is: where a "
                "gradient is 0 the parameter becomes NaN. Keep what is learned in float32 or bfloat16"
            )
        self._learned = ids, dtypes

    def __repr__(self) -> str:
        learned = sum(len(group["params"]) for group in self.optimizer.param_groups)
        tol = "" if self.tol is None else f", tol={self.tol:g}"
        more = f", incremental={self.incremental!r}" if self.incremental else ""
        return (
            f"EM({called(self.loop._energy)}, start={called(self.start)}, steps={self.steps}, {self.loop.method!r}"
            f"{tol}{more}, {type(self.optimizer).__name__} of {learned} parameters)"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> EM:
        check_copied(self, energy=self.loop._energy, start=self.start)
        return deep_copy(self, memo)

    def __getstate__(self) -> dict[str, Any]:
        # captures are made anew
        return self.__dict__ | {"_starts": Starts(), "_fused": None, "_scheduled": None, "_repeat": None}

    def _named(self, p: Tensor) -> str:
        return names_of(self.loop._energy).get(id(p), "a parameter")

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]

    def _prepared(self, batch: tuple[Any, ...], set_: bool = True) -> FusedBatch | None:
        """How to do the batch in one call, its clamped states set; None, and why, where it is done by parts."""
        self._reason = ""
        last, self._scheduled, self._called = self._scheduled, None, ""
        try:
            try:
                start = self._starts.of(self.start, batch)
            except NotCapturable as reason:
                raise NotFused(str(reason)) from None
            if self.loop.check_finite:
                raise NotFused("check_finite looks at all states after every E-step")
            if self.loop.reduction != "sum":
                raise NotFused("the loop descends the mean over the batch")
            if self.incremental and (self._stop is not None or self.loop.has_method):
                raise NotFused("no operator learns between the sweeps of a method")
            executor = self._executor(start, batch)
            found = self.loop.fused(self._stop)
            if isinstance(found, str) and (self._stop is not None or self.loop.has_method):
                raise NotFused(found)
            if isinstance(found, Langevin):
                raise NotFused("noise is drawn anew for every batch")
            if isinstance(executor, GraphExecutor):
                self._scheduled = self._schedule(start, executor, last)
            self._fused = self._fitting(start, executor)
            if self._fused.outside and (self.incremental or isinstance(self.loop.method, FixedPrediction)):
                raise NotFused(self._fused.outside)
            if self._fused.self_predicted and not self._warned:
                self._warned = True
                warn(
                    f"start sets {self._fused.self_predicted}, which E-steps leave alone, to its own prediction, "
                    "from which nothing is learned; a target may be missing, as y is in step(x)"
                )
        except NotFused as reason:
            self._reason, self._fused = str(reason), None
            return None
        if set_:
            self._fused.set_states(batch)
        return self._fused

    def _schedule(self, start: Start, executor: GraphExecutor, last: Scheduled | None) -> Scheduled | None:
        """What starts a batch of a graph; None where that is `start`."""
        if last is not None and last.fits(start, executor):
            return last
        try:
            return Scheduled(start, executor)
        except NotCapturable as refusal:
            self._called = f"start is called for every batch: {refusal}"
            return None

    def _executor(self, start: Start, batch: tuple[Any, ...]) -> Executor:
        """Of the energy, for the states as `start` has set them."""
        samples = start.samples({id(p) for p in self.loop.params}, batch)
        try:
            executor = self.loop.prepared()
        except (RuntimeError, ValueError) as error:
            error.add_note(
                f"start has set states of {samples} samples: what the energy takes beside them, such as weights or "
                "targets, must be of as many."
            )
            raise
        # on autograd it is that of the batch before
        shape = None if isinstance(executor, AutogradExecutor) else executor.shape
        if shape is not None and len(shape) == 1 and shape[0] != samples:
            raise ValueError(
                f"energy must return one value per sample, [{samples}] for the states that start has set, got "
                f"{[*shape]}"
            )
        return executor

    def _fitting(self, start: Start, executor: Executor) -> FusedBatch:
        fused = self._fused
        if fused is not None and fused.fits(self, start, executor):
            return fused
        return FusedBatch(self, start, executor)

    def _step_unfused(self, batch: tuple[Any, ...]) -> Trace:
        loop, optimizer, trace = self.loop, self.optimizer, Trace(self.steps)
        check_averages(optimizer, self._named)
        scheduled = self._scheduled
        if scheduled is not None:
            scheduled.run(loop, 0 if self.incremental else self.steps)
            if self.incremental:
                scheduled.end()
        elif not self._starts.has_run:
            with torch.no_grad():
                self.start(*batch)
            loop.restore()  # an evaluation that is kept was of the states before
        loop.forget_velocities()
        for _ in range(self.steps if self.incremental else 1):
            if self.incremental == "joint":
                optimizer.zero_grad()
                loop.backward(self._parameters)
                loop.run(1)
            else:
                if self.incremental or scheduled is None:
                    trace = loop.run(1 if self.incremental else self.steps, tol=self.tol)
                optimizer.zero_grad()
                try:
                    loop.backward(self._parameters)
                finally:
                    if scheduled is not None:
                        scheduled.end()
            self._check_uses()
            self._average(loop._choice.executor)
            optimizer.step()
        return Trace(self.steps) if self.incremental else trace

    def _average(self, executor: Executor | None) -> None:
        """Make gradients those of the samples of all processes."""
        if self._group is not None:
            shape = None if executor is None else executor.shape
            samples = len(self.loop.params[0]) if shape is None else math.prod(shape)
            self._group.average(self._parameters, samples)

    def _step_without_samples(self) -> None:
        """The M-steps of a batch of which this process has none: the last one of an epoch may be that small."""
        assert self._group is not None
        self._check()
        for _ in range(self.steps if self.incremental else 1):
            self.optimizer.zero_grad()
            self._group.average(self._parameters, 0)
            self.optimizer.step()
        self.batches += 1

    def _check_uses(self) -> None:
        """Refuse parameters that have no part in the energy, whose gradients have just been computed."""
        program, learned = self.loop.program, self._parameters
        used = [p for p in learned if p.grad is not None] if program is None else program.leaves
        refuse_unused(learned, used, self.loop)
