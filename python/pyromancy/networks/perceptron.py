"""Multilayer perceptrons."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch.nn as nn

from ..nodes import FixedNode, FloatNode, StandardGaussianNode
from .layers import ScaledLinear, Skip
from .outputs import known, output_of
from .pcn import PCN

__all__ = ["ACTIVATIONS", "mlp"]

#: The activations that `mlp` takes by name.
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


def mlp(
    sizes: Sequence[int],
    activation: str = "relu",
    output: str = "gaussian",
    scaling: str | None = None,
    skips: bool = False,
    bias: bool | None = None,
    variance: float = 1.0,
    free_input: bool = False,
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
        variance: of a Gaussian output, which does not learn it; what any other's energy is divided by, `temperature` of
            the network. The larger it is, the less the states give way, and the nearer what weights learn is to
            backpropagation: docs/methods.md says which to take for deep networks.
        free_input: whether the first node is a `FloatNode`, a code that E-steps infer, and not clamped.

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
    known("activation", activation, ACTIVATIONS)
    make_output, temperature = output_of(output, variance)
    if scaling is not None:
        known("scaling", scaling, ("mupc",), " or None")
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
    first = FloatNode(sizes[0]) if free_input else FixedNode(sizes[0])
    return PCN([first, *hidden_nodes, make_output(sizes[-1])], edges, temperature=temperature)
