"""
A generative network
====================

Labels predict images. What the network has learned it shows by its predictions, and by the energy of an image under
each label: the label of the least energy is its guess.
"""

import torch
from sklearn.datasets import load_digits

import pyromancy as pyro

digits = load_digits()
x, labels = torch.tensor(digits.data / 16).float(), torch.tensor(digits.target)
train, test = slice(0, 1500), slice(1500, None)

# %%
# Learning: the label is clamped at the input, the image at the output.
torch.manual_seed(0)
net = pyro.networks.mlp([10, 64, 64, 64], activation="tanh", variance=0.1)
optimizer = torch.optim.Adam(net.m_params(), lr=3e-3)
method = pyro.methods.Accelerated(coordinates="states")
em = pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=10, method=method)
codes = torch.eye(10)
for _ in range(10):
    for _ in em.epoch(codes[labels[train]], x[train], batch_size=50):
        pass
print(em.explain())

# %%
# Generation is a forward sweep. It comes to the mean image of a label.
generated = net.predict(codes).detach()
means = torch.stack([x[train][labels[train] == k].mean(0) for k in range(10)])
error = (generated - means).square().mean().item()
print(f"mean square from the mean images: {error:.1e}, of a variance of {means.var(0).mean():.3f}")

# %%
# Inference of the label: ten copies of every image, each with another label.
net.start(codes.repeat(297, 1), x[test].repeat_interleave(10, 0))
em.loop.run(20)
accuracy = (em.loop.energy().view(297, 10).argmin(1) == labels[test]).float().mean().item()
print(f"labels of the least energy are right for {accuracy:.1%} of 297 test images")

# %%
# The mean images, and those that labels generate.
pyro.plots.images({"mean": means, "generated": generated.clamp(0, 1)})
