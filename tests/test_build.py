"""What setup.py decides before it compiles anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
if not (ROOT / "setup.py").exists():
    pytest.skip("this copy has no setup.py", allow_module_level=True)
pytest.importorskip("setuptools")


def setup(tmp_path, **environment):
    """Status and messages of a setup.py that is asked for nothing but the version."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYROMANCY_", "CUDA_"))}
    run = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={**variables, "PATH": str(tmp_path), **environment},
        capture_output=True,
        text=True,
    )
    return run.returncode, run.stderr


def toolkit(folder):
    """An nvcc that is there, and no more."""
    (folder / "bin").mkdir()
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    return nvcc.parent.parent


@pytest.mark.parametrize("choice", ["auto", "0"])
def test_without_nvcc_there_is_no_cuda(tmp_path, choice):
    assert setup(tmp_path, PYROMANCY_CUDA=choice)[0] == 0


def test_cuda_without_nvcc_stops_with_one_sentence(tmp_path):
    status, text = setup(tmp_path, PYROMANCY_CUDA="1")
    assert status == 1
    assert text.strip() == "pyromancy: PYROMANCY_CUDA=1, but nvcc is neither on the PATH nor in CUDA_HOME."


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
@pytest.mark.parametrize("place", ["PATH", "CUDA_HOME"])
def test_cuda_with_a_torch_for_cpus_stops_with_one_sentence(tmp_path, place):
    home = toolkit(tmp_path)
    where = {"PATH": str(home / "bin")} if place == "PATH" else {"CUDA_HOME": str(home)}
    status, text = setup(tmp_path, PYROMANCY_CUDA="1", **where)
    assert status == 1
    assert text.strip() == "pyromancy: PYROMANCY_CUDA=1, but the installed torch is a CPU build."
    assert setup(tmp_path, PYROMANCY_CUDA="auto", **where)[0] == 0


def test_unknown_choice(tmp_path):
    status, text = setup(tmp_path, PYROMANCY_CUDA="yes")
    assert status == 1
    assert text.strip() == "pyromancy: PYROMANCY_CUDA must be auto, 0 or 1, got 'yes'."
