"""Nodes of every kind, by class name."""

from pyromancy import nodes

GAUSSIAN = {
    "standard": nodes.StandardGaussianNode,
    "isotropic": nodes.IsotropicGaussianNode,
    "factorized": nodes.FactorizedGaussianNode,
    "multivariate": nodes.MultivariateGaussianNode,
}
LEARNED = {k: v for k, v in GAUSSIAN.items() if k != "standard"}
STATEFUL = {
    **GAUSSIAN,
    "laplace": nodes.LaplaceNode,
    "student": nodes.StudentNode,
    "float": nodes.FloatNode,
    "fixed": nodes.FixedNode,
}
EVERY = {**STATEFUL, "bias": nodes.BiasNode}
