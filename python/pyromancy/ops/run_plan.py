"""Eager reference of `run_plan_`: what every backend must compute of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..laws import LAWS
from ..plan import Edge, Law, Learned, Learning, Plan, Target, decode
from ..plan.activations import ACTIVATIONS
from ..plan.expression import Expression
from ..rules import RULES

_BY_NUMBER = tuple(ACTIVATIONS.values())


def run_plan_(written: list[Tensor], read: list[Tensor], plan: list[int], numbers: list[float]) -> None:
    """Do what a plan says, in place.

    Nodes are predicted as ``mu = after(sum of W before(z) + b + s z)`` over the edges to them, W and b times their
    scales, s their skip, and a prior where there is one. With errors ``e = P (z - mu)`` and ``d = after' e`` a step is
    ``z <- z - lr (e - sum of before'(z) W^T d_target + s d_target)`` over the edges from a node, on all free nodes at
    once, with the momentum of `torch.optim.SGD` where there are velocities; elements that are known have no gradient. P
    is ``weight exp(-theta)`` of a node whose law is GAUSSIAN, or its weight without a theta; of one that is
    FULL_GAUSSIAN it is theta as it is, in which its weight is a factor already. One that is CATEGORICAL is clamped and
    predicted by logits mu, and has ``weight (z - softmax(mu) sum(z))`` in the place of ``e_target``. Where a node has
    weights per sample, all of its energy is multiplied by them, and so its errors.

    The gradients of the batch-mean energy that weights learn from are ``-mean(d before(z)^T)`` and ``-mean(d)`` for
    weights and biases, times their scales, with ``d = after' e``, and for log-variances ``1/2 (weight - mean(e (z -
    mu)))``, in which a weight per sample counts by its mean. Those of masked weights are multiplied by the mask, and
    where several targets have one tensor, their gradients are added up.

    Args:
        written: tensors that the plan writes.
        read: tensors that it only reads.
        plan: its structure, as `pyromancy.plan.encode` gives it.
        numbers: its numbers, likewise.
    """
    operands = [*written, *read]
    for batch in batches(decode(plan, numbers), operands):
        _Batch(batch, operands).run()


def batches(plan: Plan, operands: list[Tensor]) -> Iterator[Plan]:
    """The plan of each batch, the states of which are set from the rows of an order if there is one."""
    if plan.order is None:
        yield plan
        return
    first, order = operands[plan.nodes[0].state], operands[plan.order]
    picked = [(operands[n.state], operands[n.data]) for n in plan.nodes if n.data is not None]
    for i, n in enumerate(plan.nodes):
        if n.data is not None and operands[n.data].dtype == torch.int64:
            _check_classes(f"data of node {i}", operands[n.data], operands[n.state].shape[1])
    for i, row in enumerate(order.tolist()):
        for _, data in picked:
            if not 0 <= row < len(data):
                raise RuntimeError(f"order[{i}] must be from 0 to {len(data) - 1}, got {row}")
    for rows in order.to(first.device).view(-1, max(1, first.shape[0])):
        for state, data in picked:
            if data.dtype == torch.int64:
                state.zero_().scatter_(1, data[rows, None], 1.0)
            else:
                torch.index_select(data, 0, rows, out=state)
        yield plan
        plan = learned(plan)


def _check_classes(name: str, classes: Tensor, count: int) -> None:
    wrong = ((classes < 0) | (classes >= count)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        got = f"{int(classes[row])} in row {row}"
        raise RuntimeError(f"{name} must be classes from 0 to {count - 1}, got {got}")


def learned(plan: Plan) -> Plan:
    """The same once its rules have been applied."""
    return replace(plan, rules=tuple(replace(rule, fresh=False) for rule in plan.rules))


@dataclass
class _Errors:
    """Of one moment: by node, None where nothing predicts it."""

    prediction: list[Tensor | None]
    error: list[Tensor | None]  # what energies grow by with states
    delta: list[Tensor | None]  # what they shrink by with the products behind predictions, by target


class _Batch:
    def __init__(self, plan: Plan, operands: list[Tensor]) -> None:
        self.plan, self.operands = plan, operands
        self.states = [operands[n.state] for n in plan.nodes]
        places = range(len(plan.nodes))
        self.into = [[e for e in plan.edges if e.target == i] for i in places]
        self.out = [[e for e in plan.edges if e.source == i] for i in places]

    def run(self) -> None:
        plan = self.plan  # but for its rules, which change as they are applied
        for i, node in enumerate(plan.nodes):
            if node.swept:
                self.states[i].copy_(self.predict(i, [e for e in self.into[i] if e.sweeps])[1])
        each = plan.learning in (Learning.AFTER_EACH_STEP, Learning.WITH_EACH_STEP)
        for step in range(plan.steps):
            errors = self.errors()
            if plan.energies is not None:
                self.record(step, errors)
            before = [z.clone() for z in self.states] if plan.learning is Learning.WITH_EACH_STEP else []
            self.descend(errors, fresh=step == 0 and not plan.descent.resume)
            if each:
                self.learn(*((errors, before) if before else (self.errors(), self.states)))
        if plan.diverged is not None and not all(self.are_finite(i) for i, n in enumerate(plan.nodes) if n.free):
            self.operands[plan.diverged].fill_(1)
        if plan.learning is Learning.AT_THE_END:
            self.learn(self.errors(), self.states)

    def are_finite(self, i: int) -> bool:
        return bool(self.states[i].isfinite().all())

    def predict(self, i: int, edges: Sequence[Edge] | None = None) -> tuple[Tensor | None, Tensor]:
        """What the activation of a prediction is of, if edges make it, and the prediction; may be by some of these."""
        prior = self.plan.nodes[i].prior
        product = None if prior is None else self.operands[prior].expand_as(self.states[i])
        for edge in self.into[i] if edges is None else edges:
            state, part = self.states[edge.source], torch.zeros_like(self.states[i])
            if edge.weight is not None:
                part = F.linear(self.taken(edge, state), self.weight(edge))
            elif edge.passes:
                part = edge.scale * self.taken(edge, state)
            if edge.bias is not None:
                part = part + edge.bias_scale * self.operands[edge.bias]
            if edge.skip:
                part = part + edge.skip * state
            product = part if product is None else product + part
        assert product is not None
        if not self.into[i]:
            return None, product
        after = self.into[i][0].after
        return product, _BY_NUMBER[after.number][0](product, after.parameter)

    def weight(self, edge: Edge) -> Tensor:
        """W ``[out, in]``, times its scale and mask."""
        assert edge.weight is not None
        weight = self.operands[edge.weight]
        weight = weight if edge.mask is None else weight * self.operands[edge.mask]
        return edge.scale * (weight.mT if edge.transposed else weight)

    def columns(self, edge: Edge) -> slice:
        """Those of its source that an edge takes."""
        if edge.first is None:
            return slice(None)
        width = self.states[edge.target].shape[1] if edge.weight is None else self.weight(edge).shape[1]
        return slice(edge.first, edge.first + width)

    def taken(self, edge: Edge, state: Tensor) -> Tensor:
        """What an edge takes of its source."""
        return _BY_NUMBER[edge.before.number][0](state[:, self.columns(edge)], edge.before.parameter)

    def theta(self, i: int) -> tuple[Tensor | None, float, float | Expression]:
        """A node's theta, the weight of its energy, and the parameter of its law, which may be an expression."""
        node = self.plan.nodes[i]
        parameter = node.law_parameter if node.expression is None else node.expression
        return None if node.theta is None else self.operands[node.theta], node.weight, parameter

    def per_sample(self, i: int, x: Any) -> Any:
        """What is linear in a node's energy, ``[B, n]`` or a number, times the weights of samples."""
        of = self.plan.nodes[i].sample_weights
        return x if of is None else self.operands[of][:, None] * x

    def errors(self) -> _Errors:
        predictions: list[Tensor | None] = [None] * len(self.states)
        error, delta = predictions.copy(), predictions.copy()
        for i, node in enumerate(self.plan.nodes):
            if node.law is Law.NONE:
                continue
            product, prediction = self.predict(i)
            predictions[i], law, of = prediction, LAWS[node.law], (self.states[i], prediction, *self.theta(i))
            error[i] = self.per_sample(i, law.pull(*of))
            if product is not None:
                after = self.into[i][0].after
                slope = _BY_NUMBER[after.number][1](product, after.parameter)
                delta[i] = self.per_sample(i, law.push(*of)) * slope
        return _Errors(predictions, error, delta)

    def record(self, step: int, errors: _Errors) -> None:
        assert self.plan.energies is not None
        energies = self.operands[self.plan.energies]
        for i, (node, mu) in enumerate(zip(self.plan.nodes, errors.prediction, strict=True)):
            law = LAWS.get(node.law)
            energies[step, i] = 0
            if law is not None:
                deviation: Tensor = law.deviation(self.states[i], mu, *self.theta(i))
                energies[step, i] = self.per_sample(i, deviation[:, None])[:, 0]

    def descend(self, errors: _Errors, fresh: bool) -> None:
        method = self.plan.descent
        for i, (node, state) in enumerate(zip(self.plan.nodes, self.states, strict=True)):
            if not node.free:
                continue
            error = errors.error[i]
            gradient = torch.zeros_like(state) if error is None else error.clone()
            for edge in self.out[i]:
                delta = errors.delta[edge.target]
                assert delta is not None
                if edge.weight is not None or edge.passes:
                    columns = self.columns(edge)
                    slope = _BY_NUMBER[edge.before.number][1](state[:, columns], edge.before.parameter)
                    fed = edge.scale * delta if edge.weight is None else delta @ self.weight(edge)
                    gradient[:, columns] -= slope * fed
                if edge.skip:
                    gradient -= edge.skip * delta
            if node.way is not None and node.way.known is not None:
                gradient.masked_fill_(self.operands[node.way.known], 0.0)
            if node.velocity is not None:
                velocity = self.operands[node.velocity]
                if fresh:
                    velocity.copy_(gradient)
                else:
                    velocity.mul_(method.momentum).add_(gradient, alpha=1 - method.dampening)
                gradient = gradient + method.momentum * velocity if method.nesterov else velocity
            state.sub_(gradient, alpha=method.lr)

    def learn(self, errors: _Errors, states: list[Tensor]) -> None:
        gradients: dict[int, Tensor] = {}
        for target in self.plan.targets:
            of_use, sum_ = self.gradient(target, errors, states), gradients.get(target.tensor)
            gradients[target.tensor] = of_use if sum_ is None else sum_ + of_use
        of = {target.tensor: target for target in self.plan.targets}
        for tensor, gradient in gradients.items():
            target = of[tensor]
            rule = self.plan.rules[target.rule]
            slots = [None if s is None else self.operands[s] for s in target.slots]
            RULES[rule.kind](rule, self.operands[tensor], gradient, slots)
        self.plan = learned(self.plan)

    def gradient(self, target: Target, errors: _Errors, states: list[Tensor]) -> Tensor:
        """Of the mean energy."""
        batch = max(1, states[0].shape[0])
        if target.what is Learned.LOGVAR:
            law, mu = LAWS[self.plan.nodes[target.owner].law], errors.prediction[target.owner]
            theta, weight, parameter = self.theta(target.owner)
            weight = self.per_sample(target.owner, weight)
            moment: Tensor = law.moment(states[target.owner], mu, theta, weight, parameter)
            return moment / batch
        edge = self.plan.edges[target.owner]
        delta = errors.delta[edge.target]
        assert delta is not None
        if target.what is Learned.BIAS:
            return delta.sum(0) * (edge.bias_scale / -batch)
        gradient = delta.mT @ self.taken(edge, states[edge.source]) * (edge.scale / -batch)
        gradient = gradient.mT if edge.transposed else gradient
        return gradient if edge.mask is None else gradient * self.operands[edge.mask]
