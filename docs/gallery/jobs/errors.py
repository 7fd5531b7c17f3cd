r"""
ePC: inference on errors
========================

On states a change of the output takes a step per layer to reach the first one, and fades on its way. On errors,
:math:`z = \mu + e` (arXiv:2505.20137), a sweep reaches all of them. The equilibrium is the same.
"""

import torch
from sklearn.datasets import load_digits

import pyromancy as pyro
from pyromancy.methods import Accelerated, Descent

digits = load_digits()
x, labels = torch.tensor(digits.data / 16).float(), torch.tensor(digits.target)
train, test, targets = slice(0, 1500), slice(1500, None), torch.eye(10)[labels]
torch.manual_seed(0)
net = pyro.networks.mlp([64, *[64] * 19, 10], activation="tanh", variance=10.0)
for layer in net.sequential():
    if isinstance(layer, torch.nn.Linear):
        torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

# %%
# What is left of the way to equilibrium after ten sweeps: descent on states, and on errors.
left = {}
for name, method in {"states": Descent(0.3), "errors": Descent(0.1, coordinates="errors")}.items():
    net.start(x[:100], targets[:100])
    first = net.energy().sum().item()
    loop = pyro.InferenceLoop(net.energy, net.e_params(), method=method)
    trace = loop.run(10, record=True)
    after = net.energy().sum().item()
    pyro.InferenceLoop(net.energy, net.e_params(), method=Accelerated()).run(500, tol=1e-6)
    left[name] = (after - net.energy().sum().item()) / (first - net.energy().sum().item())
    print(f"on {name} {left[name]:.1%} of the gap is left;", loop.explain().splitlines()[0])

# %%
# Learning, by descent on errors.
optimizer = torch.optim.Adam(net.m_params(), lr=1e-3)
method = Descent(lr=0.1, coordinates="errors")
em = pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=5, method=method)
for _ in range(10):
    for _ in em.epoch(x[train], targets[train], batch_size=50):
        pass
accuracy = (net.predict(x[test]).argmax(1) == labels[test]).float().mean().item()
print(em.explain(), f"\n{accuracy:.1%} of 297 test images")

# %%
# Energies of the nodes over ten sweeps on errors, before learning.
trace.plot()
