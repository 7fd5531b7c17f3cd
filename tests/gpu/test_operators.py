"""Every operator on a GPU, on every backend that runs there, against its formula in float64."""

import threading

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
    contiguous,
    moved,
    name,
    same_bits,
    saying,
    transposed,
)
from operators import CASES, DIFFERENTIABLE, LAYOUT_CASES, NO_HALF_SOLVER, OPERATORS
from pyromancy import functional, ops

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

DEVICE = "cuda"


def case_id(case):
    return f"{case.operator}-{case.id}"


def on(device, arguments):
    """The arguments with tensors on a device, their strides kept, sharing nothing with the originals."""
    return {key: moved(x, device) if isinstance(x, torch.Tensor) else x for key, x in arguments.items()}


def check(case, dtype, layout=None, device=DEVICE):
    arguments = case.arguments(dtype, layout)
    exact = case.expected(arguments)
    coarse = torch.float32 if case.operator in NO_HALF_SOLVER else dtype
    eager = case.expected(arguments, coarse) if dtype in LOW else exact
    outputs = operators.run(case, on(device, arguments))
    assert len(outputs) == len(exact)
    for output, truth, approximation in zip(outputs, exact, eager, strict=True):
        assert output.dtype == dtype
        assert output.device.type == "cuda"
        assert_near(output.cpu(), truth, case.length)
        if dtype in LOW:
            assert_as_good_as_eager(output.cpu(), approximation.to(dtype), truth)


def large_cases(operator):
    """More than one chunk, range and slice of every sum."""
    states = ((3, (40_001,)), (4000, (64,)), (64, (8, 20, 32)), (1 << 17, (3,)))
    return operators.cases(operator, states, ((4096, 1, 128), (5, 301, 17), (70, 1, 300)))


def packed_cases():
    """Sizes that can be read 16 bytes at a time, with what is left of it in place, and every way to share logvar."""
    states = ((5, (64,)), (3, (5, 4, 6)), (3, (7,)), (2, (16, 8)))
    return [c for o in OPERATORS for c in operators.cases(o, states, ((40, 1, 32), (3, 4, 64)))]


def representative(operator):
    """The call of an operator with the most tensors in it."""
    some = [case for case in LAYOUT_CASES if case.operator == operator]
    return max(some, key=lambda case: sum(isinstance(x, torch.Tensor) and x.dim() > 0 for x in case.inputs.values()))


@pytest.mark.usefixtures("gpu_backend")
class TestValues:
    @pytest.mark.parametrize("dtype", FLOATS + LOW, ids=name)
    @pytest.mark.parametrize("case", CASES, ids=case_id)
    def test_value(self, case, dtype):
        check(case, dtype)

    @pytest.mark.parametrize("dtype", FLOATS + LOW, ids=name)
    def test_packed(self, dtype):
        for case in packed_cases():
            with saying(case_id(case)):
                check(case, dtype)

    @pytest.mark.parametrize("dtype", [*FLOATS, torch.bfloat16], ids=name)
    @pytest.mark.parametrize("case", LAYOUT_CASES, ids=case_id)
    def test_layouts(self, case, dtype):
        for layout in DENSE[1:] + OVERLAPPING:
            with saying(layout.__name__):
                check(case, dtype, layout)

    @pytest.mark.parametrize("case", LAYOUT_CASES, ids=case_id)
    def test_mixed_layouts(self, case):
        check(case, torch.float32, (contiguous, transposed))
        check(case, torch.float32, (*reversed(DENSE), *OVERLAPPING))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
    @pytest.mark.parametrize("operator", OPERATORS)
    def test_large(self, operator, dtype):
        for case in large_cases(operator):
            with saying(case_id(case)):
                check(case, dtype)


@pytest.mark.usefixtures("gpu_backend")
class TestStreams:
    @pytest.mark.parametrize("operator", OPERATORS)
    def test_captured_in_a_graph(self, operator):
        case = representative(operator)
        arguments = on(DEVICE, case.arguments(torch.float32))
        start = {key: arguments[key].clone() for key in case.written}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            operators.run(case, arguments)  # what is compiled or allocated once is not to be captured
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = operators.run(case, arguments)
        exact = case.expected(case.arguments(torch.float32))
        for _ in range(2):
            for key, x in start.items():
                arguments[key].copy_(x)
            for output in outputs if not start else ():
                output.fill_(float("nan"))
            graph.replay()
            torch.cuda.synchronize()
            for output, truth in zip(outputs, exact, strict=True):
                assert_near(output.cpu(), truth, case.length)

    @pytest.mark.parametrize("operator", OPERATORS)
    def test_on_the_current_stream(self, operator):
        case = representative(operator)
        late = on(DEVICE, case.arguments(torch.float32))
        arguments = {k: torch.zeros_like(x) if isinstance(x, torch.Tensor) else x for k, x in late.items()}
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(20_000_000)  # the operands arrive long after the call
            for key, x in late.items():
                if isinstance(x, torch.Tensor):
                    arguments[key].copy_(x)
            outputs = [output.clone() for output in operators.run(case, arguments)]
        torch.cuda.synchronize()
        for output, truth in zip(outputs, case.expected(case.arguments(torch.float32)), strict=True):
            assert_near(output.cpu(), truth, case.length)

    @pytest.mark.parametrize("operator", OPERATORS)
    def test_on_the_device_of_its_tensors(self, operator):
        if torch.cuda.device_count() < 2:
            pytest.skip("one CUDA device only")
        before = torch.cuda.current_device()
        check(representative(operator), torch.float32, device=f"cuda:{1 - before}")
        assert torch.cuda.current_device() == before

    def test_from_another_thread(self):
        failures = []

        def work():
            try:
                for operator in OPERATORS:
                    check(representative(operator), torch.float32)
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert not failures


@pytest.mark.usefixtures("gpu_backend")
class TestPyTorch:
    @pytest.mark.parametrize("operator", DIFFERENTIABLE)
    def test_gradients(self, operator):
        case = representative(operator)
        arguments = on(DEVICE, case.arguments())
        keys = [k for k, x in arguments.items() if isinstance(x, torch.Tensor)]
        leaves = [arguments[k].nan_to_num().requires_grad_() for k in keys]

        def call(*tensors):
            return operators.run(case, arguments | dict(zip(keys, tensors, strict=True)))[0]

        assert torch.autograd.gradcheck(call, leaves, fast_mode=True)

    @pytest.mark.parametrize("operator", OPERATORS)
    def test_fakes_foretell_what_comes_out(self, operator):
        for layout in DENSE:
            arguments = on(DEVICE, representative(operator).arguments(torch.float32, layout))
            if "offtril" in arguments:
                arguments["offtril"].nan_to_num_()
            overload = getattr(torch.ops.pyromancy, operator).default
            torch.library.opcheck(overload, (), arguments, test_utils=("test_schema", "test_faketensor"))

    @pytest.mark.parametrize("operator", OPERATORS)
    def test_traced_in_one_graph(self, operator):
        case = representative(operator)
        overload = getattr(torch.ops.pyromancy, operator).default
        torch.compiler.reset()
        compiled = torch.compile(lambda arguments: overload(**arguments), fullgraph=True, backend="aot_eager")
        arguments = on(DEVICE, case.arguments(torch.float32))
        with torch.no_grad():
            result = compiled(arguments)
        outputs = tuple(arguments[key] for key in case.written) or result
        outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
        for output, truth in zip(outputs, case.expected(case.arguments(torch.float32)), strict=True):
            assert_near(output.cpu(), truth, case.length)

    def test_compiled_with_inductor(self):
        pytest.importorskip("triton")

        def step(value, pred, logvar):
            energy = ops.gaussian_energy(value * 2, pred + 1, logvar)
            functional.estep_(value, ops.gaussian_error(value, pred, logvar, None), lr=0.1)
            return 2 * energy

        value, pred = torch.randn(2, 33, 65, device=DEVICE)
        logvar = torch.randn(65, device=DEVICE)
        expected = value.clone()
        energy = step(expected, pred, logvar)
        with torch.no_grad():
            torch.testing.assert_close(torch.compile(step, fullgraph=True)(value, pred, logvar), energy)
        torch.testing.assert_close(value, expected)


@pytest.mark.usefixtures("native_gpu")
class TestPromises:
    """What only the CUDA kernels promise."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
    @pytest.mark.parametrize("operator", OPERATORS)
    def test_repeats_to_the_last_bit(self, operator, dtype):
        for case in large_cases(operator):
            first, second = (operators.run(case, on(DEVICE, case.arguments(dtype))) for _ in range(2))
            assert all(same_bits(a.cpu(), b.cpu()) for a, b in zip(first, second, strict=True))

    @pytest.mark.parametrize("dtype", [*FLOATS, *LOW], ids=name)
    def test_a_sample_ignores_its_neighbours(self, dtype):
        for node in ((5,), (64,), (3, 5, 7), (20_000,)):
            value, pred = torch.randn(2, 37, *node, device=DEVICE).to(dtype)
            together = ops.gaussian_energy(value, pred, None)
            for i, j in ((0, 1), (36, 37), (3, 20)):
                alone = ops.gaussian_energy(value[i:j].clone(), pred[i:j].clone(), None)
                assert same_bits(together[i:j].cpu(), alone.cpu())
        for shape in ((37, 1, 3), (37, 3, 17), (70, 1, 129)):
            value, pred = torch.randn(2, *shape, device=DEVICE).to(dtype)
            factor = operators.factor(shape[-1]).to(DEVICE, dtype)
            together = (*ops.multivariate_energy(value, pred, factor), ops.multivariate_error(value, pred, factor))
            for i, j in ((0, 1), (shape[0] - 1, shape[0]), (3, 20)):
                part = value[i:j].clone(), pred[i:j].clone(), factor
                alone = (*ops.multivariate_energy(*part), ops.multivariate_error(*part))
                assert all(same_bits(a[i:j].cpu(), b.cpu()) for a, b in zip(together, alone, strict=True))

    def test_more_work_than_a_grid_has_blocks(self):
        value, pred = torch.randn(2, 3_000_001, 3, device=DEVICE)
        wide = value.double() - pred.double()
        assert_near(ops.gaussian_energy(value, pred, None), 0.5 * wide.square().sum(1), 3)
        factor = operators.factor(3).to(DEVICE)
        energy, whitened = ops.multivariate_energy(value[:, None], pred[:, None], factor.float())
        exact = torch.linalg.solve_triangular(factor.float().double(), wide.mT, upper=False).mT
        assert_near(whitened[:, 0], exact, 9)
        assert_near(energy, 0.5 * exact.square().sum(1) + factor.float().double().diagonal().log().sum(), 9)
        huge = torch.zeros(150_000_001, device=DEVICE)
        functional.estep_(huge, torch.ones(1, device=DEVICE).expand_as(huge), lr=1.0)
        assert (huge == -1).all()

    def test_more_than_2_31_elements(self):
        count = 2**31 + 11
        value, pred = torch.full((1, 1), 3.0, device=DEVICE), torch.ones(1, 1, device=DEVICE)
        energy = ops.gaussian_energy(value.expand(1, count), pred.expand(1, count), None)
        assert energy.item() == pytest.approx(2.0 * count, rel=1e-5)

    def test_writes_past_2_31_elements(self):
        count = 2**31 + 24
        if torch.cuda.mem_get_info()[0] < 4 * count:
            pytest.skip("less than 9 GB of device memory")
        value = torch.zeros(count, device=DEVICE, dtype=torch.bfloat16)
        functional.estep_(value, torch.ones(1, device=DEVICE, dtype=torch.bfloat16).expand(count), lr=1.0)
        assert (value[-40:] == -1).all()
        assert (value[:40] == -1).all()
        functional.estep_(value, value, lr=1.0)  # 16 bytes at a time
        assert not value[-40:].any()
        assert not value[:40].any()
