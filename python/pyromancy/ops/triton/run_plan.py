"""Plans, chain by chain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...plan import Edge, Learned, Learning, Node, Plan, RuleKind, Target, decode
from ..run_plan import batches, learned
from . import rule
from .chain import Chain, infer, mstep, sweep
from .laws import NodeLaw


@torch.no_grad()
def run_plan_(written: list[Tensor], read: list[Tensor], plan: list[int], numbers: list[float]) -> None:
    operands, decoded = [*written, *read], decode(plan, numbers)
    if any(node.way for node in decoded.nodes):
        raise NotImplementedError("what nodes do beside steps of one rate is the CPU's alone in a plan")
    if not decoded.is_chains:
        raise NotImplementedError("networks that are no chains are the CPU's alone in a plan")
    for batch in batches(decoded, operands):
        for first, some in _passes(batch):
            for nodes in _chains(batch):
                _run(some, operands, nodes, first)


def _passes(plan: Plan) -> Iterator[tuple[int, Plan]]:
    """Plans that one after another do what one does, each learning once or never, and their first steps."""
    if plan.learning in (Learning.NEVER, Learning.AT_THE_END):
        yield 0, plan
        return
    if not plan.steps:
        yield 0, replace(plan, learning=Learning.NEVER)
        return
    steps, plan = plan.steps, replace(plan, steps=1)
    for step in range(steps):
        yield step, plan
        plan = learned(replace(plan, method=replace(plan.descent, resume=True)))


def _chains(plan: Plan) -> list[list[int]]:
    """The nodes of every path along edges, in order."""
    after = {edge.source: edge.target for edge in plan.edges}
    chains = []
    for first in sorted({*range(len(plan.nodes))} - {*after.values()}):
        chains.append([first])
        while (last := chains[-1][-1]) in after:
            chains[-1].append(after[last])
    return chains


def _run(plan: Plan, operands: list[Tensor], places: list[int], first: int) -> None:
    """One pass over one chain: the sweep before the first step, E-steps, and what is learned once."""
    nodes = [plan.nodes[i] for i in places]
    into = {edge.target: (i, edge) for i, edge in enumerate(plan.edges)}
    numbered = [into[i] for i in places[1:]]
    edges = [edge for _, edge in numbered]
    prior = nodes[0].prior
    chain = Chain(
        [operands[node.state] for node in nodes],
        [_scaled(_turned(edge, operands[edge.weight]), edge.scale) for edge in edges if edge.weight is not None],
        [None if edge.bias is None else _scaled(operands[edge.bias], edge.bias_scale) for edge in edges],
        [_law(node, operands) for node in nodes],
        None if prior is None else operands[prior],
        [((e.before.number, e.before.parameter), (e.after.number, e.after.parameter)) for e in edges],
        [edge.skip for edge in edges],
    )
    recorded = None if plan.energies is None else operands[plan.energies][first : first + plan.steps]
    energies = recorded
    if recorded is not None and len(places) < len(plan.nodes):
        energies = recorded.new_empty(plan.steps, len(places), chain.batch)
    owners = {(True, i): place for place, i in enumerate(places)}  # of log-variances, and of the rest
    owners |= {(False, number): i for i, (number, _) in enumerate(numbered)}
    targets = () if plan.learning is Learning.NEVER else plan.targets
    own = [(t, owners[t.what is Learned.LOGVAR, t.owner]) for t in targets
           if (t.what is Learned.LOGVAR, t.owner) in owners]  # fmt: skip
    if first == 0:
        sweep(chain, [node.swept for node in nodes])
    before = plan.learning is Learning.WITH_EACH_STEP
    gradients = _gradients(plan, operands, chain, own) if before else []
    infer(
        chain,
        [node.free for node in nodes],
        [edge.gram for edge in edges],
        plan.descent,
        plan.steps,
        [None if node.velocity is None else operands[node.velocity] for node in nodes],
        energies,
        plan.precision.name.lower(),
        exact=any(node.swept for node in nodes),
    )
    if recorded is not None and energies is not None and energies is not recorded:
        for i, node in enumerate(places):
            recorded[:, node].copy_(energies[:, i])
    if not before:
        gradients = _gradients(plan, operands, chain, own)
    for (target, _), gradient in zip(own, gradients, strict=True):
        if gradient is not operands[target.tensor]:
            slots = [None if s is None else operands[s] for s in target.slots]
            rule.apply(plan.rules[target.rule], operands[target.tensor], gradient, slots)


def _gradients(plan: Plan, operands: list[Tensor], chain: Chain, own: list[tuple[Target, int]]) -> list[Tensor]:
    """Where they are wanted, or in memory of their own for the rules that go by them."""
    gradients = []
    for target, _ in own:
        to = operands[target.tensor]
        is_wanted = plan.rules[target.rule].kind is RuleKind.GRADIENT
        gradients.append(to if is_wanted else torch.empty_like(to))
    wanted = []
    for (target, i), gradient in zip(own, gradients, strict=True):
        is_weight = target.what is Learned.WEIGHT
        to = _turned(plan.edges[target.owner], gradient) if is_weight else gradient
        wanted.append((target.what, i, to if to.dim() else to.view(1)))
    mstep(chain, wanted)
    for (target, _), gradient in zip(own, gradients, strict=True):
        if target.what is Learned.LOGVAR:
            continue
        edge = plan.edges[target.owner]
        scale = edge.scale if target.what is Learned.WEIGHT else edge.bias_scale
        if scale != 1:
            gradient.mul_(scale)
    return gradients


def _turned(edge: Edge, weight: Tensor) -> Tensor:
    return weight.mT if edge.transposed else weight


def _scaled(t: Tensor, scale: float) -> Tensor:
    return t if scale == 1 else t * scale


def _law(node: Node, operands: list[Tensor]) -> NodeLaw:
    state, rate = operands[node.state], None if node.theta is None else operands[node.theta]
    if rate is not None and node.law.is_elementwise:
        rate = (torch.exp(-rate) * node.weight).expand(state.shape[1])
    elif rate is None and node.weight != 1:
        rate = state.new_full(state.shape[1:], node.weight)
    samples = None if node.sample_weights is None else operands[node.sample_weights]
    return NodeLaw(node.law, rate, node.weight, samples, node.law_parameter, node.expression)
