"""What serves an operator, and how to choose another."""

import threading
import types

import pytest
import torch

import processes
from conftest import BACKENDS
from pyromancy import backends, native, ops
from pyromancy.ops import schema


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
        if torch.version.cuda is None:
            for name in backends.BACKENDS:
                assert backends.available(name, "cuda") == (False, f"torch {torch.__version__} is built without CUDA")

    def test_triton_says_why_not(self):
        works, reason = backends.available("triton")
        assert not works
        assert "Triton" in reason or "CUDA" in reason

    def test_unknown_names(self):
        with pytest.raises(ValueError, match="backend must be one of native, triton, reference, got 'cuda'"):
            backends.available("cuda")
        with pytest.raises(ValueError, match="device must be one of cpu, cuda, got 'mps'"):
            backends.available("reference", "mps")

    @pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
    def test_of_a_torch_with_cuda(self, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        assert backends.available("reference", "cuda") == (True, "")
        works, reason = backends.available("native", "cuda")
        assert not works
        assert reason == native.REASON or "no native CUDA kernels" in reason
        assert "\ncuda:\n" in backends.describe()


class TestUse:
    @pytest.mark.parametrize("name", BACKENDS)
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

    @pytest.mark.parametrize("inner", BACKENDS)
    @pytest.mark.parametrize("outer", BACKENDS)
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

    @pytest.mark.parametrize("name", BACKENDS)
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

    def test_what_cannot_run_raises_with_the_reason(self):
        before = serving()
        for name in backends.BACKENDS:
            works, reason = backends.available(name)
            if not works:
                with pytest.raises(RuntimeError) as error, backends.use(name):
                    pass
                assert str(error.value) == f"backend {name!r} cannot run here: {reason}"
        assert "triton" not in BACKENDS
        assert serving() == before

    def test_unknown_names(self):
        with pytest.raises(ValueError, match="backend must be one of native, triton, reference, got 'fast'"), \
                backends.use("fast"):  # fmt: skip
            pass

    def test_gradients_follow(self):
        for name in BACKENDS:
            with backends.use(name):
                value = torch.randn(3, 5, requires_grad=True)
                ops.gaussian_energy(value, torch.zeros(3, 5), None).sum().backward()
                torch.testing.assert_close(value.grad, value.detach())


class TestDescription:
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
