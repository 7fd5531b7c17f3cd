"""The Triton kernels on a GPU: every operator against its formula in float64, and what only a GPU can show."""

import pytest
import torch

import operators
from numerics import (
    DENSE,
    FLOATS,
    LOW,
    OVERLAPPING,
    assert_as_good_as_eager,
    assert_near,
    name,
    same_bits,
    saying,
)
from operators import CASES, LAYOUT_CASES, MUTATES, NO_HALF_SOLVER
from pyromancy import backends, ops
from pyromancy.ops import triton as kernels

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True, scope="module")
def on_triton():
    with backends.use("triton"):
        yield


def case_id(case):
    return f"{case.operator}-{case.id}"


def on_gpu(arguments):
    """The arguments on the GPU, strides kept."""
    return {k: _moved(x) if isinstance(x, torch.Tensor) else x for k, x in arguments.items()}


def _moved(t):
    memory = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())  # all of it, gaps included
    return memory.cuda().as_strided(t.shape, t.stride(), t.storage_offset())


def check(case, dtype, layout=None):
    arguments = case.arguments(dtype, layout)
    exact = case.expected(arguments)
    coarse = torch.float32 if case.operator in NO_HALF_SOLVER else dtype
    eager = case.expected(arguments, coarse) if dtype in LOW else exact
    outputs = operators.run(case, on_gpu(arguments))
    for output, truth, approximation in zip(outputs, exact, eager, strict=True):
        assert output.is_cuda
        assert output.dtype == dtype
        assert_near(output.cpu(), truth, case.length)
        if dtype in LOW:
            assert_as_good_as_eager(output.cpu(), approximation.to(dtype), truth)


def test_triton_serves():
    serving = {s.operator: s.backend for s in backends.report() if s.device == "cuda"}
    assert {o for o, backend in serving.items() if backend == "triton"} == set(kernels.OPERATORS)


@pytest.mark.parametrize("dtype", FLOATS + LOW, ids=name)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_value(case, dtype):
    check(case, dtype)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.bfloat16], ids=name)
@pytest.mark.parametrize("case", LAYOUT_CASES, ids=case_id)
def test_layouts(case, dtype):
    for layout in DENSE[1:] + OVERLAPPING:
        with saying(layout.__name__):
            check(case, dtype, layout)


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("case", operators.large_cases(), ids=case_id)
def test_large_and_repeatable(case, dtype):
    check(case, dtype)
    first, second = (operators.run(case, on_gpu(case.arguments(dtype))) for _ in range(2))
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("case", [c for c in LAYOUT_CASES if c.operator not in MUTATES], ids=case_id)
def test_captured_in_a_cuda_graph(case):
    """Nothing in a launcher waits for the device, or depends on what is in the tensors."""
    arguments = on_gpu(case.arguments(torch.float32))
    expected = operators.run(case, arguments)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = operators.run(case, arguments)
    for output in outputs:
        output.fill_(-1)
    graph.replay()
    assert all(same_bits(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_not_finite(bad):
    value, pred, factor = (
        torch.randn(3, 2, 65).cuda(),
        torch.randn(3, 2, 65).cuda(),
        operators.factor(65).float().cuda(),
    )
    value[1, 1, 40] = bad
    for energy in (ops.gaussian_energy(value, pred, None), ops.multivariate_energy(value, pred, factor)[0]):
        assert energy[[0, 2]].isfinite().all()
        assert not energy[1].isfinite()
    error = ops.multivariate_error(value, pred, factor)
    assert error[[0, 2]].isfinite().all()
    assert error[1, 0].isfinite().all()


def test_element_beyond_2_31():
    value = torch.zeros(2, 2**30 + 7, dtype=torch.bfloat16, device="cuda")  # 4 GB
    value[1, -1] = 3.0
    energy = ops.gaussian_energy(value, value[:1].expand_as(value), None)
    assert energy.tolist() == [0.0, 4.5]
