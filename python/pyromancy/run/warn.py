"""Warnings of this layer."""

from __future__ import annotations

import sys
import warnings


def warn(message: str) -> None:
    """Of what was called from outside of this layer, there."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith(f"{__package__}."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)
