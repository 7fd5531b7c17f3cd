"""Which executor runs an energy, as it is now: one that is ready for it from before, or the fastest that can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .. import backends, functional
from ..capture import language  # noqa: F401 (tells nodes what laws may be made of)
from ..capture.apart import apart
from ..capture.capture import capture, check
from ..capture.chains import NotAChain
from ..capture.joined import joined
from ..capture.lowering import lower
from ..capture.normal import normal
from ..capture.program import Program, form_of
from ..capture.recording import NotCapturable, Recording
from ..capture.surroundings import obstacle
from ..capture.watch import PROVEN_AFTER
from .autograd import AutogradExecutor
from .chain import ChainExecutor
from .executor import Executor
from .graph import GraphExecutor
from .reach import modules_of, names_of
from .replay import Replay

EXECUTORS = ("chain", "graph", "autograd")
# Runs on autograd after which something faster is tried again, at most: after a capture, which takes about as long
# as a few steps; and after a trace, which takes a hundred times as long, and fails again unless its cause has passed.
_PATIENCE = 31
_LONG_PATIENCE = 1023
# Energies that a loop is ready for at a time: in all, as of different batch sizes; and on states of one form, as of
# phases that weigh their terms differently, each of which takes a dry run to tell from the others.
READY = 64
ALIKE = 8


@dataclass(frozen=True, eq=False)
class Ready:
    """An energy that was captured, on states of these forms; while another has its turn its program rests."""

    forms: list[tuple[Any, ...]]
    program: Program
    executor: Executor
    reasons: dict[str, str]


class Choice:
    """What runs the E-steps of an energy, and what else it has been ready for.

    Args:
        energy: zero-argument callable.
        states: the free ones.
        wanted: the executor that was insisted on; None takes the fastest that can.

    Attributes:
        program: what was captured; None before that, and where the energy cannot be captured.
        executor: of the energy as it was last; None before.
        reasons: of executors by their names, why they cannot run it.
        ready: what the energy has been, latest last.
        replay: the CUDA graphs of all of these.
    """

    def __init__(self, energy: Callable[[], Tensor], states: Sequence[Tensor], wanted: str | None) -> None:
        self._energy, self._states, self.wanted = energy, states, wanted
        self.program: Program | None = None
        self.executor: Executor | None = None
        self.reasons: dict[str, str] = {}
        self.ready: list[Ready] = []
        self.replay = Replay()
        self._captures = self._given_up = 0
        self._change: str | None = None  # which the last capture was for
        self._refusals = self._patience = 0  # failed attempts in a row, and runs until the next
        self._training: list[bool] = []  # the modes of the modules at the last attempt

    def __getstate__(self) -> dict[str, Any]:
        return vars(Choice(self._energy, self._states, self.wanted))  # captures are made anew

    def prepared(self) -> Executor:
        """An executor for the energy as it is now."""
        last, change = self.program, None
        if last is not None and self.executor is not None:
            change = check(self._energy, last)
            if change is None:
                given_up = isinstance(self.executor, AutogradExecutor) and not self._is_patient()
                if given_up or (isinstance(self.executor, ChainExecutor) and self.executor.obstacle):
                    self._try_again(last)
                return self.executor
            last.rest()
        elif isinstance(self.executor, AutogradExecutor) and self._is_patient():
            return self.executor
        self.program, self.executor, self.reasons = None, None, {}
        forms = [form_of(p) for p in self._states]
        recording = None if change is None else change.recording
        ready, recording = self._met_before(forms, last, recording)
        if ready is not None:
            self.program, self.executor, self.reasons = ready.program, ready.executor, ready.reasons
            return ready.executor
        self.executor = self._choose(recording)
        if self.program is not None:
            self._change = None if change is None else change.reason
            self._keep(Ready(forms, self.program, self.executor, self.reasons))
        return self.executor

    def _met_before(
        self, forms: list[tuple[Any, ...]], last: Program | None, recording: Recording | None
    ) -> tuple[Ready | None, Recording | None]:
        """What is ready for the energy, which is no longer the last; and a recording of it, if there is one."""
        for ready in [r for r in reversed(self.ready) if r.forms == forms and r.program is not last]:
            if recording is not None and recording.refusal is not None:
                break  # it has done what no program does, and may have had effects
            if not ready.program.wake():  # and never will
                self._forget(ready)
                continue
            change = check(self._energy, ready.program)
            if change is None:
                self.ready.remove(ready)
                self.ready.append(ready)
                return ready, None
            ready.program.rest()
            recording = change.recording or recording
        return None, recording

    def _try_again(self, program: Program) -> None:
        """To run a program otherwise: only autograd could, or chains no longer can."""
        ready = next(r for r in self.ready if r.program is program)
        self.reasons = {}
        self.executor = self._executor_of(program)
        self.ready[self.ready.index(ready)] = Ready(ready.forms, program, self.executor, self.reasons)

    def _is_patient(self) -> bool:
        """Whether to leave it at autograd, as an attempt at something faster has failed not long ago."""
        if self.wanted == "autograd":
            return True
        if self._patience == 0 or obstacle(self._states) or self._modes() != self._training:
            return False
        self._patience -= 1
        return True

    def _modes(self) -> list[bool]:
        return [m.training for module in modules_of(self._energy).values() for m in module.modules()]

    def _keep(self, ready: Ready) -> None:
        """Be ready for this energy when another has had its turn."""
        self.ready.append(ready)
        self._captures += 1
        alike = [r for r in self.ready if r.forms == ready.forms]
        for old in alike[:-ALIKE] or self.ready[:-READY]:
            self._forget(old)
            self._given_up += 1

    def _forget(self, ready: Ready) -> None:
        self.ready.remove(ready)
        self.replay.forget(ready.executor)

    def _choose(self, recording: Recording | None) -> Executor:
        if self.wanted == "autograd":
            return AutogradExecutor(self._energy, self._states)
        if reason := obstacle(self._states):
            self.reasons["chain or graph"] = reason
            self._patience = 0  # once it has passed
            return self._instead(AutogradExecutor(self._energy, self._states))
        try:
            program = capture(self._energy, self._states, recording)
        except NotCapturable as refusal:
            self.reasons["chain or graph"] = str(refusal)
            self._retreat(_PATIENCE)
            return self._instead(AutogradExecutor(self._energy, self._states, refusal.evaluated))
        self.program = program
        named = names_of(self._energy)
        program.names = {i: named[id(t)] for i, t in enumerate(program.leaves) if id(t) in named}
        _check_clamped(program)
        return self._executor_of(program)

    def _executor_of(self, program: Program) -> Executor:
        executor: Executor | None = None
        if self.wanted != "graph":
            try:
                paths = backends.without_graphs(self._states[0].device.type)
                written = joined(normal(program, program.batch[0] if program.batch else 1))
                written = apart(written, differences=not paths)
                chains = lower(written, paths)
                chain = ChainExecutor(written, chains, self._states, self.replay)
                if reason := chain.obstacle:
                    raise NotAChain(reason)
                executor = chain
            except NotAChain as refusal:
                self.reasons["chain"] = str(refusal)
        try:
            executor = executor or GraphExecutor(program, self._states, self.replay)
        except NotCapturable as reason:
            self.reasons["graph"] = str(reason)
            self._retreat(_LONG_PATIENCE)
            return self._instead(AutogradExecutor(self._energy, self._states))
        self._refusals = self._patience = 0
        return self._instead(executor)

    def _retreat(self, patience: int) -> None:
        """To autograd, for longer every time."""
        self._patience = min(4**self._refusals - 1, patience)
        self._refusals, self._training = self._refusals + 1, self._modes()

    def _instead(self, executor: Executor) -> Executor:
        if self.wanted not in (None, executor.name):
            reasons = "; ".join(self.reasons.values())
            raise RuntimeError(f"executor {self.wanted!r} cannot run this energy: {reasons}")
        return executor

    def history(self) -> list[str]:
        """Why the callable is run dry before every run, and what captures there were, where it was more than one."""
        watching = [f"run dry before every run: {reason}"] if (reason := self._dry()) else []
        if self._captures < 2:
            return watching
        last = f", the last because {self._change}" if self._change else ""
        lines = [f"captured {self._captures} times so far{last}; ready for {len(self.ready)} energies"]
        if self._given_up:
            lines.append(
                f"{self._given_up} given up, as a loop is ready for {READY} energies at a time, and for {ALIKE} on "
                "states of one form: where they come again they are captured anew"
            )
        return watching + lines

    def _dry(self) -> str:
        """Why the callable goes on being run dry, where there is a reason but that it is new."""
        if self.program is None:
            return ""
        guard = self.program.guard
        if guard is not None and (guard.watch is not None or guard.obstacle):
            return guard.obstacle
        return f"it has not been the same {PROVEN_AFTER} times in a row" if self._captures > 1 else ""


def _check_clamped(program: Program) -> None:
    """Raise where the state of a categorical node is free."""
    for call in program.calls:
        if call.function is functional.categorical_energy and call.inputs[0] in program.free:
            raise ValueError(
                f"params must not hold the state of a categorical node, got {program.in_words(call.inputs[0])}: it is "
                "a distribution, which E-steps would leave; clamp it, as get_estep_params(net, exclude=[node]) does"
            )
