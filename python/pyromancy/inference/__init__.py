"""EM below Python: E-steps in `InferenceLoop`, whole batches in `EM`."""

from .em import EM, Part
from .loop import InferenceLoop, Trace

__all__ = ["EM", "InferenceLoop", "Part", "Trace"]
