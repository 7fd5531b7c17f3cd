"""How the CUDA sources are compiled for the CPU, with what stands in for CUDA in cuda/emulation."""

import os
import shutil
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "cuda" / "emulation"
TORCH = Path(torch.__file__).parent
CXX = os.environ.get("CXX", "c++")
FLAGS = [
    "-O1", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
    "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPYROMANCY_MAX_BLOCKS=3", f"-I{FOLDER}", f"-I{ROOT / 'csrc'}",
    f"-isystem{TORCH / 'include'}", f"-isystem{TORCH / 'include/torch/csrc/api/include'}",
]  # fmt: skip


def obstacle():
    """Why they cannot be compiled, or None."""
    if shutil.which(CXX) is None:
        return f"no C++ compiler: {CXX} is not on the PATH"
    if not (ROOT / "csrc" / "cuda").is_dir():
        return "this copy has no sources"
    return None
