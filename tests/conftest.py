"""Fixtures that every test may ask for, and the poison in uninitialised memory that every test gets."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded: on a busy machine spinning costs most

import gc
import signal
from collections import defaultdict
from zlib import crc32

import pytest
import torch

from kernels import AVAILABLE
from pyromancy import backends

try:
    from hypothesis import HealthCheck, settings
except ModuleNotFoundError:  # the tests that need it say so; those in gpu/ run on machines that lack it
    pass
else:
    settings.register_profile(
        "suite", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("suite")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background jobs have it, and what they start
    signal.signal(signal.SIGINT, signal.default_int_handler)


if not torch.cuda.is_available():  # for devices that are not there it keeps a stack trace each, in a millisecond
    torch.manual_seed = lambda seed: torch.default_generator.manual_seed(int(seed))


def pytest_addoption(parser):
    """What `make check` asks for."""
    parser.addoption("--quick", action="store_true", help="one case of every test, and none of those marked slow")


LONG = ("test_triton.py", "test_emulation.py", "test_distribution.py", "test_distributed.py", "test_faults.py")


def pytest_collection_modifyitems(config, items):
    """Few tests that take long come first, so that no process is left with them at the end.

    For --quick keep one case of every test: which, a checksum of its name says, so that all backends have some.
    """
    items.sort(key=lambda item: item.path.name not in LONG)
    if not config.getoption("--quick"):
        return
    cases = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    kept = {of[crc32(test.encode()) % len(of)] for test, of in cases.items() if not of[0].get_closest_marker("slow")}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def pytest_collection_finish():
    """What thousands of tests are made of stays, and the garbage collector need not look through it again and again."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def poison():
    """Fill what `torch.empty` returns with NaN: who forgets to write an element is found out.

    Compiled kernels allocate through aten as well, so the switch of PyTorch reaches them.
    """
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(7).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seed():
    """The same random numbers for every test, whatever ran before it."""
    torch.manual_seed(20)
    return 20


@pytest.fixture(params=AVAILABLE, scope="module")
def backend(request):
    """Every backend that runs on this machine, each for all tests of a module that ask."""
    with backends.use(request.param):
        yield request.param


@pytest.fixture
def native_backend():
    """The compiled kernels; tests of what only they promise are skipped without them."""
    works, reason = backends.available("native")
    if not works:
        pytest.skip(f"no compiled kernels: {reason}")
    with backends.use("native"):
        yield
