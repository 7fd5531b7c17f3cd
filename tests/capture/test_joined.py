"""Several energies of one state: chains take them as one law of one's own, and come to what autograd does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyromancy as pyro
from pyromancy.functional import gaussian_energy, laplace_energy, student_energy

BATCH, WIDTH = 7, 4


class Net(nn.Module):
    """A hidden state between data, and weights per sample."""

    def __init__(self):
        super().__init__()
        self.up, self.top = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.double()
        self.x, self.y, self.w = (torch.rand(BATCH, *n, dtype=torch.float64) + 0.1 for n in ((5,), (3,), ()))
        self.z = nn.Parameter(torch.randn(BATCH, WIDTH, dtype=torch.float64))

    @property
    def mu(self):
        return self.up(self.x)

    @property
    def out(self):
        return gaussian_energy(self.y, self.top(self.z))


JOINED = {
    "an L1 penalty": lambda n: gaussian_energy(n.z, n.mu) + 0.1 * n.z.abs().sum(1) + n.out,
    "three": lambda n: gaussian_energy(n.z, n.mu) + 0.1 * n.z.abs().sum(1) + 0.03 * (n.z**4).sum(1) + n.out,
    "priors alone": lambda n: 0.5 * (n.z**2).sum(1) + 0.3 * torch.log(torch.cosh(n.z)).sum(1) + n.out,
    "of numbers": lambda n: 0.5 * ((n.z - 1) ** 2).sum(1) + 0.3 * (n.z + 2).abs().sum(1) + n.out,
    "a constant": lambda n: laplace_energy(n.z, torch.ones_like(n.x[:, :WIDTH])) + (n.z**2).sum(1) + n.out,
    "losses": lambda n: (
        F.huber_loss(n.z, n.mu, reduction="none", delta=0.5).sum(1)
        + F.mse_loss(n.mu, n.z, reduction="none").sum(1)
        + n.out
    ),
    "student": lambda n: student_energy(n.z, n.mu, None, 3.0) + 0.2 * torch.exp(-n.z).sum(1) + n.out,
    "alike": lambda n: gaussian_energy(n.z, n.mu) + 0.5 * gaussian_energy(n.z, n.mu) + n.out,
    "of the output": lambda n: gaussian_energy(n.z, n.mu) + n.out + 0.4 * (n.y - n.top(n.z)).abs().sum(1),
    "cross-entropies": lambda n: (
        gaussian_energy(n.z, n.mu)
        + F.binary_cross_entropy_with_logits(n.top(n.z), n.y, reduction="none").sum(1)
        + F.poisson_nll_loss(n.top(n.z), n.y, reduction="none").sum(1)
    ),
    "weights per sample": lambda n: n.w * gaussian_energy(n.z, n.mu) + n.w * n.z.abs().sum(1) + n.out,
}


def run(net, energy, executor, reduced=lambda e: e):
    """States, gradients and recorded energies, after a few E-steps, and which executor it was."""
    net.zero_grad()
    with torch.no_grad():
        net.z.copy_(torch.linspace(-1, 2, net.z.numel(), dtype=torch.float64).view_as(net.z))
    loop = pyro.InferenceLoop(lambda: reduced(energy(net)), [net.z], lr=0.05, executor=executor)
    record = reduced(net.w).dim() == 1
    energies = loop.run(5, record=record).energies
    weights = [*net.up.parameters(), *net.top.parameters()]
    loop.backward(weights)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]
    return [net.z.detach().clone(), *gradients, *([energies.sum(1)] if record else [])], loop.explain()


@pytest.mark.filterwarnings("ignore:the energy is one number")
@pytest.mark.parametrize("reduced", [lambda e: e, torch.sum, torch.mean], ids=["per-sample", "sum", "mean"])
@pytest.mark.parametrize("name", JOINED)
def test_energies_of_one_state(name, reduced):
    net, energy = Net(), JOINED[name]
    found, told = run(net, energy, None, reduced)
    expected, _ = run(net, energy, "autograd", reduced)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    assert "executor: chain" in told, told


def test_what_is_alike_keeps_its_law():
    """A Gaussian twice is one of more weight, of which the bound of a Gaussian chain is known."""
    net = Net()
    loop = pyro.InferenceLoop(
        lambda: gaussian_energy(net.z, net.mu) + gaussian_energy(net.z, net.mu) + net.out,
        [net.z],
        method=pyro.methods.Accelerated(),
    )
    loop.run(10, tol=1e-3)
    assert "tol by a bound from errors and gradients" in loop.explain()
