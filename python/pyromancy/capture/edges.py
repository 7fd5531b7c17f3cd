"""Edges: how a prediction is made of states, by Linears, activations and skips."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..plan import Activation
from .activations import learns, of_slopes, unwrapped
from .calls import Slot, expands, filled, is_number, tensors
from .chains import Edge, NotAChain
from .program import Program
from .vocabulary import arguments

_IDENTITY = Activation()


@dataclass(frozen=True)
class EdgeTensors:
    """A part of a prediction, as the tensors themselves; last in the form are the skip and the first column."""

    source: Tensor
    weight: Tensor | None
    bias: Tensor | None
    before: Activation
    after: Activation
    slopes: tuple[Tensor | None, ...]
    form: tuple[bool, float, float, float, int | None]
    mask: Tensor | None = None


def edges_of(program: Program, slot: int, origin: Callable[[int], Tensor | None]) -> list[EdgeTensors] | None:
    """The edges that make a slot of states, as `origin` tells the slots that are one; None of anything else."""
    after, slope_after, slot = unwrapped(program, slot)
    states: dict[int, Tensor] = {}

    def state_of(s: int) -> int | None:
        if s == slot or (state := origin(s)) is None:
            return None
        states[id(state)] = state
        return id(state)

    def source_of(s: int) -> _Source | None:
        if (state := state_of(s)) is not None:
            return _Source(state)
        taken = _taken(program, s)
        state = None if taken is None else state_of(taken.state)
        return None if taken is None or state is None else taken._replace(state=state)

    try:
        parts, others = _parts(program, slot, source_of, state_of)
    except NotAChain:
        return None
    if others or not parts:
        return None
    found = []
    for p in parts:
        of = [p.weight, p.bias, p.mask, p.slope, slope_after]
        if any(i is not None and i >= len(program.leaves) for i in of):
            return None
        w, b, mask, *slopes = (None if i is None else program.leaves[i] for i in of)
        found.append(
            EdgeTensors(states[p.source], w, b, p.before, after, tuple(slopes), (*p.form, p.skip, p.first), mask)
        )
    return found


def edges_to(
    program: Program, slot: int, state: int, others: list[Edge], chains: str
) -> tuple[list[Edge], tuple[tuple[float, int], ...]]:
    """The edges that make a state's prediction, and what they do not make of it; no edge where only constants do.

    Args:
        program: as `normal` writes it.
        slot: the prediction.
        state: whose it is.
        others: edges to other states.
        chains: as `lower` takes it.
    """
    name, whole = program.in_words(state), slot
    after, slope_after, slot = unwrapped(program, slot)

    def source_of(s: int) -> _Source | None:
        taken = _taken(program, s) or _Source(s)
        return None if (source := _source(program, taken.state)) is None else taken._replace(state=source)

    def state_of(s: int) -> int | None:
        source = program.state_of(s)
        return source if source in program.free else None

    parts, rest = _parts(program, slot, source_of, state_of, masks=not chains)
    lost = next((s for _, s in rest if s in program.varying), None)
    if lost is not None:
        raise NotAChain(_no_edge(program, name, slot, lost))
    joined = {e.source for e in others}
    twice = [p.source for p in parts if p.source in joined]
    odd = any(p.weight is None or p.first is not None for p in parts)
    if chains and parts and (len(parts) > 1 or rest or odd or twice):
        if whole not in program.varying:  # from a clamped state any number of predictions may come
            return [], ()
        if len(parts) == 1 and twice:
            raise NotAChain(f"{program.in_words(twice[0])} predicts two nodes: {chains}")
        raise NotAChain(f"the prediction of {name} comes from {program.in_words(slot)}, not from a Linear: {chains}")
    edges = [
        Edge(
            p.source, state, p.weight, p.bias, p.before, after, (p.slope, slope_after), *p.form, p.skip, p.mask, p.first
        )
        for p in parts
    ]
    return edges, tuple(rest) if edges else ()


def _source(program: Program, slot: int) -> int | None:
    """The state that a Linear takes, or an activation before it; None where it is not one for every sample."""
    slot = program.state_of(slot)
    form = program.stand_ins[slot]
    if slot not in program.varying:
        return slot if form.dim() == 2 and form.shape[:1] == program.batch else None
    if slot >= len(program.leaves):
        slopes = of_slopes(program, program.producer.get(slot))
        told = f"a Linear takes the result of {program.in_words(slot)}, not a state{slopes}"
        raise NotAChain(no_state(program, slot) or told)
    if form.dim() != 2:
        raise NotAChain(f"{program.in_words(slot)} is not of shape [B, n]")
    return slot


def _no_edge(program: Program, target: str, slot: int, lost: int) -> str:
    """Why a part of a prediction is none of an edge."""
    call = program.producer.get(lost)
    what = program.in_words(slot) if program.producer.get(slot) else f"{program.in_words(slot)} as it is"
    return f"the prediction of {target} comes from {what}, not from a Linear{of_slopes(program, call)}"


@dataclass(frozen=True)
class _Part:
    """A summand of a prediction that edges make, of a source by whatever number, the rest as slots."""

    source: int
    weight: int | None = None
    bias: int | None = None
    before: Activation = _IDENTITY
    slope: int | None = None
    form: tuple[bool, float, float] = (False, 1.0, 1.0)
    skip: float = 0.0
    mask: int | None = None
    first: int | None = None


class _Source(NamedTuple):
    """What an edge takes: an activation of a state, its slope, and the first of the state's columns."""

    state: int
    before: Activation = _IDENTITY
    slope: int | None = None
    first: int | None = None


def _parts(
    program: Program,
    slot: int,
    source_of: Callable[[int], _Source | None],
    state_of: Callable[[int], int | None],
    masks: bool = True,
) -> tuple[list[_Part], list[tuple[float, int]]]:
    """The summands that a slot is: those that are parts of edges, and numbers times others.

    Args:
        program: as `normal` writes it.
        slot: before the activation.
        source_of: what a Linear takes, of states; None of anything else.
        state_of: the state that a slot is; None of anything else.
        masks: whether edges take them apart from weights.

    Raises:
        NotAChain: a Linear is none of chains.
    """
    parts: list[_Part] = []
    skips: dict[int, float] = {}
    others: list[tuple[float, int]] = []
    for factor, s in _summands(program, slot, state_of):
        call = program.producer.get(s)
        if (state := state_of(s)) is not None:
            skips[state] = skips.get(state, 0.0) + factor
            continue
        of = None
        if call is not None and call.meaning == "linear":
            bound = arguments(call.function, call.args, call.kwargs)
            taken, weight, bias = bound["input"], bound["weight"], bound["bias"]
            _check_parameters(program, weight, bias)
            of = source_of(taken.index)
        if of is None:
            passed = _taken(program, s)
            if passed is None or (state := state_of(passed.state)) is None:
                others.append((factor, s))
            else:
                form = (False, factor, 1.0)
                parts.append(_Part(state, None, None, passed.before, passed.slope, form, first=passed.first))
            continue
        found = _parameters(program, weight.index, bias and bias.index, masks)
        transposed, scale, bias_scale = found.form
        form = (transposed, factor * scale, factor * bias_scale)
        part = _Part(of.state, found.weight, found.bias, of.before, of.slope, form, mask=found.mask, first=of.first)
        parts.append(part)
    for state, skip in skips.items():
        at = next((i for i, p in enumerate(parts) if p.source == state and not p.skip and p.weight is not None), None)
        if at is None:
            parts.append(_Part(state, skip=skip))
        else:
            parts[at] = replace(parts[at], skip=skip)
    shape = program.stand_ins[slot].shape[1:]
    for one in [o for o in others if program.stand_ins[o[1]].shape == shape and parts]:
        at = next((i for i, p in enumerate(parts) if p.weight is not None and p.bias is None), None)
        if at is None:
            parts.append(_Part(parts[0].source, bias=one[1], form=(False, 1.0, one[0])))
        else:
            parts[at] = replace(parts[at], bias=one[1], form=(*parts[at].form[:2], one[0]))
        others.remove(one)
    return parts, others


def no_state(program: Program, slot: int) -> str:
    """What is told of a choice between data and a state that chains do not take, if a call makes one."""
    call = program.producer.get(slot)
    if call is None or call.meaning != "where" or program.held(slot) is not None:
        return ""
    if program.free.isdisjoint(call.inputs):
        return ""
    return (
        f"{program.in_words(slot)} is no state: chains take torch.where(known, data, state), by position, of a "
        "mask and data that no free state changes, and of the state's own shape and dtype"
    )


def _check_parameters(program: Program, weight: Slot, bias: Slot | None) -> None:
    for parameter in (weight, bias):
        if parameter is not None and parameter.index in program.varying:
            raise NotAChain(
                f"{program.in_words(parameter.index)} is a Linear's weight or bias, and depends on a free state"
            )
    form = program.stand_ins[weight.index].shape
    if len(form) != 2 or (bias is not None and program.stand_ins[bias.index].shape != form[:1]):
        raise NotAChain(f"the weight or bias of a Linear, {program.in_words(weight.index)}, broadcasts")


def _summands(program: Program, slot: int, is_one: Callable[[int], int | None]) -> list[tuple[float, int]]:
    """Numbers times slots that one is the sum of."""
    found: list[tuple[float, int]] = []
    stack = [(1.0, slot)]
    while stack:
        factor, s = stack.pop()
        if is_one(s) is not None:
            found.append((factor, s))
        elif (part := _scaled(program, s)) is not None:
            stack.append((factor * part[1], part[0]))
        elif (parts := _added(program, s)) is not None:
            stack += [(factor * times, of) for times, of in reversed(parts)]
        else:
            found.append((factor, s))
    return found


def _added(program: Program, slot: int) -> list[tuple[float, int]] | None:
    """The two slots whose sum or difference one is, and their factors."""
    call = program.producer.get(slot)
    if call is None or call.meaning not in ("add", "sub", "rsub") or not call.kwargs.keys() <= {"alpha"}:
        return None
    alpha, whole = call.kwargs.get("alpha", 1), program.stand_ins[slot]
    match call.args:
        case [Slot(a), Slot(b)] if is_number(alpha):
            pass
        case _:
            return None
    for s in (a, b):
        form = program.stand_ins[s]
        alike = form.shape == whole.shape or (s not in program.varying and expands(form.shape, whole.shape))
        if not alike or form.dtype != whole.dtype:
            return None
    alpha = float(alpha)
    return {
        "add": [(1.0, a), (alpha, b)],
        "sub": [(1.0, a), (-alpha, b)],
        "rsub": [(1.0, b), (-alpha, a)],
    }[call.meaning]


def _scaled(program: Program, slot: int) -> tuple[int, float] | None:
    """Another slot, and the finite number that it is multiplied by to make this one."""
    call = program.producer.get(slot)
    if call is None or call.meaning not in ("mul", "div", "neg") or len(call.inputs) != 1:
        return None
    (of,) = call.inputs
    if program.stand_ins[of].dtype != program.stand_ins[slot].dtype:
        return None
    match call.meaning, [*call.args, *call.kwargs.values()]:
        case "neg", [_]:
            factor = -1.0
        case ("mul", [Slot(), x]) | ("mul", [x, Slot()]) if is_number(x):
            factor = float(x)
        case "div", [Slot(), x] if is_number(x) and x:
            factor = 1 / float(x)
        case _:
            return None
    return (of, factor) if math.isfinite(factor) else None


class _Parameters(NamedTuple):
    """The slots of an edge's weight, bias and mask, and its form: whether the weight is transposed, and scales."""

    weight: int
    bias: int | None
    form: tuple[bool, float, float]
    mask: int | None


def _parameters(program: Program, weight: int, bias: int | None, masks: bool) -> _Parameters:
    """What a Linear's weight and bias are a number times, or the transpose of, and the weight a mask times."""
    scale, bias_scale, transposed, mask = 1.0, 1.0, False, None
    while True:
        if (part := _scaled(program, weight)) is not None:
            weight, scale = part[0], scale * part[1]
        elif mask is None and (of := _turned(program, weight)) is not None:  # a mask lies as the weight does
            weight, transposed = of, not transposed
        elif masks and mask is None and (pair := _masked_weight(program, weight)) is not None:
            weight, mask = pair
        else:
            break
    while bias is not None and (part := _scaled(program, bias)) is not None:
        bias, bias_scale = part[0], bias_scale * part[1]
    return _Parameters(weight, bias, (transposed, scale, bias_scale), mask)


def _masked_weight(program: Program, slot: int) -> tuple[int, int] | None:
    """A weight that learns, and what it is multiplied by element by element, which does not."""
    call = program.producer.get(slot)
    if call is None or call.meaning != "mul" or call.kwargs or not program.stand_ins[slot].is_cpu:
        return None
    match call.args:
        case [Slot(a), Slot(b)]:
            pass
        case _:
            return None
    shape = program.stand_ins[slot].shape
    for weight, mask in ((a, b), (b, a)):
        form, of = program.stand_ins[weight], program.stand_ins[mask]
        fits = form.shape == shape and form.dtype == program.stand_ins[slot].dtype and expands(of.shape, shape)
        if fits and learns(program, weight) and not learns(program, mask) and mask not in program.varying:
            return weight, mask
    return None


def _turned(program: Program, slot: int) -> int | None:
    """Another slot, of a matrix that this one is the transpose of."""
    call = program.producer.get(slot)
    if call is None or call.meaning != "transpose" or len(call.inputs) != 1:
        return None
    (of,) = call.inputs
    blank = torch.empty(program.stand_ins[of].shape, device="meta")
    turned = call.function(*filled(call.args, {of: blank}), **filled(call.kwargs, {of: blank}))
    same = blank.dim() == 2 and (turned.shape, turned.stride()) == (blank.shape[::-1], blank.stride()[::-1])
    return of if same else None


def _taken(program: Program, slot: int) -> _Source | None:
    """What a slot is columns of, or an activation of that, or columns of an activation; None where it is neither.

    Columns of what no free state changes are what they are: they may be few of many.
    """
    found = _Source(slot)
    while True:
        before, slope, of = unwrapped(program, found.state)
        if of != found.state and found.before == _IDENTITY:
            found = found._replace(state=of, before=before, slope=slope)
        elif found.state in program.varying and (columns := _columns(program, found.state)) is not None:
            found = found._replace(state=columns[0], first=columns[1] + (found.first or 0))
        else:
            return None if found.state == slot else found


def _columns(program: Program, slot: int) -> tuple[int, int] | None:
    """A matrix that has a slot's columns side by side, and the first of them."""
    call = program.producer.get(slot)
    if call is None or call.meaning not in ("columns", "tensor_split", "indexing") or len(call.inputs) != 1:
        return None
    (of,) = call.inputs
    blank = torch.empty(program.stand_ins[of].shape, device="meta")
    made = tensors(call.function(*filled(call.args, {of: blank}), **filled(call.kwargs, {of: blank})))
    part = made[call.outputs.index(slot)]
    if blank.dim() != 2 or part.dim() != 2 or len(part) != len(blank) or part.shape[1] == blank.shape[1]:
        return None
    # what is no view has rows of its own width
    return (of, int(part.storage_offset())) if part.stride() == blank.stride() and part.shape[1] else None
