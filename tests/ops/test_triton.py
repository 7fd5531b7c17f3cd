"""The Triton kernels where there is no GPU: run in Triton's interpreter, and compiled for GPUs that are elsewhere.

Triton reads TRITON_INTERPRET when it is imported, so each happens in a process of its own. tests/gpu has the GPU.
"""

import importlib.util
import json
from pathlib import Path

import pytest

import processes
from pyromancy.ops import triton as kernels

TESTS = Path(__file__).parents[1]
CAPABILITIES = (80, 90, 100)
TIMEOUT = 1800  # seconds; a machine may have other work
KERNELS = ("energy", "residual", "residual_logvar", "finish", "factor", "factor_backward", "solve", "outer",
           "factor_gradient", "descend", "activate", "error", "update", "descend_chain", "rule",
           "categorical")  # fmt: skip
# Registers per thread. At 4 warps a program, 96 leave room for 5 programs on a multiprocessor and 168 for 3: what is
# bound by memory bandwidth needs more of them than what multiplies matrices. All steps of a chain are one program for
# each multiprocessor.
REGISTERS = {"solve": 168, "outer": 168, "residual_logvar": 144, "descend_chain": 255}
MOST = 96

# in the interpreter: every case against float64, layouts, NaN and infinity, fakes, opcheck, gradients, refusals
SUITES = {
    "values": ("ops/test_values.py",),
    "contracts": (
        "ops/test_contracts.py::TestSchema",
        "ops/test_contracts.py::TestGradients",
        "ops/test_contracts.py::TestWritesInPlace",
        "ops/test_contracts.py::TestWrongArguments",
        "test_functional.py::TestNotFinite",
        "test_functional.py::TestEStep",
        "ops/interpreted.py",
    ),
    "chains": ("ops/test_run_plan.py", "ops/interpreted_chain.py"),
    "plans": (
        "ops/test_learning.py",
        "ops/test_weights_and_scales.py",
        "ops/test_skips.py",
        "ops/test_categorical.py",
    ),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]


@pytest.fixture(scope="module")
def running(request):
    """All of them that are to run, at once."""
    items = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    wanted = {value for item in items for value in item.callspec.params.values()}
    options = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "interpreter", "--rootdir", TESTS.parent]
    options += ["-k", "triton or interpreted"]
    options += ["-W", "ignore::RuntimeWarning"]  # NumPy does the arithmetic there, and warns of infinity
    started = {
        name: processes.start(*options, *(TESTS / suite for suite in suites), TRITON_INTERPRET="1")
        for name, suites in SUITES.items()
        if name in wanted
    }
    for capability in wanted.intersection(CAPABILITIES):
        started[capability] = processes.start(TESTS / "support" / "cubins.py", capability, TRITON_INTERPRET="0")
    yield started
    processes.end(started.values())


@pytest.mark.parametrize("suite", SUITES)
def test_interpreted(running, suite):
    last = processes.finish(running[suite], timeout=TIMEOUT).splitlines()[-1]
    assert " passed" in last
    assert int(last.split(" passed")[0].split()[-1]) > 90, last  # who runs nothing passes, too


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_compiles_without_spills(running, capability):
    lines = processes.finish(running[capability], timeout=TIMEOUT).splitlines()
    binaries = [json.loads(line) for line in lines if line.startswith("{")]
    assert {b["kernel"] for b in binaries} == {f"{name}_kernel" for name in KERNELS}
    assert {b["dtype"] for b in binaries} == {"float32", "float64", "bfloat16", "float16"}
    for b in binaries:
        assert b["spilled"] == 0, b
        assert b["registers"] <= REGISTERS.get(b["kernel"].removesuffix("_kernel"), MOST), b
        assert b["shared"] <= 48 * 1024, b


def test_every_kernel_is_in_the_list():
    sources = Path(kernels.__file__).parent.glob("*.py")
    defined = {word.split("(")[0] for path in sources for word in path.read_text().split() if "_kernel(" in word}
    assert defined == {f"{name}_kernel" for name in KERNELS}
