"""What runs the E-steps: the chain operator, a traced graph without autograd, or autograd itself."""

from .autograd import AutogradExecutor
from .base import Executor, Run
from .chain import ChainExecutor
from .graph import GraphExecutor

__all__ = ["AutogradExecutor", "ChainExecutor", "Executor", "GraphExecutor", "Run"]
