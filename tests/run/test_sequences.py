"""Attention and layer normalization in graphs: what autograd makes of them, by kernels where these know the case."""

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import pyromancy as pyro
from pyromancy import ops
from pyromancy.capture import sequences

BATCH, LENGTH, WIDTH, HEADS = 3, 12, 16, 2


class Attends(nn.Module):
    """Attention of normalized states, in one of several manners."""

    def __init__(self, manner):
        super().__init__()
        self.manner = manner
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=manner != "no affine")
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.parts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def heads(self, t):
        return t.unflatten(2, (HEADS, -1)).transpose(1, 2)

    def forward(self, z, x):
        normal = self.norm(z)
        if self.manner in ("apart", "across"):  # keys and values of the input alone, which no state moves
            of = [normal, normal, normal] if self.manner == "apart" else [normal, x, x]
            q, k, v = (self.heads(part(t)) for part, t in zip(self.parts, of, strict=True))
        else:
            packed = self.qkv(normal).view(*z.shape[:2], 3, HEADS, -1)
            q, k, v = packed.permute(2, 0, 3, 1, 4)
        options = {"is_causal": self.manner != "all"}
        if self.manner == "scale":
            options["scale"] = 0.7
        if self.manner == "mask":
            options = {"attn_mask": torch.ones(z.shape[1], z.shape[1], dtype=torch.bool).triu()}
        if self.manner == "shorter":
            k, v, options = k[:, :, :5], v[:, :, :5], {}
        mixed = F.scaled_dot_product_attention(q, k, v, **options)
        return z + self.out(mixed.transpose(1, 2).reshape(z.shape))


class Net(nn.Module):
    def __init__(self, edge, length=LENGTH, dtype=torch.float64):
        super().__init__()
        self.edge = edge.to(dtype)
        self.x, self.y = torch.randn(2, BATCH, length, WIDTH, dtype=dtype)
        self.z, self.h = (nn.Parameter(torch.randn(BATCH, length, WIDTH, dtype=dtype)) for _ in range(2))

    def errors(self):
        return self.z - self.x, self.h - self.edge(self.z, self.x), self.y - torch.tanh(self.h)

    def energy(self):
        return sum(0.5 * e.square().sum((1, 2)) for e in self.errors())


def calls(loop):
    """The functions that a step calls."""
    schedule, _ = next(reversed(loop.prepared()._schedules.values()))
    return {n.target for n in schedule.graph.nodes if n.op == "call_function"}


def assert_as_autograd(net, steps=4, limit=1e-11):
    other = copy.deepcopy(net)
    states = [other.z, other.h]
    for _ in range(steps):
        gradients = torch.autograd.grad(other.energy().sum(), states)
        with torch.no_grad():
            for z, g in zip(states, gradients, strict=True):
                z.sub_(0.1 * g)
    other.energy().mean().backward()
    loop = pyro.InferenceLoop(net.energy, [net.z, net.h], lr=0.1)
    loop.run(steps)
    loop.backward([*net.edge.parameters()])
    for (name, a), b in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=limit, atol=limit, msg=lambda m, name=name: f"{name}: {m}")
        if "edge" in name and b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=limit, atol=limit, msg=lambda m, name=name: f"{name}: {m}")
    return loop


ATTENTION = {ops.attention_, ops.attention_backward_}
NORM = {ops.layer_norm_, ops.layer_norm_backward_}


@pytest.mark.parametrize("manner", ["packed", "all", "scale", "apart", "no affine"])
def test_kernels_take_it(manner, native_backend):
    loop = assert_as_autograd(Net(Attends(manner)))
    assert calls(loop) >= ATTENTION | NORM


@pytest.mark.parametrize("manner", ["across", "mask", "shorter"])
def test_what_they_do_not_know_is_pytorchs(manner, native_backend):
    """Keys and values need no gradients; there is a mask, or fewer keys than queries."""
    net = Net(Attends(manner), length=LENGTH)
    loop = assert_as_autograd(net)
    assert calls(loop) >= NORM
    assert (calls(loop) >= ATTENTION) == (manner == "across")


def test_long_sequences_are_pytorchs(monkeypatch, native_backend):
    monkeypatch.setattr(sequences, "LONGEST", LENGTH - 1)
    assert not ATTENTION & calls(assert_as_autograd(Net(Attends("packed"))))


class Normalizes(nn.Module):
    """Normalization of the last dimensions, twice."""

    def __init__(self, *shape):
        super().__init__()
        self.first, self.second = nn.LayerNorm(shape), nn.LayerNorm(shape, bias=False)

    def forward(self, z, x):
        return self.second(torch.sin(self.first(z).mT).mT.contiguous()) * x


@pytest.mark.parametrize("shape", [(WIDTH,), (LENGTH, WIDTH)], ids=str)
def test_normalization(shape, native_backend):
    loop = assert_as_autograd(Net(Normalizes(*shape)))
    assert (calls(loop) >= NORM) == (len(shape) == 1)


def test_float32(native_backend):
    assert_as_autograd(Net(Attends("packed"), dtype=torch.float32), limit=2e-5)


def test_a_gradient_may_be_theirs_alone(native_backend):
    """What a normalization passes back is the gradient of the state, with nothing to be added."""
    weight, x = torch.randn(WIDTH, dtype=torch.float64), torch.randn(BATCH, WIDTH, dtype=torch.float64)
    z = nn.Parameter(torch.randn(BATCH, WIDTH, dtype=torch.float64))
    energy = lambda: 0.5 * (x - F.layer_norm(z * 1.0, (WIDTH,), weight)).square().sum(1)  # noqa: E731
    expected = z.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(0.5 * (x - F.layer_norm(expected, (WIDTH,), weight)).square().sum(), expected)
    loop = pyro.InferenceLoop(energy, [z], lr=0.3)
    loop.run(1)
    torch.testing.assert_close(z.detach(), (expected - 0.3 * gradient).detach(), rtol=1e-12, atol=1e-12)
    assert calls(loop) >= NORM
