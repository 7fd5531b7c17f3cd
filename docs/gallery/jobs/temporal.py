"""
Temporal predictive coding
==========================

A hidden state turns, and is seen with noise. Unrolled in time the network has a node for every moment, which the one
before predicts, with one matrix for all (arXiv:2305.11982). Its equilibrium is the Kalman smoother's mean.
"""

import math

import matplotlib.pyplot as plt
import torch
from torch import nn

import pyromancy as pyro
from pyromancy.nodes import FixedNode, IsotropicGaussianNode

torch.manual_seed(0)
length, angle = 30, 0.3
turn, see = nn.Linear(2, 2, bias=False).double(), nn.Linear(2, 3, bias=False).double()
c, s = math.cos(angle), math.sin(angle)
turn.weight.data = torch.tensor([[c, -s], [s, c]]).double()
first = FixedNode(2).double()
hidden = [IsotropicGaussianNode(2, variance=0.05).double() for _ in range(length)]
seen = [IsotropicGaussianNode(3, variance=0.5).double() for _ in range(length)]
q, r = (nodes[0].logvar.detach().exp() for nodes in (hidden, seen))


def energy():
    before = [first.value, *(node.value for node in hidden[:-1])]
    moves = sum(node.energy(turn(z)) for node, z in zip(hidden, before, strict=True))
    return moves + sum(node.energy(see(z.value)) for node, z in zip(seen, hidden, strict=True))


# %%
# Sequences of the system itself, and inference of the states from what was seen.
z, truth = first.init(torch.ones(20, 2).double()), []
for now, data in zip(hidden, seen, strict=True):
    z = turn(z).detach() + q**0.5 * torch.randn(20, 2).double()
    data.init(see(z).detach() + r**0.5 * torch.randn(20, 3).double()), now.init(torch.zeros(20, 2))
    truth.append(z)
loop = pyro.InferenceLoop(energy, [node.value for node in hidden], lr=0.01, momentum=0.9)
loop.run(1000)
print(*loop.explain().splitlines()[::2], sep="\n")

# %%
# The smoother's mean, by the joint Gaussian of all that is hidden and seen.
powers = [torch.linalg.matrix_power(turn.weight.detach(), k) for k in range(length + 1)]
flow = torch.cat([torch.cat([powers[max(i - j, 0)] * (i >= j) for j in range(length)], 1) for i in range(length)])
covariance, sees = q * flow @ flow.T, torch.block_diag(*[see.weight.detach()] * length)
mean = torch.cat(powers[1:]) @ torch.ones(2).double()
data = torch.cat([node.value for node in seen], 1).detach()
gain = torch.linalg.solve(sees @ covariance @ sees.T + r * torch.eye(3 * length).double(), sees @ covariance).T
smoothed = mean + (data - sees @ mean) @ gain.T
states = torch.cat([node.value for node in hidden], 1).detach()
error = (states - smoothed).abs().max().item()
true = torch.cat(truth, 1)
noise = (states - true).square().mean().item()
print(f"largest difference from the smoother {error:.1e}; mean square from the true states {noise:.3f}")

# %%
# The first of three things that are seen, and what it is without noise.
plt.plot(see(states[0].view(length, 2))[:, 0].detach(), "-", data[0, ::3], "o"), plt.legend(["inferred", "seen"])
