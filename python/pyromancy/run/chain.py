"""Chains of nodes: all steps in one operator, and the M-step's gradients in another."""

from __future__ import annotations

import functools
import operator
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor

from .. import backends, functional, ops, plan
from ..capture.calls import Slot
from ..capture.chains import Chain, Node
from ..capture.errors import NoErrors, predicts
from ..capture.program import Program
from ..capture.terms import Term
from ..laws import LAWS
from ..methods import LBFGS, Descent, FixedPrediction, Method, Rated, Sequential, Stop
from .executor import ReplayingExecutor, Run, obstacle_of
from .planner import Learn, Learned, Planner, sample_weights
from .replay import Replay, product_precision
from .steppers import ORDERED, STEPPERS, Carried

_first = operator.itemgetter(0)
_PART = 0.1  # seconds after which Ctrl-C is noticed
_SHORT = 4 * 10**9  # multiply-adds that take about as long: every part packs and predicts anew


@dataclass(frozen=True)
class _Wanted:
    """Which gradients an M-step wants, by the places of nodes and edges in the plan."""

    weights: list[int]
    biases: list[int]
    thetas: list[int]
    factors: list[int]


class _MStep(NamedTuple):
    """How an M-step gets its gradients: what it wants of the chains, and the terms left to autograd."""

    wanted: _Wanted
    others: list[Term]


class Asked(NamedTuple):
    """What gives the gradients of leaves: what a plan learns, the slots of that, and the rest."""

    needed: frozenset[int]
    mstep: _MStep
    learning: Learn
    slots: list[int]


class ChainExecutor(ReplayingExecutor):
    """Chains of nodes: all steps in one operator, and the M-step's gradients in another call of it."""

    name = "chain"

    def __init__(self, program: Program, chains: list[Chain], states: Sequence[Tensor], replay: Replay) -> None:
        operands = [s for c in chains for e in c.edges for s in (e.weight, e.bias, e.mask, *e.slopes) if s is not None]
        weights = {a for s in operands for a in program.ancestors(s)}
        data = [s for s in program.moving() if s not in weights]  # what looks like data, as many rows wide as the batch
        super().__init__(program, sorted(program.free), data, replay)
        self.chains = chains
        self.planner = Planner(program, chains)
        order = {id(s): i for i, s in enumerate(states)}
        self._velocity = {slot: order[id(program.leaves[slot])] for slot in self._free}
        nodes = self.planner.nodes
        sizes = [tuple(program.stand_ins[n.state].shape) for n in nodes]
        pairs = [(sizes[source], sizes[target][1]) for source, target, e in self.planner.edges if e.weight is not None]
        cost = sum(16 * b * n for b, n in sizes) + sum(2 * b * n * m for (b, n), m in pairs)
        on_cpu = program.leaves[self._free[0]].is_cpu
        self._surely_short = max(1, _SHORT // max(1, cost)) if on_cpu else sys.maxsize  # steps
        # of which a mean over the batch is made: an energy that is one number is that of all
        self._samples = 1 if program.stand_ins[program.result].dim() else program.batch.numel()
        self.diverged = False  # in the last run, as far as the device looks
        self._plain = 0  # steps of the last run, if it could do without the errors of clamped nodes
        self._msteps: dict[frozenset[int], _MStep | str] = {}  # leaves -> how, or why autograd has to serve them

    def run(self, run: Run, velocities: list[Tensor] | None) -> Tensor | None:
        self._plain = 0 if run.record else run.steps
        return super().run(run, velocities)

    @property
    def obstacle(self) -> str:
        """Why this cannot run where it would, or ""."""
        device = self.program.leaves[self._free[0]].device.type
        if self.planner.masks and (reason := backends.without_masks(device)):
            return reason
        takes_theta = any(n.expression is not None and n.theta is not None for n in self.planner.nodes)
        return backends.without_thetas(device) if takes_theta else ""

    @property
    def bound(self) -> str:
        """What tells an operator's samples how far their energies can still fall; or why nothing does."""
        if self._circles:
            return "none: states predict one another in a circle"
        for node in self.planner.nodes:
            name = self.program.in_words(node.state)
            if node.free and node.law is plan.Law.NONE:
                return f"none: nothing predicts {name}"
            if node.free and node.law not in (plan.Law.GAUSSIAN, plan.Law.FULL_GAUSSIAN):
                return f"none: the law of {name} has no precision"
            if not node.free and not node.law.is_convex:
                return f"none: the energy of {name} is not known to be convex in its prediction"
        return "errors and gradients"

    def fused(self, method: Method, stop: Stop | None) -> plan.Stepper | plan.Descent | str:
        """What plans have for a method; or why they have none."""
        tol, errors = 0.0 if stop is None else stop.tol, method.moves == "errors"
        if isinstance(method, Rated) and not (method.is_plain or method.is_proximal or method.only_masks):
            whose = "velocities" if isinstance(method, Descent) else type(method).__name__
            return f"no operator has rates of states, schedules, max_norm or limits with {whose}"
        if isinstance(method, FixedPrediction) and (reason := self._turned):
            return reason
        if reason := backends.without_methods(self.program.leaves[self._free[0]].device.type):
            return reason
        if tol and method.is_constrained and not (isinstance(method, Rated) and method.is_proximal and method.limits):
            return "no operator ends samples where all that holds their states is what is known of them"
        if method.moves != "states" and (divided := sorted(self.program.divided)):
            return f"{self.program.in_words(divided[0])} is predicted by two energies, and has no one error"
        if errors and self._circles:
            return "states predict one another in a circle"
        odd = [n for n in self.planner.nodes if n.free and not n.moves_by_errors]
        if errors and odd:
            return f"the law of {self.program.in_words(odd[0].state)} is not one of an error"
        full = [n for n in self.planner.nodes if n.free and n.law is plan.Law.FULL_GAUSSIAN and n.held is not None]
        if full and (tol or (errors and method.measures)):
            name = self.program.in_words(full[0].state)
            return f"no operator measures errors of {name} by its full covariance, as entries of it are data"
        of = STEPPERS.get(type(method))
        if of is None:
            return f"no operator runs {type(method).__name__} on {method.moves}"
        if isinstance(method, ORDERED) and not self._in_order:
            return f"the states are not in the order of the chain, by which {type(method).__name__} goes"
        if isinstance(method, LBFGS) and method.memory > plan.MOST_PAIRS:
            return f"no operator keeps more than {plan.MOST_PAIRS} pairs of steps and gradients"
        made = of(method, len(self._free))
        if tol and isinstance(method, Sequential):
            made = plan.Sequential(lr=float(cast("float", method.lr)))
        return made if isinstance(made, plan.Descent) else replace(made, errors=errors, tol=tol)

    @functools.cached_property
    def _turned(self) -> str:
        """Why plans would fix the wrong side of an energy, if they would."""
        try:
            turned = [t for t in self.program.terms if t.node is not None and predicts(self.program, t)]
        except NoErrors as reason:
            return reason.reason
        if not turned or turned[0].node is None:
            return ""
        return f"plans have {self.program.in_words(turned[0].node.state)}, which is a prediction, for a node"

    def in_order(self, of_free: Sequence[Tensor]) -> list[Tensor]:
        """What is of the free nodes of plans, in the order of the states."""
        slots = [n.state for n in self.planner.nodes if n.free]
        return [t for _, t in sorted(zip(map(self._velocity.__getitem__, slots), of_free, strict=True), key=_first)]

    @functools.cached_property
    def _circles(self) -> bool:
        """Whether states predict one another in a circle."""
        return any(source >= target for source, target, _ in self.planner.edges)

    @functools.cached_property
    def _in_order(self) -> bool:
        """Whether the free states of the chains are, from first to last, those that methods have."""
        return [self._velocity[n.state] for n in self.planner.nodes if n.free] == [*range(len(self._free))]

    def run_method(
        self,
        method: plan.Stepper | plan.Descent,
        steps: int,
        record: bool,
        settle: bool,
        last: Carried | None,
        seed: float,
        rated: Rated | None,
        factors: Sequence[float],
    ) -> tuple[Tensor | None, Tensor, Carried]:
        """Run a method that plans have, in one operator.

        Args:
            method: what plans have of it.
            steps: how many.
            record: whether energies are wanted.
            settle: as in a run.
            last: what it goes on from, and overwrites; None begins anew.
            seed: of noise, where it begins anew.
            rated: the method, where its steps do more than go by one rate.
            factors: of the rate in every step, or none.

        Returns:
            Energies as `run` gives them; of every sample the steps it took, and 1 where it stopped by itself,
            ``[B, 2]``; and what goes on.
        """
        leaves = self.program.leaves
        state = leaves[self._free[0]]
        outcome = state.new_zeros(state.shape[0], 2)
        outcome[:, 0] = steps
        carried = last or Carried(seed=seed)
        if last is None:
            free = [leaves[n.state] for n in self.planner.nodes if n.free]
            anew = tuple(torch.empty_like(z, memory_format=torch.contiguous_format) for z in free)
            if isinstance(method, plan.Stepper):
                carried.velocities = anew
                carried.kept = tuple(z.new_empty(method.vectors + z.shape) for z in anew) if method.KEEPS else ()
                carried.progress = state.new_empty(state.shape[0], plan.PROGRESS, dtype=torch.float64)
            elif method.fixed:
                carried.kept = anew
        if isinstance(method, plan.Descent):
            method = replace(method, first=carried.taken)
        if isinstance(method, plan.Langevin):
            method = replace(method, seed=carried.seed)
        run = Run(
            steps, 0.0, 0.0, 0.0, False, last is not None, record, settle, method=method, rated=rated, factors=factors
        )
        with torch.no_grad():
            recorded = self._infer(leaves, [], run, outcome, carried)
        stops = isinstance(method, plan.Stepper) and method.tol > 0 and len(outcome)
        carried.taken += int(outcome[:, 0].max()) if stops else steps
        return recorded[0] if record else None, outcome, carried

    def _infer(
        self, leaves: list[Tensor], velocities: list[Tensor], run: Run, outcome: Tensor | None = None,
        carried: Carried | None = None,
    ) -> list[Tensor]:  # fmt: skip
        planner, steps = self.planner, run.steps
        values = planner.values(leaves)
        states = [values[n.state].contiguous() for n in planner.nodes]
        energies = states[0].new_empty(steps, len(states), states[0].shape[0]) if run.record else None
        diverged = states[0].new_zeros(1) if states[0].is_cpu else None
        of_free = [velocities[self._velocity[n.state]] for n in planner.nodes if n.free] if velocities else []
        stepping = isinstance(run.method, plan.Stepper)
        carried = carried or Carried()
        fixed = isinstance(run.method, plan.Descent) and run.method.fixed
        parts: Iterable[tuple[int, int]] = [(0, steps)]  # samples decide for themselves how many steps they take
        if run.method is None:
            parts = self._parts(steps)
        elif fixed and run.record:
            parts = [(t, 1) for t in range(steps)]
        try:
            for first, part in parts:
                now = replace(run, steps=part, resume=run.resume or first > 0, settle=run.settle and first == 0)
                if fixed and energies is not None:  # which are of the predictions of the states as they are
                    looks = replace(now, method=None, resume=False)
                    ops.run_plan_(*planner.call(values, states, looks, of=1, energies=energies[first : first + 1]))
                call = planner.call(
                    values, states, now, of=steps, velocities=carried.velocities if stepping else of_free,
                    energies=None if energies is None or fixed else energies[first : first + part],
                    outcome=outcome if stepping else None, kept=carried.kept, progress=carried.progress,
                    diverged=diverged,
                )  # fmt: skip
                ops.run_plan_(*call)
            self.diverged = diverged is not None and bool(diverged)
        finally:  # what was done before an interruption stays
            planner.put_back(values, states, leaves)
        if energies is None:
            return []
        recorded = self._constant_energies(leaves, steps)
        for i, node in enumerate(planner.nodes):
            if node.term is not None:
                theta, width = None if node.theta is None else values[node.theta], states[i].shape[1]
                normalizer = node.weight * LAWS[node.law].normalizer(theta, width)
                weights = sample_weights(node, values, states[i])
                recorded[:, node.term] = energies[:, i] + (normalizer if weights is None else normalizer * weights)
        return [recorded]

    def _parts(self, steps: int) -> Iterator[tuple[int, int]]:
        """The steps of a run in parts that take about `_PART`, as the first and how many.

        An operator that runs cannot be interrupted: Python raises KeyboardInterrupt between two. What is computed does
        not depend on the parts, to the last bit.
        """
        first, part = 0, self._surely_short
        while first < steps:
            part, began = min(part, steps - first), time.perf_counter()
            yield first, part
            first += part
            part = max(1, int(part * min(8.0, _PART / max(1e-9, time.perf_counter() - began))))

    def _constant_energies(self, leaves: list[Tensor], steps: int) -> Tensor:
        """Room for the energies; those that no free state changes are filled in."""
        program = self.program
        constant = [(i, t) for i, t in enumerate(program.terms) if t.slot not in program.varying]
        batch = program.stand_ins[program.result].shape[0]
        result = leaves[self._free[0]].new_zeros(steps, len(program.terms), batch)
        for (i, _), energy in zip(constant, program.energies([t for _, t in constant], leaves), strict=True):
            result[:, i] = energy
        return result

    @torch.no_grad()
    def gradients(
        self, wanted: Sequence[Tensor], settle: bool, fixed: Sequence[Tensor] = ()
    ) -> list[Tensor | None] | str:
        """As of any executor; `fixed` are the states of free nodes at which predictions are, if not at these."""
        asked = self.asked(wanted)
        if isinstance(asked, str):
            return asked
        if asked.learning.learned:
            values = self.planner.values(self.program.leaves)
            states = [values[n.state].contiguous() for n in self.planner.nodes]
            run = Run(0, 0.0, 0.0, 0.0, False, bool(fixed), False, settle)
            if fixed:
                run = replace(run, method=plan.Descent(0.0, fixed=True))
            ops.run_plan_(*self.planner.call(values, states, run, of=0, kept=fixed, learning=asked.learning))
        return self.completed(wanted, asked, fixed)

    def asked(self, wanted: Sequence[Tensor]) -> Asked | str:
        """What a plan learns to give the gradients of tensors; or why autograd has to compute them."""
        if reason := obstacle_of(wanted, self.program):
            return reason
        slot_of = {id(t): i for i, t in enumerate(self.program.leaves)}
        needed = frozenset(slot_of[id(t)] for t in wanted if id(t) in slot_of)
        mstep = self._msteps.get(needed)
        if mstep is None:
            mstep = self._msteps[needed] = self._obstacle(needed) or self._mstep(needed)
        if isinstance(mstep, str):
            return mstep
        of, planner, forms = mstep.wanted, self.planner, self.program.stand_ins
        learned = [
            *((plan.Learned.WEIGHT, i, planner.edges[i][2].weight) for i in of.weights),
            *((plan.Learned.BIAS, i, planner.edges[i][2].bias) for i in of.biases),
            *((plan.Learned.LOGVAR, i, planner.nodes[i].theta) for i in of.thetas),
        ]
        slots = [slot for *_, slot in learned if slot is not None]
        learning = Learn(
            plan.Learning.AT_THE_END,
            tuple(Learned(what, place) for what, place, _ in learned),
            [forms[slot].new_empty(forms[slot].shape) for slot in slots],
            (plan.Rule(),), [(0, ())] * len(learned),
        )  # fmt: skip
        return Asked(needed, mstep, learning if learned else Learn(), slots)

    @torch.no_grad()
    def completed(self, wanted: Sequence[Tensor], asked: Asked, fixed: Sequence[Tensor] = ()) -> list[Tensor | None]:
        """The gradients of tensors, once a plan has given its part, of the states as they are; `fixed` as above."""
        found: dict[int, Tensor] = {}

        def add(slot: int, gradient: Tensor) -> None:
            found[slot] = found[slot] + gradient if slot in found else gradient

        for slot, gradient in zip(asked.slots, asked.learning.tensors, strict=True):
            add(slot, gradient if self._samples == 1 else gradient.mul_(self._samples))
        for i in asked.mstep.wanted.factors:
            node = self.planner.nodes[i]
            slots = self._spread(node)
            for slot, gradient in zip(slots, self._factor_gradients(node, slots, fixed), strict=True):
                add(slot, gradient)
        self._backpropagate(found, asked.needed)
        for slot, other in self._gradients_of(asked.mstep.others, sorted(asked.needed)):
            add(slot, other)
        slot_of = {id(t): i for i, t in enumerate(self.program.leaves)}
        return [found.get(slot_of.get(id(t), -1)) for t in wanted]

    def _backpropagate(self, found: dict[int, Tensor], needed: frozenset[int]) -> None:
        """Turn the gradients of operands that are computed into those of the leaves that they are computed from."""
        program = self.program
        computed = sorted(s for s in found if s >= len(program.leaves))
        if not computed:
            return
        of = sorted(needed & set[int]().union(*map(program.ancestors, computed)))
        with torch.inference_mode(False), torch.enable_grad():
            leaves = [t.clone() if t.is_inference() else t.detach() for t in program.leaves]
            for slot in of:
                leaves[slot].requires_grad_()
            pairs = [(v, found[s]) for s, v in zip(computed, program.evaluate(computed, leaves), strict=True)]
            pairs = [(v, g) for v, g in pairs if v.requires_grad]
            if not pairs:
                return
            led = torch.autograd.grad(
                [v for v, _ in pairs], [leaves[s] for s in of], [g for _, g in pairs], allow_unused=True
            )
        for slot, gradient in zip(of, led, strict=True):
            if gradient is not None:
                found[slot] = found[slot] + gradient if slot in found else gradient

    def obstacle_inside(self, parameters: Sequence[Tensor]) -> str | None:
        """Why these cannot learn within a plan, if they cannot."""
        if reason := obstacle_of(parameters, self.program):
            return reason
        slot_of = {id(t): i for i, t in enumerate(self.program.leaves)}
        needed = frozenset(slot_of[id(t)] for t in parameters if id(t) in slot_of)
        if reason := self._obstacle(needed):
            return reason
        if not self.shape:
            return "the energy is one number for the whole batch"
        mstep = self._mstep(needed)
        if mstep.others:
            told = [self.program.in_words(t.slot) for t in mstep.others if t.slot is not None]
            return f"a term of the energy, {told[0]}, depends on parameters and on no free state"
        if full := [self.program.in_words(self.planner.nodes[i].state) for i in mstep.wanted.factors]:
            return f"the full covariance of {full[0]} is learned"
        program, direct = self.program, self.planner.operands
        through = [(p, s) for p in sorted(needed) for s in sorted(direct - {p}) if p in program.ancestors(s)]
        for parameter, operand in through:
            computed = program.in_words(operand)
            return f"{program.in_words(parameter)} is learned through what is computed from it, {computed}"
        return None

    def _mstep(self, needed: frozenset[int]) -> _MStep:
        program = self.program
        constant = [t for t in program.terms if t.slot is not None and t.slot not in program.varying]
        others = [t for t in constant if t.slot is not None and not needed.isdisjoint(program.ancestors(t.slot))]
        return _MStep(self._wanted(needed), others)

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

    def _wanted(self, needed: frozenset[int]) -> _Wanted:
        nodes, ancestors = self.planner.nodes, self.program.ancestors

        def reached(*slots: int) -> bool:
            return any(not needed.isdisjoint(ancestors(s)) for s in slots)

        edges = [(i, e) for i, (*_, e) in enumerate(self.planner.edges)]
        spread = [i for i, n in enumerate(nodes) if reached(*self._spread(n))]
        return _Wanted(
            [i for i, e in edges if e.weight is not None and reached(e.weight)],
            [i for i, e in edges if e.bias is not None and reached(e.bias)],
            [i for i in spread if nodes[i].law.is_elementwise],
            [i for i in spread if not nodes[i].law.is_elementwise],
        )

    def _spread(self, node: Node) -> tuple[int, ...]:
        """The slots that make a node's theta: itself, or of a Cholesky factor its two parts."""
        if node.theta is None:
            return ()
        if node.law.is_elementwise:  # what differs between samples does not learn in a plan
            form = self.program.stand_ins[node.theta]
            return () if form.dim() > 1 and len(form) == self.program.batch.numel() else (node.theta,)
        call = self.program.producer.get(node.theta)
        if call is None or call.function is not functional.cholesky_factor:
            return ()
        logdiag, offtril = call.args[:2]
        return (logdiag.index, offtril.index) if isinstance(logdiag, Slot) and isinstance(offtril, Slot) else ()

    def _factor_gradients(self, node: Node, slots: tuple[int, ...], fixed: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Of the mean energy, for the two parts of a node's Cholesky factor, from the residuals d = z - mu.

        The moment of the errors, E[e e^T], would give them too; but L^T e loses as many digits as the covariance is
        ill-conditioned, where u = L^-1 d does not.
        """
        program = self.program
        assert node.term is not None
        term = program.terms[node.term].node
        assert term is not None
        with torch.inference_mode(False), torch.enable_grad():
            leaves = [t.clone() if t.is_inference() else t.detach() for t in program.leaves]
            value, *parts = (t.detach() for t in program.evaluate([term.state, *slots], leaves))
            for z, at in zip((n.state for n in self.planner.nodes if n.free), fixed, strict=False):
                leaves[z] = at
            (mean,) = program.evaluate([int(term.prediction)], leaves)
            for part in parts:
                part.requires_grad_()
            energy = functional.multivariate_energy(value, mean, functional.cholesky_factor(*parts))
            for weights in program.evaluate(node.sample_weights, leaves):
                energy = energy * weights.detach().reshape(-1)
            return torch.autograd.grad(node.weight * self._samples * energy.mean(), parts)

    def _obstacle(self, needed: frozenset[int]) -> str | None:
        """Why autograd has to compute the gradients of these leaves, if it has to."""
        program = self.program
        uses = [s for *_, e in self.planner.edges for s in (e.weight, e.bias) if s is not None]
        uses += [s for n in self.planner.nodes for s in self._spread(n)]
        chain_uses = program.paths(uses)
        moved = [s for t in program.terms if t.slot is not None and t.slot in program.varying for s in t.operands]
        reaches = {s for slot in moved for s in program.ancestors(slot)}
        if missing := (needed & reaches) - chain_uses.keys():
            slot = min(missing)
            user = self._users(slot, reaches)
            taken = f"{user} takes it, not an edge" if user else "a node's energy is multiplied by it"
            return f"the gradient of {program.in_words(slot)} is autograd's: {taken}"
        paths = program.paths()
        if shared := [s for s in needed if paths.get(s, 0) > chain_uses.get(s, 0)]:
            slot = min(shared)
            name, users = program.in_words(slot), self._users(slot, reaches)
            return f"{name} is used outside the chain's edges too: it enters in {paths[slot]} ways, through {users}"
        return None

    def _users(self, slot: int, reaches: set[int]) -> str:
        """The functions that take a leaf on its way into the energy."""
        calls = [c for c in self.program.calls if slot in c.inputs and not reaches.isdisjoint(c.outputs)]
        calls = [c for c in calls if c.meaning != "law of one's own"]
        return ", ".join(dict.fromkeys(c.name for c in calls))

    def notes(self) -> list[str]:
        lines, feedback = [], []
        for chain in self.chains:
            widths = [str(self.program.stand_ins[n.state].shape[1]) for n in chain.nodes]
            free = {n.state for n in chain.nodes if n.free}
            hoisted = sum(e.source not in free for e in chain.edges)
            told = f"chain {'-'.join(widths)}"
            if not chain.is_path:
                told = f"network of {len(widths)} nodes, {', '.join(widths)} wide, and {len(chain.edges)} edges"
            lines.append(f"{told}, {hoisted} edge(s) from clamped nodes computed once a run")
        for i, (_, target, _) in enumerate(self.planner.edges):
            clamped = self.planner.nodes[target]
            gram, direct = self.planner.costs(i, self._plain)
            if direct:
                feedback.append(
                    f"feedback from the clamped node of width {self.program.stand_ins[clamped.state].shape[1]}: "
                    f"W^T W {'chosen' if gram < direct else 'not chosen'}, "
                    f"{gram / 1e6:.3g} million multiply-adds a run with it, {direct / 1e6:.3g} without"
                )
        return [*lines, *self._products(), *feedback, *self._replay.notes(self)]

    def _products(self) -> list[str]:
        """What becomes of float32 products that may be rounded."""
        state = self.program.leaves[self._free[0]]
        if not state.is_cpu or state.dtype is not torch.float32 or product_precision() != "medium":
            return []
        if backends.multiplies_bfloat16():
            return ["products of bfloat16, summed in float32, as torch.set_float32_matmul_precision allows"]
        return ["products of float32: none of bfloat16 for this processor and backend"]
