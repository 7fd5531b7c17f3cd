"""Runs any method on any objective, step by step, until every sample is at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..methods import Method, Stop
from ..methods.base import chosen
from ..methods.stop import Progress
from .objective import Problem

_RARELY = 5  # steps between two looks at a bound that takes an evaluation of its own


@dataclass
class Resumed:
    """What goes on from run to run, as long as no state is set.

    Attributes:
        state: the method's.
        steps: that were made so far.
        progress: towards a tolerance, where there was one.
    """

    state: Any
    steps: int = 0
    progress: Progress | None = None


@dataclass(frozen=True)
class Outcome:
    """What a run did.

    Attributes:
        steps: sweeps that were made.
        energies: of every term before every step and after the last, ``[steps + 1, terms, B]``, where recorded.
        taken: sweeps of every sample until it was found to be at its end, int64 ``[B]``.
        converged: whether it is at its end, ``[B]``; None without a tolerance.
        resumed: what goes on.
    """

    steps: int
    energies: Tensor | None
    taken: Tensor
    converged: Tensor | None
    resumed: Resumed


@torch.no_grad()
def run(
    method: Method,
    problem: Problem,
    steps: int,
    stop: Stop | None = None,
    record: bool = False,
    resumed: Resumed | None = None,
    watch: Callable[[int], None] | None = None,
) -> Outcome:
    """Move a problem's states.

    Args:
        method: how.
        problem: the objective, and its states.
        steps: at most how many.
        stop: when a sample is at its end, and stays where it was looked at; None runs all steps.
        record: whether the energies before every step and after the last are wanted.
        resumed: what goes on from an earlier run; None starts anew.
        watch: called before the first step and after each, with the number of steps taken and the states set.
    """
    made = 0 if resumed is None else resumed.steps
    factors = method.factors(made, steps)
    problem.begin()
    x = problem.point[0]
    taken = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    recorded: list[Tensor] = []
    count, progress = 0, None
    try:
        if resumed is None:
            state = method.begin(problem)
        else:
            state, progress = resumed.state, resumed.progress
        if progress is not None:
            state = chosen(progress.done, method.begin(problem), state)
            progress = progress._replace(done=torch.zeros_like(progress.done))
        if watch is not None:
            watch(0)
        while count < steps:
            if record:
                recorded.append(problem.terms())
            before = problem.point, state
            problem.factor = factors[count] if factors else 1.0
            found, state = method.look(problem, state)
            count += 1
            if stop is None:
                taken += 1
                state = method.move(problem, state, found)
            else:
                energy = found.energy + method.penalty(problem)
                progress = progress or stop.begin(energy)
                problem.point, state = chosen(progress.done, before, (problem.point, state))
                taken += ~progress.done
                rests = method.is_constrained or (problem.costly and count % _RARELY != 1)
                gap = torch.full_like(found.energy, torch.inf) if rests else problem.gap(found)
                resting = progress.done
                left = method.left(problem, found) if problem.factor > 0 else None
                progress = stop.look(progress, energy, gap, method.swings, left)
                stays = problem.point, state
                state = method.move(problem, state, found)
                # what constraints hold ends where they have put it, and not where it was looked at
                stay = resting if method.is_constrained else progress.done
                problem.point, state = chosen(stay, stays, (problem.point, state))
                if bool(progress.done.all()):
                    break
            if watch is not None:
                problem.end()
                watch(count)
        rest = problem.point
        if count:
            method.end(problem, state)
        if progress is not None:
            problem.point = chosen(progress.done, rest, problem.point)
        energies = None
        if record:
            energies = torch.stack([*recorded, problem.terms()])
    finally:  # what was done before an interruption stays
        if count:
            problem.end()
        problem.release()
    converged = None if stop is None or progress is None else progress.done
    return Outcome(count, energies, taken, converged, Resumed(state, made + count, progress))
