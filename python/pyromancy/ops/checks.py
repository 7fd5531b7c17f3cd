"""What the operators ask of their arguments, once for fakes, the reference and Triton; `csrc/check.h` asks the same.

`CHECKS` has a function for every operator, with the operator's arguments, that looks at no element and no address: a
fake tensor passes through it. `MEMORY` has one more for those that write in place, which looks at addresses. A message
names the argument, what it must be and what it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..plan import Law, Learned, Learning, Plan, RuleKind, Target, decode
from ..plan.elementwise import MOST_INSTRUCTIONS, MOST_OPERANDS, OPERATIONS, arity

_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_check = torch._check


def _floating(name: str, t: Tensor) -> None:
    _check(t.dtype in _FLOATING, lambda: f"{name} must be float32, float64, bfloat16 or float16, got {t.dtype}")


def _like(name: str, t: Tensor, like_name: str, like: Tensor) -> None:
    _check(t.dtype == like.dtype, lambda: f"{name} must have dtype {like.dtype} of {like_name}, got {t.dtype}")
    _check(
        t.device == like.device, lambda: f"{name} must be on the device of {like_name}, {like.device}, got {t.device}"
    )


def _same(name: str, t: Tensor, like_name: str, like: Tensor) -> None:
    _like(name, t, like_name, like)
    _check(
        t.shape == like.shape,
        lambda: f"{name} must have the shape of {like_name} {tuple(like.shape)}, got {tuple(t.shape)}",
    )


def _shaped(name: str, t: Tensor, *shapes: tuple[int, ...]) -> None:
    _check(
        tuple(t.shape) in shapes,
        lambda: f"{name} must have shape {' or '.join(map(str, shapes))}, got {tuple(t.shape)}",
    )


def _contiguous(name: str, t: Tensor) -> None:
    _check(t.is_contiguous(), lambda: f"{name} must be contiguous, got strides {t.stride()}")


def _finite(**numbers: float) -> None:
    for name, x in numbers.items():
        _check(math.isfinite(x), lambda name=name, x=x: f"{name} must be finite, got {x}")


def _per_sample(name: str, t: Tensor, like_name: str, like: Tensor) -> None:
    _like(name, t, like_name, like)
    _shaped(name, t, (like.shape[0],))


def _gaussian(value: Tensor, pred: Tensor, logvar: Tensor | None, **per_sample: Tensor | None) -> None:
    _floating("value", value)
    _check(value.dim() >= 1, lambda: "value must have a batch dimension, got shape ()")
    _same("pred", pred, "value", value)
    if logvar is not None:
        _like("logvar", logvar, "value", value)
        node = value.shape[1:]
        _check(
            logvar.dim() == 0
            or (logvar.dim() == len(node) and all(a in (1, b) for a, b in zip(logvar.shape, node, strict=True))),
            lambda: f"logvar must broadcast against the node dimensions {tuple(node)}, got shape {tuple(logvar.shape)}",
        )
    for name, t in per_sample.items():
        if t is not None:
            _per_sample(name, t, "value", value)


def _gaussian_backward(grad: Tensor, value: Tensor, pred: Tensor, logvar: Tensor | None) -> None:
    _gaussian(value, pred, logvar, grad=grad)


def _gaussian_error(value: Tensor, pred: Tensor, logvar: Tensor | None, weight: Tensor | None) -> None:
    _gaussian(value, pred, logvar, weight=weight)


def _cholesky_factor(logdiag: Tensor, offtril: Tensor) -> None:
    _check(logdiag.dim() == 1, lambda: f"logdiag must have one dimension, got shape {tuple(logdiag.shape)}")
    _floating("logdiag", logdiag)
    _like("offtril", offtril, "logdiag", logdiag)
    _shaped("offtril", offtril, (logdiag.shape[0], logdiag.shape[0]))


def _cholesky_factor_backward(grad: Tensor, factor: Tensor) -> None:
    _check(factor.dim() == 2, lambda: f"factor must have shape [n, n], got {tuple(factor.shape)}")
    _floating("factor", factor)
    _shaped("factor", factor, (factor.shape[0], factor.shape[0]))
    _same("grad", grad, "factor", factor)


def _with_factor(name: str, state: Tensor, factor: Tensor) -> None:
    _floating(name, state)
    _check(state.dim() == 3, lambda: f"{name} must have shape [B, P, n], got {tuple(state.shape)}")
    _like("factor", factor, name, state)
    _shaped("factor", factor, (state.shape[2], state.shape[2]))


def _multivariate(value: Tensor, pred: Tensor, factor: Tensor) -> None:
    _with_factor("value", value, factor)
    _same("pred", pred, "value", value)


def _multivariate_energy_backward(grad: Tensor, whitened: Tensor, factor: Tensor) -> None:
    _with_factor("whitened", whitened, factor)
    _per_sample("grad", grad, "whitened", whitened)


def _multivariate_energy_backward_factor(grad: Tensor, whitened: Tensor, grad_value: Tensor, factor: Tensor) -> None:
    _multivariate_energy_backward(grad, whitened, factor)
    _same("grad_value", grad_value, "whitened", whitened)


def _estep(
    value: Tensor,
    buffer: Tensor | None,
    error: Tensor,
    feedback: Tensor | None,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
) -> None:
    _floating("value", value)
    for name, t in (("buffer", buffer), ("error", error), ("feedback", feedback)):
        if t is not None:
            _same(name, t, "value", value)
    _finite(lr=lr, momentum=momentum, dampening=dampening)
    _check(buffer is not None or momentum == 0, lambda: f"momentum must be 0 without a buffer, got {momentum}")


def _run_plan(written: list[Tensor], read: list[Tensor], ints: list[int], numbers: list[float]) -> None:
    try:
        plan = decode(ints, numbers, len(written), len(written) + len(read))
    except ValueError as error:
        raise RuntimeError(str(error)) from error
    _Plan(plan, [*written, *read], len(written)).check()


_NOUNS = {Learned.WEIGHT: "weight of edge", Learned.BIAS: "bias of edge", Learned.LOGVAR: "theta of node"}


class _Plan:
    """A plan's structure, and that its tensors are what it takes them for."""

    def __init__(self, plan: Plan, operands: list[Tensor], written: int) -> None:
        self.plan, self.operands, self.written = plan, operands, written

    def check(self) -> None:
        plan = self.plan
        self.first = self.operands[plan.nodes[0].state]
        self.batch = self.first.shape[:1]
        dtype = self.first.dtype
        _check(dtype in (torch.float32, torch.float64), lambda: f"states must be float32 or float64, got {dtype}")
        for i in range(len(plan.edges)):
            self.join(i)
        for i in range(len(plan.nodes)):
            self.node(i)
        for i in range(len(plan.edges)):
            self.edge(i)
        _check(
            (not plan.targets) == (plan.learning is Learning.NEVER),
            lambda: "plan must have targets where something learns, and only there",
        )
        for i in range(len(plan.targets)):
            self.target(i)
        self.shared()
        self.rest()
        self.uses()

    def like(self, name: str, t: Tensor) -> None:
        _like(name, t, "state of node[0]", self.first)

    def near(self, name: str, t: Tensor) -> None:
        """What is looked at only once may lie on the CPU for plans of other devices."""
        _check(
            t.device.type == "cpu" or t.device == self.first.device,
            lambda: f"{name} must be on the CPU or on the device of the states {self.first.device}, got {t.device}",
        )

    def join(self, i: int) -> None:
        edge, others = self.plan.edges[i], self.plan.edges[:i]
        bare = (edge.scale == 1 or edge.passes) and not edge.transposed and not edge.gram
        _check(edge.weight is not None or bare, lambda: f"edge {i} has no weight, and so no scale or form of it")
        _check(
            all(e.after == edge.after for e in others if e.target == edge.target),
            lambda: f"edge {i} must have the activation after the product that others to node {edge.target} have",
        )

    def node(self, i: int) -> None:
        node, state = self.plan.nodes[i], self.operands[self.plan.nodes[i].state]
        name = f"state of node[{i}]"
        _check(state.dim() == 2, lambda: f"{name} must have shape (B, n), got {tuple(state.shape)}")
        self.like(name, state)
        n = state.shape[1]
        _shaped(name, state, (*self.batch, n))
        _contiguous(name, state)
        _check(
            not node.free or node.state < self.written,
            lambda: f"{name} is moved, and must be among the tensors written",
        )
        predicted = node.prior is not None or any(e.target == i for e in self.plan.edges)
        _check(
            predicted == (node.law is not Law.NONE),
            lambda: f"node {i} must have a law where it has a prediction, and only there",
        )
        _check(
            not node.swept or (node.free and predicted),
            lambda: f"node {i} must be free and predicted to start at its prediction",
        )
        _check(
            node.law is not Law.CATEGORICAL or (not node.free and node.theta is None),
            lambda: f"node {i} must be clamped and have no theta, as its law is categorical",
        )
        if node.theta is not None:
            theta = self.operands[node.theta]
            self.like(f"theta of node[{i}]", theta)
            _check(
                node.takes_theta or node.law is Law.FULL_GAUSSIAN,
                lambda: f"theta of node[{i}] needs a law that has one",
            )
            shapes = [(n, n)] if node.law is Law.FULL_GAUSSIAN else [(n,), (1,), ()]
            shapes += [(*self.batch, n)] if node.law is Law.EXPRESSION else []
            _shaped(f"theta of node[{i}]", theta, *shapes)
        else:
            _check(node.law is not Law.FULL_GAUSSIAN, lambda: f"theta of node {i} must be its precision")
            _check(
                node.law is not Law.EXPRESSION or not node.takes_theta,
                lambda: f"theta of node {i} must be there, as its expression takes one",
            )
        _check(
            not node.law.has_parameter or node.law_parameter > 0,
            lambda: f"parameter of the law of node {i} must be positive, got {node.law_parameter}",
        )
        _check(
            (node.law is Law.EXPRESSION) == (node.expression is not None),
            lambda: f"node {i} must have an expression where that is its law, and only there",
        )
        if node.prior is not None:
            prior = self.operands[node.prior]
            self.like(f"prior of node[{i}]", prior)
            _shaped(f"prior of node[{i}]", prior, (1, n), (*self.batch, n))
        if node.velocity is not None:
            velocity = self.operands[node.velocity]
            _check(node.free, lambda: f"node {i} must be free to have a velocity")
            _same(f"velocity of node[{i}]", velocity, name, state)
            _contiguous(f"velocity of node[{i}]", velocity)
        if node.data is not None:
            data = self.operands[node.data]
            if node.law is Law.CATEGORICAL and data.dtype == torch.int64:
                _check(
                    data.dim() == 1 and data.is_contiguous() and data.device == state.device,
                    lambda: (
                        f"data of node[{i}] must be contiguous classes of shape (N,) on the device of the states, got "
                        f"{tuple(data.shape)} on {data.device}"
                    ),
                )
            else:
                self.like(f"data of node[{i}]", data)
                _check(
                    data.dim() == 2 and data.shape[1] == n and data.is_contiguous(),
                    lambda: f"data of node[{i}] must be contiguous of shape (N, {n}), got {tuple(data.shape)}",
                )
            _check(self.plan.order is not None, lambda: f"data of node[{i}] needs an order")
            _check(node.state < self.written, lambda: f"{name} is set from data, and must be among the tensors written")
        if node.sample_weights is not None:
            weights, weights_name = self.operands[node.sample_weights], f"sample weights of node[{i}]"
            self.like(weights_name, weights)
            _check(predicted, lambda: f"{weights_name} need a law")
            _shaped(weights_name, weights, tuple(self.batch))

    def edge(self, i: int) -> None:
        edge = self.plan.edges[i]
        source, target = self.plan.nodes[edge.source], self.plan.nodes[edge.target]
        n, m = self.operands[source.state].shape[1], self.operands[target.state].shape[1]
        if edge.weight is not None:
            weight = self.operands[edge.weight]
            self.like(f"weight of edge[{i}]", weight)
            if edge.first is not None and weight.dim() == 2:
                n = weight.shape[not edge.transposed]
            _shaped(f"weight of edge[{i}]", weight, (n, m) if edge.transposed else (m, n))
        elif edge.passes:
            n = m
        if edge.mask is not None:
            _check(edge.weight is not None, lambda: f"mask of edge[{i}] needs a weight")
            assert edge.weight is not None
            _same(f"mask of edge[{i}]", self.operands[edge.mask], f"weight of edge[{i}]", self.operands[edge.weight])
        whole = self.operands[source.state].shape[1]
        _check(
            (n == whole if edge.first is None else edge.first + n <= whole)
            or (edge.weight is None and not edge.passes),
            lambda: f"edge {i} takes {n} columns from {edge.first or 0} on, of {whole}",
        )
        if edge.bias is not None:
            bias = self.operands[edge.bias]
            self.like(f"bias of edge[{i}]", bias)
            _shaped(f"bias of edge[{i}]", bias, (m,))
        _check(
            edge.skip == 0 or whole == m,
            lambda: f"skip of edge {i} needs nodes of one width, got {whole} and {m}",
        )
        _check(
            target.law is not Law.CATEGORICAL or edge.after.number == 0,
            lambda: f"edge {i} must have no activation after the product: it makes logits",
        )
        _check(
            not target.swept or edge.source < edge.target,
            lambda: (
                f"node {edge.target} starts at its prediction, and edge {i} must lead to it from an earlier one, got "
                f"{edge.source}"
            ),
        )
        others = [e for j, e in enumerate(self.plan.edges) if j != i]
        alone = target.prior is None and all(e.source != edge.source and e.target != edge.target for e in others)
        _check(
            not edge.gram or alone,
            lambda: f"gram of edge {i} needs a source and a target without other edges, and no prior beside it",
        )
        _check(
            not edge.gram
            or (
                source.free and not target.free and edge.after.number == 0 and edge.skip == 0
                and target.law is Law.GAUSSIAN and target.sample_weights is None and self.plan.energies is None
            ),
            lambda: (
                f"gram of edge {i} needs a free source, a clamped target without a matrix for its precision or "
                "sample weights, no activation after the product, no skip, and no energies recorded"
            ),
        )  # fmt: skip

    def target(self, i: int) -> None:
        target = self.plan.targets[i]
        rule = self.plan.rules[target.rule]
        name = f"{_NOUNS[target.what]}[{target.owner}]"
        if target.what is Learned.LOGVAR:
            node = self.plan.nodes[target.owner]
            _check(
                node.takes_theta or node.theta is None,
                lambda: f"{name} must be log-variances or log-scales to be learned",
            )
            of = node.theta
            _check(
                of is None or self.operands[of].dim() <= 1,
                lambda: f"{name} must be the same for all samples to be learned",
            )
        else:
            edge = self.plan.edges[target.owner]
            of = edge.weight if target.what is Learned.WEIGHT else edge.bias
        _check(of is not None, lambda: f"{name} is to be learned, and there is none")
        assert of is not None
        written = self.operands[target.tensor]
        _same(f"targets[{i}]", written, name, self.operands[of])
        _contiguous(f"targets[{i}]", written)
        _check(
            (rule.kind is RuleKind.GRADIENT) == (target.tensor != of),
            lambda: (
                f"targets[{i}] must be the parameter itself where a rule moves it, and another tensor where its "
                "gradient is wanted"
            ),
        )
        needed, slots = rule.slots_needed, list(target.slots)
        _check(None not in slots[:needed] and len(slots) >= needed, lambda: f"target {i} needs {needed} slots")
        for place, slot in enumerate(slots):
            if slot is None:
                continue
            t = self.operands[slot]
            if rule.kind.counts_steps and place == 0:
                _check(
                    t.numel() == 1 and t.dtype in (torch.float32, torch.float64),
                    lambda t=t: f"step of target {i} must be one float32 or float64 number, got shape {tuple(t.shape)}",
                )
                self.near(f"step of target[{i}]", t)
                continue
            _same(f"slot of target[{i}]", t, f"targets[{i}]", written)
            _contiguous(f"slot of target[{i}]", t)

    def shared(self) -> None:
        """Targets of one tensor are its uses, each once, and learn alike."""
        of: dict[int, Target] = {}
        uses = set()
        for target in self.plan.targets:
            first = of.setdefault(target.tensor, target)
            use = target.tensor, target.what, target.owner
            _check(
                use not in uses and (target.rule, target.slots) == (first.rule, first.slots),
                lambda t=target: (
                    "targets of one tensor must have one rule, the same slots, and other uses of it, got another for "
                    f"the {_NOUNS[t.what]} {t.owner}"
                ),
            )
            uses.add(use)

    def rest(self) -> None:
        plan = self.plan
        if plan.energies is not None:
            energies = self.operands[plan.energies]
            self.like("energies", energies)
            _shaped("energies", energies, (plan.steps, len(plan.nodes), *self.batch))
            _contiguous("energies", energies)
        if plan.diverged is not None:
            self.like("diverged", self.operands[plan.diverged])
            _shaped("diverged", self.operands[plan.diverged], (1,))
        if plan.order is None:
            return
        order, batch = self.operands[plan.order], self.batch[0]
        fits = order.dim() == 1 and (order.shape[0] % batch == 0 if batch else order.shape[0] == 0)
        _check(
            fits and order.is_contiguous() and order.dtype == torch.int64,
            lambda: f"order must be contiguous int64 of shape (batches * {batch},), got {tuple(order.shape)}",
        )
        self.near("order", order)
        _check(plan.energies is None, lambda: "energies must not be recorded over many batches")

    def uses(self) -> None:
        """What is written serves one purpose; what a rule moves is its owner's parameter too."""
        plan = self.plan
        used: list[int | None] = [i for n in plan.nodes for i in (n.state, n.theta, n.prior, n.velocity, n.data)]
        used += [n.sample_weights for n in plan.nodes]
        used += [i for e in plan.edges for i in (e.weight, e.bias, e.mask)]
        targets = {t.tensor: t for t in plan.targets}.values()
        used += [i for t in targets for i in (t.tensor, *t.slots)]
        used += [plan.energies, plan.diverged]
        changed = {n.state for n in plan.nodes if n.free or n.data is not None} | {n.velocity for n in plan.nodes}
        changed |= {i for t in targets for i in (t.tensor, *t.slots)} | {plan.energies, plan.diverged}
        moved: list[int | None] = [t.tensor for t in plan.targets if plan.rules[t.rule].kind is not RuleKind.GRADIENT]
        for i in changed - {None}:
            _check(
                used.count(i) <= 1 + moved.count(i),
                lambda i=i: f"written[{i}] is what a plan writes, and must be used for nothing else",
            )


def _elementwise(
    written: list[Tensor], read: list[Tensor], instructions: list[int], results: list[int], numbers: list[float]
) -> None:
    _check(
        0 < len(written) == len(results),
        lambda: f"written must hold a tensor for each of results, got {len(written)} and {len(results)}",
    )
    first = written[0]
    _check(
        first.dtype in (torch.float32, torch.float64),
        lambda: f"written[0] must be float32 or float64, got {first.dtype}",
    )
    for name, tensors in (("written", written), ("read", read)):
        for i, t in enumerate(tensors):
            _same(f"{name}[{i}]", t, "written[0]", first)
    given, operands = len(read) + len(numbers), len(written) + len(read) + len(numbers)
    _check(operands <= MOST_OPERANDS, lambda: f"operands and numbers must be at most {MOST_OPERANDS}, got {operands}")
    _check(
        len(instructions) % 4 == 0 and len(instructions) <= 4 * MOST_INSTRUCTIONS,
        lambda: (
            f"instructions must be four integers each, and at most {MOST_INSTRUCTIONS} of them, got "
            f"{len(instructions)} integers"
        ),
    )
    for i in range(len(instructions) // 4):
        operation, *of = instructions[4 * i : 4 * i + 4]
        _check(
            0 <= operation < OPERATIONS,
            lambda i=i, of=operation: f"instruction {i} must be one of {OPERATIONS} operations, got {of}",
        )
        for value in of[: arity(operation)]:
            _check(
                0 <= value < given + i,
                lambda i=i, value=value: f"instruction {i} must read values before it, got {value}",
            )
    for value in results:
        _check(
            0 <= value < given + len(instructions) // 4,
            lambda value=value: f"results must be values of the program, got {value}",
        )


def _real(name: str, t: Tensor) -> None:
    _check(t.dtype in (torch.float32, torch.float64), lambda: f"{name} must be float32 or float64, got {t.dtype}")


def _vectors(name: str, t: Tensor) -> None:
    _check(
        t.stride(-1) == 1 or t.shape[-1] <= 1,
        lambda: f"{name} must have the elements of a vector side by side, got strides {t.stride()}",
    )


def _heads(query: Tensor, scale: float, **others: Tensor) -> None:
    _real("query", query)
    _check(
        query.dim() == 4,
        lambda: f"query must have shape [batch, heads, length, width], got {tuple(query.shape)}",
    )
    for name, t in {"query": query, **others}.items():
        _same(name, t, "query", query)
        _vectors(name, t)
    _finite(scale=scale)


def _attention(out: Tensor, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> None:
    _heads(query, scale, key=key, value=value, out=out)


def _attention_backward(
    grads: Tensor, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float
) -> None:
    _heads(query, scale, key=key, value=value, grad=grad)
    _like("grads", grads, "query", query)
    _check(
        grads.shape == (3, *query.shape),
        lambda: f"grads must hold three tensors of the shape of query {tuple(query.shape)}, got {tuple(grads.shape)}",
    )
    _vectors("grads", grads)


def _rows(input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, **others: Tensor) -> None:
    _real("input", input)
    _check(input.dim() >= 1, lambda: "input must have a dimension, got shape ()")
    for name, t in {"input": input, **others}.items():
        _same(name, t, "input", input)
        _contiguous(name, t)
    for name, of in (("weight", weight), ("bias", bias)):
        if of is not None:
            _like(name, of, "input", input)
            _check(
                of.shape == input.shape[-1:],
                lambda name=name, of=of: f"{name} must have shape ({input.shape[-1]},), got {tuple(of.shape)}",
            )
            _contiguous(name, of)
    _finite(eps=eps)


def _layer_norm(out: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    _rows(input, weight, bias, eps, out=out)


def _layer_norm_backward(out: Tensor, grad: Tensor, input: Tensor, weight: Tensor | None, eps: float) -> None:
    _rows(input, weight, None, eps, out=out, grad=grad)


CHECKS: dict[str, Callable[..., None]] = {
    "gaussian_energy": _gaussian,
    "gaussian_energy_backward": _gaussian_backward,
    "gaussian_energy_backward_logvar": _gaussian_backward,
    "gaussian_error": _gaussian_error,
    "cholesky_factor": _cholesky_factor,
    "cholesky_factor_backward": _cholesky_factor_backward,
    "multivariate_energy": _multivariate,
    "multivariate_energy_backward": _multivariate_energy_backward,
    "multivariate_energy_backward_factor": _multivariate_energy_backward_factor,
    "multivariate_error": _multivariate,
    "estep_": _estep,
    "run_plan_": _run_plan,
    "elementwise_": _elementwise,
    "attention_": _attention,
    "attention_backward_": _attention_backward,
    "layer_norm_": _layer_norm,
    "layer_norm_backward_": _layer_norm_backward,
}


def _bytes(t: Tensor) -> range:
    """The addresses from a tensor's first element to past its last."""
    first = t.data_ptr()
    if t.numel() == 0:
        return range(first, first)
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return range(first, first + (last + 1) * t.element_size())


def _has_no_gaps(t: Tensor) -> bool:
    """Whether all between the first and the last element of a tensor is its own."""
    step = 1
    for stride, size in sorted((s, n) for n, s in zip(t.shape, t.stride(), strict=True) if n != 1 and s != 0):
        if stride != step:
            return False
        step *= size
    return True


def _same_elements(a: Tensor, b: Tensor) -> bool:
    if a.data_ptr() != b.data_ptr() or a.shape != b.shape:
        return False
    return all(n <= 1 or s == t for n, s, t in zip(a.shape, a.stride(), b.stride(), strict=True))


def _apart(name: str, written: Tensor, other_name: str, other: Tensor, may_be_same: bool = False) -> None:
    """What is written is not read as another operand's elements, as far as this can be told without a search."""
    a, b = _bytes(written), _bytes(other)
    if not (a.start < b.stop and b.start < a.stop) or (may_be_same and _same_elements(written, other)):
        return
    _check(
        not (_has_no_gaps(written) and _has_no_gaps(other)),
        lambda: f"{name} is written in place and must not overlap {other_name} in memory; clone one of them",
    )


def _not_expanded(name: str, t: Tensor) -> None:
    _check(
        all(stride != 0 or size <= 1 for size, stride in zip(t.shape, t.stride(), strict=True)),
        lambda: (
            f"{name} is written in place and must not be expanded, got strides {t.stride()} of shape {tuple(t.shape)}"
        ),
    )


def _estep_memory(value: Tensor, buffer: Tensor | None, error: Tensor, feedback: Tensor | None, *_: object) -> None:
    for name, written in (("value", value), ("buffer", buffer)):
        if written is not None:
            _not_expanded(name, written)
            _apart(name, written, "error", error, may_be_same=True)
            if feedback is not None:
                _apart(name, written, "feedback", feedback, may_be_same=True)
    if buffer is not None:
        _apart("value", value, "buffer", buffer)


def _run_plan_memory(written: list[Tensor], read: list[Tensor], *_: object) -> None:
    for i, t in enumerate(written):
        for j, other in enumerate(written):
            if i != j:
                _apart(f"written[{i}]", t, f"written[{j}]", other)
        for j, other in enumerate(read):
            _apart(f"written[{i}]", t, f"read[{j}]", other)


def _elementwise_memory(written: list[Tensor], read: list[Tensor], *_: object) -> None:
    for i, t in enumerate(written):
        _not_expanded(f"written[{i}]", t)
        for j, other in enumerate(written[:i]):
            _apart(f"written[{i}]", t, f"written[{j}]", other)
        for j, other in enumerate(read):
            _apart(f"written[{i}]", t, f"read[{j}]", other, may_be_same=True)


def _new_memory(written: str, *read: str) -> Callable[..., None]:
    """Of an operator whose first argument is written and is none of the next."""

    def check(out: Tensor, *args: Any) -> None:
        _not_expanded(written, out)
        for name, t in zip(read, args, strict=False):
            if t is not None:
                _apart(written, out, name, t)

    return check


MEMORY: dict[str, Callable[..., None]] = {
    "estep_": _estep_memory,
    "run_plan_": _run_plan_memory,
    "elementwise_": _elementwise_memory,
    "attention_": _new_memory("out", "query", "key", "value"),
    "attention_backward_": _new_memory("grads", "grad", "query", "key", "value"),
    "layer_norm_": _new_memory("out", "input", "weight", "bias"),
    "layer_norm_backward_": _new_memory("out", "grad", "input", "weight"),
}


def check(operator: str, args: tuple[Any, ...]) -> None:
    """Refuse what an operator's kernels would."""
    CHECKS[operator](*args)
    if memory := MEMORY.get(operator):
        memory(*args)
