"""
Methods of inference compared
=============================

How many sweeps does inference take? One deep network, one batch, the same start: the gap to the lowest energy that any
method found, over sweeps. A sweep is one evaluation of the energy and its gradient.
"""

import matplotlib.pyplot as plt
import torch

import pyromancy as pyro
from pyromancy.methods import Accelerated, Adam, Descent, Heun

torch.manual_seed(0)
net = pyro.networks.mlp([64, *[64] * 19, 10], activation="tanh").double()
for weight in net.m_params():
    if weight.dim() == 2:
        torch.nn.init.normal_(weight, 0, weight.shape[1] ** -0.5)
x, y = torch.randn(32, 64).double(), torch.eye(10)[torch.randint(10, (32,))].double()
net.start(x, y)

# %%
# Descent needs a rate. `pyromancy.max_rate` measures the largest stable one at the states at hand; half of it leaves
# room.

rate = 0.5 * pyro.max_rate(net.energy, net.e_params())
print(f"rate {rate:.3f}")

methods = {
    f"Descent({rate:.2f})": Descent(rate),
    f"Descent({rate:.2f}, momentum=0.9)": Descent(rate, momentum=0.9),
    "Adam(0.01)": Adam(0.01),
    f"Heun({rate:.2f})": Heun(rate, adaptive=False),
    "Accelerated(), on states": Accelerated(coordinates="states"),
    "Accelerated()": Accelerated(),
}

# %%
# ``record=True`` keeps the energies before every step and after the last, means over samples, by node.


def energies(method: pyro.methods.Method, sweeps: int = 400) -> list[float]:
    net.start(x, y)
    loop = pyro.InferenceLoop(net.energy, net.e_params(), method=method)
    trace = loop.run(sweeps // (2 if isinstance(method, Heun) else 1), record=True)
    return trace.energies.sum(1).tolist()


found = {name: energies(method) for name, method in methods.items()}
least = min(min(curve) for curve in found.values())

fig, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
for name, curve in found.items():
    best = torch.tensor(curve).cummin(0).values
    sweeps = torch.arange(len(curve)) * (2 if "Heun" in name else 1)
    axes.semilogy(sweeps, (best - least).clamp_min(1e-9) / (curve[0] - least), label=name)
axes.set(xlabel="sweeps", ylabel="gap to the lowest energy, of the gap at the start", ylim=(1e-6, 1.5))
axes.legend(loc="upper right")

# %%
# On states an error moves down one layer a step, so that depth takes its time. Errors are coordinates in which depth
# does not matter: a sweep reaches every layer.

for name, curve in found.items():
    gap = [(energy - least) / (curve[0] - least) for energy in curve]
    within = next((i for i, share in enumerate(gap) if share <= 0.01), None)
    print(f"{name:28} {'more than 400' if within is None else within * (2 if 'Heun' in name else 1)} sweeps to 1%")
