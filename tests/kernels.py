"""Which kernels tests of plans run: a backend's, or those for GPUs where they are compiled for the CPU."""

import ctypes
import os
from contextlib import contextmanager

import torch

from pyromancy import backends

EMULATED = os.environ.get("PYROMANCY_EMULATED_LIBRARY")


@contextmanager
def running(backend):
    """Inside a ``with`` block, run a backend's kernels; "emulated" loads the library, for good."""
    if backend == "emulated":
        torch.ops.load_library(EMULATED)
        yield
        in_one_kernel = sum((ctypes.c_int64 * 9).in_dll(ctypes.CDLL(EMULATED), "emulated_launches"))
        assert (in_one_kernel > 0) == (os.environ["PYROMANCY_CUDA_CHAIN"] == "tile")
        return
    with backends.use(backend):
        yield
