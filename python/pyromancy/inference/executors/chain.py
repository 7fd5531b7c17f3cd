"""Chains of Gaussian nodes: all steps in one operator, and the M-step's gradients in another."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ... import functional, ops
from ..capture import has_hooks
from ..lowering import Activation, Chain, Node, precision
from ..program import Program, Slot, Term
from ..replay import Replay, product_precision
from .base import ReplayingExecutor, Run

_PART = 0.1  # seconds after which Ctrl-C is noticed
_SHORT = 10**8  # multiply-adds that take less than that anywhere


class _Operands(NamedTuple):
    """What `infer_chain_` and `chain_mstep` both take of a chain, in their order."""

    states: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor | None]
    precisions: list[Tensor | None]
    prior: Tensor | None
    activations: list[int]
    parameters: list[float]
    predicted: list[bool]


class _Fixed:
    """What the operators take of a chain that is the same at every run."""

    def __init__(self, chain: Chain) -> None:
        activations = [a for e in chain.edges for a in (e.before, e.after)]
        self.activations = [a.number for a in activations]
        self.parameters = [a.parameter for a in activations]
        self.predicted = [n.term is not None for n in chain.nodes]
        self.free = [n.free for n in chain.nodes]


@dataclass(frozen=True)
class _Call:
    """`infer_chain_` on one chain in one run, for some of its steps at a time."""

    operands: _Operands
    grams: list[Tensor | None]
    free: list[bool]
    velocities: list[Tensor]
    energies: Tensor | None
    run: Run

    def __call__(self, first: int, count: int) -> list[Tensor]:
        states, weights, biases, precisions, prior, activations, parameters, predicted = self.operands
        run, energies = self.run, None if self.energies is None else self.energies[first : first + count]
        known: list[Tensor] = ops.infer_chain_(
            states, weights, biases, precisions, prior, self.grams, activations, parameters, predicted, self.free,
            count, run.lr, self.velocities, run.momentum, run.dampening, run.nesterov, run.resume or first > 0,
            energies, product_precision(),
        )  # fmt: skip
        return known


@dataclass(frozen=True)
class _Wanted:
    """Which of a chain's gradients an M-step wants, by edge and by node."""

    weights: list[bool]
    biases: list[bool]
    variances: list[bool]
    factors: list[bool]


class _Plan(NamedTuple):
    """How an M-step gets its gradients: what it wants of every chain, and the terms left to autograd."""

    chains: list[_Wanted]
    others: list[Term]


class ChainExecutor(ReplayingExecutor):
    """Chains of Gaussian nodes: all steps in one operator, and the M-step's gradients in another."""

    name = "chain"

    def __init__(self, program: Program, chains: list[Chain], states: Sequence[Tensor], replay: Replay) -> None:
        weights = {s for c in chains for e in c.edges for s in (e.weight, e.bias) if s is not None}
        data = [s for s in program.moving() if s not in weights]  # what looks like data, as many rows wide as the batch
        super().__init__(program, sorted(program.free), data, replay)
        self.chains = chains
        self._fixed = [_Fixed(chain) for chain in chains]
        order = {id(s): i for i, s in enumerate(states)}
        self._velocity = {slot: order[id(program.leaves[slot])] for slot in self._free}
        sizes = [[tuple(program.stand_ins[n.state].shape) for n in c.nodes] for c in chains]
        cost = sum(b * n * (16 + 2 * m) for of in sizes for (b, n), (_, m) in zip(of, [*of[1:], (0, 0)], strict=True))
        on_cpu = program.leaves[self._free[0]].is_cpu
        self._surely_short = max(1, _SHORT // max(1, cost)) if on_cpu else sys.maxsize  # steps
        self._plain = 0  # steps of the last run, if it could do without the errors of clamped nodes
        operands = {s for c in chains for n in c.nodes for s in (n.logvar, n.factor, n.prediction) if s is not None}
        self._computed = sorted(s for s in operands | weights if s >= len(program.leaves))
        self._known: list[list[Tensor]] = []  # of every chain, what the last run leaves for the M-step
        self._plans: dict[frozenset[int], _Plan | str] = {}  # leaves -> how, or why autograd has to serve them

    def _values(self, leaves: list[Tensor]) -> dict[int, Tensor]:
        values = dict(enumerate(leaves))
        if self._computed:
            values.update(zip(self._computed, self.program.evaluate(self._computed, leaves), strict=True))
        return values

    def _operands(self, chain: Chain, fixed: _Fixed, values: dict[int, Tensor]) -> _Operands:
        states = [values[n.state].contiguous() for n in chain.nodes]
        head = chain.nodes[0].prediction
        return _Operands(
            states,
            [values[e.weight] for e in chain.edges],
            [None if e.bias is None else values[e.bias] for e in chain.edges],
            [precision(values, n, s) for n, s in zip(chain.nodes, states, strict=True)],
            None if head is None else values[head].expand(states[0].shape[0], -1).contiguous(),
            fixed.activations,
            fixed.parameters,
            fixed.predicted,
        )

    def run(self, run: Run, velocities: list[Tensor] | None) -> Tensor | None:
        self._plain = 0 if run.record else run.steps
        self._known = []
        return super().run(run, velocities)

    def rest(self) -> None:
        self._known = []

    def _infer(self, leaves: list[Tensor], velocities: list[Tensor], run: Run) -> list[Tensor]:
        values, record = self._values(leaves), run.record
        recorded = self._constant_energies(leaves, run.steps) if record else None
        calls = [self._call(c, f, values, velocities, run) for c, f in zip(self.chains, self._fixed, strict=True)]
        try:
            for first, count in self._parts(run.steps):
                self._known = [call(first, count) for call in calls]
        finally:  # what was done before an interruption stays
            for chain, call in zip(self.chains, calls, strict=True):
                for node, state in zip(chain.nodes, call.operands.states, strict=True):
                    if node.free and not leaves[node.state].is_contiguous():
                        leaves[node.state].copy_(state)
        for chain, call in zip(self.chains, calls, strict=True):
            if recorded is not None and call.energies is not None:
                for i, node in enumerate(chain.nodes):
                    if node.term is not None:
                        logdet = self._logdet(values, node, call.operands.states[i])
                        recorded[:, node.term] = call.energies[:, i] + logdet
        return [] if recorded is None else [recorded]

    def _call(
        self, chain: Chain, fixed: _Fixed, values: dict[int, Tensor], velocities: list[Tensor], run: Run
    ) -> _Call:
        nodes, operands = chain.nodes, self._operands(chain, fixed, values)
        states, weights = operands.states, operands.weights
        grams: list[Tensor | None] = [None] * len(weights)
        for i, w in enumerate(weights):
            gram, direct = self._costs(chain, i, 0 if run.record else run.steps)  # recorded energies need the errors
            if gram < direct:
                p = operands.precisions[i + 1]
                grams[i] = w.mT @ (w if p is None else p.unsqueeze(1) * w)
        of_chain: list[Tensor] = []
        for node, state in zip(nodes, states, strict=True) if velocities else ():
            of_chain.append(velocities[self._velocity[node.state]] if node.free else state)
        energies = states[0].new_empty(run.steps, len(nodes), states[0].shape[0]) if run.record else None
        return _Call(operands, grams, fixed.free, of_chain, energies, run)

    def _parts(self, steps: int) -> Iterator[tuple[int, int]]:
        """The steps of a run in parts that take about `_PART`, as the first and how many.

        An operator that runs cannot be interrupted: Python raises KeyboardInterrupt between two. What is computed does
        not depend on the parts, to the last bit.
        """
        first, count = 0, self._surely_short
        while first < steps:
            count, began = min(count, steps - first), time.perf_counter()
            yield first, count
            first += count
            count = max(1, int(count * min(8.0, _PART / max(1e-9, time.perf_counter() - began))))

    def _constant_energies(self, leaves: list[Tensor], steps: int) -> Tensor:
        """Room for the energies; those that no free state changes are filled in."""
        program = self.program
        constant = [(i, t) for i, t in enumerate(program.terms) if t.slot not in program.varying]
        batch = program.stand_ins[program.result].shape[0]
        result = leaves[self._free[0]].new_zeros(steps, len(program.terms), batch)
        for (i, _), energy in zip(constant, program.energies([t for _, t in constant], leaves), strict=True):
            result[:, i] = energy
        return result

    @staticmethod
    def _logdet(values: dict[int, Tensor], node: Node, state: Tensor) -> Tensor | float:
        if node.factor is not None:
            return node.weight * values[node.factor].diagonal().log().sum()
        if node.logvar is not None:
            return 0.5 * node.weight * values[node.logvar].expand(state.shape[1]).sum()
        return 0.0

    def _costs(self, chain: Chain, edge: int, steps: int) -> tuple[int, int]:
        """Multiply-adds of a run for the feedback of an edge to a clamped node: by W^T P W, and without.

        The latter is 0 where that is the only way.
        """
        program, source, target = self.program, chain.nodes[edge], chain.nodes[edge + 1]
        if not source.free or target.free or target.term is None or chain.edges[edge].after != Activation():
            return 0, 0
        if target.factor is not None:
            return 0, 0
        out, width = program.stand_ins[chain.edges[edge].weight].shape
        batch = program.stand_ins[source.state].shape[0]
        return (
            width * width * out + batch * out * width + steps * batch * width * width,
            2 * steps * batch * out * width,
        )

    @torch.no_grad()
    def gradients(self, wanted: Sequence[Tensor]) -> list[Tensor | None] | str:
        if any(map(has_hooks, wanted)):
            return "a parameter has a gradient hook"
        if any(t.grad_fn is not None for t in self.program.leaves):
            return "a tensor that the energy takes is computed from others, outside it"
        slot_of = {id(t): i for i, t in enumerate(self.program.leaves)}
        needed = frozenset(slot_of[id(t)] for t in wanted if id(t) in slot_of)
        plan = self._plans.get(needed)
        if plan is None:
            plan = self._plans[needed] = self._obstacle(needed) or self._plan(needed)
        if isinstance(plan, str):
            return plan
        found: dict[int, Tensor] = {}

        def add(slot: int | None, gradient: Tensor) -> None:
            assert slot is not None
            found[slot] = found[slot] + gradient if slot in found else gradient

        values = self._values(self.program.leaves)
        known_of = self._known or [[]] * len(self.chains)
        for chain, fixed, wants, known in zip(self.chains, self._fixed, plan.chains, known_of, strict=True):
            operands = self._operands(chain, fixed, values)
            results = iter(ops.chain_mstep(*operands, wants.weights, wants.biases, wants.variances, known))
            for edge, want in zip(chain.edges, wants.weights, strict=True):
                if want:
                    add(edge.weight, next(results))
            for edge, want in zip(chain.edges, wants.biases, strict=True):
                if want:
                    add(edge.bias, next(results))
            for node, want in zip(chain.nodes, wants.variances, strict=True):
                if want:
                    assert node.logvar is not None
                    gradient = 0.5 * (node.weight - next(results))  # of weight / 2 E[d^2 / variance + log variance]
                    add(node.logvar, gradient.sum_to_size(values[node.logvar].shape))
            for node, want in zip(chain.nodes, wants.factors, strict=True):
                if want:
                    self._notify(node)
                    slots = self._spread(node)
                    for slot, gradient in zip(slots, self._factor_gradients(node, slots), strict=True):
                        if slot in needed:
                            add(slot, gradient)
        for slot, other in self._gradients_of(plan.others, sorted(needed)):
            add(slot, other)
        return [found.get(slot_of.get(id(t), -1)) for t in wanted]

    def _plan(self, needed: frozenset[int]) -> _Plan:
        program = self.program
        constant = [t for t in program.terms if t.slot is not None and t.slot not in program.varying]
        others = [t for t in constant if t.slot is not None and not needed.isdisjoint(program.ancestors(t.slot))]
        return _Plan([self._wanted(c, needed) for c in self.chains], others)

    def _gradients_of(self, terms: list[Term], slots: list[int]) -> list[tuple[int, Tensor]]:
        """Of the mean of terms that no free state changes, such as a penalty on weights, by autograd."""
        if not terms:
            return []
        program = self.program
        batch = program.stand_ins[program.result].shape
        with torch.inference_mode(False), torch.enable_grad():
            leaves = [t.clone() if t.is_inference() else t.detach() for t in program.leaves]
            for slot in slots:
                leaves[slot].requires_grad_()
            means = [energy.expand(batch).mean() for energy in program.energies(terms, leaves)]
            learned = [mean for mean in means if mean.requires_grad]
            if not learned:
                return []
            gradients = torch.autograd.grad(learned, [leaves[s] for s in slots], allow_unused=True)
        return [(slot, g) for slot, g in zip(slots, gradients, strict=True) if g is not None]

    def _wanted(self, chain: Chain, needed: frozenset[int]) -> _Wanted:
        reached = [(n.term is not None, e) for n, e in zip(chain.nodes[1:], chain.edges, strict=True)]
        spreads = [(n.factor is not None, not needed.isdisjoint(self._spread(n))) for n in chain.nodes]
        return _Wanted(
            [r and e.weight in needed for r, e in reached],
            [r and e.bias in needed for r, e in reached],
            [learned and not full for full, learned in spreads],
            [learned and full for full, learned in spreads],
        )

    def _spread(self, node: Node) -> tuple[int, ...]:
        """The leaves that make a node's covariance: a log-variance, or a Cholesky factor's two parts."""
        if node.term is None:
            return ()
        if node.logvar is not None:
            return (node.logvar,)
        call = self.program.producer.get(node.factor) if node.factor is not None else None
        if call is None or call.function is not functional.cholesky_factor:
            return ()
        logdiag, offtril = call.args[:2]
        return (logdiag.index, offtril.index) if isinstance(logdiag, Slot) and isinstance(offtril, Slot) else ()

    def _factor_gradients(self, node: Node, slots: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Of the mean energy, for the two parts of a node's Cholesky factor, from the residuals d = z - mu.

        The moment of the errors, E[e e^T], would give them too; but L^T e loses as many digits as the covariance is
        ill-conditioned, where u = L^-1 d does not.
        """
        program = self.program
        assert node.term is not None
        slot = program.terms[node.term].slot
        assert slot is not None
        state, pred = (a.index for a in program.producer[slot].args[:2])
        with torch.inference_mode(False), torch.enable_grad():
            leaves = [t.clone() if t.is_inference() else t.detach() for t in program.leaves]
            value, mean, *parts = (t.detach() for t in program.evaluate([state, pred, *slots], leaves))
            for part in parts:
                part.requires_grad_()
            energy = functional.multivariate_energy(value, mean, functional.cholesky_factor(*parts))
            return torch.autograd.grad(node.weight * energy.mean(), parts)

    def _notify(self, node: Node) -> None:
        """Tell the owner of a Cholesky factor that its gradient was asked for, as autograd would."""
        call = self.program.producer.get(node.factor) if node.factor is not None else None
        if call is not None and (notify := call.kwargs.get("notify")):
            notify()

    def _obstacle(self, needed: frozenset[int]) -> str | None:
        """Why autograd has to compute the gradients of these leaves, if it has to."""
        program = self.program
        chain_uses: Counter[int] = Counter()
        for chain in self.chains:
            chain_uses.update(s for e in chain.edges for s in (e.weight, e.bias) if s is not None)
            chain_uses.update(s for n in chain.nodes for s in self._spread(n))
        moved = [t.slot for t in program.terms if t.slot is not None and t.slot in program.varying]
        reaches = {s for slot in moved for s in program.ancestors(slot)}
        if missing := (needed & reaches) - chain_uses.keys():
            return f"the gradient of {program.leaf_name(min(missing))} is autograd's"
        paths = program.paths()
        if shared := [s for s in needed if paths.get(s, 0) > chain_uses[s]]:
            return f"{program.leaf_name(shared[0])} is used outside the chain's edges too"
        return None

    def notes(self) -> list[str]:
        lines, feedback = [], []
        for chain in self.chains:
            widths = "-".join(str(self.program.leaves[n.state].shape[1]) for n in chain.nodes)
            hoisted = sum(not a.free and b.term is not None for a, b in zip(chain.nodes, chain.nodes[1:], strict=False))
            lines.append(f"chain {widths}, {hoisted} edge(s) from clamped nodes computed once a run")
            for i, edge in enumerate(chain.edges):
                gram, direct = self._costs(chain, i, self._plain)
                if direct:
                    feedback.append(
                        f"feedback from the clamped node of width {self.program.stand_ins[edge.weight].shape[0]}: "
                        f"W^T W {'chosen' if gram < direct else 'not chosen'}, "
                        f"{gram / 1e6:.3g} million multiply-adds a run with it, {direct / 1e6:.3g} without"
                    )
        return [*lines, *feedback, *self._replay.notes(self)]
