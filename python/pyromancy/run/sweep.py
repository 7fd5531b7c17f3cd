"""How a batch of a graph starts: what free states are set to, as a function of what the energy takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..capture.program import Program
from ..capture.recording import NotCapturable
from ..nodes.base import StateNode
from .start import Setting, Start


class Sweep:
    """Sets the free states of an energy, as a start function does, from the clamped ones.

    Args:
        start: the function.
        program: the energy.
        free: its free states.

    Attributes:
        clamps: what else the function sets, and to values that know nothing of the free states.

    Raises:
        NotCapturable: it leaves out a free state, or does more to one than set it; or sets a clamped one by them.
    """

    def __init__(self, start: Start, program: Program, free: Sequence[int]) -> None:
        self._start, self._count = start, len(program.leaves)
        slot_of = {id(t): i for i, t in enumerate(program.leaves)}
        of = {slot_of.get(id(s.node.value)): s for s in start.settings}
        for i in free:
            if i not in of:
                raise NotCapturable(f"start does not set the free state {program.in_words(i)}")
            if not _is_plain(of[i], start.program):
                raise NotCapturable(
                    f"start sets {program.in_words(i)} to what is of another form, or a node does otherwise"
                )
        if start.stores(program):
            raise NotCapturable("the energy may take what start computes otherwise than as states")
        self._free = [of[i] for i in free]
        self.clamps = [s for s in start.settings if s not in self._free]
        for s in self.clamps:
            if start.depends_on_states(s):
                raise NotCapturable(f"start sets the state of {s.node._described} by those of others")
        moved = {id(s.node.value): k for k, s in enumerate(self._free)}
        # the function may take the tensors that clamped states are set to, or these states
        same = {s.slot: slot_of.get(id(s.node.value)) for s in self.clamps if _is_plain(s, start.program)}
        self._places: list[tuple[str, int]] = []  # of what the function takes
        self._own: list[int] = []
        for i, leaf in enumerate(start.program.leaves):
            place = same.get(i)
            place = slot_of.get(id(leaf)) if place is None else place
            if id(leaf) in moved:
                self._places.append(("state", moved[id(leaf)]))
            elif place is not None:
                self._places.append(("energy", place))
            else:
                self._places.append(("own", len(self._own)))
                self._own.append(i)

    def own(self) -> list[Tensor]:
        """What it takes beside the energy's tensors."""
        return [self._start.program.leaves[i] for i in self._own]

    def set_clamps(self) -> None:
        """Set all but the free states, to whose places others may hold on."""
        for setting, value in zip(self.clamps, self._start.values(self.clamps), strict=True):
            setting.node.init(value)
        for setting in self._free:
            state = setting.node.value
            state.grad = None
            state.data = torch.empty_like(state)
            torch.autograd.graph.increment_version(state)

    def __call__(self, *leaves: Tensor) -> list[Tensor]:
        """The states, of the energy's tensors and its own, in calls that a gradient would be computed through."""
        at = {"energy": 0, "own": self._count}
        taken = [leaves[0] if kind == "state" else leaves[at[kind] + i] for kind, i in self._places]
        values: dict[StateNode, Tensor] = {}
        with torch.enable_grad():
            for setting in self._start.settings:
                if setting in self._free:
                    (value,) = self._start.program.evaluate([setting.slot], taken)
                    values[setting.node] = value.detach().requires_grad_()
                    taken = [
                        values[setting.node] if place == ("state", self._free.index(setting)) else t
                        for place, t in zip(self._places, taken, strict=True)
                    ]
        return [values[s.node].detach() for s in self._free]


def _is_plain(setting: Setting, program: Program) -> bool:
    """Whether a state is a copy of what it is set to."""
    value, state = program.stand_ins[setting.slot], setting.node.value
    of_its_own = type(setting.node)._refill is not StateNode._refill
    return not of_its_own and value.shape == state.shape and value.dtype == state.dtype
