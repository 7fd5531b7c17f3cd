r"""
Linear networks: the energy at equilibrium
==========================================

In a linear network the least energy has a closed form, :math:`F^* = \frac12 r^T S^{-1} r` with
:math:`r = y - W_L \cdots W_1 x` and :math:`S = I + \sum_{l=2}^{L} P_l P_l^T`, :math:`P_l = W_L \cdots W_l`. Inference
comes to it, in the few sweeps that quasi-Newton steps take.
"""

import torch

import pyromancy as pyro

torch.manual_seed(0)
net = pyro.networks.mlp([20, *[30] * 8, 5], activation="identity", bias=False).double()
x, y = torch.randn(100, 20).double(), torch.randn(100, 5).double()
net.start(x, y)
loop = pyro.InferenceLoop(net.energy, net.e_params(), method=pyro.methods.Accelerated())
trace = loop.run(100, record=True, tol=1e-12)
print(loop.explain())

# %%
# The closed form, of the same weights.
weights = [layer.weight.detach() for layer in net.sequential() if hasattr(layer, "weight")]
product, s = torch.eye(5).double(), torch.eye(5).double()
for weight in reversed(weights[1:]):
    product = product @ weight
    s = s + product @ product.T
r = y - x @ (product @ weights[0]).T
closed = 0.5 * (r * torch.linalg.solve(s, r.T).T).sum(1)
error = (loop.energy() - closed).abs().max().item()
print(f"after {trace.steps} sweeps the largest of 100 energies' errors is {error:.1e}")

# %%
# Energies of the nodes on the way.
trace.plot()
