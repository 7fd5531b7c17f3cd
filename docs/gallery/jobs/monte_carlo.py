"""
Monte Carlo predictive coding
=============================

Descent with noise draws states from the posterior (arXiv:2310.20674). In a linear network that is a Gaussian of known
mean and covariance, also at a finite rate.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import pyromancy as pyro
from pyromancy.nodes import FloatNode, StandardGaussianNode

torch.manual_seed(0)
cause, data = FloatNode(2), StandardGaussianNode(3).double()
cause, edge = cause.double(), nn.Linear(2, 3, bias=False).double().requires_grad_(False)
y, rate, chains = torch.tensor([[1.0, -2.0, 0.5]]).double(), 0.1, 20_000


def energy():
    return 0.5 * cause.value.square().sum(1) + data.energy(edge(cause.value))


# %%
# Many chains at once, of one datum.
cause.init(torch.zeros(chains, 2)), data.init(y.expand(chains, 3))
method = pyro.methods.Langevin(rate, generator=torch.Generator().manual_seed(0))
loop = pyro.InferenceLoop(energy, [cause.value], method=method)
loop.run(100)
print(loop.explain())

# %%
# The posterior's mean, and the covariance of draws at this rate, which comes to the posterior's as the rate goes to 0.
hessian = torch.eye(2).double() + edge.weight.T @ edge.weight
mean = torch.linalg.solve(hessian, (y @ edge.weight)[0])
covariance = torch.linalg.inv(hessian @ (torch.eye(2).double() - rate / 2 * hessian))
drawn = cause.value.detach()
error = (drawn.mean(0) - mean).abs().max().item(), (drawn.T.cov() - covariance).abs().max().item()
print(f"of {chains:,} draws the mean is off by {error[0]:.4f}, the covariance by {error[1]:.4f}")

# %%
# The draws.
plt.hist2d(*drawn.T.numpy(), bins=80)
