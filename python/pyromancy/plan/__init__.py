"""What `run_plan_` does, as a value."""

from .codec import decode, encode
from .types import (
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
