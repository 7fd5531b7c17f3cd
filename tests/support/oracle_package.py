"""`pyromancy-ai` 0.0.1 under another name, where the environment says in which folder it lies."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

VARIABLE = "PYROMANCY_ORACLE"
NAME = "pyromancy_ai_oracle"


def folder():
    """The folder that holds the package `pyromancy` of pyromancy-ai; the test is skipped without it."""
    value = os.environ.get(VARIABLE)
    if not value:
        pytest.skip(f"{VARIABLE} does not name the folder that `pip install --target FOLDER pyromancy-ai==0.0.1` made",
                    allow_module_level=True)  # fmt: skip
    package = Path(value) / "pyromancy"
    if not (package / "nodes" / "base.py").exists():  # in this package a folder
        pytest.skip(f"{VARIABLE}={value} holds no pyromancy-ai", allow_module_level=True)
    return package


def load():
    """The package as a module."""
    package = folder()
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            NAME, package / "__init__.py", submodule_search_locations=[str(package)]
        )
        module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[NAME]
