"""Tests that need an NVIDIA GPU: everything in this folder. They are skipped, with the reason, where there is none."""

import os
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic matrix products ask for

import pytest
import torch

from pyromancy import backends


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(params=backends.BACKENDS, scope="module")
def gpu_backend(request):
    """Every backend that serves a GPU here, each for all tests of a module that ask."""
    works, reason = backends.available(request.param, "cuda")
    if not works:
        pytest.skip(reason)
    with backends.use(request.param):
        yield request.param


@pytest.fixture
def native_gpu():
    """The CUDA kernels; tests of what only they promise are skipped without them."""
    works, reason = backends.available("native", "cuda")
    if not works:
        pytest.skip(reason)
    with backends.use("native"):
        yield
