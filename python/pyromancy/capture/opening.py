"""The first E-steps of a batch together with the sweep before them, where one has computed what the other needs.

A sweep sets states to their predictions. Their errors then are zero, and an E-step moves no state but those whose
gradient some error reaches; so it goes on, one node further with every step. Here the sweep and these steps are one
graph, in which nothing is computed twice, nor what is zero: the prediction of a node whose parents have not moved is
the one before, and of a node without an error nothing is fed back. From the step on in which all states move, there is
nothing to be gained, and the others are run one by one.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from .recording import NotCapturable

aten = torch.ops.aten

MOST_CALLS = 2000  # of an opening: with more of them it takes long to schedule

# whose results are zero where the first argument is
_OF_FIRST = frozenset(
    getattr(getattr(aten, name), overload)
    for name, overload in (
        ("neg", "default"), ("abs", "default"), ("sgn", "default"), ("tanh", "default"), ("relu", "default"),
        ("clone", "default"), ("view", "default"), ("_unsafe_view", "default"), ("reshape", "default"),
        ("permute", "default"), ("transpose", "int"), ("t", "default"), ("expand", "default"), ("slice", "Tensor"),
        ("select", "int"), ("squeeze", "dim"), ("squeeze", "default"), ("unsqueeze", "default"),
        ("sum", "default"), ("sum", "dim_IntList"), ("mean", "dim"), ("div", "Tensor"), ("div", "Scalar"),
        ("split", "Tensor"), ("unbind", "int"), ("zeros_like", "default"),
        # of a gradient, which all of these are linear in
        ("convolution_backward", "default"), ("max_pool2d_with_indices_backward", "default"),
        ("avg_pool2d_backward", "default"), ("native_layer_norm_backward", "default"),
        ("native_group_norm_backward", "default"), ("tanh_backward", "default"), ("sigmoid_backward", "default"),
        ("threshold_backward", "default"), ("gelu_backward", "default"), ("silu_backward", "default"),
        ("elu_backward", "default"), ("leaky_relu_backward", "default"), ("hardtanh_backward", "default"),
        ("softplus_backward", "default"), ("slice_backward", "default"), ("select_backward", "default"),
        ("_softmax_backward_data", "default"), ("_adaptive_avg_pool2d_backward", "default"),
        ("_scaled_dot_product_flash_attention_for_cpu_backward", "default"),
    )
) | {operator.getitem}  # fmt: skip
_PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar, aten.mm.default, aten.bmm.default)
_JOINING = (aten.stack.default, aten.cat.default)


def stepped(state: Tensor, gradient: Tensor) -> Tensor:
    """Stands for a state after a step of plain descent."""
    raise NotImplementedError


def laid(value: Tensor) -> Tensor:
    """Stands for a tensor that lies in memory as another of its shape."""
    raise NotImplementedError


@dataclass(frozen=True)
class Opening:
    """A sweep and the first E-steps.

    Attributes:
        graph: takes the leaves, what is computed once, and what the sweep takes beside these; gives the states.
        steps: how many there are in it.
    """

    graph: fx.Graph
    steps: int


def opening(once: fx.Graph, step: fx.Graph, sweep: fx.Graph, states: Sequence[int], most: int) -> Opening:
    """A sweep and as many E-steps as gain by being one with it.

    Args:
        once: of the leaves, what no state changes.
        step: of the leaves and the results of `once`, the gradients of the states.
        sweep: of the leaves, and tensors of its own, what states are set to.
        states: the free leaves, by their positions, in the order of gradients and of what they are set to.
        most: E-steps at most.

    Raises:
        NotCapturable: there are constants beside the leaves.
    """
    if any(n.op == "get_attr" for graph in (once, step, sweep) for n in graph.nodes):
        raise NotCapturable("it has constants of its own")
    writer = _Writer()
    count = sum(n.op == "placeholder" for n in once.nodes)
    inputs = [writer.input(n) for n in step.nodes if n.op == "placeholder"]
    own = [writer.input(n) for n in [n for n in sweep.nodes if n.op == "placeholder"][count:]]
    inputs[count:] = writer.copied(once, inputs[:count], dict(zip(_outputs(once), inputs[count:], strict=True)))
    values = writer.copied(sweep, [*inputs[:count], *own])
    now = [writer.laid_as(v, inputs[i]) for i, v in zip(states, values, strict=True)]
    whole = _calls_of(step)
    steps = 0
    while steps < most and len(writer.graph.nodes) < MOST_CALLS:
        before, taken = writer.count, list(inputs)
        for i, node in zip(states, now, strict=True):
            taken[i] = node
        gradients = writer.copied(step, taken)
        if writer.count - before >= whole:
            break
        now = [writer.stepped(z, g) for z, g in zip(now, gradients, strict=True)]
        steps += 1
    writer.graph.output(tuple(now))
    writer.graph.eliminate_dead_code()
    return Opening(writer.graph, steps)


def _outputs(graph: fx.Graph) -> list[fx.Node]:
    (output,) = (n for n in graph.nodes if n.op == "output")
    return list(output.args[0])


def _calls_of(graph: fx.Graph) -> int:
    """How many calls a graph makes of inputs that nothing is known of."""
    writer = _Writer()
    writer.copied(graph, [writer.input(n) for n in graph.nodes if n.op == "placeholder"])
    return writer.count


def _value(node: fx.Node) -> Any:
    return node.meta["val"]


def _form(node: fx.Node) -> tuple[Any, ...]:
    """Of what a node gives: its shape, dtype, and strides where these matter."""
    t = _value(node)
    if not isinstance(t, Tensor):
        return (id(node),)
    return tuple(t.shape), t.dtype, tuple(s for n, s in zip(t.shape, t.stride(), strict=True) if n != 1)


def _source(argument: Any) -> Any:
    """Where a value comes from that only lies in another way."""
    while isinstance(argument, fx.Node) and argument.target is laid:
        argument = argument.args[0]
    return argument


def _key(tree: Any) -> Any:
    """What calls are told apart by: numbers that are equal may be of several types."""
    if isinstance(tree, tuple | list):
        return tuple(map(_key, tree))
    if isinstance(tree, dict):
        return tuple((name, _key(value)) for name, value in sorted(tree.items()))
    if isinstance(tree, slice):
        return "slice", _key((tree.start, tree.stop, tree.step))
    return type(tree), repr(tree) if isinstance(tree, float) else tree


class _Writer:
    """Writes a graph in which no call is made twice, nor one whose result is known to be zero."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.count = 0  # of calls that were written
        self._known: dict[Any, fx.Node] = {}
        self._elsewhere = fx.Graph()  # of what stands for zeros
        self._zeros: dict[Any, fx.Node] = {}  # by their forms

    def input(self, like: fx.Node) -> fx.Node:
        """Another input of the graph."""
        node = self.graph.placeholder(like.name)
        node.meta = like.meta
        return node

    def copied(
        self, graph: fx.Graph, inputs: Sequence[fx.Node], instead: dict[fx.Node, fx.Node] | None = None
    ) -> list[fx.Node]:
        """What a graph gives of these inputs; `instead` has what there is already of its calls."""
        places = iter(inputs)
        now: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                now[node] = next(places)
            elif node.op == "call_function":
                args, kwargs = (fx.map_arg(given, now.__getitem__) for given in (node.args, node.kwargs))
                now[node] = self._written(node, args, kwargs, (instead or {}).get(node))
        return [now[n] for n in _outputs(graph)]

    def laid_as(self, value: fx.Node, like: fx.Node) -> fx.Node:
        """A value that lies in memory as another."""
        value = self._real(value)
        return value if _form(value) == _form(like) else self._call(laid, (value,), {}, like.meta)

    def stepped(self, state: fx.Node, gradient: fx.Node) -> fx.Node:
        """A state after a step."""
        return state if self._is_zero(gradient) else self._call(stepped, (state, gradient), {}, state.meta)

    def _written(self, node: fx.Node, args: Any, kwargs: Any, there: fx.Node | None) -> fx.Node:
        if there is None and (simpler := self._simpler(node, args, kwargs)) is not None:
            return simpler
        args, kwargs = (fx.map_arg(given, self._real) for given in (args, kwargs))
        return self._call(node.target, args, kwargs, node.meta, there)

    def _call(self, target: Any, args: Any, kwargs: Any, meta: dict[str, Any], there: fx.Node | None = None) -> fx.Node:
        key = _key((target, args, kwargs))
        if key not in self._known:
            self.count += 1
            if there is None:
                there = self.graph.call_function(target, args, kwargs)
                there.meta = meta
            self._known[key] = there
        return self._known[key]

    def _simpler(self, node: fx.Node, args: Any, kwargs: Any) -> fx.Node | None:
        """What a call gives that need not be made."""
        target, zero = node.target, [self._is_zero(a) for a in args]
        if (any(zero) and target in _PRODUCTS) or (any(zero[:1]) and target in _OF_FIRST):
            return self._zero(node)
        if target in _JOINING and all(map(self._is_zero, args[0])):
            return self._zero(node)
        if kwargs:  # such as numbers that products are multiplied by
            return None
        if target is aten.sub.Tensor and _source(args[0]) is _source(args[1]):
            return self._zero(node)
        if target is aten.addmm.default and any(zero):
            if zero[1] or zero[2]:
                return self._as(node, args[0])
            return self._call(aten.mm.default, tuple(args[1:]), {}, node.meta)
        if target in (aten.add.Tensor, aten.sub.Tensor) and any(zero) and all(isinstance(a, fx.Node) for a in args):
            if target is aten.add.Tensor or zero[1]:
                return self._as(node, args[1 if zero[0] else 0])
            return self._call(aten.neg.default, (args[1],), {}, node.meta)
        return None

    def _as(self, node: fx.Node, value: fx.Node) -> fx.Node | None:
        """A value in the place of a call, if that has its shape."""
        if self._is_zero(value):
            return self._zero(node)
        if _form(node)[:2] != _form(value)[:2]:
            return None
        return value if _form(node) == _form(value) else self._call(laid, (value,), {}, node.meta)

    def _is_zero(self, argument: Any) -> bool:
        return isinstance(argument, fx.Node) and argument.graph is self._elsewhere

    def _zero(self, node: fx.Node) -> fx.Node:
        """Stands for a result that is zero, and is not made unless it is asked for."""
        form = _form(node)
        if form not in self._zeros:
            self._zeros[form] = self._elsewhere.placeholder("zero")
            self._zeros[form].meta = node.meta
        return self._zeros[form]

    def _real(self, node: fx.Node) -> fx.Node:
        if not self._is_zero(node):
            return node
        t = _value(node)
        plain = {"val": torch.empty(t.shape, dtype=t.dtype, device="meta"), "device": torch.device("cpu")}
        return self._call(aten.zeros.default, (list(t.shape),), {"dtype": t.dtype}, plain)
