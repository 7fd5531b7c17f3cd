"""Several energies of one state that are no one law as energies of as many nodes, as chains have one of every node."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .activations import ends_in_activation
from .calls import Call, Slot
from .program import Program
from .terms import Term


def apart(program: Program, differences: bool = True) -> Program:
    """The same program, but that states have one energy each, where the others can be those of nodes beside.

    The second energy of a clamped state z becomes one of another node that holds the same, and of a free state one of
    zeros that ``mu - z`` predicts, which is less z what z is less mu. That needs a law of ``z - mu``, and of what free
    states change no activation around mu, which edges could not make; so the energy that stays has one, if any has.

    Args:
        program: whose terms are `joined`.
        differences: whether chains take the sums of edges that ``mu - z`` makes.
    """
    whose: dict[int, list[int]] = {}
    for i, term in enumerate(program.terms):
        if term.node is not None and term.slot in program.varying:
            whose.setdefault(program.state_of(term.node.state), []).append(i)
    writer, terms = _Writer(program), list(program.terms)
    for state, several in whose.items():
        if state not in program.varying:
            for i in several[1:]:
                terms[i] = writer.beside(terms[i])
        elif differences:
            stays = min(several, key=lambda i: _order(program, terms[i]))
            for i in several:
                if i != stays and _moves(program, terms[i]):
                    terms[i] = writer.of_zeros(terms[i])
    return program if terms == program.terms else writer.written(terms)


def _order(program: Program, term: Term) -> tuple[bool, bool]:
    """The least is that of the energy that most has to stay."""
    mu = term.node and term.node.prediction
    return _moves(program, term), not (type(mu) is int and ends_in_activation(program, mu))


def _moves(program: Program, term: Term) -> bool:
    """Whether an energy of a free state can be that of zeros."""
    node = term.node
    assert node is not None
    if not node.law.moves_by_errors(node.expression):
        return False
    if type(node.prediction) is not int or node.prediction not in program.varying:
        return True
    forms = [program.stand_ins[s] for s in (node.state, node.prediction)]
    return forms[0].shape == forms[1].shape and not ends_in_activation(program, node.prediction)


class _Writer:
    def __init__(self, program: Program) -> None:
        self._program, self._calls = program, list(program.calls)
        self._stand_ins = [t.detach() for t in program.stand_ins]
        self._divided: set[int] = set()

    def written(self, terms: Sequence[Term]) -> Program:
        result = self._program.rewritten(self._calls, self._stand_ins)
        result.terms, result.divided = list(terms), frozenset(self._divided)
        return result

    def beside(self, term: Term) -> Term:
        """An energy of what is the same as its state."""
        assert term.node is not None
        return replace(term, node=replace(term.node, state=self._made(Tensor.detach, term.node.state)))

    def of_zeros(self, term: Term) -> Term:
        """An energy of zeros, which are predicted by its prediction less its state."""
        assert term.node is not None
        z, mu = term.node.state, term.node.prediction
        if type(mu) is not int:
            mu = self._made(torch.full_like, z, mu)
        difference, zeros = self._made(torch.sub, z, Slot(z), of=mu), self._made(torch.zeros_like, z)
        self._divided.add(self._program.state_of(z))
        return replace(term, node=replace(term.node, state=zeros, prediction=difference))

    def _made(self, function: Callable[..., Tensor], like: int, *others: Any, of: int | None = None) -> int:
        """A slot for a function of one, or of another, that has the form of the first."""
        slot, first = len(self._stand_ins), like if of is None else of
        form = self._stand_ins[like]
        self._stand_ins.append(form.new_full((), math.nan).expand(form.shape))
        inputs = (first, *(o.index for o in others if isinstance(o, Slot)))
        self._calls.append(Call(function, (Slot(first), *others), {}, Slot(slot), inputs, (slot,)))
        return slot
