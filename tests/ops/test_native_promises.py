"""What only the compiled kernels promise: bits that depend on neither threads nor neighbours, and 64-bit counts."""

import pytest
import torch

import operators
from chains import everything_wanted, mstep, operator, problem, to
from numerics import FLOATS, LOW, name, same_bits
from pyromancy import ops, plan
from pyromancy.plan.activations import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("native_backend")


def case_id(case):
    return f"{case.operator}-{case.id}"


@pytest.mark.parametrize("dtype", [*FLOATS, *LOW], ids=name)
@pytest.mark.parametrize("case", operators.large_cases(), ids=case_id)
def test_thread_count_changes_no_bit(case, dtype):
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(operators.run(case, case.arguments(dtype)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [*FLOATS, *LOW], ids=name)
@pytest.mark.parametrize("node", [(5,), (63,), (129,), (3, 5, 7), (2000,)], ids=operators.size)
def test_energy_of_a_sample_ignores_its_neighbours(node, dtype):
    value, pred = torch.randn(2, 37, *node).to(dtype)
    for logvar in operators.logvars(node).values():
        logvar = None if logvar is None else logvar.to(dtype)
        together = ops.gaussian_energy(value, pred, logvar)
        for i, j in ((0, 1), (36, 37), (3, 20)):
            alone = ops.gaussian_energy(value[i:j].clone(), pred[i:j].clone(), logvar)
            assert same_bits(together[i:j], alone)


@pytest.mark.parametrize("dtype", [*FLOATS, *LOW], ids=name)
@pytest.mark.parametrize("shape", [(37, 1, 3), (37, 1, 63), (37, 3, 17), (70, 1, 129)], ids=operators.size)
def test_multivariate_results_of_a_sample_ignore_their_neighbours(shape, dtype):
    value, pred = torch.randn(2, *shape).to(dtype)
    factor = operators.factor(shape[-1]).to(dtype)
    together = (*ops.multivariate_energy(value, pred, factor), ops.multivariate_error(value, pred, factor))
    for i, j in ((0, 1), (shape[0] - 1, shape[0]), (3, 20)):
        part = value[i:j].clone(), pred[i:j].clone(), factor
        alone = (*ops.multivariate_energy(*part), ops.multivariate_error(*part))
        assert all(same_bits(a[i:j], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("widths", [(40, 129, 65, 3), (40, 700, 500, 3)], ids=["in cache", "out of cache"])
@pytest.mark.parametrize("option", ["plain", "after", "covariances", "momentum", "gram"])
def test_a_sample_ignores_its_neighbours(option, widths, dtype):
    # batches of these sizes, with matrices that do and do not fit a core's cache, run in every kind of tile
    options = {
        "plain": {"before": "relu"},
        "after": {"before": "leaky_relu", "after": "tanh"},
        "covariances": {"covariances": True, "prior": "one", "clamped": (-1,), "after": "sigmoid"},
        "momentum": {"momentum": {"momentum": 0.8, "nesterov": True}, "before": "gelu"},
        "gram": {"before": "tanh"},
    }[option]
    record = option != "gram"
    whole = problem(widths, 130, dtype=dtype, record=record, **options)
    whole["grams"][-1] = option == "gram"
    samples = ("states", "velocities")
    together = {k: to(x, dtype) for k, x in whole.items()}
    operator(**together)
    for i, j in ((77, 78), (3, 5), (0, 9), (100, 117), (61, 96), (0, 129)):
        part = {k: [t[i:j].clone() for t in x] if k in samples else to(x, dtype) for k, x in whole.items()}
        if record:
            part["energies"] = whole["energies"][..., i:j].clone()
        operator(**part)
        for a, b in zip(together["states"], part["states"], strict=True):
            assert same_bits(a[i:j], b)
        assert not record or same_bits(together["energies"][..., i:j], part["energies"])


@pytest.mark.parametrize(
    ("activation", "exact", "units"),
    [
        ("tanh", torch.tanh, 7),
        ("sigmoid", torch.sigmoid, 4),
        ("softplus", torch.nn.functional.softplus, 4),
        ("elu", torch.nn.functional.elu, 4),
    ],
)
def test_activations_are_as_accurate_as_documented(activation, exact, units):
    # the prediction of an edge whose weight is 1 is the activation itself
    magnitudes = torch.cat([torch.logspace(-30, 1.3, 100_001), torch.linspace(0.01, 20, 200_001)])
    x = torch.cat([magnitudes, -magnitudes, torch.tensor([0.0, float("inf"), -float("inf")])]).unsqueeze(1)
    found = torch.empty_like(x)
    made = plan.Plan(
        (plan.Node(1, False), plan.Node(0, True, swept=True, law=plan.Law.GAUSSIAN)),
        (plan.Edge(0, 1, 2, before=plan.Activation([*ACTIVATIONS].index(activation), 1.0)),),
        plan.Descent(0.1), 0,
    )  # fmt: skip
    ops.run_plan_([found], [x, torch.ones(1, 1)], *plan.encode(made))
    expected = exact(x.double())
    rounded = expected.float().abs()
    unit = (torch.nextafter(rounded, torch.full_like(rounded, float("inf"))) - rounded).double()
    finite = expected.isfinite() & (rounded >= torch.finfo(torch.float32).tiny)
    assert ((found.double() - expected).abs() / unit)[finite].max() <= units
    assert found[~expected.isfinite()].double().equal(expected[~expected.isfinite()])
    if activation == "tanh":
        assert found.abs().max() == 1


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("batch", [1, 4, 20, 300])
@pytest.mark.parametrize("widths", [(40, 129, 65, 3), (40, 700, 500, 3)], ids=["in cache", "out of cache"])
@pytest.mark.parametrize("option", ["plain", "covariances", "gram"])
def test_threads_change_no_bit(option, widths, batch, dtype):
    # one thread takes a tile through all steps; several share out tiles, or the rows of every product
    threads, results = torch.get_num_threads(), []
    covariances = {"covariances": True, "prior": "one", "clamped": (-1,), "after": "sigmoid", "record": True}
    options = {"plain": {"momentum": {"momentum": 0.8}}, "covariances": covariances, "gram": {}}[option]
    first = problem(widths, batch, "relu", dtype=dtype, **options)
    first["grams"][-1] = option == "gram"
    try:
        for n in (1, 2, 3, 7, 64):
            torch.set_num_threads(n)
            arguments = {k: to(x, dtype) for k, x in first.items()}
            operator(**arguments)
            recorded = [] if arguments["energies"] is None else [arguments["energies"]]
            results.append([*arguments["states"], *recorded, *mstep(**everything_wanted(arguments))])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_batch_whose_stages_are_shared_out_in_turns():
    # its tiles take more memory than are worked on at once
    threads = torch.get_num_threads()
    whole = problem((40, 700, 500, 3), 2700, "relu", dtype=torch.float32)
    parts = [{k: [t[i:j].clone() for t in x] if k == "states" else x for k, x in whole.items()}
             for i, j in ((0, 5), (2600, 2700))]  # fmt: skip
    try:
        torch.set_num_threads(7)
        operator(**whole)
    finally:
        torch.set_num_threads(threads)
    for (i, j), part in zip(((0, 5), (2600, 2700)), parts, strict=True):
        operator(**part)
        for a, b in zip(whole["states"], part["states"], strict=True):
            assert same_bits(a[i:j], b)


@pytest.mark.slow
def test_more_than_2_31_elements():
    # one element in memory; a 32-bit count would be off by 2^32 or negative
    count = 2**31 + 11
    value, pred = torch.full((1, 1), 3.0), torch.ones(1, 1)
    energy = ops.gaussian_energy(value.expand(1, count), pred.expand(1, count), None)
    assert energy.item() == pytest.approx(2.0 * count, rel=1e-5)
