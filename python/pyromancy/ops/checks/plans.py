"""What `run_plan_` asks of a plan and of the tensors that it is run on."""

from __future__ import annotations

import torch
from torch import Tensor

from ...plan import Law, Learned, Learning, Plan, RuleKind, Stepper, Target
from .conditions import alike, contiguous, require, same, shaped

_NOUNS = {Learned.WEIGHT: "weight of edge", Learned.BIAS: "bias of edge", Learned.LOGVAR: "theta of node"}


class PlanCheck:
    """A plan's structure, and that its tensors are what it takes them for."""

    def __init__(self, plan: Plan, operands: list[Tensor], written: int) -> None:
        self.plan, self.operands, self.written = plan, operands, written

    def check(self) -> None:
        plan = self.plan
        self.first = self.operands[plan.nodes[0].state]
        self.batch = self.first.shape[:1]
        dtype = self.first.dtype
        require(dtype in (torch.float32, torch.float64), lambda: f"states must be float32 or float64, got {dtype}")
        for i in range(len(plan.edges)):
            self.join(i)
        for i in range(len(plan.nodes)):
            self.node(i)
        for i in range(len(plan.edges)):
            self.edge(i)
        require(
            (not plan.targets) == (plan.learning is Learning.NEVER),
            lambda: "plan must have targets where something learns, and only there",
        )
        for i in range(len(plan.targets)):
            self.target(i)
        self.shared()
        self.rest()
        self.uses()

    def like(self, name: str, t: Tensor) -> None:
        alike(name, t, "state of node[0]", self.first)

    def near(self, name: str, t: Tensor) -> None:
        """What is looked at only once may lie on the CPU for plans of other devices."""
        require(
            t.device.type == "cpu" or t.device == self.first.device,
            lambda: f"{name} must be on the CPU or on the device of the states {self.first.device}, got {t.device}",
        )

    def join(self, i: int) -> None:
        edge, others = self.plan.edges[i], self.plan.edges[:i]
        bare = (edge.scale == 1 or edge.passes) and not edge.transposed and not edge.gram
        require(edge.weight is not None or bare, lambda: f"edge {i} has no weight, and so no scale or form of it")
        require(
            all(e.after == edge.after for e in others if e.target == edge.target),
            lambda: f"edge {i} must have the activation after the product that others to node {edge.target} have",
        )

    def node(self, i: int) -> None:
        node, state = self.plan.nodes[i], self.operands[self.plan.nodes[i].state]
        name = f"state of node[{i}]"
        require(state.dim() == 2, lambda: f"{name} must have shape (B, n), got {tuple(state.shape)}")
        self.like(name, state)
        n = state.shape[1]
        shaped(name, state, (*self.batch, n))
        contiguous(name, state)
        require(
            not node.free or node.state < self.written,
            lambda: f"{name} is moved, and must be among the tensors written",
        )
        predicted = node.prior is not None or any(e.target == i for e in self.plan.edges)
        require(
            predicted == (node.law is not Law.NONE),
            lambda: f"node {i} must have a law where it has a prediction, and only there",
        )
        require(
            not node.swept or (node.free and predicted),
            lambda: f"node {i} must be free and predicted to start at its prediction",
        )
        require(
            node.law is not Law.CATEGORICAL or (not node.free and node.theta is None),
            lambda: f"node {i} must be clamped and have no theta, as its law is categorical",
        )
        if node.theta is not None:
            theta = self.operands[node.theta]
            self.like(f"theta of node[{i}]", theta)
            require(
                node.takes_theta or node.law is Law.FULL_GAUSSIAN,
                lambda: f"theta of node[{i}] needs a law that has one",
            )
            shapes = [(n, n)] if node.law is Law.FULL_GAUSSIAN else [(n,), (1,), ()]
            shapes += [(*self.batch, n)] if node.law is Law.EXPRESSION else []
            shaped(f"theta of node[{i}]", theta, *shapes)
        else:
            require(node.law is not Law.FULL_GAUSSIAN, lambda: f"theta of node {i} must be its precision")
            require(
                node.law is not Law.EXPRESSION or not node.takes_theta,
                lambda: f"theta of node {i} must be there, as its expression takes one",
            )
        require(
            not node.law.has_parameter or node.law_parameter > 0,
            lambda: f"parameter of the law of node {i} must be positive, got {node.law_parameter}",
        )
        require(
            (node.law is Law.EXPRESSION) == (node.expression is not None),
            lambda: f"node {i} must have an expression where that is its law, and only there",
        )
        if node.prior is not None:
            prior = self.operands[node.prior]
            self.like(f"prior of node[{i}]", prior)
            shaped(f"prior of node[{i}]", prior, (1, n), (*self.batch, n))
        if node.velocity is not None:
            velocity = self.operands[node.velocity]
            require(node.free, lambda: f"node {i} must be free to have a velocity")
            same(f"velocity of node[{i}]", velocity, name, state)
            contiguous(f"velocity of node[{i}]", velocity)
        if node.data is not None:
            data = self.operands[node.data]
            if node.law is Law.CATEGORICAL and data.dtype == torch.int64:
                require(
                    data.dim() == 1 and data.is_contiguous() and data.device == state.device,
                    lambda: (
                        f"data of node[{i}] must be contiguous classes of shape (N,) on the device of the states, got "
                        f"{tuple(data.shape)} on {data.device}"
                    ),
                )
            else:
                self.like(f"data of node[{i}]", data)
                require(
                    data.dim() == 2 and data.shape[1] == n and data.is_contiguous(),
                    lambda: f"data of node[{i}] must be contiguous of shape (N, {n}), got {tuple(data.shape)}",
                )
            require(self.plan.order is not None, lambda: f"data of node[{i}] needs an order")
            require(
                node.state < self.written, lambda: f"{name} is set from data, and must be among the tensors written"
            )
        if node.sample_weights is not None:
            weights, weights_name = self.operands[node.sample_weights], f"sample weights of node[{i}]"
            self.like(weights_name, weights)
            require(predicted, lambda: f"{weights_name} need a law")
            shaped(weights_name, weights, tuple(self.batch))

    def edge(self, i: int) -> None:
        edge = self.plan.edges[i]
        source, target = self.plan.nodes[edge.source], self.plan.nodes[edge.target]
        n, m = self.operands[source.state].shape[1], self.operands[target.state].shape[1]
        if edge.weight is not None:
            weight = self.operands[edge.weight]
            self.like(f"weight of edge[{i}]", weight)
            if edge.first is not None and weight.dim() == 2:
                n = weight.shape[not edge.transposed]
            shaped(f"weight of edge[{i}]", weight, (n, m) if edge.transposed else (m, n))
        elif edge.passes:
            n = m
        if edge.mask is not None:
            require(edge.weight is not None, lambda: f"mask of edge[{i}] needs a weight")
            assert edge.weight is not None
            same(f"mask of edge[{i}]", self.operands[edge.mask], f"weight of edge[{i}]", self.operands[edge.weight])
        whole = self.operands[source.state].shape[1]
        require(
            (n == whole if edge.first is None else edge.first + n <= whole)
            or (edge.weight is None and not edge.passes),
            lambda: f"edge {i} takes {n} columns from {edge.first or 0} on, of {whole}",
        )
        if edge.bias is not None:
            bias = self.operands[edge.bias]
            self.like(f"bias of edge[{i}]", bias)
            shaped(f"bias of edge[{i}]", bias, (m,))
        require(
            edge.skip == 0 or whole == m,
            lambda: f"skip of edge {i} needs nodes of one width, got {whole} and {m}",
        )
        require(
            target.law is not Law.CATEGORICAL or edge.after.number == 0,
            lambda: f"edge {i} must have no activation after the product: it makes logits",
        )
        require(
            not target.swept or not edge.sweeps or edge.source < edge.target,
            lambda: (
                f"node {edge.target} starts at its prediction, and edge {i} must lead to it from an earlier one, got "
                f"{edge.source}"
            ),
        )
        others = [e for j, e in enumerate(self.plan.edges) if j != i]
        method = self.plan.method
        require(
            edge.sweeps or not isinstance(method, Stepper) or not method.errors,
            lambda: f"edge {i} must sweep, as errors move",
        )
        require(
            edge.sweeps or any(e.sweeps and e.target == edge.target for e in others),
            lambda: f"edge {i} must sweep, or another to node {edge.target}",
        )
        alone = target.prior is None and all(e.source != edge.source and e.target != edge.target for e in others)
        require(
            not edge.gram or alone,
            lambda: f"gram of edge {i} needs a source and a target without other edges, and no prior beside it",
        )
        require(
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
            require(
                node.takes_theta or node.theta is None,
                lambda: f"{name} must be log-variances or log-scales to be learned",
            )
            of = node.theta
            require(
                of is None or self.operands[of].dim() <= 1,
                lambda: f"{name} must be the same for all samples to be learned",
            )
        else:
            edge = self.plan.edges[target.owner]
            of = edge.weight if target.what is Learned.WEIGHT else edge.bias
        require(of is not None, lambda: f"{name} is to be learned, and there is none")
        assert of is not None
        written = self.operands[target.tensor]
        same(f"targets[{i}]", written, name, self.operands[of])
        contiguous(f"targets[{i}]", written)
        require(
            (rule.kind is RuleKind.GRADIENT) == (target.tensor != of),
            lambda: (
                f"targets[{i}] must be the parameter itself where a rule moves it, and another tensor where its "
                "gradient is wanted"
            ),
        )
        needed, slots = rule.slots_needed, list(target.slots)
        require(None not in slots[:needed] and len(slots) >= needed, lambda: f"target {i} needs {needed} slots")
        for place, slot in enumerate(slots):
            if slot is None:
                continue
            t = self.operands[slot]
            if rule.kind.counts_steps and place == 0:
                require(
                    t.numel() == 1 and t.dtype in (torch.float32, torch.float64),
                    lambda t=t: f"step of target {i} must be one float32 or float64 number, got shape {tuple(t.shape)}",
                )
                self.near(f"step of target[{i}]", t)
                continue
            same(f"slot of target[{i}]", t, f"targets[{i}]", written)
            contiguous(f"slot of target[{i}]", t)

    def shared(self) -> None:
        """Targets of one tensor are its uses, each once, and learn alike."""
        of: dict[int, Target] = {}
        uses = set()
        for target in self.plan.targets:
            first = of.setdefault(target.tensor, target)
            use = target.tensor, target.what, target.owner
            require(
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
            shaped("energies", energies, (plan.steps, len(plan.nodes), *self.batch))
            contiguous("energies", energies)
        if plan.diverged is not None:
            self.like("diverged", self.operands[plan.diverged])
            shaped("diverged", self.operands[plan.diverged], (1,))
        if plan.order is None:
            return
        order, batch = self.operands[plan.order], self.batch[0]
        fits = order.dim() == 1 and (order.shape[0] % batch == 0 if batch else order.shape[0] == 0)
        require(
            fits and order.is_contiguous() and order.dtype == torch.int64,
            lambda: f"order must be contiguous int64 of shape (batches * {batch},), got {tuple(order.shape)}",
        )
        self.near("order", order)
        require(plan.energies is None, lambda: "energies must not be recorded over many batches")

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
            require(
                used.count(i) <= 1 + moved.count(i),
                lambda i=i: f"written[{i}] is what a plan writes, and must be used for nothing else",
            )
