"""A traced gradient as E-step or M-step: products as they are, what lies between fused, in memory that stays.

Operators that work element by element are gathered in groups, each of which is one call of `elementwise_`: it reads
every operand once and writes what others need of it. Max- and mean-pooling whose windows do not overlap are such
operators on the parts of an image that fall on one place of the windows. A state moves in the group that makes its
gradient, after all others that read it, so that all states move at once, as gradients are of the states before.

Products and activations of these calls may be rounded in other ways than those that have set the states. So that
states that are their predictions stay what they are, as by autograd, gradients of the size of rounding can be left out;
and so that these teach nothing, differences of that size between a state and another tensor are none to the M-step.
"""

from __future__ import annotations

import functools
import itertools
import operator
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx

from .. import ops
from ..plan.elementwise import MOST_INSTRUCTIONS, MOST_OPERANDS, value_of
from ..plan.expression import Op
from .elements import ELEMENTS, ZERO, Value, made, number, value_of_call
from .opening import laid, stepped
from .partition import is_fused
from .sequences import WRITING, take_over

aten = torch.ops.aten

_OUT: dict[Any, Any] = {
    aten.mm.default: aten.mm.out,
    aten.addmm.default: aten.addmm.out,
    aten.bmm.default: aten.bmm.out,
    aten.sum.dim_IntList: aten.sum.IntList_out,
    aten.mean.dim: aten.mean.out,
}


@functools.cache
def _out_of(target: Any) -> tuple[Any, str] | None:
    """The overload of an operator that writes where it is told to, and the name of that argument; None without one."""
    if target in _OUT:
        return _OUT[target], "out"
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.pointwise not in target.tags:
        return None
    given = [(a.name, str(a.type)) for a in target._schema.arguments]
    for name in target.overloadpacket.overloads():
        overload = getattr(target.overloadpacket, name)
        *others, last = overload._schema.arguments
        if last.is_out and [(a.name, str(a.type)) for a in others] == given:
            return overload, last.name
    return None


# whose results are views, though their schemas do not tell
_SHARING = (
    aten._unsafe_view.default, aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default,
    aten.unsafe_chunk.default, aten.reshape.default,
)  # fmt: skip
_MOST_PARTS = 9
# what a group makes again rather than read, where it reads all that this is made of
_CHEAP = (Op.ADD, Op.SUB, Op.MUL, Op.NEG, Op.ABS, Op.MAX, Op.MIN, Op.SELECT, Op.GREATER, Op.AT_LEAST, value_of("relu"))


def _velocity(before: Tensor, gradient: Tensor) -> Tensor:
    """Stands for a velocity after a step."""
    raise NotImplementedError


def _moved(state: Tensor, gradient: Tensor, rest: Tensor | None, velocity: Tensor | None) -> Tensor:
    """Stands for a state after a step; gradients no larger than `rest` are none, where there is one."""
    raise NotImplementedError


def _settled(error: Tensor, rest: Tensor) -> Tensor:
    """Stands for an error, which is none where it is no larger than `rest`."""
    raise NotImplementedError


def _set(value: Tensor) -> Tensor:
    """Stands for a state at the end of an opening."""
    raise NotImplementedError


def _given(gradient: Tensor) -> Tensor:
    """Stands for a gradient, where its reader wants it."""
    raise NotImplementedError


@dataclass(frozen=True)
class Memory:
    """A tensor that a schedule is lent: which block of memory it lies in, and how."""

    block: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    offset: int = 0


@dataclass(frozen=True)
class _Window:
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
class _Slab:
    """What lies at one place of a dimension, the others in an order."""

    dim: int
    place: int
    others: tuple[int, ...]

    def of(self, memory: Memory) -> Memory:
        """That of a tensor in memory."""
        shape, stride = (tuple(of[d] for d in self.others) for of in (memory.shape, memory.stride))
        return replace(memory, shape=shape, stride=stride, offset=memory.offset + self.place * memory.stride[self.dim])


@dataclass(eq=False)
class _Unit:
    """Calls that are made at once: a group of element-wise ones, or another."""

    nodes: list[fx.Node]
    domain: tuple[Any, ...] | None = None  # shape and dtype of a group
    before: int = 0  # bits of the units that come before
    bit: int = 0


@dataclass
class _Parts:
    """A tensor that is made in parts of one form."""

    domain: tuple[Any, ...]
    values: dict[_Window | _Slab, Value] = field(default_factory=dict)


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def _value(node: fx.Node) -> Any:
    return node.meta.get("val")


def _domain(t: Tensor) -> tuple[Any, ...]:
    return tuple(t.shape), t.dtype


def _alike(a: fx.Node, b: fx.Node) -> bool:
    return _domain(_value(a)) == _domain(_value(b))


def settling(graph: fx.Graph, leaves: int) -> list[int]:
    """The first inputs of a graph, by their positions, from which something of their form is subtracted, or they."""
    inputs = [n for n in graph.nodes if n.op == "placeholder"][:leaves]
    return [
        i for i, n in enumerate(inputs)
        if is_fused(n) and any(u.target is aten.sub.Tensor and not u.kwargs and _alike(n, u) for u in n.users)
    ]  # fmt: skip


def dense_strides(t: Tensor) -> tuple[int, ...]:
    """Those of a tensor, or where it has gaps or is expanded those of one without that lies in the same order."""
    strides, step = [0] * t.dim(), 1
    for d in sorted(range(t.dim()), key=lambda d: (t.stride(d), t.shape[d] > 1, -d)):
        strides[d] = step
        step *= max(1, t.shape[d])
    return (
        t.stride()
        if all(n == 1 or s == u for n, s, u in zip(t.shape, strides, t.stride(), strict=True))
        else tuple(strides)
    )


@functools.cache
def _shares(target: Any) -> bool:
    """Whether what a call gives lies in the memory of its first argument."""
    if target is operator.getitem or target in _SHARING:
        return True
    if not isinstance(target, torch._ops.OpOverload):
        return False
    returns = target._schema.returns
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)


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


def _windows_of(size: tuple[int, int]) -> list[_Window]:
    return [_Window(size, place) for place in itertools.product(range(size[0]), range(size[1]))]


def _leaves(value: Value | _Parts) -> Iterator[fx.Node]:
    """The calls and inputs that a value is made of."""
    if isinstance(value, _Parts):
        for part in value.values.values():
            yield from _leaves(part)
    elif value[0] in ("node", "part"):
        yield value[1]
    elif value[0] != "number":
        for v in value[1:]:
            yield from _leaves(v)


def _size(value: Value | _Parts) -> tuple[int, int]:
    """How many instructions a value takes at most, and how many operands and numbers."""
    if isinstance(value, _Parts):
        sizes = [_size(v) for v in value.values.values()]
        return sum(n for n, _ in sizes), len(sizes) + max(n for _, n in sizes)
    if not isinstance(value[0], int):
        return 0, 1
    sizes = [_size(v) for v in value[1:]]
    return 1 + sum(n for n, _ in sizes), sum(n for _, n in sizes)


def _parts_of(image: fx.Node, size: tuple[int, int]) -> list[Value]:
    return [("part", image, window) for window in _windows_of(size)]


def _take_biases_out(graph: fx.Graph) -> None:
    """Of products, where what takes these works element by element: it adds them without another pass."""
    for node in list(graph.nodes):
        if node.target is not aten.addmm.default or node.kwargs or len(node.users) != 1:
            continue
        bias, *factors = _arguments(node)
        last = user = next(iter(node.users))
        if user.target is aten.view.default and _value(user).shape[-1] == _value(node).shape[-1]:
            if len(user.users) != 1:
                continue
            last = next(iter(user.users))
        else:
            user = node
        if bias.op != "placeholder" or _value(bias).dim() != 1 or last.target not in ELEMENTS or not is_fused(user):
            continue
        with graph.inserting_before(node):
            product = graph.call_function(aten.mm.default, tuple(factors))
            product.meta = node.meta
        node.replace_all_uses_with(product)
        graph.erase_node(node)
        at = product if user is node else user
        with graph.inserting_after(at):
            biased = graph.call_function(aten.add.Tensor, (at, bias))
        biased.meta = at.meta
        last.replace_input_with(at, biased)


def _unturned(node: fx.Node) -> fx.Node:
    """A matrix that is transposed twice is itself."""
    while node.target is aten.t.default and _arguments(node)[0].target is aten.t.default:
        node = _arguments(_arguments(node)[0])[0]
    return node


class Scheduler:
    """Makes schedules of a graph of calls, whose metadata tell the forms of their results.

    Args:
        graph: of leaves and of what is computed once, to gradients.
        states: the free leaves, by their positions.
        velocities: whether the states have these.
        settles: the leaves, by their positions, whose gradients, or errors, are none where they may be rounding alone:
            those that move, if any, or any of a graph that gives something.
        gives: what the tensors are like that are given what the graph makes; None where that is gradients of the
            states, in their order, which are to move.
        opens: whether the graph is that of an opening, which gives the states themselves.
    """

    def __init__(
        self,
        graph: fx.Graph,
        states: Sequence[int],
        velocities: bool = False,
        settles: Sequence[int] = (),
        gives: Sequence[fx.Node] | None = None,
        opens: bool = False,
    ) -> None:
        self.graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        outputs: Any = self.graph.graph_copy(graph, copies)
        inputs = [n for n in self.graph.nodes if n.op == "placeholder"]
        self.states = [inputs[i] for i in states]
        _take_biases_out(self.graph)
        end = self.graph.output(outputs)
        take_over(self.graph)
        outputs = end.args[0]
        self.graph.erase_node(end)
        self.root: dict[fx.Node, fx.Node] = {}
        self.values: dict[fx.Node, Value | _Parts] = {}
        self.writes: dict[fx.Node, fx.Node] = {}  # of a pseudo-call the input that it writes
        self.units: list[_Unit] = []
        self.added = 0
        self.unit: dict[fx.Node, _Unit] = {}
        self.velocities = [self._input(f"velocity_{i}", s) for i, s in enumerate(self.states) if velocities]
        self.settling = [inputs[i] for i in settles]
        self.rests = [self._input(f"rest_{i}", s) for i, s in enumerate(self.settling)]
        self.ends: list[fx.Node] = []  # the pseudo-calls, for which all else is computed
        self.direct: dict[fx.Node, fx.Node] = {}  # of a call the gradient that it is
        if opens:
            self.numbers: tuple[str, ...] = (RATE,)
            for state, value in zip(self.states, outputs, strict=True):
                self._end(_set, state, (value,))
        elif gives is None:
            self.numbers = NUMBERS
            self._move(list(outputs))
        else:
            self.numbers = ()
            self._settle()
            self._give(list(outputs), [self._input(f"given_{i}", like) for i, like in enumerate(gives)])
        self.inputs: dict[fx.Node, list[fx.Node]] = {}  # what each reads, once it is fused
        self.readers: dict[fx.Node, list[fx.Node]] = {}  # of memory, by its root
        self.position: dict[fx.Node, int] = {}
        self._group()

    def _input(self, name: str, like: fx.Node) -> fx.Node:
        last = [n for n in self.graph.nodes if n.op == "placeholder"][-1]
        with self.graph.inserting_after(last):
            made = self.graph.placeholder(name)
        made.meta = like.meta
        return made

    def _move(self, gradients: list[fx.Node]) -> None:
        for i, (state, gradient) in enumerate(zip(self.states, gradients, strict=True)):
            velocity = None
            if self.velocities:
                velocity = self._end(_velocity, self.velocities[i], (self.velocities[i], gradient))
            self._end(_moved, state, (state, gradient, self.rests[i] if self.rests else None, velocity))

    def _settle(self) -> None:
        rests = dict(zip(self.settling, self.rests, strict=True))
        for node in list(self.graph.nodes):
            if node.target is not aten.sub.Tensor or node.kwargs:
                continue
            same = [rests[n] for n in node.all_input_nodes if n in rests and _alike(n, node)]
            if not same:
                continue
            rest = same[0]
            with self.graph.inserting_after(node):
                settled = self.graph.call_function(_settled, (node, rest))
            settled.meta = node.meta
            node.replace_all_uses_with(settled, lambda user, settled=settled: user is not settled)

    def _give(self, gradients: list[fx.Node], places: list[fx.Node]) -> None:
        for gradient, place in zip(gradients, places, strict=True):
            gradient = _unturned(gradient)
            call = self._written_by(gradient, _value(place))
            if call is None or call in self.direct:
                self._end(_given, place, (gradient,))
            else:
                self.direct[call] = place
                self.ends.append(call)

    def _written_by(self, gradient: fx.Node, place: Tensor) -> fx.Node | None:
        """The call that can write a gradient where its reader wants it."""
        call = gradient
        if call.target is aten.view.default:
            call = _arguments(call)[0]
        plain = place.is_contiguous() and place.dim() < 4  # images may be wanted in another layout than they are taken
        fits = call.target in _OUT and is_fused(call) and _value(call).is_contiguous()
        return call if plain and fits and _value(call).dtype == place.dtype else None

    def _end(self, target: Any, written: fx.Node, given: tuple[fx.Node | None, ...]) -> fx.Node:
        end = self.graph.call_function(target, given)
        end.meta = written.meta
        self.writes[end] = written
        self.ends.append(end)
        return end

    # ---- what is fused

    def _group(self) -> None:
        for node in self.graph.nodes:
            self.root[node] = self._root(node)
            if node.op == "call_function" and (value := self._element(node)) is not None:
                self.values[node] = value
                self.root[node] = node  # the maxima of pooling are an item of a call that is not made
                self.inputs[node] = [*dict.fromkeys(_leaves(value))]
            else:
                self.inputs[node] = node.all_input_nodes
        needed = set(self.ends)
        for node in reversed(self.graph.nodes):
            if node in needed:
                needed.update(self.inputs[node])
        calls = [n for n in self.graph.nodes if n in needed and n.op != "placeholder"]
        for node in calls:
            for n in self.inputs[node]:
                if self.root[node] is not self.root[n]:
                    self.readers.setdefault(self.root[n], []).append(node)
        for i, node in enumerate(calls):
            self.position[node] = i
            if node in self.values:
                self._place(node)
            else:
                self._add(_Unit([node]))

    def _root(self, node: fx.Node) -> fx.Node:
        """Whose memory a node's result lies in."""
        if node.op != "call_function" or not node.all_input_nodes:
            return node
        return self.root[node.all_input_nodes[0]] if _shares(node.target) else node

    def _element(self, node: fx.Node) -> Value | _Parts | None:
        if node.target is operator.getitem:
            return self._pooled(node)
        if not is_fused(node):
            return None
        if node.target is aten.max_pool2d_with_indices_backward.default:
            return self._max_pool_backward(node)
        if node.target is aten.avg_pool2d.default:
            return self._mean_pooled(node)
        if node.target is aten.clone.default and (parts := self._stacked(node)) is not None:
            return parts
        if node.target is aten.avg_pool2d_backward.default:
            return self._mean_pool_backward(node)
        for n in node.all_input_nodes:
            if not is_fused(n) or _value(n).dtype != _value(node).dtype:
                return None
        read = lambda n: ("node", n)  # noqa: E731
        if node.target is _velocity:
            before, gradient = map(read, node.all_input_nodes)
            return made(Op.ADD, made(Op.MUL, number("kept"), before), made(Op.MUL, number("taken"), gradient))
        if node.target is _moved:
            state, step, rest, velocity = (None if n is None else read(n) for n in _arguments(node))
            assert state is not None
            assert step is not None
            if rest is not None:
                step = made(Op.SELECT, made(Op.AT_LEAST, rest, made(Op.ABS, step)), ZERO, step)
            if velocity is not None:
                of_gradient = made(Op.MUL, number("gradient"), step)
                step = made(Op.ADD, of_gradient, made(Op.MUL, number("velocity"), velocity))
            return made(Op.SUB, state, made(Op.MUL, number("lr"), step))
        if node.target is _settled:
            error, rest = map(read, _arguments(node))
            return made(Op.SELECT, made(Op.AT_LEAST, rest, made(Op.ABS, error)), ZERO, error)
        if node.target is stepped:
            state, step = map(read, _arguments(node))
            return made(Op.SUB, state, made(Op.MUL, number(RATE), step))
        if node.target in (_set, _given, laid):
            return read(node.all_input_nodes[0])
        if node.target not in ELEMENTS:
            return None
        return value_of_call(node, read)

    def _stacked(self, node: fx.Node) -> _Parts | None:
        """Tensors that are stacked, turned and laid out anew, as the gradients of attention are."""
        turned = _arguments(node)[0]
        if turned.target is not aten.permute.default or len(turned.users) > 1:
            return None
        stack, order = _arguments(turned)
        if stack.target is not aten.stack.default or len(stack.users) > 1:
            return None
        tensors, dim = (*_arguments(stack), 0)[:2]
        if not all(is_fused(t) and _value(t).dtype == _value(node).dtype for t in tensors):
            return None
        at = {d % len(order): i for i, d in enumerate(order)}  # where each dimension of the stack has gone
        dim %= len(order)
        others = tuple(at[d] for d in range(len(order)) if d != dim)
        values: dict[_Window | _Slab, Value] = {_Slab(at[dim], i, others): ("node", t) for i, t in enumerate(tensors)}
        return _Parts(_domain(_value(tensors[0])), values)

    def _pooled(self, node: fx.Node) -> Value | None:
        """Max-pooling, where only its maxima are asked for, and its indices for the gradient alone."""
        source, i = _arguments(node)
        if source.target is not aten.max_pool2d_with_indices.default or i != 0 or not is_fused(_arguments(source)[0]):
            return None
        if (size := self._max_windows(source)) is None:
            return None
        for user in source.users:
            if _arguments(user)[1] == 1 and any(not self._is_backward_of(u, source) for u in user.users):
                return None
        image = _arguments(source)[0]
        parts = _parts_of(image, size)
        value = parts[0]
        for part in parts[1:]:
            value = made(Op.MAX, value, part)
        return value

    def _max_windows(self, pool: fx.Node) -> tuple[int, int] | None:
        rest: tuple[Any, ...] = ((), (0,), (1,), False)
        image, size, stride, padding, dilation, ceil = (*_arguments(pool), *rest[len(pool.args) - 2 :])
        return _windows(size, stride, padding, dilation, ceil, _value(image))

    def _is_backward_of(self, node: fx.Node, pool: fx.Node) -> bool:
        return (
            node.target is aten.max_pool2d_with_indices_backward.default and _arguments(node)[1] is _arguments(pool)[0]
        )

    def _max_pool_backward(self, node: fx.Node) -> _Parts | None:
        gradient, image, size, stride, padding, dilation, ceil, _ = _arguments(node)
        windows = _windows(size, stride, padding, dilation, ceil, _value(image))
        if windows is None or _value(gradient).dtype != _value(image).dtype:
            return None
        parts = _parts_of(image, windows)
        most = [parts[0]]
        for part in parts[1:]:
            most.append(made(Op.MAX, most[-1], part))
        found = _Parts(_domain(_value(gradient)))
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

    def _mean_windows(self, image: fx.Node, args: Sequence[Any]) -> tuple[int, int] | None:
        rest: tuple[Any, ...] = ((), (0,), False, True, None)
        size, stride, padding, ceil, _, divisor = (*args, *rest[len(args) - 1 :])
        return None if divisor else _windows(size, stride, padding, (1,), ceil, _value(image))

    def _mean_pooled(self, node: fx.Node) -> Value | None:
        image, *window = _arguments(node)
        size = self._mean_windows(image, window)
        if size is None:
            return None
        first, *rest = _parts_of(image, size)
        for part in rest:
            first = made(Op.ADD, first, part)
        return made(Op.MUL, first, number(1 / (size[0] * size[1])))

    def _mean_pool_backward(self, node: fx.Node) -> _Parts | None:
        gradient, image, *window = _arguments(node)
        size = self._mean_windows(image, window)
        if size is None or _value(gradient).dtype != _value(image).dtype:
            return None
        share = made(Op.MUL, ("node", gradient), number(1 / (size[0] * size[1])))
        return _Parts(_domain(_value(gradient)), dict.fromkeys(_windows_of(size), share))

    def _add(self, unit: _Unit) -> None:
        unit.bit = 1 << self.added  # of no other, also where groups have become one
        self.added += 1
        self.units.append(unit)
        for node in unit.nodes:
            self.unit[node] = unit
        unit.before = self._needed(unit.nodes[0])

    def _needed(self, node: fx.Node) -> int:
        """The units before that of a node, without itself."""
        before = 0
        for n in self._ordered(node):
            if (unit := self.unit.get(n)) is not None:
                before |= unit.before | unit.bit
        return before

    def _place(self, node: fx.Node) -> None:
        """In a group that makes what it reads, together with others that do, or that reads the same."""
        value = self.values[node]
        domain = value.domain if isinstance(value, _Parts) else _domain(_value(node))
        near = {self.unit[n] for n in self._ordered(node) if n in self.unit}
        mine = sorted((u for u in near if u.domain == domain), key=lambda u: -u.bit)
        before = self._needed(node)
        home: _Unit | None = None
        for unit in mine:
            if home is None:
                others = [self.unit[n] for n in self._ordered(node) if n in self.unit]
                joins = all(u is unit or not (u.before & unit.bit) for u in others)
                if joins and self._fits([*unit.nodes, node]):
                    home = unit
                    home.nodes.append(node)
                    self.unit[node] = home
                    self._come_after(home, before & ~home.bit)
            else:
                self._merge(home, unit)
        if home is None:
            self._add(_Unit([node], domain))

    def _ordered(self, node: fx.Node) -> list[fx.Node]:
        written = self.writes.get(node)
        others = self.readers.get(written, ()) if written is not None else ()
        return [*self.inputs[node], *(n for n in others if n is not node)]

    def _come_after(self, unit: _Unit, before: int) -> None:
        unit.before |= before
        for other in self.units:
            if other.before & unit.bit:
                other.before |= unit.before

    def _merge(self, home: _Unit, other: _Unit) -> None:
        """Two groups become one, unless something in between needs one and is needed by the other."""
        if not self._fits(home.nodes + other.nodes):
            return
        for u in self.units:
            if u is home or u is other:
                continue
            if (u.before & other.bit and home.before & u.bit) or (u.before & home.bit and other.before & u.bit):
                return
        for node in other.nodes:
            self.unit[node] = home
        home.nodes = other.nodes + home.nodes
        self.units.remove(other)
        for u in self.units:
            if u.before & other.bit:
                u.before = (u.before & ~other.bit) | home.bit
        self._come_after(home, (other.before | home.before) & ~home.bit & ~other.bit)
        home.before &= ~home.bit

    def _fits(self, nodes: Iterable[fx.Node]) -> bool:
        sizes = [_size(self.values[n]) for n in nodes]
        return sum(n for n, _ in sizes) <= MOST_INSTRUCTIONS and sum(n + 1 for _, n in sizes) <= MOST_OPERANDS

    # ---- what lies in memory, and where

    def _order(self) -> list[_Unit]:
        """The units, each after those that it needs."""
        after: dict[_Unit, set[_Unit]] = {}
        for unit in self.units:
            before = {self.unit[n] for node in unit.nodes for n in self._ordered(node) if n in self.unit}
            after[unit] = before - {unit}
        ordered: list[_Unit] = []
        for unit in sorted(self.units, key=lambda u: max(self.position[n] for n in u.nodes)):
            self._append(unit, after, ordered)
        return ordered

    def _append(self, unit: _Unit, after: dict[_Unit, set[_Unit]], ordered: list[_Unit]) -> None:
        if unit in ordered:
            return
        for u in sorted(after[unit], key=lambda u: max(self.position[n] for n in u.nodes)):
            self._append(u, after, ordered)
        ordered.append(unit)

    def _is_made_again(self, node: fx.Node, unit: _Unit) -> bool:
        """Whether a group makes a value of another again, of what it reads anyway."""
        value = self.values[node]
        if isinstance(value, _Parts) or value[0] not in _CHEAP or unit.domain != self.unit[node].domain:
            return False
        read = {n for of in unit.nodes for n in self.inputs[of] if n not in self.values or self.unit[n] is unit}
        return all(v[0] == "number" or (v[0] == "node" and v[1] in read) for v in value[1:])

    def _kept(self) -> set[fx.Node]:
        """The element-wise values that lie in memory."""
        kept: set[fx.Node] = set()
        crossing: list[tuple[fx.Node, _Unit]] = []
        for unit in self.units:
            for node in unit.nodes:
                for n in self.inputs[node]:
                    if n not in self.values or n in self.writes:
                        continue
                    elsewhere = self.unit[n] is not unit
                    if (
                        unit.domain is None
                        or self._is_part(node, n)
                        or (elsewhere and unit.domain != self.unit[n].domain)
                        or isinstance(self.values[n], _Parts)
                    ):
                        kept.add(n)
                    elif elsewhere and not self._is_made_again(n, unit):
                        crossing.append((n, unit))
        for n, unit in crossing:
            if self._negative(n, kept, unit) is None:
                kept.add(n)
        return kept

    def _is_part(self, node: fx.Node, image: fx.Node) -> bool:
        """Whether a call reads a value in parts."""
        value = self.values[node]
        values = value.values.values() if isinstance(value, _Parts) else (value,)
        return any(part[1] is image for v in values for part in _parts(v))

    def _negative(self, node: fx.Node, kept: set[fx.Node], reader: _Unit) -> fx.Node | None:
        """Another value, in memory before a group is made, of which it is the negative."""
        found = (
            other
            for other in kept
            if (self.values[other] == (Op.NEG, ("node", node)) or self.values[node] == (Op.NEG, ("node", other)))
            and self.unit[other].bit & reader.before
        )
        return min(found, key=self.position.__getitem__, default=None)

    def schedule(self) -> Schedule:
        """The calls in order, with their memory."""
        return _Writer(self).schedule()


def _parts(value: Value) -> Iterator[Value]:
    if value[0] == "part":
        yield value
    elif isinstance(value[0], int):
        for v in value[1:]:
            yield from _parts(v)


RATE = "lr"  # of an opening
NUMBERS = (RATE, "kept", "taken", "gradient", "velocity")  # of an E-step


@dataclass(frozen=True, eq=False)
class Schedule:
    """An E-step, an opening, or what a graph gives, as a graph of calls.

    Attributes:
        graph: takes the leaves, what is computed once, velocities where there are any, for every state, if it settles,
            the size of gradients that do not move it, or of errors that are none, element by element, the tensors that
            it gives, which it writes, memory, and `NUMBERS`, or of an opening its `RATE`.
        blocks: how many elements every block of memory has, and of which type.
        memory: where the tensors lie that the graph is lent.
        fused: how many calls are of element-wise programs, and how many operators they stand for.
    """

    graph: fx.Graph
    blocks: list[tuple[int, torch.dtype]]
    memory: list[Memory]
    fused: tuple[int, int]

    @property
    def calls(self) -> int:
        """How many operators a step calls, beside views."""
        return sum(n.op == "call_function" and not _shares(n.target) for n in self.graph.nodes)

    @property
    def in_words(self) -> str:
        """What is fused, in words."""
        calls, operators = self.fused
        return f"{operators} element-wise operators, states' updates among them, in {calls} of these"

    def lend(self, owner: object) -> list[Tensor]:
        """Memory for a run, which all schedules of an owner use in turn; a thread keeps that of its last owner."""
        if owner not in _lent.to:
            _lent.to.clear()
            _lent.to[owner] = _Blocks()
        return _lent.to[owner].lend(self)


class _Blocks:
    """Memory that is as large as the largest of some schedules needs."""

    def __init__(self) -> None:
        self.bytes: list[Tensor] = []  # the largest first
        self.lent: WeakKeyDictionary[Schedule, list[Tensor]] = WeakKeyDictionary()

    def lend(self, schedule: Schedule) -> list[Tensor]:
        if schedule not in self.lent:
            sizes = [size * dtype.itemsize for size, dtype in schedule.blocks]
            order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
            for place, i in enumerate(order):
                if place == len(self.bytes) or self.bytes[place].numel() < sizes[i]:
                    self.bytes[place : place + 1] = [torch.empty(sizes[i], dtype=torch.uint8)]
                    self.lent.clear()  # whose blocks were smaller
            blocks = {i: self.bytes[place][: sizes[i]].view(schedule.blocks[i][1]) for place, i in enumerate(order)}
            self.lent[schedule] = [blocks[m.block].as_strided(m.shape, m.stride, m.offset) for m in schedule.memory]
        return self.lent[schedule]


class _Lent(threading.local):
    def __init__(self) -> None:
        self.to: WeakKeyDictionary[Any, _Blocks] = WeakKeyDictionary()


_lent = _Lent()


class _Writer:
    """Writes what a scheduler found out as a graph."""

    def __init__(self, of: Scheduler) -> None:
        self.of, self.kept = of, of._kept()
        self.graph = fx.Graph()
        self.blocks: list[tuple[int, torch.dtype]] = []
        self.memory: dict[Memory, fx.Node] = {}
        self.free: list[int] = []
        self.place: dict[fx.Node, Memory] = {}
        self.made: dict[fx.Node, fx.Node] = {}
        for node in of.graph.nodes:
            if node.op == "placeholder":
                self.made[node] = self.graph.placeholder(node.name)
        self.last_input = next(reversed(self.made.values()))  # or memory
        self.numbers = {name: self.graph.placeholder(name) for name in of.numbers}
        self.fused = [0, 0]

    def schedule(self) -> Schedule:
        of, ordered = self.of, self.of._order()
        last: dict[fx.Node, int] = {}
        for i, unit in enumerate(ordered):
            for node in unit.nodes:
                for n in (node, *of.inputs[node]):
                    last[of.root[n]] = i
                    if n in of.values and (twin := of._negative(n, self.kept, unit)) is not None:
                        last[of.root[twin]] = i
        for i, unit in enumerate(ordered):
            if unit.domain is not None:
                self._write_group(unit)
            else:
                self._write_call(unit.nodes[0])
            for node in [n for n in self.place if last[n] == i]:
                self.free.append(self.place.pop(node).block)
        self.graph.output(())
        memory = list(self.memory)
        return Schedule(self.graph, self.blocks, memory, (self.fused[0], self.fused[1]))

    def _reserve(self, node: fx.Node) -> fx.Node:
        """Memory for a result."""
        t = _value(node)
        size = t.numel()
        fitting = [b for b in self.free if self.blocks[b][1] == t.dtype and self.blocks[b][0] >= size]
        if fitting:
            block = min(fitting, key=lambda b: self.blocks[b][0])
            self.free.remove(block)
        else:
            block = len(self.blocks)
            self.blocks.append((size, t.dtype))
        self.place[node] = Memory(block, tuple(t.shape), dense_strides(t), t.dtype)
        self.made[node] = self._lent(self.place[node])
        return self.made[node]

    def _direct(self, node: fx.Node) -> fx.Node:
        """The place of a gradient, as the call that makes it sees it."""
        place, shape = self.of.direct[node], _value(node).shape
        out = self.made[place]
        if _value(place).shape != shape:
            out = self.graph.call_function(aten.view.default, (out, list(shape)))
        self.made[node] = out
        return out

    def _lent(self, memory: Memory) -> fx.Node:
        if memory not in self.memory:
            with self.graph.inserting_after(self.last_input):
                self.memory[memory] = self.last_input = self.graph.placeholder(f"memory_{len(self.memory)}")
        return self.memory[memory]

    def _write_call(self, node: fx.Node) -> None:
        arguments = fx.map_arg(node.args, lambda n: self.made[n])
        if (writing := WRITING.get(node.target)) is not None:
            self.graph.call_function(writing, (self._reserve(node), *arguments))
            return
        found = _out_of(node.target)
        if found is None or not is_fused(node):
            self.made[node] = self.graph.node_copy(node, self.made.__getitem__)
            self.made[node].meta = {}
            return
        out = self._direct(node) if node in self.of.direct else self._reserve(node)
        target, into = found
        self.graph.call_function(target, arguments, {**fx.map_arg(node.kwargs, self.made.__getitem__), into: out})

    def _write_group(self, unit: _Unit) -> None:
        assert unit.domain is not None
        program = _Program(self, unit)
        written: list[fx.Node] = []
        results = []
        for node in unit.nodes:
            value = self.of.values[node]
            if node in self.of.writes:
                target = self.made[node] = self.made[self.of.writes[node]]
                written.append(target)
                results.append(program.compiled(("node", node)))
            elif node not in self.kept:
                continue
            elif isinstance(value, _Parts):
                self._reserve(node)
                for place, part in value.values.items():
                    written.append(self._lent(place.of(self.place[node])))
                    results.append(program.compiled(part))
            else:
                written.append(self._reserve(node))
                results.append(program.compiled(("node", node)))
        if not written:
            return
        self.graph.call_function(ops.elementwise_, (written, *program.arguments(results)))
        self.fused[0] += 1
        self.fused[1] += len(unit.nodes)


class _Program:
    """The instructions of a group."""

    def __init__(self, writer: _Writer, unit: _Unit) -> None:
        self.writer, self.unit = writer, unit
        self.reads: dict[Any, tuple[str, int]] = {}
        self.numbers: dict[Any, tuple[str, int]] = {}
        self.code: dict[Any, tuple[str, int]] = {}
        self.operands: list[fx.Node] = []
        self.nodes: dict[fx.Node, tuple[str, int]] = {}

    def compiled(self, value: Value) -> tuple[str, int]:
        """Where a value is: among what is read, numbers or results of instructions."""
        kind = value[0]
        if kind == "number":
            return self.numbers.setdefault(value[1], ("number", len(self.numbers)))
        if kind == "part":
            return self._read(value, lambda: self._part(*value[1:]))
        if kind == "node":
            if value[1] not in self.nodes:
                self.nodes[value[1]] = self._of_node(value[1])
            return self.nodes[value[1]]
        key = (kind, *map(self.compiled, value[1:]))
        return self.code.setdefault(key, ("code", len(self.code)))

    def _of_node(self, node: fx.Node) -> tuple[str, int]:
        of, kept = self.writer.of, self.writer.kept
        if node in of.values:
            value = of.values[node]
            if not isinstance(value, _Parts) and (
                of.unit[node] is self.unit or (node not in kept and of._is_made_again(node, self.unit))
            ):
                return self.compiled(value)
            if node not in kept and (negative := of._negative(node, kept, self.unit)) is not None:
                return self.compiled(made(Op.NEG, ("node", negative)))
        return self._read(node, lambda: self._whole(node))

    def _read(self, key: Any, operand: Any) -> tuple[str, int]:
        if key not in self.reads:
            self.reads[key] = ("read", len(self.reads))
            self.operands.append(operand())
        return self.reads[key]

    def _whole(self, node: fx.Node) -> fx.Node:
        assert self.unit.domain is not None
        shape, made = self.unit.domain[0], self.writer.made[node]
        if tuple(_value(node).shape) == shape:
            return made
        return self.writer.graph.call_function(aten.expand.default, (made, list(shape)))

    def _part(self, image: fx.Node, window: _Window) -> fx.Node:
        if image in self.writer.place:
            return self.writer._lent(window.of(self.writer.place[image]))
        part = self.writer.made[image]
        for d, (size, place) in enumerate(zip(window.size, window.place, strict=True)):
            end = _value(image).shape[2 + d]
            part = self.writer.graph.call_function(aten.slice.Tensor, (part, 2 + d, place, end, size))
        return part

    def arguments(self, results: list[tuple[str, int]]) -> tuple[Any, ...]:
        """Of `elementwise_`, behind what is written."""
        first = {"read": 0, "number": len(self.reads), "code": len(self.reads) + len(self.numbers)}

        def at(value: tuple[str, int]) -> int:
            return first[value[0]] + value[1]

        instructions: list[int] = []
        for operation, *values in self.code:
            instructions += [int(operation), *map(at, values), *[0] * (3 - len(values))]
        numbers = [self.writer.numbers[x] if isinstance(x, str) else x for x in self.numbers]
        return self.operands, instructions, [at(r) for r in results], numbers
