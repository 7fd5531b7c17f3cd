"""Makes a case that fails small."""

import dataclasses
import time
from collections.abc import Callable, Iterator

from .cases import TARGET_LAWS, Case, Code


def shrunk(case: Case, fails: Callable[[Case], bool], seconds: float) -> Case:
    """The smallest case found that fails: with parts left out, or as usual, one at a time, for so long."""
    end, smaller = time.monotonic() + seconds, True
    while smaller:
        smaller = False
        for candidate in _smaller(case):
            if time.monotonic() > end:
                return case
            if fails(candidate):
                case, smaller = candidate, True
                break
    return case


def _smaller(case: Case) -> Iterator[Case]:
    """The case with less in it, most first."""
    for t in range(len(case.nodes)):
        yield from _without_node(case, t)
    for i in range(len(case.actions)):
        yield dataclasses.replace(case, actions=case.actions[:i] + case.actions[i + 1 :])
    for t, node in enumerate(case.nodes):
        for i in range(len(node.edges) if len(node.edges) > 1 else 0):
            yield _with_node(case, t, edges=node.edges[:i] + node.edges[i + 1 :])
    yield from _as_usual(case)
    for i, action in enumerate(case.actions):
        for less in _as_usual(action):
            yield dataclasses.replace(case, actions=(*case.actions[:i], less, *case.actions[i + 1 :]))
    for t, node in enumerate(case.nodes):
        for less in _as_usual(node):
            if less.clamped or less.law not in TARGET_LAWS:
                yield _with_node(case, t, **vars(less))
        for i, edge in enumerate(node.edges):
            for less in _as_usual(edge):
                yield _with_node(case, t, edges=(*node.edges[:i], less, *node.edges[i + 1 :]))


def _as_usual(of: Code) -> Iterator[Code]:
    """With one field as it is by default; but what a case consists of."""
    for f in dataclasses.fields(of):
        if f.name not in ("nodes", "actions", "edges", "source") and getattr(of, f.name) != f.default:
            yield dataclasses.replace(of, **{f.name: f.default})


def _with_node(case: Case, t: int, **changes) -> Case:
    node = dataclasses.replace(case.nodes[t], **changes)
    return dataclasses.replace(case, nodes=(*case.nodes[:t], node, *case.nodes[t + 1 :]))


def _without_node(case: Case, t: int) -> Iterator[Case]:
    """What it predicted, the input predicts."""

    def moved(source: int) -> int:
        return -1 if source == t else source - (source > t)

    nodes = tuple(
        dataclasses.replace(n, edges=tuple(dataclasses.replace(e, source=moved(e.source)) for e in n.edges))
        for i, n in enumerate(case.nodes)
        if i != t
    )
    if any(not n.clamped for n in nodes):
        yield dataclasses.replace(case, nodes=nodes)
