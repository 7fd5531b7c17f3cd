"""What can be read of a captured energy at the states as they are: energies of nodes, and errors, by their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..capture.errors import prediction_of
from ..capture.program import Program
from ..capture.terms import Term


def names_of_terms(program: Program) -> tuple[str, ...]:
    """What to call the terms of an energy: those of nodes by their states."""
    return distinct(
        [
            "a number" if t.slot is None else program.in_words(t.slot if t.node is None else t.node.state)
            for t in program.terms
        ]
    )


def distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Names without the ``.value`` of states, and with a number where one comes again."""
    seen, told = Counter[str](), []
    for name in names:
        short = name.removesuffix(".value")
        seen[short] += 1
        told.append(short if seen[short] == 1 else f"{short} ({seen[short]})")
    return tuple(told)


@torch.no_grad()
def energies(program: Program) -> Tensor:
    """Of every term, ``[terms, B]``."""
    shape = program.stand_ins[program.result].shape
    return torch.stack([e.expand(shape) for e in program.energies(program.terms)])


@torch.inference_mode(False)
@torch.enable_grad()
def errors(program: Program) -> dict[str, Tensor]:
    """Of every node whose law is known: minus the gradient of its energy for its prediction."""
    leaves = [t.detach().clone() if t.is_inference() else t.detach() for t in program.leaves]
    leaves = [t.requires_grad_() if t.is_floating_point() or t.is_complex() else t for t in leaves]
    named = zip(names_of_terms(program), program.terms, strict=True)
    return {name: _error(program, term, leaves) for name, term in named if term.node is not None}


def _error(program: Program, term: Term, leaves: Sequence[Tensor]) -> Tensor:
    node = term.node
    assert node is not None
    energy = program.stand_ins[program.result]
    prediction = prediction_of(program, term)
    wanted = list(dict.fromkeys([*(s for s in (prediction, node.state) if type(s) is int), *term.operands]))
    values = dict(zip(wanted, program.evaluate(wanted, leaves), strict=True))
    value = energy.new_ones(()) if term.slot is None else values[term.slot]
    total = term.of(value, energy.shape, *(values[s] for s in term.sample_weights)).sum()
    mu = values.get(prediction) if type(prediction) is int else None
    if mu is not None and mu.requires_grad and mu.shape[:1] == energy.shape[:1]:
        return -torch.autograd.grad(total, mu, materialize_grads=True)[0]
    # of a constant as a prediction, such as the 0 of a prior, what the state is pulled by
    return torch.autograd.grad(total, values[node.state], materialize_grads=True)[0]
