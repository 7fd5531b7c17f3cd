"""What an energy is above anywhere, and how curved it is in errors at least."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..plan import Law
from .calls import Slot
from .program import Program
from .terms import ENERGIES, Term


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
        if term.node is None or not term.weight * term.node.scale >= 0:
            return -math.inf
        call = program.producer[term.slot]
        if call.function in ENERGIES:  # which have more than a deviation
            of, _, *theta = (a.index for a in call.args if isinstance(a, Slot))
            z, *values = program.evaluate([of, *theta, *term.sample_weights], leaves)
            normalizer = call.function(z, z, *values[: len(theta)])
            found = found + term.of(normalizer, shape, *values[len(theta) :])
    return found


def curvature(program: Program, terms: Iterable[Term], leaves: Sequence[Tensor]) -> Tensor | None:
    """What the energy's curvature in errors is at least, where networks are linear: the smallest precision.

    Per sample or of all.

    Args:
        program: the energy.
        terms: those that predict the free states.
        leaves: of the program.

    Returns:
        The precision; None where it is not known, as a law is no Gaussian.
    """
    least: Tensor | None = None
    for term in terms:
        node = term.node
        assert node is not None
        if node.law is Law.LAPLACE or not term.weight * node.scale > 0 or node.theta in program.varying:
            return None
        slots = [*(() if node.theta is None else (node.theta,)), *term.sample_weights]
        values = program.evaluate(slots, leaves)
        of = leaves[node.state].new_tensor(term.weight * node.scale)
        if node.theta is not None:
            theta = values.pop(0)
            if node.law is Law.GAUSSIAN:
                of = of * torch.exp(-theta.amax()) if theta.numel() else of
            else:  # the largest variance is the square of the largest singular value of the Cholesky factor
                of = of / torch.linalg.matrix_norm(theta, 2).square()
        for weights in values:
            of = of * weights.reshape(-1).to(of)
        least = of if least is None else torch.minimum(least, of)
    return least
