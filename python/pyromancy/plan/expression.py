"""Programs of few instructions: what an energy is of an element of a state z and its prediction mu, and its slopes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

MOST_INSTRUCTIONS = 40
MOST_CONSTANTS = 16


class Op(IntEnum):
    """What an instruction makes of values a, b and c, of which it reads as many as it needs."""

    ADD = 0
    SUB = 1
    MUL = 2
    DIV = 3
    NEG = 4
    ABS = 5
    SIGN = 6  # 0 of 0
    MAX = 7
    MIN = 8
    GREATER = 9  # 1 where a > b, else 0
    AT_LEAST = 10  # 1 where a >= b, else 0
    SELECT = 11  # b where a is not 0, else c
    SQRT = 12
    EXP = 13
    EXPM1 = 14
    LOG = 15
    LOG1P = 16
    TANH = 17
    SIGMOID = 18
    SOFTPLUS = 19  # log(1 + e^a), which is a itself above 20, as PyTorch has it
    LOGCOSH = 20  # log((e^a + e^-a) / 2)
    POW = 21  # a^b, of a that is not negative
    LOGADDEXP = 22  # log(e^a + e^b)

    @property
    def arity(self) -> int:
        """How many values it reads."""
        return _ARITIES.get(self, 1)


_ARITIES = {
    **dict.fromkeys((Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.MAX, Op.MIN, Op.GREATER, Op.AT_LEAST, Op.POW, Op.LOGADDEXP), 2),
    Op.SELECT: 3,
}


@dataclass(frozen=True)
class Instruction:
    """An operation on values by their numbers; those that it does not read are 0."""

    op: Op
    a: int
    b: int = 0
    c: int = 0


@dataclass(frozen=True)
class Expression:
    """An energy per element and its slopes: of its values the first is z, the second mu, the third theta if it has one.

    The constants follow, and then what the instructions compute, one after another.

    Attributes:
        constants: numbers.
        code: instructions, each of values before it.
        slopes: how many instructions, from the first on, the slopes take.
        deviation: the energy, by the number of its value.
        pull: what it grows by with z, likewise.
        push: what it grows by with -mu, likewise; where that is the pull, the energy is one of z - mu.
        moment: what it grows by with theta, likewise; None without a theta.
    """

    constants: tuple[float, ...]
    code: tuple[Instruction, ...]
    slopes: int
    deviation: int
    pull: int
    push: int
    moment: int | None = None

    @property
    def is_of_distance(self) -> bool:
        """Whether the energy is one of z - mu."""
        return self.pull == self.push

    @property
    def has_theta(self) -> bool:
        """Whether there is one."""
        return self.moment is not None

    @property
    def first(self) -> int:
        """The number of the first instruction's value."""
        return 2 + self.has_theta + len(self.constants)
