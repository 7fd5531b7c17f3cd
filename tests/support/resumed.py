"""Trainings that stop in the middle of an epoch and go on in another process, which starts this module."""

import sys
from unittest import mock

import torch
from torch.utils.data import DataLoader, TensorDataset

import pyromancy as pyro
from pyromancy import methods

EPOCHS, STOP = 3, (1, 3)  # in the second epoch, after three parts


class Training:
    """A network that learns, from the same beginning every time; a part of an epoch is a batch."""

    def __init__(self, kind):
        torch.manual_seed(3)
        self.kind = kind
        self.data = torch.rand(60, 8), torch.rand(60, 3)
        if kind == "dropout":
            layers = torch.nn.Linear(8, 12), torch.nn.Tanh(), torch.nn.Dropout(0.3), torch.nn.Linear(12, 3)
            self.net = pyro.networks.from_sequential(torch.nn.Sequential(*layers))
        elif kind == "graph":
            layers = torch.nn.Unflatten(1, (1, 8)), torch.nn.Conv1d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten()
            self.net = pyro.networks.from_sequential(torch.nn.Sequential(*layers, torch.nn.Linear(24, 3)))
        else:
            self.net = pyro.networks.mlp([8, 12, 10, 3])
        learned = self.net.m_params()
        options = {"steps": 4, "lr": 0.1}
        optimizer = torch.optim.Adam(learned, 0.01)
        self.generator = torch.Generator().manual_seed(5)
        self.noise = None
        if kind == "momentum":
            optimizer = torch.optim.SGD(learned, 0.1, momentum=0.9)
            options["momentum"] = 0.5
        elif kind == "called":
            optimizer = torch.optim.NAdam(learned, 0.01)
            self.generator = None
        elif kind == "incremental":
            options["incremental"] = True
        elif kind == "accelerated":
            options = {"steps": 20, "method": methods.Accelerated(), "tol": 1e-2}
        elif kind in ("langevin", "own noise"):
            self.noise = torch.Generator().manual_seed(8) if kind == "own noise" else None
            options = {"steps": 4, "method": methods.Langevin(0.01, generator=self.noise)}
        self.em = pyro.EM(self.net.energy, self.net.e_params(), optimizer, start=self.net.start, **options)
        self.rates = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        self.loader = DataLoader(TensorDataset(*self.data), 8, shuffle=True, generator=self.generator)
        self.epoch = 0

    def run(self, until=EPOCHS, parts=None):
        """Epochs up to one, of which the last may be left after so many parts."""
        while self.epoch < until:
            if self.kind == "loader":
                for batch in self.loader:
                    self.em.step(*batch)
            else:
                for _ in self.em.epoch(*self.data, batch_size=8, generator=self.generator):
                    if self.epoch == until - 1 and parts is not None:
                        parts -= 1
                        if parts == 0:
                            return
            self.epoch += 1
            self.rates.step()
            if self.kind == "annealed":
                self.em.lr, self.em.steps = self.em.lr / 2, self.em.steps + 1

    @mock.patch("pyromancy.run.em._PART", 0.0)
    def stop(self):
        """Somewhere; a pass over a loader is in nobody's state, and so it is finished."""
        self.run(2, None if self.kind == "loader" else STOP[1])

    def state(self):
        """What docs/saving.md says is to be saved."""
        return {
            "net": self.net.state_dict(),
            "em": self.em.state_dict(),
            "rates": self.rates.state_dict(),
            "epoch": self.epoch,
            "random": torch.get_rng_state(),
            "generator": None if self.generator is None else self.generator.get_state(),
        }

    def load(self, state):
        self.net.load_state_dict(state["net"])
        self.em.load_state_dict(state["em"])
        self.rates.load_state_dict(state["rates"])
        self.epoch = state["epoch"]
        if self.generator is not None:
            self.generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])

    def result(self):
        """All that has been learned, and what is drawn next."""
        optimizer = self.em.optimizer.state_dict()["state"]
        slots = [t for state in optimizer.values() for t in state.values() if isinstance(t, torch.Tensor)]
        drawn = [torch.rand(3), torch.rand(3, generator=self.generator), torch.rand(3, generator=self.noise)]
        return [*(p.detach() for p in self.net.m_params()), *slots, *drawn, torch.tensor(self.em.batches)]


KINDS = (
    "adam", "momentum", "called", "incremental", "annealed", "accelerated", "langevin", "own noise", "dropout",
    "graph", "loader",
)  # fmt: skip


if __name__ == "__main__":
    for kind in KINDS:
        training = Training(kind)
        torch.manual_seed(99)  # another process is elsewhere
        training.load(torch.load(f"{sys.argv[1]}/{kind}.pt", weights_only=True))
        training.run()
        torch.save(training.result(), f"{sys.argv[1]}/{kind}.after.pt")
