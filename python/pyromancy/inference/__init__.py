"""The E-step loop below Python: `InferenceLoop`."""

from .loop import InferenceLoop, Trace

__all__ = ["InferenceLoop", "Trace"]
