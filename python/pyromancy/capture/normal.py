"""Writes the many forms of an affine map, and of a cross-entropy, as one, which whoever reads a program has to know."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional
from ..laws.categorical import distribution
from ..plan import Law
from ..plan.activations import ACTIVATIONS
from .calls import Call, Slot, filled, is_number
from .expressions import REDUCTIONS
from .program import Program
from .terms import elements_of_normal, logits_of
from .vocabulary import arguments

Factor = tuple[Callable[..., Any], tuple[Any, ...]]  # a function of a tensor, and its arguments after that


@dataclass(frozen=True)
class _Linear:
    """``x W^T + b + share * skip``, but for the share as slots; `skip` is one that the sources may be a function of."""

    source: int
    weight: int
    bias: int | None = None
    skip: int | None = None
    share: float = 0.0


def normal(program: Program, batch: int, roots: Collection[int] = ()) -> Program:
    """The same program, on the same leaves and with the same slots, and more of them, for what it calls otherwise.

    Products with a matrix, numbers times them and sums with a vector become Linears of a weight and a bias that are
    computed, and what leaves a matrix as it is, such as a view of its own shape, is passed over. The sum of one and a
    number times what it takes, or that is a function of, becomes ``torch.add(linear, matrix, alpha=number)``. What is
    divided by a tensor of one element, or of one for every sample, is multiplied by its reciprocal. Cross-entropies
    become energies of a categorical node, whose state is computed.

    Args:
        program: as it was captured.
        batch: the number of rows of what counts as data.
        roots: slots that keep their names even where they hold what another does.
    """
    return _Writer(program, batch, roots).written()


def _no_less(variance: Tensor, least: float) -> Tensor:
    """A variance that is at least so much, with the gradient that it has anyway, as the loss takes it."""
    return variance + (variance.clamp(min=least) - variance).detach()


def _within_laws(program: Program) -> set[int]:
    """What is computed between a state and its prediction and the elements of an energy of one's own law."""
    found = set[int]()
    for term in program.terms:
        if term.node is not None and term.node.law is Law.EXPRESSION and term.slot is not None:
            ends = (s for s in (term.node.state, term.node.prediction) if isinstance(s, int))
            found |= program.ancestors(term.slot).difference(*map(program.ancestors, ends))
    return found


class _Writer:
    def __init__(self, program: Program, batch: int, roots: Collection[int]) -> None:
        self._program, self._batch, self._roots = program, batch, roots
        self._calls: list[Call] = []
        self._stand_ins = [t.detach() for t in program.stand_ins]  # others than the program's, which counts their uses
        self._made: dict[int, Call] = {}  # slot -> the call that makes it
        self._same: dict[int, int] = {}  # slot -> an earlier one that holds the same
        self._turned: dict[int, int] = {}  # slot -> the one that it is the transpose of
        self._linears: dict[int, _Linear] = {}
        self._turned_linears: dict[int, _Linear] = {}  # slots that hold the transpose of one
        self._scaled: dict[int, tuple[int, list[Factor]]] = {}  # slot -> another, and what it is multiplied by
        self._within = _within_laws(program)
        self._columns: dict[int, list[int]] = {}  # slot -> those whose columns it has, side by side
        self._sums: dict[int, list[int]] = {}  # slot -> others that it is the sum of

    def written(self) -> Program:
        for call in self._program.calls:
            self._write(call)
        return self._program.rewritten(self._calls, self._stand_ins)

    def _write(self, call: Call) -> None:
        call = call.renamed(lambda slot: self._same.get(slot, slot))
        output, *more = call.outputs
        if call.meaning == "law of one's own":
            self._calls.append(call)
            return
        if call.meaning in ("cross_entropy", "nll_loss") and self._cross_entropy(call, output):
            return
        if more or self._stand_ins[output].dim() != 2:
            self._calls.append(self._undivided(call))
            return
        if output in call.inputs:  # what it takes is what it returns
            return
        match call.meaning:
            case "reshape" | "transpose" | "copy" | "positive" | "takes the second's form":
                self._rearranged(call, output)
            case "cat":
                self._join(call, output)
            case name if name in ACTIVATIONS and len(call.inputs) == 1 and call.inputs[0] in self._columns:
                joined = call.inputs[0]
                self._columns[output] = [self._like(call, joined, part) for part in self._columns[joined]]
            case "dropout":
                given = arguments(call.function, call.args, call.kwargs)
                if not given.get("training", given.get("train")):
                    self._pass(output, call.inputs[0])
            case "linear":
                given = arguments(call.function, call.args, call.kwargs)
                source, weight, bias = (given[name] for name in ("input", "weight", "bias"))
                if isinstance(source, Slot) and isinstance(weight, Slot):
                    self._product(output, source.index, weight.index, bias and bias.index)
            case "product" if len(call.args) == 2 and not call.kwargs:
                a, b = call.inputs
                self._matmul(output, a, b)
            case "addmm":
                self._addmm(call, output)
            case "einsum":
                self._einsum(call, output)
            case "gaussian_nll_loss":
                call = self._normal_loss(call)
            case "add" | "sub" | "rsub" | "mul" | "div" | "neg" if output in self._within:
                pass
            case "add" | "sub" | "rsub" if len(call.args) == 2:
                self._sum(call, output)
            case "mul" | "div" | "neg" if not call.kwargs:
                self._scale(call, output)
        linear = self._linears.get(output)
        if linear is not None:
            parts = (linear.source, linear.weight, *(() if linear.bias is None else (linear.bias,)))
            call = Call(F.linear, tuple(map(Slot, parts)), {}, Slot(output), parts, (output,))
            if linear.skip is not None and linear.share:
                of, *others = map(Slot, parts)
                product = self._computed(F.linear, of.index, *others, shape=tuple(self._stand_ins[output].shape))
                parts, options = (product, linear.skip), {"alpha": linear.share}
                call = Call(torch.add, tuple(map(Slot, parts)), options, Slot(output), parts, (output,))
        if (summands := self._sums.get(output)) is not None:
            first, *more, last = summands
            for summand in more:
                first = self._computed(torch.add, first, Slot(summand))
            call = Call(torch.add, (Slot(first), Slot(last)), {}, Slot(output), (first, last), (output,))
        if output not in self._same:
            self._calls.append(self._made.setdefault(output, self._undivided(call)))

    def _undivided(self, call: Call) -> Call:
        """A product in the place of what free states change over what they do not, of all or of every sample."""
        match call.meaning, call.args:
            case "div", (Slot(of), Slot(by)) if not call.kwargs:
                pass
            case _:
                return call
        whole, divisor, varying = self._stand_ins[call.outputs[0]], self._stand_ins[by], self._program.varying
        rows = whole.dim() > 0 and divisor.shape == (self._batch, *[1] * (whole.dim() - 1))
        if of not in varying or by in varying or divisor.dtype != whole.dtype or not (rows or divisor.numel() == 1):
            return call
        inverse = self._computed(torch.reciprocal, by)
        self._calls[-1] = replace(self._calls[-1], written=call)
        return Call(torch.mul, (Slot(of), Slot(inverse)), {}, call.result, (of, inverse), call.outputs, call)

    def _cross_entropy(self, call: Call, output: int) -> bool:
        """``-(z * log_softmax(mu, 1)).sum(1)`` with PyTorch's z, and sums of that over samples."""
        given = arguments(call.function, call.args, call.kwargs)
        taken, target, weight = (given.get(k) for k in ("input", "target", "weight"))
        if not isinstance(taken, Slot) or not isinstance(target, Slot):
            return False
        logits = taken.index
        if call.meaning == "nll_loss":
            found = logits_of(self._made.get(logits), self._stand_ins)
            if found is None:
                return False
            logits = found
        forms, varying = self._stand_ins, self._program.varying
        whole, like, of = forms[output], forms[logits], forms[target.index]
        reduction = REDUCTIONS.get(given["reduction"], given["reduction"])
        classes = of.dtype == torch.int64 and of.shape == like.shape[:1] and len(of) > 0
        fixed = varying.isdisjoint(s.index for s in (target, weight) if isinstance(s, Slot))
        if (
            like.dim() != 2 or like.dtype != whole.dtype or not fixed or not (classes or of.shape == like.shape)
            or any(given.get(k) is not None for k in ("size_average", "reduce"))
            or (call.meaning == "nll_loss" and not classes) or whole.dim() != (reduction == "none")
        ):  # fmt: skip
            return False
        z, options = len(forms), (given["ignore_index"], given.get("label_smoothing", 0.0), reduction == "mean")
        forms.append(like.new_full((), math.nan).expand(like.shape))
        inputs = tuple(s.index for s in (target, weight) if isinstance(s, Slot))
        made_of = target, weight, like.shape[1], like.dtype
        self._calls.append(Call(distribution, (*made_of, *options), {}, Slot(z), inputs, (z,)))
        energy = output
        if whole.dim() == 0:
            energy = len(forms)
            forms.append(like.new_full((), math.nan).expand(like.shape[:1]))
        args = Slot(z), Slot(logits)
        of_node = Call(functional.categorical_energy, args, {}, Slot(energy), (z, logits), (energy,), call)
        self._calls.append(of_node)
        if energy != output:
            self._calls[-1] = replace(of_node, written=None)
            self._calls.append(Call(torch.sum, (Slot(energy),), {}, call.result, (energy,), (output,), call))
        return True

    def _normal_loss(self, call: Call) -> Call:
        """A Gaussian's loss by log-variances, or with a number for the variance by a square."""
        given = arguments(call.function, call.args, call.kwargs)
        mu, z, variance, eps = (given[name] for name in ("input", "target", "var", "eps"))
        output, alike = call.outputs[0], isinstance(mu, Slot) and isinstance(z, Slot)
        if given["full"] or given["reduction"] != "none" or not alike:
            return call
        if isinstance(variance, float):
            variance = max(variance, eps)
            d = self._computed(torch.sub, z.index, mu, shape=tuple(self._stand_ins[output].shape))
            energy = self._computed(torch.mul, self._computed(torch.square, d), 0.5 / variance)
            constant = 0.5 * math.log(variance)
            return Call(torch.add, (Slot(energy), constant), {}, call.result, (energy,), call.outputs, call)
        made = self._made.get(variance.index)
        of = made.inputs[0] if made and made.meaning in ("expand", "takes the second's form") else variance.index
        form, width = tuple(self._stand_ins[of].shape), self._stand_ins[output].shape[1]
        if form not in ((width,), (1, width), (1,), (1, 1), ()) or of in self._program.varying:
            return call
        theta = self._computed(torch.log, self._computed(_no_less, of, eps))
        inputs = (z.index, mu.index, theta)
        return Call(elements_of_normal, tuple(map(Slot, inputs)), {}, call.result, inputs, call.outputs, call)

    def _pass(self, output: int, of: int) -> None:
        """Take one slot for another that holds the same; or compute it as that is, if it must keep its name."""
        if output not in self._roots:
            self._same[output] = of
        elif of in self._made:
            self._made[output] = replace(self._made[of], result=Slot(output), outputs=(output,))

    def _rearranged(self, call: Call, output: int) -> None:
        """What gives a matrix as it is, or transposed: as it does with one without memory, by the strides."""
        of = call.inputs[0]
        blank = {s: torch.empty(t.shape, dtype=t.dtype, device="meta") for s, t in self._taken(call)}
        result = call.function(*filled(call.args, blank), **filled(call.kwargs, blank))
        before = blank[of]
        if before.dim() != 2 or result.dtype != before.dtype or result.storage_offset():
            return
        if (result.shape, result.stride()) == (before.shape, before.stride()):
            self._pass(output, of)
        elif (result.shape, result.stride()) == (before.shape[::-1], before.stride()[::-1]):
            if of in self._turned:
                self._pass(output, self._turned[of])
            elif of in self._turned_linears:
                self._linears[output] = self._turned_linears[of]
            else:
                self._turned[output] = of

    def _taken(self, call: Call) -> list[tuple[int, Tensor]]:
        return [(s, self._stand_ins[s]) for s in call.inputs]

    def _matmul(self, output: int, a: int, b: int) -> None:
        """``a b``: a Linear of a, or else the transpose of one of what b is the transpose of."""
        if self._stand_ins[a].dim() != 2 or self._stand_ins[b].dim() != 2:
            return
        if len(self._stand_ins[a]) == self._batch and b not in self._program.varying:
            self._product(output, a, self._transpose(b))
        elif b in self._turned and len(self._stand_ins[self._turned[b]]) == self._batch:
            self._product(output, self._turned[b], a, turned=True)

    def _product(self, output: int, source: int, weight: int, bias: int | None = None, turned: bool = False) -> None:
        forms = [self._stand_ins[s] for s in (source, weight, output)]
        if any(t.dim() != 2 or t.dtype != forms[0].dtype for t in forms) or weight in self._program.varying:
            return
        source, factors = self._scaled.get(source, (source, []))
        for function, others in factors:
            weight = self._computed(function, weight, *others)
        if source in self._columns and not turned:
            self._sums[output] = self._by_columns(output, source, weight, bias)
            return
        (self._turned_linears if turned else self._linears)[output] = _Linear(source, weight, bias)

    def _join(self, call: Call, output: int) -> None:
        """Matrices of a row for every sample side by side."""
        tensors, *rest = *call.args, *call.kwargs.values()
        rows = len(self._stand_ins[output]) == self._batch and len(call.inputs) > 1
        alike = all(self._stand_ins[s].dtype == self._stand_ins[output].dtype for s in call.inputs)
        if isinstance(tensors, (list, tuple)) and rest in ([1], [-1]) and rows and alike:
            self._columns[output] = [s.index for s in tensors]

    def _like(self, call: Call, of: int, part: int) -> int:
        """A slot for what a call makes of another than it takes, of one shape."""
        slot = len(self._stand_ins)
        self._stand_ins.append(self._stand_ins[part].new_full((), math.nan).expand(self._stand_ins[part].shape))
        other = call.renamed(lambda s: part if s == of else s)
        made = replace(other, result=Slot(slot), outputs=(slot,), written=None)
        self._calls.append(made)
        self._made[slot] = made
        return slot

    def _by_columns(self, output: int, source: int, weight: int, bias: int | None) -> list[int]:
        """Linears whose sum is the one of what is joined, each of a block of the weight's columns."""
        parts: list[int] = []
        at = 0
        rows = len(self._stand_ins[weight])
        for part in self._columns[source]:
            width = self._stand_ins[part].shape[1]
            block = self._computed(torch.narrow, weight, 1, at, width, shape=(rows, width))
            more = () if bias is None or parts else (Slot(bias),)
            parts.append(self._computed(F.linear, part, Slot(block), *more, shape=tuple(self._stand_ins[output].shape)))
            at += width
        return parts

    def _addmm(self, call: Call, output: int) -> None:
        given = arguments(call.function, call.args, call.kwargs)
        operands = [given.get("input", given.get("self")), given["mat1"], given["mat2"]]
        if (given["alpha"], given["beta"]) != (1, 1) or not all(isinstance(o, Slot) for o in operands):
            return
        bias, a, b = (o.index for o in operands)
        self._matmul(output, a, b)
        if (linear := self._linears.pop(output, None)) is not None:
            self._add(output, linear, Slot(bias))

    def _einsum(self, call: Call, output: int) -> None:
        equation = call.args[0]
        if not isinstance(equation, str) or len(call.inputs) != 2:
            return
        left, arrow, result = equation.replace(" ", "").partition("->")
        labels = left.split(",")
        if not arrow:  # those that are there once, in alphabetical order
            result = "".join(sorted(c for c in left if c != "," and left.count(c) == 1))
        if len(labels) != 2 or any(len(set(of)) != 2 or not of.isalpha() for of in (*labels, result)):
            return
        pairs = list(zip(labels, call.inputs, strict=True))
        for (of_data, data), (of_weight, weight) in (pairs, pairs[::-1]):
            shared = set(of_data) & set(of_weight)
            if len(shared) != 1 or weight in self._program.varying:
                continue
            (inner,) = shared
            (row,), (column,) = set(of_data) - shared, set(of_weight) - shared
            source = data if of_data == row + inner else self._turned.get(data)
            if source is None or {row, column} != set(result) or len(self._stand_ins[source]) != self._batch:
                continue
            weight = weight if of_weight == column + inner else self._transpose(weight)
            self._product(output, source, weight, turned=result != row + column)
            return

    def _sum(self, call: Call, output: int) -> None:
        alpha = call.kwargs.get("alpha", 1)
        if not call.kwargs.keys() <= {"alpha"} or not is_number(alpha):
            return
        a, b = call.args if call.meaning != "rsub" else call.args[::-1]
        terms = (a, 1), (b, alpha if call.meaning == "add" else -alpha)
        for (x, of_x), (y, of_y) in (terms, terms[::-1]):
            if isinstance(x, Slot) and x.index in self._linears:
                linear = self._times(self._linears[x.index], _by(of_x))
                if linear is not None:
                    self._add(output, linear, y, of_y)
                return

    def _add(self, output: int, linear: _Linear, other: Any, times: float = 1) -> None:
        """A Linear plus a number times what has a row for every sample, or what is the same for all."""
        if is_number(other) and other == 0:  # as Python's `sum` begins with it
            self._linears[output] = linear
            return
        if isinstance(other, Slot) and self._skip(output, linear, other.index, times):
            return
        if isinstance(other, Slot) and other.index in self._program.varying:
            return
        for function, others in _by(times):
            other = Slot(self._computed(function, other.index, *others)) if isinstance(other, Slot) else times * other
        width = len(self._stand_ins[linear.weight])
        bias = linear.bias
        if isinstance(other, Slot):
            t = self._stand_ins[other.index]
            forms = [(width,), (), *([(1, width)] if self._batch > 1 else [])]  # else it is one sample's
            fits = tuple(t.shape) in forms and t.dtype == self._stand_ins[linear.weight].dtype
            if not fits:
                return
            if t.dim() == 2:
                other = Slot(self._computed(torch.reshape, other.index, (width,), shape=(width,)))
            elif bias is None and t.dim() == 0:
                other = Slot(self._computed(Tensor.expand, other.index, (width,), shape=(width,)))
            new = other.index if bias is None else self._computed(torch.add, bias, other)
        elif is_number(other) and bias is not None:
            new = self._computed(torch.add, bias, other)
        else:
            return
        self._linears[output] = replace(linear, bias=new)

    def _skip(self, output: int, linear: _Linear, other: int, times: float) -> bool:
        """Whether what is added to a Linear is a number times what that takes, or what this is a function of."""
        source, factors = self._scaled.get(other, (other, []))
        share, made = _number(factors), self._made.get(linear.source)
        forms = [(t.shape, t.dtype) for t in (self._stand_ins[source], self._stand_ins[output])]
        if share is None or forms[0] != forms[1] or linear.skip not in (None, source):
            return False
        if source not in (linear.source, *(made.inputs if made else ())):
            return False
        self._linears[output] = replace(linear, skip=source, share=linear.share + times * share)
        return True

    def _scale(self, call: Call, output: int) -> None:
        factors: list[Factor]
        if any(t.dim() and t.dtype != self._stand_ins[output].dtype for _, t in self._taken(call)):
            return
        match call.meaning, call.args:
            case "neg", (Slot(of),):
                factors = [(torch.neg, ())]
            case "mul", (Slot(of), other) if self._is_scalar(other):
                factors = [(torch.mul, (self._scalar(other),))]
            case "mul", (other, Slot(of)) if self._is_scalar(other):
                factors = [(torch.mul, (self._scalar(other),))]
            case "div", (Slot(of), other) if self._is_scalar(other):
                factors = [(torch.div, (self._scalar(other),))]
            case _:
                return
        if of in self._linears or of in self._turned_linears:
            linears = self._linears if of in self._linears else self._turned_linears
            if (times := self._times(linears[of], factors)) is not None:
                linears[output] = times
        else:
            source, before = self._scaled.get(of, (of, []))
            self._scaled[output] = source, [*before, *factors]

    def _is_scalar(self, other: Any) -> bool:
        if not isinstance(other, Slot):
            return is_number(other)
        t = self._stand_ins[other.index]
        return t.numel() == 1 and t.is_floating_point() and other.index not in self._program.varying

    def _scalar(self, other: Any) -> Any:
        """The same, without dimensions."""
        if not isinstance(other, Slot) or self._stand_ins[other.index].dim() == 0:
            return other
        return Slot(self._computed(torch.reshape, other.index, (), shape=()))

    def _times(self, linear: _Linear, factors: list[Factor]) -> _Linear | None:
        """A Linear times factors; None where one of what skips it is no number."""
        weight, bias, share = linear.weight, linear.bias, 0.0
        if linear.skip is not None:
            number = _number(factors)
            if number is None:
                return None
            share = linear.share * number
        for function, others in factors:
            weight = self._computed(function, weight, *others)
            bias = None if bias is None else self._computed(function, bias, *others)
        return _Linear(linear.source, weight, bias, linear.skip, share)

    def _transpose(self, slot: int) -> int:
        if slot in self._turned:
            return self._turned[slot]
        self._turned[slot] = self._computed(torch.t, slot, shape=tuple(self._stand_ins[slot].shape[::-1]))
        return self._turned[slot]

    def _computed(
        self, function: Callable[..., Any], of: int, *others: Any, shape: tuple[int, ...] | None = None
    ) -> int:
        """A slot for a function of another, of the same dtype, and of its shape unless it is told."""
        slot = len(self._stand_ins)
        like = self._stand_ins[of]
        self._stand_ins.append(like.new_full((), math.nan).expand(like.shape if shape is None else shape))
        inputs = (of, *(o.index for o in others if isinstance(o, Slot)))
        self._calls.append(Call(function, (Slot(of), *others), {}, Slot(slot), inputs, (slot,)))
        return slot


def _by(number: float) -> list[Factor]:
    """What multiplies by a number."""
    return [] if number == 1 else [(torch.neg, ())] if number == -1 else [(torch.mul, (number,))]


def _number(factors: list[Factor]) -> float | None:
    """The finite number that factors come to, if they are numbers."""
    number = 1.0
    for function, others in factors:
        if function is torch.neg:
            number = -number
        elif not is_number(others[0]) or (function is torch.div and not others[0]):
            return None
        else:
            number = number * others[0] if function is torch.mul else number / others[0]
    return number if math.isfinite(number) else None
