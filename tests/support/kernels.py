"""Which kernels tests run: a backend's that works here, or those for GPUs where they are compiled for the CPU."""

import ctypes
import os
from contextlib import contextmanager

import torch

from pyromancy import backends

AVAILABLE = [name for name in backends.BACKENDS if backends.available(name)[0]]
EMULATED = os.environ.get("PYROMANCY_EMULATED_LIBRARY")


@contextmanager
def running(backend, may_step=False):
    """Inside a ``with`` block, run a backend's kernels; "emulated" loads the library, for good.

    Args:
        backend: or "emulated".
        may_step: whether no plan need be one that fits into one kernel, where that is asked for.
    """
    if backend == "emulated":
        torch.ops.load_library(EMULATED)
        yield
        in_one_kernel = sum((ctypes.c_int64 * 9).in_dll(ctypes.CDLL(EMULATED), "emulated_launches"))
        asked = os.environ["PYROMANCY_CUDA_CHAIN"] == "tile"
        assert (in_one_kernel > 0) == asked or (asked and may_step)
        return
    with backends.use(backend):
        yield
