"""The categorical law in `run_plan_`: of rows, whatever their tiles, and whatever the logits."""

import pytest
import torch
import torch.nn.functional as F

from chains import call, descend, everything_learned, planned, problem, to, with_skips
from numerics import FLOATS, name, same_bits
from pyromancy import backends, plan
from pyromancy.plan import Descent, Edge, Law, Learning, Node, Plan, QuasiNewton, Rule, RuleKind

BACKENDS = [b for b in ("native", "triton", "reference") if backends.available(b)[0]]
INTERPRETED = "triton" in BACKENDS
BATCHES, WIDTHS = ((0, 1, 19), (2, 70)) if INTERPRETED else ((0, 1, 3, 5, 40, 129), (1, 2, 10, 17, 129, 1000))


@pytest.fixture(params=BACKENDS)
def backend(request):
    with backends.use(request.param):
        yield request.param


@pytest.fixture
def kernels():
    if "native" not in BACKENDS:
        pytest.skip("there is no compiled module")
    with backends.use("native"):
        yield


serving = pytest.mark.usefixtures("backend")
compiled = pytest.mark.usefixtures("kernels")


def classifier(widths, batch, before="tanh", dtype=torch.float64, one_hot=True, **options):
    """A chain whose last node is categorical."""
    a = problem(widths, batch, before, dtype=dtype, **options)
    n = widths[-1]
    z = F.one_hot(torch.randint(n, (batch,)), n) if one_hot else torch.randn(batch, n).softmax(1)
    a["states"][-1] = z.to(dtype)
    a["laws"] = [*[Law.GAUSSIAN] * (len(widths) - 1), Law.CATEGORICAL]
    a["thetas"] = [None] * len(widths)
    return a


def copied(a):
    return {k: to(x) for k, x in a.items()}


@serving
@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("batch", BATCHES)
def test_states_and_energies_are_those_of_autograd(n, batch):
    a = classifier((7, 33, 5, n), batch, one_hot=n % 2 == 0, record=True, scales=True, momentum={"momentum": 0.5})
    a["sample_weights"] = [None, None, None, torch.rand(batch, dtype=torch.float64)]
    states, record, _ = descend(a)
    call(*planned(a))
    for found, expected in zip(a["states"], states, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(a["energies"], record, rtol=1e-10, atol=1e-12)


@serving
def test_skips_lead_to_logits():
    a = with_skips(classifier((7, 10, 10), 19, record=True), 0.7)
    states, record, _ = descend(a)
    call(*planned(a))
    torch.testing.assert_close(a["states"][1], states[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(a["energies"], record, rtol=1e-10, atol=1e-12)


@serving
@pytest.mark.parametrize("when", [Learning.AT_THE_END, Learning.AFTER_EACH_STEP, Learning.WITH_EACH_STEP])
@pytest.mark.parametrize("sweeps", [False, True])
def test_what_is_learned_is_that_of_the_reference(when, sweeps):
    for batch in BATCHES[1:]:
        a = classifier((7, 33, 5, 10), batch)
        a["swept"] = [False, sweeps, sweeps, False]
        b, rule = copied(a), Rule(RuleKind.SGD, 0.1, first=0.9, fresh=True)
        call(*planned(a, everything_learned(a, rule), learning=when, rules=(rule,)))
        with backends.use("reference"):
            call(*planned(b, everything_learned(b, rule), learning=when, rules=(rule,)))
        for key in ("states", "weights", "biases"):
            for found, expected in zip(a[key], b[key], strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@compiled
@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("n", [3, 10, 70])
def test_bits_are_no_matter_of_the_batch(dtype, n, precision):
    """Of one, four and many samples, which have other tiles, and of a tile that is not full."""
    a = classifier((7, 40, n), 129, dtype=dtype, record=True, one_hot=False)
    a["matmul_precision"] = precision
    a["energies"] = a["energies"].to(dtype)
    parts = []
    for first, last in ((0, 1), (1, 5), (5, 20), (20, 129)):
        part = copied(a)
        part["states"] = [z[first:last].clone() for z in part["states"]]
        part["energies"] = part["energies"][:, :, first:last].clone()
        call(*planned(part))
        parts.append(part)
    call(*planned(a))
    assert same_bits(torch.cat([p["states"][1] for p in parts]), a["states"][1])
    assert same_bits(torch.cat([p["energies"] for p in parts], 2), a["energies"])


@compiled
def test_products_of_bfloat16_are_near():
    """Where there are any: logits and feedback round to 2^-9 of their terms."""
    a = classifier((7, 40, 10), 33, dtype=torch.float32)
    states = descend(a)[0]
    call(*planned(a | {"matmul_precision": "medium"}))
    torch.testing.assert_close(a["states"][1].double(), states[1], rtol=0, atol=0.02)


@compiled
@pytest.mark.parametrize("errors", [True, False])
def test_accelerated_it_ends_where_the_gradient_is_zero(errors):
    a = classifier((7, 20, 15, 10), 9)
    outcome = torch.zeros(9, 2, dtype=torch.float64)
    call(*planned(a | {"steps": 2000, "velocities": []}, method=QuasiNewton(errors=errors), outcome=outcome))
    before = [z.clone() for z in a["states"]]
    descend_once = descend(a | {"steps": 1, "lr": 1.0, "energies": None})[0]
    for z, after in zip(before, descend_once, strict=True):
        assert (z - after).abs().max() < 1e-5  # the gradient


@compiled
@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-3])
def test_what_stops_is_within_the_tolerance(tol):
    """The bound is one in a linear network, whose energy is strictly convex in errors."""
    a = classifier((7, 20, 15, 10), 65, "identity")
    a["swept"] = [False, True, True, False]
    call(*planned(a | {"steps": 0}))
    a["swept"] = [False] * 4
    total = lambda b: descend(b | {"steps": 1})[1][0].sum(0)  # noqa: E731
    first, best = total(a), copied(a)
    call(*planned(best | {"steps": 4000, "velocities": []}, method=QuasiNewton()))
    outcome = torch.zeros(65, 2, dtype=torch.float64)
    call(*planned(a | {"steps": 4000, "velocities": []}, method=QuasiNewton(tol=tol), outcome=outcome))
    assert outcome[:, 1].all()
    assert (outcome[:, 0] < 100).all()
    assert (total(a) - total(best) <= tol * (first - total(a)) + 1e-10).all()


@serving
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_extreme_logits_and_probabilities_are_finite_and_right(dtype):
    """Of logits of 1e4: the energy is their difference to the greatest, and softmax 0 and 1."""
    logits = torch.tensor([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [0.0, 1e4, 1e4]], dtype=dtype)
    z = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0]], dtype=dtype)
    state = torch.zeros(4, 3, dtype=dtype)
    energies = torch.zeros(1, 2, 4, dtype=dtype)
    nodes = (Node(0, True, law=Law.GAUSSIAN, prior=3), Node(4, False, law=Law.CATEGORICAL))
    made = Plan(nodes, (Edge(0, 1, 2),), Descent(1.0), 1, energies=1)
    identity = torch.eye(3, dtype=dtype)
    state.copy_(logits)
    torch.ops.pyromancy.run_plan_([state, energies], [identity, logits.clone(), z], *plan.encode(made))
    log3, log2 = torch.tensor(3.0).double().log(), torch.tensor(2.0).double().log()
    expected = torch.stack([log3 * 0, log3 * 0 + 2e4, log3, 5e3 + log2])
    rtol = 1e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(energies[0, 1].double(), expected, rtol=rtol, atol=0)
    third, half = 1 / 3, 0.5
    softmax = torch.tensor([[1.0, 0, 0], [1, 0, 0], [third, third, third], [0, half, half]], dtype=dtype)
    torch.testing.assert_close(state, logits + (z - softmax))
    assert state.isfinite().all()


@serving
def test_classes_of_an_order_are_one_hot_rows():
    n, rows = 10, 60
    order, classes = torch.randperm(40).repeat(2)[:60], torch.randint(n, (40,))
    outcomes = []
    for data in (classes, F.one_hot(classes, n).double()):
        torch.manual_seed(0)
        a = classifier((7, 20, n), 20)
        a["swept"] = [False, True, False]
        a["data"] = [torch.randn(40, 7, dtype=torch.float64), None, data]
        rule = Rule(RuleKind.SGD, 0.1)
        call(*planned(a, everything_learned(a, rule), learning=Learning.AT_THE_END, rules=(rule,), order=order))
        outcomes.append([*a["states"], *a["weights"], *a["biases"]])
    assert all(same_bits(x, y) for x, y in zip(*outcomes, strict=True))
    assert rows == len(order)


@serving
def test_bad_plans_are_refused():
    torch.manual_seed(0)
    free = classifier((7, 20, 10), 4, clamped=(0,))
    with pytest.raises(RuntimeError, match="node 2 must be clamped and have no theta, as its law is categorical"):
        call(*planned(free))
    with pytest.raises(RuntimeError, match="node 2 must be clamped and have no theta"):
        call(*planned(classifier((7, 20, 10), 4) | {"thetas": [None, None, torch.zeros(10).double()]}))
    bent = classifier((7, 20, 10), 4, after="tanh")
    with pytest.raises(RuntimeError, match="edge 1 must have no activation after the product: it makes logits"):
        call(*planned(bent))
    a = classifier((7, 20, 10), 4)
    before = [z.clone() for z in a["states"]]
    for wrong in (-1, 10):
        a["data"] = [None, None, torch.tensor([3, wrong, 2, 1])]
        with pytest.raises(RuntimeError, match=f"data of node 2 must be classes from 0 to 9, got {wrong} in row 1"):
            call(*planned(a, order=torch.arange(4)))
    assert all(same_bits(x, y) for x, y in zip(before, a["states"], strict=True))
