"""Energies as methods see them: functions of states or of errors, by autograd or captured."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..capture.bounds import floor, is_gaussian
from ..capture.errors import Errors, NoErrors, Spread, predicts
from ..capture.partition import Energy, evaluated
from ..capture.program import Program
from ..capture.recording import NotCapturable
from ..laws import expression, huber
from ..methods.base import Evaluation, Point, inner, moved
from ..plan import Law
from .evaluator import Evaluator
from .executor import check_energy

_ROUNDING = 1e-4  # a share of a square, in which differences are lost


class Problem(ABC):
    """An objective of methods, and the states that it is of.

    Attributes:
        point: the variables.
        floor: what the energy is above anywhere.
        bound: what `gap` rests on, or why it is infinite.
        costly: whether `gap` takes an evaluation of its own.
        states: the tensors whose the variables are.
        factor: of rates in the step under way.
    """

    point: Point
    states: Sequence[Tensor]
    factor = 1.0
    floor: Tensor | float = -math.inf
    bound = "none: the energy is not captured"
    costly = False

    @abstractmethod
    def begin(self) -> None:
        """For a run, take the variables from the states as they are, and all else that is read."""

    @abstractmethod
    def end(self) -> None:
        """Set the states by the variables."""

    def release(self) -> None:
        """Let go of what `begin` took."""
        self.point = []

    @abstractmethod
    def evaluate(self) -> Evaluation:
        """Energies and gradients at the point."""

    @abstractmethod
    def value(self) -> Tensor:
        """Energies at the point, ``[B]``."""

    @abstractmethod
    def terms(self) -> Tensor:
        """Energies of every term at the point, ``[terms, B]``."""

    def gap(self, found: Evaluation) -> Tensor:
        """A bound on F - F* at the point, where `found` was found, ``[B]``.

        Where none is known it is infinite, but 0 where no step by the gradient leads anywhere.
        """
        return torch.full_like(found.energy, math.inf).masked_fill(inner(found.gradient, found.gradient) == 0, 0.0)


class OnAutograd(Problem):
    """The states of any energy that is one number per sample."""

    def __init__(self, energy: Callable[[], Tensor], states: Sequence[Tensor]) -> None:
        self._energy, self.states = energy, list(states)

    def begin(self) -> None:
        self.point = [p.detach().clone() for p in self.states]

    @torch.no_grad()
    def end(self) -> None:
        for p, x in zip(self.states, self.point, strict=True):
            p.copy_(x)

    def _found(self) -> Tensor:
        self.end()
        energy = self._energy()
        check_energy(energy, record=False)
        check_samples(energy, self.states)
        return energy

    @torch.enable_grad()
    def evaluate(self) -> Evaluation:
        energy = self._found()
        gradients = torch.autograd.grad(energy.sum(), self.states, allow_unused=True)
        return Evaluation(
            energy.detach(),
            [torch.zeros_like(p) if g is None else g for p, g in zip(self.states, gradients, strict=True)],
        )

    @torch.no_grad()
    def value(self) -> Tensor:
        return self._found().detach()

    def terms(self) -> Tensor:
        return self.value().unsqueeze(0)


class Captured(Problem):
    """A captured energy of variables in the places of states, as traced graphs.

    Args:
        program: what was captured.
        states: the free ones, in the order of the variables.
        energy: of leaves with variables in the places of states; None where these are the states themselves.

    Raises:
        NotCapturable: it cannot be traced.
        ValueError: it is not one number per sample.
    """

    def __init__(self, program: Program, states: Sequence[Tensor], energy: Energy | None = None) -> None:
        slots = {id(t): i for i, t in enumerate(program.leaves)}
        self.program, self._free, self.states = program, [slots[id(s)] for s in states], list(states)
        check_samples(program.stand_ins[program.result], states)
        self._energy = energy or (lambda leaves: program.evaluate([program.result], leaves)[0])
        self._on_states = energy is None
        self._both = Evaluator(program, self._free, evaluated(program, self._free, self._energy), self._on_states)
        self._alone: Evaluator | None = None  # the energy, once it is asked for
        self._leaves: list[Tensor] = []

    @torch.no_grad()
    def begin(self) -> None:
        self._leaves = [t.detach() for t in self.program.leaves]
        self._both.begin()
        if self._alone is not None:
            self._alone.release()
        self.point = self._both.copies(self._variables(self._leaves))
        self.floor = floor(self.program, self._leaves)

    @torch.no_grad()
    def end(self) -> None:
        for i, z in zip(self._free, self._states(self._placed()), strict=True):
            self._leaves[i].copy_(z)

    def release(self) -> None:
        super().release()
        self._both.release()
        if self._alone is not None:
            self._alone.release()
        self._leaves = []

    def _placed(self) -> list[Tensor]:
        """The leaves with the variables in the places of states."""
        leaves = self._leaves.copy()
        for i, x in zip(self._free, self.point, strict=True):
            leaves[i] = x
        return leaves

    def _variables(self, leaves: list[Tensor]) -> list[Tensor]:
        """Of states."""
        return [leaves[i] for i in self._free]

    def _states(self, leaves: list[Tensor]) -> list[Tensor]:
        """Of variables in their places."""
        return [leaves[i] for i in self._free]

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        energy, *gradient = self._both(self.point)
        return Evaluation(energy, gradient)

    @torch.no_grad()
    def value(self) -> Tensor:
        if not self._both.is_fused:
            return self._energy(self._placed())
        if self._alone is None:
            self._alone = Evaluator(self.program, self._free, lambda *x: [self._energy(x)], self._on_states)
        if not self._alone.has_begun:
            self._alone.begin()
        return self._alone(self.point)[0]

    @torch.no_grad()
    def terms(self) -> Tensor:
        leaves = self._placed()
        for i, z in zip(self._free, self._states(leaves), strict=True):
            leaves[i] = z
        return torch.stack(torch.broadcast_tensors(*self.program.energies(self.program.terms, leaves)))


class OnErrors(Captured):
    """A captured energy of errors: every state that is predicted is its prediction and an error.

    Args:
        program: what was captured.
        states: the free ones, in the order of the variables.
        measured: whether errors are measured in standard deviations.

    Raises:
        NoErrors: it cannot be written so; the message says why.
        NotCapturable: it cannot be traced.
        ValueError: it is not one number per sample.
    """

    def __init__(self, program: Program, states: Sequence[Tensor], measured: bool = False) -> None:
        self._of = Errors(program, measured)
        super().__init__(program, states, self._of.energy)
        self._measured, self._gaussian = measured, is_gaussian(program)
        self._spreads: dict[int, Spread] = {}
        self._certain: Tensor | bool = False  # whether every error has a precision, or for which samples

    @torch.no_grad()
    def begin(self) -> None:
        super().begin()
        self._spreads = self._of.spreads(self._leaves)
        self._certain = set(self._free) == self._spreads.keys() and all(s.known for s in self._spreads.values())
        for slot in {s for t in self._of.terms.values() for s in t.sample_weights} if self._certain else ():
            self._certain = (self.program.evaluate([slot], self._leaves)[0].reshape(-1) > 0) & self._certain
        if any(self._spreads[i].factor is not None for i in self._of.held):  # whose entries that are data pull others
            self._certain = False
        self.bound = "none: a state has no error, or no precision" if self._certain is False else "errors and gradients"
        nodes = [t.node for t in self.program.terms if t.node is not None]
        bent = next((n for n in nodes if n.state not in self.program.free and not n.law.is_convex), None)
        if bent is not None:
            self._certain = False
            told = self.program.in_words(bent.state)
            self.bound = f"none: the energy of {told} is not known to be convex in its prediction"
        if any(t.node is None and t.slot in self.program.varying for t in self.program.terms):
            self._certain = False
            self.bound = "none: a term of the energy is of no law that is known"

    @torch.no_grad()
    def end(self) -> None:
        for i, z in zip(self._free, self._states(self._placed()), strict=True):
            known = self._of.known(i, self._leaves)
            self._leaves[i].copy_(z if known is None else torch.where(known, self._leaves[i], z))

    def _variables(self, leaves: list[Tensor]) -> list[Tensor]:
        return self._of.errors(leaves, self._free)

    def _states(self, leaves: list[Tensor]) -> list[Tensor]:
        return self._of.states(leaves, self._free)

    @torch.no_grad()
    def gap(self, found: Evaluation) -> Tensor:
        """Exact bounds where networks are linear, as docs/methods.md derives: ``|g|^2 / 2``, and one that is tighter.

        The latter takes all residuals r to be Gaussian: it is F less the best of the dual problem on the line of r.
        """
        if self._certain is False:
            return super().gap(found)
        gradient = found.gradient
        if not self._measured:
            gradient = [self._spreads[i].transposed_times(g) for i, g in zip(self._free, gradient, strict=True)]
        squares = inner(gradient, gradient)
        gap = 0.5 * squares
        above = found.energy - self.floor
        if self._gaussian:
            along = inner(self.point, found.gradient)
            whole = 2 * above - 2 * along + squares
            tighter = 0.5 * (2 * above * squares - along.square()) / whole
            # where clamped residuals feed hardly anything back, both parts are rounding
            gap = torch.minimum(gap, tighter.clamp(min=0).where(whole > _ROUNDING * squares, math.inf))
        return gap.where(torch.as_tensor(self._certain, device=gap.device), super().gap(found))

    def release(self) -> None:
        super().release()
        self._spreads = {}


class OnStates(Captured):
    """The states of a captured energy."""

    def __init__(self, program: Program, states: Sequence[Tensor]) -> None:
        super().__init__(program, states)
        self._errors: OnErrors | None = None
        self._asked = False

    def begin(self) -> None:
        super().begin()
        if self._errors is not None:
            self._errors.begin()

    def release(self) -> None:
        super().release()
        if self._errors is not None:
            self._errors.release()

    @torch.no_grad()
    def gap(self, found: Evaluation) -> Tensor:
        """By the errors of these states, and the energy's gradient for those: an evaluation of its own."""
        if not self._asked:
            self._asked = True
            try:
                self._errors = OnErrors(self.program, self.states, measured=True)
                self._errors.begin()
                self.bound, self.costly = self._errors.bound, True
            except (NoErrors, NotCapturable) as reason:
                self.bound = f"none: {reason.reason if isinstance(reason, NoErrors) else reason}"
        if self._errors is None:
            return super().gap(found)
        self._errors.point = self._errors._variables(self._placed())
        return self._errors.gap(self._errors.evaluate())


class OnFixedPredictions(Problem):
    """The states of a captured energy whose predictions are taken at other states, by autograd.

    Attributes:
        base: those other states.

    Raises:
        NoErrors: a term of the energy is not that of a node.
        ValueError: the energy is not one number per sample.
    """

    base: Point

    def __init__(self, program: Program, states: Sequence[Tensor]) -> None:
        slots = {id(t): i for i, t in enumerate(program.leaves)}
        self.program, self._free, self.states = program, [slots[id(s)] for s in states], list(states)
        check_samples(program.stand_ins[program.result], states)
        self._terms = [t for t in program.terms if t.slot in program.varying]
        for term in self._terms:
            if term.node is None:
                assert term.slot is not None
                raise NoErrors(f"the term {program.in_words(term.slot)} is not the energy of a node of a known law")
            if term.node.state in program.varying - program.free and program.held(term.node.state) is None:
                raise NoErrors(
                    f"{program.in_words(term.node.state)}, which a prediction is of, is no state but computed"
                )
        self._turned = [predicts(program, term) for term in self._terms]

    def begin(self) -> None:
        self.point = [self.program.leaves[i].detach().clone() for i in self._free]

    @torch.no_grad()
    def end(self) -> None:
        for i, z in zip(self._free, self.point, strict=True):
            self.program.leaves[i].copy_(z)

    def _energies(self, states: Sequence[Tensor], leaves: Sequence[Tensor]) -> Tensor:
        """Of nodes of some states, whose predictions come from leaves: ``[B]``."""
        placed = list(leaves)
        for i, z in zip(self._free, states, strict=True):
            placed[i] = z
        total = states[0].new_zeros(len(states[0]))
        for term, turned in zip(self._terms, self._turned, strict=True):
            node = term.node
            assert node is not None
            weights = term.sample_weights + node.sample_weights
            wanted = [*(() if node.theta is None else (node.theta,)), *weights]
            values = dict(zip(wanted, self.program.evaluate(wanted, leaves), strict=True))
            of_state, of_prediction = (leaves, placed) if turned else (placed, leaves)
            (z,) = self.program.evaluate([node.state], of_state)
            if type(node.prediction) is int:
                (mu,) = self.program.evaluate([node.prediction], of_prediction)
            else:
                mu = torch.full_like(z, node.prediction)
            theta = None if node.theta is None else values[node.theta]
            parameter = node.parameter if node.expression is None else node.expression
            energy = term.weight * node.scale * _NODES[node.law](z, mu, theta, parameter)
            energy = energy.flatten(1).sum(1) if energy.dim() > 1 else energy  # of images by laws of vectors
            for slot in weights:
                energy = energy * values[slot].reshape(-1)
            total = total + energy
        return total

    def _leaves(self, base: Sequence[Tensor]) -> list[Tensor]:
        leaves = [t.detach() for t in self.program.leaves]
        for i, z in zip(self._free, base, strict=True):
            leaves[i] = z.detach().requires_grad_()
        return leaves

    @torch.inference_mode(False)
    @torch.enable_grad()
    def evaluate(self) -> Evaluation:
        leaves, states = self._leaves(self.base), [z.detach().requires_grad_() for z in self.point]
        energy = self._energies(states, leaves)
        count = len(states)
        found = torch.autograd.grad(energy.sum(), [*states, *(leaves[i] for i in self._free)], materialize_grads=True)
        return Evaluation(energy.detach(), moved(list(found[:count]), 1.0, list(found[count:])))

    @torch.no_grad()
    def value(self) -> Tensor:
        return self._energies(self.point, self._leaves(self.base))

    @torch.no_grad()
    def terms(self) -> Tensor:
        leaves = self._leaves(self.point)
        return torch.stack(torch.broadcast_tensors(*self.program.energies(self.program.terms, leaves)))

    @torch.inference_mode(False)
    @torch.enable_grad()
    def gradients(self, wanted: Sequence[Tensor], base: Sequence[Tensor]) -> list[Tensor | None]:
        """Of the mean energy of the states as they are, at the predictions of others."""
        program = self.program
        slot_of = {id(t): i for i, t in enumerate(program.leaves)}
        leaves, states = self._leaves(base), [program.leaves[i].detach() for i in self._free]
        slots = [slot_of.get(id(t)) for t in wanted]
        for i in {s for s in slots if s is not None}:
            leaves[i] = leaves[i].requires_grad_()
        constant = [t for t in program.terms if t.slot not in program.varying]
        energy = sum(program.energies(constant, leaves), self._energies(states, leaves))
        of = [s for s in slots if s is not None]
        found = dict(
            zip(of, torch.autograd.grad(energy.mean(), [leaves[s] for s in of], allow_unused=True), strict=True)
        )
        return [None if s is None else found[s] for s in slots]


_Energy = Callable[[Tensor, Tensor, Any, Any], Tensor]
_NODES: dict[Law, _Energy] = {  # of a state, its prediction, theta and the parameter of the law
    Law.GAUSSIAN: lambda z, mu, theta, _: functional.gaussian_energy(z, mu, theta),
    Law.FULL_GAUSSIAN: lambda z, mu, theta, _: functional.multivariate_energy(z, mu, theta),
    Law.LAPLACE: lambda z, mu, theta, _: functional.laplace_energy(z, mu, theta),
    Law.BERNOULLI: lambda z, mu, *_: functional.bernoulli_energy(z, mu),
    Law.POISSON: lambda z, mu, *_: functional.poisson_energy(z, mu),
    Law.STUDENT: lambda z, mu, theta, dof: functional.student_energy(z, mu, theta, dof),
    Law.HUBER: lambda z, mu, _, bound: huber.energy(z, mu, None, 1.0, bound),
    Law.CATEGORICAL: lambda z, mu, *_: functional.categorical_energy(z, mu),
    Law.EXPRESSION: lambda z, mu, theta, of: expression.energy(z, mu, theta, 1.0, of),
}


def check_samples(energy: Tensor, states: Sequence[Tensor]) -> None:
    """Raise where an energy is not one number per sample, or a state not one row for each."""
    if energy.dim() != 1:
        raise ValueError(
            f"energy must return one value per sample, [B], for a method that decides by sample, got shape "
            f"{tuple(energy.shape)}; Descent on states without tol takes any"
        )
    for p in states:
        if p.dim() == 0 or len(p) != len(energy):
            raise ValueError(
                f"params must have one row per sample, {len(energy)}, for a method that decides by sample, got shape "
                f"{tuple(p.shape)}; Descent on states without tol takes any"
            )
