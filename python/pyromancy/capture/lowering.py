"""Recognises networks whose nodes are joined by (activation, Linear, activation) edges and skips, for plans."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..plan import Activation, Law
from ..plan.activations import ACTIVATIONS
from ..plan.expression import Expression
from .calls import Call, Slot, alike, expands, filled, is_number, tensors
from .held import Held
from .program import Program
from .terms import Term
from .vocabulary import arguments, unusual

_NUMBER = {name: i for i, name in enumerate(ACTIVATIONS)}
_IDENTITY = Activation()
_SPREAD = {Law.GAUSSIAN: "the covariance", Law.FULL_GAUSSIAN: "the covariance"}  # of the others the scale


class NotAChain(Exception):
    """A program is no chain; the message says where."""


@dataclass(frozen=True)
class Edge:
    """A part of a prediction, ``after(sum of scale W before(z) + bias_scale b + skip z)``, its tensors as slots.

    Attributes:
        source: the state z.
        target: the state that is predicted.
        weight: W; None where there is no product.
        transposed: whether W is the transpose of the weight.
        mask: what the weight is multiplied by, element by element, of which no gradient is wanted.
        first: of the columns of z that are taken, as many as the weight has, or the target; None takes all. Without a
            weight, scale before(z) itself is the part, or of all columns of z itself the skip.
        slopes: of the activations before and after, the slots of tensors of one element that are their parameters.
    """

    source: int
    target: int
    weight: int | None
    bias: int | None
    before: Activation
    after: Activation
    slopes: tuple[int | None, int | None] = (None, None)
    transposed: bool = False
    scale: float = 1.0
    bias_scale: float = 1.0
    skip: float = 0.0
    mask: int | None = None
    first: int | None = None


@dataclass(frozen=True)
class Node:
    """A state, and what its energy is made of, as slots. `term` is None where it has no energy.

    Attributes:
        state: a leaf, or where no free state changes it what is computed from leaves, as a target may be.
        held: the slot of what stands in the state's place where entries of it are data, and what that is made of.
        free: whether inference updates it.
        term: index of its energy in the program's terms.
        weight: of that term.
        law: of that term.
        theta: the law's parameter, None for 0; of a full covariance its Cholesky factor.
        prediction: a prediction that no edge makes, and no free state changes; a float is it everywhere.
        rest: what edges do not make of a prediction, before its activation: numbers times slots.
        sample_weights: more factors of that term, each of one number per sample, or for all.
        law_parameter: of laws that have one.
        expression: of an EXPRESSION law.
    """

    state: int
    free: bool
    term: int | None = None
    weight: float = 1.0
    law: Law = Law.NONE
    theta: int | None = None
    prediction: int | float | None = None
    sample_weights: tuple[int, ...] = ()
    law_parameter: float = 0.0
    held: tuple[int, Held] | None = None
    expression: Expression | None = None
    rest: tuple[tuple[float, int], ...] = ()

    @property
    def moves_by_errors(self) -> bool:
        """Whether the energy, if there is one, is one of the state less its prediction."""
        return self.law.moves_by_errors(self.expression)


@dataclass(frozen=True)
class Chain:
    """Nodes that edges join, before those that they predict unless they predict one another in a circle."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    @property
    def is_path(self) -> bool:
        """Whether every edge leads from a node to the next."""
        states = [n.state for n in self.nodes]
        return [(e.source, e.target) for e in self.edges] == [*pairwise(states)]


def idle(program: Program) -> list[int]:
    """The free states that predict nothing: all that is read of them is that they are a node's state."""
    paths, of = program.paths(), [t.node.state for t in program.terms if t.node is not None]
    return [s for s in sorted(program.free) if paths.get(s, 0) == of.count(s)]


def lower(program: Program, chains: str = "") -> list[Chain]:
    """The networks that make up a program's energy.

    Terms that depend on no free state are left out: they do not move inference.

    Args:
        program: as `normal` writes it.
        chains: why only chains will do, or "".

    Raises:
        NotAChain: something in the energy is none.
    """
    nodes: dict[int, Node] = {}
    edges: list[Edge] = []
    masked = _masked(program)
    for index, term in enumerate(program.terms):
        if term.slot is None or term.slot not in program.varying:
            continue
        of = term.node
        if of is None:
            raise NotAChain(_no_node(program, term))
        state = program.state_of(of.state)
        name = program.in_words(state)
        _check_state(program, state)
        if type(of.prediction) is int:
            of_pred, of_state = (tuple(program.stand_ins[s].shape) for s in (of.prediction, state))
            constant = of.prediction not in program.varying and expands(of_pred, of_state)
            if of_pred != of_state and not constant:
                raise NotAChain(f"the prediction of {name}, {of_pred}, broadcasts with it, {of_state}")
        if (first := nodes.get(state)) is not None:
            assert first.term is not None
            both = " and ".join(_told(program, program.terms[i]) for i in (first.term, index))
            raise NotAChain(
                f"{name} has two energies, {both}: chains take one of each state, and more where all but one are laws "
                "of z - mu, with no activation around mu"
            )
        weights = term.sample_weights + of.sample_weights
        if of.law is Law.CATEGORICAL and state in program.free:
            raise NotAChain(f"{name}, of whose energy it is the distribution, is free")
        if of.theta in program.varying:
            raise NotAChain(f"{_SPREAD.get(of.law, 'the scale')} of {name} depends on a free state")
        into, rest = _trace(program, of.prediction, state, edges, chains) if type(of.prediction) is int else ([], ())
        assert into or type(of.prediction) is not int or of.prediction not in program.varying
        if of.law is Law.CATEGORICAL and into and into[0].after != Activation():
            raise NotAChain(f"the logits of {name} come through an activation")
        nodes[state] = Node(
            state,
            state in program.free,
            index,
            term.weight * of.scale,
            of.law,
            of.theta,
            None if into else of.prediction,
            weights,
            of.parameter,
            masked.get(state),
            of.expression,
            rest,
        )
        edges += into
    for source in dict.fromkeys(e.source for e in edges):
        nodes.setdefault(source, Node(source, source in program.free, held=masked.get(source)))
        _check_state(program, source)
    for slot in program.free:
        nodes.setdefault(slot, Node(slot, True))
    found = [c for c in _joined(program, nodes, edges, chains) if any(n.free for n in c.nodes)]
    for chain in found:
        _check_dtype(program, chain)
    return found


def _joined(program: Program, nodes: dict[int, Node], edges: list[Edge], chains: str) -> list[Chain]:
    """The nodes that edges join, each in order: clamped ones first, and free ones as the states are."""
    whose = {slot: [slot] for slot in nodes}  # those that it is joined to, itself included
    for edge in edges:
        one, other = whose[edge.source], whose[edge.target]
        if one is not other:
            one += other
            whose.update(dict.fromkeys(other, one))
    targets = {e.target for e in edges}
    starts = [s for s in nodes if s not in targets]
    found = []
    for slots in {id(w): w for w in (whose[s] for s in [*starts, *nodes])}.values():
        own = [e for e in edges if e.target in set(slots)]
        order = [s for s in nodes if s in set(slots)]
        order.sort(key=lambda s: s if s in program.free else -1)
        waiting = {s: {e.source for e in own if e.target == s} for s in order}
        sorted_: list[int] = []
        while (following := next((s for s in order if s in waiting and not waiting[s]), None)) is not None:
            del waiting[following]
            sorted_.append(following)
            for sources in waiting.values():
                sources.discard(following)
        if waiting and chains:
            circle = ", ".join(program.in_words(slot) for slot in nodes if slot in waiting)
            raise NotAChain(f"states predict one another in a circle, {circle}: {chains}")
        order = order if waiting else sorted_
        own.sort(key=lambda e: order.index(e.target))
        found.append(Chain(tuple(nodes[s] for s in order), tuple(own)))
    return found


def _masked(program: Program) -> dict[int, tuple[int, Held]]:
    """Of every free state that is data where it is known: what stands in its place, which must be so wherever it is."""
    found: dict[int, tuple[int, Held]] = {}
    moved = [t.slot for t in program.terms if t.slot is not None and t.slot in program.varying]
    reaches = set[int]().union(*map(program.ancestors, moved))
    calls = [c for c in program.calls if not reaches.isdisjoint(c.outputs)]
    known: dict[tuple[int, int], bool] = {}
    for call in calls:
        held = program.held(call.outputs[0])
        if held is None:
            continue
        first = found.setdefault(held.state, (call.outputs[0], held))[1]
        pairs = (first.mask, held.mask), (first.data, held.data)
        if first.inverted != held.inverted or not all(alike(program.producer, a, b, known) for a, b in pairs):
            raise NotAChain(f"{program.in_words(held.state)} is taken with two masks, or with other data")
    for call in calls:
        read = set(call.inputs) & found.keys() & program.varying if program.varying & set(call.outputs) else ()
        for state in read:
            if program.held(call.outputs[0]) is None:
                raise NotAChain(
                    f"{program.in_words(state)} is taken as it is by {call.name}, and elsewhere with a mask"
                )
    return found


def _check_dtype(program: Program, chain: Chain) -> None:
    thetas = [n.theta for n in chain.nodes if n.theta is not None and program.stand_ins[n.theta].dtype != torch.bool]
    slots = [*thetas, *(s for n in chain.nodes for s in (n.state, n.prediction))]
    slots += [s for e in chain.edges for s in (e.weight, e.bias)]
    examples = {str(program.stand_ins[s].dtype): program.in_words(s) for s in slots if type(s) is int}
    if len(examples) > 1:
        raise NotAChain(f"it mixes {' and '.join(f'{t} ({of})' for t, of in sorted(examples.items()))}")


def _no_state(program: Program, slot: int) -> str:
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


def _no_node(program: Program, term: Term) -> str:
    """Why a term is not the energy of a node."""
    assert term.slot is not None
    assert term.within is not None
    for slot in sorted(program.ancestors(term.within) & program.producer.keys()):
        if told := _no_state(program, slot):
            return told
    call = program.producer.get(term.within)
    told = program.in_words(term.within)
    factor = next((s for s in call.inputs if s not in program.varying), None) if call else None
    if call is not None and factor is not None and call.meaning in ("mul", "div"):
        return (
            f"a term of the energy, {told}, has a tensor as a factor, {program.in_words(factor)}: chains multiply by "
            "numbers, by one for every sample, or by one tensor in a law of one's own"
        )
    if term.within != term.slot:
        told = f"{program.producer[term.slot].name} of {told}"
    lacks = f": a law of one's own {term.lacks}" if term.lacks else ""
    return f"a term of the energy, {told}, is not the energy of a node of a known law{lacks}"


def _told(program: Program, term: Term) -> str:
    """What to call a term that is a node's energy."""
    assert term.slot is not None
    assert term.node is not None
    name = {Law.FULL_GAUSSIAN: "Gaussian", Law.CATEGORICAL: "categorical"}.get(term.node.law)
    kind = f"a {name or term.node.law.name.capitalize()} one"
    if term.node.law is Law.EXPRESSION:
        kind = "one by a law of one's own"
    return f"{kind} ({program.in_words(term.slot)})"


def _check_state(program: Program, slot: int) -> None:
    name = program.in_words(slot)
    if slot >= len(program.leaves) and slot in program.varying:
        raise NotAChain(f"{name}, which has an energy or predicts, is not a state but computed")
    state, batch = program.stand_ins[slot], program.batch
    if len(batch) != 1 or state.dim() == 0 or state.shape[0] != batch[0]:
        raise NotAChain(f"{name} is {tuple(state.shape)}, but the energy {tuple(batch)}, not one per sample")
    if state.dim() != 2 or state.dtype not in (torch.float32, torch.float64):
        raise NotAChain(f"{name} is {tuple(state.shape)} {state.dtype}; chains take float32 or float64 of shape [B, n]")


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


def _trace(
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
    after, slope_after, slot = _unwrapped(program, slot)

    def source_of(s: int) -> _Source | None:
        taken = _taken(program, s) or _Source(s)
        return None if (source := _source(program, taken.state)) is None else taken._replace(state=source)

    def state_of(s: int) -> int | None:
        source = program.state_of(s)
        return source if source in program.free else None

    parts, rest = _parts(program, slot, source_of, state_of, masks=not chains)
    lost = next((s for _, s in rest if s in program.varying), None)
    if lost is not None:
        raise NotAChain(_no_edge(program, name, slot, lost, parts))
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
        slopes = _of_slopes(program, program.producer.get(slot))
        told = f"a Linear takes the result of {program.in_words(slot)}, not a state{slopes}"
        raise NotAChain(_no_state(program, slot) or told)
    if form.dim() != 2:
        raise NotAChain(f"{program.in_words(slot)} is not of shape [B, n]")
    return slot


def _no_edge(program: Program, target: str, slot: int, lost: int, parts: list[_Part]) -> str:
    """Why a part of a prediction is none of an edge."""
    call = program.producer.get(lost)
    what = program.in_words(slot) if program.producer.get(slot) else f"{program.in_words(slot)} as it is"
    return f"the prediction of {target} comes from {what}, not from a Linear{_of_slopes(program, call)}"


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
    after, slope_after, slot = _unwrapped(program, slot)
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
        if fits and _learns(program, weight) and not _learns(program, mask) and mask not in program.varying:
            return weight, mask
    return None


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


# The arguments that activations take beside their input, and what they are where nobody gives them.
_PARAMETERS = {
    "leaky_relu": ("negative_slope", 0.01),
    "elu": ("alpha", 1.0),
    "softplus": ("beta", 1.0),
    "hardtanh": ("max_val", 1.0),
}


def _unwrapped(program: Program, slot: int) -> tuple[Activation, int | None, int]:
    """The activation that makes a slot, its slope if that is a slot, and what it is applied to.

    Where none does, the identity and the slot itself.
    """
    call = program.producer.get(slot)
    if call is not None and call.meaning == "prelu":
        of, slope = _prelu(call)
        form = program.stand_ins[slope]
        # which plans take as a number, and so it is read at every run: of a GPU it would have to be waited for
        # The gradient of one that learns is autograd's, in whose products the errors of a sweep of ours are not zero.
        if form.numel() == 1 and form.is_cpu and slope not in program.varying and not _learns(program, slope):
            return Activation(_NUMBER["leaky_relu"]), slope, of
    activation = _activation(call)
    return (Activation(), None, slot) if call is None or activation is None else (activation, None, call.inputs[0])


def ends_in_activation(program: Program, slot: int) -> bool:
    """Whether a prediction is an activation of something else than a free state."""
    of = _unwrapped(program, slot)[2]
    return of != slot and program.state_of(of) not in program.free


def _taken(program: Program, slot: int) -> _Source | None:
    """What a slot is columns of, or an activation of that, or columns of an activation; None where it is neither.

    Columns of what no free state changes are what they are: they may be few of many.
    """
    found = _Source(slot)
    while True:
        before, slope, of = _unwrapped(program, found.state)
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


def _prelu(call: Call) -> tuple[int, int]:
    """What a PReLU is applied to, and its slope, as slots."""
    given = arguments(call.function, call.args, call.kwargs)
    return (given["input"] if "input" in given else given["self"]).index, given["weight"].index


def _of_slopes(program: Program, call: Call | None) -> str:
    """Of what is no activation of chains, why not, where it is a PReLU."""
    if call is None or call.meaning != "prelu":
        return ""
    slope = _prelu(call)[1]
    form = program.stand_ins[slope]
    return (
        f": chains take one slope, on a CPU, that depends on no free state and requires no gradient, and "
        f"{program.in_words(slope)} is {[*form.shape]} on {form.device}"
        + (", and requires one" if _learns(program, slope) else "")
    )


def _learns(program: Program, slot: int) -> bool:
    """Whether what a slot is computed from requires gradients."""
    leaves = program.leaves
    return any(i < len(leaves) and leaves[i].requires_grad for i in program.ancestors(slot))


def _activation(call: Call | None) -> Activation | None:
    name = None if call is None else call.meaning
    if call is None or (name not in _NUMBER and name != "relu6") or len(call.inputs) != 1:
        return None
    options = unusual(call.function, call.args, call.kwargs)
    if name == "relu6":
        name, options = "hardtanh", options | {"min_val": 0.0, "max_val": 6.0}
    if name == "gelu" and options.pop("approximate", "none") == "tanh":
        name = "gelu_tanh"
    parameter, default = _PARAMETERS.get(name, ("", 0.0))
    value = float(options.pop(parameter, default))
    if name == "hardtanh":  # there is one parameter: bounds are 0 and a number, or a number and its negative
        low = float(options.pop("min_val", -1.0))
        if low == 0 < value:
            name = "clipped_relu"
        elif not low == -value < 0:
            return None
    return None if options else Activation(_NUMBER[name], value)


def precision(factor: Tensor, weight: float) -> Tensor:
    """The precision ``[n, n]`` of a full covariance with a Cholesky factor, times a node's weight."""
    library = not factor.is_cuda and factor.diagonal().all()  # which raises where L is singular
    inverse = torch.cholesky_inverse(factor) if library else _inverse(factor)
    return inverse if weight == 1.0 else weight * inverse


def _inverse(factor: Tensor) -> Tensor:
    """``(L L^T)^-1`` where `torch.cholesky_inverse` would wait for the device, to find out whether L is singular."""
    half = torch.linalg.solve_triangular(
        factor, torch.eye(len(factor), dtype=factor.dtype, device=factor.device), upper=False
    )
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)
