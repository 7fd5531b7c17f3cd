"""Errors as the variables of inference: z = mu + e for every free state that a node's energy predicts.

The predictions mu are computed from states before, in an order that the graph allows, so that a change of one error
reaches all states above at once (error-based predictive coding, arXiv:2505.20137). What nothing predicts stays itself.

An error can be measured in standard deviations: z = mu + S e, with S S^T the covariance of a Gaussian node over what
weighs its energy. The energy of all such nodes then is |e|^2 / 2, whatever their precisions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..plan import Law
from .calls import Call, does_alike, filled, tensors
from .held import Held
from .program import Program
from .terms import NodeEnergy, Term

_INSTEAD = "coordinates='states' can be used"


class NoErrors(Exception):
    """A program has no error coordinates; the message says why, and what can be used."""

    @property
    def reason(self) -> str:
        """Why alone."""
        return str(self).removesuffix(f"; {_INSTEAD}")


class Spread:
    """S of one node; 1 where it is not known, or is of another form than the state, which is not `bare`."""

    def __init__(self, program: Program, term: Term, values: Mapping[int, Tensor], bare: bool) -> None:
        node = term.node
        assert node is not None
        shape = program.stand_ins[node.state].shape
        self.known = bare and node.law in (Law.GAUSSIAN, Law.FULL_GAUSSIAN) and term.weight * node.scale > 0
        self.factor: Tensor | None = None  # [n, n], lower triangular
        self.scale: Tensor | float = 1.0
        if not self.known:
            return
        theta = None if node.theta is None else values[node.theta]
        if node.law is Law.FULL_GAUSSIAN:
            self.factor = theta
        elif theta is not None:
            self.scale = torch.exp(0.5 * theta)
        self.scale = self.scale / math.sqrt(term.weight * node.scale)
        for slot in term.sample_weights:  # where one is 0 nothing holds the error, and any measure will do
            weight = values[slot].reshape(-1, *[1] * (len(shape) - 1))
            self.scale = self.scale * torch.where(weight > 0, weight, 1.0).rsqrt()

    def times(self, e: Tensor) -> Tensor:
        """S e."""
        return (e if self.factor is None else e @ self.factor.mT) * self.scale

    def transposed_times(self, g: Tensor) -> Tensor:
        """S^T g."""
        return (g if self.factor is None else g @ self.factor) * self.scale

    def divides(self, d: Tensor) -> Tensor:
        """S^-1 d."""
        d = d / self.scale
        if self.factor is None:
            return d
        n = d.shape[-1]
        return torch.linalg.solve_triangular(self.factor, d.reshape(-1, n).mT, upper=False).mT.reshape(d.shape)


def _is_penalty(term: Term) -> bool:
    """Whether it is an energy of a state by itself, of a law of one's own, whatever predicts that beside."""
    node = term.node
    return node is not None and node.law is Law.EXPRESSION and type(node.prediction) is not int


def prediction_of(program: Program, term: Term) -> int | float:
    """What a node's state is compared with: all that its energy makes of other states before it comes to this one.

    A law of one's own may have been read as one of less, with sums, multiples or an activation in the law.
    """
    node = term.node
    assert node is not None
    if node.law is not Law.EXPRESSION or type(node.prediction) is not int or term.slot is None:
        return node.prediction
    above = [s for s in program.ancestors(term.slot) if node.state in program.ancestors(s)]
    beside = {i for s in above if s in program.producer for i in program.producer[s].inputs if i in program.varying}
    beside -= set(above)
    whole = [i for i in beside if all(i in program.ancestors(other) for other in beside)]
    return whole[0] if whole and node.prediction in program.ancestors(whole[0]) else node.prediction


def predicts(program: Program, term: Term) -> bool:
    """Whether what is taken for the state of a node's energy is its prediction, by the order that energy is written in.

    That changes the energy's gradient where predictions are fixed, and nowhere else.

    Raises:
        NoErrors: either may be.
    """
    node = term.node
    assert node is not None
    if node.turned is False or type(node.prediction) is not int or not _may_be_a_node(program, node.prediction, node):
        return False
    if node.turned is None:
        both = " and ".join(program.in_words(s) for s in (node.state, node.prediction))
        raise NoErrors(
            f"which of {both} predicts the other is not told: z - mu, the energy of a node module, or a function of "
            "pyromancy.functional tells it"
        )
    return True


def _may_be_a_node(program: Program, slot: int, predicted: NodeEnergy) -> bool:
    """Whether a prediction may be a node's state: a free one as it is, or data of its form, made without weights."""
    if slot in program.varying:
        return slot in program.free or program.held(slot) is not None
    forms, above = program.stand_ins, program.ancestors(slot)
    products = ("linear", "product", "addmm", "einsum", "convolution of images")
    return (
        forms[slot].shape == forms[predicted.state].shape
        and not any(i < len(program.leaves) and program.leaves[i].requires_grad for i in above)
        and not any(c.meaning in products for s in above if (c := program.producer.get(s)) is not None)
    )


def _unarranged(program: Program, state: int, mu: int | float) -> tuple[int, int | float | None]:
    """The free state of which a node takes a view, such as rows, and of what its prediction is the same view, or None.

    What is no view of a free state is what it is, and so is its prediction.
    """
    bare, of = state, mu
    while (call := program.producer.get(bare)) is not None and call.meaning in ("reshape", "transpose"):
        bare = call.inputs[0]
        if type(of) is int:
            other = program.producer.get(of)
            if other is None or len(other.inputs) != 1 or not does_alike(call, other):
                return (bare, None) if bare in program.free else (state, mu)
            of = other.inputs[0]
    return (bare, of) if bare in program.free else (state, mu)


class Errors:
    """The states of a program as functions of errors.

    Args:
        program: whose free states are to be written as errors.
        measured: whether errors are measured in standard deviations.

    Attributes:
        terms: those that predict a free state, by its slot.
        predictions: their slots, or numbers, by that of the state.
        held: of such states those of which entries are data, whose errors move nothing.

    Raises:
        NoErrors: a state is predicted twice or by itself, or its energy is not recognised.
    """

    def __init__(self, program: Program, measured: bool = False) -> None:
        self.program, self._measured = program, measured
        self.terms: dict[int, Term] = {}
        self.predictions: dict[int, int | float] = {}
        self.held: dict[int, Held] = {}
        self._views = set[int]()  # states that nodes take in another form
        unknown: list[Term] = []
        beside = [t for t in program.terms if _is_penalty(t)]
        for term in [*(t for t in program.terms if not _is_penalty(t)), *beside]:
            if term.slot is None or term.slot not in program.varying:
                continue
            if term.node is None:
                unknown.append(term)
                continue
            state = term.node.state
            if (held := program.held(state)) is not None:
                state = held.state
                self.held[state] = held
            mu = prediction_of(program, term)
            if state not in program.free:
                state, of = _unarranged(program, state, mu)
                if of is None:
                    told = program.in_words(state)
                    raise NoErrors(f"{told} and its prediction are compared in other forms; {_INSTEAD}")
                self._views, mu = self._views | {state}, of
            if state in program.free:
                if state in self.terms:
                    if _is_penalty(term):
                        continue
                    raise NoErrors(
                        f"{program.in_words(state)} is predicted by two energies, and has no one error; {_INSTEAD}"
                    )
                self._check(term.node, state, mu)
                self.terms[state], self.predictions[state] = term, mu
        for state in sorted(program.free - self.terms.keys()):
            for term in unknown:
                assert term.slot is not None
                if state in program.ancestors(term.slot):
                    raise NoErrors(
                        f"{program.in_words(state)} has no error that is known: the term "
                        f"{program.in_words(term.slot)} is not the energy of a node of a known law; {_INSTEAD}"
                    )
        if not self.terms:
            raise NoErrors(f"no free state is predicted, and so none has an error; {_INSTEAD}")
        # what stands in their places, of which a call may take the form alone before it is known
        stand_ins = ((c.outputs[0], program.held(c.outputs[0])) for c in program.calls)
        self._of_form = {slot: h.state for slot, h in stand_ins if h is not None and h.state in self.held}
        self._to_energy = self._schedule([program.result])
        self._to_states = self._schedule(sorted(program.free))

    def _check(self, node: NodeEnergy, state: int, mu: int | float) -> None:
        """That a state is its prediction and an error of its own shape, and of a spread that is given."""
        forms, told = self.program.stand_ins, self.program.in_words(state)
        if node.theta in self.program.varying:
            raise NoErrors(f"the covariance of {told} depends on a free state; {_INSTEAD}")
        if type(mu) is int:
            z, prediction = forms[state], forms[mu]
            whole = torch.broadcast_shapes(z.shape, prediction.shape)
            if whole != z.shape or prediction.dtype != z.dtype:
                raise NoErrors(
                    f"{told} is {[*z.shape]} {z.dtype}, but its prediction {[*prediction.shape]} "
                    f"{prediction.dtype}; {_INSTEAD}"
                )

    def _schedule(self, wanted: Sequence[int]) -> list[int | Call]:
        """What to compute in order: calls, and states by their slots, of a prediction and an error."""
        program, schedule = self.program, list[int | Call]()
        open_, done = set[int](), set[int]()
        stack = [(slot, False) for slot in reversed(wanted)]
        while stack:
            slot, ready = stack.pop()
            if slot in done:
                continue
            call, term = program.producer.get(slot), self.terms.get(slot)
            if ready:
                open_.discard(slot)
                done.add(slot)
                if term is not None:
                    schedule.append(slot)
                elif call is not None:
                    schedule.append(call)
                    done.update(call.outputs)
                continue
            if slot in open_:
                raise NoErrors(f"states predict one another in a circle, {self._circle(open_)}; {_INSTEAD}")
            open_.add(slot)
            stack.append((slot, True))
            if term is not None:
                mu = self.predictions[slot]
                needed: Sequence[int] = [mu] if type(mu) is int else []
            else:
                needed = call.inputs if call is not None else []
                if slot not in program.varying:  # of states it takes the form, which their errors have
                    needed = [s for s in needed if s not in self.terms and s not in self._of_form]
            stack.extend((s, False) for s in reversed(needed) if s not in done)
        return schedule

    def _circle(self, slots: set[int]) -> str:
        return ", ".join(self.program.in_words(s) for s in sorted(slots & self.terms.keys()))

    def spreads(self, leaves: Sequence[Tensor]) -> dict[int, Spread]:
        """S of every state that is predicted."""
        slots = [s for t in self.terms.values() for s in self._of_spread(t)]
        values = dict(zip(slots, self.program.evaluate(slots, leaves), strict=True))
        return {s: Spread(self.program, term, values, s not in self._views) for s, term in self.terms.items()}

    def _of_spread(self, term: Term) -> list[int]:
        assert term.node is not None
        return [*(() if term.node.theta is None else (term.node.theta,)), *term.sample_weights]

    def _evaluated(self, schedule: list[int | Call], leaves: Sequence[Tensor]) -> dict[int, Tensor]:
        values = dict(enumerate(leaves)) | {slot: leaves[state] for slot, state in self._of_form.items()}
        spreads = self.spreads(leaves) if self._measured else {}
        for item in schedule:
            if isinstance(item, int):
                e = spreads[item].times(leaves[item]) if self._measured else leaves[item]
                values[item] = self._prediction(item, values) + e
            else:
                result = item.function(*filled(item.args, values), **filled(item.kwargs, values))
                for slot, value in zip(item.outputs, tensors(result), strict=True):
                    if slot >= len(leaves):
                        values[slot] = value
        return values

    def _prediction(self, state: int, values: Mapping[int, Tensor]) -> Tensor | float:
        mu = self.predictions[state]
        return values[mu] if type(mu) is int else mu

    def energy(self, leaves: Sequence[Tensor]) -> Tensor:
        """Per sample, of leaves with errors in the places of states."""
        return self._evaluated(self._to_energy, leaves)[self.program.result]

    def states(self, leaves: Sequence[Tensor], free: Sequence[int]) -> list[Tensor]:
        """Those of some slots, of leaves with errors in the places of states."""
        values = self._evaluated(self._to_states, leaves)
        return [values[i] for i in free]

    def known(self, state: int, leaves: Sequence[Tensor]) -> Tensor | None:
        """Which entries of a state are data, if any are."""
        if (held := self.held.get(state)) is None:
            return None
        return held.known(dict(zip([held.mask], self.program.evaluate([held.mask], leaves), strict=True)))

    def errors(self, leaves: Sequence[Tensor], free: Sequence[int]) -> list[Tensor]:
        """The errors of states: where nothing predicts one, itself."""
        slots = [s for i in free if i in self.terms and type(s := self.predictions[i]) is int]
        values = dict(zip(slots, self.program.evaluate(slots, leaves), strict=True))
        found = {i: leaves[i] - self._prediction(i, values) for i in free if i in self.terms}
        if self._measured:
            spreads = self.spreads(leaves)
            found = {i: spreads[i].divides(d) for i, d in found.items()}
        return [found.get(i, leaves[i]) for i in free]
