"""One predicate says of any energy what runs it, and why nothing faster does."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import pyromancy as pyro
from descent import free
from pyromancy import backends
from pyromancy.functional import gaussian_energy


class Net:
    """Data, two hidden states, images and a target."""

    def __init__(self):
        self.x, self.y, self.labels = torch.randn(6, 4).double(), torch.randn(6, 3).double(), torch.arange(6) % 3
        self.z, self.h, self.image = free(6, 5), free(6, 5), free(6, 2, 4, 4)
        self.up, self.top, self.across = (nn.Linear(*n).double() for n in ((4, 5), (5, 3), (5, 5)))
        self.conv, self.head = nn.Conv2d(1, 2, 3, padding=1).double(), nn.Linear(32, 3).double()

    def below(self, z):
        return gaussian_energy(z, self.up(self.x))

    def above(self, of):
        return gaussian_energy(self.y, self.top(of))


# what is free, the energy, what runs it, and why nothing faster does
ENERGIES = {
    "a chain": ("z", lambda n: n.below(n.z) + n.above(n.z.tanh()), "chain", None),
    "a skip": (
        "zh", lambda n: n.below(n.z) + gaussian_energy(n.h, n.z + n.across(n.z.relu())) + n.above(n.h), "chain", None,
    ),
    "two parents": (
        "zh",
        lambda n: n.below(n.z) + n.below(n.h) + gaussian_energy(n.y, n.top(n.z) + n.top(n.h)), "chain", None,
    ),
    "two energies of a state": (
        "zh", lambda n: n.below(n.z) + gaussian_energy(n.z, n.across(n.h)) + n.below(n.h) + n.above(n.z), "chain", None,
    ),
    "a cycle": (
        "zh",
        lambda n: gaussian_energy(n.z, n.across(n.h)) + gaussian_energy(n.h, n.across(n.z)) + n.above(n.z), "chain",
        None,
    ),
    "a law of one's own": (
        "z", lambda n: n.below(n.z) + torch.log(torch.cosh(n.y - n.top(n.z))).sum(1), "chain", None,
    ),
    "a cross-entropy": (
        "z", lambda n: n.below(n.z) + F.cross_entropy(n.top(n.z), n.labels, reduction="none"), "chain", None,
    ),
    "convolutions": (
        "image",
        lambda n: gaussian_energy(n.image, n.conv(n.x.reshape(6, 1, 2, 2).repeat(1, 1, 2, 2)))
        + gaussian_energy(n.y, n.head(n.image.flatten(1))), "graph",
        "not chain: n.image is (6, 2, 4, 4) torch.float64; chains take float32 or float64 of shape [B, n]",
    ),
    "a normalization": (
        "z", lambda n: n.below(n.z) + n.above(F.layer_norm(n.z, (5,))), "graph",
        "not chain: a Linear takes the result of layer_norm of n.z, not a state",
    ),
    "a gate": (
        "zh", lambda n: n.below(n.z) + n.below(n.h) + n.above(n.z * n.h), "graph",
        "not chain: a Linear takes the result of mul of n.z, n.h, not a state",
    ),
    "a softmax": (
        "z", lambda n: n.below(n.z) + n.above(n.z.softmax(1)), "graph",
        "not chain: a Linear takes the result of softmax of n.z, not a state",
    ),
    "a branch by values": (
        "z", lambda n: n.below(n.z) + n.above(n.z if float(n.z.detach().sum()) > 0 else n.z.tanh()), "autograd",
        "not chain or graph: torch.Tensor.__float__ reads values out of a tensor",
    ),
    "NumPy": (
        "z", lambda n: n.below(n.z) + n.above(0.5 * n.z) + torch.from_numpy(n.z.detach().numpy()).sum(), "autograd",
        "not chain or graph: torch.Tensor.numpy reads values out of a tensor",
    ),
    "shapes by values": (
        "z", lambda n: n.below(n.z) + n.above(n.z) + n.z[n.z > 0].sum(), "autograd",
        "not chain or graph: the shape of what aten.index.Tensor gives depends on values",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENERGIES)
def test_what_runs_an_energy_and_why_nothing_faster_does(name):
    states, energy, executor, reason = ENERGIES[name]
    n = Net()
    free_states = [n.image] if states == "image" else [getattr(n, s) for s in states]
    loop = pyro.InferenceLoop(lambda: energy(n), free_states, lr=0.01)
    loop.run(1)
    first, *lines = loop.explain().splitlines()
    assert first == f"executor: {executor}"
    said = [line for line in lines if line.startswith("not chain")]
    assert said == ([] if reason is None else [reason])


NETWORKS = {
    "an edge with a mask": lambda n: n.below(n.z) + gaussian_energy(n.h, F.linear(n.z, n.mask * n.across.weight))
    + n.above(n.h),
    "a part of a state": lambda n: n.below(n.z) + n.below(n.h)
    + gaussian_energy(n.y, F.linear(n.z[:, 1:4], n.top.weight[:, :3])),
    "two parents": lambda n: n.below(n.z) + n.below(n.h) + gaussian_energy(n.y, n.top(n.z) + n.top(n.h)),
    "a state that predicts two": lambda n: n.below(n.z) + gaussian_energy(n.h, n.across(n.z)) + n.above(n.z),
    "a circle": lambda n: gaussian_energy(n.z, n.across(n.h)) + gaussian_energy(n.h, n.across(n.z)) + n.above(n.z),
    "two energies of a free state": lambda n: n.below(n.z) + gaussian_energy(n.z, n.across(n.h)) + n.below(n.h)
    + n.above(n.z),
    "two energies of a target": lambda n: n.below(n.z) + n.below(n.h) + n.above(n.z) + n.above(n.h),
}  # fmt: skip


CHAINS = ("an edge with a mask", "two energies of a target")  # of a weight that is computed, and of two networks


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_go_by_graphs_where_kernels_take_chains_alone(name, monkeypatch):
    """As those of GPUs do: states and gradients are those of the network, and what refuses is told."""
    found = []
    for alone in ("", "the cuda kernels on cuda take chains alone"):
        torch.manual_seed(0)
        n = Net()
        n.mask = (torch.rand(5, 5) < 0.5).double()
        monkeypatch.setattr(backends, "without_graphs", lambda device, reason=alone: reason)
        learned = [n.up.weight, n.top.weight]
        loop = pyro.InferenceLoop(lambda n=n: NETWORKS[name](n), [n.z, n.h], lr=0.05)
        loop.run(7)
        loop.backward(learned)
        found.append([n.z.detach(), n.h.detach(), *(p.grad for p in learned)])
        lines = loop.explain().splitlines()
        assert lines[0] == ("executor: graph" if alone and name not in CHAINS else "executor: chain")
    refusals = [line for line in lines if line.startswith("not chain: ")]
    assert len(refusals) == (name not in CHAINS)
    assert all(r.endswith(("take chains alone", "with no activation around mu")) for r in refusals)
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
