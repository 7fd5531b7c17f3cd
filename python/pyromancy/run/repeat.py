"""A batch that is done as the last one was, after no more looking than it takes to tell that it may be."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.optim import optimizer as _torch

from .. import ops
from ..capture.surroundings import has_hooks, obstacle
from ..capture.watch import Entry, Watch, attributes_of, contents, items_of, named_in
from .optimizer import Learner
from .planner import Call, set_rates
from .replay import product_precision
from .start import Setting, Start

if TYPE_CHECKING:
    from .em import EM
    from .fused_batch import FusedBatch

# of a node, in whose place states are set here
_SETTERS = ("_hold", "_check_fits", "_check_is_tensor", "_name_if_empty")
_OPTIONS = ("capturable", "differentiable", "decoupled_weight_decay")  # of an optimizer, which may be missing
_uses: Any = getattr(torch._C, "_storage_Use_Count", None)


class Repeat:
    """What the last batch was done by, for one that differs from it in the values of tensors alone.

    What the energy and `start` can reach, and whatever else `EM.step` goes by, is compared by identity with what it
    was, nearly all of it in the compiled module (capture/watch.py). The operator looks at its tensors' forms itself.

    Args:
        em: of the batch.
        fused: what did it.
        settings: the states that `start` sets, to what it is given or to what it computes.
        states: of all nodes; those not set start at their predictions.
        call: what did the rest.
        learner: what the optimizer was for it.
    """

    def __init__(
        self,
        em: EM,
        fused: FusedBatch,
        settings: Sequence[Setting],
        states: list[Tensor],
        call: Call,
        learner: Learner,
    ) -> None:
        program = em.loop.program
        assert program is not None
        assert program.guard is not None
        start = fused.start_
        assert start.guard is not None
        self._guards = program.guard, start.guard
        self._watches = [guard.watch for guard in self._guards if guard.watch is not None]
        self._entries = _distinct(self._watches, _settings(em))
        self._contents = contents(self._entries)
        self.fused, self._start, self._states = fused, start, states
        placed = [(s, start.place(s)) for s in settings]
        self._clamped = [(s.node, place) for s, place in placed if place is not None]
        self._computed = [s for s, place in placed if place is None]
        self._call, self._learner = call, learner
        self._shapes = [s.shape for s in states]
        self._own = {id(s) for s in states}
        self._free = em.loop.params
        self._parameters = [(p, p.requires_grad) for group in em.optimizer.param_groups for p in group["params"]]
        self._precision = product_precision()
        self._done = 0

    @staticmethod
    def obstacle(em: EM, start: Start, settings: Sequence[Setting]) -> str | None:
        """Why every batch has to be looked at as if it were the first."""
        program = em.loop.program
        if program is None or program.guard is None or start.guard is None:
            return "nothing is watched"
        if program.guard.watch is None or start.guard.watch is None:
            return "the energy or start is run dry"
        if start.reaches(program):
            return "the energy may take what start is given"
        for setting in settings:
            kind = type(setting.node)
            refills = next(owner for owner in kind.__mro__ if "_refill" in vars(owner))
            if any(getattr(kind, name) is not getattr(refills, name) for name in _SETTERS):
                return "a node sets its state in a way of its own"
        return None

    def run(self, em: EM, batch: tuple[Any, ...]) -> bool:
        """Do a batch, if it may be done so; else nothing has happened but that states may be empty."""
        if not self._may_do(batch) or (rates := self._learner.rates(em.optimizer)) is None:
            return False
        set_rates(self._call, rates)
        with torch.no_grad():
            for state in self._states:
                if _is_held(state):
                    state.data = torch.empty_like(state)
            for node, place in self._clamped:
                node._refill(batch[place])
            if self._computed:
                self._start.set_in_order(self._computed, lambda node, value: node._refill(value), batch)
            try:
                ops.run_plan_(*self._call)
            except RuntimeError:
                if _fits(self._call):  # then it may have learned already
                    raise
                return False
        for state in self._states:
            state.grad = None
        for p, learns in self._parameters:
            if learns:
                p.grad = None
        em.loop.forget_velocities()
        self.fused.note_divergence(em)
        self._done += 1
        return True

    def ended(self) -> int:
        """How many batches it has done; those who watch are told how often they were right."""
        for guard in self._guards:
            guard.has_held(self._done)
        return self._done

    def _may_do(self, batch: tuple[Any, ...]) -> bool:
        return (
            self._contents.same() and all(watch.holds_beside() for watch in self._watches)
            and obstacle(self._free) is None and not torch.is_inference_mode_enabled()
            and not torch.compiler.is_compiling() and product_precision() == self._precision
            and all(p.requires_grad == learns and not has_hooks(p) for p, learns in self._parameters)
            and all(s.shape == shape for s, shape in zip(self._states, self._shapes, strict=True))
            and all(s.requires_grad for s in self._free)
            and self._start.takes(batch) and self._start.are_plain(batch)
            and not any(id(t) in self._own for t in batch)
        )  # fmt: skip


def _holders(state: Tensor) -> tuple[int, int, bool]:
    """How many hold the memory of a tensor: in Python, in all, and whether other processes may."""
    storage = state.untyped_storage()
    return sys.getrefcount(storage), _uses(storage._cdata), storage.is_shared()


_ALONE = None if _uses is None else _holders(torch.empty(1, device="cpu"))


def _is_held(state: Tensor) -> bool:
    """Whether somebody else may hold the memory of a state, which then is not written again."""
    return _ALONE is None or _holders(state) != _ALONE


def _fits(call: Call) -> bool:
    """Whether the operator takes the tensors of a call; what it refuses, it refuses before it writes anything."""
    try:
        ops.checks.check("run_plan_", call)
    except RuntimeError:
        return False
    return True


def _settings(em: EM) -> list[Entry]:
    """What decides how a batch is done, beside the energy, `start` and the states."""
    loop, optimizer = em.loop, em.optimizer
    assert loop.program is not None
    entries = [
        named_in(vars(em), "loop", "optimizer", "start", "steps", "incremental", "tol"),
        named_in(
            vars(loop),
            *(name for name in vars(loop) if name not in ("_velocities", "_seen", "_begun", "_taken", "_lost")),
        ),
        named_in(vars(loop._choice), *vars(loop._choice)),
        items_of(loop._params),
        items_of(loop.program.leaves),
        *attributes_of(optimizer),
        items_of(optimizer.param_groups),
        items_of(optimizer.state),
        *(items_of(state) for state in optimizer.state.values()),
        named_in(vars(profiler), "_is_profiler_enabled"),
    ]
    for group in optimizer.param_groups:
        entries += [
            named_in(group, *sorted({*group, *_OPTIONS} - {"lr"})),
            *(items_of(value) for value in group.values() if isinstance(value, list)),
        ]
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    for found in (*hooks, _torch._global_optimizer_pre_hooks, _torch._global_optimizer_post_hooks):
        entries.append(items_of(found))
    return entries


def _distinct(watches: Sequence[Watch], others: list[Entry]) -> list[Entry]:
    """All entries, each once: of modules that both the energy and `start` reach there are two."""
    entries = [entry for watch in watches for entry in watch.entries] + others
    return list({(kind, id(thing), *map(id, held)): (kind, thing, held) for kind, thing, held in entries}.values())
