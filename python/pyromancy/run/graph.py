"""Any captured energy: its gradients as traced graphs, run without autograd, invariant calls once a run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx

from .. import functional
from ..capture.capture import NotCapturable
from ..capture.opening import opening
from ..capture.partition import is_fused, learning, module_of, partition, traced
from ..capture.program import Program
from ..capture.schedule import Schedule, Scheduler
from .executor import ReplayingExecutor, Run, obstacle_of
from .replay import Replay
from .start import Start
from .sweep import Sweep

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


def _rest(state: Tensor, share: float) -> Tensor:
    """Up to what size an error of a state may be rounding alone, times a share.

    That is what a sum of products of a sample's size may be rounded by. Samples are looked at by themselves: what one
    is changes no bit of another.
    """
    if not state.numel():
        return state
    if state.dim() > 1:
        inwards = sorted(range(1, state.dim()), key=state.stride, reverse=True)
        rows = state.permute(0, *inwards).flatten(1)  # as they lie
        most = torch.maximum(rows.amax(1), rows.amin(1).neg_()).view(-1, *[1] * (state.dim() - 1))
    else:
        most = state.abs()
    most.mul_(8 * torch.finfo(state.dtype).eps * share)
    return most.masked_fill_(most.isinf(), -1.0).expand_as(state)  # an infinite state goes where its gradient takes it


def _unsteady(graph: fx.Graph) -> bool:
    """Whether it takes a sign, which makes much of an error that is rounding alone."""
    return any(n.target in (aten.sgn.default, aten.sign.default) for n in graph.nodes)


@dataclass(frozen=True)
class _Learning:
    """How the gradients of some leaves are computed.

    Attributes:
        once: computes what no leaf enters.
        schedule: of the rest.
        module: its graph, to be run.
        reached: slots of those that have gradients.
    """

    once: fx.GraphModule
    schedule: Schedule
    module: fx.GraphModule
    reached: list[int]

    @property
    def in_words(self) -> str:
        """What it does, in words."""
        calls, operators = self.schedule.fused
        fused = f"{operators} element-wise operators in {calls} of these"
        return f"{len(self.reached)} tensors in {self.schedule.calls} operator calls, {fused}"


@dataclass(frozen=True)
class _Opening:
    """A sweep and the first E-steps.

    Attributes:
        schedule: of them.
        module: its graph, to be run.
        steps: how many E-steps.
        whole: whether all states move in the next.
    """

    schedule: Schedule
    module: fx.GraphModule
    steps: int
    whole: bool


class GraphExecutor(ReplayingExecutor):
    """Any captured energy: its gradient as a traced graph, run without autograd, invariant calls once a run."""

    name = "graph"

    def __init__(self, program: Program, states: Sequence[Tensor], replay: Replay) -> None:
        slots = {id(t): i for i, t in enumerate(program.leaves)}
        for state in states:
            if not state.is_floating_point():
                raise NotCapturable(f"{program.in_words(slots[id(state)])} is {state.dtype}, not of real numbers")
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
        self._fuses = fit and not _unsteady(self._gradient) and not program.addresses_memory
        self._module = None if self._fuses else module_of(self._gradient)
        # by whether there are velocities, and whether states settle
        self._schedules: dict[tuple[bool, bool], tuple[Schedule, fx.GraphModule]] = {}
        self._learnings: dict[tuple[int, ...], _Learning | str] = {}  # by what learns; or why autograd computes it
        self._kept: list[Tensor] = []  # the leaves as `run_from` took them, for the gradients there
        self._openings: WeakKeyDictionary[Sweep, dict[int, _Opening]] = WeakKeyDictionary()  # by the E-steps wanted
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
            self._steps(leaves, self._once(*leaves), [], Run(1, 0.0, 0.0, 0.0, False, False, False), [])
        except Exception as error:
            raise NotCapturable(f"its gradient cannot be run without autograd: {type(error).__name__}") from error

    def _laid_out(self, leaves: list[Tensor], empty: Collection[int] = ()) -> list[Tensor]:
        """The leaves as the graphs take them; some of them only to be written."""
        leaves = [t.detach() for t in leaves]
        for i, t in enumerate(leaves):
            if t.dim() == 4 and self._channels_last and not t.is_contiguous(memory_format=torch.channels_last):
                copied = torch.empty_like if i in empty else torch.clone
                leaves[i] = copied(t, memory_format=torch.channels_last)
        return leaves

    def _infer(self, given: list[Tensor], velocities: list[Tensor], run: Run) -> list[Tensor]:
        leaves = self._laid_out(given)
        recorded: list[Tensor] = []
        self._steps(leaves, self._once(*leaves), velocities, run, recorded)
        self._put_back(leaves, given)
        return [torch.stack(recorded)] if run.record else []

    def _put_back(self, leaves: list[Tensor], given: list[Tensor]) -> None:
        for i in self._free:
            if leaves[i].data_ptr() != given[i].data_ptr():
                given[i].copy_(leaves[i])

    @torch.no_grad()
    def sweep_of(self, start: Start) -> Sweep:
        """How a function starts a batch, to be one with the steps that follow.

        Raises:
            NotCapturable: it cannot be.
        """
        if not self._fuses:
            raise NotCapturable("the graph is run by operators of their own")
        if not self.program.stand_ins[self.program.result].numel():
            raise NotCapturable("there is no sample")
        sweep = Sweep(start, self.program, self._free)
        self._opening(sweep, 0)
        return sweep

    @torch.no_grad()
    def run_from(self, sweep: Sweep, run: Run) -> None:
        """A sweep, which sets the states, and steps from there."""
        program = self.program
        leaves = self._kept = self._laid_out(program.leaves, self._free)
        invariant, opened = self._once(*leaves), self._opening(sweep, 0 if run.momentum else run.steps)
        memory = opened.schedule.lend(self)
        opened.module(*leaves, *invariant, *self._laid_out(sweep.own()), *memory, run.lr)
        if run.steps > opened.steps:
            velocities = [torch.zeros_like(leaves[i]) for i in self._free if run.momentum]
            left = replace(run, steps=run.steps - opened.steps, settle=not opened.whole)
            self._steps(leaves, invariant, velocities, left, [])
        self._put_back(leaves, program.leaves)

    def forget(self) -> None:
        """Let go of the leaves as `run_from` took them: they may change."""
        self._kept = []

    def _opening(self, sweep: Sweep, steps: int) -> _Opening:
        known = self._openings.setdefault(sweep, {})
        for found in known.values():
            if found.whole and found.steps <= steps:
                return found
        if steps not in known:
            own = self._laid_out(sweep.own())
            given = [*self._laid_out(self.program.leaves), *own]
            graph = opening(self._once.graph, self._gradient, traced(sweep, given), self._free, steps)
            schedule = Scheduler(graph.graph, self._free, opens=True).schedule()
            known[steps] = _Opening(schedule, module_of(schedule.graph), graph.steps, graph.steps < steps)
        return known[steps]

    def _steps(
        self,
        leaves: list[Tensor],
        invariant: Sequence[Tensor],
        velocities: list[Tensor],
        run: Run,
        recorded: list[Tensor],
    ) -> None:
        program = self.program
        if self._fuses:
            schedule, move = self._scheduled(bool(velocities), run.settle)
            memory = schedule.lend(self)
            # no state is moved by more than rounding, as where an energy is a mean and its rate large
            rests = [_rest(leaves[i], 1 / max(1.0, run.lr)) for i in self._free if run.settle]
        for step in range(run.steps):
            if run.record:
                recorded.append(torch.stack(torch.broadcast_tensors(*program.energies(program.terms, leaves))))
            rates = _Rates.of(run, first=step == 0 and not run.resume)
            if self._fuses:
                move(*leaves, *invariant, *velocities, *rests, *memory, *astuple(rates))
            else:
                self._descend(leaves, invariant, velocities, rates)

    def _scheduled(self, velocities: bool, settles: bool) -> tuple[Schedule, fx.GraphModule]:
        kind = velocities, settles
        if kind not in self._schedules:
            schedule = Scheduler(self._gradient, self._free, *kind).schedule()
            self._schedules[kind] = schedule, module_of(schedule.graph)
        return self._schedules[kind]

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

    @torch.no_grad()
    def gradients(self, wanted: Sequence[Tensor], settle: bool) -> list[Tensor | None] | str:
        del settle  # states that are their predictions teach nothing in any case
        program = self.program
        if reason := obstacle_of(wanted, program):
            return reason
        slot_of = {id(t): i for i, t in enumerate(program.leaves)}
        slots = tuple(sorted(slot_of[id(t)] for t in wanted if t.requires_grad and id(t) in slot_of))
        if slots not in self._learnings:
            try:
                self._learnings[slots] = self._learning(slots)
            except NotCapturable as refusal:
                self._learnings[slots] = str(refusal)
        learning = self._learnings[slots]
        if isinstance(learning, str):
            return learning
        found = self._found(learning)
        return [found.get(slot_of.get(id(t), -1)) for t in wanted]

    def _learning(self, slots: Sequence[int]) -> _Learning:
        """How the gradients of leaves are computed, once it has been tried."""
        program = self.program
        if not self._fuses:
            raise NotCapturable("the graph is run by operators of their own")
        if not program.stand_ins[program.result].numel():
            raise NotCapturable("there is no sample")
        leaves = self._laid_out(program.leaves)
        once, graph, reached = learning(program, slots, leaves)
        (output,) = (n for n in graph.nodes if n.op == "output")
        if _unsteady(graph) or not all(is_fused(n) for n in output.all_input_nodes):
            raise NotCapturable("the graph of its gradients is run by operators of their own")
        schedule = Scheduler(graph, self._free, settles=True, learned=reached).schedule()
        found = _Learning(once, schedule, module_of(schedule.graph), reached)
        try:
            self._found(found)
        except Exception as error:
            reason = f"gradients cannot be computed without autograd: {type(error).__name__}"
            raise NotCapturable(reason) from error
        return found

    def _found(self, learning: _Learning) -> dict[int, Tensor]:
        """Gradients of the mean energy, by the slots of leaves."""
        program = self.program
        given = {i: torch.empty_like(program.leaves[i], requires_grad=False) for i in learning.reached}
        leaves = self._kept or self._laid_out(program.leaves)
        rests = [_rest(leaves[i], 1.0) for i in self._free]
        memory = learning.schedule.lend(self)
        learning.module(*leaves, *learning.once(*leaves), *rests, *given.values(), *memory)
        return given

    def notes(self) -> list[str]:
        once = sum(n.op == "call_function" for n in self._once.graph.nodes)
        every, fused = sum(n.op == "call_function" for n in self._gradient.nodes), ""
        if self._schedules:
            schedule = next(reversed(self._schedules.values()))[0]
            every, fused = schedule.calls, f"; {schedule.in_words}"
        begun = [n for of in self._openings.values() for n in of.values()]
        opened = [f"sweep and {n.steps} E-steps in {n.schedule.calls} operator calls" for n in begun if n.steps]
        layout = ["images with their channels last"] if self._channels_last else []
        steps = f"{every} operator calls at every step, {once} once a run{fused}"
        taught = [f"gradients of {n.in_words}" for n in self._learnings.values() if isinstance(n, _Learning)]
        return [*opened[-1:], steps, *taught[-1:], *layout, *self._replay.notes(self)]
