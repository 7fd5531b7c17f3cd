"""Recognises networks whose nodes are joined by (activation, Linear, activation) edges and skips, for plans."""

from __future__ import annotations

import torch

from ..plan import Activation, Law
from .calls import alike, expands
from .chains import Chain, Edge, Node, NotAChain
from .edges import edges_to, no_state
from .held import Held
from .program import Program
from .terms import Term

_SPREAD = {Law.GAUSSIAN: "the covariance", Law.FULL_GAUSSIAN: "the covariance"}  # of the others the scale


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
        into, rest = edges_to(program, of.prediction, state, edges, chains) if type(of.prediction) is int else ([], ())
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


def _no_node(program: Program, term: Term) -> str:
    """Why a term is not the energy of a node."""
    assert term.slot is not None
    assert term.within is not None
    for slot in sorted(program.ancestors(term.within) & program.producer.keys()):
        if told := no_state(program, slot):
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
