"""What a case is: a network, how it is inferred and learned, and what is done with it, as values that print as code."""

from dataclasses import dataclass, fields


class Code:
    """Prints as a call of itself that leaves out what is as usual."""

    def __repr__(self):
        given = [f for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in given)})"


@dataclass(frozen=True, repr=False)
class Edge(Code):
    """A summand of a prediction: ``scale * map(f(z))``. `source` is a node, or -1 for the input.

    Where batches begin at predictions, a node begins at what those make that sweep, from nodes before it.
    """

    source: int = -1
    kind: str = "linear"  # of KINDS
    activation: str = "identity"
    scale: float = 1.0
    sweeps: bool = True


@dataclass(frozen=True, repr=False)
class Node(Code):
    """A state, its law, and the edges that predict it."""

    width: int = 2
    law: str = "standard"
    edges: tuple[Edge, ...] = (Edge(),)
    after: str = "identity"
    clamped: bool = False
    prior: str = "none"
    weight: float = 1.0


@dataclass(frozen=True, repr=False)
class Batch(Code):
    """New data and states, in memory as `layout` says."""

    size: int = 2
    layout: str = "plain"
    seed: int = 0


@dataclass(frozen=True, repr=False)
class Run(Code):
    """E-steps; and the same of a batch that starts anew and of its last sample alone, where that is asked for."""

    steps: int = 1
    record: bool = False
    alone: bool = False


@dataclass(frozen=True, repr=False)
class Learn(Code):
    """`loop.backward`, and a step of the optimizer."""

    step: bool = True


@dataclass(frozen=True, repr=False)
class Step(Code):
    """A batch of `EM`, in memory as `layout` says."""

    size: int = 2
    seed: int = 0
    layout: str = "plain"


@dataclass(frozen=True, repr=False)
class Epoch(Code):
    """A pass of `EM` over `rows` samples, in their order."""

    rows: int = 5
    size: int = 2
    seed: int = 0


@dataclass(frozen=True, repr=False)
class Do(Code):
    """Something else, of ACTS; METHODS for "method"."""

    what: str = "threads"
    seed: int = 0


@dataclass(frozen=True, repr=False)
class Case(Code):
    """A network and its history."""

    nodes: tuple[Node, ...] = (Node(),)
    actions: tuple[Code, ...] = (Batch(), Run())
    input: int = 2
    images: bool = False  # states [n, 3, 3], and convolutions for Linears
    float32: bool = False
    medium: bool = False  # products of bfloat16 in float32, where the processor has them
    method: str = "descent"
    lr: float = 0.05
    momentum: float = 0.0
    optimizer: str = "sgd"
    incremental: bool | str = False
    sweep: bool = False  # whether batches begin at predictions
    seed: int = 0


OWN_LAWS = ("logcosh", "mixed")  # written by users
FREE_LAWS = ("standard", "isotropic", "factorized", "multivariate", "laplace", "student", *OWN_LAWS)
TARGET_LAWS = ("categorical", "bernoulli", "poisson")
CHAIN_KINDS = ("linear", "bias", "masked", "tied", "skip", "slice", "constant")
KINDS = (*CHAIN_KINDS, "transposed", "joined", "norm", "softmax", "gate")
ACTIVATIONS = (
    "identity", "relu", "tanh", "sigmoid", "silu", "gelu", "leaky", "softplus", "elu", "hardtanh", "relu6", "square",
)  # fmt: skip
LAYOUTS = ("plain", "transposed", "expanded", "sliced", "strided")
METHODS = (
    "descent", "nesterov", "errors", "adam", "heun", "accelerated", "accelerated-states", "rated", "lbfgs",
    "sequential", "langevin", "fixed",
)  # fmt: skip
OPTIMIZERS = ("sgd", "momentum", "decay", "adam", "adamw", "rmsprop", "adagrad")
ACTS = (
    "perturb", "replace", "freeze", "mode", "copy", "pickle", "load", "resume", "move", "threads", "rate", "method",
    "state",
)  # fmt: skip
