"""`Shape`, under the module path that it has in `pyromancy-ai`."""

from .shape import Shape

__all__ = ["Shape"]
