"""Python in a process of its own, with this package and these helpers on its path."""

import os
import subprocess
import sys
from pathlib import Path

import pyromancy

HELPERS = Path(__file__).parent
PACKAGE = Path(pyromancy.__file__).parent
_OF_KERNELS = "PYROMANCY_NATIVE", "ATEN_CPU_CAPABILITY"
AS_HERE = {k: os.environ[k] for k in _OF_KERNELS if k in os.environ}  # for those that have to come to the same bits


def start(*arguments, path=(), pass_fds=(), **environment):
    """Start Python; `path` goes before everything else, and files that are passed stay open."""
    variables = {k: v for k, v in os.environ.items() if k not in _OF_KERNELS}
    variables["PYTHONDONTWRITEBYTECODE"] = ""  # many import what one may keep compiled
    search = os.pathsep.join(map(str, (*path, PACKAGE.parent, HELPERS)))
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env={**variables, "PYTHONPATH": search, "OMP_WAIT_POLICY": "passive", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=pass_fds,
    )


def finish(process, expect=0, timeout=300):
    """Wait for it and return what it printed."""
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == expect, output
    return output


def end(started):
    """End those that are still running, and let go of what they have printed."""
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def python(*arguments, expect=0, **options):
    """Run Python and return what it printed."""
    return finish(start(*arguments, **options), expect)
