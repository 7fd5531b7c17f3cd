"""A `torch.optim` optimizer as rules of a plan, on the state that it keeps itself."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim import optimizer as _torch

from ..plan import Rule, RuleKind


def obstacle(optimizer: Optimizer) -> str | None:
    """Why an optimizer has to be called, if it has to be."""
    kind = type(optimizer)
    if kind not in (SGD, Adam, AdamW):
        return f"{kind.__name__} is not SGD, Adam or AdamW of torch.optim"
    own = optimizer.__dict__
    if "step" in own and not hasattr(own["step"], "_wrapped_by_lr_sched"):  # where a scheduler counts steps
        return "its step is not the class's own"
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    if any(hooks) or _torch._global_optimizer_pre_hooks or _torch._global_optimizer_post_hooks:
        return f"{kind.__name__} has hooks on its step"
    for group in optimizer.param_groups:
        for option in ("capturable", "differentiable"):
            if group.get(option):
                return f"{kind.__name__} is {option}"
    return None


class Learner:
    """What an optimizer does with the gradients of some parameters, as rules, and the tensors these take.

    Attributes:
        rules: one for every kind of treatment.
        of: by a parameter's id, the place of its rule and its slots.
    """

    def __init__(self, optimizer: Optimizer, learned: set[int]) -> None:
        self.rules: list[Rule] = []
        self.of: dict[int, tuple[int, list[Tensor]]] = {}
        self.obstacle = ""
        self._read: list[Tensor] = []
        self._begun: list[tuple[dict[str, Any], Tensor]] = []
        self._places: dict[Rule, int] = {}
        self._options = [_options(group) for group in optimizer.param_groups]
        read = self._sgd if type(optimizer) is SGD else self._adam
        decoupled = type(optimizer) is AdamW
        for group in optimizer.param_groups:
            for p in group["params"]:
                if id(p) in learned:
                    rule, slots = read(group, optimizer.state, p, decoupled)
                    if any(s.dim() and (s.dtype != p.dtype or not s.is_contiguous()) for s in slots):
                        self.obstacle = "the optimizer's state is of another dtype or layout than its parameter"
                    self._read.append(p)
                    self.of[id(p)] = self._places.setdefault(rule, len(self._places)), slots
        self.rules = list(self._places)
        groups = enumerate(optimizer.param_groups)
        self._rules_of = {(i, self.of[id(p)][0]) for i, group in groups for p in group["params"] if id(p) in self.of}
        self._states = [(p, optimizer.state.get(p), [*optimizer.state.get(p, {}).values()]) for p in self._read]

    def still(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer has the options, rates aside, and the state that this was made of."""
        states = optimizer.state
        return (
            not self._begun and None not in self._options
            and [_options(group) for group in optimizer.param_groups] == self._options
            and all(
                states.get(p) is state and len(state or ()) == len(held)
                and all(map(operator.is_, (state or {}).values(), held))
                for p, state, held in self._states
            )
        )  # fmt: skip

    def rates(self, optimizer: Optimizer) -> list[float] | None:
        """What the rates of the rules are now; None where they may change in place, or one rule has two."""
        rates: dict[int, float] = {}
        for i, rule in self._rules_of:
            rate = optimizer.param_groups[i]["lr"]
            if isinstance(rate, Tensor) or rates.setdefault(rule, float(rate)) != rate:
                return None
        return [rates[rule] for rule in range(len(self.rules))]

    @property
    def begins(self) -> bool:
        """Whether the optimizer gets its first velocities."""
        return bool(self._begun)

    def commit(self) -> None:
        """Give the optimizer the velocities that the rules have begun."""
        for state, velocity in self._begun:
            state["momentum_buffer"] = velocity

    def _sgd(self, group: dict[str, Any], states: Any, p: Tensor, _: bool) -> tuple[Rule, list[Tensor]]:
        momentum, fresh, slots = float(group["momentum"]), False, []
        if momentum:
            velocity = states[p].get("momentum_buffer")
            fresh = velocity is None
            if fresh:
                velocity = torch.empty_like(p, requires_grad=False)
                self._begun.append((states[p], velocity))
            slots = [velocity]
        rule = Rule(
            RuleKind.SGD, float(group["lr"]), float(group["weight_decay"]), momentum, float(group["dampening"]),
            maximize=bool(group["maximize"]), nesterov=bool(group["nesterov"]), fresh=fresh,
        )  # fmt: skip
        return rule, slots

    @staticmethod
    def _adam(group: dict[str, Any], states: Any, p: Tensor, decoupled: bool) -> tuple[Rule, list[Tensor]]:
        state = states[p]
        if not state:
            state["step"] = torch.tensor(0.0, dtype=_torch._get_scalar_dtype())
            state["exp_avg"] = torch.zeros_like(p, requires_grad=False)
            state["exp_avg_sq"] = torch.zeros_like(p, requires_grad=False)
            if group["amsgrad"]:
                state["max_exp_avg_sq"] = torch.zeros_like(p, requires_grad=False)
        slots = [state["step"], state["exp_avg"], state["exp_avg_sq"]]
        if group["amsgrad"]:
            slots.append(state["max_exp_avg_sq"])
        first, second = group["betas"]
        rule = Rule(
            RuleKind.ADAM, float(group["lr"]), float(group["weight_decay"]), float(first), float(second),
            float(group["eps"]), maximize=bool(group["maximize"]),
            decoupled=decoupled or bool(group.get("decoupled_weight_decay")),
        )  # fmt: skip
        return rule, slots


def _options(group: dict[str, Any]) -> list[Any] | None:
    """The options of a group but its rate, and which parameters it has; None where one may change in place."""
    options = [tuple(v) if isinstance(v, list) else v for name, v in group.items() if name not in ("params", "lr")]
    return None if any(isinstance(v, Tensor) for v in options) else [*options, *map(id, group["params"])]
