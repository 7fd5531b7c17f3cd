"""
Ten minutes
===========

From the installation to a network that is trained, watched and saved. It classifies the 8 x 8 digits that come with
scikit-learn; all of this page runs in a few seconds.

Install
-------

.. code-block:: sh

    pip install torch 'setuptools>=77' ninja 'pybind11>=2.13'
    pip install --no-build-isolation '.[examples]'    # in a checkout; it compiles for some minutes
    python -m pyromancy                               # which kernels serve this machine

``PYROMANCY_NATIVE=0`` before the second command does without a compiler, and everything runs, slower.

Data
----

Rows are samples. Labels stay numbers.
"""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import pyromancy as pyro

torch.manual_seed(0)
digits = load_digits()
parts = train_test_split(digits.data / 16, digits.target, test_size=0.2, random_state=0)
x, test_x = (torch.from_numpy(part).float() for part in parts[:2])
labels, test_labels = (torch.from_numpy(part) for part in parts[2:])

# %%
# A network
# ---------
#
# A predictive coding network is a row of *nodes*, which hold a state for every sample, and *edges*, which predict the
# state of one node from that of the node below. Below is the cause and above is what it predicts: here pixels predict
# the class. (Rao and Ballard draw it the other way up.)
#
# .. code-block:: text
#
#     above    labels     clamped to the targets, in training
#       ^
#     hidden 2            free: inference finds their states
#       ^
#     hidden 1
#       ^                 an edge: activation, then Linear
#     below    pixels     clamped to the data
#
# Every node but the lowest has an *energy*, which says how far its state is from its prediction. It is half the squared
# distance for hidden nodes, and the cross-entropy for a categorical output.

net = pyro.networks.mlp([64, 128, 128, 10], output="categorical")
print(net)

# %%
# Train
# -----
#
# Two things alternate. *E-steps* move the free states down the energy while the weights rest: this is inference.
# An *M-step* then moves the weights while the states rest: this is learning, by any optimizer of PyTorch's. `EM` does
# both for every batch, and ``epoch`` passes over the data in random order, for about 0.1 s at a time.

optimizer = torch.optim.Adam(net.m_params(), lr=1e-3)
em = pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=20, lr=0.1)


def accuracy() -> float:
    with torch.no_grad():
        return (net.predict(test_x).argmax(1) == test_labels).float().mean().item()


for epoch in range(1, 11):
    for _part in em.epoch(x, labels, batch_size=32):
        pass  # a place for a progress bar
    print(f"epoch {epoch:2}   accuracy {accuracy():.1%}")

# %%
# ``predict`` is a forward sweep. It needs no E-steps: with nothing above to disagree, every state rests at its
# prediction.
#
# What ran? ``explain`` tells it, and names what would be faster.

print(em.explain())

# %%
# Watch
# -----
#
# Did inference come to its end? An `InferenceLoop` infers without learning. It records the energy of every node before
# every E-step and after the last.

net.start(x[:256], labels[:256])
loop = pyro.InferenceLoop(net.energy, net.e_params(), lr=0.1)
trace = loop.run(20, record=True)
trace.plot()

# %%
# After the forward sweep the labels' node alone has an energy. E-steps hand it down to the hidden nodes, and the sum
# falls.
# Where it rises the rate is too high. The largest stable rate falls as weights grow, so look again from time to time:

print(f"stable below {pyro.max_rate(net.energy, net.e_params()):.2f}")

# %%
# A method without a rate has nothing to tune, and stops every sample by itself:

net.start(x[:256], labels[:256])
trace = pyro.InferenceLoop(net.energy, net.e_params(), method=pyro.methods.Accelerated()).run(100, tol=1e-2)
print(f"{trace.taken.float().mean():.1f} sweeps in the mean, {trace.steps} at most")

# %%
# Save
# ----
#
# States belong to a batch. A checkpoint holds what was learned, and what goes on learning.

path = Path(tempfile.mkdtemp()) / "digits.pt"
torch.save({"net": net.state_dict(), "em": em.state_dict()}, path)

again = pyro.networks.mlp([64, 128, 128, 10], output="categorical")
again.load_state_dict(torch.load(path)["net"])
with torch.no_grad():
    print(torch.equal(again.predict(test_x), net.predict(test_x)))
