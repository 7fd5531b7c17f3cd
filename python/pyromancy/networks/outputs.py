"""Kinds of last nodes, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..methods.base import check_number
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


#: The last nodes that `mlp` and `from_sequential` take by name, as functions of their width.
OUTPUTS: dict[str, Callable[..., PredictiveNode | TargetNode]] = {
    "gaussian": StandardGaussianNode,
    "laplace": _unit_laplace,
    "categorical": CategoricalNode,
    "bernoulli": BernoulliNode,
    "poisson": PoissonNode,
}


def output_of(kind: str, variance: float) -> tuple[Callable[..., PredictiveNode | TargetNode], float]:
    """What makes the last node of a shape, and the temperature that is to divide its energy by `variance`."""
    known("output", kind, OUTPUTS)
    check_number("variance", variance, open_=True)
    if kind != "gaussian" or variance == 1:
        return OUTPUTS[kind], float(variance)

    def constant(*shape: int | None) -> IsotropicGaussianNode:
        node = IsotropicGaussianNode(*shape, variance=variance)
        node.logvar.requires_grad_(False)
        return node

    return constant, 1.0


def known(name: str, value: object, among: Iterable[str], more: str = "") -> None:
    """Raise ValueError where an argument is none of the names."""
    if not (isinstance(value, str) and value in among):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, among))}{more}, got {value!r}")
