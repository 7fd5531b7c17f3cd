"""
Torch2PC's three variants
=========================

Three ways to find the errors that weights learn from (arXiv:2106.13082). *Strict* is inference on states. *FixedPred*
keeps predictions, and their derivatives, as they were in the forward sweep, and comes to the errors of backpropagation
by a rate. *Exact* sets these errors: a rate of 1, and as many steps as there are layers.
"""

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import cosine_similarity

import pyromancy as pyro
from pyromancy.methods import Descent, FixedPrediction

torch.manual_seed(0)
net = pyro.networks.mlp([20, 30, 30, 30, 5], activation="tanh").double()
x, y = torch.randn(100, 20).double(), torch.randn(100, 5).double()
params = net.m_params()


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients])


# %%
# Backpropagation's gradient of the same loss, and that of each variant.
loss = 0.5 * (net.sequential()(x) - y).square().sum(1).mean()
backprop = flat(torch.autograd.grad(loss, params))
errors, cosines = {}, {}
variants = {"Strict": (Descent(0.1), 500), "FixedPred": (FixedPrediction(0.1), 500), "Exact": (FixedPrediction(1.0), 4)}
for name, (method, steps) in variants.items():
    net.start(x, y)
    loop = pyro.InferenceLoop(net.energy, net.e_params(), method=method)
    loop.run(steps)
    net.zero_grad()
    loop.backward(params)
    gradient = flat(p.grad for p in params)
    errors[name] = ((gradient - backprop).abs().max() / backprop.abs().max()).item()
    cosines[name] = cosine_similarity(gradient, backprop, dim=0).item()
    print(f"{name}: cosine with backpropagation {cosines[name]:.6f}, error {errors[name]:.1e}")
    print(*loop.explain().splitlines()[:1])

# %%
# The largest error of each variant's gradient.
plt.barh([*errors], [*errors.values()], log=True)
