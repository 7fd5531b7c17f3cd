"""Plans, as far as there are kernels for what they say: the E-steps of chains, and gradients after them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...plan import Law, Learned, Learning, Node, Plan, RuleKind, decode
from .chain import Chain, infer, mstep


@torch.no_grad()
def run_plan_(written: list[Tensor], read: list[Tensor], plan: list[int], numbers: list[float]) -> None:
    decoded, operands = decode(plan, numbers), [*written, *read]
    _refuse(decoded)
    for nodes in _chains(decoded):
        _run(decoded, operands, nodes)


def _refuse(plan: Plan) -> None:
    """Refuse what there are no kernels for yet."""
    missing = {
        "nodes that start at their predictions": any(node.swept for node in plan.nodes),
        "the Laplace law": any(node.law is Law.LAPLACE for node in plan.nodes),
        "many batches in an order": plan.order is not None,
        "learning in every step": plan.learning in (Learning.AFTER_EACH_STEP, Learning.WITH_EACH_STEP),
        "rules that move parameters": any(plan.rules[t.rule].kind is not RuleKind.GRADIENT for t in plan.targets),
    }
    for what, wanted in missing.items():
        if wanted:
            raise RuntimeError(
                f"run_plan_ has no Triton kernel for {what} yet; take them out of the plan, or choose another backend: "
                "pyromancy.backends.use('reference') has everything"
            )


def _chains(plan: Plan) -> list[list[int]]:
    """The nodes of every path along edges, in order."""
    after = {edge.source: edge.target for edge in plan.edges}
    chains = []
    for first in sorted({*range(len(plan.nodes))} - {*after.values()}):
        chains.append([first])
        while (last := chains[-1][-1]) in after:
            chains[-1].append(after[last])
    return chains


def _run(plan: Plan, operands: list[Tensor], places: list[int]) -> None:
    nodes = [plan.nodes[i] for i in places]
    into = {edge.target: (i, edge) for i, edge in enumerate(plan.edges)}
    numbered = [into[i] for i in places[1:]]
    edges = [edge for _, edge in numbered]
    prior = nodes[0].prior
    chain = Chain(
        [operands[node.state] for node in nodes],
        [operands[edge.weight] for edge in edges],
        [None if edge.bias is None else operands[edge.bias] for edge in edges],
        [_precision(node, operands) for node in nodes],
        None if prior is None else operands[prior],
        [((e.before.number, e.before.parameter), (e.after.number, e.after.parameter)) for e in edges],
    )
    recorded = None if plan.energies is None else operands[plan.energies]
    energies = recorded
    if recorded is not None and len(places) < len(plan.nodes):
        energies = recorded.new_empty(plan.steps, len(places), chain.batch)
    infer(
        chain,
        [node.free for node in nodes],
        [edge.gram for edge in edges],
        plan.method,
        plan.steps,
        [None if node.velocity is None else operands[node.velocity] for node in nodes],
        energies,
        plan.precision.name.lower(),
    )
    if recorded is not None and energies is not None and energies is not recorded:
        for i, node in enumerate(places):
            recorded[:, node].copy_(energies[:, i])
    own_edge = {number: i for i, (number, _) in enumerate(numbered)}
    own_node = {number: i for i, number in enumerate(places)}
    wanted = []
    for target in plan.targets:
        own = own_node if target.what is Learned.LOGVAR else own_edge
        if target.owner in own:
            to = operands[target.tensor]
            wanted.append((target.what, own[target.owner], to if to.dim() else to.view(1)))
    mstep(chain, wanted)
    for what, i, moment in wanted:
        if what is Learned.LOGVAR:  # of weight / 2 log variance, for each that it serves, and of the energy
            served = chain.states[i].shape[1] / max(1, moment.shape[0])
            moment.neg_().add_(served * nodes[i].weight if chain.batch else 0.0).mul_(0.5)


def _precision(node: Node, operands: list[Tensor]) -> Tensor | None:
    """None for 1, a diagonal, or a matrix; the node's weight is part of it."""
    if node.law is Law.NONE:
        return None
    state = operands[node.state]
    if node.theta is None:
        return None if node.weight == 1 else state.new_full(state.shape[1:], node.weight)
    theta = operands[node.theta]
    return theta if node.law is Law.FULL_GAUSSIAN else (torch.exp(-theta) * node.weight).expand(state.shape[1])
