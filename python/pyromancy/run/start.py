"""How a batch starts: which states a user's function sets, and to what, captured as an energy is."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..capture.checker import Checker
from ..capture.edges import EdgeTensors, edges_of
from ..capture.interrupt import Uninterrupted
from ..capture.normal import normal
from ..capture.program import Program, form_of
from ..capture.recording import NotCapturable, Recording
from ..capture.surroundings import obstacle
from ..capture.watch import Guard
from ..nodes.base import StateNode, watched

StartFunction = Callable[..., Any]
_VALUES = (bool, int, float, str, type(None))
_NOT_PLAIN = "it is given a tensor of a type of its own, or with attributes"


@dataclass(frozen=True)
class Setting:
    """A state that is set: to what a slot holds, after so many calls."""

    node: StateNode
    slot: int
    position: int


class Start:
    """What a start function does, captured.

    Args:
        function: the user's.
        batch: what it takes; it is run, and sets the states.

    Raises:
        NotCapturable: it does more than PyTorch's functions of fixed tensors, and set states by `init`.
        ValueError: it sets no state.
    """

    def __init__(self, function: StartFunction, batch: tuple[Any, ...]) -> None:
        self.function = function
        self.settings: list[Setting] = []
        self._resets: list[StateNode] = []
        # what a function is given and may be changed in place, a dry run alone tells
        changing = [type(t).__name__ for t in batch if not isinstance(t, (Tensor, *_VALUES))]
        self._changing = f"it is given a {changing[0]}, which may be changed in place" if changing else ""
        self.guard = None if changing else Guard(function)
        self._others = [None if isinstance(t, Tensor) else t for t in batch]
        recording = _Recording()
        given = [t for t in batch if isinstance(t, Tensor)]
        for t in given:
            recording.slot(t)

        def set_(node: StateNode, value: Tensor) -> Any:
            self.settings.append(Setting(node, recording.slot(value).index, len(recording.calls)))
            recording.result = value
            with torch._C.DisableTorchFunction(), _watching(None, None):
                return node.init(value)

        def reset(node: StateNode) -> None:
            self._resets.append(node)
            with torch._C.DisableTorchFunction(), _watching(None, None):
                node.reset()

        with Uninterrupted(), torch.no_grad(), recording.watching(), _watching(set_, reset):
            function(*batch)
        if not self.settings:
            raise ValueError("start must set states by their init, and sets none")
        if len({id(t) for t in given}) < len(given):
            raise NotCapturable("two of its arguments are one tensor")
        if recording.refusal is not None:
            raise NotCapturable(recording.refusal)
        self._made = [weakref.ref(recording.kept[i]) for i in recording.produced]  # which may be kept somewhere
        self.program, places = recording.renumbered(())
        self.settings = [Setting(s.node, places[s.slot], s.position) for s in self.settings]
        self._batch = [i for i, t in enumerate(batch) if isinstance(t, Tensor)]  # whose tensors are the first leaves
        self._refuse_what_depends_on_before()
        self._forms = [form_of(s.node.value) for s in self.settings]
        self._normal = normal(self.program, len(self.settings[0].node.value), {s.slot for s in self.settings})

    def _refuse_what_depends_on_before(self) -> None:
        """A state that is read before it is set, or set twice, or forgotten, is what the batch before has left."""
        nodes = [s.node for s in self.settings]
        for i, node in enumerate(nodes):
            if any(node is n for n in nodes[:i]):
                raise NotCapturable(f"it sets the state of {node._described} twice")
        for node in self._resets:
            if all(n is not node for n in nodes):
                raise NotCapturable(f"it resets {node._described} and does not set its state")
        of = {id(s.node.value): s for s in self.settings}
        for position, call in enumerate(self.program.calls):
            for slot in call.inputs:
                leaf = self.program.leaves[slot] if slot < len(self.program.leaves) else None
                if leaf is not None and id(leaf) in of and position < of[id(leaf)].position:
                    raise NotCapturable(
                        f"it reads the state of {of[id(leaf)].node._described} before it sets it, by {call.name}"
                    )

    def takes(self, batch: tuple[Any, ...]) -> bool:
        """Whether a batch is of the form of the one that was captured."""
        if len(batch) != len(self._others):
            return False
        for t, other in zip(batch, self._others, strict=True):
            # of what may be changed in place the dry run sees what it takes of it
            if not isinstance(t, Tensor) and t is not other and not _equal(t, other):
                return False
        given = [batch[i] for i in self._batch]
        return len({id(t) for t in given}) == len(given) and all(
            isinstance(t, Tensor) and form_of(t) == form and not t.requires_grad
            for t, form in zip(given, self.program.forms, strict=False)
        )

    def are_plain(self, batch: tuple[Any, ...]) -> bool:
        """Whether tensors hold nothing but data: the function may read attributes that somebody gave them."""
        return not any(type(batch[i]) is not Tensor or vars(batch[i]) for i in self._batch)

    def still(self, batch: tuple[Any, ...]) -> bool:
        """Whether the function still does the same with another batch, by a dry run; it then sets no state."""
        program = self.program
        if not self.takes(batch) or obstacle([s.node.value for s in self.settings]):
            return False
        if any(form_of(t) != f for t, f in zip(program.leaves, program.forms, strict=True)):
            return False
        new = {leaf: batch[i] for leaf, i in enumerate(self._batch) if batch[i] is not program.leaves[leaf]}
        if new:
            program.replace(new)
        plain = self.are_plain(batch)
        if self.guard is not None and plain and self.guard.holds():
            return True
        checker = _Checker(program, {})
        done = 0
        same = True

        def set_(node: StateNode, value: Tensor) -> Any:
            nonlocal done, same
            if same and done < len(self.settings) and checker.change is None:
                expected = self.settings[done]
                held = self._held(expected.slot)
                same = expected.node is node and held is value and expected.position == checker.position
                done += 1
            else:
                same = False
            return node.value

        def reset(node: StateNode) -> None:
            nonlocal same
            same = same and any(n is node for n in self._resets)

        with Uninterrupted():
            try:
                with torch.no_grad(), checker, _watching(set_, reset):
                    self.function(*batch)
            except Exception:  # which it raises again when it is run, if it is its own
                same = False
            finally:
                matched = same and checker.change is None and done == len(self.settings)
                matched = matched and checker.position == len(checker.expected)
                program.lend()
                if not matched:
                    program.mend(checker.real)
        if matched and self.guard is not None:
            known = [*program.leaves, *(s.node.value for s in self.settings)]
            self.guard.ran(known, checker.traces if plain else _NOT_PLAIN)
        return matched

    @property
    def obstacle(self) -> str:
        """Why the function goes on being run dry, where there is a reason but that it is new."""
        return self._changing if self.guard is None else self.guard.obstacle

    def supersedes(self, old: Start) -> bool:
        """Whether another of batches of the same form holds parameters that are no longer used."""
        given = range(len(self._batch))
        alike = [self.program.forms[i] for i in given] == [old.program.forms[i] for i in range(len(old._batch))]
        used = {id(t) for t in self.program.leaves}
        return alike and any(isinstance(t, nn.Parameter) and id(t) not in used for t in old.program.leaves)

    def _held(self, slot: int) -> Tensor:
        leaves = self.program.leaves
        return leaves[slot] if slot < len(leaves) else self.program.stand_ins[slot]

    def origin(self, slot: int) -> Tensor | None:
        """The state that a slot is, or is set to; None of anything else."""
        for s in self.settings:
            if s.slot == slot:
                return s.node.value
        if slot < len(self.program.leaves) and any(self.program.leaves[slot] is s.node.value for s in self.settings):
            return self.program.leaves[slot]
        return None

    def edges(self) -> Iterator[tuple[Setting, list[EdgeTensors] | None]]:
        """Every state that is set, with the edges that predict it from others, if that is what it is set to."""
        for s in self.settings:
            yield s, edges_of(self._normal, s.slot, self.origin)

    def edges_of_logits(self, setting: Setting) -> list[EdgeTensors] | None:
        """The edges that predict the logits whose probabilities a state is set to; None where it is set to others."""
        call = self._normal.producer.get(setting.slot)
        of = call.inputs if call is not None and call.meaning == "softmax" else ()
        return edges_of(self._normal, of[0], self.origin) if len(of) == 1 else None

    def values(self, settings: Sequence[Setting]) -> list[Tensor]:
        """What states are set to."""
        return self.program.evaluate([s.slot for s in settings])

    def fits(self) -> bool:
        """Whether the states are of the form that the function gives them."""
        return all(form_of(s.node.value) == form for s, form in zip(self.settings, self._forms, strict=True))

    def run(self, batch: tuple[Any, ...]) -> None:
        """Set the states."""
        with torch.no_grad():
            self.function(*batch)

    def samples(self, free: Collection[int], batch: tuple[Any, ...]) -> int:
        """How many samples the states are of, as they have been set.

        Args:
            free: the ids of free states.
            batch: what the function was given.

        Raises:
            ValueError: they are of different numbers; or a free state has one row, which all samples would share.
        """
        sizes = [len(s.node.value) for s in self.settings]
        if len({*sizes} - {1}) > 1:
            told = [f"{n} for {s.node._described}" for n, s in zip(sizes, self.settings, strict=True)]
            raise ValueError(f"start must set states of as many samples each, got {', '.join(told)}")
        samples = max(sizes)
        if min(sizes) < samples:  # which is meant of what is clamped
            short = [s.node for s, n in zip(self.settings, sizes, strict=True) if n == 1 and id(s.node.value) in free]
            if short:
                raise ValueError(
                    f"start must set free states of {samples} samples, as others are, got 1 for "
                    f"{', '.join(node._described for node in short)}, which all samples would share"
                    f"{_of_one_row(self.function, batch)}"
                )
        return samples

    def depends_on_states(self, setting: Setting, among: Collection[int] | None = None) -> bool:
        """Whether what a state is set to is computed from others that are set, or of those from some, by their ids."""
        states = {id(s.node.value) for s in self.settings} if among is None else among
        leaves = self.program.leaves
        return any(i < len(leaves) and id(leaves[i]) in states for i in self.program.ancestors(setting.slot))

    def set_in_order(
        self, settings: Sequence[Setting], put: Callable[[StateNode, Tensor], Any], batch: tuple[Any, ...] | None = None
    ) -> None:
        """Set states, each to what it comes to once those before it are set.

        Args:
            settings: of these, in their order.
            put: sets the state of a node to a value.
            batch: what the function is given; by default what it was given last.
        """
        leaves = list(self.program.leaves)
        if batch is not None:
            leaves[: len(self._batch)] = [batch[i] for i in self._batch]
        apart = [self.depends_on_states(s) for s in settings]
        together = [s.slot for s, alone in zip(settings, apart, strict=True) if not alone]
        values = iter(self.program.evaluate(together, leaves))
        for s, alone in zip(settings, apart, strict=True):
            put(s.node, self.program.evaluate([s.slot], leaves)[0] if alone else next(values))

    def reaches(self, program: Program) -> bool:
        """Whether an energy may take what the function is given, or makes of it, otherwise than as states."""
        given = {id(self.program.leaves[leaf]) for leaf in range(len(self._batch))}
        return self.stores(program) or any(id(t) in given for t in program.leaves)

    def stores(self, program: Program) -> bool:
        """Whether an energy may take what the function makes, otherwise than as states."""
        made = {id(t) for of in self._made if (t := of()) is not None}
        return bool(self.program.lent) or any(id(t) in made for t in program.leaves)

    def place(self, setting: Setting) -> int | None:
        """Which argument of the function a state is set to, if it is one as it is."""
        return self._batch[setting.slot] if setting.slot < len(self._batch) else None

    def restore(self) -> None:
        """Put values where the function has stored stand-ins."""
        if self.program.lent:
            self.program.mend()


def _equal(value: Any, other: Any) -> bool:
    """Whether two values cannot be told apart, as 1, 1.0 and True can, and 0.0 and -0.0."""
    return isinstance(value, _VALUES) and type(value) is type(other) and repr(value) == repr(other)


@contextmanager
def _watching(setter: Any, resetter: Any) -> Iterator[None]:
    before = watched.setter, watched.resetter
    watched.setter, watched.resetter = setter, resetter
    try:
        yield
    finally:
        watched.setter, watched.resetter = before


# Nothing here has a gradient, so that turning them off changes nothing; `zero_grad` drops those of the batch before.
_grad: Any = Tensor.grad
_ALLOWED = frozenset({torch._C._set_grad_enabled, _grad.__get__, _grad.__set__})


class _WithoutGradients(TorchFunctionMode):
    """Of a function that is run without gradients."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _ALLOWED:
            return function(*args)
        return super().__torch_function__(function, types, args, kwargs)


class _Recording(_WithoutGradients, Recording):
    what, when = "start", "batch"


class _Checker(_WithoutGradients, Checker):
    pass


def _of_one_row(start: StartFunction, batch: tuple[Any, ...]) -> str:
    """Which of a batch's tensors have one row, in words."""
    try:
        names = [*inspect.signature(start).bind(*batch).arguments]
    except (TypeError, ValueError):  # it has none, or takes what it is given by one name
        names = []
    names = names if len(names) == len(batch) else [f"argument {i} of step" for i in range(len(batch))]
    told = [name for name, t in zip(names, batch, strict=True) if isinstance(t, Tensor) and t.dim() and len(t) == 1]
    return f": {' and '.join(told)} has one row" if told else ""
