"""What an energy is above anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..plan import Law
from .calls import Slot
from .program import Program
from .terms import ENERGIES, NodeEnergy


def floor(program: Program, leaves: Sequence[Tensor]) -> Tensor | float:
    """What the energy is where every state is its prediction, per sample or of all: it is nowhere less.

    Minus infinity where a term is not known to be the energy of a node.
    """
    shape = program.stand_ins[program.result].shape
    constant = [t for t in program.terms if t.slot not in program.varying]
    found: Tensor | float = sum(program.energies(constant, leaves), 0.0)
    for term in program.terms:
        if term.slot is None or term.slot not in program.varying:
            continue
        if term.node is None or not term.weight * term.node.scale >= 0 or not _has_floor(program, term.node):
            return -math.inf
        call = program.producer[term.slot]
        if call.function in ENERGIES and term.node.law.is_of_distance:  # which have more than a deviation
            of, _, *theta = (a.index for a in call.args if isinstance(a, Slot))
            z, *values = program.evaluate([of, *theta, *term.sample_weights], leaves)
            numbers = call.args[3:]  # the law's parameter
            given = [*values[: len(theta)], *[None] * (bool(numbers) - len(theta))]
            found = found + term.of(call.function(z, z, *given, *numbers), shape, *values[len(theta) :])
    return found


def _has_floor(program: Program, node: NodeEnergy) -> bool:
    """Whether no energy is below what it is where the state is its prediction, or of Bernoulli nodes below 0."""
    if node.law is Law.BERNOULLI:
        return node.state not in program.free
    return node.law not in (Law.POISSON, Law.EXPRESSION)


def is_gaussian(program: Program) -> bool:
    """Whether all that free states change is energies of Gaussian nodes."""
    nodes = [t.node for t in program.terms if t.slot in program.varying]
    return all(node is not None and node.law in (Law.GAUSSIAN, Law.FULL_GAUSSIAN) for node in nodes)
