"""A `Plan` as the integers and numbers that `run_plan_` takes, and back; csrc/plan.cpp is the other half."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import TypeVar

from .activations import ACTIVATIONS
from .types import (
    Accelerated,
    Activation,
    Descent,
    Edge,
    Law,
    Learned,
    Learning,
    MatmulPrecision,
    Node,
    Plan,
    Rule,
    RuleKind,
    Target,
)

SLOTS = 4
_NOTHING, _ANY = -1, 2**63 - 1
_Kind = TypeVar("_Kind", bound=IntEnum)


def encode(plan: Plan) -> tuple[list[int], list[float]]:
    """The structure of a plan, and its numbers."""
    ints = [len(plan.nodes), len(plan.edges), len(plan.rules), len(plan.targets), plan.steps]
    method, numbers = _of_method(plan.method)
    ints += [*method, _maybe(plan.energies), _maybe(plan.order), plan.precision, plan.learning, _maybe(plan.diverged)]
    for node in plan.nodes:
        ints += [node.state, node.free, node.swept, node.law]
        ints += map(_maybe, (node.theta, node.prior, node.velocity, node.data, node.sample_weights))
        numbers.append(node.weight)
    for edge in plan.edges:
        ints += [edge.source, edge.target, edge.weight, _maybe(edge.bias)]
        for activation in (edge.before, edge.after):
            ints.append(activation.number)
            numbers.append(activation.parameter)
        ints += [edge.gram, edge.transposed]
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
    plan = Plan(
        tuple(_node(read) for _ in nodes),
        tuple(_edge(read, len(nodes)) for _ in edges),
        method, steps, energies, order, learning,
        tuple(_rule(read) for _ in rules),
        tuple(_target(read, len(nodes), len(edges), len(rules)) for _ in targets),
        precision, diverged,
    )  # fmt: skip
    read.finish()
    return plan


def _of_method(method: Descent | Accelerated) -> tuple[list[int], list[float]]:
    """Its kind with three integers, and three numbers."""
    if isinstance(method, Descent):
        ints = [0, method.nesterov, method.resume, method.settle]
        return [int(i) for i in ints], [method.lr, method.momentum, method.dampening]
    momentum = method.momentum
    return [1, int(method.errors), int(momentum is None), _maybe(method.outcome)], [
        method.lr,
        momentum or 0.0,
        method.tol,
    ]


def _method(read: _Reader) -> Descent | Accelerated:
    if read.number("method", 0, 2) == 0:
        nesterov, resume, settle = read.flag("nesterov"), read.flag("resume"), read.flag("settle")
        return Descent(read.real("lr"), read.real("momentum"), read.real("dampening"), nesterov, resume, settle)
    errors, restarts, outcome = read.flag("errors"), read.flag("restarts"), read.maybe_written("outcome")
    lr, momentum, tol = read.real("lr"), read.real("momentum"), read.real("tol")
    return Accelerated(lr, None if restarts else momentum, errors, tol, outcome)


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
    velocity, data = read.maybe_written("velocity"), read.maybe_tensor("tensor of data")
    weights = read.maybe_tensor("tensor of sample weights")
    return Node(state, free, swept, law, theta, prior, velocity, data, read.real("weight"), weights)


def _edge(read: _Reader, nodes: int) -> Edge:
    source, target = read.number("source", 0, nodes), read.number("target", 0, nodes)
    weight, bias = read.tensor("weight"), read.maybe_tensor("bias")
    before, after = (
        Activation(read.number("activation", 0, len(ACTIVATIONS)), read.real("parameter")) for _ in range(2)
    )
    gram, transposed = read.flag("gram"), read.flag("transposed")
    scale, bias_scale, skip = read.real("scale"), read.real("scale of a bias"), read.real("skip")
    return Edge(source, target, weight, bias, before, after, gram, transposed, scale, bias_scale, skip)


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
