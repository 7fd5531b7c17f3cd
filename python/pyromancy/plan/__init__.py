"""What `run_plan_` does, as a value."""

from .codec import decode, encode
from .types import (
    Accelerated,
    Activation,
    Descent,
    Edge,
    Law,
    Learned,
    Learning,
    MatmulPrecision,
    Node,
    Operand,
    Plan,
    Rule,
    RuleKind,
    Target,
)

__all__ = [
    "Accelerated",
    "Activation",
    "Descent",
    "Edge",
    "Law",
    "Learned",
    "Learning",
    "MatmulPrecision",
    "Node",
    "Operand",
    "Plan",
    "Rule",
    "RuleKind",
    "Target",
    "decode",
    "encode",
]
