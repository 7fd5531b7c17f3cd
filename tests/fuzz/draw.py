"""Random cases: a seed and a number tell which, whatever was drawn before."""

import dataclasses
import random
from collections.abc import Iterator

from .cases import (
    ACTIVATIONS,
    ACTS,
    CHAIN_KINDS,
    FREE_LAWS,
    KINDS,
    LAYOUTS,
    METHODS,
    OPTIMIZERS,
    TARGET_LAWS,
    Batch,
    Case,
    Do,
    Edge,
    Epoch,
    Learn,
    Node,
    Run,
    Step,
)

WIDTHS = (1, 2, 3, 5, 8, 9, 16, 17, 33)
SIZES = (1, 2, 3, 5, 7, 8, 16, 17, 33, 65)
MOST = 14  # actions of a history
SMOOTH = ("errors", "accelerated", "lbfgs")  # methods of errors that rounding may leave: a Laplace node goes by signs


def drawn(seed: int, number: int, history: bool) -> Case:
    """A network, and a few actions or a long history of it."""
    r = random.Random(f"{seed} {number} {history}")
    method = r.choice(("descent", "descent", "nesterov", *METHODS))
    images, sweep = r.random() < 0.15, r.random() < 0.5
    float32 = r.random() < 0.35
    medium = float32 and r.random() < 0.2
    some = sweep and r.random() < 0.4  # of the edges to a node are those that it starts by
    circles = (some or not sweep) and method not in ("errors", "accelerated", "fixed") and r.random() < 0.3
    priors = method not in SMOOTH and r.random() < 0.3
    smooth = some or medium or method in SMOOTH or (sweep and method == "accelerated-states")
    found = _nodes(r, images, circles, sweep, some, smooth, priors)
    if history:
        actions = tuple(_action(r) for _ in range(r.randint(4, MOST)))
    else:
        batch = Batch(r.choice(SIZES), r.choice(LAYOUTS), _seed(r))
        run = Run(r.choice((1, 2, 3, 5)), r.random() < 0.5, r.random() < 0.5)
        last = r.choice((Learn(), Step(r.choice(SIZES), _seed(r)), Epoch(5, 2, _seed(r)), None))
        actions = (batch, run) if last is None else (batch, run, last)
    return Case(
        found, actions, r.choice(WIDTHS), images, float32, medium, method, r.choice((0.05, 0.02)),
        r.choice((0.5, 0.9)) if method == "nesterov" else r.choice((0.0, 0.5)),
        r.choice(OPTIMIZERS), r.choice((False, False, True, "joint")), sweep, _seed(r),
    )  # fmt: skip


def _seed(r: random.Random) -> int:
    return r.randrange(2**16)


def _nodes(
    r: random.Random, images: bool, circles: bool, sweep: bool, some: bool, smooth: bool, priors: bool
) -> tuple[Node, ...]:
    """1 to 4 nodes, of which one at least is free."""
    count, same, widths = r.randint(1, 4), r.random() < 0.5, WIDTHS[:5] if images else WIDTHS
    kinds = r.choice((("linear", "bias"), CHAIN_KINDS, CHAIN_KINDS, KINDS))
    activations = ACTIVATIONS[: -1 if r.random() < 0.5 else None]  # without the last most networks are chains
    if sweep and (images or "softmax" in kinds or "square" in activations):
        smooth = True  # where autograd's products, or others of PyTorch, are not those of the sweep to the last bit
    # whose gradient is autograd's
    kinds = [k for k in kinds if smooth or not sweep or k != "constant"]
    width, free, found = r.choice(widths), False, []
    for t in range(count):
        clamped = r.random() < (0.6 if t == count - 1 else 0.2) and (free or t < count - 1)
        free = free or not clamped
        laws = [w for w in FREE_LAWS + TARGET_LAWS * clamped if not (smooth and w == "laplace")]
        sources = (
            r.randrange(-1, count) if circles else r.choice((t - 1, t - 1, r.randrange(-1, t)))
            for _ in range(r.choice((1, 1, 1, 2, 3)))
        )
        edges = tuple(
            Edge(
                source, r.choice(kinds), r.choice(activations), r.choice((1.0, 1.0, 0.5, -0.7)),
                not some or (source < t and r.random() < 0.8),
            )
            for source in sources
        )  # fmt: skip
        found.append(
            Node(
                width if same else r.choice(widths), r.choice(laws), edges,
                r.choice(("identity", "identity", r.choice(activations))), clamped,
                r.choice(("none", "none", "square", "tails")) if priors else "none", r.choice((1.0, 1.0, 0.5, 2.0)),
            )
        )  # fmt: skip
    return tuple(found)


def _action(r: random.Random):
    match r.randrange(6):
        case 0:
            return Run(r.choice((0, 1, 2, 3, 5)), r.random() < 0.5, r.random() < 0.5)
        case 1:
            return Batch(r.choice(SIZES), r.choice(LAYOUTS), _seed(r))
        case 2:
            return Learn(r.random() < 0.7)
        case 3:
            return Step(r.choice(SIZES), _seed(r), r.choice(LAYOUTS))
        case 4:
            return Epoch(r.choice((2, 3, 5, 11)), r.choice((1, 2, 3, 4)), _seed(r))
    return Do(r.choice(ACTS), _seed(r))


def features(case: Case) -> Iterator[str]:
    """What is in a case, by the words of `cases`, once each."""
    found = {f"method {case.method}", f"optimizer {case.optimizer}", f"incremental {case.incremental}"}
    found |= {name for name in ("images", "float32", "medium", "sweep") if getattr(case, name)}
    for t, node in enumerate(case.nodes):
        found |= {f"law {node.law}", f"prior {node.prior}", f"after {node.after}"}
        found |= {"clamped inside"} if node.clamped and t < len(case.nodes) - 1 else set()
        parents = {e.source for e in node.edges}
        found |= {"two parents"} if len(parents) > 1 else set()
        found |= {"several edges of one parent"} if len(parents) < len(node.edges) else set()
        found |= {"starts by some edges"} if case.sweep and len({e.sweeps for e in node.edges}) > 1 else set()
        found |= {"cycle"} if any(e.source >= t for e in node.edges) else set()
        found |= {"leap over nodes"} if any(-1 < e.source < t - 1 for e in node.edges) else set()
        for edge in node.edges:
            found |= {f"edge {edge.kind}", f"activation {edge.activation}"}
    for action in case.actions:
        found.add(f"action {type(action).__name__}")
        told = [f.name for f in dataclasses.fields(action) if f.name in ("layout", "what")]
        found |= {f"{name} {getattr(action, name)}" for name in told}
        found |= {f"batch of {action.size}"} if isinstance(action, Batch) else set()
        found |= {name for name in ("record", "alone") if getattr(action, name, False)}
    return iter(sorted(found))
