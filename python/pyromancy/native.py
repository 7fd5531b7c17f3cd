"""Loads the compiled module ``pyromancy._C``, if this install has one.

Importing it registers its kernels with the dispatcher. `MODULE` is None and `REASON` says why where there is none.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType


def _load() -> tuple[ModuleType | None, str]:
    if os.environ.get("PYROMANCY_NATIVE") == "0":
        return None, "PYROMANCY_NATIVE=0 is set"
    try:
        return importlib.import_module("pyromancy._C"), ""
    except ModuleNotFoundError:
        return None, "this install was built without a compiled module (a pure-Python wheel)"
    except ImportError as error:
        return None, f"the compiled module does not load: {error}"


MODULE, REASON = _load()
