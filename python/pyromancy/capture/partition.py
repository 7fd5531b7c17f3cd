"""The gradient of any captured energy as a traced graph, split into what runs once and what runs at every step."""

from __future__ import annotations

import linecache
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import graph_module
from torch.fx.experimental.proxy_tensor import make_fx

from .capture import NotCapturable
from .program import Program

aten = torch.ops.aten
_tracing = threading.Lock()  # make_fx changes the process's modules while it runs


Parts = tuple[fx.GraphModule, fx.GraphModule]
Energy = Callable[[Sequence[Tensor]], Tensor]  # of the leaves, or of what stands in the places of the free ones


def partition(program: Program, free: Sequence[int], leaves: Sequence[Tensor]) -> Parts:
    """The gradient of the energy, summed over the batch, for the free states.

    Args:
        program: the energy.
        free: slots of the states, in the order of the gradients.
        leaves: tensors to trace with: the graphs are good for others of these shapes, dtypes and strides.

    Returns:
        A graph of what no state changes, which takes the leaves, and one of the rest, which takes the leaves and the
        results of the first.

    Raises:
        NotCapturable: it cannot be traced.
    """

    def gradient(*leaves: Tensor) -> list[Tensor]:
        return _evaluated(program, free, lambda values: program.evaluate([program.result], values)[0], leaves)[1:]

    return _partitioned(gradient, free, leaves)


def evaluation(program: Program, free: Sequence[int], leaves: Sequence[Tensor], energy: Energy) -> Parts:
    """The energy per sample and the gradient of its sum, as `partition` gives the latter.

    Args:
        program: the energy.
        free: slots of the variables, in the order of the gradients.
        leaves: as for `partition`.
        energy: of the leaves, with variables in the places of the free ones.

    Raises:
        NotCapturable: it cannot be traced.
    """

    def both(*leaves: Tensor) -> list[Tensor]:
        return _evaluated(program, free, energy, leaves)

    return _partitioned(both, free, leaves)


def _evaluated(program: Program, free: Sequence[int], energy: Energy, leaves: Sequence[Tensor]) -> list[Tensor]:
    """The energy and its gradients."""
    with torch.enable_grad():
        values = [t.detach() for t in leaves]
        for i in free:
            values[i].requires_grad_()
        found = energy(values)
        # ones made from the shape alone, so that the gradient does not depend on the energy's value
        ones = torch.ones(found.shape, dtype=found.dtype, device=found.device)
        gradients = torch.autograd.grad(found, [values[i] for i in free], ones, allow_unused=True)
    pairs = [*zip(gradients, free, strict=True)]
    for g, i in pairs:
        if g is not None and g.layout is not torch.strided:
            raise NotCapturable(f"the gradient of {program.told(i)} is sparse")
    return [found.detach(), *(torch.zeros_like(values[i]) if g is None else g for g, i in pairs)]


def _partitioned(function: Callable[..., list[Tensor]], free: Sequence[int], leaves: Sequence[Tensor]) -> Parts:
    """A function of the leaves, split into what no variable changes and the rest."""
    try:
        with torch.inference_mode(False):
            traced = _traced(function, [t.clone() if t.is_inference() else t for t in leaves])
    except NotCapturable:
        raise
    except Exception as error:  # of its many ways to fail, each with its own type
        what = re.split(r"[.\n]\s", str(error), maxsplit=1)[0] or type(error).__name__
        raise NotCapturable(f"its gradient cannot be traced: {what}") from error
    for n in traced.graph.nodes:
        if _writes(n):
            raise NotCapturable(f"its gradient is computed by {n.target}, which works in place")
    _drop_aliases(traced.graph)
    _fuse_sums(traced.graph)
    traced.graph.eliminate_dead_code()
    return _split(traced, free)


def _traced(function: Callable[..., list[Tensor]], arguments: list[Tensor]) -> fx.GraphModule:
    """A function as a graph of operators none of which writes to its arguments."""
    with _tracing:
        traced = _collected(make_fx(function)(*arguments))
        if any(_writes(n) for n in traced.graph.nodes):  # as those of recurrent cells do, to what may be invariant
            traced = _collected(make_fx(torch.func.functionalize(traced))(*arguments))
    return traced


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


def _form(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta.get("val")
    return (value.shape, value.dtype, value.stride()) if isinstance(value, Tensor) else (node,)


def _split(traced: fx.GraphModule, free: Sequence[int]) -> tuple[fx.GraphModule, fx.GraphModule]:
    nodes = list(traced.graph.nodes)
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
    for n in (*once.nodes, *step.nodes):
        n.meta.clear()  # shapes and origins: two thirds of the memory that a kept graph would take
    return _collected(fx.GraphModule(traced, once)), _collected(fx.GraphModule(traced, step))


def _gives_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor) or node.op == "get_attr"
