"""Every operation of laws of one's own on its own, from one end of the numbers to the other, in plans of one node."""

import math

import pytest
import torch
import torch.nn.functional as F

from chains import run_plan_
from kernels import EMULATED, running
from numerics import FLOATS, name
from pyromancy import backends, plan
from pyromancy.plan.expression import Expression, Instruction, Op

KERNELS = ["emulated"] if EMULATED else [b for b in ("native", "reference") if backends.available(b)[0]]
ONE, TWO = (1.0, 1e-3, 0.3, 0.7, 1.5, 4.0, 30.0), (-2.0, -0.5, 0.0, 0.5, 3.0)
WIDE = (0.0, 1e-30, 1e-10, 1e-4, *ONE, 1e3, 1e10, 1e30, math.inf)
# what each makes of its arguments, and those of the first
FUNCTIONS = {
    Op.ADD: (torch.add, WIDE),
    Op.SUB: (torch.sub, WIDE),
    Op.MUL: (torch.mul, WIDE),
    Op.DIV: (torch.div, WIDE),
    Op.NEG: (torch.neg, WIDE),
    Op.ABS: (torch.abs, WIDE),
    Op.SIGN: (torch.sign, WIDE),
    Op.MAX: (torch.maximum, WIDE),
    Op.MIN: (torch.minimum, WIDE),
    Op.GREATER: (lambda a, b: (a > b) * 1.0, WIDE),
    Op.AT_LEAST: (lambda a, b: (a >= b) * 1.0, WIDE),
    Op.SELECT: (lambda a, b: torch.where(a != 0, b, a), WIDE),
    Op.SQRT: (torch.sqrt, WIDE),
    Op.EXP: (torch.exp, (*ONE, 80.0, 0.0, 1e-30, 1e4, math.inf)),
    Op.EXPM1: (torch.expm1, (*ONE, 80.0, 0.0, 1e-30, 1e-10, 1e4, math.inf)),
    Op.LOG: (torch.log, (*WIDE, 0.99, 1.01)),
    Op.LOG1P: (torch.log1p, (*WIDE, -0.3, -0.999)),
    Op.TANH: (torch.tanh, WIDE),
    Op.SIGMOID: (torch.sigmoid, WIDE),
    Op.SOFTPLUS: (F.softplus, (*WIDE, 19.9, 20.1)),
    Op.LOGCOSH: (lambda a: torch.logaddexp(a, -a) - math.log(2), (*ONE, 0.0, 1e3, 1e10, 1e30)),
    Op.POW: (torch.pow, (*ONE, 0.0, 20.0)),
    Op.LOGADDEXP: (torch.logaddexp, (*WIDE, -math.inf)),
}  # fmt: skip


def test_every_operation_is_tested():
    assert [*FUNCTIONS] == [*Op]


@pytest.fixture(params=KERNELS, scope="module", autouse=True)
def kernels(request):
    with running(request.param):
        yield


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("op", FUNCTIONS, ids=lambda op: op.name.lower())
def test_values(op, dtype):
    function, ends = FUNCTIONS[op]
    numbers = torch.tensor([*ends, *(-x for x in ends), math.nan], dtype=dtype)
    pairs = torch.cartesian_prod(numbers, torch.tensor(TWO, dtype=dtype))
    z, mu = (x[:, None].contiguous() for x in pairs.T)
    if op is Op.POW:  # of what is not negative, by powers that are
        z, mu = z.abs(), mu.abs() + 0.3
    energies = torch.empty(1, 1, len(z), dtype=dtype)
    law = Expression((), (Instruction(op, 0, 1 if op.arity > 1 else 0),), 0, 2, 0, 0)
    node = plan.Node(0, True, law=plan.Law.EXPRESSION, prior=2, expression=law)
    made = plan.Plan((node,), (), plan.Descent(0.0), 1, energies=1)
    run_plan_([z.clone(), energies], [mu], *plan.encode(made))
    wide = z.double(), mu.double()
    expected = function(*wide[: 2 if op.arity > 1 else 1]).expand_as(z)[:, 0].to(dtype)
    # a power is exp(b log a), whose exponents reach some tens here
    units = {Op.POW: 60, Op.LOGCOSH: 4}.get(op, 8)
    eps = torch.finfo(dtype).eps
    atol = {Op.LOGCOSH: 4 * eps, Op.LOGADDEXP: 4 * eps}.get(op, torch.finfo(dtype).tiny)
    torch.testing.assert_close(energies[0, 0], expected, rtol=units * eps, atol=atol, equal_nan=True)
