"""Any captured energy: its gradient as a traced graph, run without autograd, invariant calls once a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor, fx

from .. import functional
from ..capture.capture import NotCapturable
from ..capture.partition import module_of, partition
from ..capture.program import Program
from ..capture.schedule import Schedule, Scheduler
from .executor import ReplayingExecutor, Run
from .replay import Replay

aten = torch.ops.aten


@dataclass(frozen=True)
class _Rates:
    """Of a step ``v <- kept v + taken g; z <- z - lr (gradient g + velocity v)``."""

    lr: float
    kept: float
    taken: float
    gradient: float
    velocity: float

    @classmethod
    def of(cls, run: Run, first: bool) -> _Rates:
        """Those of `torch.optim.SGD`, whose first gradient starts the velocity."""
        kept, taken = (0.0, 1.0) if first else (run.momentum, 1 - run.dampening)
        return cls(run.lr, kept, taken, *((1.0, run.momentum) if run.nesterov else (0.0, 1.0)))


def _rest(state: Tensor, run: Run) -> Tensor:
    """Up to what size gradients may be rounding alone; less than any where a run leaves no state where it is.

    That is what a sum of products of a sample's size may be rounded by, and moves no state by more than that, as where
    an energy is a mean and its rate large. Samples are looked at by themselves: what one is changes no bit of another.
    """
    if not run.settle or not state.numel():
        return state.new_full((), -1.0).expand_as(state)
    most = state.abs()
    if state.dim() > 1:
        most = most.flatten(1).amax(1).view(-1, *[1] * (state.dim() - 1))
    return torch.empty_like(state).copy_(most.mul_(8 * torch.finfo(state.dtype).eps / max(1.0, run.lr)))


class GraphExecutor(ReplayingExecutor):
    """Any captured energy: its gradient as a traced graph, run without autograd, invariant calls once a run."""

    name = "graph"

    def __init__(self, program: Program, states: Sequence[Tensor], replay: Replay) -> None:
        slots = {id(t): i for i, t in enumerate(program.leaves)}
        for state in states:
            if not state.is_floating_point():
                raise NotCapturable(f"{program.told(slots[id(state)])} is {state.dtype}, not of real numbers")
        super().__init__(program, [slots[id(s)] for s in states], program.moving(), replay)
        # The library of convolutions then need not reorder its operands, and pooling takes whole vectors.
        convolves = any(call.meaning == "convolution of images" for call in program.calls)
        self._channels_last = convolves and not program.addresses_memory
        if self._channels_last:
            try:
                self._once, self._gradient = partition(program, self._free, self._laid_out(program.leaves))
            except NotCapturable:  # the energy may take views that only the usual layout allows
                self._channels_last = False
        if not self._channels_last:
            self._once, self._gradient = partition(program, self._free, self._laid_out(program.leaves))
        fit = all(t.is_cpu and t.dtype in (torch.float32, torch.float64) for t in states)
        # a sign makes much of an error that is rounding alone
        signs = any(n.target in (aten.sgn.default, aten.sign.default) for n in self._gradient.nodes)
        self._fuses = fit and not signs and not program.addresses_memory
        self._module = None if self._fuses else module_of(self._gradient)
        self._schedules: dict[bool, tuple[Schedule, fx.GraphModule]] = {}  # by whether there are velocities
        self._try()

    @torch.no_grad()
    def _try(self) -> None:
        """Some operators can be traced and then not be run without autograd, such as a LSTM of oneDNN's."""
        leaves = self._laid_out(self.program.leaves)
        try:
            if self._module is not None:
                self._module(*leaves, *self._once(*leaves))
                return
            for i in self._free:
                leaves[i] = leaves[i].clone()
            self._steps(leaves, [], Run(1, 0.0, 0.0, 0.0, False, False, False), [])
        except Exception as error:
            raise NotCapturable(f"its gradient cannot be run without autograd: {type(error).__name__}") from error

    def _laid_out(self, leaves: list[Tensor]) -> list[Tensor]:
        """The leaves as the graphs take them."""
        leaves = [t.detach() for t in leaves]
        if not self._channels_last:
            return leaves
        return [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in leaves]

    def _infer(self, given: list[Tensor], velocities: list[Tensor], run: Run) -> list[Tensor]:
        leaves = self._laid_out(given)
        recorded: list[Tensor] = []
        self._steps(leaves, velocities, run, recorded)
        for i in self._free:
            if leaves[i].data_ptr() != given[i].data_ptr():
                given[i].copy_(leaves[i])
        return [torch.stack(recorded)] if run.record else []

    def _steps(self, leaves: list[Tensor], velocities: list[Tensor], run: Run, recorded: list[Tensor]) -> None:
        program, invariant = self.program, self._once(*leaves)
        if self._fuses:
            schedule, move = self._scheduled(bool(velocities))
            memory = schedule.lend()
            rests = [_rest(leaves[i], run) for i in self._free]
        for step in range(run.steps):
            if run.record:
                recorded.append(torch.stack(torch.broadcast_tensors(*program.energies(program.terms, leaves))))
            rates = _Rates.of(run, first=step == 0 and not run.resume)
            if self._fuses:
                move(*leaves, *invariant, *velocities, *rests, *memory, *astuple(rates))
            else:
                self._descend(leaves, invariant, velocities, rates)

    def _scheduled(self, velocities: bool) -> tuple[Schedule, fx.GraphModule]:
        if velocities not in self._schedules:
            schedule = Scheduler(self._gradient, self._free, velocities).schedule()
            self._schedules[velocities] = schedule, module_of(schedule.graph)
        return self._schedules[velocities]

    def _descend(
        self, leaves: list[Tensor], invariant: Sequence[Tensor], velocities: list[Tensor], rates: _Rates
    ) -> None:
        """A step by operators of their own, as on a GPU, where one graph launches them all."""
        assert self._module is not None
        gradients = self._module(*leaves, *invariant)
        for k, (i, gradient) in enumerate(zip(self._free, gradients, strict=True)):
            if velocities:
                velocity = velocities[k]
                velocity.mul_(rates.kept).add_(gradient, alpha=rates.taken)
                gradient = gradient.mul(rates.gradient).add_(velocity, alpha=rates.velocity)
            functional.estep_(leaves[i], gradient, lr=rates.lr)

    def notes(self) -> list[str]:
        once = sum(n.op == "call_function" for n in self._once.graph.nodes)
        every, fused = sum(n.op == "call_function" for n in self._gradient.nodes), ""
        if self._schedules:
            schedule = next(reversed(self._schedules.values()))[0]
            every, fused = schedule.calls, f"; {schedule.told}"
        layout = ["images with their channels last"] if self._channels_last else []
        return [f"{every} operator calls at every step, {once} once a run{fused}", *layout, *self._replay.notes(self)]
