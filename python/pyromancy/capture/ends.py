"""What a schedule's graph ends in: calls that write states that have moved, or gradients where they are wanted.

A state moves by its gradient, after all others that read it, so that all states move at once, as gradients are of the
states before.

Products and activations of these calls may be rounded in other ways than those that have set the states. So that
states that are their predictions stay what they are, as by autograd, gradients of the size of rounding can be left out;
and so that these teach nothing, differences of that size between a state and another tensor are none to the M-step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..plan.expression import Op
from .elements import ELEMENTS, ZERO, Value, made, number
from .forms import arguments_of, domain_of, example
from .opening import laid, stepped
from .operators import OUT
from .partition import is_fused
from .sequences import take_over

aten = torch.ops.aten
RATE = "lr"  # of an opening
NUMBERS = (RATE, "kept", "taken", "gradient", "velocity")  # of an E-step


class Ends:
    """A graph of calls, whose metadata tell the forms of their results, with calls at its ends that write.

    Args:
        graph: of leaves and of what is computed once, to gradients.
        states: the free leaves, by their positions.
        velocities: whether the states have these.
        settles: the leaves, by their positions, whose gradients, or errors, are none where they may be rounding alone:
            those that move, if any, or any of a graph that gives something.
        gives: what the tensors are like that are given what the graph makes; None where that is gradients of the
            states, in their order, which are to move.
        opens: whether the graph is that of an opening, which gives the states themselves.

    Attributes:
        graph: a copy, with these calls.
        calls: the ends, for which all else is computed.
        writes: of an end the input that it writes.
        direct: of a call of PyTorch's that writes a gradient where it is wanted, that place.
        numbers: the names of those that are told at every run.
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
        self._states = [inputs[i] for i in states]
        end = self.graph.output(outputs)
        _take_biases_out(self.graph)  # but of what is put out
        take_over(self.graph)
        outputs = end.args[0]
        self.graph.erase_node(end)
        self.writes: dict[fx.Node, fx.Node] = {}
        self._velocities = [self._input(f"velocity_{i}", s) for i, s in enumerate(self._states) if velocities]
        self._settling = [inputs[i] for i in settles]
        self._rests = [self._input(f"rest_{i}", s) for i, s in enumerate(self._settling)]
        self.calls: list[fx.Node] = []
        self.direct: dict[fx.Node, fx.Node] = {}
        if opens:
            self.numbers: tuple[str, ...] = (RATE,)
            for state, value in zip(self._states, outputs, strict=True):
                self._end(_set, state, (value,))
        elif gives is None:
            self.numbers = NUMBERS
            self._move(list(outputs))
        else:
            self.numbers = ()
            self._settle()
            self._give(list(outputs), [self._input(f"given_{i}", like) for i, like in enumerate(gives)])

    def _input(self, name: str, like: fx.Node) -> fx.Node:
        last = [n for n in self.graph.nodes if n.op == "placeholder"][-1]
        with self.graph.inserting_after(last):
            made = self.graph.placeholder(name)
        made.meta = like.meta
        return made

    def _move(self, gradients: list[fx.Node]) -> None:
        for i, (state, gradient) in enumerate(zip(self._states, gradients, strict=True)):
            velocity = None
            if self._velocities:
                velocity = self._end(_velocity, self._velocities[i], (self._velocities[i], gradient))
            self._end(_moved, state, (state, gradient, self._rests[i] if self._rests else None, velocity))

    def _settle(self) -> None:
        rests = dict(zip(self._settling, self._rests, strict=True))
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
            call = self._written_by(gradient, example(place))
            if call is None or call in self.direct:
                self._end(_given, place, (gradient,))
            else:
                self.direct[call] = place
                self.calls.append(call)

    def _written_by(self, gradient: fx.Node, place: Tensor) -> fx.Node | None:
        """The call that can write a gradient where its reader wants it."""
        call = gradient
        if call.target is aten.view.default:
            call = arguments_of(call)[0]
        plain = place.is_contiguous() and place.dim() < 4  # images may be wanted in another layout than they are taken
        fits = call.target in OUT and is_fused(call) and example(call).is_contiguous()
        return call if plain and fits and example(call).dtype == place.dtype else None

    def _end(self, target: Any, written: fx.Node, given: tuple[fx.Node | None, ...]) -> fx.Node:
        end = self.graph.call_function(target, given)
        end.meta = written.meta
        self.writes[end] = written
        self.calls.append(end)
        return end


def value_of_end(node: fx.Node) -> Value | None:
    """What a call at an end makes of every element; None of another."""
    read = lambda n: ("node", n)  # noqa: E731
    if node.target is _velocity:
        before, gradient = map(read, node.all_input_nodes)
        return made(Op.ADD, made(Op.MUL, number("kept"), before), made(Op.MUL, number("taken"), gradient))
    if node.target is _moved:
        state, step, rest, velocity = (None if n is None else read(n) for n in arguments_of(node))
        assert state is not None
        assert step is not None
        if rest is not None:
            step = made(Op.SELECT, made(Op.AT_LEAST, rest, made(Op.ABS, step)), ZERO, step)
        if velocity is not None:
            of_gradient = made(Op.MUL, number("gradient"), step)
            step = made(Op.ADD, of_gradient, made(Op.MUL, number("velocity"), velocity))
        return made(Op.SUB, state, made(Op.MUL, number(RATE), step))
    if node.target is _settled:
        error, rest = map(read, arguments_of(node))
        return made(Op.SELECT, made(Op.AT_LEAST, rest, made(Op.ABS, error)), ZERO, error)
    if node.target is stepped:
        state, step = map(read, arguments_of(node))
        return made(Op.SUB, state, made(Op.MUL, number(RATE), step))
    return read(node.all_input_nodes[0]) if node.target in (_set, _given, laid) else None


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


def settling(graph: fx.Graph, leaves: int) -> list[int]:
    """The first inputs of a graph, by their positions, from which something of their form is subtracted, or they."""
    inputs = [n for n in graph.nodes if n.op == "placeholder"][:leaves]
    return [
        i for i, n in enumerate(inputs)
        if is_fused(n) and any(u.target is aten.sub.Tensor and not u.kwargs and _alike(n, u) for u in n.users)
    ]  # fmt: skip


def _alike(a: fx.Node, b: fx.Node) -> bool:
    return domain_of(example(a)) == domain_of(example(b))


def _take_biases_out(graph: fx.Graph) -> None:
    """Of products, where what takes these works element by element: it adds them without another pass."""
    for node in list(graph.nodes):
        if node.target is not aten.addmm.default or node.kwargs or len(node.users) != 1:
            continue
        bias, *factors = arguments_of(node)
        last = user = next(iter(node.users))
        if user.target is aten.view.default and example(user).shape[-1] == example(node).shape[-1]:
            if len(user.users) != 1:
                continue
            last = next(iter(user.users))
        else:
            user = node
        if bias.op != "placeholder" or example(bias).dim() != 1 or last.target not in ELEMENTS or not is_fused(user):
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
    while node.target is aten.t.default and arguments_of(node)[0].target is aten.t.default:
        node = arguments_of(arguments_of(node)[0])[0]
    return node
