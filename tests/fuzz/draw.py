"""Random cases, as strategies of hypothesis, which shrinks what fails."""

from hypothesis import strategies as st

from .cases import (
    ACTIVATIONS,
    ACTS,
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

WIDTHS = (2, 1, 3, 5, 8, 9, 16, 17, 33)
SIZES = (2, 1, 3, 5, 7, 8, 16, 17, 33, 65)
SEEDS = st.integers(0, 2**16)
ON_ERRORS = ("errors", "accelerated")

ACTIONS = st.one_of(
    st.builds(Run, st.sampled_from((1, 0, 2, 3, 5)), st.booleans(), st.booleans()),
    st.builds(Batch, st.sampled_from(SIZES), st.sampled_from(LAYOUTS), SEEDS),
    st.builds(Learn, st.booleans()),
    st.builds(Step, st.sampled_from(SIZES), SEEDS),
    st.builds(Epoch, st.sampled_from((3, 2, 5, 11)), st.sampled_from((2, 1, 3, 4)), SEEDS),
    st.builds(Do, st.sampled_from(ACTS), SEEDS),
)


@st.composite
def nodes(draw, count, sources, images, smooth, priors):
    """`count` nodes, of which one is free; `sources` tells those that may predict a node."""
    pick = lambda options: draw(st.sampled_from(options))  # noqa: E731
    same = draw(st.booleans())
    width, found, free = pick(WIDTHS[:5] if images else WIDTHS), [], False
    for t in range(count):
        clamped = pick((False, False, False, True))
        clamped, free = clamped and (free or t < count - 1), free or not clamped
        laws = FREE_LAWS + (TARGET_LAWS if clamped else ())
        edges = draw(
            st.lists(
                st.builds(
                    Edge, st.sampled_from(sources(t)), st.sampled_from(KINDS), st.sampled_from(ACTIVATIONS),
                    st.sampled_from((1.0, 1.0, 0.5, -0.7)),
                ),
                min_size=1, max_size=3,
            )
        )  # fmt: skip
        law = pick(tuple(w for w in laws if w != "laplace") if smooth else laws)
        after = pick(("identity", "identity", "identity", *ACTIVATIONS))
        prior = pick(("none", "none", "none", "square", "tails")) if priors else "none"
        size = width if same else pick(WIDTHS[:5] if images else WIDTHS)
        found.append(Node(size, law, tuple(edges), after, clamped, prior, pick((1.0, 1.0, 0.5, 2.0))))
    return tuple(found)


@st.composite
def cases(draw, most_actions):
    """Networks with a short history, or histories of up to so many actions."""
    pick = lambda options: draw(st.sampled_from(options))  # noqa: E731
    method = pick(("descent", "descent", "nesterov", *METHODS))
    images = pick((False, False, False, False, False, True))
    errors = method in ON_ERRORS
    sweep = draw(st.booleans())
    circles = not errors and not sweep and method != "fixed" and pick((False, False, True))
    count = draw(st.integers(1, 4))
    sources = (lambda t: tuple(range(-1, count))) if circles else lambda t: tuple(range(-1, t))
    # errors that a sweep leaves are 0 but for rounding, which has signs: what Laplace nodes go by
    found = draw(nodes(count, sources, images, smooth=errors or sweep or method == "lbfgs", priors=not errors))
    if most_actions <= 4:
        run = draw(st.builds(Run, st.sampled_from((2, 1, 3, 5)), st.booleans(), st.booleans()))
        batch = draw(st.builds(Batch, st.sampled_from(SIZES), st.sampled_from(LAYOUTS), SEEDS))
        actions = (batch, run, *pick(((Learn(),), (Step(5, 1),), (Epoch(5, 2, 1),), ())))
    else:
        actions = tuple(draw(st.lists(ACTIONS, min_size=4, max_size=most_actions)))
    return Case(
        found, actions, pick(WIDTHS), images, float32=pick((False, False, True)), method=method,
        lr=pick((0.05, 0.02)), momentum=pick((0.5, 0.9)) if method == "nesterov" else pick((0.0, 0.5)),
        optimizer=pick(OPTIMIZERS), incremental=pick((False, False, True, "joint")), sweep=sweep, seed=draw(SEEDS),
    )  # fmt: skip
