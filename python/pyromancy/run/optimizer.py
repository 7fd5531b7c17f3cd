"""A `torch.optim` optimizer as rules of a plan, on the state that it keeps itself."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim import optimizer as _torch

from ..plan import Rule, RuleKind

# what optimizers of torch.optim hold of the form of a parameter
_AVERAGES = frozenset(
    (
        *("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "grad_avg"),
        *("acc_delta", "sum", "prev", "step_size", "ax"),
    )
)


def obstacle(optimizer: Optimizer) -> str | None:
    """Why an optimizer has to be called, if it has to be."""
    kind = type(optimizer)
    if kind not in _READ:
        return f"{kind.__name__} is not SGD, Adam, AdamW or RMSprop of torch.optim"
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


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether its step takes a function that evaluates the loss, as that of `torch.optim.LBFGS` does."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def check_averages(optimizer: Optimizer, named: Callable[[Tensor], str]) -> None:
    """Raise where what it holds is not of its parameters' form, as its step would midway.

    Args:
        optimizer: which may have loaded the state of another, or whose parameters may have been converted.
        named: what to call a parameter.

    Raises:
        TypeError: averages of PyTorch's Adam, which takes no others, are of another dtype.
        ValueError: some are of another shape.
    """
    of = type(optimizer).step.__module__ or ""  # none of code without a name
    if not of.startswith("torch.optim."):  # it may hold what it likes by these names
        return
    for group in optimizer.param_groups:
        for p in group["params"]:
            for name, held in optimizer.state.get(p, {}).items():
                if name not in _AVERAGES or not isinstance(held, Tensor):
                    continue
                if held.shape != p.shape:
                    raise ValueError(
                        f"optimizer must hold averages of its parameters' shapes, got {name} {[*held.shape]} for "
                        f"{named(p)} {[*p.shape]}"
                    )
                if held.dtype != p.dtype and isinstance(optimizer, Adam):
                    raise TypeError(
                        f"optimizer must hold averages of its parameters' dtype, got {name} of {held.dtype} for "
                        f"{named(p)} of {p.dtype}: convert the network before the optimizer is made, or do "
                        "optimizer.load_state_dict(optimizer.state_dict()), which converts them"
                    )


def without_eps(optimizer: Optimizer) -> list[tuple[float, Tensor]]:
    """The parameters in whose dtype the eps of an optimizer of PyTorch's is 0, each with that eps.

    A gradient that has always been 0 is then divided by 0. What is fused computes in float32.
    """
    if not (type(optimizer).step.__module__ or "").startswith("torch.optim."):
        return []
    found = []
    for group in optimizer.param_groups:
        eps = group.get("eps")
        if isinstance(eps, float) and eps > 0 and not group.get("fused"):
            half = [p for p in group["params"] if p.dtype == torch.float16]
            found += [(eps, p) for p in half if not torch.tensor(eps, dtype=p.dtype)]
    return found


class Learner:
    """What an optimizer does with the gradients of some parameters, as rules, and the tensors these take.

    Attributes:
        rules: one for every kind of treatment.
        of: by a parameter's id, the place of its rule and its slots.
        begun: states of the optimizer, and the velocities that are to be theirs.
    """

    def __init__(self, optimizer: Optimizer, learned: set[int]) -> None:
        self.rules: list[Rule] = []
        self.of: dict[int, tuple[int, list[Tensor | None]]] = {}
        self.obstacle = ""
        self._read: list[Tensor] = []
        self.begun: list[tuple[dict[str, Any], Tensor]] = []
        self._places: dict[Rule, int] = {}
        self._options = [_options(group) for group in optimizer.param_groups]
        read = _READ[type(optimizer)]
        for group in optimizer.param_groups:
            for p in group["params"]:
                if id(p) in learned:
                    rule, slots = read(self, group, optimizer.state, p)
                    if not all(s is None or _fits(s, p) for s in slots):
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
            not self.begun and None not in self._options
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
        return bool(self.begun)

    def commit(self) -> None:
        """Give the optimizer the velocities that the rules have begun."""
        for state, velocity in self.begun:
            state["momentum_buffer"] = velocity


def _sgd(learner: Learner, group: dict[str, Any], states: Any, p: Tensor) -> tuple[Rule, list[Tensor | None]]:
    momentum, fresh = float(group["momentum"]), False
    slots: list[Tensor | None] = []
    if momentum:
        velocity = states[p].get("momentum_buffer")
        fresh = velocity is None
        if velocity is None:
            velocity = torch.empty_like(p, requires_grad=False)
            learner.begun.append((states[p], velocity))
        slots = [velocity]
    rule = Rule(
        RuleKind.SGD, float(group["lr"]), float(group["weight_decay"]), momentum, float(group["dampening"]),
        maximize=bool(group["maximize"]), nesterov=bool(group["nesterov"]), fresh=fresh,
    )  # fmt: skip
    return rule, slots


def _adam(_: Learner, group: dict[str, Any], states: Any, p: Tensor) -> tuple[Rule, list[Tensor | None]]:
    names = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]
    state = _begun(states[p], names, p, bool(group.get("fused")))
    first, second = group["betas"]
    rule = Rule(
        RuleKind.ADAM, float(group["lr"]), float(group["weight_decay"]), float(first), float(second),
        float(group["eps"]), maximize=bool(group["maximize"]), decoupled=bool(group["decoupled_weight_decay"]),
    )  # fmt: skip
    return rule, [state["step"], *(state[name] for name in names)]


def _rmsprop(_: Learner, group: dict[str, Any], states: Any, p: Tensor) -> tuple[Rule, list[Tensor | None]]:
    momentum = max(0.0, float(group["momentum"]))  # below zero it is none to PyTorch
    names = ["square_avg", "momentum_buffer" if momentum > 0 else None, "grad_avg" if group["centered"] else None]
    state = _begun(states[p], [name for name in names if name], p)
    rule = Rule(
        RuleKind.RMSPROP, float(group["lr"]), float(group["weight_decay"]), float(group["alpha"]), momentum,
        float(group["eps"]), maximize=bool(group["maximize"]),
    )  # fmt: skip
    return rule, [state["step"], *(state[name] if name else None for name in names)]


def _fits(slot: Tensor, p: Tensor) -> bool:
    """Whether a rule takes a slot as it is: like the parameter, or a number of steps."""
    return (
        slot.dtype == p.dtype and slot.is_contiguous() if slot.dim() else slot.dtype in (torch.float32, torch.float64)
    )


def _begun(state: dict[str, Any], names: list[str], p: Tensor, fused: bool = False) -> dict[str, Any]:
    """The state of a parameter, made as the optimizer does before its first step."""
    if not state:
        device = p.device if fused else "cpu"
        state["step"] = torch.tensor(0.0, dtype=_torch._get_scalar_dtype(fused or None), device=device)
        state.update((name, torch.zeros_like(p, requires_grad=False)) for name in names)
    return state


_READ = {SGD: _sgd, Adam: _adam, AdamW: _adam, RMSprop: _rmsprop}


def _options(group: dict[str, Any]) -> list[Any] | None:
    """The options of a group but its rate, and which parameters it has; None where one may change in place."""
    options = [tuple(v) if isinstance(v, list) else v for name, v in group.items() if name not in ("params", "lr")]
    return None if any(isinstance(v, Tensor) for v in options) else [*options, *map(id, group["params"])]
