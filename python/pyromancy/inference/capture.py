"""Runs an energy once and records what it computes; later, checks that it still computes the same.

Both go through `torch.overrides.TorchFunctionMode`, which sees every call of PyTorch's Python API. The check
computes nothing: it hands the energy stand-ins of the recorded shapes, and compares each call with the recorded one.
It costs a microsecond or two per call, and notices whatever the energy's Python code does differently: a replaced
parameter, another branch, train and eval mode, a new batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from ..ops import autograd
from .program import Call, Program, Slot


class NotCapturable(Exception):
    """An energy does something that cannot be recorded; the message says what."""


class _Changed(Exception):
    """An energy no longer does what was recorded."""


# Tell of a tensor's form and not of its contents; safe to answer from a stand-in.
_METADATA = frozenset(
    (
        *(
            f"torch.Tensor.{method}"
            for method in (
                *("dim", "size", "numel", "nelement", "ndimension", "stride", "storage_offset", "get_device"),
                *("is_contiguous", "is_floating_point", "is_complex", "element_size", "__len__"),
            )
        ),
        *(
            f"torch.Tensor.{attribute}.__get__"
            for attribute in (
                *("shape", "dtype", "device", "ndim", "layout", "itemsize", "nbytes", "is_leaf", "requires_grad"),
                *("is_cuda", "is_meta", "is_nested", "is_quantized", "is_sparse", "is_mkldnn"),
            )
        ),
        *("torch.is_floating_point", "torch.is_complex", "torch.numel", "torch.result_type"),
    )
)
_RANDOM = frozenset(
    (
        *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "poisson"),
        *("bernoulli", "multinomial", "gumbel_softmax", "rrelu", "dropout1d", "dropout2d", "dropout3d"),
        *("alpha_dropout", "feature_alpha_dropout"),
    )
)


def capture(energy: Callable[[], Tensor], free: Sequence[Tensor]) -> Program:
    """Record an energy.

    Args:
        energy: zero-argument callable that returns per-sample energies, ``[B]``.
        free: the states that inference updates.

    Returns:
        The program, proven to be the same on a second, dry run.

    Raises:
        NotCapturable: the energy depends on more than PyTorch calls on fixed tensors.
    """
    if torch.is_autocast_enabled(free[0].device.type):
        raise NotCapturable("autocast is on, and chooses dtypes call by call")
    for t in free:
        if has_hooks(t):
            raise NotCapturable("a state has a gradient hook")
    recorder = _Recorder()
    with torch.enable_grad(), recorder:
        result = energy()
    if not isinstance(result, Tensor) or id(result) not in recorder.slots:
        raise NotCapturable("the energy is not the result of a PyTorch function")
    if own := _own_function(result):
        raise NotCapturable(f"{own} is an autograd function with a backward of its own")
    program = recorder.program(result, free)
    storages = [t.untyped_storage().data_ptr() for t in program.leaves]
    if any(storages.count(storages[i]) > 1 for i in program.free):
        raise NotCapturable("a state shares its memory with another tensor")
    try:
        check(energy, program)
    except _Changed as change:
        raise NotCapturable(f"two runs of the energy differ: {change}") from change
    return program


def has_hooks(t: Tensor) -> bool:
    """Whether something wants to see, or change, a tensor's gradient."""
    return bool(t._backward_hooks or getattr(t, "_post_accumulate_grad_hooks", None))


def same(energy: Callable[[], Tensor], program: Program) -> bool:
    """Whether an energy still is what was captured."""
    try:
        check(energy, program)
    except _Changed:
        return False
    return True


def check(energy: Callable[[], Tensor], program: Program) -> None:
    """Run an energy dry against a program."""
    states = [program.leaves[i] for i in program.free]
    if torch.is_autocast_enabled(states[0].device.type) or any(map(has_hooks, states)):
        raise _Changed("autocast, or a hook on a state")
    for leaf, (shape, dtype, device, stride) in zip(program.leaves, program.forms, strict=True):
        if leaf.shape != shape or leaf.dtype != dtype or leaf.device != device or leaf.stride() != stride:
            raise _Changed(f"a tensor of shape {tuple(shape)} now is {tuple(leaf.shape)} {leaf.dtype}")
    checker = _Checker(program)
    try:
        with torch.no_grad(), checker:
            result = energy()
    except _Changed:
        raise
    except Exception as error:  # what the energy does with a stand-in for something that it did not meet before
        raise _Changed(f"{type(error).__name__}: {error}") from error
    if checker.position != len(program.calls) or result is not program.dry_result:
        raise _Changed("it ends earlier, or with another result")


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


def _is_metadata(name: str | None) -> bool:
    return name in _METADATA


class _Recorder(TorchFunctionMode):
    """Lets every call happen and writes it down."""

    def __init__(self) -> None:
        super().__init__()
        self.slots: dict[int, int] = {}  # id of a tensor -> a provisional slot
        self.kept: list[Tensor] = []  # by provisional slot, so that no id is used twice
        self.produced: set[int] = set()
        self.calls: list[Call] = []

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = resolve_name(function)
        if _is_metadata(name):
            return function(*args, **kwargs)
        self._reject(function, name, args, kwargs)
        inputs: list[int] = []
        packed_args, packed_kwargs = self._pack(args, inputs), self._pack(kwargs, inputs)
        result = function(*args, **kwargs)
        single = isinstance(result, Tensor)
        if not single and not (isinstance(result, tuple | list) and any(isinstance(t, Tensor) for t in result)):
            raise NotCapturable(f"{name or function} reads values out of a tensor")
        outputs = []
        for t in (result,) if single else result:
            if not isinstance(t, Tensor):
                continue
            known = id(t) in self.slots  # contiguous() and the like may return what they were given
            outputs.append(self._slot(t))
            if not known:
                self.produced.add(outputs[-1])
        self.calls.append(Call(function, packed_args, packed_kwargs, tuple(inputs), tuple(outputs), single))
        return result

    def _reject(self, function: Any, name: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        short = str(name or getattr(function, "__name__", function)).rsplit(".", 1)[-1]
        in_place = short.endswith("_") and not short.endswith("__") and not short.startswith("_")
        if in_place or short in ("__setitem__", "__set__") or kwargs.get("inplace") or kwargs.get("out") is not None:
            raise NotCapturable(f"{name or short} works in place")
        if short in ("__iadd__", "__isub__", "__imul__", "__itruediv__"):
            raise NotCapturable(f"{name} works in place")
        if short in _RANDOM or (short == "dropout" and kwargs.get("training", True) and kwargs.get("p", 0.5) > 0):
            raise NotCapturable(f"{name or short} draws random numbers at every step")
        if short == "batch_norm" and kwargs.get("training") and (len(args) > 1 and args[1] is not None):
            raise NotCapturable("batch_norm in training mode updates its running statistics at every step")
        if short in ("_set_grad_enabled", "backward", "grad", "requires_grad_", "register_hook"):
            raise NotCapturable(f"{short} has to do with autograd itself")

    def _slot(self, t: Tensor) -> int:
        slot = self.slots.get(id(t))
        if slot is None:
            slot = self.slots[id(t)] = len(self.kept)
            self.kept.append(t)
        return slot

    def _pack(self, tree: Any, inputs: list[int]) -> Any:
        if isinstance(tree, Tensor):
            inputs.append(self._slot(tree))
            return Slot(inputs[-1])
        if isinstance(tree, dict):
            return {k: self._pack(v, inputs) for k, v in tree.items()}
        if type(tree) in (tuple, list):
            return type(tree)(self._pack(v, inputs) for v in tree)
        return tree

    def program(self, result: Tensor, free: Sequence[Tensor]) -> Program:
        """Renumber: leaves first, then results in order."""
        order = [s for s in range(len(self.kept)) if s not in self.produced]
        leaves = [self.kept[s] for s in order]
        produced = dict.fromkeys(s for c in self.calls for s in c.outputs if s in self.produced)
        renumber = {old: new for new, old in enumerate([*order, *produced])}

        def renamed(tree: Any) -> Any:
            if isinstance(tree, Slot):
                return Slot(renumber[tree.index])
            if isinstance(tree, dict):
                return {k: renamed(v) for k, v in tree.items()}
            if type(tree) in (tuple, list):
                return type(tree)(renamed(v) for v in tree)
            return tree

        calls = [
            Call(
                c.function,
                renamed(c.args),
                renamed(c.kwargs),
                tuple(renumber[s] for s in c.inputs),
                tuple(renumber[s] for s in c.outputs),
                c.single,
            )
            for c in self.calls
        ]
        identities = {id(t) for t in free}
        # Stand-ins take no memory: one element, expanded.
        by_new = sorted(((renumber[s], t) for s, t in enumerate(self.kept)), key=lambda pair: pair[0])
        return Program(
            leaves,
            frozenset(i for i, t in enumerate(leaves) if id(t) in identities),
            calls,
            renumber[self.slots[id(result)]],
            stand_ins=[torch.empty((), dtype=t.dtype, device=t.device).expand(t.shape) for _, t in by_new],
        )


class _Checker(TorchFunctionMode):
    """Compares every call with the recorded one and answers with stand-ins."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.expected = program.dry_calls()
        self.position = 0

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.position == len(self.expected):
            if _is_metadata(_name_of(function)):
                return function(*args, **(kwargs or {}))
            raise _Changed(f"a call of {_name_of(function)} more")
        call, expected_args, expected_kwargs, outputs = self.expected[self.position]
        if function is not call.function and function != call.function:
            if _is_metadata(_name_of(function)):
                return function(*args, **(kwargs or {}))
            raise _Changed(f"{_name_of(function)} in the place of {call.name}")
        if not _equal_items(expected_args, args) or (
            (kwargs or expected_kwargs) and not _equal(expected_kwargs, kwargs)
        ):
            raise _Changed(f"other arguments of {call.name}")
        self.position += 1
        return outputs


def _equal_items(expected: tuple[Any, ...] | list[Any], given: tuple[Any, ...] | list[Any]) -> bool:
    if len(expected) != len(given):
        return False
    for e, g in zip(expected, given, strict=True):  # noqa: SIM110 (a generator takes three times as long)
        if e is not g and not _equal(e, g):
            return False
    return True


def _equal(expected: Any, given: Any) -> bool:
    """Whether arguments are the same: tensors by identity, everything else by type and value."""
    if expected is given:
        return True
    if isinstance(expected, dict):
        return (
            isinstance(given, dict)
            and expected.keys() == given.keys()
            and all(_equal(expected[k], given[k]) for k in expected)
        )
    if type(expected) is not type(given) or isinstance(expected, Tensor):
        return False
    if type(expected) in (tuple, list):
        return _equal_items(expected, given)
    return bool(expected == given)


_names: dict[Any, str | None] = {}


def _name_of(function: Callable[..., Any]) -> str | None:
    """`resolve_name`, remembered: it searches."""
    try:
        return _names[function]
    except KeyError:
        name = _names[function] = resolve_name(function)
        return name
