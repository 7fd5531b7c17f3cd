"""Chains of nodes: all E-steps, and the gradients after them, of library products and the elementwise work between.

Steps run one after the other here, at any width. Where `persistent` costs less, one kernel runs them all. Nothing waits
for the device, and buffers are allocated once a call, so that a CUDA graph can hold it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import plan
from ...plan import Law, Learned
from . import categorical, persistent
from .activation import IDENTITY, activate, slope, subtract
from .expression import EXPRESSION, of_expression, program
from .launch import blocks, computed_in, elements_of_tile, launch, tile
from .laws import NodeLaw, of_law
from .reduce import finish


@triton.jit
def activate_kernel(
    value, bias, out, rows, n, tiles, parameter: tl.float64,
    KIND: tl.constexpr, ACC: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One tile of f(value + bias); `out` may be `value`."""
    program = tl.program_id(0).to(tl.int64)
    row = program // tiles * BLOCK_B + tl.arange(0, BLOCK_B)
    column = program % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (row < rows)[:, None] & (column < n)[None, :]
    at = (row * n)[:, None] + column[None, :]
    x = tl.load(value + at, mask=inside, other=0.0)
    if bias is not None:
        x += tl.load(bias + column, mask=column < n, other=0.0)[None, :]
    tl.store(out + at, activate(x, tl.full([], parameter, ACC), KIND), mask=inside)


@triton.jit
def error_kernel(
    state, product, bias, rate, weighted, samples, error, delta, moment, parts, rows, n, tiles, product_row,
    parameter: tl.float64, weight: tl.float64, law_parameter: tl.float64,
    AFTER: tl.constexpr, LAW: tl.constexpr, NUMBERS: tl.constexpr, CODE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One tile of what follows from a node's prediction mu = after(product + bias), as far as there is room for it.

    The error is what the law pulls by, or `weighted` where that is given, which stands for the product of a matrix and
    the residuals; delta is after' times its push; there is its moment, and the sum of twice its deviation along the
    tile's rows: parts [B, tiles]. All of them are times the weights of samples [B].
    """
    program = tl.program_id(0).to(tl.int64)
    row = program // tiles * BLOCK_B + tl.arange(0, BLOCK_B)
    column = program % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (row < rows)[:, None] & (column < n)[None, :]
    at = (row * n)[:, None] + column[None, :]
    x = tl.load(product + (row * product_row)[:, None] + column[None, :], mask=inside, other=0.0)
    if bias is not None:
        x += tl.load(bias + column, mask=column < n, other=0.0)[None, :]
    p = tl.full([], parameter, ACC)
    mu = activate(x, p, AFTER)
    z = tl.load(state + at, mask=inside, other=0.0)
    if weighted is not None:
        pull = tl.load(weighted + at, mask=inside, other=0.0)
        push, twice, grown = pull, subtract(z, mu) * pull, None
    else:
        by = tl.full([1, BLOCK_N], 1.0, ACC)
        if rate is not None:
            by = tl.load(rate + column, mask=column < n, other=0.0)[None, :]
        if LAW == EXPRESSION:
            pull, push, twice, grown = of_expression(z, mu, by, NUMBERS, CODE)
        else:
            w = tl.full([], weight, ACC)
            pull, push, twice, grown = of_law(z, mu, by, w, tl.full([], law_parameter, ACC), LAW)
    s = tl.full([BLOCK_B, 1], 1.0, ACC)
    if samples is not None:
        s = tl.load(samples + row, mask=row < rows, other=0.0)[:, None]
    if error is not None:
        tl.store(error + at, pull * s, mask=inside)
    if delta is not None:
        tl.store(delta + at, slope(x, mu, p, AFTER) * (push * s), mask=inside)
    if moment is not None:
        tl.store(moment + at, grown * s, mask=inside)
    if parts is not None:
        total = tl.sum(tl.where(inside, twice * s, 0.0), 1)  # beyond the edge mu is after(0)
        tl.store(parts + row * tiles + program % tiles, total, mask=row < rows)


@triton.jit
def update_kernel(
    state, velocity, error, feedback, delta, panel, size, parameter: tl.float64,
    skip: tl.float64, lr: tl.float64, momentum: tl.float64, kept: tl.float64,
    NESTEROV: tl.constexpr, BEFORE: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A step of a node: state -= lr (error - before'(state) feedback - skip delta), and panel = before(state) after it.

    `kept` is 1 - dampening, as in `estep_`.
    """
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    p = tl.full([], parameter, ACC)
    z = tl.load(state + index, mask=inside, other=0.0)
    step = tl.zeros([BLOCK], ACC)
    if error is not None:
        step += tl.load(error + index, mask=inside, other=0.0)
    if feedback is not None:
        back = tl.load(feedback + index, mask=inside, other=0.0)
        step -= slope(z, activate(z, p, BEFORE), p, BEFORE) * back
    if delta is not None:
        step -= tl.full([], skip, ACC) * tl.load(delta + index, mask=inside, other=0.0)
    if velocity is not None:
        v = tl.load(velocity + index, mask=inside, other=0.0)
        v = tl.full([], momentum, ACC) * v + tl.full([], kept, ACC) * step
        tl.store(velocity + index, v, mask=inside)
        step = step + tl.full([], momentum, ACC) * v if NESTEROV else v
    z -= tl.full([], lr, ACC) * step
    tl.store(state + index, z, mask=inside)
    if panel is not None:
        tl.store(panel + index, activate(z, p, BEFORE), mask=inside)


class Forward(NamedTuple):
    """What a prediction after(product + bias) is made of; the product is [B, n], or [1, n] for all samples."""

    product: Tensor
    bias: Tensor | None = None
    after: int = IDENTITY
    parameter: float = 0.0


class Errors(NamedTuple):
    """Room for what `error_kernel` gives of a node, [B, n] each but the parts of its energies; None is not wanted."""

    error: Tensor | None
    delta: Tensor | None
    moment: Tensor | None
    parts: Tensor | None
    residual: Tensor | None

    @property
    def to_feed_back(self) -> Tensor:
        """Delta, which is the error itself where no activation and no law sets it apart."""
        found = self.error if self.delta is None else self.delta
        assert found is not None
        return found


class Chain:
    """A path of nodes along edges, and what is computed of it in E-steps and for gradients.

    Args:
        states: of the nodes.
        weights: of the edges, each from one node to the next.
        biases: likewise.
        laws: of the nodes.
        prior: constant prediction of the first node.
        activations: before and after of every edge, with their parameters.
        skips: what of the source itself every edge adds to its product.
    """

    def __init__(
        self,
        states: list[Tensor],
        weights: list[Tensor],
        biases: list[Tensor | None],
        laws: list[NodeLaw],
        prior: Tensor | None,
        activations: list[tuple[tuple[int, float], tuple[int, float]]],
        skips: list[float],
    ) -> None:
        self.states, self.weights = states, weights
        self.predicted = [prior is not None, *[True] * len(weights)]
        self.biases = [_contiguous(b) for b in biases]
        self.laws = [law._replace(rate=_contiguous(law.rate), samples=_contiguous(law.samples)) for law in laws]
        self.prior = _contiguous(prior)
        self.before, self.after = [before for before, _ in activations], [after for _, after in activations]
        self.skips = skips
        self.batch = states[0].shape[0]
        self.acc = computed_in("states", states[0])

    def full(self, node: int) -> bool:
        """Whether the precision is a matrix."""
        return self.laws[node].law is Law.FULL_GAUSSIAN

    def tiling(self, node: int) -> tuple[int, int, int]:
        """Tiles along a row, and a tile's height and width: they depend on the node's width alone."""
        n = self.states[node].shape[1]
        tall, width = tile(n, self.acc)
        return blocks(n, width), tall, width

    def _activate(
        self, node: int, value: Tensor, bias: Tensor | None, function: tuple[int, float], out: Tensor
    ) -> None:
        kind, parameter = function
        tiles, tall, width = self.tiling(node)
        launch(
            activate_kernel, blocks(self.batch, tall) * tiles, value, bias, out, self.batch, value.shape[1], tiles,
            parameter, kind, self.acc, tall, width,
        )  # fmt: skip

    def panel(self, edge: int) -> Tensor:
        """before(z), as the products read it."""
        state = self.states[edge]
        if self.before[edge][0] == IDENTITY:
            return state
        out = torch.empty_like(state)
        self._activate(edge, state, None, self.before[edge], out)
        return out

    def forward(self, edge: int, panel: Tensor, out: Tensor | None = None) -> Forward:
        """The product of an edge and what skips it, into a buffer."""
        product = torch.mm(panel, self.weights[edge].mT, out=out)
        if self.skips[edge]:
            product.add_(self.states[edge], alpha=self.skips[edge])
        return Forward(product, self.biases[edge], *self.after[edge])

    def prediction(self, edge: int) -> Tensor:
        """The prediction itself, of which more than one step makes use."""
        product, bias, *after = self.forward(edge, self.panel(edge))
        if bias is not None or after[0] != IDENTITY:
            self._activate(edge + 1, product, bias, self.after[edge], product)
        return product

    def room(
        self, node: int, *, error: bool = False, delta: bool = False, moment: bool = False, parts: bool = False
    ) -> Errors:
        state, full = self.states[node], self.full(node)
        apart = delta and (self.after[node - 1][0] != IDENTITY or self.laws[node].law.pushes_apart)
        return Errors(
            torch.empty_like(state) if error or full or (delta and not apart) else None,
            torch.empty_like(state) if apart else None,
            torch.empty_like(state) if moment else None,
            state.new_empty(self.batch, self.tiling(node)[0]) if parts else None,
            torch.empty_like(state) if full else None,
        )

    def errors(self, node: int, forward: Forward, room: Errors) -> None:
        """Fill the room; a full precision is a library product, and what needs it is done after that."""
        error, delta, moment, parts, residual = room
        law, rate, weight, samples, parameter, _ = self.laws[node]
        if law is Law.CATEGORICAL:  # no activation comes between, and it has no theta
            product, bias, *_ = forward
            tiling = self.tiling(node)
            categorical.errors(self.states[node], product, bias, rate, samples, error, parts, tiling, self.acc)
            return
        if residual is None:
            self._errors(node, forward, law, (weight, parameter), rate, None, samples, error, delta, moment, parts)
            return
        assert rate is not None
        assert error is not None
        unit = Law.GAUSSIAN, (1.0, 0.0)
        self._errors(node, forward, *unit, None, None, samples, residual, None, None, None)
        torch.mm(residual, rate, out=error)
        if delta is not None or parts is not None:
            self._errors(node, forward, *unit, None, error, None, None, delta, None, parts)

    def _errors(
        self, node: int, forward: Forward, law: Law, numbers: tuple[float, float], *operands: Tensor | None
    ) -> None:
        product, bias, after, parameter = forward
        state = self.states[node]
        tiles, tall, width = self.tiling(node)
        heavy = law.has_parameter or law.pushes_apart
        own = program(self.laws[node].expression if law is Law.EXPRESSION else None)
        wide = self.acc == tl.float64
        # with less, registers would spill or run out
        warps = 16 if wide and law is Law.EXPRESSION else 8 if wide or heavy else 4
        launch(
            error_kernel, blocks(self.batch, tall) * tiles, state, product, bias, *operands,
            self.batch, state.shape[1], tiles, 0 if product.shape[0] == 1 else state.shape[1], parameter, *numbers,
            after, int(law), *own, self.acc, tall, width, num_warps=warps,
        )  # fmt: skip


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


@dataclass(frozen=True)
class Descent:
    """E-steps to be taken.

    Attributes:
        free: of every node, whether it moves.
        constant: of the nodes that no free node predicts, the prediction.
        drives: of the edges that have a gram and use it, W^T P (z - b) and the gram W^T P W.
        steps: their number.
        lr: their rate.
        velocities: of every node, with zeros where the first gradient is to start them; None for no momentum.
        momentum: as in `torch.optim.SGD`.
        kept: of the gradients, in the velocities: of the first step's, and of the later ones'.
        nesterov: as in `torch.optim.SGD`.
        energies: ``[steps, nodes, B]``, where they are recorded.
        matmul_precision: by its name in `PRODUCTS`.
    """

    free: list[bool]
    constant: dict[int, Tensor]
    drives: dict[int, tuple[Tensor, Tensor]]
    steps: int
    lr: float
    velocities: list[Tensor | None]
    momentum: float
    kept: tuple[float, float]
    nesterov: bool
    energies: Tensor | None
    matmul_precision: str


def sweep(chain: Chain, swept: list[bool]) -> None:
    """Set the states that start at their predictions to these."""
    for i, (state, sweeps) in enumerate(zip(chain.states, swept, strict=True)):
        if not sweeps:
            continue
        if i > 0:
            state.copy_(chain.prediction(i - 1))
        else:
            assert chain.prior is not None
            state.copy_(chain.prior)


def infer(
    chain: Chain,
    free: list[bool],
    grams: list[bool],
    method: plan.Descent,
    steps: int,
    velocities: list[Tensor | None],
    energies: Tensor | None,
    matmul_precision: str,
    exact: bool,
) -> None:
    """Take a chain's E-steps, in place.

    Args:
        chain: its states are written where they are free.
        free: of every node.
        grams: of every edge, whether its feedback is computed by its gram.
        method: of the steps.
        steps: how many.
        velocities: of every node that has one.
        energies: ``[steps, nodes, B]``, set to the nodes' energies before each step.
        matmul_precision: by its name in `PRODUCTS`.
        exact: take the library's products, with which a state that `sweep` has set has no error.
    """
    if not steps:
        return
    edges = range(len(chain.weights))
    constant = {i + 1: chain.prediction(i) for i in edges if not free[i]}
    if chain.prior is not None:
        constant[0] = chain.prior
    if not method.resume:
        for velocity in velocities:
            if velocity is not None:
                velocity.zero_()
    kept = (1 - method.dampening if method.resume else 1.0, 1 - method.dampening)
    drives = {i: (_drive(chain, i), _gram(chain, i)) for i in edges if grams[i]}
    descent = Descent(
        free, constant, drives, steps, method.lr, velocities, method.momentum, kept, method.nesterov, energies,
        matmul_precision,
    )  # fmt: skip
    if energies is not None:
        _constant_energies(chain, descent, energies)
    tall = 0 if exact else persistent.rows_of_a_program(chain, descent)
    if tall:
        persistent.descend(chain, descent, tall)
    else:
        _descend(chain, descent)


def _drive(chain: Chain, edge: int) -> Tensor:
    """W^T P (z - b) of the clamped node that an edge leads to."""
    bias, precision = chain.biases[edge], chain.laws[edge + 1].rate
    target = chain.states[edge + 1] if bias is None else chain.states[edge + 1] - bias
    return torch.mm(target if precision is None else target * precision, chain.weights[edge])


def _gram(chain: Chain, edge: int) -> Tensor:
    """W^T P W."""
    weight, precision = chain.weights[edge], chain.laws[edge + 1].rate
    return torch.mm(weight.mT, weight if precision is None else precision.unsqueeze(1) * weight)


def _constant_energies(chain: Chain, descent: Descent, energies: Tensor) -> None:
    for i, predicted in enumerate(chain.predicted):
        if not predicted:
            energies[:, i].zero_()
        elif i in descent.constant and not descent.free[i]:
            room = chain.room(i, parts=True)
            chain.errors(i, Forward(descent.constant[i]), room)
            assert room.parts is not None
            finish(room.parts, energies[0, i])
            energies[1:, i] = energies[0, i]


def _descend(chain: Chain, descent: Descent) -> None:
    """One step after the other."""
    states, free, energies = chain.states, descent.free, descent.energies
    moving = [i for i, is_free in enumerate(free) if is_free]
    targets = [i + 1 for i in moving if i + 1 < len(states) and chain.predicted[i + 1]]  # their predictions vary
    panels = {i - 1: chain.panel(i - 1) for i in targets}
    feedback = {i - 1: torch.empty_like(states[i - 1]) for i in targets}
    varying = [i for i in targets if i - 1 not in descent.drives]
    steady = [i for i in descent.constant if free[i]]
    products = {i: torch.empty_like(states[i]) for i in varying}
    record = energies is not None
    block = elements_of_tile(chain.acc)
    rooms = {i: chain.room(i, error=free[i], delta=i in products, parts=record) for i in (*varying, *steady)}
    for step in range(descent.steps):
        for i, (drive, gram) in descent.drives.items():
            torch.addmm(drive, panels[i], gram, alpha=-1, out=feedback[i])
        for i, room in rooms.items():
            if i in products:
                chain.errors(i, chain.forward(i - 1, panels[i - 1], products[i]), room)
                torch.mm(room.to_feed_back, chain.weights[i - 1], out=feedback[i - 1])
            else:
                chain.errors(i, Forward(descent.constant[i]), room)
            if energies is not None:
                assert room.parts is not None
                finish(room.parts, energies[step, i])
        for i in moving:
            kind, parameter = chain.before[i] if i in panels else (IDENTITY, 0.0)
            skip = chain.skips[i] if i in panels else 0.0
            launch(
                update_kernel, blocks(states[i].numel(), block), states[i],
                descent.velocities[i], rooms[i].error if i in rooms else None,
                feedback.get(i), rooms[i + 1].to_feed_back if skip else None,
                None if kind == IDENTITY else panels[i], states[i].numel(), parameter, skip,
                descent.lr, descent.momentum, descent.kept[step > 0], descent.nesterov, kind, chain.acc, block,
            )  # fmt: skip


def mstep(chain: Chain, wanted: list[tuple[Learned, int, Tensor]]) -> None:
    """Write gradients of the mean energy into tensors: for an edge's weight or bias, or a node's theta.

    Args:
        chain: its states are where the gradients are taken.
        wanted: what, of which edge or node, and where it goes; that for a theta of [1] is summed over the node.
    """
    mean = 1 / max(1, chain.batch)
    for i in range(len(chain.states)):
        weights = [t for what, edge, t in wanted if what is Learned.WEIGHT and edge == i - 1]
        biases = [t for what, edge, t in wanted if what is Learned.BIAS and edge == i - 1]
        moments = [t for what, node, t in wanted if what is Learned.LOGVAR and node == i]
        if not (weights or biases or moments):
            continue
        if i > 0:
            panel = chain.panel(i - 1)
            forward = chain.forward(i - 1, panel)
        else:
            assert chain.prior is not None
            forward = Forward(chain.prior)
        room = chain.room(i, delta=bool(weights or biases), moment=bool(moments))
        chain.errors(i, forward, room)
        for out in moments:
            assert room.moment is not None
            torch.sum(room.moment.sum_to_size(chain.batch, out.shape[0]), 0, out=out).mul_(mean)
        for out in weights:
            torch.addmm(out, room.to_feed_back.mT, panel, beta=0, alpha=-mean, out=out)  # the library scales it
        for out in biases:
            torch.sum(room.to_feed_back, 0, out=out).mul_(-mean)
