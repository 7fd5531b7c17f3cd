"""Kinds of last nodes, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from ..nodes import (
    BernoulliNode,
    CategoricalNode,
    IsotropicGaussianNode,
    LaplaceNode,
    PoissonNode,
    PredictiveNode,
    StandardGaussianNode,
    TargetNode,
)

__all__ = ["OUTPUTS"]


def _unit_laplace(*shape: int | None) -> LaplaceNode:
    """A Laplace node of scale 1, which does not learn."""
    node = LaplaceNode(*shape)
    node.logscale.requires_grad_(False)
    return node


OUTPUTS: dict[str, Callable[..., PredictiveNode | TargetNode]] = {
    "gaussian": StandardGaussianNode,
    "laplace": _unit_laplace,
    "categorical": CategoricalNode,
    "bernoulli": BernoulliNode,
    "poisson": PoissonNode,
}


def output_of(kind: str, variance: float) -> Callable[..., PredictiveNode | TargetNode]:
    """What makes the last node of a shape."""
    known("output", kind, OUTPUTS)
    if isinstance(variance, bool) or not isinstance(variance, int | float):
        raise TypeError(f"variance must be a number, got {variance!r}")
    if not (math.isfinite(variance) and variance > 0):
        raise ValueError(f"variance must be finite and above 0, got {variance}")
    if variance == 1:
        return OUTPUTS[kind]
    if kind != "gaussian":
        raise ValueError(f"variance must be 1 with output={kind!r}, which has none, got {variance}")

    def constant(*shape: int | None) -> IsotropicGaussianNode:
        node = IsotropicGaussianNode(*shape, variance=variance)
        node.logvar.requires_grad_(False)
        return node

    return constant


def known(name: str, value: object, among: Iterable[str], more: str = "") -> None:
    """Raise ValueError where an argument is none of the names."""
    if not (isinstance(value, str) and value in among):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, among))}{more}, got {value!r}")
