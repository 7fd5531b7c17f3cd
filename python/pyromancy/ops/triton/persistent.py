"""All E-steps of a chain in one launch: a program takes a tile of samples through every step.

Samples do not interact, so that programs never wait for one another. The weights come from the L2 cache in every step;
states, and what is handed from one phase of a step to the next, lie in rows of device memory that no other program
touches, and so in the caches close to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from ...plan import Law
from .activation import IDENTITY, activate, slope
from .launch import INTERPRETED, blocks, launch
from .laws import NodeLaw, of_law

if TYPE_CHECKING:
    from torch import Tensor

    from .chain import Chain, Descent

# What decides between one launch and many, in seconds. Not calibrated on a device yet.
_LAUNCH = 3e-6  # of one launch, and of the device being idle after it
_STREAM = 4e10  # bytes of weights that a multiprocessor takes from L2 in a second
_BALANCE = 64  # samples in a tile whose arithmetic takes as long as the weights for it take to arrive
_MOST_NODES = 8  # what the compiler unrolls

# Samples in a tile -> columns of it that are computed at a time, and warps: what takes few enough registers
_TILES = {16: (64, 4), 32: (64, 8), 64: (32, 8)}
_DEPTH = 32  # of a tile of weights
_REGISTERS = 255  # all that there are: there is a program for each multiprocessor, or few more
# How the products are taken, by the names of `torch.set_float32_matmul_precision`. Three products of tf32 leave out
# 2^-22 of each term; float32 itself, which tensor cores do not multiply, rounds to 2^-24.
# Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
PRODUCTS = {"highest": "tf32x3", "high": "tf32", "medium": "as bf16" if INTERPRETED else "bf16"}
# numbers that are not worth a kernel of their own where they are 1 or a multiple of 16
_ANY = ["steps", "biased", "rated", "weighted", "apart", "known", "known_rated", "known_weighted", "varying", "direct",
        "paneled"]  # fmt: skip


@triton.jit
def _multiply(
    left, row, inside, weight, n, depth, column, column_step, depth_step,
    PRODUCTS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The rows [ROWS, depth] at `left` times columns of a matrix [depth, n]."""
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in range(0, depth, DEPTH):
        k = start + tl.arange(0, DEPTH)
        a = tl.load(left + (row * depth)[:, None] + k[None, :], mask=inside[:, None] & (k < depth)[None, :], other=0.0)
        at = (k * depth_step)[:, None] + (column * column_step)[None, :]
        b = tl.load(weight + at, mask=(k < depth)[:, None] & (column < n)[None, :], other=0.0)
        if PRODUCTS == "bf16":
            total = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), total)
        elif PRODUCTS == "as bf16":
            a, b = a.to(tl.bfloat16).to(tl.float32), b.to(tl.bfloat16).to(tl.float32)
            total = tl.dot(a, b, total, input_precision="ieee")
        else:
            total = tl.dot(a, b, total, input_precision=PRODUCTS)
    return total


@triton.jit
def _pick(options, i):
    """Entry i of a tuple, where i is not known to the compiler."""
    found = options[0]
    for j in tl.static_range(1, len(options)):
        found = tl.where(i == j, options[j], found)
    return found


@triton.jit
def _has(flags, i):
    """Whether entry i is there."""
    return (flags >> i) % 2 != 0


@triton.jit
def _activate(x, parameter, which, KINDS: tl.constexpr):
    """The activation whose place among the chain's is given, and its derivative."""
    y = activate(x, parameter, KINDS[0])
    d = slope(x, y, parameter, KINDS[0])
    for j in tl.static_range(1, len(KINDS)):
        if which == j:
            y = activate(x, parameter, KINDS[j])
            d = slope(x, y, parameter, KINDS[j])
    return y, d


@triton.jit
def _of_law(z, mu, p, which, LAWS: tl.constexpr):
    """The pull, the push and twice the deviation of the law whose place among the chain's is given."""
    pull, push, twice, _ = of_law(z, mu, p, 1.0, 0.0, LAWS[0])
    for j in tl.static_range(1, len(LAWS)):
        if which == j:
            pull, push, twice, _ = of_law(z, mu, p, 1.0, 0.0, LAWS[j])
    return pull, push, twice


@triton.jit(do_not_specialize=_ANY)
def descend_chain_kernel(
    panels, depths, weights, sizes, biases, targets, laws, rates, samples, errors, deltas, afters, after_parameters,
    edge_nodes, biased, rated, weighted, apart,
    states, widths, own_errors, constants, constant_rows, own_laws, own_rates, own_samples, fed_deltas, fed_depths,
    fed_weights, befores, before_parameters, own_panels, velocities, nodes,
    varying, known, known_rated, known_weighted, direct, paneled,
    energies, node_count, batch, steps, lr, momentum, first_kept, kept,
    KINDS: tl.constexpr, LAWS: tl.constexpr, NESTEROV: tl.constexpr,
    PRODUCTS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Tuples have an entry for every edge between free nodes and what they predict, or for every free node.

    Flags say in a bit for each entry whether an operand is there: where it is not, any address stands for it. Weights
    of samples are None where no entry has them.

    A step has two phases. The first reads states and panels, and writes errors and deltas, along the edges. The second
    reads those, and writes states, velocities and panels, of the nodes. What a phase writes, other threads of the
    program read in the next: hence a barrier after each. Within a phase nothing that is written is read again, but an
    element of a state or a velocity by the tile that it is in, and what is written there follows from what was read.

    Panels are before(z). Deltas are after' e, which a product with the weight feeds back. An edge with a gram is one
    that predicts its drive from the panel by the gram: its delta is the feedback. To take that product in the second
    phase would be too late, since it needs a whole row of a panel, which changes there tile by tile.
    """
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)  # of the tile: offsets in it take 32 bits, and so half the registers
    inside = first + row < batch
    for step in range(steps):
        for i in range(len(panels)):
            n, depth, which, p = _pick(sizes, i), _pick(depths, i), _pick(afters, i), _pick(after_parameters, i)
            panel, weight, bias = _pick(panels, i) + first * depth, _pick(weights, i), _pick(biases, i)
            target, rate = _pick(targets, i) + first * n, _pick(rates, i)
            error, delta = _pick(errors, i) + first * n, _pick(deltas, i) + first * n
            total = tl.zeros([ROWS], tl.float32)
            for start in range(0, n, WIDTH):
                column = start + tl.arange(0, WIDTH)
                here = column < n
                at = (row * n)[:, None] + column[None, :]
                mask = inside[:, None] & here[None, :]
                x = _multiply(panel, row, inside, weight, n, depth, column, depth, 1, PRODUCTS, ROWS, WIDTH, DEPTH)
                x += tl.load(bias + column, mask=here & _has(biased, i), other=0.0)[None, :]
                mu, d = _activate(x, p, which, KINDS)
                z = tl.load(target + at, mask=mask, other=0.0)
                by = tl.load(rate + column, mask=here & _has(rated, i), other=1.0)[None, :]
                pull, push, twice = _of_law(z, mu, by, _pick(laws, i), LAWS)
                if samples is not None:
                    s = tl.load(_pick(samples, i) + first + row, mask=inside & _has(weighted, i), other=1.0)[:, None]
                    pull, push, twice = pull * s, push * s, twice * s
                tl.store(error + at, pull, mask=mask & _has(apart, i))
                tl.store(delta + at, d * push, mask=mask)
                total += tl.sum(tl.where(mask, twice, 0.0), 1)
            if energies is not None:
                energies_at = energies + tl.full([], step * node_count + _pick(edge_nodes, i), tl.int64) * batch
                tl.store(energies_at + first + row, 0.5 * total, mask=inside)
        tl.debug_barrier()
        for i in range(len(states)):
            n, depth, which, p = _pick(widths, i), _pick(fed_depths, i), _pick(befores, i), _pick(before_parameters, i)
            state, error = _pick(states, i) + first * n, _pick(own_errors, i) + first * n
            own_panel, rate = _pick(own_panels, i) + first * n, _pick(own_rates, i)
            constant_row = _pick(constant_rows, i)
            constant = _pick(constants, i) + first * constant_row
            delta, weight = _pick(fed_deltas, i), _pick(fed_weights, i)
            total = tl.zeros([ROWS], tl.float32)
            for start in range(0, n, WIDTH):
                column = start + tl.arange(0, WIDTH)
                here = column < n
                at = (row * n)[:, None] + column[None, :]
                mask = inside[:, None] & here[None, :]
                back = _multiply(delta + first * depth, row, inside, weight, n, depth, column, 1, n,
                                 PRODUCTS, ROWS, WIDTH, DEPTH)  # fmt: skip
                back += tl.load(delta + first * n + at, mask=mask & _has(direct, i), other=0.0)
                z = tl.load(state + at, mask=mask, other=0.0)
                _, d = _activate(z, p, which, KINDS)
                predicted = mask & _has(known, i)
                mu = tl.load(constant + (row * constant_row)[:, None] + column[None, :], mask=predicted, other=0.0)
                by = tl.load(rate + column, mask=here & _has(known_rated, i), other=1.0)[None, :]
                pull, _, twice = _of_law(z, mu, by, _pick(own_laws, i), LAWS)
                if own_samples is not None:
                    has = inside & _has(known_weighted, i)
                    s = tl.load(_pick(own_samples, i) + first + row, mask=has, other=1.0)[:, None]
                    pull, twice = pull * s, twice * s
                total += tl.sum(tl.where(predicted, twice, 0.0), 1)
                g = tl.where(predicted, pull, 0.0)
                g -= d * back  # before the rest of the error is loaded: in the other order registers run out
                g += tl.load(error + at, mask=mask & _has(varying, i), other=0.0)
                if velocities is not None:
                    velocity = _pick(velocities, i) + first * n
                    v = momentum * tl.load(velocity + at, mask=mask, other=0.0)
                    v += (first_kept if step == 0 else kept) * g
                    tl.store(velocity + at, v, mask=mask)
                    g = g + momentum * v if NESTEROV else v
                z -= lr * g
                tl.store(state + at, z, mask=mask)
                y, _ = _activate(z, p, which, KINDS)
                tl.store(own_panel + at, y, mask=mask & _has(paneled, i))
            if energies is not None:
                energies_at = energies + tl.full([], step * node_count + _pick(nodes, i), tl.int64) * batch
                tl.store(energies_at + first + row, 0.5 * total, mask=inside & _has(known, i))
        tl.debug_barrier()


def height(batch: int, streamed: int, launches: int, processors: int) -> int:
    """Samples in a tile with which one launch takes least, or 0 where a launch for each piece of a step takes less.

    Args:
        batch: samples.
        streamed: bytes of weights that a tile takes from L2 in a step.
        launches: of a step, if each piece is one.
        processors: programs that run at a time.
    """
    best, least = 0, launches * _LAUNCH
    for tall in _TILES:
        turns = blocks(blocks(batch, tall), processors)
        cost = turns * (1 + tall / _BALANCE) * streamed / _STREAM
        if cost < least:
            best, least = tall, cost
    return best


def rows_of_a_program(chain: Chain, descent: Descent) -> int:
    """The height of a chain's tiles, or 0 where its steps are taken one after the other."""
    state, count = chain.states[0], len(chain.states)
    momentum = {v is not None for v, free in zip(descent.velocities, descent.free, strict=True) if free}
    alike = len(momentum) == 1
    known = [law.law for law in chain.laws if law.law is not Law.NONE]
    # no rows, nor numbers or programs of nodes there
    apart = any(not law.is_elementwise or law.has_parameter or law is Law.EXPRESSION for law in known)
    if state.dtype != torch.float32 or count > _MOST_NODES or apart or not alike:
        return 0
    if any(chain.skips):
        return 0
    streamed = launches = 0
    for i in range(count - 1):
        if descent.free[i] and chain.predicted[i + 1]:
            gram = i in descent.drives
            streamed += descent.drives[i][1].nbytes if gram else 2 * chain.weights[i].nbytes
            launches += 1 if gram else 3  # a product; or two, and the error between them
    if not streamed:
        return 0
    launches += sum(descent.free) + sum(descent.free[i] for i in descent.constant)
    processors = torch.cuda.get_device_properties(state.device).multi_processor_count if state.is_cuda else 1
    return height(chain.batch, streamed, launches, processors)


class _Operands:
    """Operands of every edge or node, by the kernel's names: a column for each."""

    def __init__(self, anything: Tensor) -> None:
        self._anything = anything
        self._columns: dict[str, list[Any]] = {}

    def add(self, **entries: Any) -> None:
        for name, entry in entries.items():
            self._columns.setdefault(name, []).append(entry)

    def tuples(self) -> dict[str, tuple[Any, ...]]:
        return {k: tuple(self._anything if x is None else x for x in column) for k, column in self._columns.items()}

    def flags(self, name: str) -> int:
        """A bit for every entry that is there."""
        return sum(1 << i for i, x in enumerate(self._columns[name]) if x is not None)


def descend(chain: Chain, descent: Descent, tall: int) -> None:
    states, free, drives, constant = chain.states, descent.free, descent.drives, descent.constant
    weights = {
        i: w.contiguous() for i, w in enumerate(chain.weights) if free[i] and chain.predicted[i + 1]
    }  # of the edges whose prediction varies
    kinds = sorted({IDENTITY, *(side[i][0] for i in weights for side in (chain.before, chain.after))})
    laws = sorted({*(law.law for law in chain.laws if law.law), *(Law.GAUSSIAN for _ in drives)})
    edges, nodes = _Operands(states[0]), _Operands(states[0])
    errors: dict[int, Tensor] = {}  # of nodes
    deltas: dict[int, Tensor] = {}  # of edges, as the panels are
    panels: dict[int, Tensor] = {}
    for i, weight in weights.items():
        panels[i] = chain.panel(i)
        operands = {"panels": panels[i], "depths": states[i].shape[1]}
        if i in drives:
            drive, gram = drives[i]
            deltas[i] = torch.empty_like(drive)
            edges.add(
                **operands, weights=gram.mT.contiguous(), sizes=len(gram), biases=None, targets=drive,
                laws=laws.index(Law.GAUSSIAN), rates=None, samples=None, errors=None, deltas=deltas[i],
                afters=kinds.index(IDENTITY), after_parameters=0.0, edge_nodes=i + 1,
            )  # fmt: skip
            continue
        kind, parameter = chain.after[i]
        target, law = states[i + 1], chain.laws[i + 1]
        deltas[i] = errors[i + 1] = torch.empty_like(target)
        if free[i + 1] and (kind != IDENTITY or law.law.pushes_apart):
            errors[i + 1] = torch.empty_like(target)
        edges.add(
            **operands, weights=weight, sizes=len(weight), biases=chain.biases[i], targets=target,
            laws=laws.index(law.law), rates=law.rate, samples=law.samples,
            errors=None if errors[i + 1] is deltas[i] else errors[i + 1], deltas=deltas[i],
            afters=kinds.index(kind), after_parameters=parameter, edge_nodes=i + 1,
        )  # fmt: skip
    for i, state in enumerate(states):
        if not free[i]:
            continue
        mu, product = constant.get(i), i in deltas and i not in drives
        law = NodeLaw() if mu is None else chain.laws[i]
        kind, parameter = chain.before[i] if i in deltas else (IDENTITY, 0.0)
        nodes.add(
            states=state, widths=state.shape[1], own_errors=errors.get(i), constants=mu,
            constant_rows=0 if mu is None or len(mu) == 1 else mu.shape[1],
            own_laws=0 if mu is None else laws.index(law.law), own_rates=law.rate, own_samples=law.samples,
            fed_deltas=deltas.get(i),
            fed_depths=len(weights[i]) if product else 0, fed_weights=weights[i] if product else None,
            befores=kinds.index(kind), before_parameters=parameter,
            own_panels=None if kind == IDENTITY else panels[i],
            nodes=i, direct=drives.get(i),
        )  # fmt: skip
        if descent.velocities[i] is not None:
            nodes.add(velocities=descent.velocities[i])
    width, warps = _TILES[tall]
    given: dict[str, Any] = {"velocities": None, **edges.tuples(), **nodes.tuples()}
    del given["direct"]
    for column, name in ((edges, "samples"), (nodes, "own_samples")):
        if not column.flags(name):
            given[name] = None
    if laws != [Law.GAUSSIAN] or edges.flags("samples") or nodes.flags("own_samples"):
        warps = 8  # four would be short of registers
    launch(
        descend_chain_kernel, blocks(chain.batch, tall), **given,
        biased=edges.flags("biases"), rated=edges.flags("rates"), weighted=edges.flags("samples"),
        apart=edges.flags("errors"), varying=nodes.flags("own_errors"), known=nodes.flags("constants"),
        known_rated=nodes.flags("own_rates"), known_weighted=nodes.flags("own_samples"),
        direct=nodes.flags("direct"), paneled=nodes.flags("own_panels"),
        energies=descent.energies, node_count=len(states), batch=chain.batch, steps=descent.steps, lr=descent.lr,
        momentum=descent.momentum, first_kept=descent.kept[0], kept=descent.kept[1],
        KINDS=tuple(kinds), LAWS=tuple(map(int, laws)), NESTEROV=descent.nesterov,
        PRODUCTS=PRODUCTS[descent.matmul_precision], ROWS=tall, WIDTH=width, DEPTH=_DEPTH, num_warps=warps,
        maxnreg=_REGISTERS,
    )  # fmt: skip
