"""
muPC: depth 30
==============

With muPC's scaling (arXiv:2505.13124) states stay of order one at any depth, and one rate of learning fits all. On
errors, without a rate of inference, every layer learns.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import pyromancy as pyro

digits = load_digits()
x, labels = torch.tensor(digits.data / 16).float(), torch.tensor(digits.target)
train, test = slice(0, 1500), slice(1500, None)
torch.manual_seed(0)
net = pyro.networks.mlp([64, *[64] * 29, 10], scaling="mupc", skips=True, variance=100.0)
first = [weight.detach().clone() for weight in net.edges.parameters()]
optimizer = torch.optim.Adam(net.m_params(), lr=0.03, eps=1e-10)
method = pyro.methods.Accelerated()
em = pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=5, method=method)
for _ in range(4):
    for _ in em.epoch(x[train], torch.eye(10)[labels[train]], batch_size=50):
        pass
print(em.explain())

# %%
# The test accuracy of a forward sweep, and how far weights have moved.
accuracy = (net.predict(x[test]).argmax(1) == labels[test]).float().mean().item()
moved = [(now - then).norm().item() for now, then in zip(net.edges.parameters(), first, strict=True)]
print(f"{accuracy:.1%} of 297 test images; weights of 30 layers moved by {min(moved):.1f} to {max(moved):.1f}")

# %%
# Every layer learns.
plt.bar(range(1, 31), moved)
plt.gca().set(xlabel="layer", ylabel="change of its weights (norm)")
