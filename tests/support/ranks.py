"""Trainings of several processes, as a script: `ranks.py FOLDER PROCESSES`. What each comes to goes into the folder.

They are started as torchrun would, by its launcher, but forked.
"""

import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import pyromancy as pyro
from pyromancy import methods

SIZES = (5, 1, 4, 2)  # of the parts of a batch, by process
STEPS = 3


def data(batch):
    """Inputs and targets, the same in every process."""
    generator = torch.Generator().manual_seed(batch)
    rows = 59 if batch < 0 else 12
    return (torch.rand(rows, width, dtype=torch.float64, generator=generator) for width in (8, 3))


class Training:
    """A network of a kind and its `EM`; `seed` is of its beginning."""

    def __init__(self, kind, seed=0, **options):
        torch.manual_seed(seed)
        net = pyro.networks.mlp([8, 12, 10, 3])
        if kind == "graph":
            layers = torch.nn.Unflatten(1, (1, 8)), torch.nn.Conv1d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten()
            net = pyro.networks.from_sequential(torch.nn.Sequential(*layers, torch.nn.Linear(24, 3)))
        self.net = net.double()
        optimizer = torch.optim.Adam(net.m_params(), 0.01)
        given = {"steps": 4, "lr": 0.1}
        if kind == "called":
            optimizer = torch.optim.NAdam(net.m_params(), 0.01)
        elif kind == "accelerated":
            given = {"steps": 20, "method": methods.Accelerated(), "tol": 1e-2}
        elif kind in ("incremental", "joint"):
            given["incremental"] = {"incremental": True}.get(kind, kind)
        self.em = pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, **given, **options)

    def run(self, of=lambda t: t):
        """Batches, of each of which `of` gives the samples that are learned from, and then an epoch."""
        for batch in range(STEPS):
            self.em.step(*map(of, data(batch)))
        told = self.em.explain()
        parts = sum(part.samples for part in self.em.epoch(*data(-1), batch_size=8))
        assert parts == 59
        return {"learned": [p.detach() for p in self.net.m_params()], "told": told, "batches": self.em.batches}


KINDS = ("plain", "called", "accelerated", "incremental", "joint", "graph")


def refusals(rank):
    """What is refused, by all processes or where it is."""
    found = {}

    def tried(name, work):
        try:
            work()
        except (TypeError, ValueError) as error:
            found[name] = f"{type(error).__name__}: {error}"

    def shapes():
        net = pyro.networks.mlp([4, 3 + rank, 2])
        optimizer = torch.optim.SGD(net.m_params(), 0.1)
        pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=1, lr=0.1, distributed=True)

    tried("shapes", shapes)
    first = dist.new_group([0])
    if rank:
        tried("group", lambda: Training("plain", distributed=first))
    return found


def main(folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    splits = [sum(SIZES[i::size]) for i in range(size)]
    results = {}
    for kind in KINDS:
        training = Training(kind, seed=rank, distributed=True)  # all begin as the first does
        torch.manual_seed(100 + rank)
        if rank == 0:
            torch.manual_seed(7)  # whose order all take
        results[kind] = training.run(lambda t: t.split(splits)[rank])
    results["refused"] = refusals(rank)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    folder, size = sys.argv[1:]
    ways = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "start_method": "fork"}
    elastic_launch(LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=int(size), run_id="tests", **ways), main)(
        folder
    )
