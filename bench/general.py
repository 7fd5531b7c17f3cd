"""Networks that are no plain chain of Linear edges: with skips or several parents, and convolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import pyromancy

from .exact import Outcome
from .network import PCN, Parents, Problem, predicted
from .settings import ADAM_RATE

if TYPE_CHECKING:
    from types import ModuleType

Shapes = list[tuple[int, ...]]
Made = TypeVar("Made")


class Residual(nn.Module):
    """An edge that passes the state on and adds to it: ``mu = z + W f(z) + b``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, z: Tensor) -> Tensor:
        """Prediction of the next state."""
        return z + self.linear(torch.tanh(z))


def residual(width: int = 256, edges: int = 4) -> tuple[Shapes, nn.ModuleList]:
    """Fully connected, with residual edges between the one from the input and the one to the labels."""
    first, last = nn.Linear(784, width), nn.Sequential(nn.Tanh(), nn.Linear(width, 10))
    return [(784,), *[(width,)] * (edges + 1), (10,)], nn.ModuleList(
        [first, *(Residual(width) for _ in range(edges)), last]
    )


def mupc(width: int = 128, edges: int = 30) -> tuple[Shapes, nn.ModuleList]:
    """Fully connected with skips and muPC's scales, as `pyromancy.networks` makes it."""
    sizes = [784, *[width] * (edges - 1), 10]
    return [(n,) for n in sizes], pyromancy.networks.mlp(sizes, scaling="mupc", skips=True).edges


def parents(width: int = 256) -> tuple[Shapes, nn.ModuleList]:
    """Fully connected, every node predicted by the two before it."""

    def from_(a: int, b: int) -> nn.Module:
        return nn.Sequential(nn.Tanh(), nn.Linear(a, b))

    edges = [
        Parents({0: nn.Linear(784, width)}),
        Parents({0: nn.Linear(784, width), 1: from_(width, width)}),
        Parents({1: from_(width, width), 2: from_(width, width)}),
        Parents({2: from_(width, 10), 3: from_(width, 10)}),
    ]
    return [(784,), *[(width,)] * 3, (10,)], nn.ModuleList(edges)


class Masked(nn.Module):
    """Predicts a node by itself, every neuron by the others."""

    mask: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.register_buffer("mask", 1 - torch.eye(width))

    def forward(self, z: Tensor) -> Tensor:
        """Prediction of the state."""
        return F.linear(torch.tanh(z), self.linear.weight * self.mask, self.linear.bias)


def all_to_all(width: int = 256) -> tuple[Shapes, nn.ModuleList]:
    """Every neuron of the hidden node and the labels predicted by all others, as in Salvatori et al. (2022)."""

    def from_(a: int, b: int) -> nn.Module:
        return nn.Sequential(nn.Tanh(), nn.Linear(a, b))

    hidden = Parents({0: nn.Linear(784, width), 1: Masked(width), 2: from_(10, width)})
    labels = Parents({0: nn.Linear(784, 10), 1: from_(width, 10), 2: Masked(10)})
    return [(784,), (width,), (10,)], nn.ModuleList([hidden, labels])


class Columns(nn.Module):
    """A module of some columns of a state."""

    def __init__(self, of: nn.Linear, first: int) -> None:
        super().__init__()
        self.of, self.first = of, first

    def forward(self, z: Tensor) -> Tensor:
        """Prediction by the columns."""
        return cast("Tensor", self.of(z[:, self.first : self.first + self.of.in_features]))


def temporal(width: int = 128, moments: int = 28) -> tuple[Shapes, nn.ModuleList]:
    """An image read row by row: every moment's state is predicted by the last and by a row, by shared weights."""
    row = nn.Linear(784 // moments, width)
    along = nn.Sequential(nn.Tanh(), nn.Linear(width, width))
    later = [Parents({0: Columns(row, t * row.in_features), t: along}) for t in range(1, moments)]
    last = nn.Sequential(nn.Tanh(), nn.Linear(width, 10))
    return [(784,), *[(width,)] * moments, (10,)], nn.ModuleList([Columns(row, 0), *later, last])


def vgg5(
    widths: tuple[int, ...] = (32, 64, 128, 128), size: int = 32, activation: type[nn.Module] = nn.Tanh
) -> tuple[Shapes, nn.ModuleList]:
    """Convolutions of 3 x 3, each followed by max-pooling into a node of half the size, and a Linear edge to labels."""
    shapes: Shapes = [(3, size, size)]
    edges = nn.ModuleList()
    for channels in widths:
        conv = nn.Conv2d(shapes[-1][0], channels, 3, padding=1)
        edges.append(nn.Sequential(activation(), conv, nn.MaxPool2d(2)))
        size //= 2
        shapes.append((channels, size, size))
    edges.append(nn.Sequential(activation(), nn.Flatten(), nn.Linear(widths[-1] * size**2, 10)))
    return [*shapes, (10,)], edges


def vgg5_gelu() -> tuple[Shapes, nn.ModuleList]:
    """`vgg5` with GELU."""
    return vgg5(activation=nn.GELU)


class ResidualConv(nn.Module):
    """An edge between images: ``mu = z + W * f(z) + b``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Prediction of the next state."""
        return z + self.conv(torch.relu(z))


def residual_convolutions(channels: int = 32, size: int = 16, edges: int = 3) -> tuple[Shapes, nn.ModuleList]:
    """Images of half the input's size that residual convolutions predict, and a mean over them for the labels."""
    first = nn.Conv2d(3, channels, 3, stride=2, padding=1)
    last = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    shapes: Shapes = [(3, 2 * size, 2 * size), *[(channels, size, size)] * (edges + 1), (10,)]
    return shapes, nn.ModuleList([first, *(ResidualConv(channels) for _ in range(edges)), last])


class Attention(nn.Module):
    """An edge between sequences: what causal attention adds to a state that is normalised before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, z: Tensor) -> Tensor:
        """Prediction of the next state."""
        batch, length, width = z.shape
        parts = self.qkv(self.norm(z)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return z + self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Feedforward(nn.Module):
    """An edge between sequences: what two layers add to a state that is normalised before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, z: Tensor) -> Tensor:
        """Prediction of the next state."""
        return z + cast("Tensor", self.inner(z))


def transformer(width: int = 128, length: int = 64, heads: int = 4, outputs: int = 64) -> tuple[Shapes, nn.ModuleList]:
    """A transformer block whose halves predict a node each, between a Linear edge and one to outputs per position."""
    last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))
    edges = nn.ModuleList([nn.Linear(width, width), Attention(width, heads), Feedforward(width), last])
    return [*[(length, width)] * 4, (length, outputs)], edges


@dataclass(frozen=True)
class General:
    """One EM batch of such a network.

    Attributes:
        make: shapes of the nodes and the edges between them, with random weights.
        batch: samples.
        steps: E-steps.
        rate: of an E-step.
    """

    make: Callable[[], tuple[Shapes, nn.ModuleList]]
    batch: int
    steps: int
    rate: float = 0.05

    def parts(self) -> tuple[Shapes, nn.ModuleList, Tensor, Tensor]:
        """Shapes, edges, input and one-hot target, the same at every call."""
        with torch.random.fork_rng():
            torch.manual_seed(2)
            shapes, edges = self.make()
            *positions, classes = shapes[-1]
            x, labels = torch.rand(self.batch, *shapes[0]), torch.randint(classes, (self.batch, *positions))
        return shapes, edges, x, F.one_hot(labels, classes).float()

    def problem(self, pyro: ModuleType, dtype: torch.dtype = torch.float32) -> Problem:
        """It with the nodes of a package, ready to run."""
        shapes, edges, x, y = self.parts()
        net = PCN(pyro, shapes, edges).to(dtype)
        return Problem.of(pyro, net, x.to(dtype), y.to(dtype), self.steps, self.rate)


@dataclass(frozen=True)
class Written:
    """A batch written out by hand, in float32 with gradients of its energy by autograd.

    Attributes:
        esteps: the forward sweep and the E-steps; returns the states.
        batch: these, and Adam's step by the mean energy of a sample; returns the states and the gradients.
    """

    esteps: Callable[[], list[Tensor]]
    batch: Callable[[], Outcome]


def written(general: General, compiled: bool) -> Written:
    """A network's batch by hand.

    Args:
        general: which network.
        compiled: whether `torch.compile` makes the sweep, an E-step and the weights' gradients; else all is eager.
    """
    _, edges, x, y = general.parts()
    adam = torch.optim.Adam(edges.parameters(), lr=ADAM_RATE, fused=compiled)

    def energy(states: list[Tensor]) -> Tensor:
        nodes = [x, *states, y]
        errors = [nodes[i] - predicted(edge, nodes, i) for i, edge in enumerate(edges, start=1)]
        return torch.stack([e.square().sum() / 2 for e in errors]).sum()

    def sweep() -> list[Tensor]:
        states = [x]
        for edge in edges[:-1]:
            states.append(predicted(edge, states, len(states)))
        return states[1:]

    def step(states: list[Tensor]) -> list[Tensor]:
        gradients = torch.func.grad(energy)(states)
        return [z - general.rate * g for z, g in zip(states, gradients, strict=True)]

    def made(function: Callable[..., Made]) -> Callable[..., Made]:
        return torch.compile(function, dynamic=False) if compiled else function

    start, take, cost = made(sweep), made(step), made(lambda states: energy(states) / general.batch)

    @torch.no_grad()
    def run() -> list[Tensor]:
        states = start()
        for _ in range(general.steps):
            states = take(states)
        return states

    def batch() -> Outcome:
        states = run()
        adam.zero_grad()
        cost(states).backward()
        adam.step()
        return Outcome(states, [p.grad for p in edges.parameters() if p.grad is not None])

    return Written(run, batch)


GENERAL = {
    "VGG5, 3x32x32": General(vgg5, 64, 8),
    "VGG5 of GELU, 3x32x32": General(vgg5_gelu, 64, 8),
    "residual convolutions, 32x16x16": General(residual_convolutions, 64, 8),
    "transformer, 64 x 128": General(transformer, 32, 8),
    "residual, 4 x 256": General(residual, 128, 16),
    "muPC, 30 x 128": General(mupc, 64, 30),
    "two parents, 3 x 256": General(parents, 128, 20),
    "all to all, 784+256+10": General(all_to_all, 64, 20),
    "temporal, 28 x 128": General(temporal, 64, 20),
}
