"""Makes of captured chains the calls of the operator that run them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .. import plan
from ..capture.chains import Chain, Edge, Node
from ..capture.program import Program
from ..laws.full_gaussian import precision
from ..methods import Shrink
from .executor import Run
from .replay import product_precision

_OF_A_RULE = 5  # numbers, of which the rate is the first; they stand last
_PLANS = 64  # that are kept encoded: one for every number of steps that is met, say


@dataclass(frozen=True)
class Learned:
    """What of a chain is learned: of an edge, or for thetas of a node, by its place."""

    what: plan.Learned
    place: int


@dataclass(frozen=True)
class Learn:
    """How parameters learn in a run.

    Attributes:
        when: in a run.
        learned: what does.
        tensors: for each the parameter itself, or where its gradient goes.
        rules: what is done with gradients.
        of: for each the place of its rule, and the rule's slots.
    """

    when: plan.Learning = plan.Learning.NEVER
    learned: tuple[Learned, ...] = ()
    tensors: Sequence[Tensor] = ()
    rules: Sequence[plan.Rule] = ()
    of: Sequence[tuple[int, Sequence[Tensor | None]]] = ()


_NOTHING = Learn()


class Call(NamedTuple):
    """A plan with what it is run on."""

    written: list[Tensor]
    read: list[Tensor]
    plan: list[int]
    numbers: list[float]


def set_rates(call: Call, rates: Sequence[float]) -> None:
    """Give the rules of a call other rates, in their order."""
    first = len(call.numbers) - _OF_A_RULE * len(rates)
    call.numbers[first::_OF_A_RULE] = rates


class Planner:
    """Makes of captured chains the calls of the operator that run them.

    Args:
        program: what was captured.
        chains: that it is made of.

    Attributes:
        nodes: of all chains.
        edges: of all chains, each with the places of its source and its target.
        operands: all slots that they take.
    """

    def __init__(self, program: Program, chains: list[Chain]) -> None:
        self.program = program
        self.nodes = [n for c in chains for n in c.nodes]
        place = {n.state: i for i, n in enumerate(self.nodes)}
        self.edges = [(place[e.source], place[e.target], e) for c in chains for e in c.edges]
        operands = [s for n in self.nodes for s in (n.state, n.theta, n.prediction, *n.sample_weights)]
        operands += [s for n in self.nodes for _, s in n.rest]
        operands += [s for n in self.nodes if n.held is not None for s in (n.held[0], n.held[1].mask)]
        operands += [s for *_, e in self.edges for s in (e.weight, e.bias, e.mask, *e.slopes)]
        self.operands = frozenset(s for s in operands if type(s) is int)
        self._computed = sorted({s for s in operands if type(s) is int and s >= len(program.leaves)})
        self._parameters = [  # of activations: a number, or the slot of one that is read for every call
            (a.parameter, slope) for *_, e in self.edges for a, slope in zip((e.before, e.after), e.slopes, strict=True)
        ]
        self._slopes = [slope for _, slope in self._parameters if slope is not None]
        self._encoded: dict[tuple[object, ...], list[int]] = {}

    def values(self, leaves: Sequence[Tensor]) -> dict[int, Tensor]:
        """What the chains take, by slot; of a state of which entries are data, what stands in its place."""
        values = dict(enumerate(leaves))
        if self._computed:
            values.update(zip(self._computed, self.program.evaluate(self._computed, leaves), strict=True))
        for n in self.nodes:
            if n.held is not None:
                values[n.state] = values[n.held[0]]
        return values

    def put_back(self, values: Mapping[int, Tensor], states: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
        """Set free states to what a run has made of them, where it could not write into them.

        Args:
            values: that it took.
            states: that it has written.
            leaves: whose free ones are to be set; entries that are data stay as they are.
        """
        for n, made in zip(self.nodes, states, strict=True):
            if not n.free:
                continue
            leaf = leaves[n.state]
            if n.held is not None:
                leaf.copy_(torch.where(n.held[1].known(values), leaf, made))
            elif not leaf.is_contiguous():
                leaf.copy_(made)

    @property
    def takes_leaves_alone(self) -> bool:
        """Whether plans take what the program reads itself, and nothing computed, or read, for every call."""
        thetas = [self.program.stand_ins[n.theta] for n in self.nodes if n.theta is not None]
        return not (
            self._computed or self._slopes or any(t.dim() > 1 for t in thetas) or self.masks
            or any(n.prediction is not None or n.rest or n.law is plan.Law.FULL_GAUSSIAN for n in self.nodes)
            or any(not self._is_plain(n) for n in self.nodes)
            or any(e.mask is not None and not self._is_like_its_weight(e) for *_, e in self.edges)
        )  # fmt: skip

    @property
    def masks(self) -> bool:
        """Whether entries of a free state are data."""
        return any(n.held is not None for n in self.nodes)

    def _is_like_its_weight(self, edge: Edge) -> bool:
        """Whether plans take an edge's mask as it is."""
        assert edge.mask is not None
        assert edge.weight is not None
        return _is_like(*(self.program.stand_ins[s] for s in (edge.mask, edge.weight)))

    def _is_plain(self, node: Node) -> bool:
        """Whether plans take a node's weights per sample as they are."""
        forms = [self.program.stand_ins[s] for s in (*node.sample_weights, node.state)]
        return len(forms) == 1 or (len(forms) == 2 and _is_vector(*forms))

    def call(
        self,
        values: Mapping[int, Tensor],
        states: Sequence[Tensor],
        run: Run,
        *,
        of: int,
        velocities: Sequence[Tensor] = (),
        energies: Tensor | None = None,
        outcome: Tensor | None = None,
        diverged: Tensor | None = None,
        kept: Sequence[Tensor] = (),
        progress: Tensor | None = None,
        swept: frozenset[int] = frozenset(),
        unswept: frozenset[int] = frozenset(),
        learning: Learn = _NOTHING,
        data: Mapping[int, Tensor] | None = None,
        order: Tensor | None = None,
    ) -> Call:
        """What runs one batch, or with an order the batches that it picks from data, one after another.

        Args:
            values: as `values` gives them.
            states: of all nodes, contiguous.
            run: the E-steps.
            of: how many they are a part of.
            velocities: of the free states, where there is momentum, or a method that goes on.
            energies: ``[steps, nodes, B]``, to be written.
            outcome: ``[B, 2]`` of a stepper, likewise.
            diverged: ``[1]``, set to 1 where states end as NaN or infinite, likewise.
            kept: of the free states, where a method goes on and keeps more.
            progress: of such a method, likewise.
            swept: the states that start at their prediction, by slot.
            unswept: the edges, by their places, that these do not start by.
            learning: of parameters, and how.
            data: ``[N, n]`` for clamped states, by slot.
            order: int64, ``[batches * B]``.
        """
        data = data or {}
        operands = _Operands()
        for n, s in zip(self.nodes, states, strict=True):
            if n.free or n.state in data:
                operands.write(s)
        for t in (*velocities, *kept, *learning.tensors):
            operands.write(t)
        for _, slots in learning.of:
            for slot in slots:
                if slot is not None:
                    operands.write(slot)
        for written in (energies, outcome, diverged, progress):
            if written is not None:
                operands.write(written)
        thetas = [_theta(n, values, s) for n, s in zip(self.nodes, states, strict=True)]
        priors = [_prediction(n, values, s) for n, s in zip(self.nodes, states, strict=True)]
        weights = [sample_weights(n, values, s) for n, s in zip(self.nodes, states, strict=True)]
        measures = isinstance(run.method, plan.Stepper) and (run.method.measures or run.method.tol > 0)
        factors = [_factor(n, values) if measures and n.free else None for n in self.nodes]
        ways = self._ways(run, values)
        masks = {slot: mask for slot, (_, mask) in ways.items()}
        for operand in (*states, *thetas, *priors, *weights, *factors, *data.values(), order, *masks.values()):
            if operand is not None:
                operands.read(operand)
        of_edges = [
            [*(None if s is None else values[s] for s in (e.weight, e.bias)), _mask(e, values)] for *_, e in self.edges
        ]
        for of_edge in itertools.chain.from_iterable(of_edges):
            if of_edge is not None:
                operands.read(of_edge)
        products = product_precision()
        key = (
            run.steps, run.nesterov, run.resume, run.settle, of, bool(velocities), energies is None, swept,
            unswept, tuple(data), order is None, diverged is None,
            run.method is not None and (_form(run.method), outcome is None, bool(kept), progress is None),
            bool(run.factors), measures,
            tuple((s, w.low is None, w.high is None, mask is None) for s, (w, mask) in ways.items()),
            learning.when, learning.learned, products, operands.pattern(),
            *(operands[t] for t in learning.tensors),
            *((r.kind, r.maximize, r.nesterov, r.decoupled, r.fresh, r.slots_needed) for r in learning.rules),
            *((rule, *(s is None for s in slots)) for rule, slots in learning.of),
        )  # fmt: skip
        ints = self._encoded.get(key)
        if ints is None:
            velocity, keep = iter(velocities), iter(kept)
            nodes = tuple(
                plan.Node(
                    operands[s], n.free, n.state in swept, n.law, operands.find(theta), operands.find(prior),
                    operands[next(velocity)] if velocities and n.free else None, operands.find(data.get(n.state)),
                    n.weight, operands.find(of_samples), operands[next(keep)] if kept and n.free else None,
                    n.law_parameter,
                    replace(ways[n.state][0], known=operands.find(masks[n.state])) if n.state in ways else None,
                    n.expression, operands.find(factor),
                )
                for n, s, theta, prior, of_samples, factor in zip(
                    self.nodes, states, thetas, priors, weights, factors, strict=True
                )
            )  # fmt: skip
            # the errors that a gram does without are needed to record energies, and to learn at every step
            may_gram = energies is None and learning.when in (plan.Learning.NEVER, plan.Learning.AT_THE_END)
            may_gram &= run.method is None
            edges = tuple(
                plan.Edge(
                    source, target, operands.find(weight), operands.find(bias), e.before, e.after,
                    may_gram and self.prefers_gram(i, of), e.transposed, e.scale, e.bias_scale, e.skip,
                    operands.find(mask), e.first, i not in unswept,
                )
                for i, ((source, target, e), (weight, bias, mask)) in enumerate(zip(self.edges, of_edges, strict=True))
            )  # fmt: skip
            targets = tuple(
                plan.Target(p.what, p.place, rule, operands[t], tuple(operands.find(s) for s in slots))
                for p, t, (rule, slots) in zip(learning.learned, learning.tensors, learning.of, strict=True)
            )
            method: plan.Descent | plan.Stepper = (
                plan.Descent(0, 0, 0, run.nesterov, run.resume, run.settle)
                if run.method is None
                else replace(run.method, resume=run.resume, settle=run.settle)
                if isinstance(run.method, plan.Descent)
                else replace(
                    run.method, resume=run.resume, outcome=operands.find(outcome), progress=operands.find(progress)
                )
            )  # fmt: skip
            made = plan.Plan(
                nodes, edges, method, run.steps,
                operands.find(energies), operands.find(order), learning.when, tuple(learning.rules), targets,
                plan.MatmulPrecision[products.upper()], operands.find(diverged), factors=tuple(run.factors),
            )  # fmt: skip
            if len(self._encoded) >= _PLANS:  # the oldest goes
                del self._encoded[next(iter(self._encoded))]
            ints = self._encoded[key] = plan.encode(made)[0]
        of_method = [run.lr, run.momentum, run.dampening] if run.method is None else plan.numbers_of(run.method)
        max_norm = 0.0 if run.rated is None else run.rated.max_norm or 0.0
        numbers = [*of_method, max_norm, *run.factors]
        for n in self.nodes:
            numbers += (n.weight, n.law_parameter)
            if n.state in ways:
                numbers += plan.numbers_of_node_step(ways[n.state][0])
            if n.expression is not None:
                numbers += n.expression.constants
        for i, (*_, e) in enumerate(self.edges):
            for x, slope in self._parameters[2 * i : 2 * i + 2]:
                numbers.append(x if slope is None else self._read(values, slope))
            numbers += (e.scale, e.bias_scale, e.skip)
        for r in learning.rules:
            numbers += (r.lr, r.weight_decay, r.first, r.second, r.epsilon)
        return Call(operands.written, operands.only_read, ints, numbers)

    def _ways(self, run: Run, values: Mapping[int, Tensor]) -> dict[int, tuple[plan.NodeStep, Tensor | None]]:
        """What steps do of states beside, by slot, where they do, and the masks of what is known."""
        ways: dict[int, tuple[plan.NodeStep, Tensor | None]] = {}
        for n in self.nodes:
            if n.held is not None:
                ways[n.state] = plan.NodeStep(), _wide(n.held[1].known(values), values[n.state])
        if run.rated is None:
            return ways
        free = [n.state for n in self.nodes if n.free]
        states = [self.program.leaves[slot] for slot in free]
        paces = isinstance(getattr(run.rated, "lr", None), Mapping)
        for slot, state, way in zip(free, states, run.rated.ways(states), strict=True):
            shrink, limits = way.shrink or Shrink(0.0), way.range
            made = plan.NodeStep(
                way.rate if paces else 1.0, float(shrink.weight), float(shrink.towards),
                None if limits is None else limits.low, None if limits is None else limits.high,
            )  # fmt: skip
            if way.known is not None or made != plan.NodeStep():
                mask = ways[slot][1] if slot in ways else None
                if way.known is not None:
                    own = _wide(way.known, state)
                    mask = own if mask is None else own | mask
                ways[slot] = made, mask
        return ways

    def _read(self, values: Mapping[int, Tensor], slope: int) -> float:
        x = float(values[slope])
        if not math.isfinite(x):
            raise FloatingPointError(f"{self.program.in_words(slope)}, the slope of a PReLU, must be finite, got {x}")
        return x

    def computes_from(self, slots: set[int]) -> bool:
        """Whether what the chains take is computed from some of these, or is one: it would change with every batch."""
        taken = [*self._computed, *self._slopes, *(s for n in self.nodes for s in n.sample_weights)]
        taken += [n.prediction for n in self.nodes if type(n.prediction) is int]
        taken += [s for n in self.nodes for _, s in n.rest]
        return any(not slots.isdisjoint(self.program.ancestors(slot)) for slot in taken)

    def prefers_gram(self, place: int, steps: int) -> bool:
        """Whether an edge's feedback takes fewer multiply-adds in a run by W^T P W."""
        gram, direct = self.costs(place, steps)
        return gram < direct

    def costs(self, place: int, steps: int) -> tuple[int, int]:
        """Multiply-adds of a run for the feedback of an edge to a clamped node: by W^T P W, and without.

        The latter is 0 where that is the only way.
        """
        at, to, edge = self.edges[place]
        source, target = self.nodes[at], self.nodes[to]
        if not source.free or target.free or edge.after != plan.Activation() or edge.skip or target.rest:
            return 0, 0
        if edge.weight is None or not self._is_alone(place):
            return 0, 0
        # the others' errors are not a number times a residual
        if target.law is not plan.Law.GAUSSIAN or target.sample_weights:
            return 0, 0
        out, width = (self.program.stand_ins[n.state].shape[1] for n in (target, source))
        batch = self.program.stand_ins[source.state].shape[0]
        return (
            width * width * out + batch * out * width + steps * batch * width * width,
            2 * steps * batch * out * width,
        )

    def _is_alone(self, place: int) -> bool:
        """Whether no other edge leads from where an edge does, or to where it does."""
        source, target, _ = self.edges[place]
        return all(i == place or (a != source and b != target) for i, (a, b, _) in enumerate(self.edges))


def _wide(mask: Tensor, state: Tensor) -> Tensor:
    """A mask that is one for all samples or for each, of every element."""
    return mask.expand(len(mask), state.shape[1])


def _form(method: plan.Stepper | plan.Descent) -> tuple[object, ...]:
    """What of a method is not among the numbers."""
    return type(method), *(x for x in vars(method).values() if not isinstance(x, float))


def _theta(node: Node, values: Mapping[int, Tensor], state: Tensor) -> Tensor | None:
    if node.theta is None:
        return None
    theta = values[node.theta]
    theta = theta.to(state.dtype) if theta.dtype == torch.bool else theta
    if node.law is plan.Law.FULL_GAUSSIAN:
        return precision(theta, node.weight)
    if theta.dim() == 2 and len(theta) == len(state) > 1:  # of every sample
        return theta.expand_as(state)
    return theta if theta.dim() <= 1 else theta.reshape(-1)


def _factor(node: Node, values: Mapping[int, Tensor]) -> Tensor | None:
    """L and its inverse, with L L^T the covariance of a node's error, where that is full."""
    if node.law is not plan.Law.FULL_GAUSSIAN or node.theta is None:
        return None
    factor = values[node.theta] / math.sqrt(node.weight)
    unit = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    return torch.stack([factor, torch.linalg.solve_triangular(factor, unit, upper=False)])


def _prediction(node: Node, values: Mapping[int, Tensor], state: Tensor) -> Tensor | None:
    """Of a node what edges do not make of its prediction."""
    if node.rest:
        total = torch.zeros_like(state)
        for factor, slot in node.rest:
            total.add_(values[slot], alpha=factor)
        return total
    if isinstance(node.prediction, float):
        return torch.full_like(state, node.prediction)
    return None if node.prediction is None else values[node.prediction].expand_as(state).contiguous()


def _is_like(mask: Tensor, weight: Tensor) -> bool:
    return mask.shape == weight.shape and mask.dtype == weight.dtype


def _mask(edge: Edge, values: Mapping[int, Tensor]) -> Tensor | None:
    """What an edge's weight is multiplied by, like it."""
    if edge.mask is None or edge.weight is None:
        return None
    mask, weight = values[edge.mask], values[edge.weight]
    return mask if _is_like(mask, weight) else mask.to(weight.dtype).expand_as(weight)


def _is_vector(weights: Tensor, state: Tensor) -> bool:
    return weights.shape == state.shape[:1] and weights.dtype == state.dtype


def sample_weights(node: Node, values: Mapping[int, Tensor], state: Tensor) -> Tensor | None:
    """The product of a node's weights per sample, ``[B]``."""
    if not node.sample_weights:
        return None
    first, *others = (values[s] for s in node.sample_weights)
    if not others and _is_vector(first, state):
        return first
    product = state.new_ones(state.shape[0])
    for t in (first, *others):
        product = product * t.reshape(-1).to(product)
    return product


class _Operands:
    """The two lists that a plan refers to, with every tensor once."""

    def __init__(self) -> None:
        self.written: list[Tensor] = []
        self.only_read: list[Tensor] = []
        self._places: dict[int, int] = {}  # by id; those only read count downwards from -1
        self._read: list[int] = []  # places in the order in which they were asked for

    def write(self, t: Tensor) -> None:
        """Add one that is written, unless it is there."""
        if id(t) in self._places:
            return
        self._places[id(t)] = len(self.written)
        self.written.append(t)

    def read(self, t: Tensor) -> None:
        """Add one that is read, unless it is there."""
        place = self._places.get(id(t))
        if place is None:
            self.only_read.append(t)
            place = self._places[id(t)] = -len(self.only_read)
        self._read.append(place)

    def pattern(self) -> tuple[int, ...]:
        """Which tensors are the same; equal patterns have equal places."""
        return len(self.written), *self._read

    def __getitem__(self, t: Tensor) -> int:
        place = self._places[id(t)]
        return place if place >= 0 else len(self.written) - 1 - place

    def find(self, t: Tensor | None) -> int | None:
        """Its place, if there is one."""
        return None if t is None else self[t]
