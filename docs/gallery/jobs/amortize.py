"""
Hybrid inference: an amortised start
====================================

A recognition network guesses the states of a generative one, E-steps correct the guess, and the recognition network
learns what they have come to (hybrid predictive coding, arXiv:2204.02169). With practice less is left to correct.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import pyromancy as pyro
from pyromancy.nodes import FloatNode, StandardGaussianNode

x = torch.tensor(load_digits().data / 16).float()
train, test = x[:1500], x[1500:]
torch.manual_seed(0)
code, hidden, image = FloatNode(16), StandardGaussianNode(32), StandardGaussianNode(64)
down, draw = nn.Linear(16, 32), nn.Sequential(nn.Tanh(), nn.Linear(32, 64))
up, top = nn.Sequential(nn.Linear(64, 32), nn.Tanh()), nn.Linear(32, 16)  # the recognition network


def energy():
    errors = hidden.energy(down(code.value)) + 20 * image.energy(draw(hidden.value))
    return errors + 0.5 * code.value.square().sum(1)


def start(batch):
    image.init(batch)
    code.init(top(up(batch))), hidden.init(down(code.value))


# %%
# Both learn from every batch: the generative network by EM, the other by regression on the codes that were inferred.
generative = torch.optim.Adam([*down.parameters(), *draw.parameters()], lr=3e-3)
recognition = torch.optim.Adam([*up.parameters(), *top.parameters()], lr=3e-3)
method = pyro.methods.Accelerated(coordinates="states")
em = pyro.EM(energy, [code.value, hidden.value], generative, start=start, steps=20, method=method)
gaps = []
for _ in range(12):
    for batch in train[torch.randperm(1500)].split(50):
        em.step(batch)
        recognition.zero_grad()
        (top(up(batch)) - code.value.detach()).square().mean().backward()
        recognition.step()
print(em.explain())

# %%
# On images that neither has seen: the energy of the guess, of one from nothing, and after inference from either.
for name, scale in {"amortised": 1.0, "from zero": 0.0}.items():
    with torch.no_grad():
        start(test), code.init(scale * code.value), hidden.init(down(code.value))
    before = em.loop.energy().mean().item()
    em.loop.run(100)
    gaps.append((before, em.loop.energy().mean().item()))
    print(f"{name}: energy {before:.2f} at the start, {gaps[-1][1]:.2f} after inference")

# %%
# Images, and the predictions of the states that were inferred.
pyro.plots.images({"image": test[:12], "explained": draw(hidden.value)[:12].clamp(0, 1)})
