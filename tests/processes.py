"""Python in a process of its own, with this package and these helpers on its path."""

import os
import subprocess
import sys
from pathlib import Path

import pyromancy

HELPERS = Path(__file__).parent
PACKAGE = Path(pyromancy.__file__).parent


def python(*arguments, path=(), expect=0, **environment):
    """Run Python and return what it printed, both streams; `path` goes before everything else."""
    variables = {k: v for k, v in os.environ.items() if k not in ("PYROMANCY_NATIVE", "ATEN_CPU_CAPABILITY")}
    search = os.pathsep.join(map(str, (*path, PACKAGE.parent, HELPERS)))
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**variables, "PYTHONPATH": search, "OMP_WAIT_POLICY": "passive", **environment},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode == expect, output
    return output
