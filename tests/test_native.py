"""The compiled module: loaded or not, and why; the instruction sets that it has."""

import sys

import pytest
import torch

import processes
from pyromancy import backends, native
from pyromancy.ops import schema

BATTERY = processes.HELPERS / "battery.py"
compiled = pytest.mark.skipif(native.MODULE is None, reason=native.REASON or "loaded")


def test_either_a_module_or_a_reason():
    assert (native.MODULE is None) == bool(native.REASON)


SETS = ("default", "avx2", "avx512")


@pytest.fixture(scope="module")
def batteries():
    """Every operator in every setting, all of them at once."""
    settings = {"reference": {"PYROMANCY_NATIVE": "0", "OMP_NUM_THREADS": "1"}}
    if native.MODULE is not None:
        settings |= {name: {"ATEN_CPU_CAPABILITY": name, "OMP_NUM_THREADS": "1"} for name in SETS}
    running = {name: processes.start(BATTERY, **variables) for name, variables in settings.items()}
    yield running
    for process in running.values():
        process.kill()
        process.wait()
        process.stdout.close()


def test_everything_works_on_the_reference(batteries):
    text = processes.finish(batteries["reference"]).splitlines()
    assert int(text[0]) > 500
    assert text[1:] == ["reference PYROMANCY_NATIVE=0 is set"]


@pytest.mark.parametrize(
    ("finder", "reason"),
    [
        ("raise ModuleNotFoundError(name)", "this install was built without a compiled module (a pure-Python wheel)"),
        ("raise ImportError('libtorch_cpu.so: cannot open')", "does not load: libtorch_cpu.so: cannot open"),
    ],
    ids=["missing", "broken"],
)
def test_says_why_there_is_none(monkeypatch, finder, reason):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "pyromancy._C":
                exec(finder)

    monkeypatch.delenv("PYROMANCY_NATIVE", raising=False)
    monkeypatch.delitem(sys.modules, "pyromancy._C", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    module, text = native._load()
    assert module is None
    assert reason in text


@compiled
class TestCompiled:
    def test_tells_what_was_built(self):
        info = native.MODULE.build_info()
        assert info["compiler"]
        assert "default" in info["instruction_sets"]
        assert info["cuda"] is None or info["cuda"]["version"]
        assert tuple(map(int, info["torch_target"].split("."))) >= (2, 10)
        assert native.MODULE.cpu_capability() in info["instruction_sets"]

    @pytest.mark.parametrize("name", schema.SCHEMAS)
    def test_has_a_kernel_for_every_operator(self, name):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pyromancy::{name}", "CPU")

    @pytest.mark.parametrize("wanted", SETS)
    def test_instruction_sets_agree_with_float64(self, batteries, wanted):
        if wanted not in native.MODULE.build_info()["instruction_sets"]:
            pytest.skip(f"not built for {wanted}")
        text = processes.finish(batteries[wanted]).splitlines()
        assert int(text[0]) > 500
        if wanted != "default" and wanted not in text[1]:
            pytest.skip(f"this processor has no {wanted}; ran on {text[1]}")
        assert text[1:] == [f"native {wanted}, by ATEN_CPU_CAPABILITY"]

    def test_report_names_the_instruction_set(self):
        with backends.use("native"):
            details = {s.detail for s in backends.report() if s.device == "cpu"}
        assert len(details) == 1
        assert details.pop().split(",")[0] == native.MODULE.cpu_capability()
