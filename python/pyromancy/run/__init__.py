"""What runs E-steps and whole batches: the loop, EM, and the executors that they choose from."""

from .em import EM
from .epoch import Part
from .loop import InferenceLoop
from .trace import Trace

__all__ = ["EM", "InferenceLoop", "Part", "Trace"]
