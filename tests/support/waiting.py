"""What finds out that the host waits for a GPU."""

import warnings
from contextlib import contextmanager

import torch


@contextmanager
def no_waiting():
    """An error wherever PyTorch would make the host wait for the device."""
    try:
        with warnings.catch_warnings():  # once a process: that it does not find every wait
            warnings.filterwarnings("ignore", "Synchronization debug mode", UserWarning)
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
