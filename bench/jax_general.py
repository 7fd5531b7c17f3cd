"""The EM batch of a network of Linear edges in JAX, as `rivals.jax_scan` has that of a chain."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn

from pyromancy.networks.layers import ScaledLinear, Skip

from .exact import Outcome
from .general import Columns, Masked, Residual
from .network import Parents
from .rivals import BETAS, NotHereError, jax_adam

if TYPE_CHECKING:
    from .general import General

Function = Callable[[Sequence[Any], Any], Any]  # of parameters and a state


@dataclass
class JaxBatch:
    """A batch of EM in JAX.

    Attributes:
        run: one batch, which waits for it.
        left: what the last one left behind, and what its gradients are of.
        flops: floating-point operations of an E-step as it was compiled, by XLA's count.
        products: those of the products alone that an E-step takes: of every weight behind a free state two.
    """

    run: Callable[[], None]
    left: Callable[[], Outcome]
    flops: float
    products: float


def modules(edge: nn.Module, place: int) -> list[tuple[int, nn.Module]]:
    """The places of the nodes that predict a node, and the modules that take them."""
    return [(int(i), m) for i, m in edge.of.items()] if isinstance(edge, Parents) else [(place - 1, edge)]


class _Translator:
    """Functions of JAX for modules, and their parameters, every one once.

    Args:
        jax: the module.
        put: makes an array of a tensor.
    """

    def __init__(self, jax: Any, put: Callable[[torch.Tensor], Any]) -> None:
        self._jnp, self._nn, self._put = jax.numpy, jax.nn, put
        self.parameters: list[torch.Tensor] = []
        self._places: dict[int, int] = {}

    def _place(self, p: torch.Tensor) -> int:
        if id(p) not in self._places:
            self._places[id(p)] = len(self.parameters)
            self.parameters.append(p)
        return self._places[id(p)]

    def of(self, module: nn.Module) -> Function:
        """The function of a module.

        Raises:
            NotHereError: there is none.
        """
        jnp = self._jnp
        match module:
            case nn.Sequential():
                parts = [self.of(m) for m in module]
                return lambda p, z: functools.reduce(lambda x, f: f(p, x), parts, z)
            case nn.Tanh():
                return lambda p, z: jnp.tanh(z)
            case nn.ReLU():
                return lambda p, z: self._nn.relu(z)
            case nn.Linear():
                w, b = self._place(module.weight), self._place(module.bias)
                return lambda p, z: z @ p[w].T + p[b]
            case ScaledLinear():
                w, scale = self._place(module.weight), module.scale
                return lambda p, z: scale * (z @ p[w].T)
            case Skip() if module.shortcut is None:
                branch = self.of(module.branch)
                return lambda p, z: z + branch(p, z)
            case Residual():
                linear = self.of(module.linear)
                return lambda p, z: z + linear(p, jnp.tanh(z))
            case Masked():
                w, b, mask = self._place(module.linear.weight), self._place(module.linear.bias), self._put(module.mask)
                return lambda p, z: jnp.tanh(z) @ (p[w] * mask).T + p[b]
            case Columns():
                of, first, width = self.of(module.of), module.first, module.of.in_features
                return lambda p, z: of(p, z[:, first : first + width])
        raise NotHereError(f"no {type(module).__name__} in JAX here")


def jax_general(general: General, dtype: torch.dtype = torch.float32) -> JaxBatch:
    """A sweep, a scan over the E-steps, and an M-step by Adam, under one jit; buffers of the parameters are donated.

    What the clamped input predicts is computed once a batch, as it is here.

    Raises:
        NotHereError: JAX is not installed, or an edge is none of Linear layers.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        jax = importlib.import_module("jax")
        place = jax.devices("cpu")[0]
    except (ImportError, RuntimeError) as error:
        raise NotHereError(f"no JAX here: {error}") from None
    jnp = jax.numpy
    double = functools.partial(jax.enable_x64, True) if dtype == torch.float64 else nullcontext

    def put(t: torch.Tensor) -> Any:
        return jax.device_put(t.detach().to(dtype).numpy(), place)

    _, edges, *data = general.parts()
    with double():
        translator = _Translator(jax, put)
        taken = [modules(edge, i) for i, edge in enumerate(edges, 1)]
        parts = [[(source, translator.of(m)) for source, m in of] for of in taken]
        parameters = [put(p) for p in translator.parameters]
        zeros = [jnp.zeros_like(p) for p in parameters]
        x, y = map(put, data)

    def fixed(p: Any, x: Any) -> list[Any]:
        """What the input makes of predictions."""
        return [sum(f(p, x) for source, f in of if source == 0) for of in parts]

    def predictions(p: Any, states: Any, first: Any) -> list[Any]:
        nodes = [None, *states]
        return [
            sum((f(p, nodes[s]) for s, f in of if 0 < s < len(nodes)), c) for of, c in zip(parts, first, strict=True)
        ]

    def energy(p: Any, states: Any, first: Any, y: Any) -> Any:
        nodes = [*states, y]
        pairs = zip(nodes, predictions(p, nodes, first), strict=True)
        return 0.5 * sum(jnp.sum((z - mu) ** 2) for z, mu in pairs)

    def estep(p: Any, states: Any, first: Any, y: Any) -> Any:
        gradients = jax.grad(energy, 1)(p, states, first, y)
        return [z - general.rate * g for z, g in zip(states, gradients, strict=True)]

    def batch(p: Any, mean: Any, square: Any, count: Any, x: Any, y: Any) -> Any:
        first = fixed(p, x)
        states: Any = []
        for of, c in zip(parts[:-1], first[:-1], strict=True):
            states.append(sum((f(p, [None, *states][s]) for s, f in of if 0 < s <= len(states)), c))
        states, _ = jax.lax.scan(lambda s, _: (estep(p, s, first, y), None), states, None, length=general.steps)
        gradients = jax.grad(lambda p: energy(p, states, fixed(p, x), y) / general.batch)(p)
        return *jax_adam(p, mean, square, count, gradients), states

    with jax.default_matmul_precision("highest"), jax.default_device(place), double():
        step = jax.jit(batch, donate_argnums=(0, 1, 2, 3))
        count = jnp.zeros(())
        shapes = [jax.ShapeDtypeStruct((general.batch, *of), x.dtype) for of in general.parts()[0][1:-1]]
        first = jax.eval_shape(fixed, parameters, x)
        one = jax.jit(estep).lower(parameters, shapes, first, y).compile().cost_analysis()
        program = step.lower(parameters, zeros, zeros, count, x, y).compile()
        kept = [parameters, zeros, [jnp.zeros_like(p) for p in parameters], count, None]

    def run() -> None:
        kept[:] = program(*kept[:4], x, y)
        jax.block_until_ready(kept[:4])

    def tensors(tree: Any) -> list[torch.Tensor]:
        return [torch.tensor(jax.device_get(leaf)) for leaf in jax.tree.leaves(tree)]

    def left() -> Outcome:
        """After the first batch."""
        order = {id(p): g / (1 - BETAS[0]) for p, g in zip(translator.parameters, tensors(kept[1]), strict=True)}
        return Outcome(tensors(kept[4]), [order[id(p)] for p in edges.parameters()])

    behind = [m for of in taken for source, m in of if 0 < source <= len(edges) - 1]
    weights = sum(p.numel() for m in behind for p in m.parameters() if p.dim() == 2)
    flops = float((one[0] if isinstance(one, list) else one)["flops"])
    return JaxBatch(run, left, flops, 4.0 * general.batch * weights)
