"""A captured energy and its gradients at any variables, for methods that are run step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..capture.ends import Ends, settling
from ..capture.memory import dense_strides
from ..capture.partition import is_fused, is_unsteady, module_of, partitioned
from ..capture.program import Program
from ..capture.recording import NotCapturable
from ..capture.schedule import Schedule, scheduled
from .layout import ImageLayout
from .rest import rest


class Evaluator:
    """A function of variables: its first result is per sample, and others, if any, are of each variable.

    On a CPU what works element by element is fused, images have their channels last, and memory stays, as in E-steps.

    Args:
        program: the energy.
        free: slots of the variables.
        function: of the leaves, with variables in the places of the free ones.
        settles: whether variables are states, whose errors are none where they may be rounding alone.

    Attributes:
        has_begun: whether it has taken what it reads beside variables.

    Raises:
        NotCapturable: it cannot be traced, or not be run without autograd.
    """

    def __init__(
        self, program: Program, free: Sequence[int], function: Callable[..., list[Tensor]], settles: bool
    ) -> None:
        self._program, self._free = program, list(free)
        layout = ImageLayout(program)
        self._once, graph = layout.traced(lambda laid: partitioned(function, free, laid), program.leaves)
        (output,) = (n for n in graph.nodes if n.op == "output")
        results = list(output.args[0])
        self._schedule: Schedule | None = None
        if not program.addresses_memory and not is_unsteady(graph) and all(map(is_fused, results)):
            # products may be rounded in other ways than those that have set states and targets
            self._settling = [i for i in settling(graph, len(program.leaves)) if settles or i not in self._free]
            self._layout = layout
            self._forms = [n.meta["val"] for n in results]
            self._schedule = scheduled(Ends(graph, free, settles=self._settling, gives=results))
            graph = self._schedule.graph
        else:
            self._settling, self._layout = [], ImageLayout(program)
            self._layout.channels_last = False
            self._once, graph = partitioned(function, free, self._layout.of(program.leaves), False)
        self._module = module_of(graph)
        self._leaves: list[Tensor] = []
        self._invariant: Sequence[Tensor] = ()
        self._rests: list[Tensor] = []
        try:  # some operators can be traced and then not be run without autograd
            self.begin()
            self([program.leaves[i].detach() for i in free])
        except Exception as error:
            raise NotCapturable(f"its gradient cannot be run without autograd: {type(error).__name__}") from error
        self.release()

    @torch.no_grad()
    def begin(self) -> None:
        """Take all else that is read, as it is now."""
        self.has_begun = True
        self._leaves = self._layout.of(self._program.leaves)
        self._invariant = self._once(*self._leaves)
        self._rests = [rest(self._leaves[i], 1.0) for i in self._settling]

    def copies(self, variables: Sequence[Tensor]) -> list[Tensor]:
        """Copies of variables that lie as they are taken."""
        laid = self._layout.of(variables)
        return [a if a.stride() != x.stride() else x.clone() for a, x in zip(laid, variables, strict=True)]

    def release(self) -> None:
        """Let go of what `begin` took."""
        self.has_begun = False
        self._leaves, self._invariant, self._rests = [], (), []

    @property
    def is_fused(self) -> bool:
        """Whether what works element by element is."""
        return self._schedule is not None

    @torch.no_grad()
    def __call__(self, point: Sequence[Tensor]) -> list[Tensor]:
        """The results at variables: those of variables lie as these do."""
        leaves = self._leaves.copy()
        for i, x in zip(self._free, self._layout.of(point), strict=True):
            leaves[i] = x
        schedule = self._schedule
        if schedule is None:
            return list(self._module(*leaves, *self._invariant))
        found = [torch.empty_strided(t.shape, dense_strides(t), dtype=t.dtype) for t in self._forms]
        self._module(*leaves, *self._invariant, *self._rests, *found, *schedule.lend(self._program))
        for i, x in zip(range(1, len(found)), point, strict=False):
            if found[i].stride() != x.stride():
                found[i] = torch.empty_like(x).copy_(found[i])
        return found
