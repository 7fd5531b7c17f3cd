"""
Classification, by squares and by cross-entropy
===============================================

Two networks learn scikit-learn's digits. The output of the first is Gaussian: its energy is the squared error of a
one-hot target. The output of the second is categorical: its energy is the cross-entropy.
"""

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import one_hot

import pyromancy as pyro

digits = load_digits()
x, labels = torch.tensor(digits.data / 16).float(), torch.tensor(digits.target)
train, test = slice(0, 1500), slice(1500, None)

# %%
# A batch is one call of an operator: the forward sweep, 20 E-steps, the M-step and Adam.
accuracy = {}
for output, target in {"gaussian": one_hot(labels, 10).float(), "categorical": labels}.items():
    torch.manual_seed(0)
    net = pyro.networks.mlp([64, 128, 128, 10], activation="gelu", output=output)
    optimizer = torch.optim.Adam(net.m_params(), lr=3e-3)
    em = pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=20, lr=0.1)
    for _ in range(10):
        for _ in em.epoch(x[train], target[train], batch_size=50):
            pass
    guesses = net.predict(x[test]).argmax(1)
    accuracy[output] = (guesses == labels[test]).float().mean().item()
    print(f"{output}: {accuracy[output]:.1%} of 297 test images; {em.explain().splitlines()[0]}")

# %%
# Images of which the second network is right, and wrong.
shown = {"right": x[test][guesses == labels[test]], "wrong": x[test][guesses != labels[test]]}
pyro.plots.images(shown, columns=12)
