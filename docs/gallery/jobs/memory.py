"""
Memory: completion from a part
==============================

A network stores fifty images, and recalls each from half of its pixels: those are held at data, and inference finds the
others, with the code that explains what is known.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import pyromancy as pyro
from pyromancy.methods import Accelerated, Range, Shrink
from pyromancy.nodes import FloatNode, StandardGaussianNode

images, half = torch.tensor(load_digits().data[:50] / 16).float(), torch.arange(64) < 32
torch.manual_seed(0)
code, pixels, atoms = FloatNode(80), StandardGaussianNode(64), nn.Linear(80, 64, bias=False)


def energy():
    image = torch.where(known, images, pixels.value)
    return pyro.functional.gaussian_energy(image, atoms(code.value))


def infer(prior, steps):
    code.init(torch.zeros(50, 80)), pixels.init(torch.zeros(50, 64))
    rate = 1 / (1 + torch.linalg.matrix_norm(atoms.weight.detach(), 2).item() ** 2)
    sparse = {code: (Shrink(prior), Range(0, None))}
    fista = Accelerated(rate, coordinates="states", constraints=sparse)
    loop = pyro.InferenceLoop(energy, [code.value, pixels.value], method=fista)
    loop.run(steps)
    return loop


# %%
# Storing: all pixels are known. Codes are sparse and not negative, atoms have norm 1.
optimizer, known = torch.optim.Adam(atoms.parameters(), lr=0.01), torch.ones(50, 64, dtype=torch.bool)
for _ in range(300):
    atoms.weight.data /= atoms.weight.data.norm(dim=0)
    loop = infer(0.1, 20)
    optimizer.zero_grad(), loop.backward(atoms.parameters()), optimizer.step()
print(loop.explain())

# %%
# Recall, from the upper half.
known = half.expand(50, 64)
infer(0.01, 3000)
error = (pixels.value - images)[:, ~half].square().mean().item()
print(f"mean square of the lower halves {error:.1e}; their variance is {images[:, ~half].var(0).mean():.3f}")

# %%
# Images, what is given of them, and what is recalled.
shown = {"stored": images, "given": images * half, "recalled": torch.where(half, images, pixels.value)}
pyro.plots.images(shown, columns=12)
