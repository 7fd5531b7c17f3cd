"""``python -m pyromancy doctor``: every fault by itself on a machine where all is well, and some on this one."""

import math
from dataclasses import replace

import pytest
import torch

import forks
from pyromancy import command, native
from pyromancy.command import doctor
from pyromancy.command.doctor import Machine, examine

WELL = Machine(
    torch="2.13.0+cu128", torch_debug=False, torch_cuda="12.8", python_debug=False, no_module="",
    sets=("default", "avx2", "avx512"), used="avx512", has="avx512", module_cuda="80 90+PTX",
    gpus=(("H100", (9, 0)),), driver=True, no_triton="", threads=8, cores=8, quota=math.inf, variables={},
    subnormals=1.0, twins=(), anomaly=False,
)  # fmt: skip
CPU = replace(WELL, torch="2.13.0+cpu", torch_cuda=None, module_cuda=None, gpus=(), driver=False)

FAULTS = {
    "twin": (WELL, {"twins": ("pyromancy-ai",)}, "wrong", "same name", "pip uninstall pyromancy-ai && pip install"),
    "old-torch": (WELL, {"torch": "2.9.1"}, "wrong", "torch 2.9.1 is older than 2.10", "pip install 'torch>=2.10'"),
    "new-torch": (WELL, {"torch": "2.99.0a0+git1"}, "note", "newer than 2.14", "make test"),
    "debug-torch": (WELL, {"torch_debug": True}, "slow", "torch is a debug build", "--force-reinstall torch"),
    "debug-python": (WELL, {"python_debug": True}, "slow", "Python is a debug build", "release build"),
    "no-module": (CPU, {"no_module": "this install was built without a compiled module (a pure-Python wheel)"}, "slow",
                  "no compiled kernels, and all runs on the reference: this install was built without", "pip install"),
    "switched-off": (CPU, {"no_module": "PYROMANCY_NATIVE=0 is set"}, "slow", "PYROMANCY_NATIVE=0",
                     "unset PYROMANCY_NATIVE"),
    "other-torch": (CPU, {"no_module": "the compiled module _C.so does not load: undefined symbol"}, "wrong",
                    "undefined symbol", "pip install --no-build-isolation --no-deps --force-reinstall"),
    "asked-for-less": (CPU, {"used": "avx2", "variables": {"ATEN_CPU_CAPABILITY": "avx2"}}, "slow",
                       "use avx2, by ATEN_CPU_CAPABILITY=avx2, and the processor has", "unset ATEN_CPU_CAPABILITY"),
    "built-for-less": (CPU, {"used": "default", "sets": ("default",)}, "slow", "kernels for default", "pip install"),
    "torch-uses-less": (CPU, {"used": "avx2"}, "slow", "use avx2, as PyTorch does", "reinstall torch"),
    "torch-without-cuda": (CPU, {"driver": True}, "slow", "built without CUDA", "pytorch.org/get-started"),
    "no-gpu-seen": (WELL, {"gpus": ()}, "wrong", "built for CUDA 12.8, sees no GPU", "nvidia-smi"),
    "no-cuda-kernels": (WELL, {"module_cuda": None}, "slow", "no CUDA kernels", "PYROMANCY_CUDA=1 pip install"),
    "no-triton": (WELL, {"no_triton": "Triton is not installed"}, "slow", "Triton is not installed", "triton"),
    "older-gpu": (WELL, {"gpus": (("V100", (7, 0)),)}, "wrong", "built for 80 90+PTX, and V100 is sm_70",
                  "PYROMANCY_CUDA_ARCHS=70 pip install"),
    "newer-gpu": (WELL, {"gpus": (("B200", (10, 0)),), "module_cuda": "80 90"}, "wrong", "B200 is sm_100", "ARCHS=100"),
    "too-many-threads": (CPU, {"threads": 64}, "slow", "64 threads, and this process may use 8", "OMP_NUM_THREADS=8"),
    "few-cores": (CPU, {"cores": 1}, "slow", "8 threads, and this process may use 1 processor:", "OMP_NUM_THREADS=1"),
    "quota": (CPU, {"quota": 1.5}, "slow", "8 threads, and this process may use 2", "OMP_NUM_THREADS=2"),
    "few-threads-asked": (CPU, {"threads": 7, "variables": {"MKL_NUM_THREADS": "7"}}, "slow",
                          "7 threads (MKL_NUM_THREADS=7)", "unset MKL_NUM_THREADS"),
    "few-threads": (CPU, {"threads": 1}, "slow", "1 thread, and", "torch.set_num_threads(8)"),
    "spinning": (CPU, {"threads": 4, "quota": 4.0, "variables": {"OMP_WAIT_POLICY": "ACTIVE"}}, "slow", "spin",
                 "export OMP_WAIT_POLICY=passive"),
    "interpreted": (CPU, {"variables": {"TRITON_INTERPRET": "1"}}, "slow", "interpreted", "unset TRITON_INTERPRET"),
    "blocking": (WELL, {"variables": {"CUDA_LAUNCH_BLOCKING": "1"}}, "slow", "waits for every kernel",
                 "unset CUDA_LAUNCH_BLOCKING"),
    "anomaly": (CPU, {"anomaly": True}, "slow", "looks for anomalies", "set_detect_anomaly(False)"),
    "subnormals": (CPU, {"subnormals": 12.4}, "note", "12 times as long", "torch.set_flush_denormal(True)"),
}  # fmt: skip


@pytest.mark.parametrize("machine", [WELL, CPU, replace(WELL, gpus=(("RTX", (8, 9)), ("next", (12, 0))))], ids=range(3))
def test_where_all_is_well_nothing_is_found(machine):
    assert examine(machine) == []
    assert doctor.report(machine, []).endswith("nothing is slow or wrong")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_alone_with_what_mends_it(fault):
    machine, changed, kind, what, mend = FAULTS[fault]
    (found,) = examine(replace(machine, **changed))
    assert found.kind == kind
    assert what in found.what
    assert mend in found.mend
    text = doctor.report(replace(machine, **changed), [found])
    assert f"{kind}: {found.what}\n    {found.mend}" in text
    assert ("nothing is slow or wrong" in text) == (kind == "note")


def test_bound_threads_of_a_part_of_the_machine(monkeypatch):
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 64)
    (found,) = examine(replace(CPU, variables={"OMP_PROC_BIND": "close"}))
    assert (found.kind, "OMP_PROC_BIND=close" in found.what) == ("note", True)
    assert examine(replace(CPU, variables={"OMP_PROC_BIND": "FALSE"})) == []


def test_the_worst_comes_first():
    found = examine(replace(CPU, subnormals=99.0, threads=64, twins=("pyromancy-ai",)))
    assert [f.kind for f in found] == ["wrong", "slow", "note"]


class TestStatus:
    @pytest.mark.parametrize(("changed", "status"), [({}, 0), ({"subnormals": 9.0}, 0), ({"threads": 64}, 1)])
    def test_tells_whether_something_was_found(self, monkeypatch, capsys, changed, status):
        monkeypatch.setattr(Machine, "here", classmethod(lambda cls: replace(CPU, **changed)))
        assert command.main(["doctor"]) == status
        assert capsys.readouterr().out.startswith("pyromancy ")

    def test_of_a_wrong_argument_is_that_of_argparse(self, capsys):
        with pytest.raises(SystemExit) as status:
            command.main(["doctr"])
        assert status.value.code == 2
        assert "invalid choice: 'doctr'" in capsys.readouterr().err


class TestQuota:
    """Of control groups, in files such as Linux has."""

    def test_of_version_2_the_least_of_all_above(self, tmp_path):
        inner = tmp_path / "cgroup" / "jobs" / "one"
        inner.mkdir(parents=True)
        (inner / "cpu.max").write_text("max 100000\n")
        (inner.parent / "cpu.max").write_text("250000 100000\n")
        (tmp_path / "self").write_text("0::/jobs/one\n")
        assert doctor._quota(tmp_path / "cgroup", tmp_path / "self") == 2.5

    @pytest.mark.parametrize(("share", "expected"), [("50000", 0.5), ("-1", math.inf)])
    def test_of_version_1(self, tmp_path, share, expected):
        folder = tmp_path / "cgroup" / "cpu" / "docker" / "x"
        folder.mkdir(parents=True)
        (folder / "cpu.cfs_quota_us").write_text(share)
        (folder / "cpu.cfs_period_us").write_text("100000\n")
        (tmp_path / "self").write_text("4:cpu,cpuacct:/docker/x\n3:memory:/other\n")
        assert doctor._quota(tmp_path / "cgroup", tmp_path / "self") == expected

    def test_where_there_are_none(self, tmp_path):
        assert doctor._quota(tmp_path / "cgroup", tmp_path / "self") == math.inf
        (tmp_path / "self").write_text("nonsense\n0::/gone\n")
        assert doctor._quota(tmp_path / "cgroup", tmp_path / "self") == math.inf


class TestHere:
    def test_facts(self):
        m = Machine.here()
        assert (m.torch, m.threads) == (torch.__version__, torch.get_num_threads())
        assert bool(m.used) == (native.MODULE is not None) == (not m.no_module)
        assert m.has == ("avx512" if torch.cpu._is_avx512_supported() else m.has)
        assert 1 <= m.processors <= m.cores
        assert m.subnormals > 0
        assert doctor.report(m, examine(m)).startswith("pyromancy ")

    def test_another_distribution_of_the_name(self, monkeypatch):
        both = {"pyromancy": ["pyromancy-kernels", "pyromancy_ai", "pyromancy_kernels"], "torch": ["torch"]}
        monkeypatch.setattr(doctor.importlib.metadata, "packages_distributions", lambda: both)
        assert Machine.here().twins == ("pyromancy_ai",)

    def test_subnormals_flushed_cost_nothing(self):
        if not torch.set_flush_denormal(True):
            assert not torch.cpu._is_avx2_supported(), "every x86-64 processor can"
            return
        try:
            assert doctor._subnormals() < 3
        finally:
            torch.set_flush_denormal(False)

    def test_without_the_module(self):
        text = forks.python("-m", "pyromancy", "doctor", package=False, expect=1, PYROMANCY_NATIVE="0")
        assert "slow: there are no compiled kernels, and all runs on the reference: PYROMANCY_NATIVE=0 is set" in text
        assert "\n    unset PYROMANCY_NATIVE\n" in text

    def test_with_lesser_instructions(self):
        here, lesser = Machine.here(), doctor._instruction_set() != "default"
        if not here.used:
            assert here.no_module
            return
        cores = here.processors
        variables = {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": str(cores)}
        text = forks.python("-m", "pyromancy", "doctor", package=False, expect=int(lesser), **variables)
        assert ("unset ATEN_CPU_CAPABILITY" in text) == lesser
