"""Runs an energy once and records what it computes; later, checks that it still computes the same.

Both go through `torch.overrides.TorchFunctionMode`, which sees every call of PyTorch's Python API. The check
computes nothing: it hands the energy stand-ins of the recorded shapes, and compares each call with the recorded one.
It costs a microsecond or two per call, and notices whatever the energy's Python code does differently: a replaced
parameter, another branch, train and eval mode, a new batch size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode

from ..ops import autograd
from . import vocabulary
from .program import Call, Program, Slot, form_of, replaced, tensors


class NotCapturable(Exception):
    """An energy does something that cannot be recorded; the message says what."""


class _Changed(Exception):
    """An energy no longer does what was recorded."""


def capture(energy: Callable[[], Tensor], free: Sequence[Tensor]) -> Program:
    """Record an energy.

    Args:
        energy: zero-argument callable that returns per-sample energies, ``[B]``.
        free: the states that inference updates.

    Returns:
        The program, proven to be the same on a second, dry run.

    Raises:
        NotCapturable: the energy depends on more than PyTorch calls on fixed tensors.
        ValueError: it does not depend on one of the states.
    """
    if reason := obstacle(free):
        raise NotCapturable(reason)
    recorder, result = _recorded(energy)
    if recorder.refusal is not None:  # and the energy's own code has caught it
        raise recorder.refusal
    if not isinstance(result, Tensor) or id(result) not in recorder.slots:
        raise NotCapturable("the energy is not the result of a PyTorch function")
    if own := _own_function(result):
        raise NotCapturable(f"{own} is an autograd function with a backward of its own")
    program = recorder.program(result, free)
    for t in free:
        if not any(t is leaf for leaf in program.leaves):
            form = tuple(t.shape)
            raise ValueError(
                f"params must hold states that the energy uses, got one of shape {form} that it does not use"
            )
    if _share_memory(program.leaves, program.free):
        raise NotCapturable("a state shares its memory with another tensor")
    del recorder, result
    try:
        _dry_run(energy, program, ())
    except _Changed as change:
        raise NotCapturable(f"two runs of the energy differ: {change}") from change
    return program


def _recorded(energy: Callable[[], Tensor]) -> tuple[_Recorder, Tensor]:
    recorder = _Recorder()
    try:
        with torch.enable_grad(), recorder, _Operators(recorder):
            return recorder, energy()
    except Exception as error:
        if any(t.shape == (0,) for t in recorder.kept):
            error.add_note("The energy takes a tensor of shape (0,), as a node's state is before its first init.")
        raise


def has_hooks(t: Tensor) -> bool:
    """Whether something wants to see, or change, a tensor's gradient, or to act on it at once."""
    hooks = t._backward_hooks or getattr(t, "_post_accumulate_grad_hooks", None)
    return bool(hooks) or hasattr(t, "_in_backward_optimizers")


def obstacle(free: Sequence[Tensor]) -> str | None:
    """Why nothing can be captured, or run from a capture, in the state that PyTorch and the states are in."""
    if torch.is_autocast_enabled(free[0].device.type):
        return "autocast is on, and chooses dtypes call by call"
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return "hooks on saved tensors are on"
    if DistributedDataParallel._active_ddp_module is not None:
        return "it runs within DistributedDataParallel"
    if torch._C._len_torch_dispatch_stack() or any(
        not isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack()
    ):
        return "a mode is on that may change what PyTorch's functions do"
    if parametrize._cache_enabled:
        return "torch.nn.utils.parametrize.cached() is on, and would keep what a dry run computes"
    if any(map(has_hooks, free)):
        return "a state has a gradient hook"
    return None


def _share_memory(leaves: Sequence[Tensor], free: Iterable[int]) -> bool:
    """Whether a state has its memory in common with another leaf."""
    storages = [t.untyped_storage().data_ptr() for t in leaves]
    count = Counter(storages)
    return any(count[storages[i]] > 1 for i in free)


def difference(energy: Callable[[], Tensor], program: Program) -> str | None:
    """In what an energy no longer is what was captured; None where it still is."""
    try:
        check(energy, program)
    except _Changed as change:
        return str(change)
    return None


def check(energy: Callable[[], Tensor], program: Program) -> None:
    """Run an energy dry against a program.

    Data, which are tensors that nothing learns, may have been replaced by others of the same form: the program then
    takes the new ones.
    """
    if reason := obstacle([program.leaves[i] for i in program.free]):
        raise _Changed(reason)
    for slot, (leaf, form) in enumerate(zip(program.leaves, program.forms, strict=True)):
        if form_of(leaf) != form and slot not in program.gone:
            raise _Changed(f"a tensor of shape {tuple(form[0])} now is {tuple(leaf.shape)} {leaf.dtype}")
    new = _dry_run(energy, program, program.data())
    if not new:
        return
    old = {slot: program.leaves[slot] for slot in new}
    program.replace(new)
    try:
        _dry_run(energy, program, ())  # every use must be of the new one
    except _Changed:
        program.replace(old)
        raise
    program.gone.clear()


def _dry_run(energy: Callable[[], Tensor], program: Program, data: Iterable[int]) -> dict[int, Tensor]:
    """The tensors in the place of leaves that are data, by slot; raises `_Changed` where anything else is different."""
    if _share_memory(program.leaves, program.free):
        raise _Changed("a state shares its memory with another tensor")
    checker = _Checker(program, {id(program.leaves[slot]): slot for slot in data})
    try:
        with torch.no_grad(), checker:
            result = energy()
    except _Changed:
        raise
    except Exception as error:  # what the energy does with a stand-in for something that it did not meet before
        raise checker.refusal or _Changed(f"{type(error).__name__}: {error}") from error
    if checker.refusal is not None:
        raise checker.refusal
    if checker.position != len(program.calls) or result is not program.dry_result:
        raise _Changed("it ends earlier, or with another result")
    del result
    program.stores = program.stand_ins_are_held()
    return checker.new


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


class _Recorder(TorchFunctionMode):
    """Lets every call happen and writes it down."""

    def __init__(self) -> None:
        super().__init__()
        self.refusal: NotCapturable | None = None  # the first one
        self.slots: dict[int, int] = {}  # id of a tensor -> a provisional slot
        self.kept: list[Tensor] = []  # by provisional slot, so that no id is used twice
        self.produced: set[int] = set()
        self.calls: list[Call] = []
        self.copies: dict[int, Tensor] = {}  # of data made in inference mode, by id

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if vocabulary.is_metadata(function):
            return function(*args, **kwargs)
        name = vocabulary.name_of(function)
        given = tensors((args, kwargs))
        self._reject(function, name, args, kwargs, given)
        if vocabulary.works_in_place(function, args, kwargs):
            return self._overwrite(function, name, args, kwargs, given)
        inputs = tuple(self._slot(t).index for t in given)
        versions = [0 if t.is_inference() else t._version for t in given]
        result = self._result(function, args, kwargs, given)
        if versions != [0 if t.is_inference() else t._version for t in given]:
            raise self.refuse(f"{name} works in place")
        if not _is_made_of_tensors(result):
            raise self.refuse(f"{name} reads values out of a tensor")
        # contiguous() and the like may return what they were given
        fresh = [t for t in tensors(result) if id(t) not in self.slots]
        self.produced.update(self._slot(t).index for t in fresh)
        packed_args, packed_kwargs, packed_result = (
            replaced(tree, Tensor, self._slot) for tree in (args, kwargs, result)
        )
        outputs = tuple(self._slot(t).index for t in tensors(result))
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
            raise self.refuse(f"{name} works in place")
        target = given[0]
        if not self._is_separate(target):
            raise self.refuse(f"{name} works in place, on what the energy has not made or what shares memory with it")
        with torch.no_grad():
            like = self._result(*pure, given)  # while the target is what it was
        form = target.shape, target.dtype
        inputs = tuple(self._slot(t).index for t in given)
        (packed_args, packed_kwargs), (pure_args, pure_kwargs) = (
            [replaced(tree, Tensor, self._slot) for tree in trees] for trees in ((args, kwargs), pure[1:])
        )
        result = self._result(function, args, kwargs, given)
        if result is not target or (like.shape, like.dtype) != form:
            raise self.refuse(f"{name} works in place, and gives another shape or dtype than it would else")
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

    def _reject(
        self,
        function: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[Tensor],
    ) -> None:
        if not vocabulary.is_known(function):
            raise self.refuse(f"{name} is no function of PyTorch's, and what it does may depend on more than it takes")
        if torch._C._is_any_autocast_enabled():
            raise self.refuse("the energy turns autocast on, which chooses dtypes call by call")
        for t in given:
            if type(t) not in (Tensor, torch.nn.Parameter) and not hasattr(t, "_node"):  # a state before its first init
                raise self.refuse(f"{name} takes a {type(t).__name__}, which may compute otherwise than a Tensor")
            if t.layout is not torch.strided:
                raise self.refuse(f"{name} takes a tensor of layout {t.layout}")
            if t.is_nested or t.is_quantized:
                raise self.refuse(f"{name} takes a nested or quantized tensor")
            if torch._C._functorch.is_functorch_wrapped_tensor(t):
                raise self.refuse("the energy uses a transform of torch.func")
        match vocabulary.meaning(function):
            case "normalization":
                given_as = vocabulary.arguments(function, args, kwargs)
                updates = given_as["training"] if "training" in given_as else given_as["use_input_stats"]
                if updates and given_as["running_mean"] is not None:
                    raise self.refuse(f"{name} in training mode updates its running statistics at every step")
            case "makes of values" if given:
                raise self.refuse(f"{name} reads values out of a tensor")
            case "tensor_split" if len(given) > 1:
                raise self.refuse(f"{name} reads values out of a tensor")
            case "indexing" if _slices_by_tensors(args[1]):
                raise self.refuse("a slice reads values out of a tensor")
            case "autograd":
                raise self.refuse(f"{name} has to do with autograd itself")

    def refuse(self, reason: str) -> NotCapturable:
        """An error to raise; where the energy's own code catches it, it is remembered."""
        self.refusal = self.refusal or NotCapturable(reason)
        return self.refusal

    def _saveable(self, t: Tensor) -> Tensor:
        """A copy in the place of data made in inference mode, which cannot be saved for a gradient."""
        if not t.is_inference():
            return t
        if id(t) not in self.copies:
            self.copies[id(t)] = t.clone()
        return self.copies[id(t)]

    def _slot(self, t: Tensor) -> Slot:
        slot = self.slots.get(id(t))
        if slot is None:
            slot = self.slots[id(t)] = len(self.kept)
            self.kept.append(t)
        return Slot(slot)

    def program(self, result: Tensor, free: Sequence[Tensor]) -> Program:
        """Renumber: leaves first, then results in order."""
        order = [s for s in range(len(self.kept)) if s not in self.produced]
        leaves = [self.kept[s] for s in order]
        produced = dict.fromkeys(s for c in self.calls for s in c.outputs if s in self.produced)
        renumber = {old: new for new, old in enumerate([*order, *produced])}

        def renamed(tree: Any) -> Any:
            return replaced(tree, Slot, lambda slot: Slot(renumber[slot.index]))

        def renumbered(slots: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(renumber[s] for s in slots)

        def renamed_call(c: Call) -> Call:
            return Call(
                c.function, renamed(c.args), renamed(c.kwargs), renamed(c.result),
                renumbered(c.inputs), renumbered(c.outputs), c.written and renamed_call(c.written),
            )  # fmt: skip

        calls = [renamed_call(c) for c in self.calls]
        identities = {id(t) for t in free}
        by_new = sorted(((renumber[s], t) for s, t in enumerate(self.kept)), key=lambda pair: pair[0])
        stand_ins = {id(t): _stand_in(t) for t in self.kept}
        return Program(
            leaves,
            frozenset(i for i, t in enumerate(leaves) if id(t) in identities),
            calls,
            renumber[self.slots[id(result)]],
            stand_ins=[stand_ins[id(t)] for _, t in by_new],
        )


class _Operators(TorchDispatchMode):
    """Refuses, within whatever function, operators that draw random numbers, which they would do once a run.

    And those the shape of whose result depends on values: it would be that of the capture for ever.
    """

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        masks = operator is not torch.ops.aten.index.Tensor or any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if masks and torch.Tag.dynamic_output_shape in operator.tags:
            raise self._recorder.refuse(f"the shape of what {operator} gives depends on values")
        if _draws(operator, args, kwargs):
            raise self._recorder.refuse(f"{operator} draws random numbers at every step")
        return operator(*args, **kwargs)


def _draws(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of an operator draws random numbers."""
    if torch.Tag.nondeterministic_seeded not in operator.tags:
        return False
    for position, argument in enumerate(operator._schema.arguments):
        if argument.name == "dropout_p":  # attention without dropout is tagged, too
            given = args[position] if position < len(args) else kwargs.get("dropout_p")
            return bool(argument.default_value if given is None else given)
    return True


def _slices_by_tensors(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    bounds = [b for part in parts if isinstance(part, slice) for b in (part.start, part.stop, part.step)]
    return any(isinstance(b, Tensor) for b in bounds)


def _is_made_of_tensors(result: Any) -> bool:
    """Whether a call returned tensors, in tuples and lists, and None, and nothing else."""

    def only(tree: Any) -> bool:
        return tree is None or isinstance(tree, Tensor) or (isinstance(tree, tuple | list) and all(map(only, tree)))

    return only(result) and bool(tensors(result))


def _stand_in(t: Tensor) -> Tensor:
    """A tensor of a form that takes no memory, of NaN where that is a number: whoever computes with it shall see."""
    value = float("nan") if t.is_floating_point() or t.is_complex() else 0
    return torch.full((), value, dtype=t.dtype, device=t.device).expand(t.shape)


class _Checker(TorchFunctionMode):
    """Compares every call with the recorded one and answers with stand-ins.

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
        self.refusal: _Changed | None = None  # the first one

    def refuse(self, reason: str) -> _Changed:
        """An error to raise; where the energy's own code catches it, it is remembered."""
        self.refusal = self.refusal or _Changed(reason)
        return self.refusal

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.position == len(self.expected):
            if vocabulary.is_metadata(function):
                return function(*args, **(kwargs or {}))
            raise self.refuse(f"a call of {vocabulary.name_of(function)} more")
        call, expected_args, expected_kwargs, outputs = self.expected[self.position]
        if function is not call.function and function != call.function:
            if vocabulary.is_metadata(function):
                return function(*args, **(kwargs or {}))
            raise self.refuse(f"{vocabulary.name_of(function)} in the place of {call.name}")
        if not self._equal_items(expected_args, args) or (
            (kwargs or expected_kwargs) and not self._equal(expected_kwargs, kwargs)
        ):
            raise self.refuse(f"other arguments of {call.name}")
        if torch._C._is_any_autocast_enabled():
            raise self.refuse("autocast is on")
        self.position += 1
        return outputs

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
        others = (t for other, t in self.new.items() if other != slot)
        return not any(given is t for t in (*others, *self.program.leaves, *self.program.stand_ins))
