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
from .law import LawNode
from .special import BiasNode, FixedNode, FloatNode
from .student import StudentNode
from .target import BernoulliNode, PoissonNode, TargetNode

__all__ = [
    "AbstractGaussianNode",
    "BernoulliNode",
    "BiasNode",
    "CategoricalNode",
    "FactorizedGaussianNode",
    "FixedNode",
    "FloatNode",
    "IsotropicGaussianNode",
    "LaplaceNode",
    "LawNode",
    "MultivariateGaussianNode",
    "Node",
    "PoissonNode",
    "PredictiveNode",
    "StandardGaussianNode",
    "StudentNode",
    "TargetNode",
    "VariationalNode",
]
