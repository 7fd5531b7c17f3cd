"""Any captured energy: its gradient as a traced graph, run without autograd, invariant calls once a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import functional
from ..capture.capture import NotCapturable
from ..capture.partition import partition
from ..capture.program import Program
from .executor import ReplayingExecutor, Run
from .replay import Replay


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
                self._once, self._step = partition(program, self._free, self._laid_out(program.leaves))
            except NotCapturable:  # the energy may take views that only the usual layout allows
                self._channels_last = False
        if not self._channels_last:
            self._once, self._step = partition(program, self._free, self._laid_out(program.leaves))
        self._try()

    @torch.no_grad()
    def _try(self) -> None:
        """Some operators can be traced and then not be run without autograd, such as a LSTM of oneDNN's."""
        leaves = self._laid_out(self.program.leaves)
        try:
            self._step(*leaves, *self._once(*leaves))
        except Exception as error:
            raise NotCapturable(f"its gradient cannot be run without autograd: {type(error).__name__}") from error

    def _laid_out(self, leaves: list[Tensor]) -> list[Tensor]:
        """The leaves as the graphs take them."""
        leaves = [t.detach() for t in leaves]
        if not self._channels_last:
            return leaves
        return [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in leaves]

    def _infer(self, given: list[Tensor], velocities: list[Tensor], run: Run) -> list[Tensor]:
        program = self.program
        leaves = self._laid_out(given)
        states = [leaves[i] for i in self._free]
        invariant = self._once(*leaves)
        recorded = []
        for step in range(run.steps):
            if run.record:
                recorded.append(torch.stack(torch.broadcast_tensors(*program.energies(program.terms, leaves))))
            gradients = self._step(*leaves, *invariant)
            for i, (state, gradient) in enumerate(zip(states, gradients, strict=True)):
                if not velocities:
                    functional.estep_(state, gradient, lr=run.lr)
                    continue
                momentum = run.momentum
                if step == 0 and not run.resume:  # the first gradient starts the velocity
                    velocities[i].copy_(gradient)
                    gradient = gradient * (1 + momentum) if run.nesterov else gradient
                    functional.estep_(state, gradient, lr=run.lr)
                else:
                    functional.estep_(
                        state, gradient, lr=run.lr, momentum=momentum, dampening=run.dampening,
                        nesterov=run.nesterov, buffer=velocities[i],
                    )  # fmt: skip
        for i, state in zip(self._free, states, strict=True):
            if state.data_ptr() != given[i].data_ptr():
                given[i].copy_(state)
        return [torch.stack(recorded)] if run.record else []

    def notes(self) -> list[str]:
        once = sum(n.op == "call_function" for n in self._once.graph.nodes)
        every = sum(n.op == "call_function" for n in self._step.graph.nodes)
        layout = ["images with their channels last"] if self._channels_last else []
        return [f"{every} operator calls at every step, {once} once a run", *layout, *self._replay.notes(self)]
