"""What `explain` tells beside what an executor does: how samples stop, and what may not be meant."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .. import functional
from ..capture.lowering import idle
from ..capture.program import Program
from ..methods import Stop
from ..plan import Law
from .executor import Executor
from .reach import names_of


def doubts(
    energy: Callable[[], Tensor], states: Sequence[Tensor], executor: Executor, program: Program | None
) -> list[str]:
    """What may not be meant.

    Args:
        energy: of the states.
        states: the free ones.
        executor: of the energy.
        program: what was captured of it; None where nothing was.
    """
    told = doubts_of_shape(energy, states, executor)
    if program is None:
        return told
    named = names_of(energy)
    laws = {t.node.state: t.node.law for t in program.terms if t.node is not None}
    for slot in idle(program):
        name, law = named.get(id(program.leaves[slot]), "a state"), laws[slot]
        moves = " and moves to its prediction" if law.is_of_distance else ""
        if law in (Law.BERNOULLI, Law.POISSON):
            moves = " and never rests, as its energy has no least"
        told.append(f"{name} predicts nothing{moves}: exclude a target")
    for call in program.calls:
        of_node = call.function is functional.categorical_energy
        if not of_node and call.meaning != "cross_entropy":
            continue
        logits = program.producer.get(call.inputs[of_node])
        if logits is not None and logits.name == "softmax":
            told.append("a cross-entropy takes logits, and is given probabilities, of softmax: leave that out")
    return told


def doubts_of_shape(energy: Callable[[], Tensor], states: Sequence[Tensor], executor: Executor) -> list[str]:
    """What it means that an energy is one number for a whole batch, or that samples share a state, where that is so."""
    told, shape = [], executor.shape
    samples = max((p.shape[0] for p in states if p.dim() > 1), default=1)
    if shape == () and samples > 1:
        told.append(
            f"the energy is one number for states of {samples} samples, not one per sample, [B]: the states descend "
            f"it as it is, a mean over the batch at 1/{samples} of the rate"
        )
    several = shape is not None and len(shape) == 1 and shape[0] > 1
    shared = [p for p in states if p.dim() > 1 and p.shape[0] == 1] if several else []
    if shape is not None and shared:
        named = names_of(energy)
        names = ", ".join(f"{named.get(id(p), 'a state')} {list(p.shape)}" for p in shared)
        told.append(
            f"the energy is of {shape[0]} samples, which share {names}, without a row of their own, and move it "
            "together"
        )
    return told


def stopping_in_words(stop: Stop | None, bound: str, constrained: bool = False) -> list[str]:
    """By what samples stop."""
    if stop is None:
        return []
    if constrained:
        return ["tol by the gradients of steps, or by what sweeps gain; no bound: constraints hold states"]
    if bound.startswith("none: "):
        return [f"tol by what sweeps gain; no bound: {bound.removeprefix('none: ')}"]
    return [f"tol by a bound from {bound}, or by what sweeps gain"]
