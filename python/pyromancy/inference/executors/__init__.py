"""What runs the E-steps: the chain operator, a traced graph without autograd, or autograd itself."""

from .autograd import AutogradExecutor
from .base import Executor, Run, check_energy
from .chain import ChainExecutor
from .graph import GraphExecutor

__all__ = ["AutogradExecutor", "ChainExecutor", "Executor", "GraphExecutor", "Run", "check_energy"]
