"""Nodes of predictive coding networks."""

from .base import Node, PredictiveNode, VariationalNode
from .categorical import CategoricalNode
from .gaussian import (
    AbstractGaussianNode,
    FactorizedGaussianNode,
    IsotropicGaussianNode,
    MultivariateGaussianNode,
    StandardGaussianNode,
)
from .laplace import LaplaceNode
from .special import BiasNode, FixedNode, FloatNode

__all__ = [
    "AbstractGaussianNode",
    "BiasNode",
    "CategoricalNode",
    "FactorizedGaussianNode",
    "FixedNode",
    "FloatNode",
    "IsotropicGaussianNode",
    "LaplaceNode",
    "MultivariateGaussianNode",
    "Node",
    "PredictiveNode",
    "StandardGaussianNode",
    "VariationalNode",
]
