"""The CUDA kernels, compiled for the CPU as plain C++ with emulated threads: their arithmetic, indices and barriers.

What only a device can show (that it launches, how fast it is) is in tests/gpu.
"""

import ast
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import processes
from emulation_flags import CXX, FLAGS, ROOT, TORCH, obstacle

TIMEOUT = 1800  # seconds; a machine may have other work
pytestmark = pytest.mark.slow

if reason := obstacle():
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Kernels and host functions as one library that serves tensors of the CPU."""
    folder = tmp_path_factory.mktemp("emulation")
    cuda = ROOT / "csrc" / "cuda"
    alone = cuda / "chain_plan.cpp"  # it has a Layout, too
    hosts = [*sorted({*cuda.glob("*.cpp")} - {alone}), ROOT / "csrc/layout.cpp", ROOT / "csrc/plan.cpp"]

    def compiled(name, sources, *options):
        """Of sources as one unit, since PyTorch's headers are most of what each of them takes."""
        unit = folder / f"{name}.cpp"
        unit.write_text("".join(f'#include "{source}"\n' for source in sources))
        target = unit.with_suffix(".o")
        run = subprocess.run([CXX, *FLAGS, *options, "-c", unit, "-o", target], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return target

    on_cpu = "-include", "torch_on_cpu.h"
    units = [("host", hosts, *on_cpu), ("alone", [alone], *on_cpu), ("kernels", sorted(cuda.glob("*.cu")))]
    with ThreadPoolExecutor(2) as jobs:
        objects = [*jobs.map(lambda unit: compiled(*unit), units)]
    library = folder / "emulated.so"
    subprocess.run([CXX, "-shared", *objects, "-o", library, f"-L{TORCH / 'lib'}", "-ltorch_cpu"], check=True)
    return library


def in_both_orders(script, library):
    """What a script prints, line by line, with the threads in either order: they must print the same."""
    running = [
        processes.start(Path(__file__).parent / script, library, PYROMANCY_NATIVE="0", OMP_NUM_THREADS="1", **order)
        for order in ({}, {"PYROMANCY_EMULATION_REVERSED": "1"})
    ]
    first, second = (processes.finish(process, timeout=TIMEOUT).splitlines() for process in running)
    assert first == second
    return first


def test_operators_agree_with_float64_whichever_thread_goes_first(library):
    count, _ = in_both_orders("emulated.py", library)
    assert int(count) > 1500


# by name: how steps are taken, and what else the environment says
WAYS = {
    "product-by-product": ("steps", {"PYROMANCY_EMULATED_HOST": "1"}),
    "one-kernel": ("tile", {}),
    "one-kernel-reversed": ("tile", {"PYROMANCY_EMULATION_REVERSED": "1"}),
}


@pytest.fixture(scope="module")
def plans(library):
    """Tests of plans in every way, all of them at once."""
    suites = [ROOT / "tests" / "ops" / f"test_{of}.py" for of in ("learning", "primitives", "own_thetas")]
    running = {
        name: processes.start(
            "-m", "pytest", "-q", "-p", "no:cacheprovider", *suites, PYROMANCY_NATIVE="0", OMP_NUM_THREADS="1",
            PYROMANCY_EMULATED_LIBRARY=str(library), PYROMANCY_CUDA_CHAIN=way, **order,
        )
        for name, (way, order) in WAYS.items()
    }  # fmt: skip
    yield running
    processes.end(running.values())


@pytest.mark.parametrize("way", WAYS)
def test_plans_are_whole(plans, way):
    """What the kernels of the CPU are held to: see ops/test_learning.py and those beside it."""
    printed = processes.finish(plans[way], timeout=TIMEOUT)
    assert int(printed.splitlines()[-1].split(" passed")[0].split()[-1]) > 100, printed


def test_chains_agree_with_float64_whichever_thread_goes_first(library):
    clusters, _ = in_both_orders("emulated_chain.py", library)
    assert {*ast.literal_eval(clusters)} == {1, 2, 4, 8}
