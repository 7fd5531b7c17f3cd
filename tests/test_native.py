"""The compiled module: loaded or not, and why; the instruction sets that it has."""

import sys

import pytest
import torch

import forks
import processes
from pyromancy import backends, native
from pyromancy.ops import schema

BATTERY = processes.HELPERS / "battery.py"
compiled = pytest.mark.skipif(native.MODULE is None, reason=native.REASON or "loaded")


def test_either_a_module_or_a_reason():
    assert (native.MODULE is None) == bool(native.REASON)


# by name, whether this processor has them; PyTorch takes the word of whoever asks for one, and dies
SETS = {"default": True, "avx2": torch.cpu._is_avx2_supported(), "avx512": torch.cpu._is_avx512_supported()}


@pytest.fixture(scope="module")
def batteries():
    """Every operator in every setting, all of them at once."""
    settings = {"reference": {"PYROMANCY_NATIVE": "0", "OMP_NUM_THREADS": "1"}}
    if native.MODULE is not None:
        settings |= {
            name: {"ATEN_CPU_CAPABILITY": name, "OMP_NUM_THREADS": "1"} for name, there in SETS.items() if there
        }
    running = {name: forks.start(BATTERY, package=False, **variables) for name, variables in settings.items()}
    yield running
    processes.end(running.values())


@pytest.mark.slow
def test_everything_works_on_the_reference(batteries):
    text = processes.finish(batteries["reference"]).splitlines()
    assert int(text[0]) > 500
    assert text[1:] == ["reference PYROMANCY_NATIVE=0 is set"]


class _Finder:
    """Finds the compiled module by raising an error."""

    def __init__(self, error):
        self.error = error

    def find_spec(self, name, path=None, target=None):
        if name == "pyromancy._C":
            raise self.error


@pytest.fixture
def found(monkeypatch):
    """What is found in the place of the compiled module: `error`, and these files beside the package."""

    def install(error, folder, *files):
        monkeypatch.delenv("PYROMANCY_NATIVE", raising=False)
        monkeypatch.delitem(sys.modules, "pyromancy._C", raising=False)
        monkeypatch.setattr(sys, "meta_path", [_Finder(error), *sys.meta_path])
        monkeypatch.setattr(native, "__file__", str(folder / "native.py"))
        for name in files:
            (folder / name).touch()

    return install


def test_an_install_without_a_module_is_told_in_the_report_alone(found, tmp_path):
    found(ModuleNotFoundError("pyromancy._C"), tmp_path)
    module, reason = native._load()
    assert module is None
    assert reason == "this install was built without a compiled module (a pure-Python wheel)"


BROKEN = {
    "library": (ImportError("libtorch_cpu.so: cannot open"), "libtorch_cpu.so: cannot open"),
    "initialization": (SystemError("initialization of _C failed"), "initialization of _C failed"),
    "python": (ModuleNotFoundError("pyromancy._C"), "it is for another Python than this one, cpython-"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_module_that_does_not_load_is_told_aloud(found, tmp_path, kind, monkeypatch):
    """With which it is, why, and what to do; unless it was asked to be left alone."""
    error, why = BROKEN[kind]
    found(error, tmp_path, "_C.cpython-39-x86_64-linux-gnu.so", "_C.pyi")
    told = rf"the compiled module _C\.cpython-39-x86_64-linux-gnu\.so does not load: {why}.* runs on the ref"
    with pytest.warns(RuntimeWarning, match=told) as caught:
        module, reason = native._load()
    assert module is None
    assert why in reason
    assert len(caught) == 1
    assert "Install pyromancy-kernels again" in str(caught[0].message)
    monkeypatch.setenv("PYROMANCY_NATIVE", "0")
    assert native._load() == (None, "PYROMANCY_NATIVE=0 is set")


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

    @pytest.mark.slow
    @pytest.mark.parametrize("wanted", SETS)
    def test_instruction_sets_agree_with_float64(self, batteries, wanted):
        if wanted not in native.MODULE.build_info()["instruction_sets"]:
            pytest.skip(f"not built for {wanted}")
        if not SETS[wanted]:
            pytest.skip(f"this processor has no {wanted}")
        text = processes.finish(batteries[wanted]).splitlines()
        assert int(text[0]) > 500
        assert text[1:] == [f"native {wanted}, by ATEN_CPU_CAPABILITY"]

    def test_report_names_the_instruction_set(self):
        with backends.use("native"):
            details = {s.detail for s in backends.report() if s.device == "cpu"}
        assert len(details) == 1
        assert details.pop().split(",")[0] == native.MODULE.cpu_capability()
