"""Networks of images and of sequences, drawn at random: their graphs do what autograd does, in float64."""

import copy
from random import Random

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import pyromancy as pyro

FUNCTIONS = (
    torch.tanh,
    F.relu,
    F.gelu,
    torch.sin,
    F.silu,
    lambda x: 0.1 * x * x,
    lambda x: torch.where(x > 0, x, 0.1 * x),
)


class Function(nn.Module):
    def __init__(self, random):
        super().__init__()
        self.function = random.choice(FUNCTIONS)

    def forward(self, x):
        return self.function(x)


class Attention(nn.Module):
    """Of heads that lie in one of three ways, of normalized states or of states."""

    def __init__(self, random, width, heads):
        super().__init__()
        self.heads, self.packing = heads, random.choice(["heads inside", "heads outside", "one tensor"])
        self.causal, self.scale, self.adds = random.random() < 0.5, random.choice([None, 0.3]), random.random() < 0.6
        normal = nn.LayerNorm(width, eps=random.choice([1e-5, 1e-2]), elementwise_affine=random.random() < 0.7)
        self.before = normal if random.random() < 0.7 else nn.Identity()
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=random.random() < 0.7), nn.Linear(width, width)

    def forward(self, z):
        batch, length, width = z.shape
        x = self.before(z)
        if self.packing == "one tensor":
            q = k = v = x.view(batch, length, self.heads, -1).transpose(1, 2)
        elif self.packing == "heads inside":
            q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = self.qkv(x).view(batch, length, self.heads, 3, -1).permute(3, 0, 2, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=self.scale)
        y = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return z + y if self.adds else y


def sequences(random):
    """Edges, and shapes of the nodes between them."""
    length, heads = random.choice([1, 2, 5, 12]), random.choice([1, 2, 4])
    width, edges = heads * random.choice([1, 3, 8]), []
    for _ in range(random.randrange(2, 5)):
        wide = nn.Linear(width, 2 * width), Function(random), nn.Linear(2 * width, width)
        edges.append(
            random.choice([
                Attention(random, width, heads),
                nn.Sequential(nn.LayerNorm(width), *wide),
                nn.Sequential(Function(random), nn.Linear(width, width, bias=False), nn.LayerNorm(width, bias=False)),
            ])
        )  # fmt: skip
    return edges, [(length, width)] * (len(edges) + 1)


def images(random):
    channels, size, edges = random.choice([1, 3, 4]), random.choice([4, 8, 9, 12]), []
    shapes = [(channels, size, size)]
    for _ in range(random.randrange(2, 4)):
        wide, kernel, stride = random.choice([2, 3, 8]), random.choice([1, 3]), random.choice([1, 1, 2])
        layers = [Function(random), nn.Conv2d(channels, wide, kernel, stride, kernel // 2)]
        channels, size = wide, (size - 1) // stride + 1
        if size % 2 == 0:
            layers.append(random.choice([nn.MaxPool2d(2), nn.AvgPool2d(2)]))
            size //= 2
        edges.append(
            nn.Sequential(*layers, random.choice([nn.Identity(), nn.GroupNorm(1, channels), Function(random)]))
        )
        shapes.append((channels, size, size))
    edges.append(nn.Sequential(Function(random), nn.Flatten(), nn.Linear(channels * size * size, 6)))
    return edges, [*shapes, (6,)]


@pytest.mark.parametrize("make", [sequences, images], ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", range(8))
def test_descent_and_learning_are_autograds(make, seed, native_backend):
    random = Random(seed)
    edges, shapes = make(random)
    nodes = [0.5 * torch.randn(3, *shape, dtype=torch.float64) for shape in shapes]
    net, steps, momentum = nn.ModuleList(edges).double(), random.choice([1, 2, 4]), random.choice([0.0, 0.5])
    skips = [a == c and random.random() < 0.3 for a, c in zip(shapes, shapes[2:], strict=False)]

    def energy(net, states):
        values, total = [nodes[0], *states, nodes[-1]], 0.0
        for i, edge in enumerate(net):
            mu = edge(values[i]) + (0.5 * values[i - 1] if i and skips[i - 1] else 0.0)
            total = total + 0.5 * (values[i + 1] - mu).square().flatten(1).sum(1)
        return total

    other, states = copy.deepcopy(net), [nn.Parameter(z.clone()) for z in nodes[1:-1]]
    expected = [z.clone().requires_grad_() for z in nodes[1:-1]]
    descent = torch.optim.SGD(expected, 0.02, momentum)
    for _ in range(steps):
        descent.zero_grad()
        energy(other, expected).sum().backward(inputs=expected)
        descent.step()
    energy(other, expected).mean().backward(inputs=[*other.parameters()])
    loop = pyro.InferenceLoop(lambda: energy(net, states), states, lr=0.02, momentum=momentum)
    loop.run(steps)
    loop.backward([*net.parameters()])
    assert loop.explain().startswith("executor: graph")
    for a, b in zip(states, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, check_stride=False)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-10, check_stride=False)
