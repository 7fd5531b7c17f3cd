"""The EM batch of a chain as experts write it without this package: CUDA graphs by hand, a compiler, JAX."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .exact import EXACT, ROUNDING, Outcome, require
from .network import linears, make_data, make_edges
from .settings import ADAM_RATE

if TYPE_CHECKING:
    from .settings import Setting

BETAS, EPS = (0.9, 0.999), 1e-8  # Adam's, as `torch.optim.Adam` sets them
_aten = torch.ops.aten
# activations, and their gradients for their outputs' gradients and outputs, in one kernel each
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "relu": (F.relu, lambda g, a: _aten.threshold_backward(g, a, 0)),
    "tanh": (torch.tanh, _aten.tanh_backward),
    "sigmoid": (torch.sigmoid, _aten.sigmoid_backward),
}


class NotHereError(Exception):
    """A contender that cannot compete on this machine, with the reason: no failure of its own."""


@dataclass
class Runner:
    """Something that runs EM batches, with parameters as they were made.

    Attributes:
        batch: runs one.
        left: what the last one left behind: free states, the gradients of its M-step, and the parameters.
        finish: waits for the device, where that is not PyTorch's stream.
    """

    batch: Callable[[], object]
    left: Callable[[], tuple[Outcome, Sequence[Tensor]]]
    finish: Callable[[], object] | None = None


def graphed(batch: Callable[[], object]) -> Callable[[], object]:
    """A batch as a CUDA graph, after three on a stream of their own, as PyTorch's documentation has it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            batch()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batch()
    return graph.replay


def fused_adam(parameters: Sequence[Tensor]) -> torch.optim.Adam:
    """Adam in one kernel, whose steps a graph can hold."""
    on_gpu = parameters[0].is_cuda
    return torch.optim.Adam(parameters, lr=ADAM_RATE, betas=BETAS, eps=EPS, fused=True, capturable=on_gpu)


def graph_runner(
    batch: Callable[[], object],
    data: Sequence[tuple[Tensor, Tensor]],
    adam: torch.optim.Adam,
    states: Callable[[], Sequence[Tensor]],
) -> Runner:
    """A batch as one graph, with the parameters as they were before.

    Args:
        batch: what the graph holds.
        data: where it expects its data, and those to copy there before every run.
        adam: its optimizer.
        states: the free ones that it leaves.
    """
    parameters: list[Tensor] = adam.param_groups[0]["params"]
    before = [p.detach().clone() for p in parameters]
    replay = graphed(batch)
    with torch.no_grad():
        for p, old in zip(parameters, before, strict=True):
            p.copy_(old)
            for t in adam.state[p].values():
                t.zero_()

    def run() -> None:
        for place, fresh in data:
            place.copy_(fresh)
        replay()

    def left() -> tuple[Outcome, Sequence[Tensor]]:
        gradients = [adam.state[p]["exp_avg"] / (1 - BETAS[0]) for p in parameters]
        return Outcome(states(), gradients), parameters

    return Runner(run, left)


class Expert:
    """A chain with what a graph needs: tensors that stay where they are, and an optimizer whose steps it can hold.

    The clamped input's prediction is computed once a batch.
    """

    def __init__(self, setting: Setting, device: str) -> None:
        self.steps, self.rate, self.samples = setting.steps, setting.rate, setting.batch
        self.f, self.back = ACTIVATIONS[setting.activation]
        self.fresh = [t.to(device) for t in make_data(setting)]
        self.x, self.y = (t.clone() for t in self.fresh)
        edges = make_edges(setting).to(device)
        self.weights = [linear.weight for linear in linears(edges)]
        self.biases = [linear.bias for linear in linears(edges)]
        self.parameters = list(edges.parameters())
        self.adam = fused_adam(self.parameters)
        self.states: list[Tensor] = []

    def by_autograd(self) -> None:
        """Run a batch whose gradients are autograd's."""
        first, *_ = states = self._sweep()
        for _ in range(self.steps):
            free = [z.detach().requires_grad_() for z in states]
            gradients = torch.autograd.grad(self._energy(free, first), free)
            with torch.no_grad():
                states = list(torch._foreach_sub(free, torch._foreach_mul(gradients, self.rate)))
        energy = self._energy(states, self._predict(0, self.f(self.x))) / self.samples
        for p, gradient in zip(self.parameters, torch.autograd.grad(energy, self.parameters), strict=True):
            p.grad = gradient
        self.adam.step()
        self.states = states

    @torch.no_grad()
    def by_hand(self, estep: Callable[[list[Tensor], Tensor], list[Tensor]]) -> None:
        """Run a batch whose gradients are written out."""
        first, *_ = states = self._sweep()
        for _ in range(self.steps):
            states = estep(states, first)
        below = [self.f(z) for z in (self.x, *states)]
        for i, error in enumerate(self._errors(states, below[1:], first)):
            self.weights[i].grad = error.T @ below[i] / -self.samples
            self.biases[i].grad = error.sum(0) / -self.samples
        self.adam.step()
        self.states = states

    def estep(self, states: list[Tensor], first: Tensor) -> list[Tensor]:
        """Return the states one step on; the input's prediction is `first`."""
        active = [self.f(z) for z in states]
        errors, moved = self._errors(states, active, first), []
        for i, (z, a) in enumerate(zip(states, active, strict=True)):
            feedback = self.back(errors[i + 1] @ self.weights[i + 1], a)
            moved.append(z.sub(errors[i] - feedback, alpha=self.rate))
        return moved

    def _predict(self, edge: int, active: Tensor) -> Tensor:
        return F.linear(active, self.weights[edge], self.biases[edge])

    @torch.no_grad()
    def _sweep(self) -> list[Tensor]:
        states = [self._predict(0, self.f(self.x))]
        for i in range(1, len(self.weights) - 1):
            states.append(self._predict(i, self.f(states[-1])))
        return states

    def _errors(self, states: list[Tensor], active: list[Tensor], first: Tensor) -> list[Tensor]:
        predictions = [first, *(self._predict(i, a) for i, a in enumerate(active, 1))]
        return [z - mu for z, mu in zip([*states, self.y], predictions, strict=True)]

    def _energy(self, states: list[Tensor], first: Tensor) -> Tensor:
        errors = self._errors(states, [self.f(z) for z in states], first)
        return 0.5 * cast("Tensor", sum(e.square().sum() for e in errors))

    def runner(self, batch: Callable[[], None]) -> Runner:
        """The batch as a graph."""
        data = [(self.x, self.fresh[0]), (self.y, self.fresh[1])]
        return graph_runner(batch, data, self.adam, lambda: self.states)


def autograd_graph(setting: Setting, device: str) -> Runner:
    """The loop through autograd, whole batches as one CUDA graph."""
    expert = Expert(setting, device)
    return expert.runner(expert.by_autograd)


def hand_graph(setting: Setting, device: str) -> Runner:
    """Gradients by hand in PyTorch's operators, whole batches as one CUDA graph."""
    expert = Expert(setting, device)
    return expert.runner(lambda: expert.by_hand(expert.estep))


def compiled_graph(setting: Setting, device: str) -> Runner:
    """`hand_graph` with the E-step by `torch.compile`, matrix products tuned.

    One graph around the batch serves better than those that the compiler would make of every E-step, and the steps
    unrolled would take it minutes.
    """
    torch._dynamo.reset()
    expert = Expert(setting, device)
    tuned = torch.compile(expert.estep, mode="max-autotune-no-cudagraphs", fullgraph=True, dynamic=False)
    return expert.runner(lambda: expert.by_hand(tuned))


def version_of_jax() -> str | None:
    """The version of JAX that is installed; None where it is not."""
    try:
        return metadata.version("jax")
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def has_jax() -> bool:
    """Whether JAX can be imported."""
    try:
        importlib.import_module("jax")
    except ImportError:
        return False
    return True


def jax_adam(parameters: Any, mean: Any, square: Any, count: Any, gradients: Any) -> tuple[Any, Any, Any, Any]:
    """A step of Adam in JAX: parameters, moments and the number of steps after it."""
    jax = importlib.import_module("jax")
    count = count + 1
    mean = jax.tree.map(lambda m, g: BETAS[0] * m + (1 - BETAS[0]) * g, mean, gradients)
    square = jax.tree.map(lambda v, g: BETAS[1] * v + (1 - BETAS[1]) * g * g, square, gradients)
    rate, scale = ADAM_RATE / (1 - BETAS[0] ** count), 1 / (1 - BETAS[1] ** count)

    def moved(p: Any, m: Any, v: Any) -> Any:
        return p - rate * m / (jax.numpy.sqrt(v * scale) + EPS)

    return jax.tree.map(moved, parameters, mean, square), mean, square, count


def jax_scan(
    setting: Setting, device: str, dtype: torch.dtype = torch.float32, laws: Mapping[int, str] = MappingProxyType({})
) -> Runner:
    """JAX: the whole batch under one jit, a scan over the E-steps, buffers of the parameters donated.

    Nodes are Gaussian, but for those, by their places, that have another law of `exact.ENERGIES`.

    Raises:
        NotHereError: JAX is not installed, or does not run on the device.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the device is PyTorch's too
    try:
        jax = importlib.import_module("jax")
        place = jax.devices(device)[0]
    except (ImportError, RuntimeError) as error:
        raise NotHereError(f"no JAX for {device} here: {error}") from None
    jnp = jax.numpy
    f = {"relu": jax.nn.relu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}[setting.activation]
    # without it JAX makes float32 of everything
    double = functools.partial(jax.enable_x64, True) if dtype == torch.float64 else nullcontext

    def put(t: Tensor) -> Any:
        return jax.device_put(t.detach().to(dtype).numpy(), place)

    with double():
        x, y = map(put, make_data(setting))
        parameters = [(put(linear.weight), put(linear.bias)) for linear in linears(make_edges(setting))]
        zeros = jax.tree.map(jnp.zeros_like, parameters)

    of_law = {
        "gaussian": lambda z, mu: 0.5 * jnp.sum((z - mu) ** 2),
        "categorical": lambda z, mu: -jnp.sum(z * jax.nn.log_softmax(mu)),
        "bernoulli": lambda z, mu: jnp.sum(jax.nn.softplus(mu) - z * mu),
        "laplace": lambda z, mu: jnp.sum((z - mu) * jax.lax.stop_gradient(jnp.sign(z - mu))),  # of abs it is 1 at 0
    }
    energies = [of_law["gaussian"]] * len(setting.sizes)
    for node, law in laws.items():
        energies[node] = of_law[law]

    def predict(edge: Any, below: Any) -> Any:
        return f(below) @ edge[0].T + edge[1]

    def energy(edges: Any, states: Any, first: Any, y: Any) -> Any:
        predictions = [first, *(predict(edge, z) for edge, z in zip(edges, states, strict=True))]
        return sum(of(z, mu) for of, z, mu in zip(energies[1:], [*states, y], predictions, strict=True))

    def batch(parameters: Any, mean: Any, square: Any, count: Any, x: Any, y: Any) -> Any:
        bottom, *edges = parameters
        first = predict(bottom, x)
        states = [first]
        for edge in edges[:-1]:
            states.append(predict(edge, states[-1]))

        def estep(states: Any, _: Any) -> Any:
            gradients = jax.grad(energy, 1)(edges, states, first, y)
            return [z - setting.rate * g for z, g in zip(states, gradients, strict=True)], None

        states, _ = jax.lax.scan(estep, states, None, length=setting.steps)
        gradients = jax.grad(lambda p: energy(p[1:], states, predict(p[0], x), y) / setting.batch)(parameters)
        return *jax_adam(parameters, mean, square, count, gradients), states

    with jax.default_matmul_precision("highest"), jax.default_device(place), double():
        step = jax.jit(batch, donate_argnums=(0, 1, 2, 3))
        count = jnp.zeros(())
        program = step.lower(parameters, zeros, zeros, count, x, y).compile()
        kept = [parameters, zeros, jax.tree.map(jnp.zeros_like, parameters), count, None]

    def run() -> None:
        kept[:] = program(*kept[:4], x, y)

    def tensors(tree: Any) -> list[Tensor]:
        return [torch.tensor(jax.device_get(leaf)).to(device) for leaf in jax.tree.leaves(tree)]

    def left() -> tuple[Outcome, Sequence[Tensor]]:
        moved, mean, _, _, states = kept
        return Outcome(tensors(states), [m / (1 - BETAS[0]) for m in tensors(mean)]), tensors(moved)

    return Runner(run, left, lambda: jax.block_until_ready(kept[:4]))


def checked_jax_batch(
    setting: Setting, exact: Outcome, laws: Mapping[int, str] = MappingProxyType({}), rounding: float = ROUNDING
) -> Callable[[], None]:
    """The batch of `jax_scan` on the CPU, compared with float64; the function returns when the batch is done.

    Args:
        setting: of the batch.
        exact: what the first one must come to.
        laws: of the nodes that are not Gaussian.
        rounding: how far off float32 may be.
    """
    for dtype, allowed in ((torch.float64, EXACT), (torch.float32, rounding)):
        runner = jax_scan(setting, "cpu", dtype, laws)
        runner.batch()
        require(runner.left()[0].deviation(exact), allowed, f"JAX: states or gradients in {dtype} are")
    batch, finish = runner.batch, runner.finish
    assert finish is not None

    def done() -> None:
        batch()
        finish()

    return done
