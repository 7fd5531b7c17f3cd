"""
A lateral network, beside Hopfield's
====================================

The units of one layer predict each other by lateral weights, and remember (recurrent predictive coding,
doi:10.1371/journal.pcbi.1010719). Hopfield's network has the same graph, with weights by Hebb's rule.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import pyromancy as pyro
from pyromancy.nodes import StandardGaussianNode

patterns = torch.where(torch.tensor(load_digits().data[:30]) > 8, 1.0, -1.0).double()
torch.manual_seed(0)
units, others = StandardGaussianNode(64).double(), 1 - torch.eye(64).double()
weight = nn.Parameter(torch.zeros(64, 64).double())
known = torch.ones(30, 64, dtype=torch.bool)


def energy():
    state = torch.where(known, patterns, units.value)
    return pyro.functional.gaussian_energy(state, nn.functional.linear(state, weight * others))


# %%
# Learning: all units are known, and nothing is left to infer.
optimizer = torch.optim.SGD([weight], lr=0.02, weight_decay=0.1)
em = pyro.EM(energy, [units.value], optimizer, start=units.init, steps=0, lr=0.1)
for _ in range(300):
    em.step(torch.zeros_like(patterns))
print(em.explain())

# %%
# Recall from six tenths of the units, which are held at data; beside the closed form, and Hopfield's network.
known = torch.rand(30, 64) < 0.6
units.init(torch.zeros_like(patterns))
loop = pyro.InferenceLoop(energy, [units.value], lr=0.2, momentum=0.95)
loop.run(3000)
a, found = torch.eye(64).double() - (weight * others).detach(), torch.where(known, patterns, units.value.detach())
closed = patterns.clone()
for row, k in zip(closed, known, strict=True):
    row[~k] = torch.linalg.lstsq(a[:, ~k], -a[:, k] @ row[k]).solution
hopfield = patterns * known
for _ in range(20):
    hopfield = torch.where(known, patterns, (hopfield @ (patterns.T @ patterns * others)).sign())
error = (found - closed).abs().max().item()
right = [((state.sign() == patterns)[~known]).double().mean().item() for state in (found, hopfield)]
print(f"error {error:.1e}; units recalled: {right[0]:.1%}, by Hopfield's network {right[1]:.1%}")

# %%
# Patterns, what is known of them, and what is recalled.
recalled = {"by the network": found.sign()[:10], "by Hopfield's": hopfield[:10]}
pyro.plots.images({"pattern": patterns[:10], "known": (patterns * known)[:10], **recalled})
