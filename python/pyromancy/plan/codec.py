"""A `Plan` as the integers and numbers that `run_plan_` takes, and back; csrc/plan.cpp is the other half."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import TypeVar

from .activations import ACTIVATIONS
from .expression import MOST_CONSTANTS, MOST_INSTRUCTIONS, Expression, Instruction, Op
from .types import (
    LBFGS,
    Activation,
    Adam,
    Descent,
    Edge,
    Heun,
    Langevin,
    Law,
    Learned,
    Learning,
    MatmulPrecision,
    Momentum,
    Nesterov,
    Node,
    NodeStep,
    Plan,
    QuasiNewton,
    Rule,
    RuleKind,
    Sequential,
    Stepper,
    Target,
    UpdateOrder,
)

SLOTS = 4
_NOTHING, _ANY = -1, 2**63 - 1
_Kind = TypeVar("_Kind", bound=IntEnum)
# steppers in the order of their kinds, each with its option, if it has one, and its numbers, up to four
_STEPPERS: tuple[tuple[type[Stepper], str | None, tuple[str, ...]], ...] = (
    (QuasiNewton, None, ()),
    (Nesterov, "restarts", ("lr", "momentum")),
    (Momentum, "nesterov", ("lr", "momentum", "dampening")),
    (Heun, "adaptive", ("lr", "rtol", "atol")),
    (Langevin, None, ("lr", "temperature", "seed")),
    (Sequential, None, ("lr",)),
    (Adam, None, ("lr", "first", "second", "epsilon")),
    (LBFGS, None, ("memory",)),
)
_NUMBERS = 4


def encode(plan: Plan) -> tuple[list[int], list[float]]:
    """The structure of a plan, and its numbers."""
    ints = [len(plan.nodes), len(plan.edges), len(plan.rules), len(plan.targets), plan.steps]
    numbers = numbers_of(plan.method)
    ints += _of_method(plan.method)
    ints += [_maybe(plan.energies), _maybe(plan.order), plan.precision, plan.learning, _maybe(plan.diverged)]
    ints.append(bool(plan.factors))
    numbers += [plan.max_norm, *plan.factors]
    for node in plan.nodes:
        ints += [node.state, node.free, node.swept, node.law]
        ints += map(_maybe, (node.theta, node.prior, node.velocity, node.kept, node.data, node.sample_weights))
        ints.append(_maybe(node.factor))
        numbers += [node.weight, node.law_parameter]
        ints.append(node.way is not None)
        if node.way is not None:
            ints += [_maybe(node.way.known), node.way.low is not None, node.way.high is not None]
            numbers += numbers_of_node_step(node.way)
        if node.expression is not None:
            ints += _of_expression(node.expression)
            numbers += node.expression.constants
    for edge in plan.edges:
        ints += [edge.source, edge.target, _maybe(edge.weight), _maybe(edge.bias), _maybe(edge.mask)]
        for activation in (edge.before, edge.after):
            ints.append(activation.number)
            numbers.append(activation.parameter)
        ints += [edge.gram, edge.transposed, _maybe(edge.first), edge.sweeps]
        numbers += [edge.scale, edge.bias_scale, edge.skip]
    for rule in plan.rules:
        ints += [rule.kind, rule.maximize, rule.nesterov, rule.decoupled, rule.fresh]
        numbers += [rule.lr, rule.weight_decay, rule.first, rule.second, rule.epsilon]
    for target in plan.targets:
        slots = [*target.slots, *[None] * (SLOTS - len(target.slots))]
        ints += [target.what, target.owner, target.rule, target.tensor, *map(_maybe, slots)]
    return [int(i) for i in ints], numbers


def decode(ints: Sequence[int], numbers: Sequence[float], written: int = _ANY, tensors: int = _ANY) -> Plan:
    """The plan that `encode` has made these of.

    Args:
        ints: its structure.
        numbers: its numbers.
        written: how many tensors there are to write.
        tensors: how many there are, those included.

    Raises:
        ValueError: they are too few, too many, or name something that there is not.
    """
    read = _Reader(ints, numbers, written, tensors)
    counts = [read.count(f"number of {things}") for things in ("nodes", "edges", "rules", "targets")]
    nodes, edges, rules, targets = map(range, counts)
    if not nodes:
        raise ValueError("plan must have nodes")
    steps = read.number("number of steps", 0, _ANY)
    method = _method(read)
    energies, order = read.maybe_written("tensor of energies"), read.maybe_tensor("tensor of an order")
    precision = read.kind(MatmulPrecision, "precision of products")
    learning = read.kind(Learning, "time of learning")
    diverged = read.maybe_written("tensor that tells of divergence")
    scheduled, max_norm = read.flag("schedule"), read.real("max_norm")
    factors = tuple(read.real("factor") for _ in range(steps)) if scheduled else ()
    plan = Plan(
        tuple(_node(read) for _ in nodes),
        tuple(_edge(read, len(nodes)) for _ in edges),
        method, steps, energies, order, learning,
        tuple(_rule(read) for _ in rules),
        tuple(_target(read, len(nodes), len(edges), len(rules)) for _ in targets),
        precision, diverged, max_norm, factors,
    )  # fmt: skip
    read.finish()
    return plan


def numbers_of(method: Descent | Stepper) -> list[float]:
    """The numbers of a method, with which those of a plan begin."""
    if isinstance(method, Descent):
        return [method.lr, method.momentum, method.dampening]
    _, _, names = _row(method)
    given: list[float] = [getattr(method, name) for name in names]
    return [*given, *[0.0] * (_NUMBERS - len(given)), method.tol]


def numbers_of_node_step(way: NodeStep) -> list[float]:
    """The numbers of what steps do of a node, in their order."""
    return [float(x) for x in (way.relative_rate, way.shrink, way.towards, way.low or 0.0, way.high or 0.0)]


def _row(method: Stepper) -> tuple[int, str | None, tuple[str, ...]]:
    """Its kind, its option, and its numbers."""
    kind = next(i for i, (of, *_) in enumerate(_STEPPERS) if type(method) is of)
    return kind, *_STEPPERS[kind][1:]


def _of_method(method: Descent | Stepper) -> list[int]:
    """0, or 1 and more for a stepper, with five integers."""
    if isinstance(method, Descent):
        return [0, method.nesterov, method.resume, method.settle, method.update_order, method.first, method.fixed]
    kind, option, _ = _row(method)
    flags = [method.errors, option is not None and getattr(method, option), method.resume]
    return [1 + kind, *flags, _maybe(method.outcome), _maybe(method.progress)]


def _method(read: _Reader) -> Descent | Stepper:
    kind = read.number("method", 0, 1 + len(_STEPPERS))
    if kind == 0:
        nesterov, resume, settle = read.flag("nesterov"), read.flag("resume"), read.flag("settle")
        update_order, first, fixed = (
            read.kind(UpdateOrder, "update order"),
            read.number("first step", 0, _ANY),
            read.flag("fixed"),
        )
        lr, momentum, dampening = (read.real("number of a method") for _ in range(3))
        return Descent(lr, momentum, dampening, nesterov, resume, settle, update_order, first, fixed)
    of, option, names = _STEPPERS[kind - 1]
    errors, chosen, resume = read.flag("errors"), read.flag("option"), read.flag("resume")
    outcome, progress = read.maybe_written("outcome"), read.maybe_written("progress")
    given = dict(zip(names, [read.real("number of a method") for _ in range(_NUMBERS)], strict=False))
    options = {} if option is None else {option: chosen}
    return of(
        errors=errors, tol=read.real("tol"), outcome=outcome, resume=resume, progress=progress, **options, **given
    )  # fmt: skip


class _Reader:
    """Takes one entry after another, each of which must lie within its bounds."""

    def __init__(self, ints: Sequence[int], numbers: Sequence[float], written: int, tensors: int) -> None:
        self.ints, self.numbers, self.writable, self.tensors = ints, numbers, written, tensors
        self.at = self.real_at = 0

    def number(self, what: str, least: int, end: int) -> int:
        if self.at == len(self.ints):
            raise ValueError(f"plan ends before its {what}")
        value, at = self.ints[self.at], self.at
        if not least <= value < end:
            raise ValueError(f"plan[{at}], the {what}, must be from {least} to {end - 1}, got {value}")
        self.at += 1
        return value

    def kind(self, kinds: type[_Kind], what: str) -> _Kind:
        return kinds(self.number(what, 0, max(kinds) + 1))

    def flag(self, what: str) -> bool:
        return bool(self.number(what, 0, 2))

    def count(self, what: str) -> int:
        return self.number(what, 0, len(self.ints) + 1)

    def tensor(self, what: str) -> int:
        return self.number(what, 0, self.tensors)

    def written(self, what: str) -> int:
        return self.number(what, 0, self.writable)

    def maybe_tensor(self, what: str) -> int | None:
        return _or_none(self.number(what, _NOTHING, self.tensors))

    def maybe_written(self, what: str) -> int | None:
        return _or_none(self.number(what, _NOTHING, self.writable))

    def real(self, what: str) -> float:
        if self.real_at == len(self.numbers):
            raise ValueError(f"numbers end before the {what}")
        value = self.numbers[self.real_at]
        if not math.isfinite(value):
            raise ValueError(f"{what} must be finite, got {value}")
        self.real_at += 1
        return value

    def finish(self) -> None:
        for name, entries, at in (("plan", self.ints, self.at), ("numbers", self.numbers, self.real_at)):
            if len(entries) != at:
                raise ValueError(f"{name} must have {at} entries, got {len(entries)}")


def _node(read: _Reader) -> Node:
    state, free, swept = read.tensor("state"), read.flag("free"), read.flag("swept")
    law, theta, prior = read.kind(Law, "law"), read.maybe_tensor("theta"), read.maybe_tensor("prior")
    velocity, kept = read.maybe_written("velocity"), read.maybe_written("kept")
    data, weights = read.maybe_tensor("tensor of data"), read.maybe_tensor("tensor of sample weights")
    factor = read.maybe_tensor("factor")
    weight, parameter = read.real("weight"), read.real("parameter of a law")
    way = _way(read) if read.flag("way") else None
    expression = _expression(read) if law is Law.EXPRESSION else None
    return Node(
        state, free, swept, law, theta, prior, velocity, data, weight, weights, kept, parameter, way, expression, factor
    )


def _of_expression(of: Expression) -> list[int]:
    code = [x for i in of.code for x in (i.op, i.a, i.b, i.c)]
    ends = [of.deviation, of.pull, of.push, *(() if of.moment is None else (of.moment,))]
    return [int(of.has_theta), len(of.constants), len(of.code), of.slopes, *code, *ends]


def _expression(read: _Reader) -> Expression:
    has_theta = read.flag("theta of an expression")
    constants = read.number("number of constants", 0, MOST_CONSTANTS + 1)
    count = read.number("number of instructions", 0, MOST_INSTRUCTIONS + 1)
    slopes, first = read.number("number of instructions for slopes", 0, count + 1), 2 + has_theta + constants
    code = []
    for i in range(count):
        op = read.kind(Op, "instruction")
        code.append(Instruction(op, *(read.number("value of an instruction", 0, first + i) for _ in range(3))))
    deviation = read.number("value of a deviation", 0, first + count)
    pull, push = (read.number("value of a slope", 0, first + slopes) for _ in range(2))
    moment = read.number("value of a moment", 0, first + count) if has_theta else None
    numbers = tuple(read.real("constant") for _ in range(constants))
    return Expression(numbers, tuple(code), slopes, deviation, pull, push, moment)


def _way(read: _Reader) -> NodeStep:
    known, has_low, has_high = read.maybe_tensor("mask"), read.flag("low"), read.flag("high")
    relative_rate, shrink, towards = read.real("relative rate"), read.real("shrink"), read.real("towards")
    low, high = read.real("low"), read.real("high")
    return NodeStep(relative_rate, shrink, towards, low if has_low else None, high if has_high else None, known)


def _edge(read: _Reader, nodes: int) -> Edge:
    source, target = read.number("source", 0, nodes), read.number("target", 0, nodes)
    weight, bias, mask = read.maybe_tensor("weight"), read.maybe_tensor("bias"), read.maybe_tensor("mask of a weight")
    before, after = (
        Activation(read.number("activation", 0, len(ACTIVATIONS)), read.real("parameter")) for _ in range(2)
    )
    gram, transposed = read.flag("gram"), read.flag("transposed")
    first, sweeps = _or_none(read.number("first column", _NOTHING, _ANY)), read.flag("sweeps")
    scale, bias_scale, skip = read.real("scale"), read.real("scale of a bias"), read.real("skip")
    form = gram, transposed, scale, bias_scale, skip, mask, first, sweeps
    return Edge(source, target, weight, bias, before, after, *form)


def _rule(read: _Reader) -> Rule:
    kind, maximize, nesterov = read.kind(RuleKind, "rule"), read.flag("maximize"), read.flag("nesterov")
    decoupled, fresh = read.flag("decoupled weight decay"), read.flag("fresh")
    lr, decay, first, second, epsilon = (read.real("number of a rule") for _ in range(5))
    return Rule(kind, lr, decay, first, second, epsilon, maximize, nesterov, decoupled, fresh)


def _target(read: _Reader, nodes: int, edges: int, rules: int) -> Target:
    what = read.kind(Learned, "learned")
    owner = read.number("owner", 0, nodes if what is Learned.LOGVAR else edges)
    rule, tensor = read.number("rule", 0, rules), read.written("target")
    return Target(what, owner, rule, tensor, tuple(read.maybe_written("slot") for _ in range(SLOTS)))


def _maybe(operand: int | None) -> int:
    return _NOTHING if operand is None else operand


def _or_none(operand: int) -> int | None:
    return None if operand == _NOTHING else operand
