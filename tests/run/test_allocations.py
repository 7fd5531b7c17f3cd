"""E-steps allocate nothing after the first, but what convolutions make: PyTorch's cannot be told where to write."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

import pyromancy as pyro

BATCH = 4
pytestmark = pytest.mark.usefixtures("native_backend")


def allocated(function):
    """How many bytes the operators of a call allocate, and how often they do, within convolutions and elsewhere."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    found = {True: [], False: []}
    for event in record.events():
        if event.self_cpu_memory_usage > 0:
            around = event
            while around is not None and "convolution" not in around.name:
                around = around.cpu_parent
            found[around is not None].append(event.self_cpu_memory_usage)
    return torch.tensor([[sum(found[k]), len(found[k])] for k in (True, False)])


def more(loop):
    """The same of four more E-steps in a run."""
    for _ in range(2):
        loop.run(2)  # captures, and finds its memory
    few = allocated(lambda: loop.run(2))
    return (allocated(lambda: loop.run(6)) - few).tolist()


def states(*shapes):
    return [nn.Parameter(torch.randn(BATCH, *shape)) for shape in shapes]


def squares(*errors):
    return sum(0.5 * e.square().flatten(1).sum(1) for e in errors)


def chain():
    x, y, (z, h) = torch.randn(BATCH, 9), torch.randn(BATCH, 5), states((20,), (30,))
    a, b, c = nn.Linear(9, 20), nn.Linear(20, 30), nn.Linear(30, 5)
    return [z, h], lambda: squares(z - a(x), h - b(torch.tanh(z)), y - c(F.relu(h))), "chain"


def products():
    x, y, (z, h) = torch.randn(BATCH, 9), torch.randn(BATCH, 5), states((20,), (30,))
    a, b, c = nn.Linear(9, 20), nn.Linear(20, 30), nn.Linear(30, 5)
    return [z, h], lambda: squares(z - a(x), h - torch.sin(b(z * z)), y - c(h) * h.sum(1, True)), "graph"


def attention():
    x, y, (z, h) = torch.randn(BATCH, 6, 8), torch.randn(BATCH, 6, 8), states((6, 8), (6, 8))
    norm, qkv, out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def mixed():
        q, k, v = qkv(norm(z)).view(BATCH, 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
        m = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return z + out(m.transpose(1, 2).reshape(BATCH, 6, 8))

    return [z, h], lambda: squares(z - x, h - mixed(), y - F.gelu(h)), "graph"


def images():
    x, y, (z, h) = torch.randn(BATCH, 3, 16, 16), torch.randn(BATCH, 5), states((8, 16, 16), (8, 8, 8))
    a, b, c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8 * 8 * 8, 5)
    energy = lambda: squares(z - a(x), h - F.max_pool2d(b(torch.tanh(z)), 2), y - c(torch.tanh(h).flatten(1)))  # noqa: E731
    return [z, h], energy, "graph"


@pytest.mark.parametrize("make", [chain, products, attention], ids=lambda f: f.__name__)
def test_nothing_is_allocated_at_a_step(make):
    params, energy, executor = make()
    loop = pyro.InferenceLoop(energy, params, lr=0.01)
    assert more(loop) == [[0, 0], [0, 0]]
    assert loop.explain().startswith(f"executor: {executor}")


def test_convolutions_alone_allocate():
    """Their results, forward and backward, at each of four steps, and a few bytes for what is not wanted."""
    params, energy, _ = images()
    (taken, _), others = more(pyro.InferenceLoop(energy, params, lr=0.01))
    image = BATCH * 8 * 16 * 16 * 4
    assert others == [0, 0]
    assert 4 * 2 * image <= taken < 4 * 2 * image + 100
