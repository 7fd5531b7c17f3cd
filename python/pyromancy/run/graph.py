"""Any captured energy: its gradients as traced graphs, run without autograd, invariant calls once a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx

from .. import functional
from ..capture.ends import Ends
from ..capture.opening import opening
from ..capture.partition import is_fused, is_unsteady, learning, module_of, partition, traced
from ..capture.program import Program
from ..capture.recording import NotCapturable
from ..capture.schedule import Schedule, scheduled
from .executor import ReplayingExecutor, Run, obstacle_of
from .layout import ImageLayout
from .replay import Replay
from .rest import rest
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
        self._layout = ImageLayout(program)
        self._once, self._gradient = self._layout.traced(
            lambda laid: partition(program, self._free, laid), program.leaves
        )
        fit = all(t.is_cpu and t.dtype in (torch.float32, torch.float64) for t in states)
        self._fuses = fit and not is_unsteady(self._gradient) and not program.addresses_memory
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
        leaves = self._layout.of(self.program.leaves)
        try:
            invariant = self._once(*leaves)
            if self._fuses:
                self._schedule(leaves, invariant, (False, False))
            if self._module is not None:
                self._module(*leaves, *invariant)
        except Exception as error:
            raise NotCapturable(f"its gradient cannot be run without autograd: {type(error).__name__}") from error

    def _schedule(self, leaves: list[Tensor], invariant: Sequence[Tensor], kind: tuple[bool, bool]) -> None:
        """Schedule a step, and try it on copies of the states; where it cannot be, operators of their own run steps."""
        velocities, settles = kind
        states = [leaves[i] for i in self._free]
        try:
            schedule = scheduled(Ends(self._gradient, self._free, velocities, self._free if settles else ()))
            move = module_of(schedule.graph)
            copies = list(leaves)
            for i, state in zip(self._free, states, strict=True):
                copies[i] = state.clone()
            resting = [torch.zeros_like(z) for z in states if velocities]
            rests = [rest(z, 1.0) for z in states if settles]
            move(*copies, *invariant, *resting, *rests, *schedule.lend(self.program), *astuple(_Rates(*[0.0] * 5)))
        except Exception:
            self._fuses, self._module = False, module_of(self._gradient)
        else:
            self._schedules[kind] = schedule, move

    def _infer(self, given: list[Tensor], velocities: list[Tensor], run: Run) -> list[Tensor]:
        leaves = self._layout.of(given)
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
        leaves = self._kept = self._layout.of(program.leaves, self._free)
        invariant, opened = self._once(*leaves), self._opening(sweep, 0 if run.momentum else run.steps)
        memory = opened.schedule.lend(self.program)
        opened.module(*leaves, *invariant, *self._layout.of(sweep.own()), *memory, run.lr)
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
            own = self._layout.of(sweep.own())
            given = [*self._layout.of(self.program.leaves), *own]
            graph = opening(self._once.graph, self._gradient, traced(sweep, given), self._free, steps)
            schedule = scheduled(Ends(graph.graph, self._free, opens=True))
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
        program, kind = self.program, (bool(velocities), run.settle)
        if self._fuses and kind not in self._schedules:
            self._schedule(leaves, invariant, kind)
        if self._fuses:
            schedule, move = self._schedules[kind]
            memory = schedule.lend(self.program)
            # no state is moved by more than rounding, as where an energy is a mean and its rate large
            rests = [rest(leaves[i], 1 / max(1.0, run.lr)) for i in self._free if run.settle]
        for step in range(run.steps):
            if run.record:
                recorded.append(torch.stack(torch.broadcast_tensors(*program.energies(program.terms, leaves))))
            rates = _Rates.of(run, first=step == 0 and not run.resume)
            if self._fuses:
                move(*leaves, *invariant, *velocities, *rests, *memory, *astuple(rates))
            else:
                self._descend(leaves, invariant, velocities, rates)

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
        leaves = self._layout.of(program.leaves)
        once, graph, reached = learning(program, slots, leaves)
        (output,) = (n for n in graph.nodes if n.op == "output")
        if is_unsteady(graph) or not all(is_fused(n) for n in output.all_input_nodes):
            raise NotCapturable("the graph of its gradients is run by operators of their own")
        inputs = [n for n in graph.nodes if n.op == "placeholder"]
        schedule = scheduled(Ends(graph, self._free, settles=self._free, gives=[inputs[i] for i in reached]))
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
        leaves = self._kept or self._layout.of(program.leaves)
        rests = [rest(leaves[i], 1.0) for i in self._free]
        memory = learning.schedule.lend(self.program)
        learning.module(*leaves, *learning.once(*leaves), *rests, *given.values(), *memory)
        return given

    def notes(self) -> list[str]:
        once = sum(n.op == "call_function" for n in self._once.graph.nodes)
        every, fused = sum(n.op == "call_function" for n in self._gradient.nodes), ""
        if self._fuses:
            schedule = next(reversed(self._schedules.values()))[0]
            every, fused = schedule.calls, f"; {schedule.in_words}"
        begun = [n for of in self._openings.values() for n in of.values()]
        opened = [f"sweep and {n.steps} E-steps in {n.schedule.calls} operator calls" for n in begun if n.steps]
        layout = ["images with their channels last"] if self._layout.channels_last else []
        steps = f"{every} operator calls at every step, {once} once a run{fused}"
        taught = [f"gradients of {n.in_words}" for n in self._learnings.values() if isinstance(n, _Learning)]
        return [*opened[-1:], steps, *taught[-1:], *layout, *self._replay.notes(self)]
