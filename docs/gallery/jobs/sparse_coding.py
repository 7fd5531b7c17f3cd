"""
Sparse coding
=============

A dictionary of atoms whose few explain an image. E-steps are FISTA's, a rate with momentum and a proximal step, so that
codes are those of the lasso; M-steps learn the atoms, which keep norm 1.
"""

import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import sparse_encode
from torch import nn

import pyromancy as pyro
from pyromancy.methods import Accelerated, Shrink
from pyromancy.nodes import FloatNode, StandardGaussianNode

torch.manual_seed(0)
x = torch.tensor(load_digits().data / 16)
x = x - x.mean(0)
code, image, atoms = FloatNode(100).double(), StandardGaussianNode(64).double(), nn.Linear(100, 64, False).double()


def infer(batch, steps):
    code.init(torch.zeros(len(batch), 100)), image.init(batch)
    rate = 1 / torch.linalg.matrix_norm(atoms.weight.detach(), 2).item() ** 2
    fista = Accelerated(rate, coordinates="states", constraints={code: Shrink(0.2)})
    loop = pyro.InferenceLoop(lambda: image.energy(atoms(code.value)), [code.value], method=fista)
    loop.run(steps)
    return loop


# %%
# Learning. The cost of a batch is its energy and the weighted sum of its codes.
optimizer, costs = torch.optim.Adam(atoms.parameters(), lr=0.01), []
for batch in x[torch.randperm(1797)][:1750].repeat(3, 1).split(50):
    atoms.weight.data /= atoms.weight.data.norm(dim=0)
    loop = infer(batch, 40)
    optimizer.zero_grad(), loop.backward(atoms.parameters()), optimizer.step()
    costs.append((loop.energy() + 0.2 * code.value.detach().abs().sum(1)).mean().item())
print(loop.explain())

# %%
# Codes beside scikit-learn's lasso, with the learned atoms.
infer(x[:100], 1000)
lasso = sparse_encode(x[:100].numpy(), atoms.weight.detach().T.numpy(), algorithm="lasso_lars", alpha=0.2)
error = (code.value.detach() - torch.tensor(lasso)).abs().max().item()
zeros = (code.value == 0).double().mean().item()
print(f"cost {costs[0]:.2f} at first, {sum(costs[-10:]) / 10:.2f} at the end; {zeros:.0%} of codes are 0")
print(f"largest difference from the lasso's codes: {error:.1e}")

# %%
# The atoms.
pyro.plots.dictionary(atoms.weight, columns=20)
