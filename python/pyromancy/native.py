"""Loads the compiled module ``pyromancy._C``, if this install has one.

Importing it registers its kernels with the dispatcher. `MODULE` is None and `REASON` says why where there is none; a
module that is there and does not load is told with a warning, too, as everything then runs far slower.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType


def _load() -> tuple[ModuleType | None, str]:
    if os.environ.get("PYROMANCY_NATIVE") == "0":
        return None, "PYROMANCY_NATIVE=0 is set"
    built = sorted(p.name for p in Path(__file__).parent.glob("_C.*") if p.suffix in (".so", ".pyd"))
    try:
        return importlib.import_module("pyromancy._C"), ""
    except ModuleNotFoundError:
        if not built:
            return None, "this install was built without a compiled module (a pure-Python wheel)"
        why = f"it is for another Python than this one, {sys.implementation.cache_tag}"
    except (
        Exception
    ) as error:  # of a module that was built for another torch, or only in part, it need not be an ImportError
        why = str(error)
    what = f"the compiled module {', '.join(built) or 'pyromancy._C'} does not load: {why}"
    warnings.warn(
        f"{what}. Everything runs on the reference, which is slower. Install pyromancy-kernels again for this Python "
        "and this torch, or set PYROMANCY_NATIVE=0 to do without the module",
        RuntimeWarning,
        stacklevel=2,
    )
    return None, what


MODULE, REASON = _load()
