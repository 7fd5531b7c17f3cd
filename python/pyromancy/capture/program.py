"""What an energy computes, as a list of calls: captured by `capture`, read by the executors."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from .calls import Call, filled, tensors
from .held import Held, held
from .interrupt import Uninterrupted
from .terms import Term, Terms
from .vocabulary import arguments

if TYPE_CHECKING:
    from .watch import Guard


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in memory, and its part in autograd."""

    shape: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt
    dtype: torch.dtype
    requires_grad: bool
    is_leaf: bool

    @classmethod
    def of(cls, t: Tensor) -> Layout:
        """That of a tensor."""
        return cls(t.shape, t.stride(), t.storage_offset(), t.dtype, t.requires_grad, t.is_leaf)

    @torch.enable_grad()
    def tensor(self) -> Tensor:
        """A tensor without memory that answers as the one did."""
        t = torch.empty(0, dtype=self.dtype, device="meta").as_strided(self.shape, self.stride, self.offset)
        t.requires_grad_(self.requires_grad)
        return t if self.is_leaf else t.view_as(t)


# Functions that take only the form of some of their tensors, by meaning: how many, from the first on, they read.
_VALUES_FROM = {"takes the second's form": 1, "takes forms alone": 0, "law of one's own": 1}


@dataclass(eq=False)
class Program:
    """The calls between an energy's leaves and its result, in order.

    Attributes:
        leaves: the tensors the energy reads: states, parameters, buffers. They take the first slots.
        free: slots of the leaves that inference updates.
        calls: what is computed, in order.
        result: slot of the energy, ``[B]``.
        names: what to call leaves when printed.
        stand_ins: for every slot a tensor of its shape and dtype that takes no memory.
        layouts: for every slot what else the tensor that was recorded tells of itself.
        addresses_memory: whether it takes elements by their places in memory, and must be run on leaves as they lie.
        lent: stand-ins that dry runs left somewhere, as the energy would its results, with their slots.
    """

    leaves: list[Tensor]
    free: frozenset[int]
    calls: list[Call]
    result: int
    names: dict[int, str] = field(default_factory=dict)
    stand_ins: list[Tensor] = field(default_factory=list, repr=False)
    layouts: list[Layout] = field(default_factory=list, repr=False)
    addresses_memory: bool = False
    lent: list[tuple[int, Tensor]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.producer: dict[int, Call] = {}
        for call in self.calls:
            for slot in call.outputs:
                if slot >= len(self.leaves):
                    self.producer.setdefault(slot, call)
        varying = set(self.free)
        for call in self.calls:
            if varying.intersection(call.inputs[: _VALUES_FROM.get(call.meaning or "")]):
                varying.update(call.outputs)
        self.varying = frozenset(varying)
        self.forms = [form_of(t) for t in self.leaves]
        self.as_written = self.producer  # the calls that the energy itself makes, where `rewritten` knows of others
        self.replacements = 0  # how often other leaves were taken
        self._dry_calls: list[tuple[Call, Any, Any, Any]] = []
        self._held: list[int] = []  # references to every stand-in, the program's own
        self._slots: dict[int, int] = {}  # of the stand-ins, by their ids; the last of one that is overwritten
        self._schedules: dict[tuple[int, ...], list[Call]] = {}  # slots -> the calls that they need
        self._resting: list[tuple[TensorWeakRef, bool]] = []  # its leaves, and whether each is data
        self.gone: set[int] = set()  # slots of data that went while the program rested
        self.guard: Guard | None = None  # tells where no dry run is needed
        slopes = [arguments(c.function, c.args, c.kwargs)["weight"].index for c in self.calls if c.meaning == "prelu"]
        of_slopes = set[int]().union(*map(self.ancestors, slopes))
        # leaves that chains take only where nothing learns them
        self.learns = {i: t.requires_grad for i, t in enumerate(self.leaves) if i in of_slopes}
        self.divided = frozenset[int]()  # free states of whose energies some are written as those of other nodes
        laws = {c.inputs[0]: (c.inputs[1], c.inputs[2]) for c in self.calls if c.meaning == "law of one's own"}
        self.terms = Terms(self.result, self.producer, self.stand_ins, self.varying, self.free, laws).found

    def evaluate(self, wanted: Sequence[int], leaves: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The values of slots, computing what they need and nothing else, to the bit as the energy does.

        A state that was set to its prediction and does not change then has no error: one of rounding size has a sign,
        which is all that laws of distances pull by.

        Args:
            wanted: slots.
            leaves: values for the leaves; None takes the leaves themselves.
        """
        schedule = self._schedules.get(tuple(wanted))
        if schedule is None:
            schedule = self._schedules[tuple(wanted)] = self._schedule_of(wanted)
        values: dict[int, Tensor] = dict(enumerate(self.leaves if leaves is None else leaves))
        for call in schedule:
            result = call.function(*filled(call.args, values), **filled(call.kwargs, values))
            values.update(zip(call.outputs, tensors(result), strict=True))
        return [values[s] for s in wanted]

    def _schedule_of(self, wanted: Sequence[int]) -> list[Call]:
        """The calls that slots need, each after those it takes from."""
        schedule: dict[int, Call] = {}  # by identity
        made = set[int]()
        stack = [*reversed(wanted)]
        while stack:
            slot = stack[-1]
            call = self.as_written.get(slot) or self.producer.get(slot)
            missing = [] if call is None or slot in made else [s for s in call.inputs if s not in made]
            if missing:
                stack += missing
                continue
            stack.pop()
            made.add(slot)
            if call is not None:
                made.update(call.outputs)
                schedule[id(call)] = call
        return list(schedule.values())

    def energies(self, terms: Sequence[Term], leaves: Sequence[Tensor] | None = None) -> list[Tensor]:
        """What terms come to, per sample or broadcasting to that."""
        slots = list(dict.fromkeys(s for t in terms for s in t.operands))
        values = dict(zip(slots, self.evaluate(slots, leaves), strict=True))
        result = self.stand_ins[self.result]
        one = result.new_ones(())
        return [
            t.of(
                one if t.slot is None else values[t.slot], result.shape,
                *(values[s] for s in t.sample_weights),
            )
            for t in terms
        ]  # fmt: skip

    def replace(self, leaves: dict[int, Tensor]) -> None:
        """Take other tensors of the same forms for leaves, by slot."""
        for slot, leaf in leaves.items():
            self.leaves[slot] = leaf
        self.replacements += 1
        self._dry_calls = []

    def rewritten(self, calls: list[Call], stand_ins: list[Tensor]) -> Program:
        """A program on the same leaves, also when they are replaced, that computes the same by other calls."""
        result = Program(
            self.leaves, self.free, calls, self.result, self.names, stand_ins, addresses_memory=self.addresses_memory
        )
        result.as_written = self.as_written
        return result

    def rest(self) -> None:
        """Keep no leaf alive: until `wake`, stand-ins take their places."""
        data = frozenset(self.data())
        self._resting = [(TensorWeakRef(t), i in data) for i, t in enumerate(self.leaves)]
        self.leaves[:], self._dry_calls, self.guard = self.stand_ins[: len(self.leaves)], [], None
        self.gone.clear()

    def wake(self) -> bool:
        """Take the leaves up again; whether all are there, but for data, in whose place a check may find other."""
        for slot, (weak, data) in enumerate(self._resting):
            leaf = weak()
            if leaf is None:
                if not data:
                    return False
                leaf = torch.zeros(())
                self.gone.add(slot)
            self.leaves[slot] = leaf
        self._resting = []
        return True

    @property
    def dry_result(self) -> Tensor:
        """What a dry run returns."""
        return self.stand_ins[self.result] if self.result >= len(self.leaves) else self.leaves[self.result]

    def dry_calls(self) -> list[tuple[Call, Any, Any, Any]]:
        """Every call that the energy makes, with its arguments and results: leaves themselves, stand-ins for others."""
        if not self._dry_calls:
            values = dict(enumerate([*self.leaves, *self.stand_ins[len(self.leaves) :]]))
            calls = list[tuple[Call, Any, Any, Any]]()
            for call in (c.written or c for c in self.calls):
                trees = (call.args, call.kwargs, call.result)
                calls.append((call, *(filled(tree, values) for tree in trees)))
            del values
            self._slots = {id(t): slot for slot, t in enumerate(self.stand_ins)}
            self._held = [*map(sys.getrefcount, self.stand_ins)]
            self._dry_calls = calls  # last, as Ctrl-C may come before
        return self._dry_calls

    def lend(self) -> None:
        """Part with the stand-ins that somebody else holds after a dry run."""
        holders = [*map(sys.getrefcount, self.stand_ins)]
        if holders == self._held:
            return
        fresh: dict[int, Tensor] = {}  # by the id of the one that it takes the place of
        for slot, t in enumerate(self.stand_ins):
            if holders[slot] > self._held[slot]:
                if id(t) not in fresh:
                    fresh[id(t)] = stand_in(t)
                    self.lent.append((self._slots[id(t)], t))
                self.stand_ins[slot] = fresh[id(t)]
        self._dry_calls = []

    @torch.no_grad()
    def mend(self, known: dict[int, Tensor] | None = None) -> None:
        """Make what was lent hold what the energy would have stored, with the leaves as they are.

        Args:
            known: values of stand-ins, by their ids; the others are computed.
        """
        with Uninterrupted():  # or some would stay stand-ins that are not known to be lent
            lent, self.lent = self.lent, []
            values = dict(known or {})
            missing = {id(t): slot for slot, t in lent if id(t) not in values}
            values.update(zip(missing, self.evaluate([*missing.values()]), strict=True))
            with torch.inference_mode(False):
                for _, t in lent:
                    value = values[id(t)]
                    t.data = value.clone() if value.is_inference() else value.detach()

    def laid_out(self, t: Tensor) -> Tensor:
        """What tells of a tensor's layout and gradient: for a stand-in one on no device, else the tensor itself."""
        slot = self._slots.get(id(t))
        return t if slot is None else self.layouts[slot].tensor()

    def held(self, slot: int) -> Held | None:
        """What a slot holds of a free state that is data where it is known; None of any other slot."""
        return held(self.producer.get(slot), self.stand_ins, self.varying, self.free)

    def state_of(self, slot: int) -> int:
        """The state in whose place a slot stands, which is the slot itself where nothing of it is data."""
        held = self.held(slot)
        return slot if held is None else held.state

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

    def paths(self, into: Iterable[int] | None = None) -> dict[int, int]:
        """In how many ways each slot enters others, or terms that free states change, through the calls between."""
        if into is None:
            moved = [t for t in self.terms if t.slot is not None and t.slot in self.varying]
            into = (s for t in moved for s in (*(t.node.operands if t.node else [t.slot]), *t.sample_weights))
        count = dict(Counter(into))
        for call in reversed(self.calls):
            ways = sum(count.get(slot, 0) for slot in call.outputs if self.producer.get(slot) is call)
            for slot in call.inputs if ways else ():
                count[slot] = count.get(slot, 0) + ways
        return count

    def data(self) -> list[int]:
        """The leaves that look like data and not like states or parameters: they do not require gradients."""
        return [i for i, t in enumerate(self.leaves) if i not in self.free and not t.requires_grad]

    @property
    def batch(self) -> torch.Size:
        """The number of samples, ``[B]``: of an energy that is one number that of the first state."""
        shape = self.stand_ins[self.result].shape
        return shape or self.stand_ins[min(self.free, default=self.result)].shape[:1]

    def moving(self) -> list[int]:
        """The leaves that may be elsewhere for every batch, by their looks: one row per sample, and not free."""
        batch = self.batch[:1]
        return [i for i, t in enumerate(self.leaves) if i not in self.free and t.dim() and t.shape[:1] == batch]

    def in_words(self, slot: int) -> str:
        """What to call a slot in a message: a leaf by its name, what is computed by its call and the leaves it is of.

        Those are the states that it depends on, if there are any.
        """
        call = self.producer.get(slot)
        if call is None:
            kind = "state" if slot in self.free else "tensor"
            return self.names.get(slot, f"a {kind} {[*self.leaves[slot].shape]}")
        leaves = sorted(s for s in self.ancestors(slot) if s not in self.producer)
        of = dict.fromkeys(self.in_words(s) for s in leaves if s in self.free or self.free.isdisjoint(leaves))
        return f"{call.name} of {', '.join(of)}" if of else call.name

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


def stand_in(t: Tensor) -> Tensor:
    """A tensor of a form that takes no memory, of NaN where that is a number: whoever computes with it shall see."""
    value = float("nan") if t.is_floating_point() or t.is_complex() else 0
    with torch.inference_mode(False):
        return torch.full((), value, dtype=t.dtype, device=t.device).expand(t.shape)


def form_of(t: Tensor) -> tuple[Any, ...]:
    """All but a tensor's values and its place in memory."""
    try:
        strides = t.stride()
    except (RuntimeError, NotImplementedError):  # it is sparse or the like
        return t.shape, t.dtype, t.device, t.layout
    dtype = t.dtype
    return t.shape, dtype, t.device, strides, t.is_neg(), dtype.is_complex and t.is_conj()


def _show(argument: Any) -> str:
    return str(argument) if isinstance(argument, torch.dtype | torch.device) else repr(argument)
