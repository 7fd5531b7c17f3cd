"""What serves an operator, and how to choose another."""

import importlib.util
import threading
import types

import pytest
import torch

import forks
import processes
from kernels import AVAILABLE
from pyromancy import backends, native, ops
from pyromancy.ops import reference, schema, triton

INTERPRETED = "triton" in AVAILABLE
has_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def serving(device="cpu"):
    return {s.backend for s in backends.report() if s.device == device}


def formula(value, pred):
    return 0.5 * (value - pred).square().sum(1)


class TestReport:
    def test_covers_every_operator_on_every_device_once(self):
        pairs = [(s.operator, s.device) for s in backends.report()]
        assert len(set(pairs)) == len(pairs)
        assert set(pairs) == {(o, d) for o in schema.SCHEMAS for d in ("cpu", "cuda")}

    def test_says_why_nothing_faster_serves(self):
        for s in backends.report():
            assert s.backend in backends.BACKENDS
            assert s.detail

    def test_default_is_the_fastest_there_is(self):
        assert serving() == {"native" if native.MODULE is not None else "reference"}


class TestAvailable:
    def test_reference_always_is(self):
        assert backends.available("reference") == (True, "")

    def test_reasons(self):
        for name in backends.BACKENDS:
            for device in ("cpu", "cuda"):
                works, reason = backends.available(name, device)
                assert works or reason

    def test_of_a_torch_without_cuda(self, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", None)
        missing = f"torch {torch.__version__} is built without CUDA"
        for name in backends.BACKENDS:
            assert backends.available(name, "cuda") == (False, missing)
        assert backends.describe().endswith(f"\ncuda: {missing}")

    def test_of_a_torch_that_sees_no_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        for name in backends.BACKENDS:
            assert backends.available(name, "cuda") == (False, "torch sees no GPU")
        assert "\ncuda: torch sees no GPU\n  gaussian_energy " in backends.describe()
        before = serving("cuda")
        with backends.use("reference"):
            assert serving() == {"reference"}
            assert serving("cuda") == before

    def test_unknown_names(self):
        with pytest.raises(ValueError, match="backend must be one of native, triton, reference, got 'cuda'"):
            backends.available("cuda")
        with pytest.raises(ValueError, match="device must be one of cpu, cuda, got 'mps'"):
            backends.available("reference", "mps")

    def test_of_a_torch_that_sees_a_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert backends.available("reference", "cuda") == (True, "")
        built = native.MODULE is not None and native.MODULE.build_info()["cuda"] is not None
        works, reason = backends.available("native", "cuda")
        assert works == built
        assert works or reason == native.REASON or "no native CUDA kernels" in reason
        assert "\ncuda:\n" in backends.describe()


class TestUse:
    @pytest.mark.parametrize("name", AVAILABLE)
    def test_serves_from_it(self, name):
        before = serving()
        value, pred = torch.randn(2, 3, 5)
        with backends.use(name):
            assert serving() == {name}
            torch.testing.assert_close(ops.gaussian_energy(value, pred, None), formula(value, pred))
        assert serving() == before

    def test_reference_is_what_then_runs(self, monkeypatch):
        calls = []

        def kernel(value, pred, logvar):
            calls.append(value.shape)
            return formula(value, pred)

        monkeypatch.setitem(ops.reference.KERNELS, "gaussian_energy", kernel)
        with backends.use("reference"):
            ops.gaussian_energy(torch.zeros(2, 3), torch.zeros(2, 3), None)
        ops.gaussian_energy(torch.zeros(2, 3), torch.zeros(2, 3), None)
        assert calls == [(2, 3)]

    @pytest.mark.parametrize("inner", AVAILABLE)
    @pytest.mark.parametrize("outer", AVAILABLE)
    def test_nests(self, outer, inner):
        before = serving()
        with backends.use(outer):
            with backends.use(inner):
                assert serving() == {inner}
                with backends.use(outer):
                    assert serving() == {outer}
                assert serving() == {inner}
            assert serving() == {outer}
        assert serving() == before

    @pytest.mark.parametrize("name", AVAILABLE)
    def test_restores_after_an_error(self, name):
        before = serving()
        with pytest.raises(KeyError), backends.use(name):
            raise KeyError
        assert serving() == before

    def test_holds_in_other_threads(self):
        seen = []
        with backends.use("reference"):
            thread = threading.Thread(target=lambda: seen.append(serving()))
            thread.start()
            thread.join()
        assert seen == [{"reference"}]

    def test_another_thread_may_not_choose_until_the_block_ends(self):
        seen = []

        def choose():
            try:
                with backends.use("reference"):
                    seen.append(serving())
            except RuntimeError as error:
                seen.append(str(error))

        def in_a_thread():
            thread = threading.Thread(target=choose, daemon=True)
            thread.start()
            thread.join(60)
            assert not thread.is_alive()

        before = serving()
        with backends.use(AVAILABLE[0]):
            in_a_thread()
            assert serving() == before
        in_a_thread()
        assert seen == [f"backend {AVAILABLE[0]!r} is chosen until its block in another thread ends", {"reference"}]
        assert serving() == before

    def test_what_cannot_run_raises_with_the_reason(self):
        before = serving()
        for name in backends.BACKENDS:
            if any(backends.available(name, device)[0] for device in ("cpu", "cuda")):
                continue
            _, reason = backends.available(name, "cuda" if name == "triton" else "cpu")
            with pytest.raises(RuntimeError) as error, backends.use(name):
                pass
            assert str(error.value) == f"backend {name!r} cannot run here: {reason}"
        assert serving() == before

    def test_a_choice_that_fails_half_way_leaves_the_one_before(self, monkeypatch):
        value, pred = torch.randn(2, 3, 5)
        monkeypatch.setattr(backends, "available", lambda name, device="cpu": (True, ""))
        kernels = {"gaussian_energy": reference.KERNELS["estep_"], "gaussian_error": "no function"}
        monkeypatch.setattr(triton, "load", lambda: (kernels, ""))
        for outer in AVAILABLE:
            if outer == "triton":
                continue
            with backends.use(outer):
                before = backends.report()
                with pytest.raises(TypeError, match="callable"), backends.use("triton"):
                    pass
                assert backends.report() == before
                torch.testing.assert_close(ops.gaussian_energy(value, pred, None), formula(value, pred))

    def test_unknown_names(self):
        with pytest.raises(ValueError, match="backend must be one of native, triton, reference, got 'fast'"), \
                backends.use("fast"):  # fmt: skip
            pass

    def test_gradients_follow(self):
        for name in AVAILABLE:
            with backends.use(name):
                value = torch.randn(3, 5, requires_grad=True)
                ops.gaussian_energy(value, torch.zeros(3, 5), None).sum().backward()
                torch.testing.assert_close(value.grad, value.detach())


class TestDescription:
    @pytest.mark.slow
    def test_command_prints_it(self):
        text = processes.python("-m", "pyromancy")
        for name in schema.SCHEMAS:
            assert f"  {name} " in text
        assert f"torch {torch.__version__}" in text
        assert "compiled module:" in text
        assert "cpu:" in text
        assert "cuda" in text

    def test_without_a_compiled_module(self, monkeypatch):
        monkeypatch.setattr(native, "MODULE", None)
        monkeypatch.setattr(native, "REASON", "no reason")
        monkeypatch.setattr(backends, "_has_kernel", lambda operator, device: False)
        assert "compiled module: none (no reason)" in backends.describe()
        assert backends.available("native") == (False, "no reason")
        with pytest.raises(RuntimeError, match="backend 'native' cannot run here: no reason"), backends.use("native"):
            pass

    def test_of_a_compiled_module(self, monkeypatch):
        info = {"compiler": "gcc 12", "instruction_sets": ["default", "avx2"], "cuda": None}
        module = types.SimpleNamespace(build_info=lambda: info, cpu_capability=lambda: "avx2")
        monkeypatch.setattr(native, "MODULE", module)
        monkeypatch.setattr(backends, "_has_kernel", lambda operator, device: device == "cpu")
        text = backends.describe()
        assert "compiled module: compiler gcc 12, instruction_sets default avx2, cuda None" in text
        monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
        assert {(s.backend, s.detail) for s in backends.report() if s.device == "cpu"} == {("native", "avx2")}
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
        assert {s.detail for s in backends.report() if s.device == "cpu"} == {"avx2, by ATEN_CPU_CAPABILITY"}
        assert backends.available("native") == (True, "")
        monkeypatch.setattr(backends, "_has_kernel", lambda operator, device: False)
        assert "no native CPU kernels" in backends.available("native")[1]

    def test_of_the_choice(self):
        with backends.use("reference"):
            assert "chosen with pyromancy.backends.use" in backends.describe()


CUDA_TORCH = """
import sys, warnings, torch
warnings.simplefilter("error")
torch.version.cuda = "13.0"
torch.cuda.is_available = lambda: {gpu}
{before}
import pyromancy
from pyromancy import backends, ops
from pyromancy.ops import triton
"""


class TestTriton:
    """Mostly in processes in which torch says that it has CUDA and pyromancy no kernels for it, whatever is built."""

    def run(self, code, before="", gpu=True, **options):
        code = CUDA_TORCH.format(before=before, gpu=gpu) + code
        return forks.python("-c", code, package=False, PYROMANCY_NATIVE="0", **options)

    @pytest.mark.slow
    @has_triton
    def test_takes_what_no_native_kernel_serves(self):
        self.run("""
assert "triton" not in sys.modules
assert ops.SERVED_BY_TRITON == set(triton.OPERATORS) == set(ops.schema.SCHEMAS)
for s in backends.report():
    if s.device == "cuda":
        assert s.backend == "triton", s
        assert s.detail.startswith("Triton 3"), s
assert backends.available("triton", "cuda") == (True, "")
with backends.use("reference"):
    assert {s.backend for s in backends.report()} == {"reference"}
    assert not backends.available("native", "cuda")[0]
assert {s.backend for s in backends.report() if s.device == "cuda"} == {"triton"}
""")

    @pytest.mark.slow
    def test_without_a_gpu_is_not_loaded(self):
        self.run(
            """
try:
    with backends.use("triton"):
        raise AssertionError
except RuntimeError as error:
    assert str(error) == "backend 'triton' cannot run here: torch sees no GPU"
assert "triton" not in sys.modules
""",
            gpu=False,
        )

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            ("raise RuntimeError('no driver library')", "Triton does not load: RuntimeError: no driver library"),
            ("import no_such_module", "Triton does not load: No module named 'no_such_module'"),
        ],
        ids=["broken", "incomplete"],
    )
    def test_that_does_not_load_is_a_reason(self, tmp_path, body, reason):
        (tmp_path / "triton").mkdir()
        (tmp_path / "triton" / "__init__.py").write_text(body)
        text = self.run("print(backends.available('triton', 'cuda')); print(backends.describe())", path=[tmp_path])
        assert text.startswith(str((False, reason)))
        assert text.count(f"; {reason}\n") == len(schema.SCHEMAS)

    @pytest.mark.slow
    def test_that_is_not_there_is_a_reason(self):
        text = self.run(
            "assert not ops.SERVED_BY_TRITON\nprint(backends.available('triton', 'cuda'))",
            before="sys.modules['triton'] = None",
        )
        assert text.strip() == str((False, "Triton is not installed"))

    def test_says_so_when_the_reference_serves_for_it(self, monkeypatch):
        monkeypatch.setattr(triton, "load", lambda: ({}, "Triton is broken"))
        value, pred = torch.randn(2, 3, 5)
        triton._warn.cache_clear()
        with pytest.warns(RuntimeWarning, match="run on the reference on GPUs: Triton is broken"):
            energy = triton._lazily("gaussian_energy")(value, pred, None)
        torch.testing.assert_close(energy, formula(value, pred))
        triton._lazily("gaussian_energy")(value, pred, None)  # once

    def test_takes_its_kernel_once_it_is_loaded(self, monkeypatch):
        monkeypatch.setattr(triton, "load", lambda: ({"gaussian_energy": lambda *args: args}, ""))
        assert triton._lazily("gaussian_energy")(1, 2, None) == (1, 2, None)

    @pytest.mark.skipif(INTERPRETED, reason="it does run on this CPU")
    def test_on_the_cpu_needs_the_interpreter(self, monkeypatch):
        works, reason = backends.available("triton")
        assert not works
        assert "TRITON_INTERPRET=1" in reason
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.setattr(triton, "load", lambda: ({}, "Triton is broken"))
        assert backends.available("triton") == (False, "Triton is broken")
        monkeypatch.setattr(triton, "load", lambda: ({"gaussian_energy": None}, ""))
        monkeypatch.setattr(triton, "interpreted", lambda: False)
        assert backends.available("triton") == (False, "TRITON_INTERPRET=1 was set after Triton was loaded")

    @pytest.mark.slow
    def test_importing_the_package_does_not_import_it(self):
        forks.python("-c", "import sys, pyromancy; assert 'triton' not in sys.modules", package=False)
