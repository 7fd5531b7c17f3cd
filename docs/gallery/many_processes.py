"""
Many processes
==============

Two processes, which ``torchrun`` starts, learn one network: each infers the states of half of every batch, and
gradients are averaged over both. It comes to what one process comes to. :doc:`/distributed` has clusters, too.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

# %%
# The program is the same for one process and for many.

PROGRAM = """
import os, sys
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
import pyromancy as pyro

several = "RANK" in os.environ
if several:
    dist.init_process_group("gloo")
torch.manual_seed(0)
digits = load_digits()
x, labels = torch.tensor(digits.data / 16).float(), torch.tensor(digits.target)
net = pyro.networks.mlp([64, 128, 10], output="categorical")
optimizer = torch.optim.SGD(net.m_params(), lr=0.1, momentum=0.9)
em = pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=10, lr=0.1, distributed=several)
accuracies, generator = [], torch.Generator().manual_seed(0)
for _ in range(5):
    for part in em.epoch(x[:1500], labels[:1500], batch_size=60, generator=generator):
        pass
    accuracies.append((net.predict(x[1500:]).argmax(1) == labels[1500:]).float().mean().item())
if not several or dist.get_rank() == 0:
    torch.save({"accuracies": accuracies, "weights": net.state_dict(), "explained": em.explain()}, sys.argv[1])
if several:
    dist.destroy_process_group()
"""

folder = Path(tempfile.mkdtemp())
(folder / "train.py").write_text(PROGRAM)
torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
found = {}
for name, launcher in {"one process": [sys.executable], "two processes": torchrun}.items():
    command = [*launcher, str(folder / "train.py"), str(folder / f"{name}.pt")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found[name] = torch.load(folder / f"{name}.pt")

# %%
# Both have learned the same, to rounding.

one, two = (found[name]["weights"] for name in ("one process", "two processes"))
difference = max((one[key] - two[key]).abs().max().item() for key in one)
print(f"largest difference of weights {difference:.1e}")
print(found["two processes"]["explained"])

fig, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for (name, result), style in zip(found.items(), ("o-", "x--"), strict=True):
    axes.plot(range(1, 6), [100 * accuracy for accuracy in result["accuracies"]], style, label=name)
axes.set(xlabel="epoch", ylabel="% of the test images", xticks=range(1, 6))
axes.legend()
