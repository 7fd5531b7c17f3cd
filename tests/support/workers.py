"""Processes that learn beside one whose threads have been at work, as a script: `workers.py fork` or `spawn`."""

import sys

import torch
import torch.multiprocessing as multiprocessing
from torch.utils.data import DataLoader, TensorDataset

import pyromancy as pyro


def learned(workers=0, method=None):
    """What a network that is large enough for threads learns from batches that worker processes, or none, bring."""
    torch.manual_seed(0)
    net = pyro.networks.mlp([64, 256, 256, 10], activation="tanh")
    em = pyro.EM(net.energy, net.e_params(), torch.optim.Adam(net.m_params(), 1e-3), start=net.start, steps=4, lr=0.1)
    data = TensorDataset(torch.rand(600, 64), torch.rand(600, 10))
    for batch in DataLoader(data, 100, shuffle=True, num_workers=workers, multiprocessing_context=method):
        em.step(*batch)
    return b"".join(p.detach().numpy().tobytes() for p in net.m_params())


def work(queue):
    """In another process."""
    torch.set_num_threads(2)
    queue.put(learned())


def main(method):
    torch.set_num_threads(2)
    expected = learned()
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=work, args=(queue,))
    process.start()
    assert learned(workers=1, method=method) == expected  # beside it
    assert queue.get(timeout=200) == expected
    process.join(200)
    assert process.exitcode == 0, process.exitcode
    assert learned() == expected
    print("the same")


if __name__ == "__main__":
    main(sys.argv[1])
