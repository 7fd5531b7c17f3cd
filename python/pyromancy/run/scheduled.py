"""A batch of a graph: its sweep and E-steps as schedules of operator calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .executor import Executor, Run
from .graph import GraphExecutor
from .start import Start

if TYPE_CHECKING:
    from .loop import InferenceLoop


class Scheduled:
    """What sets the states of a batch without calling what the user wrote.

    Raises:
        NotCapturable: it cannot.
    """

    def __init__(self, start: Start, executor: GraphExecutor) -> None:
        self._start, self._executor = start, executor
        self._sweep = executor.sweep_of(start)

    def fits(self, start: Start, executor: Executor) -> bool:
        """Whether it is of these, as they are."""
        return start is self._start and executor is self._executor and not start.stores(self._executor.program)

    def run(self, loop: InferenceLoop, steps: int) -> None:
        """Set the states by a sweep, and take E-steps of plain descent or with momentum."""
        self._sweep.set_clamps()
        run = Run(
            steps, float(loop.lr or 0.0), float(loop.momentum), float(loop.dampening), loop.nesterov, False, False,
            settle=True,
        )  # fmt: skip
        self._executor.run_from(self._sweep, run)
        loop.forget_velocities()
        loop.restore()
        loop.note_divergence_of_states()

    def end(self) -> None:
        """Of the batch, before anything changes that it was of."""
        self._executor.forget()
