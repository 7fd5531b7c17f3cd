"""Several energies of one state as one law of one's own, as chains have one of every state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..plan import Law
from ..plan.expression import Expression, Op
from .calls import Call, Slot, alike
from .program import Program
from .symbolic import Algebra, NoExpression
from .terms import NodeEnergy, Term


def joined(program: Program) -> Program:
    """The same program, but that terms which are energies of one state by one prediction, or by numbers, are one term.

    That term's slot is of a call that adds them up, and its law an expression. Terms stay as they are where their laws
    are not sums over elements, have a theta, or different weights per sample, and where the expression would be too
    long.
    """
    known: dict[tuple[int, int], bool] = {}

    def same(a: int | float, b: int | float) -> bool:
        return alike(program.producer, a, b, known)

    groups: list[list[Term]] = []
    by_state: dict[int | None, list[list[Term]]] = {}
    for term in program.terms:
        if term.node is None:
            groups.append([term])
            continue
        # a leaf is like nothing but itself, so that thousands of states are not compared with each other
        state = None if term.node.state in program.producer else term.node.state
        some = by_state.setdefault(state, [])
        group = next((g for g in some if _go_together(g[0], term, same)), None)
        if group is None:
            some.append([term])
            groups.append(some[-1])
        else:
            group.append(term)
    calls, stand_ins, terms = list(program.calls), list(program.stand_ins), list[Term]()
    for group in groups:
        law = _law_of(group, same) if len(group) > 1 else None
        if law is None:
            terms += group
            continue
        slots = tuple(t.slot for t in group if t.slot is not None)
        total = _Total(group, program.stand_ins[program.result].shape)
        stand_ins.append(program.stand_ins[program.result].detach())
        slot = len(stand_ins) - 1
        calls.append(Call(total, tuple(map(Slot, slots)), {}, Slot(slot), slots, (slot,)))
        terms.append(Term(slot, 1.0, node=law, sample_weights=group[0].sample_weights))
    if len(terms) == len(program.terms):
        return program
    result = program.rewritten(calls, stand_ins)
    result.terms = terms
    return result


class _Total:
    """Adds up terms, given the values of their slots, but for their weights per sample."""

    __name__ = "sum"

    def __init__(self, terms: Sequence[Term], shape: torch.Size) -> None:
        self._terms, self._shape = terms, shape

    def __call__(self, *values: Tensor) -> Tensor:
        return torch.stack([t.of(v, self._shape) for t, v in zip(self._terms, values, strict=True)]).sum(0)


def _go_together(a: Term, b: Term, same: Callable[[int | float, int | float], bool]) -> bool:
    """Whether terms are energies of one state, with the same weights per sample, that a law of one's own can be of."""
    if a.node is None or b.node is None or not same(a.node.state, b.node.state):
        return False
    weighted_alike = (a.sample_weights, a.node.sample_weights) == (b.sample_weights, b.node.sample_weights)
    return weighted_alike and all(n.law.is_elementwise and n.theta is None for n in (a.node, b.node))


def _law_of(group: Sequence[Term], same: Callable[[int | float, int | float], bool]) -> NodeEnergy | None:
    """The law of some terms together, if there is one."""
    nodes = [t.node for t in group if t.node is not None]
    predictions = [n.prediction for n in nodes if type(n.prediction) is int]
    if any(not same(predictions[0], p) for p in predictions):
        return None
    first = nodes[0]
    orders = {n.turned for n in nodes if type(n.prediction) is int} or {False}
    turned = orders.pop() if len(orders) == 1 else None
    if all((n.law, n.parameter, n.expression) == (first.law, first.parameter, first.expression) for n in nodes) and all(
        same(n.prediction, first.prediction) for n in nodes
    ):
        return replace(first, scale=sum(t.weight * n.scale for t, n in zip(group, nodes, strict=True)), turned=turned)
    g = Algebra()
    alone = not predictions
    z, mu = (g.distance, g.number(0.0)) if alone else (g.z, g.mu)
    try:
        energy = g.number(0.0)
        for term, node in zip(group, nodes, strict=True):
            by = mu if type(node.prediction) is int else g.number(node.prediction)
            energy = g.add(energy, g.times(term.weight * node.scale, elements(g, node, z, by)))
        expression = g.program(energy)
    except NoExpression:
        return None
    prediction = 0.0 if alone else predictions[0]
    return replace(
        first, law=Law.EXPRESSION, prediction=prediction, scale=1.0, parameter=0.0, expression=expression,
        turned=turned,
    )  # fmt: skip


def elements(g: Algebra, node: NodeEnergy, z: int, mu: int) -> int:
    """What a node's law makes of an element, of its weight 1 and of scale 1."""
    d = g.distance if (z, mu) == (g.z, g.mu) else g.sub(z, mu)
    match node.law:
        case Law.GAUSSIAN:
            return g.times(0.5, g.pow(d, 2.0))
        case Law.LAPLACE:
            return g.apply(Op.ABS, d)
        case Law.BERNOULLI:
            return g.sub(g.apply(Op.SOFTPLUS, mu), g.mul(z, mu))
        case Law.POISSON:
            return g.sub(g.apply(Op.EXP, mu), g.mul(z, mu))
        case Law.STUDENT:
            square = g.times(1 / node.parameter, g.pow(d, 2.0))
            return g.times((node.parameter + 1) / 2, g.apply(Op.LOG1P, square))
        case Law.HUBER:
            bound = g.number(node.parameter)
            c = g.apply(Op.MAX, g.apply(Op.MIN, d, bound), g.neg(bound))
            return g.mul(c, g.sub(d, g.times(0.5, c)))
    assert node.expression is not None
    return _replayed(g, node.expression, z, mu)


def _replayed(g: Algebra, of: Expression, z: int, mu: int) -> int:
    """The energy of an expression, as a value of an algebra."""
    values = [z, mu, *map(g.number, of.constants)]
    own = {Op.ADD: g.add, Op.SUB: g.sub, Op.MUL: g.mul, Op.DIV: g.div}
    for i in of.code:
        a, b, c = (values[k] for k in (i.a, i.b, i.c))
        if i.op in own:
            value = own[i.op](a, b)
        elif i.op is Op.NEG:
            value = g.neg(a)
        elif i.op is Op.POW:
            exponent = g.known(b)
            assert exponent is not None
            value = g.pow(a, exponent)
        else:
            value = g.apply(i.op, *(a, b, c)[: i.op.arity])
        values.append(value)
    return values[of.deviation]
