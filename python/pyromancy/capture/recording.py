"""Runs a function once and writes down which of PyTorch's functions it calls, up to what cannot be recorded.

It goes through `torch.overrides.TorchFunctionMode`, which sees every call of PyTorch's Python API. The function's code
is never cut off, as what it keeps between its calls, such as caches and flags, would be left as at that moment: a
recording that meets what cannot be recorded goes on without recording.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..ops import autograd
from . import vocabulary
from .calls import Call, Slot, replaced, tensors
from .interrupt import Uninterrupted
from .program import Layout, Program, stand_in

SHARED = "a state shares its memory with another tensor"


class NotCapturable(Exception):
    """An energy does something that cannot be recorded; the message says what.

    Attributes:
        evaluated: the energy with its graph, if it was evaluated, with whatever effects that has; else None.
    """

    def __init__(self, reason: str, evaluated: Tensor | None = None) -> None:
        super().__init__(reason)
        self.evaluated = evaluated


def record(energy: Callable[[], Tensor]) -> Recording:
    """Evaluate an energy, with a gradient, and write down what it calls.

    Raises:
        Exception: the energy's own.
    """
    recording = Recording()
    with Uninterrupted():  # whose error is none of the energy's
        try:
            with torch.enable_grad(), recording.watching():
                recording.result = energy()
        except Exception as error:
            return unless_its_own(error, recording, energy)
    return recording


def unless_its_own(error: Exception, recording: Recording | None, energy: Callable[[], Tensor]) -> Recording:
    """What comes of an energy that has raised an error under a mode: the error, if it raises without the mode, too.

    It is not asked again where the recording has let it do all that it wanted and had nothing to object to.
    """
    if recording is not None and any(t.shape == (0,) for t in recording.kept):
        error.add_note("The energy takes a tensor of shape (0,), as a node's state is before its first init.")
    if recording is None or recording.refusal is not None:
        recording = recording or Recording()
        recording.refuse(f"a dry run of it raises {type(error).__name__}: {error}")
        with contextlib.suppress(Exception), torch.enable_grad():
            recording.result = energy()
            return recording
    try:
        raise error
    finally:
        del error  # whose traceback holds this frame


class Recording(TorchFunctionMode):
    """Lets every call happen and writes it down, up to the first that cannot be recorded.

    Attributes:
        what: is recorded, in words.
        when: it is run, in words.
    """

    what: ClassVar[str] = "the energy"
    when: ClassVar[str] = "step"

    def __init__(self) -> None:
        super().__init__()
        self.refusal: str | None = None  # what cannot be recorded; the first such
        self.result: Any = None
        self.slots: dict[int, int] = {}  # id of a tensor -> a provisional slot
        self.kept: list[Tensor] = []  # by provisional slot, so that no id is used twice
        self.produced: set[int] = set()
        self.calls: list[Call] = []
        self.copies: dict[int, Tensor] = {}  # of data made in inference mode, by id
        self.addresses_memory = False
        self._nests = False  # a function that wraps one of PyTorch's and has its name was called, in itself

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._nests |= vocabulary.may_wrap(function)
        if self.refusal is not None or vocabulary.is_metadata(function):
            return function(*args, **kwargs)
        name = vocabulary.name_of(function)
        given = tensors((args, kwargs))
        if reason := self._objection(function, name, args, kwargs, given):
            self.refuse(reason)
            return function(*args, **kwargs)
        if vocabulary.works_in_place(function, args, kwargs):
            return self._overwrite(function, name, args, kwargs, given)
        inputs = tuple(self.slot(t).index for t in given)
        versions = [0 if t.is_inference() else t._version for t in given]
        result = self._result(function, args, kwargs, given)
        if versions != [0 if t.is_inference() else t._version for t in given]:
            self.refuse(f"{name} works in place")
        elif not _is_made_of_tensors(result):
            self.refuse(f"{name} reads values out of a tensor")
        if self.refusal is not None:
            return result
        # contiguous() and the like may return what they were given
        fresh = [t for t in tensors(result) if id(t) not in self.slots]
        self.produced.update(self.slot(t).index for t in fresh)
        packed_args, packed_kwargs, packed_result = (
            replaced(tree, Tensor, self.slot) for tree in (args, kwargs, result)
        )
        outputs = tuple(self.slot(t).index for t in tensors(result))
        self.calls.append(Call(function, packed_args, packed_kwargs, packed_result, inputs, outputs))
        return result

    def _result(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Tensor]
    ) -> Any:
        if not torch.is_inference_mode_enabled() and any(t.is_inference() for t in given):
            return function(*replaced(args, Tensor, self._saveable), **replaced(kwargs, Tensor, self._saveable))
        return function(*args, **kwargs)

    def _overwrite(
        self,
        function: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[Tensor],
    ) -> Any:
        """Let a call overwrite a tensor that the energy has made; the program makes a tensor of its own instead.

        From here on the slot of the one stands for the other.
        """
        pure = vocabulary.out_of_place(function, args, kwargs)
        if pure is None or not given:
            self.refuse(f"{name} works in place")
            return function(*args, **kwargs)
        target = given[0]
        if not self._is_separate(target):
            self.refuse(f"{name} works in place, on what {self.what} has not made or what shares memory with it")
            return function(*args, **kwargs)
        assigns = vocabulary.assigns(function)
        with torch.no_grad():  # of no device, so that nothing is computed or drawn
            like = (
                target
                if assigns
                else pure[0](*replaced(pure[1], Tensor, _formally), **replaced(pure[2], Tensor, _formally))
            )
        form = target.shape, target.dtype
        inputs = tuple(self.slot(t).index for t in given)
        (packed_args, packed_kwargs), (pure_args, pure_kwargs) = (
            [replaced(tree, Tensor, self.slot) for tree in trees] for trees in ((args, kwargs), pure[1:])
        )
        result = self._result(function, args, kwargs, given)
        if (result is not target and not assigns) or (like.shape, like.dtype) != form:
            self.refuse(f"{name} works in place, and gives another shape or dtype than it would else")
        if self.refusal is not None:
            return result
        slot = self.slots[id(target)] = len(self.kept)
        self.kept.append(target)
        self.produced.add(slot)
        written = Call(function, packed_args, packed_kwargs, Slot(slot), inputs, (slot,))
        self.calls.append(Call(pure[0], pure_args, pure_kwargs, Slot(slot), inputs, (slot,), written))
        return result

    def _is_separate(self, t: Tensor) -> bool:
        """Whether the energy has made a tensor, and none else that it has met shares its memory."""
        if self.slots.get(id(t)) not in self.produced:
            return False
        memory = t.untyped_storage()._cdata
        others = (o for o in self.kept if o is not t and o.layout is torch.strided)
        return all(o.untyped_storage()._cdata != memory for o in others)

    def _objection(
        self,
        function: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[Tensor],
    ) -> str | None:
        """Why a call cannot be recorded, as far as it tells before it happens."""
        if not vocabulary.is_known(function):
            return f"{name} is no function of PyTorch's, and what it does may depend on more than it takes"
        if torch._C._is_any_autocast_enabled():
            return f"{self.what} turns autocast on, which chooses dtypes call by call"
        for t in given:
            if type(t) not in (Tensor, torch.nn.Parameter) and not hasattr(t, "_node"):  # a state before its first init
                return f"{name} takes a {type(t).__name__}, which may compute otherwise than a Tensor"
            if t.layout is not torch.strided:
                return f"{name} takes a tensor of layout {t.layout}"
            if t.is_nested or t.is_quantized:
                return f"{name} takes a nested or quantized tensor"
            if torch._C._functorch.is_functorch_wrapped_tensor(t):
                return f"{self.what} uses a transform of torch.func"
        match vocabulary.meaning(function):
            case "normalization":
                given_as = vocabulary.arguments(function, args, kwargs)
                updates = given_as["training"] if "training" in given_as else given_as["use_input_stats"]
                if updates and given_as["running_mean"] is not None:
                    return f"{name} in training mode updates its running statistics at every {self.when}"
            case "makes of values" if given:
                return f"{name} reads values out of a tensor"
            case "tensor_split" if len(given) > 1:
                return f"{name} reads values out of a tensor"
            case "indexing" | "assignment" if _slices_by_tensors(args[1]):
                return "a slice reads values out of a tensor"
            case "autograd":
                return f"{name} has to do with autograd itself"
        return None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Record what is called meanwhile."""
        with self, Operators(self):
            yield

    def refuse(self, reason: str) -> None:
        """Record no more."""
        if self.refusal is None:
            self.refusal = _told_of_layer(reason)

    @property
    def evaluated(self) -> Tensor | None:
        """The energy with its graph, if that is what it would be without the recording."""
        return None if self.copies or self._nests else self.result

    def _saveable(self, t: Tensor) -> Tensor:
        """A copy in the place of data made in inference mode, which cannot be saved for a gradient."""
        if not t.is_inference():
            return t
        if id(t) not in self.copies:
            self.copies[id(t)] = t.clone()
        return self.copies[id(t)]

    def slot(self, t: Tensor) -> Slot:
        """What stands for a tensor in what is recorded."""
        slot = self.slots.get(id(t))
        if slot is None:
            slot = self.slots[id(t)] = len(self.kept)
            self.kept.append(t)
        return Slot(slot)

    def program(self, free: Sequence[Tensor]) -> Program:
        """What was recorded.

        Raises:
            NotCapturable: something was not, or would not be the same for other values.
            ValueError: it does not depend on one of the states.
        """
        result = self.result
        if self.refusal is None and (not isinstance(result, Tensor) or id(result) not in self.slots):
            self.refuse("the energy is not the result of a PyTorch function")
        if self.refusal is None and (own := _own_function(result)):
            self.refuse(f"{own} is an autograd function with a backward of its own")
        if self.refusal is not None:
            raise NotCapturable(self.refusal, self.evaluated)
        program = self.renumbered(free)[0]
        for t in free:
            if not any(t is leaf for leaf in program.leaves):
                form = tuple(t.shape)
                raise ValueError(
                    f"params must hold states that the energy uses, got one of shape {form} that it does not use"
                )
        if share_memory(program.leaves, program.free):
            raise NotCapturable(SHARED, self.evaluated)
        return program

    def renumbered(self, free: Sequence[Tensor]) -> tuple[Program, dict[int, int]]:
        """The program, with leaves first and then results in order, and the slots in it of those used here."""
        order = [s for s in range(len(self.kept)) if s not in self.produced]
        leaves = [self.kept[s] for s in order]
        produced = dict.fromkeys(s for c in self.calls for s in c.outputs if s in self.produced)
        renumber = {old: new for new, old in enumerate([*order, *produced])}

        calls = [c.renamed(renumber.__getitem__) for c in self.calls]
        identities = {id(t) for t in free}
        by_new = sorted(((renumber[s], t) for s, t in enumerate(self.kept)), key=lambda pair: pair[0])
        stand_ins = {id(t): stand_in(t) for t in self.kept}
        program = Program(
            leaves,
            frozenset(i for i, t in enumerate(leaves) if id(t) in identities),
            calls,
            renumber[self.slots[id(self.result)]],
            stand_ins=[stand_ins[id(t)] for _, t in by_new],
            layouts=[Layout.of(t) for _, t in by_new],
            addresses_memory=self.addresses_memory,
        )
        return program, renumber


class Operators(TorchDispatchMode):
    """Refuses, within whatever function, operators that draw random numbers, which they would do once a run.

    And those the shape of whose result depends on values: it would be that of the capture for ever.
    """

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._recording.refusal is None and (reason := self._dependence(operator, args, kwargs)):
            self._recording.refuse(reason)
        self._recording.addresses_memory |= operator in _BY_ADDRESS
        return operator(*args, **kwargs)

    def _dependence(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """Why what an operator gives depends on more than the form of its arguments and their values."""
        masks = operator is not torch.ops.aten.index.Tensor or any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if masks and torch.Tag.dynamic_output_shape in operator.tags:
            return f"the shape of what {operator} gives depends on values"
        if _draws(operator, args, kwargs):
            return f"{operator} draws random numbers at every {self._recording.when}"
        return None


_BY_ADDRESS = frozenset((torch.ops.aten.as_strided.default, torch.ops.aten.as_strided_scatter.default))


def _draws(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of an operator draws random numbers."""
    if torch.Tag.nondeterministic_seeded not in operator.tags:
        return False
    for position, argument in enumerate(operator._schema.arguments):
        if argument.name == "dropout_p":  # attention without dropout is tagged, too
            given = args[position] if position < len(args) else kwargs.get("dropout_p")
            return bool(argument.default_value if given is None else given)
    return True


def _told_of_layer(reason: str) -> str:
    """A reason, with the layer that is at work: the innermost module whose `forward` is being run."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        layer = frame.f_locals.get("self") if frame.f_code.co_name == "forward" else None
        if isinstance(layer, _NormBase) and layer.training and layer.track_running_stats:
            return (
                f"{type(layer).__name__} in training mode updates its running statistics whenever it is called; "
                "with track_running_stats=False, or as a LayerNorm or GroupNorm, it has none"
            )
        if isinstance(layer, torch.nn.Module):
            return f"{reason}, in {type(layer).__name__}"
        frame = frame.f_back
    return reason


def _own_function(result: Tensor) -> str | None:
    """A `torch.autograd.Function` of the user's in a graph: its forward was seen, its backward cannot be."""
    seen, stack = set[Any](), [result.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        forward = getattr(node, "_forward_cls", None)
        if forward is not None and forward.__module__ != autograd.__name__:
            return str(forward.__name__)
        stack.extend(following for following, _ in node.next_functions)
    return None


def share_memory(leaves: Sequence[Tensor], free: Iterable[int]) -> bool:
    """Whether a state has its memory in common with another leaf."""
    storages = [t.untyped_storage().data_ptr() for t in leaves]
    count = Counter(storages)
    return any(count[storages[i]] > 1 for i in free if storages[i])  # it is 0 where there is none


def _slices_by_tensors(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    bounds = [b for part in parts if isinstance(part, slice) for b in (part.start, part.stop, part.step)]
    return any(isinstance(b, Tensor) for b in bounds)


def _formally(t: Tensor) -> Tensor:
    """A tensor of the same form without values."""
    return torch.empty_like(t, device="meta")


def _is_made_of_tensors(result: Any) -> bool:
    """Whether a call returned tensors, in tuples and lists, and None, and nothing else."""

    def only(tree: Any) -> bool:
        return tree is None or isinstance(tree, Tensor) or (isinstance(tree, tuple | list) and all(map(only, tree)))

    return only(result) and bool(tensors(result))
