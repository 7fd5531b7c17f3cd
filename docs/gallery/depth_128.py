"""
Depth 128
=========

With ordinary weights states and errors shrink or grow exponentially with depth. muPC's scaling keeps them of order one
(`arXiv:2505.13124 <https://arxiv.org/abs/2505.13124>`_), and inference on errors reaches every layer in one sweep. Does
every layer learn?
"""

import copy

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import pyromancy as pyro

digits = load_digits()
x, labels = torch.from_numpy(digits.data / 16).float(), torch.from_numpy(digits.target)
y = torch.nn.functional.one_hot(labels, 10).float()
train, test = slice(0, 1500), slice(1500, None)

# %%
# 128 edges, with skips between hidden nodes. The output's variance decides how much of the error hidden states take
# over (see :doc:`/methods`): at 1000 weights learn nearly as by backpropagation.

torch.manual_seed(0)
variance = 1000.0
net = pyro.networks.mlp([64, *[32] * 127, 10], scaling="mupc", skips=True, variance=variance)
twin = copy.deepcopy(net)  # for backpropagation


def matrices(network: pyro.networks.PCN) -> list[torch.Tensor]:
    return [p.detach().clone() for p in network.edges.parameters()]


before = matrices(net)

# %%
# Predictive coding. Gradients are a thousandth of their size, and so is Adam's epsilon.

optimizer = torch.optim.Adam(net.m_params(), lr=0.01, eps=1e-8 / variance)
method = pyro.methods.Accelerated()
em = pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=20, method=method, tol=1e-2)
generator = torch.Generator().manual_seed(0)
for _ in range(6):
    for _part in em.epoch(x[train], y[train], batch_size=64, generator=generator):
        pass

# %%
# Backpropagation, on the same batches.

optimizer = torch.optim.Adam(twin.m_params(), lr=0.01)
generator = torch.Generator().manual_seed(0)
for _ in range(6):
    for rows in torch.randperm(1500, generator=generator).split(64):
        optimizer.zero_grad()
        (0.5 * (twin.predict(x[rows]) - y[rows]).square().sum(1).mean()).backward()
        optimizer.step()

# %%
# How far every matrix has moved, and what the networks have learned:

fig, axes = plt.subplots(figsize=(8, 4), layout="constrained")
for name, network in {"predictive coding": net, "backpropagation": twin}.items():
    with torch.no_grad():
        accuracy = (network.predict(x[test]).argmax(1) == labels[test]).float().mean()
    moved = [(a - b).norm() for a, b in zip(matrices(network), before, strict=True)]
    print(f"{name:18} {accuracy:.1%} of 297 test images")
    axes.plot(range(2, 128), moved[1:-1], label=name)
axes.set(xlabel="weights of edge", ylabel="norm of the change", ylim=(0, None), title="between hidden nodes")
axes.legend()
