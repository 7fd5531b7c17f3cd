"""
Where does the time go?
=======================

One batch of training in three ways: the loop of autograd, `InferenceLoop` in the place of its inner loop, and `EM` for
all of it. They come to the same weights, up to rounding.
"""

import time
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from torch.profiler import ProfilerActivity, profile

import pyromancy as pyro

torch.manual_seed(0)
x, y = torch.rand(128, 784), torch.eye(10)[torch.randint(10, (128,))]
net = pyro.networks.mlp([784, 128, 128, 128, 10], activation="tanh")
optimizer = torch.optim.Adam(net.m_params(), lr=1e-3)
em = pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=8, lr=0.1)
loop = em.loop


def plain() -> None:
    net.start(x, y)
    states = torch.optim.SGD(net.e_params(), lr=0.1)
    for _ in range(8):
        states.zero_grad()
        net.energy().sum().backward(inputs=net.e_params())
        states.step()
    optimizer.zero_grad()
    net.energy().mean().backward(inputs=net.m_params())
    optimizer.step()


def inference_loop() -> None:
    net.start(x, y)
    loop.run(8)
    optimizer.zero_grad()
    loop.backward(net.m_params())
    optimizer.step()


def whole_batch() -> None:
    em.step(x, y)


# %%
# Times alternate, and medians are compared, as a machine has other things to do, too.

ways: dict[str, Callable[[], None]] = {"autograd": plain, "InferenceLoop": inference_loop, "EM": whole_batch}
times: dict[str, list[float]] = {name: [] for name in ways}
for _ in range(60):
    for name, batch in ways.items():
        begin = time.perf_counter()
        batch()
        times[name].append(time.perf_counter() - begin)
medians = {name: 1e3 * sorted(values)[30] for name, values in times.items()}

fig, axes = plt.subplots(figsize=(7, 2.4), layout="constrained")
axes.bar_label(axes.barh([*medians], [*medians.values()]), fmt="%.2f ms", padding=4)
axes.invert_yaxis()
axes.set(xlabel="ms per batch")
axes.margins(x=0.15)

# %%
# PyTorch's profiler sees the operators. In the loop of autograd there are hundreds of calls:

with profile(activities=[ProfilerActivity.CPU]) as seen:
    plain()
print(len([event for event in seen.events() if event.name.startswith("aten::")]), "calls of PyTorch's operators")

# %%
# In `EM` one operator does the work:

with profile(activities=[ProfilerActivity.CPU]) as seen:
    em.step(x, y)
for event in sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)[:5]:
    print(f"{event.key:40} {event.count:3} call(s)")

# %%
# ``explain`` tells why. Where it begins with ``not``, it names something faster, and what keeps it from that.

print(em.explain())
