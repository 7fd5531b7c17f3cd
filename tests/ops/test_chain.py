"""`infer_chain_` and `chain_mstep` against autograd on the energy written out, in float64."""

import inspect
import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

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
    check_known,
    check_mstep,
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
from numerics import FLOATS, assert_near, name, same_bits, saying
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


@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("widths", [(5, 0, 3), (0, 3, 4), (4, 0, 3, 4)], ids=joined)
def test_nodes_without_neurons(widths, batch):
    """What they predict is the bias."""
    check(problem(widths, batch, "tanh", record=True))
    check_mstep(problem(widths, batch, "tanh", prior="one"))


@pytest.mark.parametrize("batch", [0, 3])
def test_mstep_of_a_node_without_neurons_and_with_a_covariance(batch):
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


def refuses(call, arguments, message):
    """The backend refuses, with what it would write as it was, and so does the fake."""
    before = to(arguments["states"], arguments["states"][0].dtype)
    with pytest.raises(RuntimeError, match=re.escape(message)), saying("values"):
        call(**arguments)
    assert all(same_bits(a, b) for a, b in zip(arguments["states"], before, strict=True))
    with FakeTensorMode() as mode, pytest.raises(RuntimeError, match=re.escape(message)), saying("fakes"):
        call(**{k: faked(x, mode) for k, x in arguments.items()})


def faked(x, mode):
    if isinstance(x, list):
        return [faked(y, mode) for y in x]
    return mode.from_tensor(x) if isinstance(x, torch.Tensor) else x


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"lr": float("nan")}, "lr must be finite, got nan"),
            ({"momentum": float("nan")}, "momentum must be finite, got nan"),
            ({"dampening": float("inf")}, "dampening must be finite, got inf"),
            ({"steps": -1}, "steps must not be negative, got -1"),
            ({"free": [True]}, "free must have 3 entries for 3 states, got 1"),
            ({"weights": [torch.zeros(7, 5)]}, "weights must have 2 entries for 3 states, got 1"),
            ({"parameters": [0.0]}, "parameters must have 4 entries for 3 states, got 1"),
            ({"velocities": [torch.zeros(4, 5)]}, "velocities must have 3 entries for 3 states, got 1"),
            ({"predicted": [True, True, True]}, "predicted[0] must be true exactly where there is a prior"),
            ({"activations": [0, 0, 10, 0]}, "activations must be from 0 to 9, got 10"),
            (
                {"weights": [torch.zeros(7, 5), torch.zeros(7, 3)]},
                "weights[1] must have shape (3, 7), got (7, 3)",
            ),
            ({"weights": [torch.zeros(7, 5).double(), torch.zeros(3, 7)]}, "weights[0] must have dtype"),
            ({"biases": [None, torch.zeros(7)]}, "biases[1] must have shape (3,), got (7,)"),
            ({"biases": [None, torch.zeros(3).half()]}, "biases[1] must have dtype"),
            (
                {"precisions": [None, torch.zeros(3, 3), None]},
                "precisions[1] must have shape (7,) or (7, 7), got (3, 3)",
            ),
            (
                {"precisions": [None, torch.tensor(1.0), None]},
                "precisions[1] must have shape (7,) or (7, 7), got ()",
            ),
            ({"prior": torch.zeros(3, 5)}, "prior must have shape (1, 5) or (4, 5), got (3, 5)"),
            ({"grams": [torch.eye(5), None]}, "grams[0] needs a free source"),
            ({"grams": [None, torch.eye(5)]}, "grams[1] must have shape (7, 7), got (5, 5)"),
            (
                {"velocities": [torch.zeros(4, 5), torch.zeros(7, 4).T, torch.zeros(4, 3)]},
                "velocities[1] must be contiguous, got strides (1, 4)",
            ),
            (
                {"velocities": [torch.zeros(4, 5), torch.zeros(4, 5), torch.zeros(4, 3)]},
                "velocities[1] must have the shape of states[1] (4, 7), got (4, 5)",
            ),
            ({"matmul_precision": "low"}, "matmul_precision must be highest, high or medium, got low"),
            (
                {"grams": [None, torch.eye(7)], "energies": torch.zeros(6, 3, 4)},
                "grams[1] must be None where energies are recorded",
            ),
            ({"energies": torch.zeros(6, 3, 5)}, "energies must have shape (6, 3, 4), got (6, 3, 5)"),
            (
                {"energies": torch.zeros(4, 3, 6).permute(2, 1, 0)},
                "energies must be contiguous, got strides (1, 6, 18)",
            ),
        ],
        ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
    )
    def test_operands(self, change, message):
        refuses(operator, problem((5, 7, 3), 4, dtype=torch.float32) | change, message)

    def test_states(self):
        for dtype in (torch.bfloat16, torch.int64):
            refuses(operator, problem((5, 7, 3), 4, dtype=dtype), "states must be float32")
        for odd, message in (
            (torch.zeros(7, 4).T, "states[1] must be contiguous, got strides (1, 4)"),
            (torch.zeros(1, 7).expand(4, 7), "states[1] must be contiguous, got strides (0, 1)"),
            (torch.zeros(3, 7), "states[1] must have shape (4, 7), got (3, 7)"),
            (torch.zeros(4, 7, 1), "states[1] must have shape (B, n), got (4, 7, 1)"),
        ):
            arguments = problem((5, 7, 3), 4, dtype=torch.float32)
            arguments["states"][1] = odd
            refuses(operator, arguments, message)

    def test_no_states(self):
        with pytest.raises(RuntimeError, match="states must not be empty"):
            operator(**problem((5, 7, 3), 4) | {"states": []})

    def test_mstep(self):
        arguments = everything_wanted(problem((5, 7, 3), 4))
        refuses(mstep, arguments | {"for_bias": [True]}, "for_bias must have 2 entries for 3 states, got 1")
        refuses(mstep, arguments | {"for_precision": [True] * 3}, "for_precision[0] needs a predicted node, and node 0")
        refuses(mstep, arguments | {"predicted": [False, False, True], "for_precision": [False] * 3},
                "for_weight[0] needs a predicted node, and node 1 is not")  # fmt: skip
        refuses(mstep, arguments | {"activations": [0, 0, -1, 0]}, "activations must be from 0 to 9, got -1")


class TestSharedMemory:
    """What is written shares memory with nothing else: tiles and steps read and write in an order of their own."""

    def arguments(self):
        arguments = problem((5, 5, 5, 5), 4, momentum={"momentum": 0.5}, record=True, prior="batch", clamped=(-1,))
        arguments["precisions"][1] = torch.eye(5, dtype=torch.float64)
        return arguments

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (("states", 0), ("states", 1)),
            (("states", 1), ("states", 3)),
            (("states", 1), ("velocities", 1)),
            (("velocities", 0), ("velocities", 2)),
            (("states", 1), ("prior", None)),
            (("velocities", 2), ("weights", 0)),
            (("states", 2), ("biases", 1)),
            (("states", 0), ("precisions", 1)),
            (("energies", None), ("states", 3)),
        ],
        ids=lambda at: "-".join(str(x) for x in at if x is not None),
    )
    def test_is_refused(self, one, other):
        arguments = self.arguments()
        get = lambda at: arguments[at[0]] if at[1] is None else arguments[at[0]][at[1]]  # noqa: E731
        shared = torch.zeros(200, dtype=torch.float64)
        for (key, i), begin in ((one, 0), (other, 3)):
            shape = get((key, i)).shape
            view = shared[begin : begin + shape.numel()].view(shape)
            if i is None:
                arguments[key] = view
            else:
                arguments[key][i] = view
        with pytest.raises(RuntimeError, match=r"is written in place and must not overlap .* in memory"):
            operator(**arguments)
        assert not shared.any()

    def test_of_what_is_only_read_is_fine(self):
        arguments = self.arguments()
        arguments["weights"] = [arguments["weights"][0]] * 3
        arguments["velocities"][3] = arguments["states"][3]  # a clamped node has none
        check(arguments)

    def test_side_by_side_is_fine(self):
        arguments = problem((5, 5, 5), 4, prior="one", clamped=())
        arguments["states"] = [*torch.randn(3, 4, 5, dtype=torch.float64)]
        check(arguments)
