"""Products of bfloat16 on a CPU: at "medium" precision, where the processor has them."""

import itertools

import pytest
import torch

import forks
import pyromancy as pyro
from chains import MSTEP_OPTIONS, OPTIONS, check, check_mstep, joined, operator, planned, problem, run_plan_, to
from numerics import same_bits
from pyromancy import backends, plan
from pyromancy.nodes import StandardGaussianNode
from pyromancy.plan import Learned, Learning, Rule
from twins import Net

UNIT = 2.0**-8  # rounding to nearest changes an operand by up to 2^-9, and there are two
EXACT = 256  # integers up to here are bfloat16

pytestmark = [
    pytest.mark.usefixtures("native_backend"),
    pytest.mark.skipif(not backends.multiplies_bfloat16(), reason="this processor does not multiply bfloat16"),
]


def integers(*shape, largest=2):
    return torch.randint(-largest, largest + 1, shape, dtype=torch.float32)


def sparse(rows, columns):
    """A matrix with two numbers of size 1 in every row, or one."""
    w = torch.zeros(rows, columns)
    for _ in range(2):
        w[torch.arange(rows), torch.randint(columns, (rows,))] = (torch.randint(2, (rows,)) * 2 - 1).float()
    return w


def integral(widths, batch, **options):
    """A problem of small integers: three E-steps at a rate of 1, in which no operand leaves bfloat16."""
    a = problem(widths, batch, "clipped_relu", dtype=torch.float32, **options)
    a["parameters"] = [2.0 if i % 2 == 0 else 0.0 for i in range(len(a["parameters"]))]
    a |= {
        "states": [integers(batch, n) for n in widths],
        "weights": [sparse(n, m) for m, n in itertools.pairwise(widths)],
        "biases": [None if b is None else integers(len(b)) for b in a["biases"]],
        "prior": None if a["prior"] is None else integers(*a["prior"].shape),
        "precisions": [
            None if p is None else torch.eye(len(p)) + torch.eye(len(p)).roll(len(p) // 2, 0) if p.dim() == 2
            else torch.ones_like(p) for p in a["precisions"]
        ],
        "steps": 3, "lr": 1.0,
    }  # fmt: skip
    if a["energies"] is not None:
        a["energies"] = a["energies"][:3].contiguous()
    return a


def learned(a):
    """The E-steps, and gradients from the errors before the last: all that is written."""
    a = {k: to(x, torch.float32) for k, x in a.items()}
    targets = [
        (what, i, 0, torch.full_like(t, float("nan")), ())
        for what, of in ((Learned.WEIGHT, a["weights"]), (Learned.BIAS, a["biases"]))
        for i, t in enumerate(of)
        if t is not None
    ]
    made, operands = planned(a, targets, learning=Learning.WITH_EACH_STEP, rules=(Rule(),))
    run_plan_(operands.written, operands.read, *plan.encode(made))
    return operands.written


INTEGRAL = {
    "plain": {},
    "recorded": {"record": True},
    "prior": {"prior": "batch", "clamped": (-1,)},
    "clamped-within": {"clamped": (0, 2, -1)},
    "covariances": {"covariances": True, "prior": "one", "clamped": (-1,)},
    "momentum": {"momentum": {"momentum": 1.0, "nesterov": True}},
    "gram": {},
}


@pytest.mark.parametrize("batch", [1, 3, 17, 40, 129])
@pytest.mark.parametrize("widths", [(5, 33, 7, 6, 3), (1, 63, 129, 2), (40, 700, 501, 3)], ids=joined)
@pytest.mark.parametrize("option", INTEGRAL)
def test_what_bfloat16_can_hold_is_exact(option, widths, batch):
    # integers that bfloat16 holds: results are those of float32, to the last bit
    a = integral(widths, batch, **INTEGRAL[option])
    a["grams"][-1] = option == "gram"
    results = {}
    for precision in ("highest", "medium"):
        arguments = {k: to(x, torch.float32) for k, x in a.items()} | {"matmul_precision": precision}
        operator(**arguments)
        results[precision] = [*arguments["states"], *arguments["velocities"]]
        if arguments["energies"] is not None:
            results[precision].append(arguments["energies"])
        if option != "gram":
            results[precision] += learned(arguments)
    assert max(z.abs().max() for z in results["highest"][: len(widths)]) <= EXACT
    for exact, found in zip(results["highest"], results["medium"], strict=True):
        assert same_bits(exact, found)


@pytest.mark.parametrize("option", OPTIONS)
def test_rounded_operands_are_off_by_no_more_than_that(option):
    check(rounded((5, 33, 7, 6, 3), 17, record=True, **OPTIONS[option]), unit=UNIT)


@pytest.mark.parametrize("option", MSTEP_OPTIONS)
def test_gradients_of_rounded_operands_are_off_by_no_more_than_that(option):
    check_mstep(rounded((5, 33, 7, 6, 3), 300, **OPTIONS[option]), unit=UNIT)


def rounded(*args, **options):
    return problem(*args, dtype=torch.float32, **options) | {"matmul_precision": "medium"}


@pytest.mark.parametrize("widths", [(40, 129, 65, 3), (40, 1100, 901, 3)], ids=["in cache", "out of cache"])
@pytest.mark.parametrize("option", ["plain", "covariances", "gram"])
def test_neither_neighbours_nor_threads_change_a_bit(option, widths):
    covariances = {"covariances": True, "prior": "one", "clamped": (-1,), "after": "sigmoid"}
    whole = rounded(widths, 130, "tanh", **{"covariances": covariances}.get(option, {}))
    whole["grams"][-1] = option == "gram"
    together = {k: to(x, torch.float32) for k, x in whole.items()}
    operator(**together)
    threads = torch.get_num_threads()
    try:
        for n, (i, j) in itertools.product((1, 2, 7), ((77, 78), (3, 5), (0, 9), (61, 96), (0, 129))):
            torch.set_num_threads(n)
            part = {k: [t[i:j].clone() for t in x] if k == "states" else x for k, x in whole.items()}
            operator(**part)
            for a, b in zip(together["states"], part["states"], strict=True):
                assert same_bits(a[i:j], b)
    finally:
        torch.set_num_threads(threads)


def test_it_is_bfloat16_for_float32_alone():
    results = {}
    for dtype, precision in itertools.product((torch.float32, torch.float64), ("highest", "high", "medium")):
        torch.manual_seed(0)
        a = problem((5, 33, 7, 3), 17, dtype=dtype) | {"matmul_precision": precision}
        operator(**a)
        results[dtype, precision] = a["states"][1]
    for dtype in (torch.float32, torch.float64):
        assert same_bits(results[dtype, "highest"], results[dtype, "high"])
    assert same_bits(results[torch.float64, "highest"], results[torch.float64, "medium"])
    off = (results[torch.float32, "medium"] - results[torch.float32, "highest"]).abs().max()
    assert 1e-6 < off < UNIT


@pytest.fixture
def medium():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


def deep(width, hidden):
    return Net((20, *[width] * hidden, 10), (StandardGaussianNode,) * (hidden + 1))


@pytest.mark.usefixtures("medium")
def test_errors_after_a_sweep_are_zero():
    # what no error has reached in three E-steps learns nothing, and Adam would make much of little
    net = deep(33, 12)
    net.start(*batch(40))
    adam = torch.optim.Adam(net.m_params(), 0.1)
    em = pyro.EM(net.energy, net.e_params(), adam, start=net.start, steps=3, lr=0.1)
    before = [edge[1].weight.detach().clone() for edge in net.edges]
    for _ in range(3):
        em.step(*batch(40))
    assert "one call" in em.explain()
    assert "products of bfloat16" in em.explain()
    moved = [not same_bits(edge[1].weight.detach(), w) for edge, w in zip(net.edges, before, strict=True)]
    assert moved == [False] * 9 + [True] * 4


@pytest.mark.usefixtures("medium")
@pytest.mark.parametrize("size", [1, 40])
def test_states_that_a_sweep_in_float32_has_set_are_their_predictions(size):
    net = deep(64, 8)
    net.start(*batch(size))
    loop = pyro.InferenceLoop(net.energy, net.e_params(), lr=0.1)
    before = [node.value.detach().clone() for node in net.nodes]
    loop.run(1)
    assert "products of bfloat16" in loop.explain()
    moved = [(node.value.detach() - b).abs().max() for node, b in zip(net.nodes, before, strict=True)]
    assert 0 < max(moved[:-2]) < UNIT  # from the user's predictions to these
    loop.backward(net.m_params())
    assert [bool(edge[1].weight.grad.any()) for edge in net.edges] == [False] * 7 + [True] * 2


def batch(size):
    return torch.randn(size, 20), torch.randn(size, 10)


@pytest.mark.slow
def test_without_the_instruction_products_are_float32():
    code = """
import sys, torch
from pyromancy import backends
from chains import operator, problem
assert not backends.multiplies_bfloat16()
results = []
for precision in ("highest", "medium"):
    torch.manual_seed(0)
    a = problem((5, 33, 7, 3), 17, dtype=torch.float32) | {"matmul_precision": precision}
    operator(**a)
    results.append(a["states"][1])
assert torch.equal(*results)
"""
    forks.python("-c", code, package=False, ATEN_CPU_CAPABILITY="avx2")
