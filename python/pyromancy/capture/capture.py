"""Captures an energy: records what it computes, once, and later checks that it still computes the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .checker import Change, dry_run
from .program import Program, form_of
from .recording import SHARED, NotCapturable, Recording, record, share_memory
from .surroundings import obstacle
from .watch import Guard

_ATTEMPTS = 2  # to capture: the first may have filled caches that the second uses


def capture(energy: Callable[[], Tensor], free: Sequence[Tensor], recording: Recording | None = None) -> Program:
    """Record an energy.

    Args:
        energy: zero-argument callable that returns per-sample energies, ``[B]``.
        free: the states that inference updates.
        recording: of the energy as it is, where there is one already.

    Returns:
        The program, proven to be the same on a second, dry run.

    Raises:
        NotCapturable: the energy depends on more than PyTorch calls on fixed tensors.
        ValueError: it does not depend on one of the states.
    """
    if reason := obstacle(free):
        raise NotCapturable(reason)
    reason = ""
    recording = recording or record(energy)
    for _ in range(_ATTEMPTS):
        program = recording.program(free)
        change = dry_run(energy, program, ()).change
        if change is None:
            return program
        reason, recording = change.reason, change.recording or record(energy)
    raise NotCapturable(f"two runs of the energy differ: {reason}", recording.evaluated)


def check(energy: Callable[[], Tensor], program: Program) -> Change | None:
    """Run an energy dry against a program; None where it still is what was captured.

    Data, which are tensors that nothing learns, may have been replaced by others of the same form: the program then
    takes the new ones.
    """
    if reason := obstacle([program.leaves[i] for i in program.free]):
        return Change(reason)
    for slot, (leaf, form) in enumerate(zip(program.leaves, program.forms, strict=True)):
        if form_of(leaf) != form and slot not in program.gone:
            return Change(f"a tensor of shape {tuple(form[0])} now is {tuple(leaf.shape)} {leaf.dtype}")
    for slot, learns in program.learns.items():
        if program.leaves[slot].requires_grad != learns:
            return Change(f"{program.in_words(slot)} requires {'no' if learns else 'a'} gradient now")
    if program.guard is None:
        program.guard = Guard(energy)
    if program.guard.holds():
        return Change(SHARED) if share_memory(program.leaves, program.free) else None
    checker = dry_run(energy, program, program.data())
    if checker.new and checker.change is None:
        old = {slot: program.leaves[slot] for slot in checker.new}
        program.replace(checker.new)
        checker = dry_run(energy, program, ())  # every use must be of the new one
        if checker.change is None:
            program.gone.clear()
        else:
            program.replace(old)
    if checker.change is None:
        program.guard.ran(program.leaves, checker.traces)
    return checker.change
