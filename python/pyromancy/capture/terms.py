"""An energy as a weighted sum of terms, and which of them are the energy of a node, however they are written.

Sums, differences, multiples, stacks, and sums and means over elements are taken apart; so are squares of differences,
which are a Gaussian node's energy by another name, ``1/2 sum_i (z_i - mu_i)^2``, their absolute values, which are a
Laplace node's, ``log(1 + (z - mu)^2)``, which is a Student node's, products with logarithms of softmax, which are a
categorical node's, and what PyTorch has as losses.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import functional
from ..plan import Law
from ..plan.expression import Expression
from .calls import Call, Slot, alike, is_number
from .expressions import REDUCTIONS, Reader
from .held import held
from .symbolic import NoExpression
from .vocabulary import arguments, unusual

ENERGIES = {
    functional.gaussian_energy: Law.GAUSSIAN,
    functional.multivariate_energy: Law.FULL_GAUSSIAN,
    functional.laplace_energy: Law.LAPLACE,
    functional.categorical_energy: Law.CATEGORICAL,
    functional.bernoulli_energy: Law.BERNOULLI,
    functional.poisson_energy: Law.POISSON,
    functional.student_energy: Law.STUDENT,
}
_LOSSES = {
    "mse_loss": Law.GAUSSIAN,
    "l1_loss": Law.LAPLACE,
    "huber_loss": Law.HUBER,
    "smooth_l1_loss": Law.HUBER,
    "poisson_nll_loss": Law.POISSON,
    "binary_cross_entropy_with_logits": Law.BERNOULLI,
}
_PAIRS = {"softplus": Law.BERNOULLI, "exp": Law.POISSON}  # of a prediction, less its product with the state
_Weighted = tuple[tuple[float, int | float, int | float], tuple[int, ...]]  # c, a and b, and the slots of more factors


def elements_of_normal(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Energies of a Gaussian node, element by element."""
    return 0.5 * ((z - mu).square() * torch.exp(-logvar) + logvar)


class _Elements(NamedTuple):
    """What comes, element by element, to energies of a law: of the state a and the prediction b, or the other way.

    Attributes:
        law: of the energies.
        weighted: c, a and b, and the slots of more factors.
        times: how many energies 1 of it is.
        theta: the law's, as a slot.
        parameter: the law's.
        ordered: whether b is subtracted from a: PyTorch's losses take what they compare in any order.
    """

    law: Law
    weighted: _Weighted
    times: float = 1.0
    theta: int | None = None
    parameter: float = 0.0
    ordered: bool = True


@dataclass(frozen=True)
class NodeEnergy:
    """The law of a node's energy and its operands, as slots.

    Attributes:
        law: of the energy.
        state: z.
        prediction: mu; a float where it is that number everywhere.
        theta: the law's parameter, None for 0; of a full covariance its Cholesky factor.
        scale: how many such energies one value of the term is.
        sample_weights: slots of more factors of that, of one element per sample or one for all.
        parameter: the law's, of those that have one.
        expression: of an EXPRESSION law.
        turned: whether the energy is written with the prediction first, as of ``mu - z``; None where it does not tell.
    """

    law: Law
    state: int
    prediction: int | float
    theta: int | None = None
    scale: float = 1.0
    sample_weights: tuple[int, ...] = ()
    parameter: float = 0.0
    expression: Expression | None = None
    turned: bool | None = False

    @property
    def operands(self) -> list[int]:
        """All slots."""
        return [s for s in (self.state, self.prediction, self.theta, *self.sample_weights) if type(s) is int]


@dataclass(frozen=True)
class Term:
    """A summand of the energy: its weights times what the slot holds, or times 1 where there is none.

    That is one value per sample, or broadcasts to that where no free state changes it, as a penalty on weights does.

    Attributes:
        slot: of the values.
        weight: of each.
        summed: where the values are more than the energy's: what they broadcast to, and are summed over from.
        node: the node whose energy the term is, if it is one.
        within: what in it is not a node's energy, if it is none.
        sample_weights: slots of more weights, of one element per sample or one for all.
        lacks: what of it a law of one's own does not take, if it is none.
    """

    slot: int | None
    weight: float
    summed: torch.Size | None = None
    node: NodeEnergy | None = None
    within: int | None = None
    sample_weights: tuple[int, ...] = ()
    lacks: str = ""

    @property
    def operands(self) -> list[int]:
        """All slots."""
        return [*(() if self.slot is None else (self.slot,)), *self.sample_weights]

    def times(self, factor: float, sample_weights: tuple[int, ...] = ()) -> Term:
        """This summand, multiplied."""
        return replace(self, weight=self.weight * factor, sample_weights=(*sample_weights, *self.sample_weights))

    def of(self, value: Tensor, shape: torch.Size, *sample_weights: Tensor) -> Tensor:
        """What the term comes to, where the slot holds a value, in an energy of this shape or broadcasting to it."""
        if self.summed is not None:
            # in a normal form it may have lost dimensions of one element
            alike = value.numel() == self.summed.numel()
            value = value.reshape(self.summed) if alike else value.expand(self.summed)
        for weights in sample_weights:
            dims = max(value.dim(), len(shape))
            value = value * weights.reshape([-1, *[1] * (dims - 1)] if dims else [])
        if self.summed is not None:
            value = value.sum(tuple(range(len(shape), len(self.summed))))
        return self.weight * value


class Terms:
    """Takes an energy apart.

    Args:
        result: its slot.
        producer: the call that computes a slot; none of leaves.
        forms: for every slot a tensor of its shape and dtype.
        varying: the slots that free states change.
        free: the free states.
        laws: the state and the prediction of elements of energies by laws of one's own, where a node tells them.
    """

    def __init__(
        self,
        result: int,
        producer: Mapping[int, Call],
        forms: Sequence[Tensor],
        varying: Collection[int],
        free: Collection[int],
        laws: Mapping[int, tuple[int, int]],
    ) -> None:
        self._producer, self._varying, self._free = producer, varying, free
        self._forms = forms
        self._shape = forms[result].shape
        self._batch = self._shape or forms[min(free, default=result)].shape[:1]
        self._known: dict[tuple[int, int], bool] = {}  # pairs of slots -> whether they are the same
        self._reader = Reader(producer, forms, varying, self._same, self._may_be_state)
        self._told: dict[int, tuple[int, int]] = {}  # slots of an energy by a law of one's own -> state, prediction
        for elements, (state, prediction) in laws.items():
            if not self._same(state, prediction) and self._may_be_state(state):
                self._tell(elements, state, prediction)
        self.found = self._taken_apart(Term(result, 1.0))

    def _tell(self, elements: int, state: int, prediction: int) -> None:
        """Remember both of all that is computed between them and elements of the energy."""
        open_ = [elements]
        while open_:
            slot = open_.pop()
            ends = slot not in self._varying or self._same(slot, state) or self._same(slot, prediction)
            if not ends and slot not in self._told:
                self._told[slot] = state, prediction
                open_.extend(self._producer[slot].inputs if slot in self._producer else ())

    def _taken_apart(self, term: Term) -> list[Term]:
        terms: list[Term] = []
        stack = [term]  # the next one last
        while stack:
            term = stack.pop()
            call = None if term.slot is None else self._producer.get(term.slot)
            parts = None if call is None else self._summands(call, term)
            if parts is None:
                terms.append(self._recognised(term))
            elif parts and parts[0].within is not None:
                terms.append(replace(term, within=parts[0].within, lacks=parts[0].lacks))
            elif len(parts) == 1 and parts[0].node is not None and parts[0].node.law is Law.EXPRESSION:
                terms.append(parts[0].times(term.weight, term.sample_weights))
            else:
                stack.extend(part.times(term.weight, term.sample_weights) for part in reversed(parts))
        return terms

    def _recognised(self, term: Term) -> Term:
        if term.slot is None or term.slot not in self._varying:
            return term
        node, lacks = self._node(term.slot, term.summed), ""
        if node is None:
            node, lacks = self._expressed(term.slot, term.summed)
        return replace(term, node=node, within=None if node else term.slot, lacks=lacks)

    def _expressed(self, slot: int, summed: torch.Size | None) -> tuple[NodeEnergy | None, str]:
        """The node whose energy a slot's elements are by a law of one's own; or why they are none."""
        if summed is None or slot not in self._producer or self._forms[slot].shape != summed:
            return None, ""
        try:
            of = self._reader.read(slot, self._preference, self._told.get(slot))
        except NoExpression as reason:
            return None, str(reason)
        node = NodeEnergy(Law.EXPRESSION, of.state, of.prediction, of.theta, expression=of.law, turned=of.turned)
        return node, ""

    def _summands(self, call: Call, term: Term) -> list[Term] | None:
        """What a call, which makes a term's values, adds up; None where it adds nothing, nor scales what it takes."""
        summed = term.summed
        # where every sample has a weight, the rows of all that is taken apart must be samples
        weighted = any(self._forms[s].numel() != 1 for s in term.sample_weights)
        samples = self._shape or (self._batch if weighted else torch.Size())
        match call.meaning:
            case "add" | "sub" | "rsub" | "neg" | "positive" | "mul" | "div":
                parts = None if self._pair(call) else self._linear(call)
                if parts is None and call.meaning == "mul":
                    parts = self._weighted(call)
                return None if parts is None else [replace(t, summed=summed) for t in parts]
            case "sum" | "mean":
                return self._reduced(call, summed, samples)
            case "stack" | "cat" if summed is not None and call.outputs[0] in self._varying:
                return self._joined(call, summed, samples)
            case "reshape" if call.inputs[0] in self._varying:
                before, after = (self._forms[s] for s in (call.inputs[0], call.outputs[0]))
                rows = not samples or before.shape[:1] == after.shape[:1] == samples
                return [self._over(call.inputs[0])] if rows and before.dtype == after.dtype else None
        return None

    def _weighted(self, call: Call) -> list[Term] | None:
        """Values of samples times a number for each, or for all, that no free state changes."""
        match [*call.args, *call.kwargs.values()]:
            case [Slot(a), Slot(b)]:
                pass
            case _:
                return None
        of, weights = (a, b) if a in self._varying else (b, a)
        if of not in self._varying or weights in self._varying:
            return None
        form, whole, by = self._forms[of], self._forms[call.outputs[0]], self._forms[weights]
        if (form.shape, form.dtype) != (whole.shape, whole.dtype):
            return None
        per_sample = whole.shape[:1] == self._batch and by.shape == (*self._batch, *[1] * (whole.dim() - 1))
        return [Term(of, 1.0, sample_weights=(weights,))] if by.numel() == 1 or per_sample else None

    def _over(self, slot: int) -> Term:
        """The sum of a slot's elements, down to the shape of the energy."""
        shape = self._forms[slot].shape
        return Term(slot, 1.0, None if shape == self._shape else shape)

    def _linear(self, call: Call) -> list[Term] | None:
        """A sum, a difference or a multiple by a number."""
        named = [call.kwargs[k] for k in ("self", "input", "other") if k in call.kwargs]
        others = {k: v for k, v in call.kwargs.items() if k not in ("self", "input", "other")}
        whole = self._forms[call.outputs[0]].shape
        if others.keys() - {"alpha"} or any(
            s in self._varying and self._forms[s].shape != whole for s in call.inputs
        ):  # what broadcasts counts more than once
            return None
        args = [*call.args, *named]
        numbers = [*others.values(), *(a for a in args if not isinstance(a, Slot))]
        if not all(map(is_number, numbers)):
            return None
        alpha = others.get("alpha", 1)
        terms = [Term(a.index, 1.0) if isinstance(a, Slot) else Term(None, float(a)) for a in args]
        match call.meaning, terms:
            case "add", [a, b]:
                terms = [a, b.times(alpha)]
            case "sub", [a, b]:
                terms = [a, b.times(-alpha)]
            case "rsub", [a, b]:
                terms = [b, a.times(-alpha)]
            case "neg", [a]:
                terms = [a.times(-1)]
            case "positive", [_]:
                pass
            case ("mul", [a, Term(None, factor)]) | ("mul", [Term(None, factor), a]):
                terms = [a.times(factor)]
            case "div", [a, Term(None, divisor)] if divisor:
                terms = [a.times(1 / divisor)]
            case _:
                return None
        return [t for t in terms if t != Term(None, 0.0)]

    def _reduced(self, call: Call, summed: torch.Size | None, samples: torch.Size) -> list[Term] | None:
        """A sum or a mean over elements."""
        slot, dims = call.inputs[0], self._dims(call)
        if dims is None or slot not in self._varying:
            return None
        shape = self._forms[slot].shape
        count = math.prod(shape[d] for d in dims) if call.meaning == "mean" else 1
        if not count:
            return None
        stack = self._producer.get(slot)
        if stack is not None and stack.meaning == "stack" and dims == {_dim(stack) % len(shape)}:
            return [Term(s, 1 / count, summed) for s in stack.inputs]
        if samples and (0 in dims or shape[:1] != samples):
            return None
        if summed is None and len(dims) < len(shape) - len(self._shape):
            return None
        term = replace(self._over(slot), weight=1 / count)
        if len(shape) == 1:
            return [term]
        # the elements of states are taken apart where all of them are nodes' energies, and else are one term
        parts = self._taken_apart(term)
        other = next((t for t in parts if t.slot in self._varying and t.node is None), None)
        nodes = [t.node for t in parts if t.node is not None]
        pairs = [*combinations(nodes, 2)]
        apart = all(a.state != b.state for a, b in pairs)
        if other is None and apart and all(a.prediction != b.prediction for a, b in pairs):
            return parts
        whole, lacks = self._expressed(slot, shape)
        if whole is not None:
            return [replace(term, node=whole)]
        if other is None and (apart or not lacks):
            return parts
        return [replace(other or replace(term, within=slot), lacks=lacks)]

    def _dims(self, call: Call) -> set[int] | None:
        """Over which dimensions a call reduces."""
        options = dict(zip(("dim", "keepdim"), call.args[1:], strict=False)) | call.kwargs
        if "axis" in options:
            options["dim"] = options.pop("axis")
        if options.keys() - {"dim", "keepdim"} or len(call.args) > 3 or len(call.inputs) != 1:
            return None
        count = self._forms[call.inputs[0]].dim()
        dim = options.get("dim")
        dims = range(count) if dim is None or dim == () or dim == [] else [dim] if isinstance(dim, int) else dim
        return {d % count for d in dims} if count else set()

    def _joined(self, call: Call, summed: torch.Size, samples: torch.Size) -> list[Term] | None:
        """The tensors that are stacked or concatenated, whose elements are summed."""
        if samples and (_dim(call) % len(summed) == 0 or any(self._forms[s].dim() == 0 for s in call.inputs)):
            return None
        return [self._over(s) for s in call.inputs]

    def _node(self, slot: int, summed: torch.Size | None) -> NodeEnergy | None:
        """The node whose energy a term is: its state is a leaf, before all one that is free, or at least fixed."""
        call = self._producer.get(slot)
        if call is None:
            return None
        law = ENERGIES.get(call.function)
        if law is not None:
            state, prediction, theta = (a.index if isinstance(a, Slot) else None for a in (*call.args, None)[:3])
            assert state is not None
            assert prediction is not None
            return NodeEnergy(law, state, prediction, theta, parameter=parameter_of(call))
        told = self._told.get(slot)
        if summed is not None and (crossed := self._crossed(call)) is not None:
            return crossed if told is None or self._same(crossed.state, told[0]) else None
        found = self._loss(call) or self._distance(call) or self._logarithm(call) or self._pair(call)
        if found is None and (square := self._square(call)) is not None:
            found = _Elements(Law.GAUSSIAN, square, 2.0)
        if found is None or (summed is None) != (self._forms[slot].dim() == 0):
            return None
        (of, a, b), weights = found.weighted
        # where state and prediction pull differently, the first is the state
        states = [s for s in ((a, b) if found.law.is_of_distance else (a,)) if type(s) is int and self._may_be_state(s)]
        if told is not None:
            states = [s for s in states if self._same(s, told[0])]
        if not states:
            return None
        state = min(states, key=self._preference)
        mu = b if state == a else a
        turned = state != a if found.ordered else None
        if told is not None or not found.law.is_of_distance:
            turned = False
        return NodeEnergy(found.law, state, mu, found.theta, found.times * of, weights, found.parameter, turned=turned)

    def _may_be_state(self, slot: int) -> bool:
        return slot not in self._producer or slot not in self._varying or self._holds(slot)

    def _preference(self, slot: int) -> tuple[bool, bool]:
        """The least is that of what is most likely a state, of what may be."""
        return slot not in self._free and not self._holds(slot), slot in self._producer

    def _holds(self, slot: int) -> bool:
        """Whether it is a free state but for entries that are data."""
        return held(self._producer.get(slot), self._forms, self._varying, self._free) is not None

    def _crossed(self, call: Call) -> NodeEnergy | None:
        """``c z log_softmax(mu)`` element by element."""
        match call.meaning, [*call.args, *call.kwargs.values()]:
            case "mul", [Slot(x), Slot(y)]:
                pass
            case _:
                return None
        for z, of in ((x, y), (y, x)):
            (c, a, b), weights = self._difference(of)
            logits = logits_of(self._producer.get(int(a)), self._forms) if b == 0.0 else None
            if logits is not None and z not in self._varying:
                return NodeEnergy(Law.CATEGORICAL, z, logits, None, -c, weights)
        return None

    def _distance(self, call: Call) -> _Elements | None:
        """``c |a - b|`` element by element."""
        match call.meaning, [*call.args, *call.kwargs.values()]:
            case "abs", [Slot(x)]:
                (c, a, b), weights = self._difference(x)
                if not weights:  # whose signs are not known
                    return _Elements(Law.LAPLACE, ((abs(c), a, b), ()))
        return None

    def _logarithm(self, call: Call) -> _Elements | None:
        """``log(1 + c (a - b)^2)``, which is a Student node's of scale 1 and 1 / c degrees of freedom."""
        match call.meaning, [*call.args, *call.kwargs.values()]:
            case "log1p", [Slot(x)]:
                return self._student(x)
            case "log", [Slot(x)] if (inner := self._producer.get(x)) is not None:
                match self._linear(inner):
                    case [Term(int(y), c), Term(None, 1.0)] | [Term(None, 1.0), Term(int(y), c)]:
                        return self._student(y, c)
        return None

    def _student(self, slot: int, factor: float = 1.0) -> _Elements | None:
        """The same of what a factor is multiplied by, which comes to ``c (a - b)^2``."""
        slot, factor = self._unscaled(slot, factor)
        call = self._producer.get(slot)
        square = None if call is None else self._square(call)
        if square is None:
            return None
        (c, a, b), weights = square
        if weights or not (0 < c * factor < math.inf):
            return None
        dof = 1 / (c * factor)
        return _Elements(Law.STUDENT, ((1.0, a, b), ()), 2 / (dof + 1), parameter=dof)

    def _unscaled(self, slot: int, factor: float) -> tuple[int, float]:
        """What a slot is a number times, and that number times a factor."""
        while (call := self._producer.get(slot)) is not None and call.meaning is not None:
            match self._linear(call):
                case [Term(int(inner), c)]:
                    slot, factor = inner, factor * c
                case _:
                    break
        return slot, factor

    def _pair(self, call: Call) -> _Elements | None:
        """``c (softplus(mu) - z mu)``, a Bernoulli node's, or ``c (exp(mu) - z mu)``, a Poisson node's."""
        if call.meaning not in ("add", "sub", "rsub"):
            return None
        match self._linear(call):
            case [Term(int(x), c), Term(int(y), d)]:
                (x, c), (y, d) = self._unscaled(x, c), self._unscaled(y, d)
            case _:
                return None
        for of, product, factor in ((x, y, c), (y, x, d)):
            first, second = self._producer.get(of), self._producer.get(product)
            law = None if first is None else _PAIRS.get(first.meaning or "")
            if first is None or second is None or law is None or second.meaning != "mul" or c != -d:
                continue
            if unusual(first.function, first.args, first.kwargs) or len(second.inputs) != 2:
                continue
            (mu,), (a, b) = first.inputs, second.inputs
            z = b if self._same(a, mu) else a if self._same(b, mu) else None
            whole = self._forms[call.outputs[0]].shape
            if z is not None and all(self._forms[s].shape == whole for s in (z, mu)):
                return _Elements(law, ((factor, z, mu), ()))
        return None

    def _square(self, call: Call) -> _Weighted | None:
        """``c (a - b)^2`` element by element."""
        match call.meaning, [*call.args, *call.kwargs.values()]:
            case ("square", [Slot(x)]) | ("pow", [Slot(x), 2]):
                y = x
            case "mul", [Slot(x), Slot(y)]:
                pass
            case _:
                return None
        ((c, a, b), one), ((d, e, f), other) = self._difference(x), self._difference(y)
        if self._same(a, e) and self._same(b, f):
            return (c * d, a, b), one + other
        return ((-c * d, a, b), one + other) if self._same(a, f) and self._same(b, e) else None

    def _loss(self, call: Call) -> _Elements | None:
        """The same of a loss, element by element or, where that is the energy, as one number."""
        if call.function is elements_of_normal:
            z, mu, theta = (a.index for a in call.args)
            return _Elements(Law.GAUSSIAN, ((1.0, z, mu), ()), theta=theta, ordered=False)
        law = _LOSSES.get(call.meaning or "")
        if law is None:
            return None
        given = arguments(call.function, call.args, call.kwargs)
        a, b, *_ = (given.pop(name) for name in [*given][:2])
        reduction = given.pop("reduction")
        reduction = REDUCTIONS.get(reduction, reduction)
        times, parameter = (2.0 if law is Law.GAUSSIAN else 1.0), 0.0
        match call.meaning:
            case "huber_loss":
                parameter = given.pop("delta")
            case "smooth_l1_loss":  # with beta for delta, over that
                parameter = given.pop("beta")
                law, times = (Law.HUBER, 1 / parameter) if parameter else (Law.LAPLACE, 1.0)
            case "poisson_nll_loss":
                given.pop("eps")  # of rates as they are
                if not given.pop("log_input") or given.pop("full"):
                    return None
        count = torch.broadcast_shapes(*(self._forms[s].shape for s in call.inputs)).numel()
        others = [v for v in given.values() if v is not None]
        if others or not count or (reduction == "none") != (self._forms[call.outputs[0]].dim() > 0):
            return None
        if law.has_parameter and not (is_number(parameter) and 0 < parameter < math.inf):
            return None
        if not law.is_of_distance and self._forms[a.index].shape != self._forms[b.index].shape:
            return None
        first, second = (a, b) if law.is_of_distance else (b, a)  # the state, and its prediction
        weighted = (1 / count if reduction == "mean" else 1.0, first.index, second.index), ()
        return _Elements(law, weighted, times, parameter=float(parameter), ordered=False)

    def _difference(self, slot: int) -> _Weighted:
        """``c (a - b)``, b being 0.0 where nothing is subtracted."""
        factor = 1.0
        weights: tuple[int, ...] = ()
        while True:
            call = self._producer.get(slot)
            if call is None:
                return (factor, slot, 0.0), weights
            if call.function is functional.gaussian_error and call.args[2:] in ((), (None,), (None, None)):
                return (factor, call.args[0].index, call.args[1].index), weights
            parts = None if call.meaning is None else self._linear(call)
            if parts is None and call.meaning == "mul":
                parts = self._weighted(call)
            match parts:
                case [Term(int(inner), weight, sample_weights=more)]:
                    slot, factor, weights = inner, factor * weight, weights + more
                case [Term(int(a), c), Term(int(b), d)] if c == -d:
                    return (factor * c, a, b), weights
                case [Term(int(a), c), Term(None, d)] | [Term(None, d), Term(int(a), c)] if c:
                    return (factor * c, a, -d / c), weights
                case _:
                    return (factor, slot, 0.0), weights

    def _same(self, a: int | float, b: int | float) -> bool:
        return alike(self._producer, a, b, self._known)


def logits_of(call: Call | None, forms: Sequence[Tensor]) -> int | None:
    """The slot of mu ``[B, n]`` where a call is ``log_softmax(mu, 1)``."""
    if call is None or call.meaning != "log_softmax" or len(call.inputs) != 1:
        return None
    form, whole = forms[call.inputs[0]], forms[call.outputs[0]]
    dim = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else None)
    rows = form.dim() == 2 and form.dtype == whole.dtype and dim in (1, -1)
    return call.inputs[0] if rows else None


def parameter_of(call: Call) -> float:
    """That of the law of an energy that is a function of `ENERGIES`."""
    return float(call.args[3]) if len(call.args) > 3 else 0.0


def _dim(call: Call) -> int:
    """Along which a stack or a concatenation joins tensors."""
    rest: Iterable[Any] = (*call.args[1:], *call.kwargs.values())
    return next((d for d in rest if isinstance(d, int)), 0)
