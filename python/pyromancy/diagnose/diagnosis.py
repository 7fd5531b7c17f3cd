"""What `diagnose` found, as a value that says so in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What `diagnose` found, per sample; ``str()`` of it says so in words.

    Attributes:
        energy: the energy F, ``[B]``.
        lambda_max: largest eigenvalue of the Hessian for the free states, ``[B]``. Never above the true one, but for
            rounding: Ritz values lie inside the spectrum.
        lambda_max_error: its error bar, ``[B]``: there is an eigenvalue within it, by the residual of the Ritz vector.
        lambda_min: smallest eigenvalue, ``[B]``, never below the true one.
        lambda_min_error: its error bar, ``[B]``.
        condition: ``lambda_max / lambda_min``, ``[B]``, never above the true one; infinite where the Hessian is known
            to have an eigenvalue that is not positive, as the energy has no single minimum there.
        max_rate: largest rate at which descent is stable, ``2 / (lambda_max + lambda_max_error)``, ``[B]``; infinite
            where no curvature is positive.
        gap: bound on what the energy can still fall, F - F*, ``[B]``; infinite where nothing certifies one.
        certificate: what `gap` rests on, or why there is none.
        equilibrium: for linear networks the energy F* at equilibrium, ``[B]``, NaN where it was not found; else None.
        share: share f of their way to equilibrium that the asked-for E-steps let the states go, ``[B]``; NaN where the
            rate is not stable, None where none were asked for.
        kinks: whether the energy has functions with kinks, such as ReLU. The Hessian is that of the piece then that
            the states are on, and what follows from it holds on that piece.
        unseen: what curvature, rates and the share say nothing of, in words: states that a Laplace node pulls at, as
            much at any distance; empty where there are none.
        steps: the E-steps asked for.
        lr: their rate.
    """

    energy: Tensor
    lambda_max: Tensor
    lambda_max_error: Tensor
    lambda_min: Tensor
    lambda_min_error: Tensor
    condition: Tensor
    max_rate: Tensor
    gap: Tensor
    certificate: str
    equilibrium: Tensor | None
    share: Tensor | None
    kinks: bool
    unseen: str = ""
    steps: int | None = None
    lr: float | None = None

    def __str__(self) -> str:
        count = len(self.energy)
        low, high = self.lambda_min.min().item(), self.lambda_max.max().item()
        lines = [
            f"{count} sample{'s' * (count > 1)}, energy {_middle(self.energy)}. Curvature from {low:.3g} to "
            f"{high:.3g}; descent is stable at rates below {self.max_rate.min().item():.3g}."
        ]
        single, certain = self.condition.isfinite(), self.gap.isfinite()
        if not single.all():
            lines.append(
                f"Not convex, or flat in some direction, around {(~single).sum().item()} of {count} samples: "
                "they have no condition, and descent may end in one of several places."
            )
        if single.any():
            ratio = self.condition[single]
            known = (self.lambda_min_error <= 0.1 * self.lambda_min)[single].all()
            least, more = ("", "") if known else ("at least ", " or more")
            lines.append(
                f"Condition {least}{_middle(ratio)}: descent at its best rate takes about "
                f"{math.ceil(ratio.max().item() * math.log(10) / 2)}{more} steps for a digit of the states."
            )
        if certain.any():
            others = "" if certain.all() else f" for {certain.sum().item()} of {count} samples, none for the others"
            lines.append(f"At most {_middle(self.gap[certain])} above equilibrium, by {self.certificate}{others}.")
        else:
            lines.append(f"How far equilibrium is cannot be certified: {self.certificate}.")
        if self.equilibrium is not None:
            lines.append(f"Linear: the energy at equilibrium is {_middle(self.equilibrium)}.")
        if self.share is not None:
            lines.append(f"{self.steps} E-steps at rate {self.lr:g}: {_regime(self.share)}.")
        if not self.energy.any():
            lines.append("No state is off its prediction, so that nothing is learned: a target may be missing.")
        if self.kinks:
            lines.append("The energy has kinks; this holds on the piece where the states are.")
        if self.unseen:
            lines.append(f"{self.unseen}.")
        return "\n".join(lines)


def _middle(numbers: Tensor) -> str:
    """The median over samples, and the largest where it differs."""
    middle, most = numbers.median().item(), numbers.max().item()
    return f"{middle:.3g}" if f"{middle:.3g}" == f"{most:.3g}" else f"{middle:.3g} (median, at most {most:.3g})"


def _regime(share: Tensor) -> str:
    if share.isnan().any():
        return "the rate is above what is stable, so that the states diverge"
    middle = share.median().item()
    name = "backpropagation-like" if middle < 0.1 else "equilibrium" if middle > 0.9 else "in between"
    return f"{middle:.2f} of the way, {name}"
