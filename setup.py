"""Builds ``pyromancy._C``: the C++ kernels for the CPU, on PyTorch's stable ABI, with ninja.

Environment:
    PYROMANCY_NATIVE=0         no compiled module: a pure-Python wheel that runs on the eager reference
    PYROMANCY_CUDA=auto|0|1    CUDA kernels where nvcc and a CUDA build of torch are there | never | or else an error
    CXX, CXXFLAGS, MAX_JOBS    as usual
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
TORCH_TARGET_VERSION = "0x020a000000000000"  # 2.10: the oldest torch that a wheel runs with

COMMON = [
    "-O3", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=off", "-Wall", "-Wextra",
]  # fmt: skip
ISAS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mf16c", "-mprefer-vector-width=512",
    ],
}  # fmt: skip


def torch_folder() -> Path:
    """Where torch is installed, found without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit(
            "pyromancy: torch is not importable in the build environment; install torch and run "
            "`pip install --no-build-isolation .`, or set PYROMANCY_NATIVE=0 for a pure-Python install."
        )
    return Path(spec.origin).parent


def wants_cuda() -> bool:
    """Decided by toolkit and torch, never by a visible GPU, so that a build in a container is the same build."""
    choice = os.environ.get("PYROMANCY_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        sys.exit(f"pyromancy: PYROMANCY_CUDA must be auto, 0 or 1, got {choice!r}.")
    if choice == "0":
        return False
    missing = None
    if not (ROOT / "csrc" / "cuda").is_dir():
        missing = "this version has no CUDA sources yet"
    elif shutil.which("nvcc") is None:
        missing = "nvcc is not on the PATH"
    elif not list((torch_folder() / "lib").glob("libtorch_cuda.*")):
        missing = "the installed torch is a CPU build"
    if missing and choice == "1":
        sys.exit(f"pyromancy: PYROMANCY_CUDA=1, but {missing}.")
    return missing is None


class NinjaBuild(build_ext):
    """Compiles every source once, and every ``*_kernel.cpp`` once per instruction set."""

    def build_extension(self, ext: Extension) -> None:
        """Write build.ninja and run it."""
        import pybind11

        torch = torch_folder()
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        includes = [
            ROOT / "csrc", torch / "include", torch / "include/torch/csrc/api/include",
            pybind11.get_include(), sysconfig.get_path("include"),
        ]  # fmt: skip
        flags = [
            *COMMON, f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", f"-DPYROMANCY_X86_ISAS={int(x86)}",
            f"-ffile-prefix-map={ROOT}/=",  # error messages name source files, not where they were built
            f"-I{includes[0]}", *(f"-isystem{i}" for i in includes[1:]),
            *shlex.split(os.environ.get("CXXFLAGS", "")),
        ]  # fmt: skip
        # Not pip's temporary folder: ninja compiles again only what has changed since the last build.
        folder = ROOT / "build" / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
        folder.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)

        lines = [
            f"cxx = {os.environ.get('CXX', 'c++')}",
            f"flags = {ninja_quote(flags)}",
            "rule compile",
            "  command = $cxx $flags $isa -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            "  command = $cxx -shared $in -o $out $libs",
        ]
        objects = []
        for source in map(Path, ext.sources):
            isas = (ISAS if x86 else ["baseline"]) if source.stem.endswith("_kernel") else [None]
            for isa in isas:
                obj = folder / f"{source.stem}{'.' + isa if isa else ''}.o"
                lines.append(f"build {ninja_path(obj)}: compile {ninja_path(ROOT / source)}")
                if isa:
                    lines.append(f"  isa = {ninja_quote([f'-DPYROMANCY_ISA={isa}', *ISAS[isa]])}")
                objects.append(ninja_path(obj))
        lines.append(f"build {ninja_path(target)}: link {' '.join(objects)}")
        lines.append(f"  libs = {ninja_quote([f'-L{torch}/lib', '-ltorch_cpu'])}")
        (folder / "build.ninja").write_text("\n".join(lines) + "\n")

        jobs = os.environ.get("MAX_JOBS")
        subprocess.run(["ninja", "-C", str(folder), *(["-j", jobs] if jobs else [])], check=True)


def ninja_path(path: Path) -> str:
    """A path as ninja's build lines want it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def ninja_quote(words: list[str]) -> str:
    """Words of a shell command as a ninja variable's value."""
    return shlex.join(words).replace("$", "$$")


wants_cuda()
native = os.environ.get("PYROMANCY_NATIVE", "1") != "0"
sources = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.cpp"))
if native:
    torch_folder()
setup(
    ext_modules=[Extension("pyromancy._C", sources)] if native else [],
    cmdclass={"build_ext": NinjaBuild},
)
