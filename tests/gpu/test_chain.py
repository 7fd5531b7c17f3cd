"""`run_plan_` on a GPU, on every backend that runs there, against autograd in float64."""

import random

import pytest
import torch

from chains import (
    FUNCTIONS,
    MSTEP_OPTIONS,
    OPTIONS,
    STEPS,
    WIDTHS,
    check,
    check_exactly,
    check_mstep,
    check_resumed,
    descend,
    everything_wanted,
    exact_problem,
    joined,
    mstep,
    mstep_by_autograd,
    of_size,
    on,
    operator,
    planned,
    problem,
    run_plan_,
    to,
    with_gram,
    with_weights_and_scales,
)
from numerics import DENSE, FLOATS, OVERLAPPING, assert_near, name, same_bits, saying
from pyromancy import plan
from waiting import no_waiting

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

DEVICE = "cuda"
LARGE = {  # widths, batch
    "one-wide": ((1024, 1024, 1024, 10), 129),
    "narrow-to-wide": ((10, 63, 1024), 300),
    "many-samples": ((63, 65, 10), 4096),
    "many-samples-wide": ((784, 1024, 10), 4096),
    "deep": ((33, *[64] * 18, 5), 129),
    "deep-many-samples": ((33, *[64] * 18, 5), 4096),
}
# of a product's operand, where float32 is not kept
UNITS = {"high": 2.0**-11, "medium": 2.0**-8}

pytestmark = pytest.mark.usefixtures("gpu_backend")


@pytest.fixture(params=["tile", "steps"], autouse=True)
def path(request, gpu_backend, monkeypatch):
    """Both ways in which kernels run a chain."""
    if gpu_backend == "native":
        monkeypatch.setenv("PYROMANCY_CUDA_CHAIN", request.param)
    elif gpu_backend == "triton":
        from pyromancy.ops.triton import persistent

        monkeypatch.setattr(persistent, "height", lambda *_: 16 if request.param == "tile" else 0)
    elif request.param == "steps":
        pytest.skip("the reference has one way")


def quietly(function):
    def call(*operands, **arguments):
        with no_waiting():
            return function(*operands, **arguments)

    return call


def infer_(**arguments):
    return quietly(operator)(**arguments)


def gradients(**arguments):
    return quietly(mstep)(**arguments)


def there(*args, **options):
    """A problem on the device."""
    return on(DEVICE, problem(*args, **options))


@pytest.fixture
def matmul_precision(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


class TestValues:
    @pytest.mark.parametrize("dtype", FLOATS, ids=name)
    @pytest.mark.parametrize("batch", [0, 1, 3, 129])
    @pytest.mark.parametrize("widths", WIDTHS, ids=joined)
    def test_sizes(self, widths, batch, dtype):
        check(on(DEVICE, of_size(widths, batch, dtype)), infer_)

    @pytest.mark.parametrize("side", ["before", "after"])
    @pytest.mark.parametrize("activation", FUNCTIONS)
    def test_activations(self, activation, side):
        for dtype in FLOATS:
            check(there((5, 33, 7, 3), 17, **{side: activation}, dtype=dtype), infer_)

    @pytest.mark.parametrize("dtype", FLOATS, ids=name)
    @pytest.mark.parametrize("option", OPTIONS)
    def test_options(self, option, dtype):
        check(there((5, 33, 7, 6, 3), 17, record=True, dtype=dtype, **OPTIONS[option]), infer_)

    @pytest.mark.parametrize("precision", ["unit", "diagonal"])
    def test_grams_change_the_order_of_products_only(self, precision):
        check(on(DEVICE, with_gram(precision)), infer_)

    @pytest.mark.parametrize("dtype", FLOATS, ids=name)
    @pytest.mark.parametrize("size", LARGE)
    def test_large(self, size, dtype):
        check(there(*LARGE[size], "tanh", record=True, dtype=dtype), infer_)

    @pytest.mark.parametrize("dtype", FLOATS, ids=name)
    @pytest.mark.parametrize("covariances", [False, True, "one"])
    def test_weights_per_sample_and_scaled_edges(self, covariances, dtype):
        a = problem((5, 33, 40, 3), 17, "tanh", "softplus", prior="one", clamped=(-1,), covariances=covariances,
                    momentum={"momentum": 0.8}, record=True)  # fmt: skip
        check(on(DEVICE, {k: to(x, dtype) for k, x in with_weights_and_scales(a).items()}), infer_)

    @pytest.mark.parametrize("clamped", [(0, -1), (0,), (0, 2, -1)], ids=str)
    @pytest.mark.parametrize("widths", [(5, 33, 7, 3), (17, 129, 64, 33, 10)], ids=joined)
    def test_laws_and_what_they_teach(self, widths, clamped):
        for seed in range(8):
            with saying(f"seed {seed}"):
                torch.manual_seed(seed)
                a = exact_problem(random.Random(seed), widths, 64, clamped=clamped, record=seed % 2 == 0)
                check(on(DEVICE, a), infer_)
                a["swept"] = [i > 0 and free and seed % 4 > 1 for i, free in enumerate(a["free"])]
                check_exactly(a, quietly(run_plan_), DEVICE)

    def test_no_steps(self):
        arguments = there((5, 7, 3), 4) | {"steps": 0}
        before = to(arguments["states"], torch.float64)
        infer_(**arguments)
        assert all(same_bits(a, b) for a, b in zip(arguments["states"], before, strict=True))

    def test_resumes_with_its_velocities(self):
        check_resumed(there((5, 7, 3), 4, "tanh", momentum={"momentum": 0.8}), infer_)

    @pytest.mark.parametrize("layout", DENSE[1:] + OVERLAPPING, ids=lambda f: f.__name__)
    def test_weights_of_any_layout(self, layout):
        for dtype in FLOATS:
            arguments = problem((5, 33, 7), 17, "tanh", dtype=dtype)
            for key in ("weights", "biases"):
                arguments[key] = [layout(x) for x in arguments[key]]
            check(on(DEVICE, arguments), infer_)
            check_mstep(on(DEVICE, arguments), gradients)

    @pytest.mark.parametrize("dtype", FLOATS, ids=name)
    def test_a_sample_comes_to_the_same_alone(self, dtype):
        for widths in ((63, 129, 10), (33, *[64] * 18, 5)):
            together = there(widths, 129, "tanh", dtype=dtype)
            states = [z.clone() for z in together["states"]]
            infer_(**together)
            for i, j in ((0, 1), (128, 129), (60, 67)):
                alone = together | {"states": [z[i:j].clone() for z in states]}
                infer_(**alone)
                for a, b in zip(together["states"], alone["states"], strict=True):
                    assert_near(a[i:j], b, STEPS * max(widths))

    @pytest.mark.parametrize("dtype", FLOATS, ids=name)
    @pytest.mark.parametrize("batch", [0, 1, 3, 17, 300])
    @pytest.mark.parametrize("widths", WIDTHS, ids=joined)
    def test_mstep_sizes(self, widths, batch, dtype):
        check_mstep(there(widths, batch, "tanh", prior=True, dtype=dtype), gradients)

    @pytest.mark.parametrize("dtype", FLOATS, ids=name)
    @pytest.mark.parametrize("option", MSTEP_OPTIONS)
    def test_mstep_options(self, option, dtype):
        check_mstep(there((5, 33, 7, 6, 3), 17, dtype=dtype, **OPTIONS[option]), gradients)

    @pytest.mark.parametrize("side", ["before", "after"])
    @pytest.mark.parametrize("activation", FUNCTIONS)
    def test_mstep_activations(self, activation, side):
        for dtype in FLOATS:
            check_mstep(there((5, 33, 7, 3), 17, **{side: activation}, dtype=dtype), gradients)

    @pytest.mark.parametrize("dtype", FLOATS, ids=name)
    @pytest.mark.parametrize("size", LARGE)
    def test_mstep_large(self, size, dtype):
        check_mstep(there(*LARGE[size], "tanh", dtype=dtype), gradients)

    @pytest.mark.parametrize("matmul_precision", UNITS, indirect=True)
    @pytest.mark.parametrize("size", ["small", "everything", *LARGE])
    def test_less_precise_products(self, size, matmul_precision):
        small = (5, 33, 7, 6, 3), 17
        options = OPTIONS["everything"] if size == "everything" else {}
        # without the kink of its "relu": next to that, rounding decides on which side a state is
        arguments = there(*LARGE.get(size, small), record=True, dtype=torch.float32, **options | {"before": "tanh"})
        arguments["matmul_precision"] = matmul_precision
        unit = UNITS[matmul_precision] * (4 if size == "everything" else 1)  # its precisions amplify errors, to order 4
        check(arguments, infer_, unit)
        check_mstep(arguments, gradients, unit)

    @pytest.mark.parametrize("matmul_precision", UNITS, indirect=True)
    def test_float64_is_kept(self, matmul_precision):
        arguments = there((5, 33, 70, 3), 17, "tanh") | {"matmul_precision": matmul_precision}
        check(arguments, infer_)
        check_mstep(arguments, gradients)


class TestPromises:
    def test_mstep_leaves_its_operands_alone(self):
        arguments = everything_wanted(there((5, 33, 7, 3), 17, "relu", dtype=torch.float32))
        before = {k: to(x, torch.float32) for k, x in arguments.items()}
        gradients(**arguments)
        for k in ("states", "weights", "biases"):
            assert all(same_bits(a, b) for a, b in zip(arguments[k], before[k], strict=True))

    @pytest.mark.parametrize("dtype", FLOATS, ids=name)
    @pytest.mark.parametrize("size", ["one-wide", "many-samples", "deep"])
    def test_repeats_to_the_last_bit(self, size, dtype):
        arguments = problem(*LARGE[size], "tanh", record=True, dtype=dtype)
        once, again = on(DEVICE, arguments), on(DEVICE, arguments)
        for a in (once, again):
            infer_(**a)
        assert all(same_bits(a, b) for a, b in zip(once["states"], again["states"], strict=True))
        assert same_bits(once["energies"], again["energies"])
        first, second = (gradients(**everything_wanted(a)) for a in (once, again))
        assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))

    @pytest.mark.parametrize("option", ["prior", "everything"])
    def test_opcheck(self, option):
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        arguments = there((5, 7, 6, 3), 4, record=True, dtype=torch.float32, **OPTIONS[option])
        made, operands = planned(arguments)
        call = (operands.written, operands.read, *plan.encode(made))
        torch.library.opcheck(run_plan_, call, test_utils=checks)


class TestStreams:
    @pytest.mark.parametrize("option", ["prior", "everything"])
    @pytest.mark.parametrize("widths", [(5, 33, 7, 6, 3), (63, 300, 300, 10)], ids=joined)
    def test_captured_in_a_graph(self, widths, option):
        arguments = there(widths, 17, record=True, dtype=torch.float32, **OPTIONS[option])
        wanted = everything_wanted(arguments)
        start = [z.clone() for z in arguments["states"]]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            operator(**arguments)  # what is compiled or allocated once is not to be captured
            mstep(**wanted)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            operator(**arguments)
            found = mstep(**wanted)
        length = STEPS * max(widths)
        for shift in (0.0, 0.5):
            for z, z0 in zip(arguments["states"], start, strict=True):
                z.copy_(z0 + shift)
            for t in (arguments["energies"], *found):
                t.fill_(float("nan"))
            expected, energies, _ = descend(arguments)
            graph.replay()
            torch.cuda.synchronize()
            for z, e in zip(arguments["states"], expected, strict=True):
                assert_near(z, e, length)
            assert_near(arguments["energies"], energies, length**2)
            for f, e in zip(found, mstep_by_autograd(arguments), strict=True):
                assert_near(f, e, 17 * max(widths))

    @pytest.mark.parametrize("widths", [(5, 33, 7, 6, 3), (63, 300, 300, 10)], ids=joined)
    def test_on_the_current_stream(self, widths):
        late = there(widths, 17, "tanh", record=True, dtype=torch.float32)
        expected, energies, _ = descend(late)
        arguments = on(DEVICE, late)
        tensors = [*zip(arguments["states"], late["states"], strict=True),
                   *zip(arguments["weights"], late["weights"], strict=True)]  # fmt: skip
        for t, _ in tensors:
            t.zero_()
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(20_000_000)  # the operands arrive long after the call
            for t, value in tensors:
                t.copy_(value)
            infer_(**arguments)
            found = gradients(**everything_wanted(arguments))
        torch.cuda.synchronize()
        for z, e in zip(arguments["states"], expected, strict=True):
            assert_near(z, e, STEPS * max(widths))
        assert_near(arguments["energies"], energies, (STEPS * max(widths)) ** 2)
        for f, e in zip(found, mstep_by_autograd(arguments), strict=True):
            assert_near(f, e, 17 * max(widths))

    def test_on_the_device_of_its_tensors(self):
        if torch.cuda.device_count() < 2:
            pytest.skip("one CUDA device only")
        before = torch.cuda.current_device()
        for option in ("prior", "everything"):
            with saying(option):
                arguments = problem((5, 33, 7, 6, 3), 17, record=True, dtype=torch.float32, **OPTIONS[option])
                check(on(f"cuda:{1 - before}", arguments), infer_)
                check_mstep(on(f"cuda:{1 - before}", arguments), gradients)
        assert torch.cuda.current_device() == before
