"""
All to all
==========

Pixels, hidden units and labels are one state, in which every unit predicts every other (arXiv:2201.13180). There is no
input and no output: what is known is clamped, and inference finds the rest.
"""

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import linear

import pyromancy as pyro
from pyromancy.methods import Descent, Known
from pyromancy.nodes import StandardGaussianNode

digits = load_digits()
x, labels = torch.tensor(digits.data / 16).float(), torch.tensor(digits.target)
train, test = slice(0, 1500), slice(1500, None)
torch.manual_seed(0)
units, others = StandardGaussianNode(64 + 96 + 10), 1 - torch.eye(170)
weight, bias = torch.nn.Parameter(0.3 * torch.randn(170, 170) / 170**0.5), torch.nn.Parameter(torch.zeros(170))


def energy():
    return units.energy(linear(units.value.tanh(), weight * others, bias))


def known(pixels, labels):
    mask = torch.tensor([pixels] * 64 + [False] * 96 + [labels] * 10)
    return Descent(0.1, constraints={units: Known(mask[None])})


# %%
# Learning: pixels and labels are known.
states = torch.cat([x, torch.zeros(len(x), 96), torch.eye(10)[labels]], 1)
optimizer = torch.optim.AdamW([weight, bias], lr=2e-3)
em = pyro.EM(energy, [units.value], optimizer, start=units.init, steps=15, method=known(True, True))
for _ in range(10):
    for _ in em.epoch(states[train], batch_size=50):
        pass
print(em.explain())

# %%
# A question: the pixels are known, and the labels begin at even ones.
states[test, -10:] = 0.1
units.init(states[test])
pyro.InferenceLoop(energy, [units.value], method=known(True, False)).run(100)
accuracy = (units.value[:, -10:].argmax(1) == labels[test]).float().mean().item()
print(f"{accuracy:.1%} of 297 test images")

# %%
# What the units of labels add to the predictions of pixels.
pyro.plots.dictionary((weight * others)[:64, -10:], columns=10)
