r"""
A bidirectional network
=======================

Every state is predicted from both sides: the label from the image, as a classifier does, and the image from the label,
as a generative model does (bidirectional predictive coding, arXiv:2505.23415). One network then does both. The second
prediction of a state is that of zero by the state's error, :math:`0 \approx z - \mu`.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import pyromancy as pyro
from pyromancy.nodes import FixedNode, StandardGaussianNode

digits = load_digits()
x, labels = torch.tensor(digits.data / 16).float(), torch.tensor(digits.target)
train, test, y = slice(0, 1500), slice(1500, None), torch.eye(10)[labels]
torch.manual_seed(0)
image, hidden, label, zero = FixedNode(64), StandardGaussianNode(64), StandardGaussianNode(10), FixedNode(64)
up, top = nn.Linear(64, 64), nn.Sequential(nn.Tanh(), nn.Linear(64, 10))
down, draw = nn.Linear(10, 64), nn.Sequential(nn.Tanh(), nn.Linear(64, 64))
gaussian = pyro.functional.gaussian_energy


def energy():
    upward = hidden.energy(up(image.value)) + label.energy(top(hidden.value))
    downward = gaussian(zero.value, hidden.value - down(label.value)) + gaussian(image.value, draw(hidden.value))
    return upward + 0.1 * downward


def start(images, labels):
    hidden.init(up(image.init(images)))
    label.init(labels), zero.init(torch.zeros(len(images), 64))


# %%
# Both ends are clamped, and the hidden state is inferred.
parameters = [p for edge in (up, top, down, draw) for p in edge.parameters()]
optimizer = torch.optim.Adam(parameters, lr=3e-3)
em = pyro.EM(energy, [hidden.value], optimizer, start=start, steps=20, lr=0.1)
for _ in range(8):
    for _ in em.epoch(x[train], y[train], batch_size=50):
        pass
print(em.explain())

# %%
# Upwards it classifies, and downwards it generates.
accuracy = (top(up(x[test])).argmax(1) == labels[test]).float().mean().item()
means = torch.stack([x[train][labels[train] == k].mean(0) for k in range(10)])
error = (draw(down(torch.eye(10))) - means).square().mean().item()
print(f"{accuracy:.1%} of 297 test images")
print(f"mean square of generated images from the mean ones {error:.4f}; these vary by {means.var(0).mean():.3f}")

# %%
# The mean images, and those that labels generate.
pyro.plots.images({"mean": means, "generated": draw(down(torch.eye(10))).clamp(0, 1)})
