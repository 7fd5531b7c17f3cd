"""Ways through the Triton launchers that the small sizes of the interpreter do not take; test_triton.py runs this."""

import pytest
import torch
import triton
import triton.language as tl

import formulas
import tapes
from numerics import assert_near, same_bits
from pyromancy import backends, ops
from pyromancy.ops.triton import gaussian, launch, layout, multivariate


@pytest.fixture(autouse=True, scope="module")
def in_the_interpreter():
    with backends.use("triton"):
        yield


def check(call, formula, *tensors, length):
    outputs = call(*tensors)
    exact = formula(*(t if t is None else t.double() for t in tensors))
    for output, truth in zip(outputs if isinstance(outputs, tuple) else (outputs,), exact, strict=True):
        assert_near(output, truth, length)


class TestLayout:
    def test_dense_operands_become_one_dimension(self):
        merged = layout.merge((3, 5, 7), (35, 7, 1), (35, 7, 1))
        assert (merged.size, merged.sizes, merged.strides) == (105, (105,), ((1,), (1,)))
        assert merged.index == layout.tl.int32

    def test_order_is_that_of_the_first_operand(self):
        merged = layout.merge((3, 5, 7), (1, 3, 15), (1, 3, 15))
        assert (merged.sizes, merged.order) == ((105,), (2, 1, 0))

    def test_shared_positions_stay_apart(self):
        shared = layout.shared_strides(torch.zeros(3, 1, 1), (3, 5, 7))
        assert shared == (1, 0, 0)
        assert layout.merge((3, 5, 7), (35, 7, 1), shared).strides == ((35, 1), (1, 0))

    def test_far_elements_are_counted_in_64_bits(self):
        assert layout.merge((3, 2), (2**30, 1)).index == layout.tl.int64
        assert layout.merge((2**31 + 11,), (0,)).index == layout.tl.int64
        assert layout.merge((2, 2), (2**30, 1)).index == layout.tl.int32


class TestManyProgramsForASample:
    """Chunks of positions, ranges of samples, and log-variances that are shared along some of four dimensions."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        monkeypatch.setattr(launch, "TILE", 32)
        monkeypatch.setattr(gaussian, "_CHUNK", 32)
        monkeypatch.setattr(gaussian, "_RANGES", 2)

    @pytest.mark.parametrize(
        ("shared", "bits"), [((3, 2, 2, 5), 32), ((1, 2, 1, 5), 32), ((3, 1, 2, 1), 64), ((), 64)], ids=str
    )
    def test_energy_and_gradients(self, shared, bits, monkeypatch):
        if bits == 64:
            monkeypatch.setattr(layout, "_FAR", 0)
        layout.merge.cache_clear()
        value, pred = torch.randn(2, 18, 3, 2, 2, 5)
        grad, logvar = torch.randn(18), torch.randn(shared)
        for z in (value, value.transpose(2, 4).contiguous().transpose(2, 4)):
            check(ops.gaussian_energy, formulas.gaussian_energy, z[:3], pred[:3], logvar, length=60)
            backward = ops.autograd._energy_backward_logvar
            check(backward, formulas.gaussian_energy_backward_logvar, grad, z, pred, logvar, length=18 * 60)
        layout.merge.cache_clear()

    def test_sample_ignores_its_neighbours(self):
        value, pred = torch.randn(2, 5, 65)
        together = ops.gaussian_energy(value, pred, None)
        assert same_bits(ops.gaussian_energy(value[3:4], pred[3:4], None), together[3:4])


class TestFactors:
    def test_segments_of_rows(self, monkeypatch):
        monkeypatch.setattr(multivariate, "_SEGMENT", 16)
        grad, whitened, factor = torch.randn(41), torch.randn(41, 2, 5), torch.eye(5) + torch.randn(5, 5).tril(-1) / 5
        grad_value, _ = ops.autograd._multivariate_energy_backward(grad, whitened, factor)
        backward = ops.autograd._multivariate_energy_backward_factor
        formula = formulas.multivariate_energy_backward_factor
        check(backward, formula, grad, whitened, grad_value, factor, length=410)

    def test_above_the_largest_the_library_solves(self, monkeypatch):
        calls = []
        monkeypatch.setattr(multivariate, "launch", lambda *args, **options: calls.append(args))
        n = multivariate.LARGEST + 1
        value, pred, factor = torch.randn(1, 1, n), torch.randn(1, 1, n), torch.eye(n)
        energy, whitened = ops.multivariate_energy(value, pred, factor)
        assert_near(energy, 0.5 * (value - pred).double().square().sum((1, 2)), n)
        error = ops.multivariate_error(value, pred, factor)
        grads = ops.autograd._multivariate_energy_backward(torch.ones(1), whitened, factor)
        ops.autograd._multivariate_energy_backward_factor(torch.ones(1), whitened, grads[0], factor)
        assert_near(grads[0], error.double(), n)
        assert calls == []


class TestRefusals:
    def test_integers(self):
        with pytest.raises(RuntimeError, match="value must be float32, float64, bfloat16 or float16, got"):
            ops.gaussian_energy(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64), None)


@triton.jit
def sum_kernel(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n, BLOCK):
        total += tl.load(x + start + i, mask=start + i < n, other=0.0)
    tl.store(out + i, total)


@triton.jit
def sign_kernel(x, out):
    if tl.load(x) > 0:
        tl.store(out, 1)
    else:
        tl.store(out, -1)


@triton.jit
def _added(a, b):
    return a + b


@triton.jit
def added_kernel(x, y, out, SAME: tl.constexpr):
    a = tl.load(x)
    tl.store(out, _added(a, a) if SAME else _added(a, tl.load(y)))


@pytest.mark.skipif(not tapes.fit(), reason="this version of Triton has another interpreter")
class TestTapes:
    """Of a helper of these tests: what is played is what would run."""

    @pytest.fixture(autouse=True)
    def played(self, monkeypatch):
        played, play = [], tapes.Tape.play
        monkeypatch.setattr(tapes.Tape, "play", lambda tape, given: played.append(tape) or play(tape, given))
        return played

    def test_numbers_and_the_lengths_of_loops_differ(self, played):
        for n in (3, 9, 17) * 4:
            x, out = torch.randn(n), torch.empty(16)
            sum_kernel[(2,)](x, out, n, 8)
            exact = [sum(x[start + i : start + i + 1].sum() for start in range(0, n, 8)) for i in range(16)]
            assert torch.equal(out, torch.stack(exact))
        assert max(len(tape.steps) for tape in played) > 10  # whole kernels

    def test_what_depends_on_a_loaded_number_runs(self):
        out = torch.empty(1, dtype=torch.int32)
        for x in (1, 1, 1, 1, -1, 1, -1):
            sign_kernel[(1,)](torch.tensor([x]), out)
            assert out == x

    def test_one_tensor_given_twice(self):
        out = torch.empty(1)
        for same in (True, False) * 5:
            added_kernel[(1,)](torch.tensor([1.0]), torch.tensor([5.0]), out, same)
            assert out == (2 if same else 6)
