"""Networks for backpropagation as networks for predictive coding."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Sequence

import torch.nn as nn

from ..nodes import FixedNode, FloatNode, StandardGaussianNode
from ..nodes.base import StateNode
from .layers import Copy, Skip, flat
from .locked import locked
from .outputs import output_of
from .pcn import PCN
from .shapes import CONVOLUTIONS, Size, keeps_shape, shape_after

__all__ = ["from_sequential"]

_LAYERS = (nn.Linear, *CONVOLUTIONS, Skip)  # after which there is a node
# what turns logits into probabilities, which the energies of these outputs do themselves
_TWICE: dict[str, tuple[type[nn.Module], ...]] = {"categorical": (nn.Softmax, nn.Softmax2d), "bernoulli": (nn.Sigmoid,)}


def from_sequential(
    module: nn.Sequential,
    cut: Iterable[int] | None = None,
    output: str = "gaussian",
    variance: float = 1.0,
    free_input: bool = False,
) -> PCN:
    """A network of layers for backpropagation as a predictive coding network, on the very same parameters.

    ``predict(x)`` is ``module(x)`` to the last bit. Nothing is copied: what either of the two learns or loads, the
    other has.

    Nodes are Gaussian with unit variance, or the last as `mlp` has it. Without `cut` there is one after every Linear,
    every convolution and every `Skip`, before the activation that follows, as predictive coding has it: ``mu = W f(z) +
    b``. What a `Skip` holds has no nodes of its own. What stands before the first layer with parameters, as a Flatten
    may, is applied to the input, which the first node holds as it is after that. What stands after the last of these
    belongs to the last edge.

    In training mode a Dropout draws its mask once a batch, in the sweep of `PCN.start`, and a BatchNorm moves its
    running statistics there (`LockedDropout`, `SweptBatchNorm`); in evaluation mode they do as ever. `PCN.predict` is
    `module` in either mode.

    Args:
        module: Linear or Conv first, after what has no parameters: it takes vectors ``[B, features]`` or images ``[B,
            channels, ...]``; for sequences ``[B, T, features]`` make a `PCN`. Sequentials in it count as the layers
            they hold.
        cut: where nodes are put between the ends, as indices of layers, in order: ``cut=[2, 4]`` makes three edges, of
            layers 0 and 1, 2 and 3, and the rest.
        output: kind of the last node, by name: one of `OUTPUTS`.
        variance: of the output, as in `mlp`.
        free_input: as in `mlp`: whether E-steps infer the first node's state, as that of a decoder.

    Returns:
        The network.

    Raises:
        TypeError: `module` is no Sequential, or `cut` holds something else than ints.
        ValueError: `module` has nothing to learn, or does not tell its input's shape; `cut` is out of range or out of
            order; or there is no such output.

    Warns:
        UserWarning: `module` ends with a Softmax or Sigmoid and `output` is one that takes logits.
    """
    if not isinstance(module, nn.Sequential):
        raise TypeError(f"module must be a torch.nn.Sequential, got {type(module).__name__}")
    make_output, temperature = output_of(output, variance)
    layers = list(flat([module]))
    first = next((i for i, m in enumerate(layers) if next(m.parameters(), None) is not None), None)
    if first is None:
        raise ValueError(f"module must have layers with parameters, got {', '.join(map(_named, layers)) or 'none'}")
    if isinstance(layers[-1], _TWICE.get(output, ())):
        warnings.warn(
            f"output={output!r} takes logits, and module ends with a {_named(layers[-1])}, which gives probabilities: "
            "leave it out",
            UserWarning,
            stacklevel=2,
        )
    if any(nn.parameter.is_lazy(p) for p in module.parameters()):
        raise ValueError("module must have parameters of known shape, got lazy ones: call it with a batch before")
    if cut is None:
        ends = [i + 1 for i, m in enumerate(layers) if isinstance(m, _LAYERS)][:-1]
    else:
        ends = _checked_cut(cut, first, len(layers))
    shape = _input_shape(layers[first:])
    nodes: list[StateNode] = [FloatNode(*shape) if free_input else FixedNode(*shape)]
    edges: list[nn.Module] = []
    for begin, end in itertools.pairwise([first, *ends, len(layers)]):
        parts = layers[begin:end]
        for layer in parts:
            shape = shape_after(layer, shape)
        nodes.append((StandardGaussianNode if end < len(layers) else make_output)(*shape))
        edges.append(_in_a_row([locked(m) for m in parts]))
    like = next(module.parameters())
    for node in nodes:
        node.to(like.device, like.dtype)
    return PCN(nodes, edges, _in_a_row(layers[:first]) if first else None, temperature)


def _named(module: nn.Module) -> str:
    return type(module).__name__


def _in_a_row(layers: list[nn.Module]) -> nn.Module:
    """Layers as one module, which leaves what it is given as it is."""
    if any(getattr(m, "inplace", False) for layer in layers for m in layer.modules()):
        layers = [Copy(), *layers]
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


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


def _input_shape(layers: Sequence[nn.Module]) -> Size:
    """What the first Linear or convolution takes, and what keeps shapes before it."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            return (layer.in_features,)
        if isinstance(layer, CONVOLUTIONS):
            return (layer.in_channels, *(None,) * len(layer.kernel_size))
        if isinstance(layer, Skip):
            return _input_shape([*flat([layer.branch])])
        if not keeps_shape(layer):
            break
    raise ValueError(
        f"module must have a Linear or a convolution as the first layer with parameters, to tell its input's shape, "
        f"got {_named(layer)}"
    )
