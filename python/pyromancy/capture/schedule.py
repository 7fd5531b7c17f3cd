"""A traced gradient as E-step or M-step: products as they are, what lies between fused, in memory that stays.

`Ends` says what is written, `Groups` what is fused, and here both become a graph of calls: every group one of
`elementwise_`, every result in a block of memory that is free by then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from .. import ops
from ..plan.expression import Op
from .elements import Value, made
from .ends import Ends
from .forms import example
from .groups import Groups, Unit
from .memory import Memory, blocks_of, dense_strides
from .operators import out_of, shares
from .partition import is_fused
from .parts import Parts, Window
from .sequences import WRITING

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Schedule:
    """An E-step, an opening, or what a graph gives, as a graph of calls.

    Attributes:
        graph: takes the leaves, what is computed once, velocities where there are any, for every state, if it settles,
            the size of gradients that do not move it, or of errors that are none, element by element, the tensors that
            it gives, which it writes, memory, and `NUMBERS`, or of an opening its `RATE`.
        blocks: how many elements every block of memory has, and of which type.
        memory: where the tensors lie that the graph is lent.
        fused: how many calls are of element-wise programs, and how many operators they stand for.
    """

    graph: fx.Graph
    blocks: list[tuple[int, torch.dtype]]
    memory: list[Memory]
    fused: tuple[int, int]

    @property
    def calls(self) -> int:
        """How many operators a step calls, beside views."""
        return sum(n.op == "call_function" and not shares(n.target) for n in self.graph.nodes)

    @property
    def in_words(self) -> str:
        """What is fused, in words."""
        calls, operators = self.fused
        return f"{operators} element-wise operators, states' updates among them, in {calls} of these"

    def lend(self, owner: object) -> list[Tensor]:
        """Memory for a run, which all schedules of an owner use in turn; a thread keeps that of its last owner."""
        return blocks_of(owner).lend(self, self.blocks, self.memory)


def scheduled(ends: Ends) -> Schedule:
    """The calls of a graph in order, with their memory."""
    return _Writer(ends).schedule()


class _Writer:
    """Writes a graph that is fused."""

    def __init__(self, ends: Ends) -> None:
        self.ends, self.of = ends, Groups(ends)
        self.kept = self.of.kept()
        self.graph = fx.Graph()
        self.blocks: list[tuple[int, torch.dtype]] = []
        self.memory: dict[Memory, fx.Node] = {}
        self.free: list[int] = []
        self.place: dict[fx.Node, Memory] = {}
        self.made: dict[fx.Node, fx.Node] = {}
        for node in ends.graph.nodes:
            if node.op == "placeholder":
                self.made[node] = self.graph.placeholder(node.name)
        self.last_input = next(reversed(self.made.values()))  # or memory
        self.numbers = {name: self.graph.placeholder(name) for name in ends.numbers}
        self.fused = [0, 0]

    def schedule(self) -> Schedule:
        of, ordered = self.of, self.of.order()
        last: dict[fx.Node, int] = {}
        for i, unit in enumerate(ordered):
            for node in unit.nodes:
                for n in (node, *of.inputs[node]):
                    last[of.root[n]] = i
                    if n in of.values and (twin := of.negative(n, self.kept, unit)) is not None:
                        last[of.root[twin]] = i
        for i, unit in enumerate(ordered):
            if unit.domain is not None:
                self._write_group(unit)
            else:
                self._write_call(unit.nodes[0])
            for node in [n for n in self.place if last[n] == i]:
                self.free.append(self.place.pop(node).block)
        self.graph.output(())
        memory = list(self.memory)
        return Schedule(self.graph, self.blocks, memory, (self.fused[0], self.fused[1]))

    def _reserve(self, node: fx.Node) -> fx.Node:
        """Memory for a result."""
        t = example(node)
        size = t.numel()
        fitting = [b for b in self.free if self.blocks[b][1] == t.dtype and self.blocks[b][0] >= size]
        if fitting:
            block = min(fitting, key=lambda b: self.blocks[b][0])
            self.free.remove(block)
        else:
            block = len(self.blocks)
            self.blocks.append((size, t.dtype))
        self.place[node] = Memory(block, tuple(t.shape), dense_strides(t), t.dtype)
        self.made[node] = self._lent(self.place[node])
        return self.made[node]

    def _direct(self, node: fx.Node) -> fx.Node:
        """The place of a gradient, as the call that makes it sees it."""
        place, shape = self.ends.direct[node], example(node).shape
        out = self.made[place]
        if example(place).shape != shape:
            out = self.graph.call_function(aten.view.default, (out, list(shape)))
        self.made[node] = out
        return out

    def _lent(self, memory: Memory) -> fx.Node:
        if memory not in self.memory:
            with self.graph.inserting_after(self.last_input):
                self.memory[memory] = self.last_input = self.graph.placeholder(f"memory_{len(self.memory)}")
        return self.memory[memory]

    def _write_call(self, node: fx.Node) -> None:
        arguments = fx.map_arg(node.args, lambda n: self.made[n])
        if (writing := WRITING.get(node.target)) is not None:
            self.graph.call_function(writing, (self._reserve(node), *arguments))
            return
        found = out_of(node.target)
        if found is None or not is_fused(node):
            self.made[node] = self.graph.node_copy(node, self.made.__getitem__)
            self.made[node].meta = {}
            return
        out = self._direct(node) if node in self.ends.direct else self._reserve(node)
        target, into = found
        self.graph.call_function(target, arguments, {**fx.map_arg(node.kwargs, self.made.__getitem__), into: out})

    def _write_group(self, unit: Unit) -> None:
        assert unit.domain is not None
        program = _Program(self, unit)
        written: list[fx.Node] = []
        results = []
        for node in unit.nodes:
            value = self.of.values[node]
            if node in self.ends.writes:
                target = self.made[node] = self.made[self.ends.writes[node]]
                written.append(target)
                results.append(program.compiled(("node", node)))
            elif node not in self.kept:
                continue
            elif isinstance(value, Parts):
                self._reserve(node)
                for place, part in value.values.items():
                    written.append(self._lent(place.of(self.place[node])))
                    results.append(program.compiled(part))
            else:
                written.append(self._reserve(node))
                results.append(program.compiled(("node", node)))
        if not written:
            return
        self.graph.call_function(ops.elementwise_, (written, *program.arguments(results)))
        self.fused[0] += 1
        self.fused[1] += len(unit.nodes)


class _Program:
    """The instructions of a group."""

    def __init__(self, writer: _Writer, unit: Unit) -> None:
        self.writer, self.unit = writer, unit
        self.reads: dict[Any, tuple[str, int]] = {}
        self.numbers: dict[Any, tuple[str, int]] = {}
        self.code: dict[Any, tuple[str, int]] = {}
        self.operands: list[fx.Node] = []
        self.nodes: dict[fx.Node, tuple[str, int]] = {}

    def compiled(self, value: Value) -> tuple[str, int]:
        """Where a value is: among what is read, numbers or results of instructions."""
        kind = value[0]
        if kind == "number":
            return self.numbers.setdefault(value[1], ("number", len(self.numbers)))
        if kind == "part":
            return self._read(value, lambda: self._part(*value[1:]))
        if kind == "node":
            if value[1] not in self.nodes:
                self.nodes[value[1]] = self._of_node(value[1])
            return self.nodes[value[1]]
        key = (kind, *map(self.compiled, value[1:]))
        return self.code.setdefault(key, ("code", len(self.code)))

    def _of_node(self, node: fx.Node) -> tuple[str, int]:
        of, kept = self.writer.of, self.writer.kept
        if node in of.values:
            value = of.values[node]
            if not isinstance(value, Parts) and (
                of.unit[node] is self.unit or (node not in kept and of.is_made_again(node, self.unit))
            ):
                return self.compiled(value)
            if node not in kept and (negative := of.negative(node, kept, self.unit)) is not None:
                return self.compiled(made(Op.NEG, ("node", negative)))
        return self._read(node, lambda: self._whole(node))

    def _read(self, key: Any, operand: Any) -> tuple[str, int]:
        if key not in self.reads:
            self.reads[key] = ("read", len(self.reads))
            self.operands.append(operand())
        return self.reads[key]

    def _whole(self, node: fx.Node) -> fx.Node:
        assert self.unit.domain is not None
        shape, made = self.unit.domain[0], self.writer.made[node]
        if tuple(example(node).shape) == shape:
            return made
        return self.writer.graph.call_function(aten.expand.default, (made, list(shape)))

    def _part(self, image: fx.Node, window: Window) -> fx.Node:
        if image in self.writer.place:
            return self.writer._lent(window.of(self.writer.place[image]))
        part = self.writer.made[image]
        for d, (size, place) in enumerate(zip(window.size, window.place, strict=True)):
            end = example(image).shape[2 + d]
            part = self.writer.graph.call_function(aten.slice.Tensor, (part, 2 + d, place, end, size))
        return part

    def arguments(self, results: list[tuple[str, int]]) -> tuple[Any, ...]:
        """Of `elementwise_`, behind what is written."""
        first = {"read": 0, "number": len(self.reads), "code": len(self.reads) + len(self.numbers)}

        def at(value: tuple[str, int]) -> int:
            return first[value[0]] + value[1]

        instructions: list[int] = []
        for operation, *values in self.code:
            instructions += [int(operation), *map(at, values), *[0] * (3 - len(values))]
        numbers = [self.writer.numbers[x] if isinstance(x, str) else x for x in self.numbers]
        return self.operands, instructions, [at(r) for r in results], numbers
