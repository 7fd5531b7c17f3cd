"""Chains in `run_plan_` against autograd on the energy written out, in float64."""

import inspect
import re
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from chains import (
    BATCHES,
    ELEMENTWISE,
    FUNCTIONS,
    MSTEP_BATCHES,
    MSTEP_FUNCTIONS,
    MSTEP_OPTIONS,
    OPTIONS,
    SOME,
    WIDTHS,
    check,
    check_mstep,
    check_resumed,
    everything_wanted,
    joined,
    mstep,
    of_size,
    operator,
    planned,
    problem,
    run_plan_,
    to,
    with_gram,
    with_laws,
)
from numerics import FLOATS, name, same_bits, saying
from pyromancy import plan
from pyromancy.ops import run_plan as definition
from pyromancy.plan import Activation, Law, Learned, Learning, Rule, RuleKind, activations

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("widths", WIDTHS, ids=joined)
def test_sizes(widths, batch, dtype):
    check(of_size(widths, batch, dtype))


def test_every_activation_has_a_number():
    assert [*activations.ACTIVATIONS] == [*FUNCTIONS]


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("law", ELEMENTWISE, ids=lambda law: law.name.lower())
def test_laws(law, record):
    """Of a clamped node, a free one and both, whose errors are kept for nobody else where nothing is recorded."""
    for laws in ([Law.GAUSSIAN] * 3 + [law], [Law.GAUSSIAN, law, Law.GAUSSIAN, Law.GAUSSIAN], [law] * 4):
        for dtype in FLOATS:
            for after in ("identity", "tanh"):
                a = problem((5, 33, 7, 3), SOME, "tanh", after, record=record, dtype=dtype)
                check(with_laws(a, laws))


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_activations(activation, side):
    for dtype in FLOATS:
        check(problem((5, 33, 7, 3), SOME, **{side: activation}, dtype=dtype))


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_activations_at_their_kinks(activation):
    kinks = [-FUNCTIONS[activation][1], -0.0, 0.0, FUNCTIONS[activation][1]]
    for dtype in FLOATS:
        arguments = problem((4, 4), 1, prior=True, clamped=(-1,), biases=False, dtype=dtype, after=activation)
        arguments["weights"][0].copy_(torch.eye(4))
        arguments["states"][0].copy_(torch.tensor([kinks]))
        check_mstep(arguments)
        before = arguments | {"activations": arguments["activations"][::-1], "steps": 1}
        before["parameters"] = arguments["parameters"][::-1]
        check(before)


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
    assert [tuple(f.shape) for f in found] == [(0, 5), (3, 0), (0,), (3,)]


def test_mstep_leaves_its_operands_alone():
    arguments = everything_wanted(problem((5, 33, 7, 3), 17, "relu", dtype=torch.float32))
    before = {k: to(x, torch.float32) for k, x in arguments.items()}
    mstep(**arguments)
    for k in ("states", "weights", "biases"):
        assert all(same_bits(a, b) for a, b in zip(arguments[k], before[k], strict=True))


@pytest.mark.parametrize("option", ["prior", "everything"])
def test_opcheck(option):
    # AOTAutograd takes no operator that writes to lists; the loop is not for `torch.compile`
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = problem((5, 7, 6, 3), 4, record=True, dtype=torch.float32, **OPTIONS[option])
    made, operands = planned(arguments)
    torch.library.opcheck(run_plan_, (operands.written, operands.read, *plan.encode(made)), test_utils=checks)


def test_signature_is_the_references():
    assert [*inspect.signature(definition.run_plan_).parameters] == [a.name for a in run_plan_._schema.arguments]


def whole():
    """A plan with all that a plan can have but data, and its tensors."""
    a = problem((5, 7, 6, 3), 4, prior="one", clamped=(-1,), covariances=True, momentum={"momentum": 0.5}, record=True)
    a["swept"] = [False, False, True, False]
    a["thetas"] = [torch.zeros(5), torch.eye(7), None, torch.zeros(3)]
    a["sample_weights"] = [None, None, torch.ones(4), None]
    a = {k: to(x, torch.float32) for k, x in a.items()}
    a["precisions"][1] = a["thetas"][1]
    gradient, w, b = torch.zeros(7, 5), a["weights"][1], a["biases"][0]
    adam = (torch.zeros(()), *(torch.zeros_like(w) for _ in range(3)))
    targets = [
        (Learned.WEIGHT, 0, 0, gradient, ()),
        (Learned.WEIGHT, 1, 1, w, adam),
        (Learned.BIAS, 0, 2, b, (torch.zeros_like(b),)),
        (Learned.LOGVAR, 0, 2, a["thetas"][0], (torch.zeros(5),)),
    ]
    rules = (Rule(), Rule(RuleKind.ADAM, 0.1, 0.0, 0.9, 0.99, 1e-8), Rule(RuleKind.SGD, 0.1, first=0.9))
    return planned(a, targets, learning=Learning.AT_THE_END, rules=rules)


def refused(written, read, ints, numbers, message):
    """By the backend, with what it would write as it was, and by the fake."""
    before = to(written, None)
    with pytest.raises(RuntimeError, match=re.escape(message)), saying("values"):
        run_plan_(written, read, ints, numbers)
    assert all(same_bits(a, b) if a.is_floating_point() else a.equal(b) for a, b in zip(before, written, strict=True))
    with FakeTensorMode() as mode, pytest.raises(RuntimeError, match=re.escape(message)), saying("fakes"):
        run_plan_(*[[mode.from_tensor(t) for t in some] for some in (written, read)], ints, numbers)


STEPS_AT = 4  # after the numbers of what there is
BEFORE_AT = 10  # the steps before, the last of a method


class TestRefusedEntries:
    """Of the integers and numbers themselves."""

    def refused(self, change, message):
        made, operands = whole()
        ints, numbers = plan.encode(made)
        ints, numbers = change(ints, numbers)
        refused(operands.written, operands.read, ints, numbers, message)

    def test_too_few(self):
        for length in range(STEPS_AT, len(plan.encode(whole()[0])[0])):
            self.refused(lambda ints, numbers, n=length: (ints[:n], numbers), "plan ends before its ")
        self.refused(lambda ints, numbers: ([], numbers), "plan ends before its number of nodes")
        self.refused(lambda ints, numbers: (ints[:-1], numbers), "plan ends before its slot")
        self.refused(lambda ints, numbers: (ints, numbers[:-1]), "numbers end before the number of a rule")
        self.refused(lambda ints, numbers: (ints, []), "numbers end before the number of a method")

    def test_too_many(self):
        self.refused(lambda ints, numbers: ([*ints, 0], numbers), f"entries, got {len(plan.encode(whole()[0])[0]) + 1}")
        self.refused(lambda ints, numbers: (ints, [*numbers, 0.0]), "numbers must have ")

    @pytest.mark.slow
    def test_every_integer_out_of_its_range(self):
        made = whole()[0]
        ints = plan.encode(made)[0]
        moved = plan.encode(replace(made, edges=tuple(replace(e, first=1) for e in made.edges)))[0]
        columns = {at for at, (a, b) in enumerate(zip(ints, moved, strict=True)) if a != b}  # looked at with widths
        for at in range(len(ints)):
            for value in (-2, 10**6) if at not in (STEPS_AT, BEFORE_AT, *columns) else (-2,):  # any number of steps
                spoil = lambda ints, numbers, at=at, v=value: ([*ints[:at], v, *ints[at + 1 :]], numbers)  # noqa: E731
                self.refused(spoil, f"plan[{at}], the ")

    def test_every_number_that_is_not_finite(self):
        for at in range(len(plan.encode(whole()[0])[1])):
            for value in (float("nan"), float("inf")):
                spoil = lambda ints, numbers, at=at, v=value: (ints, [*numbers[:at], v, *numbers[at + 1 :]])  # noqa: E731
                self.refused(spoil, f"must be finite, got {value}")


def with_node(made, i, **changes):
    return replace(made, nodes=tuple(replace(n, **changes) if i == j else n for j, n in enumerate(made.nodes)))


def with_edge(made, i, **changes):
    return replace(made, edges=tuple(replace(e, **changes) if i == j else e for j, e in enumerate(made.edges)))


def with_target(made, i, **changes):
    return replace(made, targets=tuple(replace(t, **changes) if i == j else t for j, t in enumerate(made.targets)))


STRUCTURES = {
    "no nodes": (lambda p: replace(p, nodes=(), edges=()), "plan must have nodes"),
    "negative steps": (lambda p: replace(p, steps=-1), "the number of steps, must be from 0 to"),
    "two activations after": (
        lambda p: with_edge(p, 2, source=1, target=2, after=Activation(1)),
        "edge 2 must have the activation after the product that others to node 2 have",
    ),
    "a scale of nothing": (
        lambda p: with_edge(p, 0, weight=None, scale=2.0), "edge 0 has no weight, and so no scale or form of it"
    ),
    "an activation passed on to another width": (
        lambda p: with_edge(p, 2, weight=None, before=Activation(1)), "edge 2 takes 3 columns from 0 on, of 6"
    ),
    "columns beyond the last": (
        lambda p: with_edge(p, 2, weight=None, bias=None, first=4), "edge 2 takes 3 columns from 4 on, of 6"
    ),
    "columns with all of a weight": (lambda p: with_edge(p, 2, first=1), "edge 2 takes 6 columns from 1 on, of 6"),
    "a sweep from behind": (
        lambda p: replace(
            p, edges=(*p.edges, replace(p.edges[2], source=3, target=2, transposed=True, bias=None))
        ),
        "node 2 starts at its prediction, and edge 3 must lead to it from an earlier one, got 3",
    ),
    "gram beside another edge": (
        lambda p: replace(
            with_edge(replace(p, energies=None), 2, gram=True),
            edges=(*with_edge(p, 2, gram=True).edges, p.edges[2]),
        ),
        "gram of edge 2 needs a source and a target without other edges",
    ),
    "no law": (lambda p: with_node(p, 2, law=Law.NONE, swept=False), "node 2 must have a law where it has"),
    "no prediction": (lambda p: with_node(p, 0, prior=None), "node 0 must have a law where it has a prediction"),
    "theta without a law": (
        lambda p: with_node(p, 0, prior=None, law=Law.NONE), "theta of node[0] needs a law"
    ),
    "no matrix": (lambda p: with_node(p, 1, theta=None), "theta of node 1 must be its precision"),
    "no square": (lambda p: with_node(p, 1, theta=p.nodes[0].theta), "theta of node[1] must have shape"),
    "clamped sweep": (lambda p: with_node(p, 3, swept=True), "node 3 must be free and predicted to start at"),
    "unpredicted sweep": (
        lambda p: with_node(p, 0, prior=None, law=Law.NONE, theta=None, swept=True),
        "node 0 must be free and predicted to start at",
    ),
    "clamped velocity": (
        lambda p: with_node(with_node(p, 2, velocity=None), 3, velocity=p.nodes[2].velocity),
        "node 3 must be free to have a velocity",
    ),
    "data without an order": (lambda p: with_node(p, 3, data=p.nodes[3].state), "data of node[3] needs an order"),
    "free, but read": (
        lambda p: with_node(p, 3, free=True), "state of node[3] is moved, and must be among the tensors written"
    ),
    "activation": (
        lambda p: with_edge(p, 0, before=Activation(len(FUNCTIONS))),
        f"the activation, must be from 0 to {len(FUNCTIONS) - 1}, got {len(FUNCTIONS)}"
    ),
    "gram of a free target": (lambda p: with_edge(p, 0, gram=True), "gram of edge 0 needs a free source"),
    "weights per sample without a law": (
        lambda p: with_node(p, 0, prior=None, law=Law.NONE, theta=None, sample_weights=p.nodes[2].sample_weights),
        "sample weights of node[0] need a law",
    ),
    "gram with weights per sample": (
        lambda p: with_edge(
            with_node(replace(p, energies=None), 3, sample_weights=p.nodes[2].sample_weights), 2, gram=True
        ),
        "gram of edge 2 needs a free source",
    ),
    "another weight transposed": (
        lambda p: with_edge(p, 2, transposed=True), "weight of edge[2] must have shape (6, 3), got (3, 6)"
    ),
    "a skip to another width": (
        lambda p: with_edge(p, 1, skip=0.5), "skip of edge 1 needs nodes of one width, got 7 and 6"
    ),
    "gram with energies": (lambda p: with_edge(p, 2, gram=True), "gram of edge 2 needs a free source"),
    "learning nothing": (lambda p: replace(p, targets=()), "plan must have targets where something learns"),
    "never learning": (
        lambda p: replace(p, learning=Learning.NEVER), "plan must have targets where something learns, and only there"
    ),
    "a bias that is not there": (
        lambda p: with_edge(p, 0, bias=None), "bias of edge[0] is to be learned, and there is none"
    ),
    "variances that are not there": (
        lambda p: with_target(p, 3, owner=2), "theta of node[2] is to be learned, and there is none"
    ),
    "a matrix": (
        lambda p: with_target(p, 3, owner=1), "theta of node[1] must be log-variances or log-scales to be learned"
    ),
    "gradient in the parameter": (
        lambda p: with_target(p, 1, rule=0, slots=()), "targets[1] must be the parameter itself where a rule moves it"
    ),
    "rule for another tensor": (
        lambda p: with_target(p, 0, rule=2, slots=p.targets[1].slots[1:2]), "targets[0] must "
    ),
    "another shape": (
        lambda p: with_target(p, 0, owner=2), "targets[0] must have the shape of weight of edge[2] (3, 6), got (7, 5)"
    ),
    "no velocity": (lambda p: with_target(p, 2, slots=()), "target 2 needs 1 slots"),
    "no squares": (lambda p: with_target(p, 1, slots=p.targets[1].slots[:2]), "target 1 needs 3 slots"),
    "step": (
        lambda p: with_target(p, 1, slots=(p.targets[1].slots[1], *p.targets[1].slots[1:])),
        "step of target 1 must be one float32 or float64 number, got shape (6, 7)",
    ),
    "slot of another shape": (
        lambda p: with_target(p, 2, slots=p.targets[3].slots), "slot of target[2] must have the shape of targets[2]"
    ),
    "a state twice": (
        lambda p: with_node(p, 2, state=p.nodes[1].state), "state"
    ),
    "a velocity twice": (
        lambda p: with_node(p, 1, velocity=p.nodes[1].state),
        "is what a plan writes, and must be used for nothing else",
    ),
    "a slot twice": (
        lambda p: with_target(p, 1, slots=(p.targets[1].slots[0], *[p.targets[1].slots[1]] * 2)),
        "is what a plan writes, and must be used for nothing else",
    ),
    "a target twice": (
        lambda p: replace(p, targets=(*p.targets, p.targets[2])),
        "have one rule, the same slots, and other uses of it, got another for the bias of edge 0",
    ),
    "uses that learn in two ways": (
        lambda p: replace(
            p,
            edges=(*p.edges, p.edges[1]),
            targets=(*p.targets, replace(p.targets[1], owner=3, slots=p.targets[1].slots[:3])),
        ),
        "have one rule, the same slots, and other uses of it, got another for the weight of edge 3",
    ),
    "a use that does not learn": (
        lambda p: replace(p, edges=(*p.edges, p.edges[1])), "is what a plan writes, and must be used for nothing else"
    ),
    "a mask of no weight": (
        lambda p: with_edge(p, 0, weight=None, mask=p.edges[0].weight), "mask of edge"
    ),
    "a mask of another shape": (
        lambda p: with_edge(p, 0, mask=p.edges[1].weight), "mask of edge[0] must have the shape of weight of edge[0]"
    ),
    "a mask that learns": (
        lambda p: with_edge(p, 1, mask=p.edges[1].weight), "is what a plan writes, and must be used for nothing else"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", STRUCTURES)
def test_refused_structures(what):
    change, message = STRUCTURES[what]
    made, operands = whole()
    refused(operands.written, operands.read, *plan.encode(change(made)), message)


def of_node(what, i):
    return lambda p: getattr(p.nodes[i], what)


def of_edge(what, i):
    return lambda p: getattr(p.edges[i], what)


TENSORS = {
    "state's dtype": (of_node("state", 1), torch.zeros(4, 7).double(), "state of node[1] must have dtype"),
    "state's batch": (of_node("state", 1), torch.zeros(3, 7), "state of node[1] must have shape (4, 7), got (3, 7)"),
    "state's dimensions": (
        of_node("state", 1), torch.zeros(4, 7, 1), "state of node[1] must have shape (B, n), got (4, 7, 1)"
    ),
    "state's strides": (
        of_node("state", 1), torch.zeros(7, 4).T, "state of node[1] must be contiguous, got strides (1, 4)"
    ),
    "expanded state": (
        of_node("state", 1), torch.zeros(1, 7).expand(4, 7), "state of node[1] must be contiguous, got strides (0, 1)"
    ),
    "half": (of_node("state", 0), torch.zeros(4, 5).half(), "states must be float32 or float64, got"),
    "integers": (of_node("state", 0), torch.zeros(4, 5).long(), "states must be float32"),
    "theta's dtype": (of_node("theta", 0), torch.zeros(5).half(), "theta of node[0] must have dtype"),
    "theta's length": (
        of_node("theta", 3), torch.zeros(2), "theta of node[3] must have shape (3,) or (1,) or (), got (2,)"
    ),
    "theta's dimensions": (
        of_node("theta", 3), torch.zeros(1, 3), "theta of node[3] must have shape (3,) or (1,) or (), got (1, 3)"
    ),
    "precision": (of_node("theta", 1), torch.zeros(7), "theta of node[1] must have shape (7, 7), got (7,)"),
    "prior": (of_node("prior", 0), torch.zeros(3, 5), "prior of node[0] must have shape (1, 5) or (4, 5), got (3, 5)"),
    "prior's dtype": (of_node("prior", 0), torch.zeros(1, 5).half(), "prior of node[0] must have dtype"),
    "sample weights": (
        of_node("sample_weights", 2), torch.ones(3), "sample weights of node[2] must have shape (4,), got (3,)"
    ),
    "sample weights' dimensions": (
        of_node("sample_weights", 2), torch.ones(4, 1), "sample weights of node[2] must have shape (4,), got (4, 1)"
    ),
    "sample weights' dtype": (
        of_node("sample_weights", 2), torch.ones(4).double(), "sample weights of node[2] must have dtype"
    ),
    "velocity": (
        of_node("velocity", 1), torch.zeros(4, 5),
        "velocity of node[1] must have the shape of state of node[1] (4, 7), got (4, 5)",
    ),
    "velocity's strides": (
        of_node("velocity", 1), torch.zeros(7, 4).T, "velocity of node[1] must be contiguous, got strides (1, 4)"
    ),
    "weight": (of_edge("weight", 2), torch.zeros(6, 3), "weight of edge[2] must have shape (3, 6), got (6, 3)"),
    "weight's dtype": (of_edge("weight", 2), torch.zeros(3, 6).double(), "weight of edge[2] must have dtype"),
    "bias": (of_edge("bias", 1), torch.zeros(7), "bias of edge[1] must have shape (6,), got (7,)"),
    "bias's dtype": (of_edge("bias", 1), torch.zeros(6).half(), "bias of edge[1] must have dtype"),
    "gradient's strides": (
        lambda p: p.targets[0].tensor, torch.zeros(5, 7).T, "targets[0] must be contiguous, got strides (1, 7)"
    ),
    "slot's strides": (
        lambda p: p.targets[1].slots[1], torch.zeros(7, 6).T, "slot of target[1] must be contiguous, got strides (1, 6)"
    ),
    "step's dtype": (
        lambda p: p.targets[1].slots[0], torch.zeros(1).half(),
        "step of target 1 must be one float32 or float64 number, got shape (1,)",
    ),
    "energies": (lambda p: p.energies, torch.zeros(6, 4, 5), "energies must have shape (6, 4, 4), got (6, 4, 5)"),
    "energies' strides": (
        lambda p: p.energies, torch.zeros(4, 4, 6).permute(2, 1, 0), "energies must be contiguous, got strides"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TENSORS)
def test_refused_tensors(what):
    at, other, message = TENSORS[what]
    made, operands = whole()
    tensors = [*operands.written, *operands.read]
    tensors[at(made)] = other
    count = len(operands.written)
    refused(tensors[:count], tensors[count:], *plan.encode(made), message)


class TestRefusedOrders:
    def plan_of_batches(self):
        a = problem((5, 7, 3), 4, dtype=torch.float32)
        a["data"] = [torch.randn(9, 5), None, torch.randn(9, 3)]
        return planned(a, order=torch.arange(8))

    @pytest.mark.parametrize(
        ("at", "other", "message"),
        [
            (lambda p: p.order, torch.arange(7), "order must be contiguous int64 of shape (batches * 4,), got (7,)"),
            (lambda p: p.order, torch.zeros(2, 4).long(), "order must be contiguous int64 of shape (batches * 4,)"),
            (lambda p: p.order, torch.arange(8).int(), "order must be contiguous int64 of shape (batches * 4,), got"),
            (of_node("data", 0), torch.zeros(9, 4), "data of node[0] must be contiguous of shape (N, 5), got (9, 4)"),
            (of_node("data", 0), torch.zeros(5, 9).T, "data of node[0] must be contiguous of shape (N, 5), got (9, 5)"),
            (of_node("data", 0), torch.zeros(9, 5).double(), "data of node[0] must have dtype"),
        ],
        ids=["length", "dimensions", "dtype", "width", "strides", "data's dtype"],
    )  # fmt: skip
    def test_tensors(self, at, other, message):
        made, operands = self.plan_of_batches()
        tensors = [*operands.written, *operands.read]
        tensors[at(made)] = other
        count = len(operands.written)
        refused(tensors[:count], tensors[count:], *plan.encode(made), message)

    def test_an_empty_batch_takes_no_rows(self):
        a = problem((5, 7, 3), 0, dtype=torch.float32)
        a["data"] = [torch.randn(9, 5), None, torch.randn(9, 3)]
        made, operands = planned(a, order=torch.arange(0))
        run_plan_(operands.written, operands.read, *plan.encode(made))
        with FakeTensorMode() as mode:
            given = [[mode.from_tensor(t) for t in some] for some in (operands.written, operands.read)]
            run_plan_(*given, *plan.encode(made))
        made, operands = planned(a, order=torch.arange(3))
        message = "order must be contiguous int64 of shape (batches * 0,), got (3,)"
        refused(operands.written, operands.read, *plan.encode(made), message)

    def test_data_for_a_state_that_is_only_read(self):
        made, operands = self.plan_of_batches()
        assert made.nodes[0].state == 0
        x = operands.written.pop(0)
        back = len(operands.written) + len(operands.read)
        moved = lambda i: None if i is None else back if i == 0 else i - 1  # noqa: E731
        nodes = tuple(replace(n, state=moved(n.state), data=moved(n.data)) for n in made.nodes)
        edges = tuple(replace(e, weight=moved(e.weight), bias=moved(e.bias)) for e in made.edges)
        made = replace(made, nodes=nodes, edges=edges, order=moved(made.order))
        message = "state of node[0] is set from data, and must be among the tensors written"
        refused(operands.written, [*operands.read, x], *plan.encode(made), message)


@pytest.mark.parametrize("what", ["order", "step of target[1]"])
def test_refused_devices(what):
    """Of what may lie on the CPU where the states are elsewhere, and not the other way round."""
    if what == "order":
        a = problem((5, 7, 3), 4, dtype=torch.float32) | {"data": [torch.randn(9, 5), None, None]}
        made, operands = planned(a, order=torch.arange(8))
        at = made.order
    else:
        made, operands = whole()
        at = made.targets[1].slots[0]
    tensors = [*operands.written, *operands.read]
    tensors[at] = tensors[at].to("meta")
    count = len(operands.written)
    with pytest.raises(RuntimeError, match=re.escape(f"{what} must be on the CPU or on the device of the states cpu")):
        run_plan_(tensors[:count], tensors[count:], *plan.encode(made))


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
        check(arguments)

    def test_side_by_side_is_fine(self):
        arguments = problem((5, 5, 5), 4, prior="one", clamped=())
        arguments["states"] = [*torch.randn(3, 4, 5, dtype=torch.float64)]
        check(arguments)
