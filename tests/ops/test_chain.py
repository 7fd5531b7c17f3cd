"""`infer_chain_` and `chain_mstep` against autograd on the energy written out, in float64."""

import inspect

import pytest
import torch

from chains import (
    BATCHES,
    FUNCTIONS,
    MSTEP_BATCHES,
    MSTEP_FUNCTIONS,
    MSTEP_OPTIONS,
    OPTIONS,
    SOME,
    WIDTHS,
    check,
    check_mstep,
    check_known,
    check_resumed,
    everything_wanted,
    joined,
    mstep,
    mstep_by_autograd,
    of_size,
    operator,
    problem,
    to,
    with_gram,
)
from numerics import FLOATS, assert_near, name, same_bits
from pyromancy.ops import activations, schema

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("widths", WIDTHS, ids=joined)
def test_sizes(widths, batch, dtype):
    check(of_size(widths, batch, dtype))


def test_every_activation_has_a_number():
    assert [*activations.ACTIVATIONS] == [*FUNCTIONS]


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_activations(activation, side):
    for dtype in FLOATS:
        check(problem((5, 33, 7, 3), SOME, **{side: activation}, dtype=dtype))


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("option", OPTIONS)
def test_options(option, dtype):
    check(problem((5, 33, 7, 6, 3), SOME, record=True, dtype=dtype, **OPTIONS[option]))


@pytest.mark.parametrize("precision", ["unit", "diagonal"])
def test_grams_change_the_order_of_products_only(precision):
    check(with_gram(precision))


def test_no_steps():
    arguments = problem((5, 7, 3), 4) | {"steps": 0}
    before = to(arguments["states"], torch.float64)
    operator(**arguments)
    assert all(same_bits(a, b) for a, b in zip(arguments["states"], before, strict=True))


@pytest.mark.parametrize("resume", [False, True], ids=["fresh", "resumed"])
def test_no_steps_leave_velocities_alone(resume):
    arguments = problem((5, 7, 3), 4, momentum={"momentum": 0.8, "resume": resume}) | {"steps": 0}
    arguments["velocities"] = [torch.full_like(v, 0.1) for v in arguments["velocities"]]
    operator(**arguments)
    assert all((v == 0.1).all() for v in arguments["velocities"])


def test_resumes_with_its_velocities():
    check_resumed(problem((5, 7, 3), 4, "tanh", momentum={"momentum": 0.8}))


def test_weights_of_any_layout():
    arguments = problem((5, 33, 7), 17)
    arguments["weights"] = [w.T.contiguous().T for w in arguments["weights"]]
    arguments["biases"] = [torch.stack([b, b], 1)[:, 0] for b in arguments["biases"]]
    check(arguments)


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("batch", MSTEP_BATCHES)
@pytest.mark.parametrize("widths", WIDTHS, ids=joined)
def test_mstep_sizes(widths, batch, dtype):
    check_mstep(problem(widths, batch, "tanh", prior=True, dtype=dtype))


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("option", MSTEP_OPTIONS)
def test_mstep_options(option, dtype):
    check_mstep(problem((5, 33, 7, 6, 3), 17, dtype=dtype, **OPTIONS[option]))


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("activation", MSTEP_FUNCTIONS)
def test_mstep_activations(activation, side):
    for dtype in FLOATS:
        check_mstep(problem((5, 33, 7, 3), SOME, **{side: activation}, dtype=dtype))


@pytest.mark.parametrize("batch", [0, 3])
def test_mstep_of_a_node_without_neurons(batch):
    arguments = problem((5, 0, 3), batch, prior="one", covariances=True)
    arguments["precisions"] = [torch.eye(n, dtype=torch.float64) for n in (5, 0, 3)]
    found = mstep(**everything_wanted(arguments))
    assert [tuple(f.shape) for f in found] == [(0, 5), (3, 0), (0,), (3,), (5, 5), (0, 0), (3, 3)]


@pytest.mark.parametrize("batch", MSTEP_BATCHES[1:])
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_mstep_takes_over_known_predictions_unless_something_changed(batch, dtype):
    arguments = problem((5, 33, 7, 3), batch, "tanh", dtype=dtype)
    *predictions, table = operator(**arguments)
    assert table[:, 0].tolist() == [0]
    x, w, b = arguments["states"][0], arguments["weights"][0], arguments["biases"][0]
    assert_near(predictions[0], torch.tanh(x.double()) @ w.double().T + b.double(), 5)
    known, exact = [*predictions, table], mstep_by_autograd(arguments)
    wanted = everything_wanted(arguments)
    for f, e in zip(mstep(**wanted | {"known": known}), exact, strict=True):
        assert_near(f, e, 33 * batch)
    for changed in (x, w, b):  # by a way that leaves no trace but the contents
        changed.data.view(-1)[-1] += 0.5
        for f, e in zip(mstep(**wanted | {"known": known}), mstep_by_autograd(arguments), strict=True):
            assert_near(f, e, 33 * batch)
        changed.data.view(-1)[-1] -= 0.5


def test_mstep_notices_signs_that_flip():
    check_known()


def test_known_predictions_of_another_chain_are_left_alone():
    known = operator(**problem((5, 33, 7, 3), 17))
    other = problem((4, 6, 3), 5)
    for f, e in zip(mstep(**everything_wanted(other) | {"known": known}), mstep_by_autograd(other), strict=True):
        assert_near(f, e, 33)


def test_mstep_leaves_its_operands_alone():
    arguments = everything_wanted(problem((5, 33, 7, 3), 17, "relu", dtype=torch.float32))
    before = {k: to(x, torch.float32) for k, x in arguments.items()}
    mstep(**arguments)
    for k in ("states", "weights", "biases"):
        assert all(same_bits(a, b) for a, b in zip(arguments[k], before[k], strict=True))


def test_mstep_opcheck():
    arguments = everything_wanted(problem((5, 7, 6, 3), 4, dtype=torch.float32, covariances=True, prior="one"))
    torch.library.opcheck(mstep, (), arguments)


@pytest.mark.parametrize("option", ["prior", "everything"])
def test_opcheck(option):
    # AOTAutograd takes no operator that writes to lists and returns one; the loop is not for `torch.compile`
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = problem((5, 7, 6, 3), 4, record=True, dtype=torch.float32, **OPTIONS[option])
    torch.library.opcheck(operator, (), arguments, test_utils=checks)


def test_signature_is_the_references():
    from pyromancy.ops import chain

    assert [*inspect.signature(chain.infer_chain_).parameters] == [a.name for a in operator._schema.arguments]
    assert "infer_chain_" in schema.SCHEMAS
