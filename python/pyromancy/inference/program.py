"""What an energy computes, as a list of calls: captured by `capture`, read by the executors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import resolve_name
from torch.utils.weak import TensorWeakRef


@dataclass(frozen=True)
class Slot:
    """Stands for a tensor in the arguments of a call."""

    index: int

    def __repr__(self) -> str:
        return f"%{self.index}"


@dataclass(frozen=True)
class Call:
    """One function call: slots stand for the tensors in its arguments and its result.

    Attributes:
        inputs: slots of the tensors it took, in order.
        outputs: slots of those it returned.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def name(self) -> str:
        """The function's name without its module: ``linear``, ``relu``, ``add``."""
        full = resolve_name(self.function) or getattr(self.function, "__name__", repr(self.function))
        return full.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Term:
    """A summand of the energy: `weight` times what the slot holds.

    That is one value per sample, or broadcasts to that where no free state changes it, as a penalty on weights does.
    """

    slot: int
    weight: float


# Functions that take only the form of some of their tensors: how many of them, from the first on, they read.
_VALUES_FROM = {
    **dict.fromkeys(("expand_as", "view_as", "reshape_as", "type_as"), 1),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"), 0),
}


@dataclass
class Program:
    """The calls between an energy's leaves and its result, in order.

    Attributes:
        leaves: the tensors the energy reads: states, parameters, buffers. They take the first slots.
        free: slots of the leaves that inference updates.
        calls: what is computed, in order.
        result: slot of the energy, ``[B]``.
        names: what to call leaves when printed.
        stand_ins: for every slot a tensor of its shape and dtype that takes no memory.
        stores: whether the last dry run left stand-ins somewhere, as the energy would its results.
    """

    leaves: list[Tensor]
    free: frozenset[int]
    calls: list[Call]
    result: int
    names: dict[int, str] = field(default_factory=dict)
    stand_ins: list[Tensor] = field(default_factory=list, repr=False)
    stores: bool = False

    def __post_init__(self) -> None:
        self.producer: dict[int, Call] = {}
        for call in self.calls:
            for slot in call.outputs:
                if slot >= len(self.leaves):
                    self.producer.setdefault(slot, call)
        varying = set(self.free)
        for call in self.calls:
            if varying.intersection(call.inputs[: _VALUES_FROM.get(call.name)]):
                varying.update(call.outputs)
        self.varying = frozenset(varying)
        self.forms = [form_of(t) for t in self.leaves]
        self._dry_calls: list[tuple[Call, Any, Any, Any]] = []
        self._held = 0  # references to stand-ins, the program's own
        self._schedules: dict[tuple[int, ...], list[Call]] = {}  # slots -> the calls that they need
        self._resting: list[tuple[TensorWeakRef, bool]] = []  # its leaves, and whether each is data
        self.terms = self._terms()

    def evaluate(self, wanted: Sequence[int], leaves: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The values of slots, computing what they need and nothing else.

        Args:
            wanted: slots.
            leaves: values for the leaves; None takes the leaves themselves.
        """
        schedule = self._schedules.get(tuple(wanted))
        if schedule is None:
            needed = set[int]().union(*map(self.ancestors, wanted))
            schedule = [call for call in self.calls if not needed.isdisjoint(call.outputs)]
            self._schedules[tuple(wanted)] = schedule
        values: dict[int, Tensor] = dict(enumerate(self.leaves if leaves is None else leaves))
        for call in schedule:
            result = call.function(*_fill(call.args, values), **_fill(call.kwargs, values))
            values.update(zip(call.outputs, tensors(result), strict=True))
        return [values[s] for s in wanted]

    def replace(self, leaves: dict[int, Tensor]) -> None:
        """Take other tensors of the same forms for leaves, by slot."""
        for slot, leaf in leaves.items():
            self.leaves[slot] = leaf
        self._dry_calls = []

    def rest(self) -> None:
        """Keep no leaf alive: until `wake`, stand-ins take their places."""
        data = frozenset(self.data())
        self._resting = [(TensorWeakRef(t), i in data) for i, t in enumerate(self.leaves)]
        self.leaves, self._dry_calls = self.stand_ins[: len(self.leaves)], []

    def wake(self) -> bool:
        """Take the leaves up again; whether all are there, but for data, in whose place a check may find other."""
        for slot, (weak, data) in enumerate(self._resting):
            leaf = weak()
            if leaf is not None:
                self.leaves[slot] = leaf
            elif not data:
                return False
        self._resting = []
        return True

    @property
    def dry_result(self) -> Tensor:
        """What a dry run returns."""
        return self.stand_ins[self.result] if self.result >= len(self.leaves) else self.leaves[self.result]

    def dry_calls(self) -> list[tuple[Call, Any, Any, Any]]:
        """Every call with the arguments and results it has where leaves are themselves and results stand-ins."""
        if not self._dry_calls:
            values = dict(enumerate([*self.leaves, *self.stand_ins[len(self.leaves) :]]))
            for call in self.calls:
                self._dry_calls.append((call, *(_fill(tree, values) for tree in (call.args, call.kwargs, call.result))))
            del values
            self._held = self._holders()
        return self._dry_calls

    def stand_ins_are_held(self) -> bool:
        """Whether somebody else holds stand-ins, after a dry run."""
        return self._holders() > self._held

    def _holders(self) -> int:
        return sum(map(sys.getrefcount, self.stand_ins))

    def ancestors(self, slot: int) -> set[int]:
        """Slots that a slot is computed from, itself included."""
        found, stack = set[int](), [slot]
        while stack:
            s = stack.pop()
            if s not in found:
                found.add(s)
                if s in self.producer:
                    stack.extend(self.producer[s].inputs)
        return found

    def paths(self) -> dict[int, int]:
        """In how many ways each slot enters the energy, through the calls between."""
        count = {self.result: 1}
        for call in reversed(self.calls):
            ways = sum(count.get(slot, 0) for slot in call.outputs if slot >= len(self.leaves))
            for slot in call.inputs if ways else ():
                count[slot] = count.get(slot, 0) + ways
        return count

    def data(self) -> list[int]:
        """The leaves that look like data and not like states or parameters: they do not require gradients."""
        return [i for i, t in enumerate(self.leaves) if i not in self.free and not t.requires_grad]

    def moving(self) -> list[int]:
        """The leaves that may be elsewhere for every batch, by their looks: one row per sample, and not free."""
        batch = self.stand_ins[self.result].shape[:1]
        return [i for i, t in enumerate(self.leaves) if i not in self.free and t.dim() and t.shape[:1] == batch]

    def leaf_name(self, slot: int) -> str:
        """What to call a leaf in a message."""
        return self.names.get(slot, f"%{slot}")

    def _terms(self) -> list[Term]:
        """The result as a weighted sum, taken apart through additions and scalings of per-sample values."""
        terms: list[Term] = []

        def split(slot: int, weight: float) -> None:
            call = self.producer.get(slot)
            parts = [] if call is None else self._summands(call)
            for part, factor in parts:
                split(part, weight * factor)
            if not parts:
                terms.append(Term(slot, weight))

        split(self.result, 1.0)
        return terms

    def _summands(self, call: Call) -> list[tuple[int, float]]:
        """The slots that a call adds up, and the number it multiplies each with; empty where it does neither."""
        tensors = [a.index for a in call.args if isinstance(a, Slot)]
        scalars = [a for a in call.args if isinstance(a, int | float) and not isinstance(a, bool)]
        name = call.name.strip("_")
        if name == "sum" and len(tensors) == 1 and [*scalars, *call.kwargs.values()] == [0]:
            stack = self.producer.get(tensors[0])
            if stack is not None and stack.name == "stack" and [*stack.args[1:], *stack.kwargs.values()] in ([], [0]):
                return [(s, 1.0) for s in stack.inputs]
        if call.kwargs or len(call.args) != 2:
            return []
        whole = self.stand_ins[call.outputs[0]].shape
        broadcast = [s for s in tensors if self.stand_ins[s].shape != whole]
        if any(s in self.varying for s in broadcast):
            return []  # what broadcasts counts more than once
        if name in ("add", "radd") and len(tensors) == 2:
            return [(s, 1.0) for s in tensors]
        if name in ("add", "radd") and tensors and scalars == [0]:
            return [(tensors[0], 1.0)]
        if name in ("mul", "rmul") and tensors and scalars:
            return [(tensors[0], float(scalars[0]))]
        if name in ("div", "truediv", "true_divide") and tensors and scalars and call.args[1] == scalars[0] != 0:
            return [(tensors[0], 1 / float(scalars[0]))]
        return []

    def __str__(self) -> str:
        lines = []
        for i, leaf in enumerate(self.leaves):
            role = "free state" if i in self.free else "fixed"
            name = f"{self.names[i]}, {role}" if i in self.names else role
            lines.append(f"%{i}: {name} {tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}")
        for call in self.calls:
            outputs = ", ".join(f"%{s}" for s in call.outputs)
            arguments = ", ".join([*map(_show, call.args), *(f"{k}={_show(v)}" for k, v in call.kwargs.items())])
            when = "every step" if self.varying.intersection(call.outputs) else "once a run"
            lines.append(f"{outputs} = {call.name}({arguments})  # {when}")
        lines.append(f"energy = %{self.result}")
        return "\n".join(lines)


def form_of(t: Tensor) -> tuple[Any, ...]:
    """All but a tensor's values and its place in memory."""
    return t.shape, t.dtype, t.device, t.stride()


def replaced(tree: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Arguments or a result with everything of a kind in it replaced, in tuples of any type, lists and dicts."""
    if isinstance(tree, kind):
        return function(tree)
    if isinstance(tree, tuple):
        items = [replaced(v, kind, function) for v in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if type(tree) is list:
        return [replaced(v, kind, function) for v in tree]
    if isinstance(tree, dict):
        return {k: replaced(v, kind, function) for k, v in tree.items()}
    return tree


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in arguments or a result, in order."""
    found: list[Tensor] = []
    replaced(tree, Tensor, found.append)
    return found


def _fill(tree: Any, values: dict[int, Tensor]) -> Any:
    return replaced(tree, Slot, lambda slot: values[slot.index])


def _show(argument: Any) -> str:
    return str(argument) if isinstance(argument, torch.dtype | torch.device) else repr(argument)
