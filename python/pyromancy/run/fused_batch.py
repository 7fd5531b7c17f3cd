"""A whole EM batch as one plan of chains: which states a sweep sets, what learns, and its call."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .. import backends, ops, plan
from ..capture.chains import Edge
from ..capture.edges import EdgeTensors
from ..capture.interrupt import Uninterrupted
from ..capture.surroundings import has_hooks
from ..nodes.base import StateNode
from ..nodes.categorical import CategoricalNode
from ..nodes.target import TargetNode
from . import optimizer as rules
from .chain import ChainExecutor
from .executor import Executor, Run
from .loop import InferenceLoop
from .planner import Call, Learn, Learned, set_rates
from .reach import names_of
from .repeat import Repeat
from .replay import product_precision
from .start import Start
from .trace import Trace

if TYPE_CHECKING:
    from .em import EM

_WHEN = {
    False: plan.Learning.AT_THE_END,
    True: plan.Learning.AFTER_EACH_STEP,
    "joint": plan.Learning.WITH_EACH_STEP,
}


class NotFused(Exception):
    """A batch cannot be one plan; the message says why."""


class _Last(NamedTuple):
    """A call, what the optimizer was for it, and what else it depends on."""

    learner: rules.Learner
    call: Call
    settings: tuple[object, ...]


class FusedBatch:
    """A batch as one plan.

    Raises:
        NotFused: it cannot be one.
        ValueError: the optimizer has parameters that the energy lacks.
    """

    def __init__(self, em: EM, start: Start, executor: Executor) -> None:
        if reason := rules.obstacle(em.optimizer):
            raise NotFused(reason)
        if not isinstance(executor, ChainExecutor):
            raise NotFused("the energy is no chain, as is told below")
        self.start_, self.executor = start, executor
        self.nodes = executor.planner.nodes
        self.parameters = em._parameters
        refuse_unused(self.parameters, executor.program.leaves, em.loop)
        if shared := self._shared():
            raise NotFused(shared)
        self.outside = ""  # why a plan gives gradients, and the optimizer is called
        self.learned: list[tuple[Learned, Tensor]] = []
        try:
            if em._group is not None:
                raise NotFused("gradients of all processes are averaged first")
            self.learned = _learned(executor, self.parameters)
        except NotFused as reason:
            if executor.shape == () or isinstance(executor.asked(self.parameters), str):
                raise
            self.outside = str(reason)
        self._diverged: Tensor | None = None  # [1], whether states have, on devices that look
        self._outcome: Tensor | None = None  # of a batch whose samples stop by themselves
        self._last: _Last | None = None  # where the next call may be the same
        self._same = 0  # of the calls before, in a row
        self._seen: dict[int, tuple[weakref.ref[Tensor], int | None]] = {}  # data that were checked, by their nodes
        self._masked: tuple[Mapping[int, Tensor], Sequence[Tensor]] | None = None  # what a call was made of
        self._sort_settings(em.loop.method.moves == "states")
        if self.by_hand:  # what is set by a state that starts by some edges: then PyTorch sets that one, too
            self._sort_settings(False)

    def _sort_settings(self, by_some: bool) -> None:
        """Which states start at their prediction, which are set to something, and which to the batch's own rows.

        `by_some` tells whether they may start by some of the edges that predict them.
        """
        planner, program, states = self.executor.planner, self.executor.program, self.states
        slot_of = {id(s): n.state for n, s in zip(self.nodes, states, strict=True) if s is not None}
        into: dict[int, list[int]] = {}
        for i, (_, target, _) in enumerate(planner.edges):
            into.setdefault(planner.nodes[target].state, []).append(i)
        swept, unswept, self.set_ = set(), set[int](), []
        self.self_predicted = ""  # a clamped state that is set to its own prediction
        for setting, found in self.start_.edges():
            slot = slot_of.get(id(setting.node.value))
            if found is None and slot not in program.free:
                found = self.start_.edges_of_logits(setting)
            if slot is not None and found is not None and slot in into:
                nodes = [self.nodes[i] for place in into[slot] for i in planner.edges[place][:2]]
                if any(n.held is not None for n in nodes):
                    self.set_.append(setting)  # what it is set to knows nothing of a mask
                    continue
                made_by = self._made_by(found, into[slot])
                others = {*into[slot]}.difference(made_by)
                if made_by and slot in program.free and (by_some or not others):
                    swept.add(slot)
                    unswept |= others
                    continue
                if not others:
                    self.self_predicted = program.in_words(slot)
            self.set_.append(setting)
        # what would be computed from states that the plan has yet to compute
        own = {id(s) for n, s in zip(self.nodes, states, strict=True) if s is not None and n.state in swept}
        self.by_hand = any(self.start_.depends_on_states(setting, own) for setting in self.set_)
        self.swept = frozenset() if self.by_hand else frozenset(swept)
        self.unswept = frozenset() if self.by_hand else frozenset(unswept)
        set_ = {id(s.node.value) for s in self.start_.settings}
        for node, state in zip(self.nodes, states, strict=True):
            if node.free and id(state) not in set_:
                raise NotFused(f"start does not set the free state {program.in_words(node.state)}")
        self._slot_of = slot_of

    def _made_by(self, found: list[EdgeTensors], places: list[int]) -> list[int]:
        """Which of the edges that predict a node, by places, are those found, all from nodes before it; or none."""
        edges, left = self.executor.planner.edges, list(places)
        made_by = []
        for of in found:
            at = next((i for i in left if edges[i][0] < edges[i][1] and self._is(edges[i][2], edges[i][0], of)), None)
            if at is None or self.nodes[edges[at][1]].rest:
                return []
            left.remove(at)
            made_by.append(at)
        return made_by

    def _is(self, edge: Edge, source: int, of: EdgeTensors) -> bool:
        """Whether an edge from a node is one of the tensors."""
        leaves = self.executor.program.leaves
        slots = (edge.weight, edge.bias, edge.mask, *edge.slopes)
        taken = [s if s is None or s >= len(leaves) else leaves[s] for s in slots]
        form = edge.transposed, edge.scale, edge.bias_scale, edge.skip, edge.first
        same = self.states[source] is of.source and (of.before, of.after, of.form) == (edge.before, edge.after, form)
        return same and all(a is b for a, b in zip(taken, (of.weight, of.bias, of.mask, *of.slopes), strict=True))

    @property
    def states(self) -> list[Tensor | None]:
        """Of the nodes, in order; None where a clamped one is computed."""
        leaves = self.executor.program.leaves
        return [leaves[n.state] if n.state < len(leaves) else None for n in self.nodes]

    def fits(self, em: EM, start: Start, executor: Executor) -> bool:
        """Whether nothing of this has changed."""
        now = em._parameters
        return (
            start is self.start_ and executor is self.executor and rules.obstacle(em.optimizer) is None
            and len(now) == len(self.parameters) and all(a is b for a, b in zip(now, self.parameters, strict=True))
            and not any(map(has_hooks, now)) and all(s is None or s.is_contiguous() for s in self.states)
            and not self._shared()
        )  # fmt: skip

    def _shared(self) -> str | None:
        """Which parameter has its memory in common with what is learned beside it, or is read as it learns."""
        program = self.executor.program
        owners = {p.untyped_storage().data_ptr(): p for p in self.parameters}
        if len(owners) < len(self.parameters):
            return "parameters share their memory"
        for slot, t in enumerate(program.leaves):
            owner = owners.get(t.untyped_storage().data_ptr(), t)
            if owner is not t and owner.numel():
                learned = next(i for i, leaf in enumerate(program.leaves) if leaf is owner)
                return f"{program.in_words(slot)} shares its memory with {program.in_words(learned)}, which learns"
        return None

    def set_states(self, batch: tuple[Any, ...]) -> None:
        """Set what the plan does not: clamped states, and free ones that start elsewhere than at their prediction."""
        if self.by_hand:
            self.start_.run(batch)
            return
        with torch.no_grad():
            self.start_.set_in_order(self.set_, lambda node, value: node.init(value))
            for node, state in zip(self.nodes, self.states, strict=True):
                if state is not None and node.state in self.swept:
                    # new memory, as `init` gives it: somebody may hold the last batch's
                    state.data = torch.empty_like(state)
        self.start_.restore()

    def run(self, em: EM, data: Sequence[Tensor] = (), order: Tensor | None = None) -> bool:
        """Run the batch whose states are set, or the batches of rows of data; whether it could."""
        rows: dict[int, Tensor] = {}
        if self.outside:
            if order is None:
                self._run_outside(em)
            return order is None
        if order is not None:
            captured = em.loop.program
            assert captured is not None
            clamped = {self._slot_of.get(id(setting.node.value), -1) for setting in self.set_}
            planner = self.executor.planner
            if planner.masks or self.by_hand or self.start_.reaches(captured) or planner.computes_from(clamped):
                return False
            for setting in self.set_:
                place = self.start_.place(setting)
                slot = self._slot_of.get(id(setting.node.value))
                if place is None or slot is None or not _are_rows(data[place], setting.node):
                    return False
                rows[slot] = self._looked_at(data[place], setting.node)
        last, settings = self._last, self._settings(em)
        rates = None
        if order is None and last is not None and last.settings == settings and last.learner.still(em.optimizer):
            rates = last.learner.rates(em.optimizer)
        if last is not None and rates is not None:
            learner, call = last.learner, last.call
            set_rates(call, rates)
            self._same += 1
        else:
            rules.check_averages(em.optimizer, em._named)
            learner = rules.Learner(em.optimizer, {id(p) for p in self.parameters})
            if learner.obstacle:
                em._reason, em._fused = learner.obstacle, None
                return False
            call = self._made(em, self._learning(em, learner), rows, order)
            if order is None:
                self._same = 0
                keeps = not em.loop.momentum and self.executor.planner.takes_leaves_alone
                self._last = _Last(learner, call, settings) if keeps else None
        learns = self._learns(em)
        with torch.no_grad(), Uninterrupted() if learns and learner.begins else nullcontext():
            ops.run_plan_(*call)
            self._put_back()
            if learns:
                learner.commit()
        for p in self.parameters if learns or not em.incremental else ():
            p.grad = None
        if learns:
            em.optimizer._opt_called = True  # type: ignore[attr-defined] # which schedulers ask for
        em.loop.forget_velocities()
        em.loop.restore()
        self.note_divergence(em)
        return True

    def _run_outside(self, em: EM) -> None:
        """The batch whose states are set, of which a plan gives the gradients, by the optimizer itself."""
        asked = self.executor.asked(self.parameters)
        assert not isinstance(asked, str)
        call = self._made(em, asked.learning, {}, None)
        with torch.no_grad():
            ops.run_plan_(*call)
            self._put_back()
        gradients = self.executor.completed(self.parameters, asked)
        em.optimizer.zero_grad()
        for p, gradient in zip(self.parameters, gradients, strict=True):
            p.grad = gradient
        em._average(self.executor)
        em.optimizer.step()
        em.loop.forget_velocities()
        em.loop.restore()
        self.note_divergence(em)

    def _put_back(self) -> None:
        """Set free states of which entries are data to what the last call has made of them."""
        if self._masked is not None:
            self.executor.planner.put_back(*self._masked, self.executor.program.leaves)
            self._masked = None

    def _looked_at(self, data: Tensor, node: StateNode) -> Tensor:
        """Rows that a node may be set to, once they have been looked at as they are now."""
        if isinstance(node, CategoricalNode | TargetNode):
            last = self._seen.get(id(node))
            version = None if data.is_inference() else data._version
            if version is None or last is None or last[0]() is not data or last[1] != version:
                node.check(data)
                self._seen[id(node)] = weakref.ref(data), version
            if isinstance(node, CategoricalNode) and not data.is_cpu:  # where classes are not looked at
                return node.distribution(data)
        return data

    def note_divergence(self, em: EM) -> None:
        """Have a warning given where the states of what was run last have diverged."""
        if self._diverged is None:
            return
        diverged = bool(self._diverged)
        if diverged:
            self._diverged.zero_()
        em.loop.note_divergence(diverged, learned={id(p) for p in self.parameters})

    def trace(self, em: EM) -> Trace:
        """Of the batch that was run last."""
        return Trace(em.steps) if self._outcome is None else Trace.of(self._outcome)

    def repeat(self, em: EM) -> Repeat | None:
        """What does a batch like the last, where that was done as those before it."""
        last = self._last
        if last is None or self._same < em._wait:
            return None
        self._same = 0
        slots = [self._slot_of.get(id(setting.node.value)) for setting in self.set_]
        if self.by_hand or None in slots or Repeat.obstacle(em, self.start_, self.set_):
            return None
        states = [s for s in self.states if s is not None]
        return Repeat(em, self, self.set_, states, last.call, last.learner)

    def _learns(self, em: EM) -> bool:
        return bool(self.learned) and (em.steps > 0 or not em.incremental)

    def _settings(self, em: EM) -> tuple[object, ...]:
        """What a call depends on beside the optimizer."""
        loop = em.loop
        leaves = map(id, self.executor.program.leaves)  # all of which the last call keeps
        return em.steps, em.incremental, loop.method, em.tol, self.swept, self.unswept, product_precision(), *leaves

    def _learning(self, em: EM, learner: rules.Learner) -> Learn:
        if not self._learns(em):
            return Learn()
        return Learn(
            _WHEN[em.incremental],
            tuple(learned for learned, _ in self.learned),
            [p for _, p in self.learned],
            learner.rules,
            [learner.of[id(p)] for _, p in self.learned],
        )

    def _made(self, em: EM, learning: Learn, rows: dict[int, Tensor], order: Tensor | None) -> Call:
        loop, planner, method = em.loop, self.executor.planner, em.loop.fused(em._stop)
        run = Run(
            em.steps, float(loop.lr or 0.0), float(loop.momentum), float(loop.dampening), loop.nesterov, False, False,
            settle=True,  # of what start set, and the plan does not
            method=None if isinstance(method, str) else method, rated=loop.rated,
            factors=loop.method.factors(0, em.steps),
        )  # fmt: skip
        with torch.no_grad():
            values = planner.values(self.executor.program.leaves)
            states = [values[n.state].contiguous() for n in self.nodes]
            velocities = [
                torch.empty_like(s)
                for n, s in zip(self.nodes, states, strict=True)
                if n.free and run.momentum and run.method is None
            ]
            outcome = states[0].new_empty(len(states[0]), 2) if em.tol is not None and order is None else None
            if planner.masks:
                self._masked = values, states
            if self._diverged is None and states[0].is_cpu:
                self._diverged = states[0].new_zeros(1)
            if order is None:  # batches of an order leave the call that may be used again, and so what it tells
                self._outcome = outcome
            return planner.call(
                values, states, run, of=em.steps, outcome=outcome, diverged=self._diverged,
                velocities=velocities, swept=self.swept, unswept=self.unswept, learning=learning, data=rows,
                order=order,
            )  # fmt: skip


def _are_rows(data: Tensor, node: StateNode) -> bool:
    state = node.value
    if isinstance(node, CategoricalNode) and data.dtype == torch.int64:
        return data.dim() == 1 and data.device == state.device and data.is_contiguous()
    alike = data.dtype == state.dtype and data.device == state.device and data.shape[1:] == state.shape[1:]
    return alike and data.is_contiguous()


def _learned(executor: ChainExecutor, parameters: Sequence[Tensor]) -> list[tuple[Learned, Tensor]]:
    """What each of the parameters is in the chain, if a plan can learn them all."""
    program, planner = executor.program, executor.planner
    slot_of = {id(t): i for i, t in enumerate(program.leaves)}
    if reason := executor.obstacle_inside(parameters):
        raise NotFused(reason)
    found: dict[int, list[Learned]] = {}
    for i, (*_, e) in enumerate(planner.edges):
        if e.weight is not None:
            found.setdefault(e.weight, []).append(Learned(plan.Learned.WEIGHT, i))
        if e.bias is not None:
            found.setdefault(e.bias, []).append(Learned(plan.Learned.BIAS, i))
    for i, n in enumerate(planner.nodes):
        if n.theta is not None and n.law.is_elementwise:
            found.setdefault(n.theta, []).append(Learned(plan.Learned.LOGVAR, i))
    result = []
    for p in parameters:
        uses = found.get(slot_of[id(p)], [])
        name = program.in_words(slot_of[id(p)])
        if len(uses) > 1 and (chains := backends.without_graphs(p.device.type)):
            raise NotFused(f"{name} is used {len(uses)} times by edges and variances, and {chains}")
        if not p.is_contiguous() or (p.dim() > 1 and any(use.what is plan.Learned.LOGVAR for use in uses)):
            raise NotFused(f"{name} does not lie in one piece, or is no vector of log-variances or log-scales")
        result += [(use, p) for use in uses]
    return result


def refuse_unused(parameters: Sequence[Tensor], used: Sequence[Tensor], loop: InferenceLoop) -> None:
    """Raise where the optimizer has parameters that have no part in the energy."""
    ids = {id(t) for t in used}
    if unused := [p for p in parameters if id(p) not in ids]:
        named = names_of(loop._energy)
        told = [named.get(id(p), f"one of shape {tuple(p.shape)}") for p in unused]
        raise ValueError(
            f"optimizer must hold parameters that the energy uses, got {', '.join(told)}, which it does not use"
        )
