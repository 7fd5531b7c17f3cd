"""Networks whose nodes stand in a row: multilayer perceptrons, and any `torch.nn.Sequential` cut into edges."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .nodes import (
    BernoulliNode,
    CategoricalNode,
    FixedNode,
    IsotropicGaussianNode,
    LaplaceNode,
    PoissonNode,
    PredictiveNode,
    StandardGaussianNode,
    TargetNode,
)
from .nodes.base import StateNode
from .registration import get_estep_params, get_mstep_params

__all__ = ["ACTIVATIONS", "OUTPUTS", "PCN", "ScaledLinear", "Skip", "from_sequential", "mlp"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
}


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
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, *_CONVOLUTIONS)  # after which there is a node
# whose modules, but for these, give what is of the shape of what they take
_KEEPING = tuple(f"torch.nn.modules.{name}" for name in ("activation", "batchnorm", "dropout", "normalization"))
_CHANGING = (nn.GLU, nn.MultiheadAttention)
_Size = tuple[int | None, ...]


class PCN(nn.Module):
    """A predictive coding network whose nodes stand in a row, each predicting the next.

    The prediction of node l is ``mu_l = edges[l - 1](z_{l-1})``, and the energy the sum of the nodes' energies; the
    first node has none. Training clamps the first node to an input and the last to a target.

    Args:
        nodes: from the input to the output; all but the first have an energy, and the last may be one for clamped
            targets alone, as a `BernoulliNode`.
        edges: one fewer, which predict a node's state from that of the node before.
        entry: applied to an input before it is the first node's state; None takes it as it is.

    Attributes:
        nodes: `torch.nn.ModuleList`.
        edges: `torch.nn.ModuleList`.
        entry: a module.

    Raises:
        TypeError: a node is no node with a state, or one after the first has no energy.
        ValueError: there are fewer than two nodes, or not one edge fewer than nodes.
    """

    def __init__(self, nodes: Iterable[StateNode], edges: Iterable[nn.Module], entry: nn.Module | None = None) -> None:
        super().__init__()
        nodes, edges = list(nodes), list(edges)
        for i, node in enumerate(nodes):
            kinds = (StateNode,) if not i else (PredictiveNode,) if i < len(nodes) - 1 else (PredictiveNode, TargetNode)
            if not isinstance(node, kinds):
                expected = " or a ".join(kind.__name__ for kind in kinds)
                raise TypeError(f"nodes[{i}] must be a {expected}, got {type(node).__name__}")
        if len(nodes) < 2 or len(edges) != len(nodes) - 1:
            raise ValueError(f"nodes must be at least 2, and edges one fewer, got {len(nodes)} and {len(edges)}")
        self.entry = nn.Sequential() if entry is None else entry
        self.nodes = nn.ModuleList(nodes)
        self.edges = nn.ModuleList(edges)

    def start(self, x: Tensor, y: Tensor | None = None) -> None:
        """Set all states for a batch: clamp the ends, and the others start at their predictions, by a forward sweep.

        Args:
            x: the input, ``[B, *first node]`` after `entry`.
            y: the target, ``[B, *last node]``, so one-hot and not an index for a class, unless the last node is a
                `CategoricalNode`; None starts the last node at its prediction, too, and one that is predicted by
                logits or logarithms of rates at the probabilities or rates.

        Raises:
            TypeError: `x` or `y` is not a tensor.
            ValueError: one does not fit its node, or they differ in length.
        """
        nodes: list[Any] = list(self.nodes)
        with torch.no_grad():
            z = self._entered(x)
            if y is not None:
                if isinstance(y, Tensor) and y.dim() == 1 and nodes[-1].shape and not self._classifies:
                    # no f-strings here: they call what they do not name, and then this could not be watched
                    raise ValueError(
                        "y must have a row per sample, which torch.nn.functional.one_hot(y, classes).float() makes of "
                        "class indices, got shape " + str(tuple(y.shape))
                    )
                nodes[-1]._check_fits("y", y)
                if len(y) != len(z):
                    raise ValueError("y must have as many rows as x, " + str(len(z)) + ", got " + str(len(y)))
            z = nodes[0].init(z)
            for node, edge in zip(nodes[1:-1], self.edges, strict=False):
                z = node.init(edge(z))
            if y is None:
                y = self._mean(self.edges[-1](z))
            nodes[-1].init(y)

    @property
    def _classifies(self) -> bool:
        return isinstance(self.nodes[-1], CategoricalNode)

    def _mean(self, pred: Tensor) -> Tensor:
        """The output's state that a prediction expects."""
        node = self.nodes[-1]
        if isinstance(node, CategoricalNode):
            return pred.softmax(1)
        if isinstance(node, BernoulliNode):
            return pred.sigmoid()
        return pred.exp() if isinstance(node, PoissonNode) else pred

    def predict(self, x: Tensor) -> Tensor:
        """The output's prediction by a forward sweep, ``[B, *last node]``; no state is read or set.

        Of a categorical output these are logits: ``predict(x).argmax(1)`` are classes, ``softmax(1)`` probabilities; so
        they are of a Bernoulli output, and of a Poisson one logarithms of rates.

        It has gradients as any module's result has: put it under `torch.no_grad` where none are needed.

        Raises:
            TypeError: `x` is not a tensor.
            ValueError: `x` does not fit the first node.
        """
        z = self._entered(x)
        for edge in self.edges:
            z = edge(z)
        return z

    def forward(self, x: Tensor) -> Tensor:
        """`predict`."""
        return self.predict(x)

    def node_energies(self) -> Tensor:
        """Energy of every node but the first, for every sample, ``[nodes - 1, B]``."""
        nodes: list[Any] = list(self.nodes)
        joined = zip(nodes[:-1], self.edges, nodes[1:], strict=True)
        return torch.stack([node.energy(edge(below.value)) for below, edge, node in joined])

    def energy(self) -> Tensor:
        """Free energy per sample, ``[B]``."""
        return self.node_energies().sum(0)

    def e_params(self) -> list[nn.Parameter]:
        """The free states, for the E-step: all but the last node's, and the first's where that is a `FixedNode`."""
        return list(get_estep_params(self, exclude=[self.nodes[-1]]))

    def m_params(self) -> list[nn.Parameter]:
        """What is learned, for the M-step."""
        return list(get_mstep_params(self))

    def sequential(self) -> nn.Sequential:
        """The same network for backpropagation: its layers in a row, which share their parameters with this one."""
        return nn.Sequential(*(m for m in _flat([self.entry, *self.edges]) if not isinstance(m, _Copy)))

    def _entered(self, x: Tensor) -> Tensor:
        """An input as the first node takes it."""
        node: Any = self.nodes[0]
        node._check_is_tensor("x", x)
        z: Tensor = self.entry(x)
        node._check_fits("x", z)
        return z


class ScaledLinear(nn.Module):
    """``scale * W x``, whose weights start out as N(0, 1): the scale and not the weights knows the fan-in.

    Args:
        in_features: width of x.
        out_features: width of the result.
        scale: a constant.

    Attributes:
        weight: W, ``[out_features, in_features]``.
        scale: a float.
    """

    def __init__(self, in_features: int, out_features: int, scale: float) -> None:
        super().__init__()
        self.in_features, self.out_features, self.scale = in_features, out_features, scale
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``scale * W x`` of x, ``[..., in_features]``."""
        return self.scale * F.linear(x, self.weight)

    def extra_repr(self) -> str:
        """What the module was made with."""
        return f"in_features={self.in_features}, out_features={self.out_features}, scale={self.scale:.4g}"


class Skip(nn.Module):
    """``x + branch(x)``.

    Args:
        branch: a module that gives what is of the shape of what it takes.
    """

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """``x + branch(x)``, of the shape of x."""
        return x + self.branch(x)


class _Copy(nn.Module):
    """Its input in other memory, for layers that work in place: they must leave states and data as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def _output(kind: str, variance: float) -> Callable[..., PredictiveNode | TargetNode]:
    """What makes the last node of a shape."""
    _known("output", kind, OUTPUTS)
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


def mlp(
    sizes: Sequence[int],
    activation: str = "relu",
    output: str = "gaussian",
    scaling: str | None = None,
    skips: bool = False,
    bias: bool | None = None,
    variance: float = 1.0,
) -> PCN:
    """A multilayer perceptron as a predictive coding network: activation first, and none before the first edge.

    The predictions are ``mu_1 = W_1 z_0 + b_1`` and ``mu_l = W_l f(z_{l-1}) + b_l``, and with skips ``mu_l = z_{l-1} +
    W_l f(z_{l-1}) + b_l`` from one hidden node to the next. Every node but the input is Gaussian with unit variance, or
    the last with ``output="laplace"`` a `LaplaceNode` of scale 1, or a `CategoricalNode`, `BernoulliNode` or
    `PoissonNode` with such an output, and weights and biases start as those of `torch.nn.Linear`.

    ``scaling="mupc"``, with skips, keeps hidden states of order one at any width and depth, so that rates carry over
    from small networks to deep ones (arXiv:2505.13124): weights are drawn from N(0, 1), there are no biases, and
    ``W_l`` is multiplied by a constant. With L edges and fan-in N that is ``1/sqrt(N)`` for the first, ``1/N`` for the
    last, and between hidden nodes ``1/sqrt(N L)`` with skips and ``1/sqrt(N)`` without.

    Args:
        sizes: widths of the nodes from the input to the output, at least 2; with `scaling` at least 3. Of 2 there is
            no free state, so that `EM` and `InferenceLoop` refuse it: learn from its energy by backpropagation.
        activation: f, by name: one of `ACTIVATIONS`.
        output: kind of the last node, by name: one of `OUTPUTS`.
        scaling: None, or "mupc".
        skips: whether hidden nodes, which must be of one width then, add their state to their prediction of the next.
        bias: whether edges have biases; None means yes, unless `scaling` is "mupc", which has none.
        variance: of a Gaussian output, which does not learn it. The larger it is, the less the states give way, and the
            nearer what weights learn is to backpropagation: docs/methods.md says which to take for deep networks.

    Returns:
        The network.

    Raises:
        TypeError: `sizes` is no sequence of ints.
        ValueError: an argument is out of range; the message says which.
    """
    if not isinstance(sizes, Iterable):
        raise TypeError(f"sizes must be a sequence of ints, got {type(sizes).__name__}")
    sizes = list(sizes)
    for n in sizes:
        if not isinstance(n, int) or isinstance(n, bool):
            raise TypeError(f"every width in sizes must be an int, got {n!r} in {sizes}")
        if n <= 0:
            raise ValueError(f"every width in sizes must be positive, got {n} in {sizes}")
    least = 2 if scaling is None else 3
    _known("activation", activation, ACTIVATIONS)
    make_output = _output(output, variance)
    if scaling is not None:
        _known("scaling", scaling, ("mupc",), " or None")
        if bias:
            raise ValueError("bias must be False or None with scaling='mupc', which has no biases, got True")
    if len(sizes) < least:
        raise ValueError(f"sizes must hold at least {least} widths{', with scaling' * (least > 2)}, got {sizes}")
    if skips and len({*sizes[1:-1]}) > 1:
        raise ValueError(f"sizes of hidden nodes must be equal with skips, got {sizes[1:-1]}")

    count = len(sizes) - 1
    edges: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        hidden = 0 < i < count - 1
        layer: nn.Module
        if scaling is None:
            layer = nn.Linear(fan_in, fan_out, bias=bias is not False)
        else:
            square = fan_in**2 if i == count - 1 else fan_in * count if hidden and skips else fan_in
            layer = ScaledLinear(fan_in, fan_out, 1 / math.sqrt(square))
        edge = nn.Sequential(ACTIVATIONS[activation](), layer) if i else layer
        edges.append(Skip(edge) if hidden and skips else edge)
    hidden_nodes = (StandardGaussianNode(n) for n in sizes[1:-1])
    return PCN([FixedNode(sizes[0]), *hidden_nodes, make_output(sizes[-1])], edges)


def from_sequential(
    module: nn.Sequential, cut: Iterable[int] | None = None, output: str = "gaussian", variance: float = 1.0
) -> PCN:
    """A network of layers for backpropagation as a predictive coding network, on the very same parameters.

    ``predict(x)`` is ``module(x)`` to the last bit. Nothing is copied: what either of the two learns or loads, the
    other has.

    Nodes are Gaussian with unit variance, or the last as `mlp` has it. Without `cut` there is one after every Linear
    and every convolution, before the activation that follows, as predictive coding has it: ``mu = W f(z) + b``. What
    stands before the first layer with parameters, as a Flatten may, is applied to the input, which the first node holds
    as it is after that. What stands after the last Linear or convolution belongs to the last edge.

    A Dropout draws anew at every evaluation, and a BatchNorm in training mode makes samples depend on one another:
    train such networks in evaluation mode.

    Args:
        module: Linear or Conv first, after what has no parameters; Sequentials in it count as the layers they hold.
        cut: where nodes are put between the ends, as indices of layers, in order: ``cut=[2, 4]`` makes three edges, of
            layers 0 and 1, 2 and 3, and the rest.
        output: kind of the last node, by name: one of `OUTPUTS`.
        variance: of a Gaussian output, as in `mlp`.

    Returns:
        The network.

    Raises:
        TypeError: `module` is no Sequential, or `cut` holds something else than ints.
        ValueError: `module` has nothing to learn, or does not tell its input's shape; `cut` is out of range or out of
            order; or there is no such output.
    """
    if not isinstance(module, nn.Sequential):
        raise TypeError(f"module must be a torch.nn.Sequential, got {type(module).__name__}")
    make_output = _output(output, variance)
    layers = list(_flat([module]))
    first = next((i for i, m in enumerate(layers) if next(m.parameters(), None) is not None), None)
    if first is None:
        raise ValueError(f"module must have layers with parameters, got {', '.join(map(_named, layers)) or 'none'}")
    if any(nn.parameter.is_lazy(p) for p in module.parameters()):
        raise ValueError("module must have parameters of known shape, got lazy ones: call it with a batch before")
    if cut is None:
        ends = [i + 1 for i, m in enumerate(layers) if isinstance(m, _LAYERS)][:-1]
    else:
        ends = _checked_cut(cut, first, len(layers))
    shape = _input_shape(layers[first:])
    nodes: list[StateNode] = [FixedNode(*shape)]
    edges: list[nn.Module] = []
    for begin, end in itertools.pairwise([first, *ends, len(layers)]):
        parts = layers[begin:end]
        for layer in parts:
            shape = _shape_after(layer, shape)
        nodes.append((StandardGaussianNode if end < len(layers) else make_output)(*shape))
        edges.append(_in_a_row(parts))
    like = next(module.parameters())
    for node in nodes:
        node.to(like.device, like.dtype)
    return PCN(nodes, edges, _in_a_row(layers[:first]) if first else None)


def _known(name: str, value: object, among: Iterable[str], more: str = "") -> None:
    if not (isinstance(value, str) and value in among):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, among))}{more}, got {value!r}")


def _named(module: nn.Module) -> str:
    return type(module).__name__


def _in_a_row(layers: list[nn.Module]) -> nn.Module:
    """Layers as one module, which leaves what it is given as it is."""
    if any(getattr(m, "inplace", False) for layer in layers for m in layer.modules()):
        layers = [_Copy(), *layers]
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def _flat(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Modules, with the layers of a Sequential in its place."""
    for m in modules:
        if isinstance(m, nn.Sequential) and type(m).forward is nn.Sequential.forward:
            yield from _flat(m)
        else:
            yield m


def _checked_cut(cut: Iterable[int], first: int, count: int) -> list[int]:
    """Where nodes are put, between the first layer with parameters and the last of all."""
    if not isinstance(cut, Iterable):
        raise TypeError(f"cut must be None or indices, got {cut!r}")
    cut = list(cut)
    for i in cut:
        if not isinstance(i, int) or isinstance(i, bool):
            raise TypeError(f"every index in cut must be an int, got {i!r} in {cut}")
        if not first < i < count:
            raise ValueError(
                f"every index in cut must be from {first + 1} to {count - 1}: there are {count} layers, and layer "
                f"{first} is the first with parameters; got {i} in {cut}"
            )
    if any(a >= b for a, b in itertools.pairwise(cut)):
        raise ValueError(f"cut must be in increasing order, got {cut}")
    return cut


def _input_shape(layers: Sequence[nn.Module]) -> _Size:
    """What the first Linear or convolution takes, and what keeps shapes before it."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            return (layer.in_features,)
        if isinstance(layer, _CONVOLUTIONS):
            return (layer.in_channels, *(None,) * len(layer.kernel_size))
        if not _keeps_shape(layer):
            break
    raise ValueError(
        f"module must have a Linear or a convolution as the first layer with parameters, to tell its input's shape, "
        f"got {_named(layer)}"
    )


def _shape_after(layer: nn.Module, shape: _Size) -> _Size:
    """The shape that a layer makes of another, None where any size may come."""
    if isinstance(layer, nn.Linear):
        return (*shape[:-1], layer.out_features)
    if isinstance(layer, _CONVOLUTIONS):
        return (layer.out_channels, *(None,) * len(layer.kernel_size))
    if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1):
        return (None,)
    if isinstance(layer, nn.Unflatten) and layer.dim == 1 and len(shape) == 1:
        return (*cast(tuple[int, ...], layer.unflattened_size),)
    return shape if _keeps_shape(layer) else (None,) * len(shape)


def _keeps_shape(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Identity) or (type(layer).__module__ in _KEEPING and not isinstance(layer, _CHANGING))
