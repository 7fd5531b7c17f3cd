"""Langevin dynamics: states are drawn from the posterior (Monte Carlo predictive coding)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from . import noise
from .base import Evaluation, Objective, check_number
from .rated import Rated, Rates


class _Drawn(NamedTuple):
    seed: Tensor  # [B], of all samples the same
    taken: Tensor  # steps, [B]


@dataclass(frozen=True, repr=False)
class Langevin(Rated):
    """``x <- x - lr g + sqrt(2 lr temperature) noise``, with noise from N(0, 1).

    In the limit of small rates its states are drawn from ``exp(-F / temperature)``: at 1 from the posterior. On a
    quadratic energy of Hessian H their mean is the posterior's at any stable rate, and their covariance
    ``temperature H^-1 (I - lr H / 2)^-1``.

    Args:
        lr: rate, or those of states, as `Descent` has them.
        temperature: of the noise; 0 is descent.
        generator: of one seed for every batch, on the states' device; None is PyTorch's own. The noise is a function
            of that seed, and of the sample's place in the batch, the state, its element and the step: the same whatever
            the number of threads, and to rounding on every device.
        coordinates: "states" or "errors".
        schedule: see `Rated`, as all that follow.
        max_norm: see there.
        constraints: see there; no `Shrink`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: it is out of range; the message says which.
    """

    converges: ClassVar[bool] = False
    no_shrink: ClassVar[str] = "whose noise it would shrink, too; Descent and Accelerated(lr) on states can"

    lr: Rates
    temperature: float = 1.0
    generator: torch.Generator | None = field(default=None, repr=False)
    coordinates: str = "states"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("temperature", self.temperature)
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator or None, got {type(self.generator).__name__}")

    def seed(self, device: torch.device) -> Tensor:
        """One of the noise, drawn from the generator, int64."""
        return torch.randint(noise.SEEDS, (), generator=self.generator, device=device)

    def begin(self, objective: Objective) -> _Drawn:
        x = objective.point[0]
        none = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return _Drawn(self.seed(x.device).expand(len(x)), none)

    def move(self, objective: Objective, state: _Drawn, found: Evaluation) -> _Drawn:
        steps, start = self.steps(objective, found.gradient), objective.point
        drawn = [
            x - rate * g + math.sqrt(2 * rate * self.temperature) * noise.normal(state.seed, state.taken, i, x)
            for i, (x, g, rate) in enumerate(zip(start, steps.gradient, steps.rates, strict=True))
        ]
        objective.point = steps.kept(drawn, start)
        return _Drawn(state.seed, state.taken + 1)
