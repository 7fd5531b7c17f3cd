"""A wheel just installed is the kind that the argument says (native or pure), and a network on it learns."""

import sys

import torch

import pyromancy as pyro
from pyromancy.nodes import FactorizedGaussianNode, FixedNode

kind = sys.argv[1]
served = {s.backend for s in pyro.backends.report() if s.device == "cpu"}
assert served == {"native" if kind == "native" else "reference"}, pyro.backends.describe()

x, edge, node = FixedNode(3), torch.nn.Linear(3, 2), FactorizedGaussianNode(2)
net = torch.nn.ModuleList([x, edge, node])
optimizer = torch.optim.SGD(pyro.get_mstep_params(net), lr=0.1)
energies = []
for _ in range(20):
    x.init(torch.eye(3))
    node.init(torch.ones(3, 2))
    optimizer.zero_grad()
    energy = node.energy(edge(x.value)).mean()
    energy.backward()
    optimizer.step()
    energies.append(energy.item())
assert energies == sorted(energies, reverse=True), energies
print(f"the {kind} wheel learns: energy {energies[0]:.4f} -> {energies[-1]:.4f}")
