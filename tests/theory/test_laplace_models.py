"""Laplace nodes by closed forms: their scale is the mean absolute error, a prior of theirs a soft threshold."""

import torch
from torch import nn

import pyromancy as pyro
from pyromancy.nodes import FixedNode, FloatNode, LaplaceNode, StandardGaussianNode


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.below, self.hidden, self.out = FixedNode(4), StandardGaussianNode(5), LaplaceNode(3)
        self.up, self.top = nn.Linear(4, 5), nn.Linear(5, 3)
        self.double()

    def start(self, x, y):
        self.hidden.init(self.up(self.below.init(x)))
        self.out.init(y)

    def energy(self):
        return self.hidden.energy(self.up(self.below.value)) + self.out.energy(self.top(self.hidden.value))


def test_the_m_step_optimum_of_a_scale_is_the_mean_absolute_error():
    torch.manual_seed(0)
    net = Net()
    x, y = torch.randn(17, 4).double(), torch.randn(17, 3).double()
    optimizer = torch.optim.SGD([net.out.logscale], lr=0.5)
    e_params = [net.hidden.value]
    em = pyro.EM(net.energy, e_params, optimizer, start=net.start, steps=0, lr=0.1)
    for _ in range(60):
        em.step(x, y)
    assert "one call" in em.explain().splitlines()[0]
    wanted = (y - net.top(net.up(x))).abs().mean(0)
    torch.testing.assert_close(net.out.scale, wanted, rtol=1e-12, atol=0)


def test_a_laplace_prior_under_a_gaussian_likelihood_is_a_soft_threshold():
    """The least of 1/2 (y - z)^2 + c |z|: sign(y) max(|y| - c, 0), around which 0 descent goes to and fro."""
    z, y, edge, c, lr = FloatNode(6).double(), StandardGaussianNode(6).double(), nn.Linear(6, 6, False), 0.7, 1e-3
    edge.weight.data = torch.eye(6, dtype=torch.float64)
    data = torch.tensor([[-2.0, -0.9, -0.6, 0.3, 1.1, 3.0]], dtype=torch.float64)
    z.init(torch.zeros(1, 6)), y.init(data)
    loop = pyro.InferenceLoop(lambda: c * z.value.abs().sum(1) + y.energy(edge(z.value)), [z.value], lr=lr)
    loop.run(40_000)
    assert loop.explain().startswith("executor: chain")
    wanted = data.sign() * (data.abs() - c).clamp(min=0)
    zero = wanted == 0
    torch.testing.assert_close(z.value.detach()[~zero], wanted[~zero], rtol=1e-12, atol=1e-12)
    assert z.value.detach()[zero].abs().max() < 2 * lr * c
