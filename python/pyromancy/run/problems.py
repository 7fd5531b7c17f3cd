"""Which problem of an energy a method moves: its states, its errors, or states at fixed predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from ..capture.errors import NoErrors
from ..capture.joined import joined
from ..capture.normal import normal
from ..capture.program import Program
from ..capture.recording import NotCapturable
from ..methods import FixedPrediction, Method
from .objective import OnAutograd, OnErrors, OnFixedPredictions, OnStates, Problem

_P = TypeVar("_P", bound=Problem)


def posed(
    method: Method, energy: Callable[[], Tensor], states: Sequence[Tensor], program: Program | None, reason: str
) -> Problem:
    """What a method runs on.

    Args:
        method: which.
        energy: of the states.
        states: the free ones.
        program: what was captured of the energy; None where nothing was.
        reason: why nothing was.

    Raises:
        ValueError: the energy cannot be written as the method needs it.
    """
    on_errors = method.moves == "errors"
    if program is not None and program.addresses_memory:
        reason = "it takes elements by their places in memory"
    elif program is not None:
        try:
            if isinstance(method, FixedPrediction):
                return _of_nodes(program, lambda of: OnFixedPredictions(of, states))
            if not on_errors:
                return OnStates(program, states)
            return posed_on_errors(program, states, method.measures)
        except NoErrors as refusal:
            what = "coordinates='errors'" if on_errors else type(method).__name__
            raise ValueError(f"{what} cannot be used: {refusal}") from None
        except NotCapturable as refusal:
            reason = str(refusal)
    if on_errors or isinstance(method, FixedPrediction):
        what, instead = ("coordinates='errors'", "coordinates='states'") if on_errors else ("fixed predictions", "ZIL")
        raise ValueError(
            f"{what} need an energy that is captured, and this one is not: {reason}; {instead} can be used"
        )
    return OnAutograd(energy, states)


def posed_on_errors(program: Program, states: Sequence[Tensor], measured: bool) -> OnErrors:
    """The errors of an energy, measured in standard deviations or not."""
    return _of_nodes(program, lambda of: OnErrors(of, states, measured))


def _of_nodes(program: Program, posed: Callable[[Program], _P]) -> _P:
    """A problem of a program, or where that tells no errors of the same in its normal form."""
    try:
        return posed(program)
    except NoErrors:
        written = joined(normal(program, program.batch[0] if program.batch else 1))
        if [t.node for t in written.terms] == [t.node for t in program.terms]:
            raise
        return posed(written)
