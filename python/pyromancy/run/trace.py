"""What a run of E-steps did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False, eq=False)
class Trace:
    """What a run did.

    Attributes:
        steps: number of E-steps.
        energies: with ``record=True``, the energy of every term (node) before every step and after the last, means over
            samples, ``[steps + 1, terms]``; else None. Autograd records the total as one term.
        taken: E-steps of every sample, int64 ``[B]``; None of descent on states without `tol`, and of a batch of `EM`
            that is one call without `tol`, where all samples took all steps.
        converged: with `tol`, whether a sample stopped by itself, ``[B]``; else None.
        names: of the terms whose energies are recorded; those of nodes are called as their states are.
    """

    steps: int
    energies: Tensor | None = None
    taken: Tensor | None = None
    converged: Tensor | None = None
    names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        parts = [f"steps={self.steps}"]
        if self.energies is not None:
            first, last = (float(of.sum()) for of in (self.energies[0], self.energies[-1]))
            parts.append(f"energies={first:.4g} to {last:.4g} of {self.energies.shape[1]} terms")
        if self.taken is not None and len(self.taken):
            parts.append(f"taken={int(self.taken.min())} to {int(self.taken.max())}")
        if self.converged is not None:
            parts.append(f"converged={int(self.converged.sum())} of {len(self.converged)}")
        return f"Trace({', '.join(parts)})"

    @classmethod
    def of(cls, outcome: Tensor) -> Trace:
        """Of what an operator tells of every sample, ``[B, 2]``: the sweeps it took, and 1 where it stopped."""
        taken, stopped = outcome.unbind(1)
        return cls(int(taken.max()) if len(taken) else 0, None, taken.long(), stopped.bool())

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the recorded energies over the steps, by `pyromancy.plots.energies`."""
        from .. import plots  # which needs matplotlib

        return plots.energies(self, ax)
