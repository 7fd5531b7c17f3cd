"""The CUDA sources compile for sm_90 without a GPU, and the assembler's report is what fast kernels need.

Run as a script, it prints the report as a table.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOME = os.environ.get("CUDA_HOME")
NVCC = (shutil.which("nvcc", path=f"{HOME}/bin") if HOME else None) or shutil.which("nvcc")
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*_kernel.cu"))

# 64 leaves room for 4 blocks of 256 threads on a multiprocessor. Solving twice in double takes 3.
REGISTERS = 64
# The tile of a chain has a multiprocessor for itself, where its block may take 255.
MORE_REGISTERS = {"solve_kernel": 80, "chain_tile_kernel": 192}


def build_flags():
    """The list NVCC of setup.py, which cannot be imported."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "NVCC":
            return ast.literal_eval(node.value)
    raise AssertionError("setup.py has no list NVCC")


def compiled(folder):
    """What the compiler prints: nothing but the assembler's report, or else it failed.

    All sources are one unit, as CUDA's headers are most of what each of them takes.
    """
    unit = Path(folder) / "kernels.cu"
    unit.write_text("".join(f'#include "{source}"\n' for source in SOURCES))
    command = [NVCC, *build_flags(), "-arch=sm_90", "-Xptxas=-v", "-Werror=all-warnings", "-c", unit,
               "-o", unit.with_suffix(".o")]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stderr


def parse(report):
    """Rows of (kernel, its template arguments as mangled, registers, spilled bytes, stack bytes, shared bytes)."""
    rows = []
    for part in report.split("Compiling entry function '")[1:]:
        mangled = part.split("'", 1)[0]
        kernel, arguments = re.search(r"\d([a-z_]+_kernel)(?:I(.*?)EEv|E)", mangled + "EEv").groups("")
        spills = sum(map(int, re.findall(r"(\d+) bytes spill", part)))
        stack, registers = (int(re.search(p, part)[1]) for p in (r"(\d+) bytes stack", r"Used (\d+) registers"))
        shared = re.search(r"(\d+) bytes smem", part)
        rows.append((kernel, arguments, registers, spills, stack, int(shared[1]) if shared else 0))
    return rows


def reports(folder):
    """Rows by source, which the kernels' names tell."""
    names = {s.name: set(re.findall(r"\b([a-z_]+_kernel)\(", s.read_text())) for s in SOURCES}
    rows = parse(compiled(folder))
    found = {source: [row for row in rows if row[0] in of] for source, of in names.items()}
    assert sum(map(len, found.values())) == len(rows)  # no kernel is missed, and none is of two sources
    return found


def test_a_report_is_understood():
    report = """
ptxas info    : Compiling entry function '_ZN9pyromancy4cuda50_GLOBAL__N__d6_18_gaussian_kernel_cu_71213energy_kernelIf\
Li4ELi32EEEvNS0_12GaussianArgsE' for 'sm_90'
ptxas info    : Function properties for x
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 60 registers, used 1 barriers, 32 bytes smem
"""
    assert parse(report) == [("energy_kernel", "fLi4ELi32E", 60, 16, 8, 32)]


if NVCC is None:
    needs_nvcc = pytest.mark.skip(reason="nvcc is not on the PATH")
else:
    needs_nvcc = pytest.mark.skipif(not SOURCES, reason="this copy has no CUDA sources")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return reports(tmp_path_factory.mktemp("cuda"))


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_kernels_spill_nothing(rows, source):
    assert rows[source.name]
    for kernel, arguments, registers, spills, stack, _ in rows[source.name]:
        # the values of a law of one's own, which are found by number, are on the stack
        interprets = kernel == "chain_tile_kernel" or "Expression" in arguments
        assert spills == 0, f"{kernel}<{arguments}> spills"
        assert (stack > 0) == interprets, f"{kernel}<{arguments}> has a stack of {stack} bytes"
        assert registers <= MORE_REGISTERS.get(kernel, REGISTERS), f"{kernel}<{arguments}> takes {registers} registers"


if __name__ == "__main__":
    if NVCC is None:
        sys.exit("nvcc is not on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for rows_of_source in reports(folder).values():
            for kernel, _, *figures in rows_of_source:
                found.setdefault(kernel, []).append(figures)
        print("kernel                  variants  registers  spilled  stack  shared")
        for kernel, figures in found.items():
            registers, spills, stack, shared = zip(*figures, strict=True)
            span = f"{min(registers)}-{max(registers)}"
            print(f"{kernel:24}{len(figures):8}{span:>11}{max(spills):9}{max(stack):7}{max(shared):8}")
