"""One call of a function, with slots in the place of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .vocabulary import meaning, name_of


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
        written: the call that the energy makes where this one is computed instead, such as one in place.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    written: Call | None = None

    @property
    def name(self) -> str:
        """The function's name as the energy has it, without its module, to be shown: ``linear``, ``relu``, ``add``."""
        return name_of((self.written or self).function).rpartition(".")[2].removeprefix("__").removesuffix("__")

    @property
    def meaning(self) -> str | None:
        """What the function means, whichever of its names it goes by; see `vocabulary`."""
        return meaning(self.function)

    def renamed(self, name: Callable[[int], int]) -> Call:
        """The same call with other slots."""
        args, kwargs, result = (
            replaced(tree, Slot, lambda slot: Slot(name(slot.index))) for tree in (self.args, self.kwargs, self.result)
        )
        inputs, outputs = (tuple(map(name, slots)) for slots in (self.inputs, self.outputs))
        written = self.written and self.written.renamed(name)
        return Call(self.function, args, kwargs, result, inputs, outputs, written)


def replaced(tree: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Arguments or a result with all of a kind in it replaced, in tuples of any type, lists, dicts and slices."""
    if isinstance(tree, kind):
        return function(tree)
    if isinstance(tree, tuple):
        items = [replaced(v, kind, function) for v in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if type(tree) is list:
        return [replaced(v, kind, function) for v in tree]
    if isinstance(tree, dict):
        return {k: replaced(v, kind, function) for k, v in tree.items()}
    if isinstance(tree, slice):
        return slice(*(replaced(v, kind, function) for v in (tree.start, tree.stop, tree.step)))
    return tree


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in arguments or a result, in order."""
    found: list[Tensor] = []
    replaced(tree, Tensor, found.append)
    return found


def filled(tree: Any, values: dict[int, Tensor]) -> Any:
    """Arguments or a result with the values of its slots."""
    return replaced(tree, Slot, lambda slot: values[slot.index])


def does_alike(first: Call, second: Call) -> bool:
    """Whether two calls do the same, to whatever."""
    single = len(first.outputs) == 1 == len(second.outputs)
    return first.function == second.function and single and _form(first) == _form(second)


def alike(producer: Mapping[int, Call], a: int | float, b: int | float, known: dict[tuple[int, int], bool]) -> bool:
    """Whether two slots, or numbers, are the same, or computed in the same way.

    Args:
        producer: the call that computes a slot; none of leaves.
        a: a slot, or a float.
        b: another.
        known: what is known of pairs of slots, which grows.
    """
    if type(a) is not int or type(b) is not int or a == b:
        return type(a) is type(b) and a == b
    if (a, b) not in known:
        first, second = producer.get(a), producer.get(b)
        known[a, b] = (
            first is not None
            and second is not None
            and does_alike(first, second)
            and all(alike(producer, x, y, known) for x, y in zip(first.inputs, second.inputs, strict=True))
        )
    return known[a, b]


def _form(call: Call) -> Any:
    """The arguments of a call, where it takes a tensor one and the same."""
    return replaced((call.args, call.kwargs), Slot, lambda _: Slot(0))


def is_number(argument: Any) -> bool:
    """Whether an argument is a number, which a truth value is not."""
    return isinstance(argument, int | float) and not isinstance(argument, bool)


def expands(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether what has a shape is the same for every sample, or element, of what has another."""
    return len(shape) <= len(to) and all(n in (1, m) for n, m in zip(reversed(shape), reversed(to), strict=False))
