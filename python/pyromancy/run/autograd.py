"""The loop that users write: backward through the energy and a step of SGD, T times."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .executor import Executor, Run, check_energy


class AutogradExecutor(Executor):
    """Any energy at all, as it is."""

    name = "autograd"

    def __init__(self, energy: Callable[[], Tensor], states: Sequence[Tensor], evaluated: Tensor | None = None) -> None:
        self._energy, self._states = energy, list(states)
        self._evaluated = evaluated

    def take_evaluated(self) -> Tensor | None:
        """The energy of the states as they are, where it is known already, once."""
        energy, self._evaluated = self._evaluated, None
        return energy

    def run(self, run: Run, velocities: list[Tensor] | None) -> Tensor | None:
        sgd = torch.optim.SGD(self._states, run.lr, run.momentum, run.dampening, nesterov=run.nesterov)
        if run.resume and velocities is not None:
            for state, velocity in zip(self._states, velocities, strict=True):
                sgd.state[state]["momentum_buffer"] = velocity
        recorded = []
        for _ in range(run.steps):
            sgd.zero_grad()
            with torch.enable_grad():
                energy = self.take_evaluated()
                if energy is None:
                    energy = self._energy()
                check_energy(energy, run.record)
                self.shape = energy.shape
                energy.sum().backward(inputs=self._states)
            if run.record:
                recorded.append(energy.detach().unsqueeze(0))
            if run.mean:
                sgd.param_groups[0]["lr"] = run.lr / max(1, energy.numel())
            sgd.step()
        for state, velocity in zip(self._states, velocities or (), strict=False):
            if (buffer := sgd.state[state].get("momentum_buffer")) is not None:  # else it never had a gradient
                velocity.copy_(buffer.to_dense())  # which it is but for states of sparse gradients
        return torch.stack(recorded) if run.record else None

    def notes(self) -> list[str]:
        return []
