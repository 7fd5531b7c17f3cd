"""Notices when the package this one replaces is installed over it."""

from __future__ import annotations

import importlib.metadata
import warnings

OURS, THEIRS = "pyromancy-kernels", "pyromancy-ai"


def warn_if_shadowed() -> None:
    """Warn where `pyromancy-ai` is installed too: both write to the folder ``pyromancy``, so modules get mixed."""
    try:
        version = importlib.metadata.version(THEIRS)
    except importlib.metadata.PackageNotFoundError:
        return
    warnings.warn(
        f"{THEIRS} {version} is installed over {OURS}, and both provide `pyromancy`, so its modules may be of either; "
        f"run `pip uninstall {THEIRS}`, which takes modules of both with it, and then install {OURS} again",
        RuntimeWarning,
        stacklevel=3,
    )
