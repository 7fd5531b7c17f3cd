"""
A convolutional network
=======================

Any `torch.nn.Sequential` becomes a predictive coding network, on its own layers: `from_sequential` puts a node after
every convolution, every Linear and every residual block. Beside it the same network learns by backpropagation.
"""

import copy

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import pyromancy as pyro
from pyromancy.networks import Skip

digits = load_digits()
x = torch.from_numpy(digits.images / 16).float().unsqueeze(1)  # [1797, 1, 8, 8]
labels = torch.from_numpy(digits.target)
train, test = slice(0, 1500), slice(1500, None)

# %%
# A small residual network.


def block(channels: int) -> Skip:
    first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
    return Skip(nn.Sequential(first, nn.ReLU(), second))


torch.manual_seed(0)
module = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.ReLU(),
    block(16),
    nn.ReLU(),
    nn.AvgPool2d(2),
    nn.Conv2d(16, 32, 3, padding=1),
    nn.ReLU(),
    block(32),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(512, 10),
)
twin = copy.deepcopy(module)
net = pyro.networks.from_sequential(module, output="categorical", variance=100.0)
print(net)

# %%
# Learning, in both ways, on the same batches.

epochs, accuracies = 4, {"predictive coding": [], "backpropagation": []}


def watch(name: str, network: nn.Module) -> None:
    with torch.no_grad():
        accuracies[name].append((network(x[test]).argmax(1) == labels[test]).float().mean().item())


optimizer = torch.optim.Adam(net.m_params(), lr=1e-3, eps=1e-10)
method = pyro.methods.Accelerated()
em = pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=2, method=method)
generator = torch.Generator().manual_seed(0)
for _ in range(epochs):
    for _part in em.epoch(x[train], labels[train], batch_size=50, generator=generator):
        pass
    watch("predictive coding", net)

optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3)
generator = torch.Generator().manual_seed(0)
for _ in range(epochs):
    for rows in torch.randperm(1500, generator=generator).split(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(x[rows]), labels[rows]).backward()
        optimizer.step()
    watch("backpropagation", twin)

fig, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, values in accuracies.items():
    print(f"{name:18} {values[-1]:.1%} of 297 test images")
    axes.plot(range(1, epochs + 1), [100 * value for value in values], "o-", label=name)
axes.set(xlabel="epoch", ylabel="% of the test images", xticks=range(1, epochs + 1))
axes.legend()

# %%
# Convolutions run by the graph executor: what lies between them is fused, and nothing of autograd is left.

print(em.explain())
