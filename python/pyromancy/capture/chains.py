"""Chains as values: nodes that edges of activations and Linears join, by the slots of a program."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ..plan import Activation, Law
from ..plan.expression import Expression
from .held import Held


class NotAChain(Exception):
    """A program is no chain; the message says where."""


@dataclass(frozen=True)
class Edge:
    """A part of a prediction, ``after(sum of scale W before(z) + bias_scale b + skip z)``, its tensors as slots.

    Attributes:
        source: the state z.
        target: the state that is predicted.
        weight: W; None where there is no product.
        transposed: whether W is the transpose of the weight.
        mask: what the weight is multiplied by, element by element, of which no gradient is wanted.
        first: of the columns of z that are taken, as many as the weight has, or the target; None takes all. Without a
            weight, scale before(z) itself is the part, or of all columns of z itself the skip.
        slopes: of the activations before and after, the slots of tensors of one element that are their parameters.
    """

    source: int
    target: int
    weight: int | None
    bias: int | None
    before: Activation
    after: Activation
    slopes: tuple[int | None, int | None] = (None, None)
    transposed: bool = False
    scale: float = 1.0
    bias_scale: float = 1.0
    skip: float = 0.0
    mask: int | None = None
    first: int | None = None


@dataclass(frozen=True)
class Node:
    """A state, and what its energy is made of, as slots. `term` is None where it has no energy.

    Attributes:
        state: a leaf, or where no free state changes it what is computed from leaves, as a target may be.
        held: the slot of what stands in the state's place where entries of it are data, and what that is made of.
        free: whether inference updates it.
        term: index of its energy in the program's terms.
        weight: of that term.
        law: of that term.
        theta: the law's parameter, None for 0; of a full covariance its Cholesky factor.
        prediction: a prediction that no edge makes, and no free state changes; a float is it everywhere.
        rest: what edges do not make of a prediction, before its activation: numbers times slots.
        sample_weights: more factors of that term, each of one number per sample, or for all.
        law_parameter: of laws that have one.
        expression: of an EXPRESSION law.
    """

    state: int
    free: bool
    term: int | None = None
    weight: float = 1.0
    law: Law = Law.NONE
    theta: int | None = None
    prediction: int | float | None = None
    sample_weights: tuple[int, ...] = ()
    law_parameter: float = 0.0
    held: tuple[int, Held] | None = None
    expression: Expression | None = None
    rest: tuple[tuple[float, int], ...] = ()

    @property
    def moves_by_errors(self) -> bool:
        """Whether the energy, if there is one, is one of the state less its prediction."""
        return self.law.moves_by_errors(self.expression)


@dataclass(frozen=True)
class Chain:
    """Nodes that edges join, before those that they predict unless they predict one another in a circle."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    @property
    def is_path(self) -> bool:
        """Whether every edge leads from a node to the next."""
        states = [n.state for n in self.nodes]
        return [(e.source, e.target) for e in self.edges] == [*pairwise(states)]
