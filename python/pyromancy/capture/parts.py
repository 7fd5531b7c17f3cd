"""Values of calls that are made in parts of one form, each of which works element by element.

Max- and mean-pooling whose windows do not overlap are such operators on the parts of an image that fall on one place of
the windows, and so are tensors that are stacked.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from ..plan.expression import Op
from .elements import ZERO, Value, made, number
from .forms import arguments_of, domain_of, example
from .memory import Memory
from .partition import is_fused

aten = torch.ops.aten


_MOST_PARTS = 9


@dataclass(frozen=True)
class Window:
    """What lies at one place of windows that divide images."""

    size: tuple[int, int]
    place: tuple[int, int]

    def of(self, memory: Memory) -> Memory:
        """That of a tensor in memory."""
        (b, c, h, w), (s, t, y, x) = memory.shape, memory.stride
        (rows, columns), (i, j) = self.size, self.place
        shape, stride = (b, c, h // rows, w // columns), (s, t, y * rows, x * columns)
        return replace(memory, shape=shape, stride=stride, offset=memory.offset + i * y + j * x)


@dataclass(frozen=True)
class Slab:
    """What lies at one place of a dimension, the others in an order."""

    dim: int
    place: int
    others: tuple[int, ...]

    def of(self, memory: Memory) -> Memory:
        """That of a tensor in memory."""
        shape, stride = (tuple(of[d] for d in self.others) for of in (memory.shape, memory.stride))
        return replace(memory, shape=shape, stride=stride, offset=memory.offset + self.place * memory.stride[self.dim])


@dataclass
class Parts:
    """A tensor that is made in parts of one form."""

    domain: tuple[Any, ...]
    values: dict[Window | Slab, Value] = field(default_factory=dict)


def _windows(size: Any, stride: Any, padding: Any, dilation: Any, ceil: bool, image: Tensor) -> tuple[int, int] | None:
    """The size of windows that divide an image among them."""
    size = [*size] * (2 // len(size))
    stride, padding, dilation = ([*x] * (2 // len(x)) if x else size for x in (stride, padding, dilation))
    fits = size == stride and padding == [0, 0] and dilation == [1, 1] and image.dim() == 4 and not ceil
    if (
        not fits
        or not 1 < size[0] * size[1] <= _MOST_PARTS
        or any(n % k for n, k in zip(image.shape[2:], size, strict=True))
    ):
        return None
    return size[0], size[1]


def _windows_of(size: tuple[int, int]) -> list[Window]:
    return [Window(size, place) for place in itertools.product(range(size[0]), range(size[1]))]


def _parts_of(image: fx.Node, size: tuple[int, int]) -> list[Value]:
    return [("part", image, window) for window in _windows_of(size)]


def _stacked(node: fx.Node) -> Parts | None:
    """Tensors that are stacked, turned and laid out anew, as the gradients of attention are."""
    turned = arguments_of(node)[0]
    if turned.target is not aten.permute.default or len(turned.users) > 1:
        return None
    stack, order = arguments_of(turned)
    if stack.target is not aten.stack.default or len(stack.users) > 1:
        return None
    tensors, dim = (*arguments_of(stack), 0)[:2]
    if not all(is_fused(t) and example(t).dtype == example(node).dtype for t in tensors):
        return None
    at = {d % len(order): i for i, d in enumerate(order)}  # where each dimension of the stack has gone
    dim %= len(order)
    others = tuple(at[d] for d in range(len(order)) if d != dim)
    values: dict[Window | Slab, Value] = {Slab(at[dim], i, others): ("node", t) for i, t in enumerate(tensors)}
    return Parts(domain_of(example(tensors[0])), values)


def _max_pooled(node: fx.Node) -> Value | None:
    """Max-pooling, where only its maxima are asked for, and its indices for the gradient alone."""
    source, i = arguments_of(node)
    if source.target is not aten.max_pool2d_with_indices.default or i != 0 or not is_fused(arguments_of(source)[0]):
        return None
    if (size := _max_windows(source)) is None:
        return None
    for user in source.users:
        if arguments_of(user)[1] == 1 and any(not _is_backward_of(u, source) for u in user.users):
            return None
    image = arguments_of(source)[0]
    parts = _parts_of(image, size)
    value = parts[0]
    for part in parts[1:]:
        value = made(Op.MAX, value, part)
    return value


def _max_windows(pool: fx.Node) -> tuple[int, int] | None:
    rest: tuple[Any, ...] = ((), (0,), (1,), False)
    image, size, stride, padding, dilation, ceil = (*arguments_of(pool), *rest[len(pool.args) - 2 :])
    return _windows(size, stride, padding, dilation, ceil, example(image))


def _is_backward_of(node: fx.Node, pool: fx.Node) -> bool:
    return (
        node.target is aten.max_pool2d_with_indices_backward.default and arguments_of(node)[1] is arguments_of(pool)[0]
    )


def _max_pool_backward(node: fx.Node) -> Parts | None:
    gradient, image, size, stride, padding, dilation, ceil, _ = arguments_of(node)
    windows = _windows(size, stride, padding, dilation, ceil, example(image))
    if windows is None or example(gradient).dtype != example(image).dtype:
        return None
    parts = _parts_of(image, windows)
    most = [parts[0]]
    for part in parts[1:]:
        most.append(made(Op.MAX, most[-1], part))
    found = Parts(domain_of(example(gradient)))
    left: Value = ("node", gradient)
    # the first of equal ones has it, so the last that is greater than all before
    for k, window in reversed([*enumerate(_windows_of(windows))]):
        if k == 0:
            found.values[window] = left
        else:
            greater = made(Op.GREATER, parts[k], most[k - 1])
            found.values[window] = made(Op.SELECT, greater, left, ZERO)
            left = made(Op.SELECT, greater, ZERO, left)
    return found


def _mean_windows(image: fx.Node, args: Sequence[Any]) -> tuple[int, int] | None:
    rest: tuple[Any, ...] = ((), (0,), False, True, None)
    size, stride, padding, ceil, _, divisor = (*args, *rest[len(args) - 1 :])
    return None if divisor else _windows(size, stride, padding, (1,), ceil, example(image))


def _mean_pooled(node: fx.Node) -> Value | None:
    image, *window = arguments_of(node)
    size = _mean_windows(image, window)
    if size is None:
        return None
    first, *rest = _parts_of(image, size)
    for part in rest:
        first = made(Op.ADD, first, part)
    return made(Op.MUL, first, number(1 / (size[0] * size[1])))


def _mean_pool_backward(node: fx.Node) -> Parts | None:
    gradient, image, *window = arguments_of(node)
    size = _mean_windows(image, window)
    if size is None or example(gradient).dtype != example(image).dtype:
        return None
    share = made(Op.MUL, ("node", gradient), number(1 / (size[0] * size[1])))
    return Parts(domain_of(example(gradient)), dict.fromkeys(_windows_of(size), share))


def leaves_of(value: Value | Parts) -> Iterator[fx.Node]:
    """The calls and inputs that a value is made of."""
    if isinstance(value, Parts):
        for part in value.values.values():
            yield from leaves_of(part)
    elif value[0] in ("node", "part"):
        yield value[1]
    elif value[0] != "number":
        for v in value[1:]:
            yield from leaves_of(v)


def parts_read(value: Value) -> Iterator[Value]:
    """The parts that a value is made of."""
    if value[0] == "part":
        yield value
    elif isinstance(value[0], int):
        for v in value[1:]:
            yield from parts_read(v)


# of calls, by their operators, what makes their values; None of those that no parts make
_MADE: dict[Any, Callable[[fx.Node], Value | Parts | None]] = {
    operator.getitem: _max_pooled,
    aten.max_pool2d_with_indices_backward.default: _max_pool_backward,
    aten.avg_pool2d.default: _mean_pooled,
    aten.avg_pool2d_backward.default: _mean_pool_backward,
    aten.clone.default: _stacked,
}


def value_in_parts(node: fx.Node) -> Value | Parts | None:
    """What a call makes of parts of what it takes, or in parts; None of another."""
    function = _MADE.get(node.target)
    return None if function is None or not (node.target is operator.getitem or is_fused(node)) else function(node)
