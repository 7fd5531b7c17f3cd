"""Programs of `elementwise_`: every operation against PyTorch in float64, whatever the layouts, shapes and programs."""

import itertools
import math
from random import Random

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from pyromancy import ops
from pyromancy.plan.activations import ACTIVATIONS
from pyromancy.plan.elementwise import MOST_INSTRUCTIONS, MOST_OPERANDS, OPERATIONS, arity, slope_of, value_of
from pyromancy.plan.expression import Op

# of every operation what PyTorch makes of numbers between -3 and 3, or above 0 where it asks for that
WRITTEN_OUT = {
    Op.ADD: torch.add, Op.SUB: torch.sub, Op.MUL: torch.mul, Op.DIV: torch.div, Op.NEG: torch.neg, Op.ABS: torch.abs,
    Op.SIGN: torch.sgn, Op.MAX: torch.maximum, Op.MIN: torch.minimum, Op.GREATER: lambda a, b: (a > b).double(),
    Op.AT_LEAST: lambda a, b: (a >= b).double(), Op.SELECT: lambda a, b, c: torch.where(a != 0, b, c),
    Op.SQRT: torch.sqrt, Op.EXP: torch.exp, Op.EXPM1: torch.expm1, Op.LOG: torch.log, Op.LOG1P: torch.log1p,
    Op.TANH: torch.tanh, Op.SIGMOID: torch.sigmoid, Op.SOFTPLUS: F.softplus,
    Op.LOGCOSH: lambda a: torch.log(torch.cosh(a)), Op.POW: torch.pow, Op.LOGADDEXP: torch.logaddexp,
}  # fmt: skip
POSITIVE = (Op.SQRT, Op.LOG, Op.LOG1P, Op.POW)
PARAMETERS = {"leaky_relu": 0.3, "elu": 1.4, "softplus": 1.3, "clipped_relu": 1.5, "hardtanh": 1.2}


def drawn(*shape, dtype=torch.float64, positive=False):
    x = 6 * torch.rand(shape, dtype=torch.float64) - 3
    return (x.abs() + 0.1 if positive else x).to(dtype)


def run(operation, *tensors, numbers=()):
    """One instruction of tensors, and numbers behind them."""
    out = torch.empty_like(tensors[0])
    of = [*range(len(tensors) + len(numbers)), 0, 0][: arity(operation)]
    of += [0] * (3 - len(of))
    ops.elementwise_([out], [*tensors], [operation, *of], [len(tensors) + len(numbers)], [*numbers])
    return out


def tolerance(dtype):
    return {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-6, "atol": 2e-6}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
class TestOperations:
    @pytest.mark.parametrize("op", Op, ids=lambda op: op.name)
    def test_of_expressions(self, op, dtype):
        tensors = [drawn(5, 7, 131, dtype=dtype, positive=op in POSITIVE) for _ in range(op.arity)]
        exact = WRITTEN_OUT[op](*(t.double() for t in tensors)).to(dtype)
        torch.testing.assert_close(run(op, *tensors), exact, **tolerance(dtype))

    @pytest.mark.parametrize("name", ACTIVATIONS)
    def test_of_activations(self, name, dtype):
        p = PARAMETERS.get(name, 0.0)
        x = drawn(3, 517, dtype=dtype)
        exact = x.double().clone().requires_grad_()
        y = ACTIVATIONS[name][0](exact, p)
        (slope,) = torch.autograd.grad(y.sum(), exact)
        torch.testing.assert_close(run(value_of(name), x, numbers=[p]).double(), y.detach(), **tolerance(dtype))
        found = run(slope_of(name), x, y.detach().to(dtype), numbers=[p])
        torch.testing.assert_close(found.double(), slope, **tolerance(dtype))


def transposed(t):
    return t.mT.contiguous().mT


def sliced(t):
    return torch.stack([t, t], -1)[..., 1]


def expanded(t):
    return t[:1].expand_as(t)


LAYOUTS = (lambda t: t, transposed, sliced, expanded)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("shape", [(), (1,), (513,), (0, 3), (2, 3, 5, 7), (33, 1, 65), (2, 600, 3)], ids=str)
def test_layouts_and_shapes(shape):
    """``(a + 2 b, a, 2)``, in place of the first, of operands that lie in all sorts of ways."""
    layouts = LAYOUTS if len(shape) > 1 else LAYOUTS[:1]
    for one, two, target in itertools.product(layouts, layouts, layouts[:3]):
        a, b = one(drawn(*shape)), two(drawn(*shape))
        written = [target(torch.empty(shape, dtype=torch.float64)) for _ in range(3)]
        first = a.add(b, alpha=2)
        ops.elementwise_(written, [a, b], [Op.MUL, 1, 2, 0, Op.ADD, 0, 3, 0], [4, 0, 2], [2.0])
        torch.testing.assert_close(written, [first, a, torch.full(shape, 2, dtype=torch.float64)])


@pytest.mark.usefixtures("backend")
def test_what_is_written_may_be_read():
    """All of it, also where it is written elsewhere, before."""
    for layout in LAYOUTS[:3]:
        a, b = layout(drawn(9, 700)), drawn(9, 700)
        before, other = a.clone(), torch.empty(9, 700, dtype=torch.float64)
        ops.elementwise_([a, other], [a, b], [Op.ADD, 0, 1, 0], [2, 0], [])
        torch.testing.assert_close([a, other], [before + b, before])


@pytest.mark.usefixtures("backend")
def test_long_programs_with_values_that_are_read_late():
    x = drawn(1000)
    values, code = [x], []
    for i in range(60):
        first, second = max(0, i - 7), i
        code += [Op.ADD if i % 2 else Op.SUB, first, second, 0]
        values.append(values[first] + values[second] if i % 2 else values[first] - values[second])
    outs = [torch.empty_like(x) for _ in range(3)]
    ops.elementwise_(outs, [x], code, [60, 17, 3], [])
    torch.testing.assert_close(outs, [values[60], values[17], values[3]])


EXACT = (Op.ADD, Op.SUB, Op.MUL, Op.NEG, Op.ABS, Op.MAX, Op.MIN, Op.SELECT, Op.GREATER)


@pytest.mark.usefixtures("backend")
def test_programs_that_overwrite_what_they_read():
    """Programs of exact operations on all layouts and sizes, some results in the places of operands: the same bits."""
    random = Random(0)
    for _ in range(300):
        shape = [random.choice([1, 2, 3, 8, 16, 31, 64]) for _ in range(random.randrange(1, 4))]
        layouts = LAYOUTS if len(shape) > 1 else (LAYOUTS[0], LAYOUTS[2])
        read = [random.choice(layouts)(drawn(*shape)) for _ in range(random.randrange(1, 6))]
        values, code = [t.clone() for t in read], []
        for _ in range(random.randrange(14)):
            op = random.choice(EXACT)
            of = [random.randrange(len(values)) for _ in range(3)]
            code += [op, *of]
            values.append(WRITTEN_OUT[op](*(values[k] for k in of[: op.arity])))
        owned = [t for t in read if 0 not in t.stride()]
        written = [*random.sample(owned, random.randrange(len(owned) + 1)), torch.empty(shape, dtype=torch.float64)]
        results = [random.randrange(len(values)) for _ in written]
        ops.elementwise_(written, read, code, results, [])
        for t, k in zip(written, results, strict=True):
            assert torch.equal(t, values[k])


@pytest.mark.usefixtures("backend")
def test_nan_stays_where_it_must():
    x = torch.tensor([math.nan, 1.0, -1.0])
    for op in (Op.MAX, Op.MIN):
        assert run(op, x, torch.zeros(3))[0].isnan()
        assert run(op, torch.zeros(3), x)[0].isnan()
    assert run(value_of("relu"), x, numbers=[0.0])[0].isnan()


def test_bits_do_not_depend_on_threads_and_neighbours():
    x, y = drawn(64, 3000, dtype=torch.float32), drawn(64, 3000, dtype=torch.float32)
    code, threads = [value_of("gelu"), 0, 2, 0, Op.MUL, 3, 1, 0], torch.get_num_threads()
    whole, part = torch.empty_like(x), torch.empty(1, 3000)
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            ops.elementwise_([whole], [x, y], code, [4], [0.0])
            ops.elementwise_([part], [x[11:12], y[11:12]], code, [4], [0.0])
            assert torch.equal(whole[11:12], part)
    finally:
        torch.set_num_threads(threads)


X = torch.zeros(2, 3)
WRONG = {
    "written must hold a tensor for each of results, got 1 and 2": ([X.clone()], [X], [], [0, 0], []),
    "written must hold a tensor for each of results, got 0 and 0": ([], [X], [], [], []),
    r"written\[0\] must be float32 or float64, got": ([X.half()], [X.half()], [], [0], []),
    r"read\[0\] must have the shape of written\[0\] \(2, 3\), got \(3, 2\)": ([X.clone()], [X.mT], [], [0], []),
    r"read\[1\] must have dtype": ([X.clone()], [X, X.double()], [], [0], []),
    r"written\[1\] must have dtype": ([X.clone(), X.double()], [X], [], [0, 0], []),
    "instructions must be four integers each": ([X.clone()], [X], [Op.NEG, 0, 0], [1], []),
    f"and at most {MOST_INSTRUCTIONS} of them": ([X.clone()], [X], [Op.NEG, 0, 0, 0] * 97, [1], []),
    f"instruction 0 must be one of {OPERATIONS} operations, got {OPERATIONS}": (
        [X.clone()], [X], [OPERATIONS, 0, 0, 0], [1], []
    ),
    "instruction 0 must read values before it, got 1": ([X.clone()], [X], [Op.NEG, 1, 0, 0], [1], []),
    "instruction 1 must read values before it, got -1": (
        [X.clone()], [X], [Op.NEG, 0, 0, 0, Op.ADD, 0, -1, 0], [1], []
    ),
    "results must be values of the program, got 2": ([X.clone()], [X], [Op.NEG, 0, 0, 0], [2], []),
    f"operands and numbers must be at most {MOST_OPERANDS}, got 50": ([X.clone()], [X] * 48, [], [0], [1.0]),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message, backend):
    written, *rest = WRONG[message]
    before = [t.clone() for t in written]
    with pytest.raises(RuntimeError, match=message):
        ops.elementwise_(written, *rest)
    assert all(torch.equal(a, b) for a, b in zip(written, before, strict=True))
    with FakeTensorMode() as mode:
        fakes = [[mode.from_tensor(t) for t in some] for some in (written, rest[0])]
        with pytest.raises(RuntimeError, match=message):
            torch.ops.pyromancy.elementwise_(*fakes, *rest[1:])


@pytest.mark.usefixtures("backend")
def test_memory_that_overlaps_is_refused():
    shared = torch.zeros(12)
    one, two = shared[:6].view(2, 3), shared[3:9].view(2, 3)
    for written, read in (([one], [two]), ([one, two], [X]), ([shared[:3].expand(2, 3)], [X]), ([one, one], [X])):
        with pytest.raises(RuntimeError, match=r"is written in place and must not (overlap .* in memory|be expanded)"):
            ops.elementwise_(written, read, [], [0] * len(written), [])
    assert not shared.any()


def test_opcheck():
    out = torch.empty(3, 5)
    arguments = [out], [drawn(3, 5, dtype=torch.float32)], [Op.EXP, 0, 0, 0], [1], []
    torch.library.opcheck(torch.ops.pyromancy.elementwise_.default, arguments)
