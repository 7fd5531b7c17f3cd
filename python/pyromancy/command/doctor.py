"""What is slow or wrong with an installation, each with what mends it.

`Machine` is what there is to know, and `examine` what it means: a fault is a rule here and a line in its test's table.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import native
from ..ops import triton
from ..version import __version__

TESTED = (2, 10), (2, 14)  # the oldest torch that the tests have run with, and the newest
_INSTALL = "pip install --no-build-isolation --no-deps --force-reinstall ."  # in a checkout
_TORCH = "install the CUDA build of PyTorch: https://pytorch.org/get-started/locally/"
_SETS = ("default", "avx2", "avx512")
_SLOW_SUBNORMALS = 4.0  # how many times longer sums of subnormal numbers may take than others
_OMP = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Finding:
    """Something that was found.

    Attributes:
        kind: "wrong", "slow", or "note", which is neither but good to know.
        what: is the matter.
        mend: a command, or what else to do.
    """

    kind: str
    what: str
    mend: str


@dataclass(frozen=True)
class Machine:
    """What an installation is, and what it runs on.

    Attributes:
        torch: its version.
        torch_debug: whether torch is a debug build.
        torch_cuda: the CUDA version that torch is built for, or None.
        python_debug: whether this Python is a debug build.
        no_module: why there is no compiled module, or "".
        sets: instruction sets that the module is built for.
        used: the instruction set in use, or "".
        has: the best that the processor has.
        module_cuda: the architectures that the module's CUDA kernels are built for, or None.
        gpus: names and compute capabilities that torch sees.
        driver: whether the system has an NVIDIA driver.
        no_triton: why Triton's kernels do not run, or "".
        threads: that PyTorch uses.
        cores: that this process may run on.
        quota: processors that its control group grants, or infinity.
        variables: of the environment.
        subnormals: how many times longer PyTorch takes for subnormal numbers than for others.
        twins: other distributions that install a package of this name.
        anomaly: whether autograd looks for anomalies.
    """

    torch: str
    torch_debug: bool
    torch_cuda: str | None
    python_debug: bool
    no_module: str
    sets: tuple[str, ...]
    used: str
    has: str
    module_cuda: str | None
    gpus: tuple[tuple[str, tuple[int, int]], ...]
    driver: bool
    no_triton: str
    threads: int
    cores: int
    quota: float
    variables: Mapping[str, str]
    subnormals: float
    twins: tuple[str, ...]
    anomaly: bool

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        module, info = native.MODULE, {} if native.MODULE is None else native.MODULE.build_info()
        gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
        cuda = info.get("cuda")
        return cls(
            torch=torch.__version__,
            torch_debug=bool(torch.version.debug),
            torch_cuda=torch.version.cuda,
            python_debug=hasattr(sys, "gettotalrefcount"),
            no_module=native.REASON,
            sets=tuple(info.get("instruction_sets", ())),
            used="" if module is None else module.cpu_capability(),
            has=_instruction_set(),
            module_cuda=cuda["archs"] if cuda else None,
            gpus=tuple((torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)) for i in gpus),
            driver=Path("/proc/driver/nvidia/version").exists(),
            no_triton=triton.load()[1] if gpus else "",
            threads=torch.get_num_threads(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            quota=_quota(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")),
            variables=dict(os.environ),
            subnormals=_subnormals(),
            twins=_twins(),
            anomaly=torch.is_anomaly_enabled(),
        )

    @property
    def processors(self) -> int:
        """How many threads can run at once."""
        return max(1, min(self.cores, math.ceil(self.quota) if math.isfinite(self.quota) else self.cores))


def examine(m: Machine) -> list[Finding]:
    """What is the matter, the worst first."""
    found = [finding for rule in (_software, _module, _gpu, _threads, _switches) for finding in rule(m)]
    return sorted(found, key=lambda f: ("wrong", "slow", "note").index(f.kind))


def report(m: Machine, findings: list[Finding]) -> str:
    """All of it, as text."""
    quota = f", of which its group grants {m.quota:g}" if m.quota < m.cores else ""
    gpus = ", ".join(f"{name} (sm_{a}{b})" for name, (a, b) in m.gpus) or "none that torch sees"
    kernels = f"compiled, {m.used}" if m.used else "the reference, in PyTorch"
    lines = [
        f"pyromancy {__version__}, torch {m.torch}, Python {platform.python_version()}",
        f"  CPU kernels  {kernels} (the processor has {m.has})",
        f"  threads      {m.threads}, on {m.cores} cores{quota}",
        f"  GPUs         {gpus}",
    ]
    for f in findings:
        lines += ["", f"{f.kind}: {f.what}", f"    {f.mend}"]
    if not any(f.kind != "note" for f in findings):
        lines += ["", "nothing is slow or wrong"]
    return "\n".join(lines)


def _software(m: Machine) -> Iterator[Finding]:
    for name in m.twins:
        yield Finding(
            "wrong",
            f"{name} installs a package of the same name, pyromancy: files of the two are mixed, or will be when one "
            "is installed again",
            f"pip uninstall {name} && {_INSTALL}  # in a checkout",
        )
    numbers = tuple(int(n) for n in re.findall(r"\d+", m.torch)[:2])
    oldest, newest = (".".join(map(str, v)) for v in TESTED)
    if numbers < TESTED[0]:
        yield Finding(
            "wrong", f"torch {m.torch} is older than {oldest}, the oldest that works", f"pip install 'torch>={oldest}'"
        )
    elif numbers > TESTED[1]:
        yield Finding(
            "note",
            f"torch {m.torch} is newer than {newest}, the newest that was tested",
            "look for a newer pyromancy-kernels, or run its tests: make test",
        )
    if m.torch_debug:
        yield Finding("slow", "torch is a debug build", "pip install --force-reinstall torch")
    if m.python_debug:
        yield Finding("slow", "this Python is a debug build", "use a release build of Python")


def _module(m: Machine) -> Iterator[Finding]:
    if m.no_module:
        switched_off = m.no_module.startswith("PYROMANCY_NATIVE=0")
        broken = m.no_module.startswith("the compiled module")
        yield Finding(
            "wrong" if broken else "slow",
            f"there are no compiled kernels, and all runs on the reference: {m.no_module}",
            "unset PYROMANCY_NATIVE"
            if switched_off
            else f"{_INSTALL}  # in a checkout (-e . if editable, as by make); needs a C++20 compiler, ninja, pybind11",
        )
        return
    if _SETS.index(m.used) >= _SETS.index(m.has):
        return
    if asked := m.variables.get("ATEN_CPU_CAPABILITY"):
        what = f"the kernels use {m.used}, by ATEN_CPU_CAPABILITY={asked}, and the processor has {m.has}"
        yield Finding("slow", what, "unset ATEN_CPU_CAPABILITY")
    elif m.has not in m.sets:
        what = f"the compiled module has kernels for {' and '.join(m.sets)}, and the processor has {m.has}"
        yield Finding("slow", what, f"{_INSTALL}  # in a checkout, with a compiler for x86-64")
    else:
        what = f"the kernels use {m.used}, as PyTorch does, and the processor has {m.has}"
        yield Finding("slow", what, "pip install --force-reinstall torch  # its own build for this processor")


def _gpu(m: Machine) -> Iterator[Finding]:
    if m.driver and m.torch_cuda is None:
        yield Finding("slow", f"there is an NVIDIA driver, and torch {m.torch} is built without CUDA", _TORCH)
    elif m.driver and not m.gpus:
        yield Finding(
            "wrong",
            f"there is an NVIDIA driver, and torch, built for CUDA {m.torch_cuda}, sees no GPU",
            "nvidia-smi  # tells whether the driver works, and for which CUDA; CUDA_VISIBLE_DEVICES may hide all GPUs",
        )
    if not m.gpus:
        return
    if m.no_triton:
        what = f"Triton's kernels do not run on the GPU: {m.no_triton}"
        yield Finding("slow", f"{what}; the reference serves what they would", "pip install --upgrade triton")
    if m.module_cuda is None:
        if not m.no_module:
            what = "the compiled module has no CUDA kernels, and Triton's serve where there are some"
            yield Finding("slow", what, f"PYROMANCY_CUDA=1 {_INSTALL}  # in a checkout; it needs nvcc")
        return
    built = re.findall(r"(\d+)(\d)[a-z]?(\+PTX)?", m.module_cuda)
    archs = [(int(a), int(b), bool(ptx)) for a, b, ptx in built]
    for name, (major, minor) in m.gpus:
        fits = any(a == major and b <= minor for a, b, _ in archs)
        if not fits and not any(ptx and (a, b) <= (major, minor) for a, b, ptx in archs):
            yield Finding(
                "wrong",
                f"the CUDA kernels are built for {m.module_cuda}, and {name} is sm_{major}{minor}",
                f"PYROMANCY_CUDA=1 PYROMANCY_CUDA_ARCHS={major}{minor} {_INSTALL}  # in a checkout",
            )


def _threads(m: Machine) -> Iterator[Finding]:
    may = f"this process may use {m.processors} processor{'s' * (m.processors > 1)}"
    asked = next((name for name in _OMP if name in m.variables), None)
    by = f" ({asked}={m.variables[asked]})" if asked else ""
    if m.threads > m.processors:
        mend = f"export OMP_NUM_THREADS={m.processors}"
        yield Finding("slow", f"PyTorch has {m.threads} threads{by}, and {may}: they wait for one another", mend)
    elif m.threads < m.processors and (asked or 2 * m.threads < m.processors):
        mend = f"unset {asked}" if asked else f"torch.set_num_threads({m.processors})"
        yield Finding("slow", f"PyTorch has {m.threads} thread{'s' * (m.threads > 1)}{by}, and {may}", mend)
    if m.variables.get("OMP_PROC_BIND", "false").lower() not in ("false", "") and m.cores < (os.cpu_count() or 1):
        yield Finding(
            "note",
            f"OMP_PROC_BIND={m.variables['OMP_PROC_BIND']} binds threads to cores, and processes may share some",
            "unset OMP_PROC_BIND, or give every process its own: taskset -c, or srun --cpu-bind=cores",
        )
    if m.variables.get("OMP_WAIT_POLICY", "").lower() == "active" and m.quota < m.cores:
        yield Finding(
            "slow",
            f"OMP_WAIT_POLICY=active has threads spin, which uses up the {m.quota:g} processors of the group",
            "export OMP_WAIT_POLICY=passive",
        )


def _switches(m: Machine) -> Iterator[Finding]:
    if m.variables.get("TRITON_INTERPRET") == "1":
        what = "TRITON_INTERPRET=1 has Triton's kernels interpreted, a thousand times slower"
        yield Finding("slow", what, "unset TRITON_INTERPRET")
    if m.gpus and m.variables.get("CUDA_LAUNCH_BLOCKING") == "1":
        yield Finding("slow", "CUDA_LAUNCH_BLOCKING=1 waits for every kernel", "unset CUDA_LAUNCH_BLOCKING")
    if m.anomaly:
        what = "autograd looks for anomalies, and loops run on autograd while it does"
        yield Finding("slow", what, "torch.autograd.set_detect_anomaly(False)")
    if m.subnormals > _SLOW_SUBNORMALS:
        yield Finding(
            "note",
            f"subnormal numbers take PyTorch {m.subnormals:.0f} times as long as others here; the compiled kernels "
            "take them for 0, graphs and plain loops do not",
            "torch.set_flush_denormal(True)  # where errors or weights decay to below 1e-38",
        )


def _instruction_set() -> str:
    """The best that the processor has, whatever was asked for."""
    if torch.cpu._is_avx512_supported():
        return "avx512"
    return "avx2" if torch.cpu._is_avx2_supported() else "default"


def _quota(root: Path, membership: Path) -> float:
    """Processors that the control group of this process, and those above it, grant: of version 2 or 1."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        lines = []
    granted = [math.inf]
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers == "" or "cpu" in controllers.split(","):
            base = root if controllers == "" else root / "cpu"
            inner = base / path.lstrip("/")
            folders = [inner, *inner.parents]
            granted += map(_granted, folders[: folders.index(base) + 1] if base in folders else [base])
    return min([*granted, _granted(root), _granted(root / "cpu")])


def _granted(folder: Path) -> float:
    try:
        if (folder / "cpu.max").exists():
            share, period = (folder / "cpu.max").read_text().split()
        else:
            share = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return math.inf if share in ("max", "-1") else int(share) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _subnormals() -> float:
    """How many times longer products take, the least of some tries."""

    def seconds(x: torch.Tensor, y: torch.Tensor) -> float:
        def once() -> float:
            began = time.perf_counter()
            torch.mul(x, 0.5, out=y)
            return time.perf_counter() - began

        return min(once() for _ in range(20))

    normal = torch.full((4096,), 1.5)
    out = torch.empty_like(normal)
    return seconds(torch.full((4096,), 1.5e-39), out) / max(1e-9, seconds(normal, out))


def _twins() -> tuple[str, ...]:
    """Distributions beside ours that have a module `pyromancy`."""
    found = importlib.metadata.packages_distributions().get("pyromancy", [])
    return tuple(sorted({name for name in found if name.lower().replace("_", "-") != "pyromancy-kernels"}))
