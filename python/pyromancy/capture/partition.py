"""The gradient of any captured energy as a traced graph, split into what runs once and what runs at every step."""

from __future__ import annotations

import linecache
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import graph_module
from torch.fx.experimental.proxy_tensor import make_fx

from . import trace
from .interrupt import Uninterrupted
from .program import Program
from .recording import NotCapturable

aten = torch.ops.aten
_tracing = threading.Lock()  # make_fx changes the process's modules while it runs


Graphs = tuple[fx.GraphModule, fx.Graph]
Energy = Callable[[Sequence[Tensor]], Tensor]  # of the leaves, or of what stands in the places of the free ones


def partition(program: Program, free: Sequence[int], leaves: Sequence[Tensor]) -> Graphs:
    """The gradient of the energy, summed over the batch, for the free states.

    Args:
        program: the energy.
        free: slots of the states, in the order of the gradients.
        leaves: tensors to trace with: the graphs are good for others of these shapes, dtypes and strides.

    Returns:
        A graph of what no state changes, which takes the leaves, and one of the rest, which takes the leaves and the
        results of the first; its metadata tell the forms of all results.

    Raises:
        NotCapturable: it cannot be traced.
    """

    def gradient(*leaves: Tensor) -> list[Tensor]:
        return _evaluated(program, free, lambda values: program.evaluate([program.result], values)[0], leaves)[1:]

    return partitioned(gradient, free, leaves, apart=True)


def learning(program: Program, wanted: Sequence[int], leaves: Sequence[Tensor]) -> tuple[*Graphs, list[int]]:
    """The gradient of the energy's mean over the batch, for leaves that learn.

    Args:
        program: the energy.
        wanted: their slots.
        leaves: as for `partition`.

    Returns:
        As `partition`, where nothing but what no leaf enters is computed once, and the slots that there are gradients
        of: the energy depends on these.

    Raises:
        NotCapturable: it cannot be traced.
    """
    reached: list[int] = []

    def gradient(*leaves: Tensor) -> list[Tensor]:
        energy = lambda values: program.evaluate([program.result], values)[0]  # noqa: E731
        share = 1 / program.stand_ins[program.result].numel()
        gradients = _differentiated(program, wanted, energy, leaves, share)[1]
        reached[:] = [i for i, g in zip(wanted, gradients, strict=True) if g is not None]
        return [g for g in gradients if g is not None]

    once, step = partitioned(gradient, range(len(leaves)), leaves, apart=True)
    return once, step, reached


def traced(function: Callable[..., list[Tensor]], leaves: Sequence[Tensor]) -> fx.Graph:
    """What a function computes of leaves, in the calls that a gradient of such leaves is made of.

    Raises:
        NotCapturable: it cannot be traced.
    """
    return _prepared(function, leaves, apart=True)[1]


def evaluated(program: Program, free: Sequence[int], energy: Energy) -> Callable[..., list[Tensor]]:
    """The energy per sample and the gradients of its sum, as a function of the leaves with variables in some places.

    Args:
        program: the energy.
        free: slots of the variables, in the order of the gradients.
        energy: of the leaves, with variables in the places of the free ones.
    """
    return lambda *leaves: _evaluated(program, free, energy, leaves)


def _evaluated(program: Program, free: Sequence[int], energy: Energy, leaves: Sequence[Tensor]) -> list[Tensor]:
    """The energy and its gradients."""
    found, gradients = _differentiated(program, free, energy, leaves)
    return [found, *(torch.zeros_like(leaves[i]) if g is None else g for g, i in zip(gradients, free, strict=True))]


def _differentiated(
    program: Program, slots: Sequence[int], energy: Energy, leaves: Sequence[Tensor], share: float = 1.0
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """The energy, and gradients of its sum, times a share, for leaves; None for those that it does not depend on."""
    with torch.enable_grad():
        values = [t.detach() for t in leaves]
        for i in slots:
            values[i].requires_grad_()
        found = energy(values)
        gradients: Sequence[Tensor | None] = [None] * len(slots)
        if found.requires_grad:
            # made from the shape alone, so that the gradient does not depend on the energy's value
            form: Any = {"dtype": found.dtype, "device": found.device}
            seed = torch.ones(found.shape, **form) if share == 1 else torch.full(found.shape, share, **form)
            gradients = torch.autograd.grad(found, [values[i] for i in slots], seed, allow_unused=True)
    for g, i in zip(gradients, slots, strict=True):
        if g is not None and g.layout is not torch.strided:
            raise NotCapturable(f"the gradient of {program.in_words(i)} is sparse")
    return found.detach(), gradients


def module_of(graph: fx.Graph) -> fx.GraphModule:
    """A graph that can be run."""
    return _collected(fx.GraphModule({}, graph))


def partitioned(
    function: Callable[..., list[Tensor]], free: Sequence[int], leaves: Sequence[Tensor], apart: bool = True
) -> Graphs:
    """A function of the leaves, split as `partition` splits the gradient.

    Args:
        function: as `evaluated` makes one.
        free: slots of the variables.
        leaves: as for `partition`.
        apart: whether errors of nodes are to be operators that work element by element.

    Raises:
        NotCapturable: it cannot be traced.
    """
    return _split(*_prepared(function, leaves, apart), free)


def _prepared(
    function: Callable[..., list[Tensor]], leaves: Sequence[Tensor], apart: bool
) -> tuple[fx.GraphModule | dict[str, Any], fx.Graph]:
    """A function of the leaves as a graph, and what has its constants."""
    try:
        with torch.inference_mode(False):
            root, graph = _traced(function, [t.clone() if t.is_inference() else t for t in leaves])
    except NotCapturable:
        raise
    except Exception as error:  # of its many ways to fail, each with its own type
        what = re.split(r"[.\n]\s", str(error), maxsplit=1)[0] or type(error).__name__
        raise NotCapturable(f"its gradient cannot be traced: {what}") from error
    for n in graph.nodes:
        if _writes(n):
            raise NotCapturable(f"its gradient is computed by {n.target}, which works in place")
    _drop_aliases(graph)
    if apart:
        _take_apart(graph)
    _fuse_sums(graph)
    graph.eliminate_dead_code()
    return root, graph


def _traced(
    function: Callable[..., list[Tensor]], arguments: list[Tensor]
) -> tuple[fx.GraphModule | dict[str, Any], fx.Graph]:
    """A function as a graph of operators none of which writes to its arguments, and what has its constants."""
    with suppress(trace.Untold):
        return {}, trace.traced(function, arguments)
    with Uninterrupted(), _tracing:
        traced = _collected(make_fx(function)(*arguments))
        if any(_writes(n) for n in traced.graph.nodes):  # as those of recurrent cells do, to what may be invariant
            traced = _collected(make_fx(torch.func.functionalize(traced))(*arguments))
    for n in traced.graph.nodes:
        n.meta = trace.form_of(n.meta.get("val"))
    return traced, traced.graph


def _collected(module: fx.GraphModule) -> fx.GraphModule:
    """A module whose source code goes when it goes; fx would keep it for tracebacks until the process ends."""
    weakref.finalize(module, _forget, module._code).atexit = False
    return module


def _forget(code: str) -> None:
    cache = graph_module._loader.eval_cache
    for name in [name for name, source in list(cache.items()) if source is code]:
        del cache[name]
        linecache.cache.pop(name, None)


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _drop_aliases(graph: fx.Graph) -> None:
    """Without autograd a detached tensor is the tensor."""
    for n in list(graph.nodes):
        if n.op == "call_function" and n.target in (aten.detach.default, aten.alias.default):
            n.replace_all_uses_with(n.args[0])
            graph.erase_node(n)


def _fuse_sums(graph: fx.Graph) -> None:
    """``x + a @ b`` as one call, where nothing else reads the product."""
    for n in list(graph.nodes):
        if n.target is not aten.add.Tensor or n.kwargs or len(n.args) != 2:
            continue
        for product, other in (n.args, n.args[::-1]):
            if (
                isinstance(product, fx.Node)
                and isinstance(other, fx.Node)
                and product.target is aten.mm.default
                and len(product.users) == 1
                and _form(product) == _form(n)
                and _form(other)[:2] == _form(n)[:2]
                and product is not other
            ):
                with graph.inserting_before(n):
                    fused = graph.call_function(aten.addmm.default, (other, *product.args))
                fused.meta = n.meta
                n.replace_all_uses_with(fused)
                graph.erase_node(n)
                graph.erase_node(product)
                break


def _take_apart(graph: fx.Graph) -> None:
    """Errors of Gaussian nodes as operators that work element by element, which then are fused with others."""
    for n in list(graph.nodes):
        if not (isinstance(n.target, torch._ops.OpOverload) and n.target.namespace == "pyromancy"):
            continue
        if n.target is torch.ops.pyromancy.gaussian_error.default:
            value, pred, logvar, weight = n.args
            if is_fused(value):
                n.replace_all_uses_with(_pull(graph, n, value, pred, logvar, weight))
        elif n.target is torch.ops.pyromancy.gaussian_energy.default and _is_plain(n):
            error = _called(graph, n, aten.sub.Tensor, *n.args[:2])
            error.meta["val"] = torch.empty_like(_values(n.args[0]))
            squares = _called(graph, n, aten.mul.Tensor, error, error)
            total = _called(graph, n, aten.sum.dim_IntList, squares, [*range(1, _values(error).dim())])
            n.replace_all_uses_with(_called(graph, n, aten.mul.Tensor, total, 0.5))
        elif n.target is torch.ops.pyromancy.gaussian_energy_backward.default and is_fused(n.args[1]):
            grad, value, pred, logvar = n.args
            pull = _pull(graph, n, value, pred, logvar, grad)
            push = _called(graph, n, aten.neg.default, pull)
            push.meta["val"] = torch.empty_like(_values(pred))
            for user in list(n.users):
                user.replace_all_uses_with((pull, push)[user.args[1]])


def _is_plain(energy: fx.Node) -> bool:
    """Whether an energy is of unit variance, and of states with several elements."""
    value, _, logvar = energy.args
    assert isinstance(value, fx.Node)
    return logvar is None and is_fused(value) and _values(value).dim() > 1


def is_unsteady(graph: fx.Graph) -> bool:
    """Whether it takes a sign, which makes much of an error that is rounding alone."""
    return any(n.target in (aten.sgn.default, aten.sign.default) for n in graph.nodes)


def is_fused(node: fx.Node) -> bool:
    """Whether a result is one of those that `elementwise_` takes."""
    value, device = node.meta["val"], node.meta["device"]
    fits = isinstance(value, Tensor) and value.dtype in (torch.float32, torch.float64)
    return fits and device is not None and bool(device.type == "cpu")


def _values(node: fx.Node) -> Tensor:
    value = node.meta["val"]
    assert isinstance(value, Tensor)
    return value


def _pull(
    graph: fx.Graph, before: fx.Node, value: fx.Node, pred: fx.Node, logvar: fx.Node | None, weight: fx.Node | None
) -> fx.Node:
    """What a Gaussian energy, times a weight per sample, grows by with its state."""
    pull = _called(graph, before, aten.sub.Tensor, value, pred)
    if logvar is not None:
        precision = _called(graph, before, aten.exp.default, _called(graph, before, aten.neg.default, logvar))
        pull = _called(graph, before, aten.mul.Tensor, pull, precision)
    if weight is not None and weight.target is not aten.ones.default:
        count = _values(value).dim()
        rows = _called(graph, before, aten.view.default, weight, [-1, *[1] * (count - 1)])
        pull = _called(graph, before, aten.mul.Tensor, pull, rows)
    pull.meta["val"] = torch.empty_like(_values(value))  # the layouts that calls behind it rely on
    return pull


def _called(graph: fx.Graph, before: fx.Node, target: Any, *args: Any) -> fx.Node:
    with graph.inserting_before(before):
        node = graph.call_function(target, args)
    node.meta = {"val": target(*fx.map_arg(args, _values)), "device": before.meta["device"]}
    return node


def _form(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta.get("val")
    return (value.shape, value.dtype, value.stride()) if isinstance(value, Tensor) else (node,)


def _split(root: fx.GraphModule | dict[str, Any], graph: fx.Graph, free: Sequence[int]) -> Graphs:
    nodes = list(graph.nodes)
    inputs = [n for n in nodes if n.op == "placeholder"]
    (output,) = [n for n in nodes if n.op == "output"]
    varying = {inputs[i] for i in free}
    for n in nodes:
        if varying.intersection(n.all_input_nodes):
            varying.add(n)

    once, step = fx.Graph(), fx.Graph()
    in_once = {n: once.placeholder(n.name) for n in inputs}
    in_step = {n: step.placeholder(n.name) for n in inputs}
    fixed = [n for n in nodes if n.op in ("call_function", "get_attr") and n not in varying]
    for n in fixed:
        in_once[n] = once.node_copy(n, in_once.__getitem__)
    passed = [n for n in fixed if _gives_tensor(n) and any(u in varying or u is output for u in n.users)]
    once.output(tuple(in_once[n] for n in passed))
    for n in passed:
        in_step[n] = step.placeholder(f"once_{n.name}")
    for n in nodes:
        if n.op == "call_function" and n in varying:
            in_step[n] = step.node_copy(n, in_step.__getitem__)
    step.output(fx.map_arg(output.args[0], in_step.__getitem__))
    for copies in (in_once, in_step):
        for n, copy in copies.items():
            copy.meta = n.meta
    return _collected(fx.GraphModule(root, once)), step


def _gives_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor) or node.op == "get_attr"
