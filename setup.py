"""Builds ``pyromancy._C``, the C++ and CUDA kernels on PyTorch's stable ABI, with ninja.

Environment:
    PYROMANCY_NATIVE=0         no compiled module: a pure-Python wheel that runs on the eager reference
    PYROMANCY_CUDA=auto|0|1    CUDA kernels given nvcc >= 12.1 and a CUDA build of torch | never | or else an error
    PYROMANCY_CUDA_ARCHS       their architectures, "80;90;100+PTX" where nvcc knows all of these
    CUDA_HOME                  the toolkit, where nvcc is not on the PATH or is not the one to use
    PYROMANCY_SANITIZE=...     the compiler's sanitizers, "address,undefined" or "thread", for `make sanitize`
    CXX, CXXFLAGS, MAX_JOBS    as usual
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
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
NVCC = [
    "-O3", "-std=c++20", "-Xcompiler=-fPIC,-fvisibility=hidden,-fno-math-errno,-ffp-contract=off,-Wall,-Wextra",
]  # fmt: skip
X86 = platform.machine().lower() in ("x86_64", "amd64")
SANITIZERS = os.environ.get("PYROMANCY_SANITIZE", "")
# -O0, as instrumented kernels compile for an hour otherwise
SANITIZED = [f"-fsanitize={SANITIZERS}", "-O0", "-g1", "-fno-omit-frame-pointer"] if SANITIZERS else []
CUDA_ARCHS = "80;90;100+PTX"
OLDEST_NVCC = "12.1"  # from which on a kernel's arguments may take more than 4 KB
ISAS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mf16c", "-mprefer-vector-width=512",
    ],
}  # fmt: skip
# For kernels that can multiply bfloat16, beside the others.
BFLOAT16 = {"avx512_bf16": [*ISAS["avx512"], "-mavx512bf16"]}
MULTIPLYING = ("chain_kernel", "thin_float_kernel", "wide_float_kernel")


def torch_folder() -> Path:
    """Where torch is installed, found without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit(
            "pyromancy: torch is not importable in the build environment; install torch and run "
            "`pip install --no-build-isolation .`, or set PYROMANCY_NATIVE=0 for a pure-Python install."
        )
    return Path(spec.origin).parent


def find_nvcc() -> str | None:
    """The compiler of CUDA_HOME, or else the one on the PATH."""
    home = os.environ.get("CUDA_HOME")
    return (shutil.which("nvcc", path=f"{home}/bin") if home else None) or shutil.which("nvcc")


def wants_cuda(torch: Path) -> bool:
    """Decided by toolkit and torch, never by a visible GPU, so that a build in a container is the same build."""
    choice = os.environ.get("PYROMANCY_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        sys.exit(f"pyromancy: PYROMANCY_CUDA must be auto, 0 or 1, got {choice!r}.")
    if choice == "0":
        return False
    missing = None
    if find_nvcc() is None:
        missing = "nvcc is neither on the PATH nor in CUDA_HOME"
    elif not list((torch / "lib").glob("libtorch_cuda.*")):
        missing = "the installed torch is a CPU build"
    elif parts(release := nvcc_release()) < parts(OLDEST_NVCC):
        missing = f"nvcc is {release}, and {OLDEST_NVCC} is needed"
    if missing and choice == "1":
        sys.exit(f"pyromancy: PYROMANCY_CUDA=1, but {missing}.")
    return missing is None


def ask_nvcc(*arguments: str) -> str:
    """What nvcc prints."""
    return subprocess.run([find_nvcc() or "nvcc", *arguments], check=True, capture_output=True, text=True).stdout


def nvcc_release() -> str:
    """As in "12.8"."""
    found = re.search(r"release ([\d.]+)", ask_nvcc("--version"))
    return found[1] if found else "unknown"


def parts(release: str) -> list[int]:
    """Its numbers, which compare as releases do; none of an unknown one, which comes before all others."""
    return [int(n) for n in re.findall(r"\d+", release)]


def cuda_archs() -> list[str]:
    """Architectures to compile for, as in "90" or "90+PTX": those asked for, or the usual ones that nvcc knows."""
    known = set(re.findall(r"compute_(\w+)", ask_nvcc("--list-gpu-arch")))
    asked = os.environ.get("PYROMANCY_CUDA_ARCHS")
    if not asked:
        archs = [a.removesuffix("+PTX") for a in CUDA_ARCHS.split(";") if a.removesuffix("+PTX") in known]
        if not archs:
            sys.exit(f"pyromancy: nvcc knows none of {CUDA_ARCHS}; set PYROMANCY_CUDA_ARCHS to what it knows.")
        return [*archs[:-1], archs[-1] + "+PTX"]
    archs = asked.replace(",", ";").replace(" ", ";").replace(".", "").split(";")
    unknown = [a for a in archs if a.removesuffix("+PTX") not in known]
    if unknown:
        sys.exit(
            f"pyromancy: PYROMANCY_CUDA_ARCHS names {', '.join(unknown)}, but nvcc knows {' '.join(sorted(known))}."
        )
    return archs


def gencode(arch: str) -> str:
    """The option for machine code and, with +PTX, for intermediate code that later devices translate."""
    number = arch.removesuffix("+PTX")
    code = f"[sm_{number},compute_{number}]" if arch.endswith("+PTX") else f"sm_{number}"
    return f"-gencode=arch=compute_{number},code={code}"


class NinjaBuild(build_ext):
    """Compiles every source once, and every ``*_kernel.cpp`` once per instruction set."""

    def build_extension(self, ext: Extension) -> None:
        """Write build.ninja and run it."""
        torch = torch_folder()
        cuda = wants_cuda(torch)
        # Not pip's temporary folder: ninja compiles again only what has changed since the last build.
        # Paths are those in the checkout, which may move; error messages name them.
        kind = "-".join(["", *SANITIZERS.split(",")]) if SANITIZERS else ""
        folder = Path("build") / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}{kind}"
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        sources = [s for s in map(Path, ext.sources) if cuda or s.parent.name != "cuda"]
        lines = [f"builddir = {ninja_path(folder)}", *rules(torch, cuda), *builds(sources, folder, target)]
        script = ROOT / folder / "build.ninja"
        script.write_text("\n".join(lines) + "\n")
        jobs = os.environ.get("MAX_JOBS")
        subprocess.run(["ninja", "-f", str(script), *(["-j", jobs] if jobs else [])], cwd=ROOT, check=True)


def rules(torch: Path, cuda: bool) -> list[str]:
    """How ninja compiles C++ and CUDA, and links."""
    import pybind11

    includes = [  # pybind11 first: torch has a copy of its own, which in some releases refuses the stable ABI
        pybind11.get_include(), torch / "include", torch / "include/torch/csrc/api/include",
        sysconfig.get_path("include"),
    ]  # fmt: skip
    flags = [*COMMON, f"-DPYROMANCY_X86_ISAS={int(X86)}", "-Icsrc", *SANITIZED]
    flags += shlex.split(os.environ.get("CXXFLAGS", ""))
    of_torch = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", *(f"-isystem{i}" for i in includes)]
    depfile = ["  depfile = $out.d", "  deps = gcc"]
    lines = [
        f"cxx = {os.environ.get('CXX', 'c++')}",
        f"flags = {ninja_quote(flags)}",
        f"of_torch = {ninja_quote(of_torch)}",
        "rule compile",
        "  command = $cxx $flags $of_torch $own -MMD -MF $out.d -c $in -o $out",
        *depfile,
        "rule compile_kernel",  # without torch, so that another torch has no kernel compiled again
        "  command = $cxx $flags $own -MMD -MF $out.d -c $in -o $out",
        *depfile,
    ]
    libs = [*SANITIZED[:1], f"-L{torch}/lib", "-ltorch_cpu"]
    if not cuda:
        return [*lines, f"libs = {ninja_quote(libs)}", "rule link", "  command = $cxx -shared $in -o $out $libs"]
    archs = cuda_archs()
    about = [
        f"-DPYROMANCY_CUDA_VERSION={nvcc_release()}",
        f"-DPYROMANCY_CUDA_ARCHS={' '.join(archs)}",
    ]
    # libtorch has libtorch_cuda behind it where torch is built with CUDA, and is there where it is not.
    libs += ["-Xlinker", "--push-state,--no-as-needed", "-ltorch", "-Xlinker", "--pop-state"]
    return [
        *lines,
        f"about_cuda = {ninja_quote(about)}",
        f"nvcc = {find_nvcc()}",
        f"nvcc_flags = {ninja_quote([*NVCC, *map(gencode, archs)])}",
        "rule compile_cuda",
        "  command = $nvcc $nvcc_flags -MMD -MF $out.d -c $in -o $out",
        *depfile,
        f"libs = {ninja_quote(libs)}",
        # The CUDA runtime goes in, and is nobody else's to see: the wheel needs none, and mixes with any.
        "rule link",
        "  command = $nvcc -shared -cudart static -Xlinker --exclude-libs,ALL $in -o $out $libs",
    ]


def builds(sources: list[Path], folder: Path, target: Path) -> list[str]:
    """What ninja makes of which source."""
    lines, objects = [], []

    def add(source: Path, name: str, rule: str = "compile", own: str = "") -> None:
        objects.append(ninja_path(folder / f"{name}.o"))
        lines.extend([f"build {objects[-1]}: {rule} {ninja_path(source)}", f"  own = {own}"])

    for source in sources:
        if source.parent.name == "cuda":  # whose files are named as the ones in cpu are
            add(source, f"cuda.{source.name}", "compile_cuda" if source.suffix == ".cu" else "compile")
        elif source.stem.endswith("_kernel"):
            isas = ISAS | (BFLOAT16 if source.stem in MULTIPLYING else {}) if X86 else {"baseline": []}
            for isa, flags in isas.items():
                add(source, f"{source.stem}.{isa}", "compile_kernel", ninja_quote([f"-DPYROMANCY_ISA={isa}", *flags]))
        else:
            add(source, source.stem, own="$about_cuda" if source.stem == "module" else "")
    return [*lines, f"build {ninja_path(target)}: link {' '.join(objects)}"]


def ninja_path(path: Path) -> str:
    """A path as ninja's build lines want it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def ninja_quote(words: list[str]) -> str:
    """Words of a shell command as a ninja variable's value."""
    return shlex.join(words).replace("$", "$$")


if __name__ == "__main__":  # nothing here needs torch: a source distribution and metadata are made without it
    native = os.environ.get("PYROMANCY_NATIVE", "1") != "0"
    sources = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.c*") if p.suffix in (".cpp", ".cu"))
    setup(
        ext_modules=[Extension("pyromancy._C", sources)] if native else [],
        cmdclass={"build_ext": NinjaBuild},
    )
