"""
Learning precision
==================

How sure is a network of each of its outputs? A `FactorizedGaussianNode` learns a variance for every component, by the
same M-step as the weights. Here a network predicts the lower half of a digit from the upper half.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import pyromancy as pyro
from pyromancy.nodes import FactorizedGaussianNode, FixedNode, IsotropicGaussianNode

images = torch.from_numpy(load_digits().data / 16).float()
upper, lower = images[:, :32], images[:, 32:]
used = lower[:1400].std(0) > 0.1  # pixels that change
lower = lower[:, used]

# %%
# The hidden units have a small constant variance. With a large one hidden states would explain errors away, and the
# variance of the output would fall without end.

torch.manual_seed(0)
hidden, output = IsotropicGaussianNode(64, variance=1e-4), FactorizedGaussianNode(lower.shape[1])
hidden.logvar.requires_grad_(False)
edges = [nn.Linear(32, 64), nn.Sequential(nn.Tanh(), nn.Linear(64, lower.shape[1]))]
net = pyro.networks.PCN([FixedNode(32), hidden, output], edges)

optimizer = torch.optim.Adam(net.edges.parameters(), 3e-3)
optimizer.add_param_group({"params": [output.logvar], "lr": 3e-2})
method = pyro.methods.Accelerated()
em = pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=20, method=method, tol=0.1)
for _ in range(40):
    for _part in em.epoch(upper[:1400], lower[:1400], batch_size=64):
        pass
print(em.explain().splitlines()[0])

# %%
# Of Gaussian errors 68.3% are within one standard deviation and 95.4% within two. On images that were not learned from:

with torch.no_grad():
    errors, deviation = lower[1400:] - net.predict(upper[1400:]), output.logvar.exp().sqrt()
for factor in (1, 2):
    print(f"within {factor}: {((errors / deviation).abs() < factor).float().mean():.1%}")

# %%
# The pixels that are hard to guess have the large variances.

half = torch.full((32,), torch.nan)
half[used] = deviation
fig, (image, scatter) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
shown = image.imshow(half.view(4, 8))
image.set(title="learned standard deviation, lower half", xticks=[], yticks=[])
fig.colorbar(shown, ax=image, shrink=0.6)
scatter.plot([0, 0.45], [0, 0.45], color="0.7")
scatter.plot(deviation, errors.square().mean(0).sqrt(), "o")
scatter.set(xlabel="learned standard deviation", ylabel="error of test images, by pixel")
