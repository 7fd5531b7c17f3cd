"""What executors have in common."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..capture.program import Program
from ..capture.surroundings import has_hooks
from ..methods import Rated
from ..plan import Descent, Stepper
from .replay import Replay, replayed

if TYPE_CHECKING:
    from .objective import Problem


@dataclass(frozen=True)
class Run:
    """What is to be done.

    Attributes:
        steps: number of E-steps.
        lr: their rate; this and the next three are those of `torch.optim.SGD`.
        resume: whether the velocities hold those of earlier steps; else the first gradient starts them.
        record: whether the energies before every step are wanted.
        settle: whether the states were set since the last run, by products that may be rounded in other ways.
        mean: whether `lr` has yet to be divided by the number of energies, which only the executor will know.
        method: what the steps are of, where they are not plain descent; rates above then do not matter.
        rated: what they do beside, of such a method.
        factors: of its rate in every step, or none.
    """

    steps: int
    lr: float
    momentum: float
    dampening: float
    nesterov: bool
    resume: bool
    record: bool
    settle: bool = False
    mean: bool = False
    method: Stepper | Descent | None = None
    rated: Rated | None = None
    factors: Sequence[float] = ()


def check_energy(energy: Tensor, record: bool) -> None:
    """Raise where an energy is no tensor, or not one value per sample that could be recorded."""
    if not isinstance(energy, Tensor):
        raise TypeError(f"energy must return a tensor, got {type(energy).__name__}")
    if record and energy.dim() != 1:
        raise ValueError(
            f"energy must return one value per sample, [B], to be recorded, got shape {tuple(energy.shape)}"
        )


def obstacle_of(wanted: Sequence[Tensor], program: Program) -> str | None:
    """What about tensors, or those that an energy takes, leaves their gradients to autograd."""
    for t in wanted:
        if has_hooks(t):
            slot = next((i for i, leaf in enumerate(program.leaves) if leaf is t), None)
            return f"{'a parameter' if slot is None else program.in_words(slot)} has a gradient hook"
    for slot, t in enumerate(program.leaves):
        if t.grad_fn is not None:
            return f"{program.in_words(slot)}, which the energy takes, is computed from others, outside it"
    return None


class Executor(ABC):
    """Runs E-steps of one captured energy."""

    name: str
    shape: torch.Size | None = None  # of the energy; None where no run has shown it yet

    @functools.cached_property
    def problems(self) -> dict[tuple[str, bool], Problem]:
        """The energy as methods see it that are run stepwise, by their coordinates, and whether errors are measured."""
        return {}

    @abstractmethod
    def run(self, run: Run, velocities: list[Tensor] | None) -> Tensor | None:
        """Run steps on the free states, in place.

        Args:
            run: how many, and how.
            velocities: of the states, in their order, updated in place; None where there is no momentum.

        Returns:
            With `run.record`, the energy of every term before every step, per sample: ``[steps, terms, B]``.
        """

    def gradients(self, wanted: Sequence[Tensor], settle: bool) -> list[Tensor | None] | str:
        """Gradients of the batch-mean energy, or why autograd has to compute them; `settle` as in a run."""
        del wanted, settle
        return "the executor has no gradients of its own"

    @abstractmethod
    def notes(self) -> list[str]:
        """Lines for `InferenceLoop.explain`."""


class ReplayingExecutor(Executor):
    """Runs all steps as one function of the program's leaves and the velocities, which on a GPU is replayed."""

    def __init__(self, program: Program, free: list[int], data: list[int], replay: Replay) -> None:
        self.program, self._free, self._data, self._replay = program, free, data, replay
        self.shape = program.stand_ins[program.result].shape

    @torch.no_grad()
    def run(self, run: Run, velocities: list[Tensor] | None) -> Tensor | None:
        leaves, moving = self.program.leaves, velocities or []
        if replayed(leaves[self._free[0]].device) and not self.program.addresses_memory:
            count = len(leaves)

            def body(tensors: list[Tensor]) -> list[Tensor]:
                return self._infer(tensors[:count], tensors[count:], run)

            written = [*self._free, *range(count, count + len(moving))]
            recorded = self._replay.run(self, run, body, [*leaves, *moving], written, self._data)
        else:
            recorded = self._infer(leaves, moving, run)
        return recorded[0] if run.record else None

    @abstractmethod
    def _infer(self, leaves: list[Tensor], velocities: list[Tensor], run: Run) -> list[Tensor]:
        """All steps on the states among these leaves, without waiting for the device; gives what is recorded."""
