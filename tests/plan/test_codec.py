"""A plan survives being written as numbers, and nothing else is taken for one."""

import itertools
import random
import re
from dataclasses import MISSING, fields, replace

import pytest

from pyromancy import plan
from pyromancy.plan import (
    Activation,
    Descent,
    Edge,
    Law,
    Learned,
    Learning,
    MatmulPrecision,
    Node,
    NodeStep,
    Plan,
    Rule,
    RuleKind,
    Stepper,
    Target,
    UpdateOrder,
)
from pyromancy.plan.activations import ACTIVATIONS
from pyromancy.plan.expression import MOST_CONSTANTS, MOST_INSTRUCTIONS, Expression, Instruction, Op

WRITTEN, TENSORS, SLOTS = 9, 20, 4


def random_plan(seed):
    """Every field drawn: what may not be there is, or is not."""
    draw = random.Random(seed)
    flag = lambda: draw.random() < 0.5  # noqa: E731
    operand = lambda: draw.randrange(TENSORS)  # noqa: E731
    maybe = lambda end=TENSORS: draw.choice([None, draw.randrange(end)])  # noqa: E731
    limit = lambda: draw.choice([None, draw.random()])  # noqa: E731
    way = lambda: NodeStep(*(draw.random() for _ in range(3)), limit(), limit(), maybe()) if flag() else None  # noqa: E731
    activation = lambda: Activation(draw.randrange(len(ACTIVATIONS)), draw.random())  # noqa: E731
    pick = lambda kinds: draw.choice([*kinds])  # noqa: E731
    n, e, r, t = draw.randint(1, 5), draw.randint(0, 4), draw.randint(1, 3), draw.randint(0, 4)
    steps = draw.randrange(100)
    kinds = [*Learned] if e else [Learned.LOGVAR]
    targets = []
    for _ in range(t):
        what = pick(kinds)
        owner = draw.randrange(n if what is Learned.LOGVAR else e)
        slots = tuple(maybe(WRITTEN) for _ in range(SLOTS))
        targets.append(Target(what, owner, draw.randrange(r), draw.randrange(WRITTEN), slots))
    return Plan(
        tuple(
            Node(operand(), flag(), flag(), law, maybe(), maybe(), maybe(WRITTEN), maybe(), draw.random(),
                 maybe(), maybe(WRITTEN), draw.random(), way(),
                 random_expression(draw) if law is Law.EXPRESSION else None, maybe())
            for law in (pick(Law) for _ in range(n))
        ),
        tuple(
            Edge(draw.randrange(n), draw.randrange(n), operand(), maybe(), activation(), activation(), flag(),
                 flag(), draw.random(), draw.random(), draw.random(), maybe(), maybe(), flag())
            for _ in range(e)
        ),
        random_method(draw),
        steps, maybe(WRITTEN), maybe(), pick(Learning),
        tuple(
            Rule(pick(RuleKind), *(draw.random() for _ in range(5)), *(flag() for _ in range(4))) for _ in range(r)
        ),
        tuple(targets), pick(MatmulPrecision), maybe(WRITTEN), draw.random(),
        tuple(draw.random() for _ in range(steps)) if flag() else (),
    )  # fmt: skip


def random_expression(draw):
    """Of values before them, which is all that is asked of instructions."""
    constants, count = draw.randint(0, MOST_CONSTANTS), draw.randint(0, MOST_INSTRUCTIONS)
    slopes, has_theta = draw.randint(0, count), draw.random() < 0.5
    first = 2 + has_theta + constants
    code = tuple(Instruction(draw.choice([*Op]), *(draw.randrange(first + i) for _ in range(3))) for i in range(count))
    ends = draw.randrange(first + count), draw.randrange(first + slopes), draw.randrange(first + slopes)
    moment = (draw.randrange(first + count),) if has_theta else ()
    return Expression(tuple(draw.random() for _ in range(constants)), code, slopes, *ends, *moment)


def random_method(draw):
    """Of any kind, every field drawn."""
    kind = draw.choice([Descent, *Stepper.__subclasses__()])
    draws = {
        "bool": lambda: draw.random() < 0.5, "float": draw.random, "Operand | None": lambda: draw.randrange(WRITTEN),
        "UpdateOrder": lambda: draw.choice([*UpdateOrder]), "int": lambda: draw.randrange(100),
    }  # fmt: skip
    return kind(**{f.name: draws[f.type]() for f in fields(kind)})


@pytest.mark.parametrize("seed", range(50))
def test_there_and_back(seed):
    made = random_plan(seed)
    ints, numbers = plan.encode(made)
    assert {type(i) for i in ints} == {int}
    assert {type(x) for x in numbers} == {float}
    assert plan.decode(ints, numbers) == plan.decode(ints, numbers, WRITTEN, TENSORS) == made


def test_every_field_is_written():
    """To change any one of them changes what is written."""
    law = Expression((0.5,), (Instruction(Op.ADD, 0, 2), Instruction(Op.NEG, 3)), 1, 4, 3, 2, 3)
    one, other = Node(1, True), Node(2, False, True, Law.GAUSSIAN, 3, 4, 5, 6, 2.0, 7, 8, 3.0, NodeStep(), law, 9)
    pairs = [
        ("nodes", one, other),
        (
            "edges",
            Edge(0, 1, 2),
            Edge(1, 2, 3, 4, Activation(1, 0.5), Activation(2, 0.1), True, True, 2, 3, 4, 5, 6, False),
        ),
        ("rules", Rule(), Rule(RuleKind.ADAM, 1.0, 2.0, 3.0, 4.0, 5.0, True, True, True, True)),
        ("targets", Target(Learned.WEIGHT, 0, 0, 0), Target(Learned.BIAS, 1, 1, 1, (1, None, 2))),
    ]
    bare = Plan((), (), Descent(0.0), 0)
    for key, plain, changed in pairs:
        before = plan.encode(replace(bare, **{key: (plain,)}))
        for field in fields(plain):
            spoilt = replace(plain, **{field.name: getattr(changed, field.name)})
            assert plan.encode(replace(bare, **{key: (spoilt,)})) != before, field.name
    changed = Expression((0.7,), (Instruction(Op.MUL, 1, 2), Instruction(Op.EXP, 3)), 2, 3, 4, 3, 4)
    for field in fields(changed):
        spoilt = replace(other, expression=replace(law, **{field.name: getattr(changed, field.name)}))
        assert plan.encode(replace(bare, nodes=(spoilt,))) != plan.encode(replace(bare, nodes=(other,))), field.name
    before, changed = plan.encode(replace(bare, nodes=(other,))), NodeStep(2.0, 3.0, 4.0, 5.0, 6.0, 7)
    for field in fields(changed):
        spoilt = replace(other, way=replace(NodeStep(), **{field.name: getattr(changed, field.name)}))
        assert plan.encode(replace(bare, nodes=(spoilt,))) != before, field.name
    for changes in (
        {"steps": 1}, {"energies": 1}, {"order": 1}, {"learning": Learning.AT_THE_END},
        {"precision": MatmulPrecision.HIGH}, {"diverged": 1}, {"method": Descent(1.0)}, {"method": Descent(0.0, 1.0)},
        {"method": Descent(0.0, dampening=1.0)}, {"method": Descent(0.0, nesterov=True)},
        {"method": Descent(0.0, resume=True)}, {"method": Descent(0.0, update_order=UpdateOrder.ALTERNATE)},
        {"method": Descent(0.0, first=1)}, {"method": Descent(0.0, fixed=True)}, {"max_norm": 1.0}, {"factors": (1.0,)},
    ):  # fmt: skip
        assert plan.encode(replace(bare, **changes)) != plan.encode(bare), changes
    written = []
    for kind in Stepper.__subclasses__():
        needed = {f.name: 0.0 for f in fields(kind) if f.default is MISSING}
        plain = kind(**needed)
        values = [(f.name, (not getattr(plain, f.name)) if f.type == "bool" else 1.5) for f in fields(kind)]
        values = [(name, {"outcome": 3, "progress": 4}.get(name, x)) for name, x in values]
        changed = [replace(plain, **{name: x}) for name, x in values]
        written += [plan.encode(replace(bare, method=m)) for m in (plain, *changed)]
    assert all(a != b for a, b in itertools.combinations(written, 2))


def test_slots_that_are_not_named_are_not_there():
    made = Plan(
        (Node(0, True),), (), Descent(0.1), 1, rules=(Rule(),), targets=(Target(Learned.LOGVAR, 0, 0, 1, (2,)),)
    )
    (target,) = plan.decode(*plan.encode(made)).targets
    assert target.slots == (2, None, None, None)


@pytest.mark.parametrize("seed", range(5))
def test_every_other_length_is_refused(seed):
    ints, numbers = plan.encode(random_plan(seed))
    for n in range(len(ints)):
        with pytest.raises(ValueError, match=r"plan ends before its|must be from 0 to"):
            plan.decode(ints[:n], numbers)
    for n in range(len(numbers)):
        with pytest.raises(ValueError, match="numbers end before the"):
            plan.decode(ints, numbers[:n])
    with pytest.raises(ValueError, match=f"plan must have {len(ints)} entries, got {len(ints) + 1}"):
        plan.decode([*ints, 0], numbers)
    with pytest.raises(ValueError, match=f"numbers must have {len(numbers)} entries, got {len(numbers) + 1}"):
        plan.decode(ints, [*numbers, 0.0])


@pytest.mark.parametrize("seed", range(5))
def test_what_is_not_there_is_refused(seed):
    made = random_plan(seed)
    ints, numbers = plan.encode(made)
    moved = plan.encode(replace(made, edges=tuple(replace(e, first=(e.first or 0) + 1) for e in made.edges)))[0]
    columns = {at for at, (a, b) in enumerate(zip(ints, moved, strict=True)) if a != b}
    any_number = {4, *([10] if isinstance(made.method, Descent) else []), *columns}  # of steps, and of those before
    for at in range(len(ints)):
        for value in (-2, 10**9) if at not in any_number else (-2,):
            with pytest.raises(ValueError, match=rf"plan\[{at}\], the [a-z ]+, must be from -?\d+ to \d+, got {value}"):
                plan.decode([*ints[:at], value, *ints[at + 1 :]], numbers, WRITTEN, TENSORS)


def bounds_of(made, length):
    """What every integer must be from, and below: by name, in the order in which they are written."""
    operand, maybe, maybe_written = (0, TENSORS), (-1, TENSORS), (-1, WRITTEN)
    flag, count, any_number = (0, 2), (0, length + 1), 2**63 - 1
    n, e, r, t = len(made.nodes), len(made.edges), len(made.rules), len(made.targets)
    bounds = {
        **{f"number of {things}": [count] for things in ("nodes", "edges", "rules", "targets")},
        "number of steps": [(0, any_number)], "method": [(0, 1 + len(Stepper.__subclasses__()))],
        "first step": [(0, any_number)], "update order": [(0, len(UpdateOrder))],
        "tensor of energies": [maybe_written], "tensor of an order": [maybe], "outcome": [maybe_written],
        "progress": [maybe_written], "precision of products": [(0, len(MatmulPrecision))],
        "time of learning": [(0, len(Learning))], "tensor that tells of divergence": [maybe_written],
        "state": [operand] * n, "law": [(0, len(Law))] * n, "theta": [maybe] * n, "prior": [maybe] * n,
        "velocity": [maybe_written] * n, "kept": [maybe_written] * n, "tensor of data": [maybe] * n,
        "tensor of sample weights": [maybe] * n, "factor": [maybe] * n, "mask": [maybe] * n,
        "source": [(0, n)] * e, "target": [(0, n)] * e + [(0, WRITTEN)] * t, "weight": [maybe] * e,
        "bias": [maybe] * e, "mask of a weight": [maybe] * e, "activation": [(0, len(ACTIVATIONS))] * 2 * e,
        "first column": [(-1, any_number)] * e,
        "rule": [(0, len(RuleKind))] * r + [(0, r)] * t, "slot": [maybe_written] * SLOTS * t,
        "learned": [(0, len(Learned))] * t,
        "owner": [(0, n if target.what is Learned.LOGVAR else e) for target in made.targets],
    }  # fmt: skip
    laws = [node.expression for node in made.nodes if node.expression is not None]
    firsts = [2 + law.has_theta + len(law.constants) for law in laws]  # instructions' values come after these
    bounds |= {
        "number of constants": [(0, MOST_CONSTANTS + 1)] * len(laws),
        "number of instructions": [(0, MOST_INSTRUCTIONS + 1)] * len(laws),
        "number of instructions for slopes": [(0, len(law.code) + 1) for law in laws],
        "instruction": [(0, len(Op)) for law in laws for _ in law.code],
        "value of an instruction": [
            (0, first + i)
            for first, law in zip(firsts, laws, strict=True)
            for i in range(len(law.code))
            for _ in range(3)
        ],
        "value of a deviation": [(0, first + len(law.code)) for first, law in zip(firsts, laws, strict=True)],
        "value of a slope": [
            (0, first + law.slopes) for first, law in zip(firsts, laws, strict=True) for _ in range(2)
        ],
        "value of a moment": [
            (0, first + len(law.code)) for first, law in zip(firsts, laws, strict=True) if law.has_theta
        ],
    }
    return bounds, flag


@pytest.mark.parametrize("seed", range(10))
def test_every_integer_has_its_bounds(seed):
    made = random_plan(seed)
    ints, numbers = plan.encode(made)
    bounds, flag = bounds_of(made, len(ints))
    for at in range(len(ints)):
        with pytest.raises(ValueError, match=rf"^plan\[{at}\], the .*, must be from") as refused:
            plan.decode([*ints[:at], -9, *ints[at + 1 :]], numbers, WRITTEN, TENSORS)
        name = str(refused.value).split(", ")[1].removeprefix("the ")
        least, end = bounds[name].pop(0) if name in bounds else flag
        for value in (least - 1, end):
            message = f"plan[{at}], the {name}, must be from {least} to {end - 1}, got {value}"
            with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
                plan.decode([*ints[:at], value, *ints[at + 1 :]], numbers, WRITTEN, TENSORS)


def test_numbers_that_are_not_finite_are_refused():
    ints, numbers = plan.encode(random_plan(0))
    for at in range(len(numbers)):
        for value in (float("nan"), float("-inf")):
            with pytest.raises(ValueError, match=f"must be finite, got {value}"):
                plan.decode(ints, [*numbers[:at], value, *numbers[at + 1 :]])


def test_a_tensor_that_is_read_is_not_written():
    made = Plan((Node(0, True, velocity=3),), (), Descent(0.1), 1)
    plan.decode(*plan.encode(made), 4, 4)
    with pytest.raises(ValueError, match=r"the velocity, must be from -1 to 2, got 3"):
        plan.decode(*plan.encode(made), 3, 4)
