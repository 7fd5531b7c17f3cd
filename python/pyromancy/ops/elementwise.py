"""Eager reference of `elementwise_`."""

from __future__ import annotations

from torch import Tensor

from ..laws.expression import FUNCTIONS
from ..plan.activations import ACTIVATIONS
from ..plan.elementwise import arity
from ..plan.expression import Op

_ACTIVATIONS = tuple(ACTIVATIONS.values())


def elementwise_(
    written: list[Tensor], read: list[Tensor], instructions: list[int], results: list[int], numbers: list[float]
) -> None:
    """Run a program on every element, and write some of its values.

    Args:
        written: tensors of one shape, in which the results go; one may be one of those that are read.
        read: tensors of that shape, also expanded ones: the first values.
        instructions: an operation (see `pyromancy.plan.elementwise`) and three values that it reads, by their numbers,
            for each. They make the values behind `read` and `numbers`.
        results: the value of each tensor written.
        numbers: the values behind `read`.
    """
    values = [*read, *(written[0].new_tensor(x) for x in numbers)]
    for i in range(0, len(instructions), 4):
        operation, *of = instructions[i : i + 4]
        values.append(_made(operation, [values[k] for k in of[: arity(operation)]]))
    found = [values[r].clone() if r < len(read) else values[r] for r in results]
    for t, value in zip(written, found, strict=True):
        t.copy_(value)


def _made(operation: int, values: list[Tensor]) -> Tensor:
    if operation < len(Op):
        return FUNCTIONS[Op(operation)](*values)
    value, slope = _ACTIVATIONS[(operation - len(Op)) // 2]
    function = slope if (operation - len(Op)) % 2 else value
    return function(values[0], float(values[-1]))
