"""States that are no longer finite: whether they are, where, and what to do about it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from ..capture.program import Program
from ..diagnose import max_rate
from ..methods import Adam, Method
from ..methods.base import rows
from .problems import posed_on_errors
from .reach import names_of


def are_finite(states: Sequence[Tensor]) -> bool:
    """Whether all elements of all states are."""
    # of the extremes, in one pass: each is NaN where an element is
    states = [p.detach() for p in states if p.numel()]
    states = [torch.view_as_real(p) if p.is_complex() else p for p in states]
    return all(math.isfinite(x) for p in states for x in (float(e) for e in torch.aminmax(p)))


def check_finite(states: Sequence[Tensor], energy: Callable[[], Tensor], taken: int) -> None:
    """Raise where a state of an energy is not finite after so many E-steps, and say which element."""
    for p in states:
        wrong = ~p.detach().isfinite()
        if wrong.any():
            place = wrong.nonzero()[0].tolist()
            name = names_of(energy).get(id(p), "a state")
            when = f"after E-step {taken}" if taken else "before the first E-step"
            raise FloatingPointError(f"{name}{place} is {p.detach()[tuple(place)].item()} {when}")


@torch.no_grad()
def in_words(
    method: Method,
    energy: Callable[[], Tensor],
    states: Sequence[Tensor],
    program: Program | None,
    starts: Sequence[Tensor],
    learned: Collection[int],
) -> str:
    """That states are not finite, in a sentence, and in another what to do.

    Args:
        method: that has moved them.
        energy: of the states.
        states: the free ones.
        program: what was captured of the energy; None where nothing was.
        starts: what they were before; where there are none their predictions serve.
        learned: the ids of what has learned from them since.
    """
    rate = getattr(method, "lr", None)
    how = type(method).__name__ + (f"(lr={rate:g})" if isinstance(rate, numbers.Real) else "")
    if states[0].dim() and len({p.shape[:1] for p in states}) == 1:
        wrong = torch.stack([(~rows(p).isfinite()).any(1) for p in states]).any(0)
        told = f"states of {int(wrong.sum())} of {len(wrong)} samples are not finite after {how}"
    else:  # some have no row per sample
        told = f"{sum(not are_finite([p]) for p in states)} of {len(states)} states are not finite after {how}"
    if program is not None and (odd := _not_finite(program)):
        told = f"{told}, nor {'is' if len(odd) == 1 else 'are'} {_few([*map(program.in_words, odd)])}"
        if not all(id(program.leaves[i]) in learned for i in odd):
            return f"{told}, which the energy reads. Make anew what has learned from such states or data"
        return (
            f"{told}, which learn from them. Make these anew, and take a lower rate (pyromancy.max_rate) or "
            "pyromancy.methods.Accelerated(), which needs none; or, where energies grew from batch to batch before, a "
            "lower rate of the optimizer"
        )
    if rate is None:
        return f"{told}. check_finite=True tells where, and when first"
    if method.moves == "errors" or isinstance(method, Adam):  # whose rates are others than those of descent
        return f"{told}. pyromancy.methods.Accelerated() needs no rate"
    ends = [p.detach().clone() for p in states]
    try:
        for p, start in zip(states, starts or _predictions(program, states), strict=True):
            p.copy_(start)
        stable = max_rate(energy, states)
    except Exception:  # what is told stays true without it
        return f"{told}. Take a lower rate, or pyromancy.methods.Accelerated(), which needs none"
    finally:
        for p, end in zip(states, ends, strict=True):
            p.copy_(end)
    if not math.isfinite(stable):
        return f"{told}. pyromancy.max_rate tells beforehand which rates are stable"
    where = "where they began" if starts else "at their predictions"
    return (
        f"{told}. Take a rate below {stable:.3g}, up to which descent is stable {where} (pyromancy.max_rate), or "
        "pyromancy.methods.Accelerated(), which needs none"
    )


def _not_finite(program: Program) -> list[int]:
    """The leaves beside the states that are not finite, but for data that may have gaps."""
    gaps = {s for call in program.calls if call.meaning == "where" for s in call.inputs}
    fixed = [(i, t) for i, t in enumerate(program.leaves) if i not in program.free | gaps]
    return [i for i, t in fixed if t.is_floating_point() and not bool(t.isfinite().all())]


def _predictions(program: Program | None, states: Sequence[Tensor]) -> list[Tensor]:
    """The free states of a forward sweep; 0 where nothing predicts them."""
    assert program is not None
    problem = posed_on_errors(program, states, measured=False)
    problem.begin()
    problem.point = [torch.zeros_like(x) for x in problem.point]
    problem.end()
    problem.release()
    return [p.detach().clone() for p in states]


def _few(names: Sequence[str], most: int = 3) -> str:
    """Some names, and how many more there are."""
    return ", ".join([*names[:most], *([f"and {len(names) - most} more"] if len(names) > most else [])])
