"""Runs a function dry against what was recorded of it: on stand-ins, as far as it does the same.

This computes nothing. It costs a microsecond or two per call, and notices whatever the function's Python code does
differently: a replaced parameter, another branch, train and eval mode, a new batch size. Where it meets another call
than the recorded one, it computes what it has answered with stand-ins, and goes on as a recording.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import vocabulary
from .calls import filled, replaced, tensors
from .interrupt import Uninterrupted
from .program import Program, form_of
from .recording import SHARED, Operators, Recording, share_memory, unless_its_own


@dataclass
class Change:
    """In what an energy no longer is what was captured, and a recording of what it is, unless it was not run."""

    reason: str
    recording: Recording | None = None


def dry_run(energy: Callable[[], Tensor], program: Program, data: Iterable[int]) -> Checker:
    """Run an energy on stand-ins, as far as it does what was recorded.

    Args:
        energy: what to run.
        program: what was recorded.
        data: slots of the leaves that may have been replaced.
    """
    checker = Checker(program, {id(program.leaves[slot]): slot for slot in data})
    if share_memory(program.leaves, program.free):
        checker.change = Change(SHARED)
        return checker
    failure = None
    matched = False
    with Uninterrupted():
        try:
            with torch.enable_grad(), checker:
                matched = checker.finish(energy())
        except Exception as error:
            failure = error
        finally:
            program.lend()
            if not matched:
                program.mend(checker.real)
    if failure is not None:
        recording = None if checker.change is None else checker.change.recording
        try:
            recording = unless_its_own(failure, recording, energy)
        finally:
            del failure  # whose traceback may hold this frame
        checker.change = Change(str(recording.refusal), recording)
    return checker


class Checker(TorchFunctionMode):
    """Compares every call with the recorded one and answers with stand-ins; from the first other one on it records.

    Args:
        program: what was recorded.
        data: slots of the leaves that may have been replaced, by their ids.
    """

    def __init__(self, program: Program, data: dict[int, int]) -> None:
        super().__init__()
        self.program, self.data = program, data
        self.expected = program.dry_calls()
        self.position = 0
        self.new: dict[int, Tensor] = {}  # in the place of which leaf
        self.change: Change | None = None
        self._asked = ""  # what of how a tensor lies in memory, or of its part in autograd
        self.real: dict[int, Tensor] = {}  # once there is a change, in the place of what was handed out, by id
        self._used: set[tuple[int, int]] = set()  # position of a call and slot of a leaf of which it takes the new one

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.position == len(self.expected):  # which is so after a change, too
            return self._otherwise(function, args, kwargs, "a call of {} more")
        call, expected_args, expected_kwargs, outputs = self.expected[self.position]
        if function is not call.function and function != call.function:
            if vocabulary.is_metadata(function) and not vocabulary.tells_layout(function):
                return function(*args, **(kwargs or {}))
            return self._otherwise(function, args, kwargs, f"{{}} in the place of {call.name}")
        if not self._equal_items(expected_args, args) or (
            (kwargs or expected_kwargs) and not self._equal(expected_kwargs, kwargs)
        ):
            return self._otherwise(function, args, kwargs, "other arguments of {}")
        if torch._C._is_any_autocast_enabled():
            return self._otherwise(function, args, kwargs, "autocast is on")
        self.position += 1
        return outputs

    def _otherwise(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None, reason: str
    ) -> Any:
        """A call that is not the recorded one."""
        if self.change is None:
            if vocabulary.is_metadata(function):
                if vocabulary.tells_layout(function):
                    self._asked = vocabulary.name_of(function).removesuffix(".__get__").rpartition(".")[2]
                    args = replaced(args, Tensor, self.program.laid_out)
                return function(*args, **(kwargs or {}))
            self._depart(reason.format(vocabulary.name_of(function).rpartition(".")[2]))
        assert self.change is not None
        assert self.change.recording is not None
        recording = self.change.recording
        with Operators(recording):
            return recording.__torch_function__(
                function, (), replaced(args, Tensor, self._actual), replaced(kwargs or {}, Tensor, self._actual)
            )

    def _actual(self, t: Tensor) -> Tensor:
        return self.real.get(id(t), t)

    def _depart(self, reason: str) -> None:
        """Record from here on, and compute what was handed out as stand-ins before."""
        recording = Recording()
        values = dict(enumerate(self.program.leaves))
        with Operators(recording):
            for position, (call, *_) in enumerate(self.expected[: self.position]):
                taken = values | {s: t for s, t in self.new.items() if (position, s) in self._used}
                result = recording.__torch_function__(
                    call.function, (), filled(call.args, taken), filled(call.kwargs, taken)
                )
                values.update(zip(call.outputs, tensors(result), strict=True))
        handed_out = [*self.program.leaves, *self.program.stand_ins[len(self.program.leaves) :]]
        self.real = {id(handed_out[s]): t for s, t in values.items() if t is not handed_out[s]}
        self.change = Change(reason, recording)
        self.expected, self.position = [], 0

    @property
    def traces(self) -> str:
        """What the energy has done that only another run can do, or tell, again; empty where there is nothing."""
        if lent := self.program.lent:
            return f"it stores what it computes, such as {self.program.in_words(lent[0][0])}"
        return f"it asks a tensor for {self._asked}, which is not looked at" if self._asked else ""

    def finish(self, result: Any) -> bool:
        """Take what the energy returns; whether all was as recorded."""
        if self.change is None:
            if self.position == len(self.expected) and result is self.program.dry_result:
                return True
            self._depart("it ends earlier, or with another result")
        assert self.change is not None
        assert self.change.recording is not None
        self.change.recording.result = replaced(result, Tensor, self._actual)
        return False

    def _equal_items(self, expected: tuple[Any, ...] | list[Any], given: tuple[Any, ...] | list[Any]) -> bool:
        if len(expected) != len(given):
            return False
        for e, g in zip(expected, given, strict=True):  # noqa: SIM110 (a generator takes three times as long)
            if e is not g and not self._equal(e, g):
                return False
        return True

    def _equal(self, expected: Any, given: Any) -> bool:
        """Whether arguments are the same: tensors by identity, everything else by type and value."""
        if expected is given:
            return True
        if isinstance(expected, dict):
            return (
                isinstance(given, dict)
                and expected.keys() == given.keys()
                and all(self._equal(expected[k], given[k]) for k in expected)
            )
        if type(expected) is not type(given):
            return False
        if isinstance(expected, Tensor):
            return self._replaces(expected, given)
        if isinstance(expected, tuple | list):
            return self._equal_items(expected, given)
        return bool(expected == given)

    def _replaces(self, expected: Tensor, given: Tensor) -> bool:
        """Whether a tensor is new data in the place of a leaf; it is then remembered as that."""
        slot = self.data.get(id(expected))
        if slot is None or form_of(given) != self.program.forms[slot] or given.requires_grad:
            return False
        if self.new.setdefault(slot, given) is not given:
            return False
        self._used.add((self.position, slot))
        others = (t for other, t in self.new.items() if other != slot)
        return not any(given is t for t in (*others, *self.program.leaves, *self.program.stand_ins))
