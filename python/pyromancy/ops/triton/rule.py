"""How parameters move along their gradients: one elementwise kernel for the rules of `pyromancy.rules`."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from ...plan import Rule, RuleKind
from ...rules import RULES
from .launch import INTERPRETED, blocks, computed_in, elements_of_tile, launch

_ADAM, _RMSPROP = tl.constexpr(int(RuleKind.ADAM)), tl.constexpr(int(RuleKind.RMSPROP))


@triton.jit
def rule_kernel(
    gradient, parameter, velocity, mean, square, greatest, count, size, number: tl.float64, lr: tl.float64,
    weight_decay: tl.float64, first: tl.float64, second: tl.float64, log_first: tl.float64, log_second: tl.float64,
    epsilon: tl.float64,
    KIND: tl.constexpr, MAXIMIZE: tl.constexpr, DECAYS: tl.constexpr, DECOUPLED: tl.constexpr, NESTEROV: tl.constexpr,
    FRESH: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Slots that a rule does without are None, and so is the count where the step's number is given."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    p = tl.load(parameter + index, mask=inside, other=0.0)
    g = tl.load(gradient + index, mask=inside, other=0.0)
    if MAXIMIZE:
        g = -g
    if DECOUPLED:
        p *= tl.full([], 1 - lr * weight_decay, ACC)
    elif DECAYS:
        g += tl.full([], weight_decay, ACC) * p
    if KIND == _ADAM:
        t = tl.full([], number, tl.float64)
        if count is not None:
            t = tl.load(count).to(tl.float64)
        step_size = lr / (1 - tl.exp(t * log_first))
        root = tl.sqrt(1 - tl.exp(t * log_second))
        m = tl.load(mean + index, mask=inside, other=0.0)
        m += tl.full([], 1 - first, ACC) * (g - m)
        tl.store(mean + index, m, mask=inside)
        s = tl.full([], second, ACC) * tl.load(square + index, mask=inside, other=0.0)
        s += tl.full([], 1 - second, ACC) * g * g
        tl.store(square + index, s, mask=inside)
        if greatest is not None:
            s = tl.maximum(tl.load(greatest + index, mask=inside, other=0.0), s, propagate_nan=tl.PropagateNan.ALL)
            tl.store(greatest + index, s, mask=inside)
        scale = tl.sqrt(s) / tl.full([], root, ACC) + tl.full([], epsilon, ACC)
        p -= tl.full([], step_size, ACC) * (m / scale)
    elif KIND == _RMSPROP:
        s = tl.full([], first, ACC) * tl.load(square + index, mask=inside, other=0.0)
        s += tl.full([], 1 - first, ACC) * g * g
        tl.store(square + index, s, mask=inside)
        if mean is not None:
            m = tl.load(mean + index, mask=inside, other=0.0)
            m += tl.full([], 1 - first, ACC) * (g - m)
            tl.store(mean + index, m, mask=inside)
            s -= m * m
        scale = tl.sqrt(s) + tl.full([], epsilon, ACC)
        g = g / scale
        if velocity is not None:
            g += tl.full([], second, ACC) * tl.load(velocity + index, mask=inside, other=0.0)
            tl.store(velocity + index, g, mask=inside)
        p -= tl.full([], lr, ACC) * g
    else:
        if velocity is not None:
            v = g
            if not FRESH:
                v = tl.full([], first, ACC) * tl.load(velocity + index, mask=inside, other=0.0)
                v += tl.full([], 1 - second, ACC) * g
            tl.store(velocity + index, v, mask=inside)
            g = g + tl.full([], first, ACC) * v if NESTEROV else v
        p -= tl.full([], lr, ACC) * g
    tl.store(parameter + index, p, mask=inside)


def apply(rule: Rule, parameter: Tensor, gradient: Tensor, slots: list[Tensor | None]) -> None:
    """Do one step of a rule; see `pyromancy.rules`."""
    if rule.kind is RuleKind.GRADIENT:
        RULES[rule.kind](rule, parameter, gradient, slots)
        return
    slots = [*slots, *[None] * 4][:4]
    count = velocity = mean = square = greatest = None
    if rule.kind is RuleKind.ADAM:
        count, mean, square, greatest = slots
    elif rule.kind is RuleKind.RMSPROP:
        count, square, velocity, mean = slots
    elif rule.first:
        velocity = slots[0]
    number = 0.0
    if count is not None:
        count += 1
        if rule.kind is not RuleKind.ADAM:  # which alone goes by it
            count = None
        elif on_host(count):
            number, count = count.item(), None
    acc = computed_in("parameter", parameter)
    block = elements_of_tile(acc) // 2  # a rule has many operands, and float64 spills
    launch(
        rule_kernel, blocks(parameter.numel(), block), gradient, parameter, velocity, mean, square, greatest, count,
        parameter.numel(), number, rule.lr, rule.weight_decay, rule.first, rule.second, _log(rule.first),
        _log(rule.second), rule.epsilon, int(rule.kind), rule.maximize, rule.weight_decay != 0, rule.decoupled,
        rule.nesterov, rule.fresh, acc, block,
    )  # fmt: skip


def on_host(count: Tensor) -> bool:
    """Whether a count lies where kernels do not reach it."""
    return not (count.is_cuda or INTERPRETED)


def _log(beta: float) -> float:
    """Of a factor whose powers are wanted; SGD's numbers are none."""
    return math.log(beta) if beta > 0 else -math.inf
