"""Groups of operators that work element by element, each of which is one call.

It reads every operand once, and writes what others need of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx

from ..plan.elementwise import MOST_INSTRUCTIONS, MOST_OPERANDS, value_of
from ..plan.expression import Op
from .elements import Value, value_of_call
from .ends import Ends, value_of_end
from .forms import domain_of, example
from .operators import shares
from .partition import is_fused
from .parts import Parts, leaves_of, parts_read, value_in_parts

# what a group makes again rather than read, where it reads all that this is made of
_CHEAP = (Op.ADD, Op.SUB, Op.MUL, Op.NEG, Op.ABS, Op.MAX, Op.MIN, Op.SELECT, Op.GREATER, Op.AT_LEAST, value_of("relu"))


@dataclass(eq=False)
class Unit:
    """Calls that are made at once: a group of element-wise ones, or another."""

    nodes: list[fx.Node]
    domain: tuple[Any, ...] | None = None  # shape and dtype of a group
    before: int = 0  # bits of the units that come before
    bit: int = 0


class Groups:
    """Which calls of a graph are made at once.

    Args:
        ends: the graph, and what it ends in.

    Attributes:
        values: of calls that work element by element what they make.
        inputs: of calls what each reads, once it is fused.
        root: of calls and inputs in whose memory what they give lies.
        unit: of calls the group that makes it, or the call alone.
    """

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self.root: dict[fx.Node, fx.Node] = {}
        self.values: dict[fx.Node, Value | Parts] = {}
        self.inputs: dict[fx.Node, list[fx.Node]] = {}
        self.unit: dict[fx.Node, Unit] = {}
        self._units: list[Unit] = []
        self._added = 0
        self._readers: dict[fx.Node, list[fx.Node]] = {}  # of memory, by its root
        self._position: dict[fx.Node, int] = {}
        self._group()

    def _group(self) -> None:
        for node in self._ends.graph.nodes:
            self.root[node] = self._root(node)
            if node.op == "call_function" and (value := self._element(node)) is not None:
                self.values[node] = value
                self.root[node] = node  # the maxima of pooling are an item of a call that is not made
                self.inputs[node] = [*dict.fromkeys(leaves_of(value))]
            else:
                self.inputs[node] = node.all_input_nodes
        needed = set(self._ends.calls)
        for node in reversed(self._ends.graph.nodes):
            if node in needed:
                needed.update(self.inputs[node])
        calls = [n for n in self._ends.graph.nodes if n in needed and n.op != "placeholder"]
        for node in calls:
            for n in self.inputs[node]:
                if self.root[node] is not self.root[n]:
                    self._readers.setdefault(self.root[n], []).append(node)
        for i, node in enumerate(calls):
            self._position[node] = i
            if node in self.values:
                self._place(node)
            else:
                self._add(Unit([node]))

    def _root(self, node: fx.Node) -> fx.Node:
        """Whose memory a node's result lies in."""
        if node.op != "call_function" or not node.all_input_nodes:
            return node
        return self.root[node.all_input_nodes[0]] if shares(node.target) else node

    @staticmethod
    def _element(node: fx.Node) -> Value | Parts | None:
        if (value := value_in_parts(node)) is not None:
            return value
        if not is_fused(node) or any(
            not is_fused(n) or example(n).dtype != example(node).dtype for n in node.all_input_nodes
        ):
            return None
        return value_of_end(node) or value_of_call(node, lambda n: ("node", n))

    def _add(self, unit: Unit) -> None:
        unit.bit = 1 << self._added  # of no other, also where groups have become one
        self._added += 1
        self._units.append(unit)
        for node in unit.nodes:
            self.unit[node] = unit
        unit.before = self._needed(unit.nodes[0])

    def _needed(self, node: fx.Node) -> int:
        """The units before that of a node, without itself."""
        before = 0
        for n in self._ordered(node):
            if (unit := self.unit.get(n)) is not None:
                before |= unit.before | unit.bit
        return before

    def _place(self, node: fx.Node) -> None:
        """In a group that makes what it reads, together with others that do, or that reads the same."""
        value = self.values[node]
        domain = value.domain if isinstance(value, Parts) else domain_of(example(node))
        near = {self.unit[n] for n in self._ordered(node) if n in self.unit}
        mine = sorted((u for u in near if u.domain == domain), key=lambda u: -u.bit)
        before = self._needed(node)
        home: Unit | None = None
        for unit in mine:
            if home is None:
                others = [self.unit[n] for n in self._ordered(node) if n in self.unit]
                joins = all(u is unit or not (u.before & unit.bit) for u in others)
                if joins and self._fits([*unit.nodes, node]):
                    home = unit
                    home.nodes.append(node)
                    self.unit[node] = home
                    self._come_after(home, before & ~home.bit)
            else:
                self._merge(home, unit)
        if home is None:
            self._add(Unit([node], domain))

    def _ordered(self, node: fx.Node) -> list[fx.Node]:
        written = self._ends.writes.get(node)
        others = self._readers.get(written, ()) if written is not None else ()
        return [*self.inputs[node], *(n for n in others if n is not node)]

    def _come_after(self, unit: Unit, before: int) -> None:
        unit.before |= before
        for other in self._units:
            if other.before & unit.bit:
                other.before |= unit.before

    def _merge(self, home: Unit, other: Unit) -> None:
        """Two groups become one, unless something in between needs one and is needed by the other."""
        if not self._fits(home.nodes + other.nodes):
            return
        for u in self._units:
            if u is home or u is other:
                continue
            if (u.before & other.bit and home.before & u.bit) or (u.before & home.bit and other.before & u.bit):
                return
        for node in other.nodes:
            self.unit[node] = home
        home.nodes = other.nodes + home.nodes
        self._units.remove(other)
        for u in self._units:
            if u.before & other.bit:
                u.before = (u.before & ~other.bit) | home.bit
        self._come_after(home, (other.before | home.before) & ~home.bit & ~other.bit)
        home.before &= ~home.bit

    def _fits(self, nodes: Iterable[fx.Node]) -> bool:
        sizes = [_size(self.values[n]) for n in nodes]
        return sum(n for n, _ in sizes) <= MOST_INSTRUCTIONS and sum(n + 1 for _, n in sizes) <= MOST_OPERANDS

    def order(self) -> list[Unit]:
        """The units, each after those that it needs."""
        after: dict[Unit, set[Unit]] = {}
        for unit in self._units:
            before = {self.unit[n] for node in unit.nodes for n in self._ordered(node) if n in self.unit}
            after[unit] = before - {unit}
        ordered: list[Unit] = []
        for unit in sorted(self._units, key=lambda u: max(self._position[n] for n in u.nodes)):
            self._append(unit, after, ordered)
        return ordered

    def _append(self, unit: Unit, after: dict[Unit, set[Unit]], ordered: list[Unit]) -> None:
        if unit in ordered:
            return
        for u in sorted(after[unit], key=lambda u: max(self._position[n] for n in u.nodes)):
            self._append(u, after, ordered)
        ordered.append(unit)

    def is_made_again(self, node: fx.Node, unit: Unit) -> bool:
        """Whether a group makes a value of another again, of what it reads anyway."""
        value = self.values[node]
        if isinstance(value, Parts) or value[0] not in _CHEAP or unit.domain != self.unit[node].domain:
            return False
        read = {n for of in unit.nodes for n in self.inputs[of] if n not in self.values or self.unit[n] is unit}
        return all(v[0] == "number" or (v[0] == "node" and v[1] in read) for v in value[1:])

    def kept(self) -> set[fx.Node]:
        """The element-wise values that lie in memory."""
        kept: set[fx.Node] = set()
        crossing: list[tuple[fx.Node, Unit]] = []
        for unit in self._units:
            for node in unit.nodes:
                for n in self.inputs[node]:
                    if n not in self.values or n in self._ends.writes:
                        continue
                    elsewhere = self.unit[n] is not unit
                    if (
                        unit.domain is None
                        or self._is_part(node, n)
                        or (elsewhere and unit.domain != self.unit[n].domain)
                        or isinstance(self.values[n], Parts)
                    ):
                        kept.add(n)
                    elif elsewhere and not self.is_made_again(n, unit):
                        crossing.append((n, unit))
        for n, unit in crossing:
            if self.negative(n, kept, unit) is None:
                kept.add(n)
        return kept

    def _is_part(self, node: fx.Node, image: fx.Node) -> bool:
        """Whether a call reads a value in parts."""
        value = self.values[node]
        values = value.values.values() if isinstance(value, Parts) else (value,)
        return any(part[1] is image for v in values for part in parts_read(v))

    def negative(self, node: fx.Node, kept: set[fx.Node], reader: Unit) -> fx.Node | None:
        """Another value, in memory before a group is made, of which it is the negative."""
        found = (
            other
            for other in kept
            if (self.values[other] == (Op.NEG, ("node", node)) or self.values[node] == (Op.NEG, ("node", other)))
            and self.unit[other].bit & reader.before
        )
        return min(found, key=self._position.__getitem__, default=None)


def _size(value: Value | Parts) -> tuple[int, int]:
    """How many instructions a value takes at most, and how many operands and numbers."""
    if isinstance(value, Parts):
        sizes = [_size(v) for v in value.values.values()]
        return sum(n for n, _ in sizes), len(sizes) + max(n for _, n in sizes)
    if not isinstance(value[0], int):
        return 0, 1
    sizes = [_size(v) for v in value[1:]]
    return 1 + sum(n for n, _ in sizes), sum(n for _, n in sizes)
