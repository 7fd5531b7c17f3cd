"""What the networks must come to, in float64 and without this package: nothing is timed that deviates from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .network import Problem, linears, make_data, make_edges, predicted

if TYPE_CHECKING:
    from .settings import Setting

# activations, and their slopes
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (F.relu, lambda z: (z > 0).double()),
    "tanh": (torch.tanh, lambda z: 1 - torch.tanh(z) ** 2),
    "sigmoid": (torch.sigmoid, lambda z: torch.sigmoid(z) * torch.sigmoid(-z)),
}
EXACT, ROUNDING = 1e-10, 1e-3  # how far results in float64 and in float32 may be off


def relative(got: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """Norm of the difference over norm, all tensors taken together.

    Together, because the first layers of a deep network receive next to no error in few steps: their gradients are
    the rounding of ``z - mu``, far below those of the last layers.
    """
    a, b = (torch.cat([t.detach().double().flatten() for t in tensors]) for tensors in (got, expected))
    return ((a - b).norm() / b.norm()).item()


@dataclass
class Outcome:
    """What was left behind: the free states, and the gradients that the last M-step used or the weights it left."""

    states: Sequence[Tensor]
    learned: Sequence[Tensor]

    def deviation(self, exact: Outcome) -> float:
        """How far off the states are, or what was learned from them: the larger, and NaN if either is."""
        off = relative(self.states, exact.states), relative(self.learned, exact.learned)
        return math.nan if any(map(math.isnan, off)) else max(off)


def require(off: float, allowed: float, what: str) -> None:
    """Refuse to go on to the timing where results are further off than allowed; NaN is too far."""
    assert off <= allowed, f"{what} off by {off:.2g}, allowed {allowed:.2g}: not timed"


def outcome(problem: Problem) -> Outcome:
    """Of the first batch, by any loop."""
    gradients = [p.grad for p in problem.m_params if p.grad is not None]  # E-steps alone leave none
    if not gradients and problem.adam is not None:
        for group in problem.adam.param_groups:
            gradients += [problem.adam.state[p]["exp_avg"] / (1 - group["betas"][0]) for p in group["params"]]
    return Outcome(problem.states, gradients)


class ExactChain:
    """A setting's network by hand-written gradients.

    With errors ``e_l = z_l - mu_l`` a state moves along ``e_l - f'(z_l) W_l^T e_(l+1)``; the weights of an edge
    receive ``-e_(l+1) f(z_l)^T``, averaged over the batch.

    Attributes:
        states: input and target included; to begin with those of a forward sweep.
        weights: of the edges.
        biases: of the edges.
    """

    def __init__(self, setting: Setting, device: str = "cpu") -> None:
        self.rate = setting.rate
        self.f, self.slope = ACTIVATIONS[setting.activation]
        edges = make_edges(setting).to(device, torch.float64)
        self.weights = [linear.weight.detach() for linear in linears(edges)]
        self.biases = [linear.bias.detach() for linear in linears(edges)]
        self.start(*(t.to(device, torch.float64) for t in make_data(setting)))

    def start(self, x: Tensor, y: Tensor) -> None:
        """Set the states by a forward sweep and clamp input and target."""
        self.states = [x]
        for i in range(len(self.weights) - 1):
            self.states.append(self.predict(i))
        self.states.append(y)

    @property
    def learned(self) -> list[Tensor]:
        """Weight and bias of every edge in turn, as `gradients` gives theirs."""
        return [p for pair in zip(self.weights, self.biases, strict=True) for p in pair]

    def predict(self, edge: int) -> Tensor:
        """What an edge makes of the state below it."""
        return self.f(self.states[edge]) @ self.weights[edge].T + self.biases[edge]

    def errors(self) -> list[Tensor]:
        """Of the nodes that have a prediction."""
        return [above - self.predict(i) for i, above in enumerate(self.states[1:])]

    def estep(self) -> None:
        """Move the free states once, all from the same errors."""
        e = self.errors()
        for i in range(1, len(self.weights)):
            feedback = self.slope(self.states[i]) * (e[i] @ self.weights[i])
            self.states[i] = self.states[i] - self.rate * (e[i - 1] - feedback)

    def gradients(self) -> list[Tensor]:
        """For weight and bias of every edge in turn."""
        found = []
        for below, error in zip(self.states, self.errors(), strict=False):
            found += [-error.T @ self.f(below) / len(error), -error.mean(0)]
        return found


def exact_outcome(setting: Setting, device: str = "cpu") -> Outcome:
    """`outcome` of the first batch."""
    chain = ExactChain(setting, device)
    for _ in range(setting.steps):
        chain.estep()
    return Outcome(chain.states[1:-1], chain.gradients())


def exact_epoch(setting: Setting, batches: Sequence[tuple[Tensor, Tensor]], rate: float) -> Outcome:
    """States and weights after one batch after another, each of which SGD learns from."""
    chain = ExactChain(setting)
    for x, y in batches:
        chain.start(x.double(), y.double())
        for _ in range(setting.steps):
            chain.estep()
        for p, gradient in zip(chain.learned, chain.gradients(), strict=True):
            p.sub_(rate * gradient)
    return Outcome(chain.states[1:-1], chain.learned)


def exact_incremental(setting: Setting, optimizer: Callable[[Sequence[Tensor]], torch.optim.Optimizer]) -> Outcome:
    """States and weights after an M-step of an optimizer of PyTorch's after every E-step."""
    chain = ExactChain(setting)
    opt = optimizer(chain.learned)
    for _ in range(setting.steps):
        chain.estep()
        for p, gradient in zip(chain.learned, chain.gradients(), strict=True):
            p.grad = gradient
        opt.step()
    return Outcome(chain.states[1:-1], chain.learned)


# energies of state and prediction, summed
ENERGIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gaussian": lambda z, mu: 0.5 * (z - mu).square().sum(),
    "categorical": lambda z, mu: -(z * mu.log_softmax(1)).sum(),
    "bernoulli": lambda z, mu: (F.softplus(mu) - z * mu).sum(),
    "laplace": lambda z, mu: (z - mu).abs().sum(),
}


def exact_of_edges(
    edges: nn.ModuleList, x: Tensor, y: Tensor, steps: int, rate: float, laws: Mapping[int, str] = MappingProxyType({})
) -> Outcome:
    """`outcome` of any edges, by autograd through the energy written out.

    That is half the squares of all errors, but of the nodes, by their places, that have another of `ENERGIES`.
    """
    edges, x, y = edges.double(), x.double(), y.double()
    states = [x]
    with torch.no_grad():
        for edge in edges[:-1]:
            states.append(predicted(edge, states, len(states)))
    states.append(y)

    energies = [ENERGIES["gaussian"]] * len(states)
    for node, law in laws.items():
        energies[node] = ENERGIES[law]

    def energy() -> Tensor:
        links = enumerate(zip(energies[1:], states[1:], edges, strict=True), start=1)
        return torch.stack([of(z, predicted(edge, states, i)) for i, (of, z, edge) in links]).sum()

    for _ in range(steps):
        free = [z.detach().requires_grad_() for z in states[1:-1]]
        states[1:-1] = free
        gradients = torch.autograd.grad(energy(), free)
        states[1:-1] = [(z - rate * g).detach() for z, g in zip(free, gradients, strict=True)]
    gradients = torch.autograd.grad(energy() / len(x), list(edges.parameters()))
    return Outcome(states[1:-1], list(gradients))
