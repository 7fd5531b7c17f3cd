"""Attention and layer normalization in a graph of calls, as kernels that write where they are told to.

PyTorch's operators for these give several results in memory of their own, some of which only their gradients read. The
kernels here compute them again, as that costs less than to keep them, and attention's gradients lie as the product
behind them takes them.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .. import ops
from .partition import is_fused

aten = torch.ops.aten
# of queries: beyond it, what attention keeps of a head outgrows the caches, and PyTorch's takes less memory
LONGEST = 256


def attention(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> Tensor:
    """Stands for what `attention_` writes."""
    raise NotImplementedError


def attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> Tensor:
    """Stands for what `attention_backward_` writes."""
    raise NotImplementedError


def layer_norm(input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Stands for what `layer_norm_` writes."""
    raise NotImplementedError


def layer_norm_backward(grad: Tensor, input: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Stands for what `layer_norm_backward_` writes."""
    raise NotImplementedError


# the operators, which take where to write first
WRITING: dict[Any, Any] = {
    attention: ops.attention_,
    attention_backward: ops.attention_backward_,
    layer_norm: ops.layer_norm_,
    layer_norm_backward: ops.layer_norm_backward_,
}


def take_over(graph: fx.Graph) -> None:
    """Put these in the place of PyTorch's operators, where nothing reads what they do not give."""
    for node in list(graph.nodes):
        if node.target is aten.native_layer_norm_backward.default:
            _layer_norm_backward(graph, node)
        elif node.target is aten._scaled_dot_product_flash_attention_for_cpu_backward.default:
            _attention_backward(graph, node)
    graph.eliminate_dead_code()  # the results that only those read
    for node in list(graph.nodes):
        if node.target is aten.native_layer_norm.default:
            _layer_norm(graph, node)
        elif node.target is aten._scaled_dot_product_flash_attention_for_cpu.default:
            _attention(graph, node)
    graph.eliminate_dead_code()


def _items(node: fx.Node) -> dict[int, fx.Node]:
    return {user.args[1]: user for user in node.users if user.target is operator.getitem}  # type: ignore[misc]


def _tensor(node: fx.Node) -> Tensor:
    value = node.meta["val"]
    assert isinstance(value, Tensor)
    return value


def _call(graph: fx.Graph, before: fx.Node, target: Any, args: tuple[Any, ...], val: Tensor) -> fx.Node:
    with graph.inserting_before(before):
        node = graph.call_function(target, args)
    node.meta = {"val": val, "device": before.meta["device"]}
    return node


def _are_rows(width: Sequence[int], *operands: fx.Node | None) -> bool:
    """Whether operands are dense, and only their last dimension is normalized."""
    given = [n for n in operands if n is not None]
    return len(width) == 1 and all(is_fused(n) and _tensor(n).is_contiguous() for n in given)


def _layer_norm(graph: fx.Graph, node: fx.Node) -> None:
    rows, width, weight, bias, eps = node.args
    items = _items(node)
    if [*items] == [0] and _are_rows(width, items[0], rows, weight, bias):  # type: ignore[arg-type]
        made = _call(graph, items[0], layer_norm, (rows, weight, bias, eps), _tensor(items[0]))
        items[0].replace_all_uses_with(made)


def _layer_norm_backward(graph: fx.Graph, node: fx.Node) -> None:
    grad, rows, width, mean, _, weight, _, wanted = node.args
    assert isinstance(mean, fx.Node)
    forward = mean.args[0] if mean.target is operator.getitem else None
    if not isinstance(forward, fx.Node) or forward.args[0] is not rows or wanted != [True, False, False]:
        return
    items = _items(node)
    if [*items] == [0] and _are_rows(width, items[0], grad, rows, weight):  # type: ignore[arg-type]
        args = (grad, rows, weight, forward.args[4])
        items[0].replace_all_uses_with(_call(graph, items[0], layer_norm_backward, args, _tensor(items[0])))


def _are_heads(*operands: Any) -> bool:
    """Whether operands are heads of one shape, not too long, the elements of a vector side by side."""
    if not all(is_fused(n) for n in operands):
        return False
    tensors = [_tensor(n) for n in operands]
    like = tensors[0].shape
    return len(like) == 4 and 0 < like[2] <= LONGEST and all(t.shape == like and t.stride(3) == 1 for t in tensors)


def _manner(node: fx.Node, rest: Sequence[Any], query: Any) -> tuple[bool, float] | None:
    """Whether attention is causal, and its scale; None where it has a mask or drops."""
    dropout = rest[0] if rest else 0.0
    causal = rest[1] if len(rest) > 1 else False
    scale: Any = node.kwargs.get("scale")
    if dropout or node.kwargs.get("attn_mask") is not None:
        return None
    return causal, _tensor(query).shape[3] ** -0.5 if scale is None else scale


def _attention(graph: fx.Graph, node: fx.Node) -> None:
    query, key, value, *rest = node.args
    items = _items(node)
    if [*items] != [0] or not _are_heads(query, key, value, items[0]):
        return
    if (manner := _manner(node, rest, query)) is not None:
        made = _call(graph, items[0], attention, (query, key, value, *manner), _tensor(items[0]))
        items[0].replace_all_uses_with(made)


def _attention_backward(graph: fx.Graph, node: fx.Node) -> None:
    grad, query, key, value, _, _, *rest = node.args
    items = _items(node)
    if not items or not _are_heads(grad, query, key, value, *items.values()):
        return
    if (manner := _manner(node, rest, query)) is None:
        return
    like = _tensor(next(iter(items.values())))
    if any(_tensor(n).stride() != like.stride() for n in items.values()):
        return
    args = grad, query, key, value, *manner
    if (laid := _laid_anew(items)) is not None:  # where they go is where they are made
        stack, turned, clone = laid
        order: Any = turned.args[1]
        val = torch.empty_like(_tensor(clone)).permute([order.index(d) for d in range(len(order))])
        stack.replace_all_uses_with(_call(graph, node, attention_backward, args, val))
        clone.replace_all_uses_with(turned)
        turned.meta = {**turned.meta, "val": _tensor(clone)}
        return
    val = like.new_empty(3 * like.numel()).as_strided((3, *like.shape), (like.numel(), *like.stride()))
    made = _call(graph, node, attention_backward, args, val)
    for i, item in items.items():
        item.replace_all_uses_with(_call(graph, item, aten.select.int, (made, 0, i), val[i]))


def _laid_anew(items: dict[int, fx.Node]) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """The stack of all three gradients, it turned, and that copied, where nothing else reads any of them."""
    if len(items) != 3 or (stack := _reader(*items.values())) is None:
        return None
    if (turned := _reader(stack)) is None or (clone := _reader(turned)) is None:
        return None
    targets = aten.stack.default, aten.permute.default, aten.clone.default
    if (stack.target, turned.target, clone.target) != targets or stack.args[0] != [items[i] for i in range(3)]:
        return None
    order: Any = turned.args[1]
    fits = stack.args[1:] in ((), (0,)) and clone.kwargs.get("memory_format") is torch.contiguous_format
    return (stack, turned, clone) if fits and order[-1] == 4 and _tensor(clone).stride(-1) == 1 else None


def _reader(*nodes: fx.Node) -> fx.Node | None:
    """What alone reads all of them."""
    users = {user for n in nodes for user in n.users}
    return users.pop() if len(users) == 1 else None
