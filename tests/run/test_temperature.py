"""Temperatures of outputs, which are learned: logits over, or times, a tensor of one element that is computed."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyromancy as pyro
from descent import assert_as_autograd
from pyromancy.nodes import BernoulliNode, CategoricalNode, FixedNode, FloatNode, StandardGaussianNode

FORMS = {
    "over-exp": lambda mu, t: mu / t.exp(),
    "times-exp": lambda mu, t: mu * torch.exp(t),
    "times-exp-minus": lambda mu, t: (-t).exp() * mu,
    "over": lambda mu, t: mu / t,
    "over-softplus": lambda mu, t: mu / F.softplus(t),
}


class Net(nn.Module):
    """x - h - logits / T - y."""

    def __init__(self, kind, form, shape=()):
        super().__init__()
        torch.manual_seed(0)
        self.below, self.hidden, self.above = FixedNode(5), StandardGaussianNode(18), kind(3)
        self.up, self.top, self.form = nn.Linear(5, 18), nn.Linear(18, 3), FORMS[form]
        self.t = nn.Parameter(torch.full(shape, 0.3))
        self.double()

    def start(self, x, y):
        self.hidden.init(self.up(self.below.init(x)))
        self.above.init(y)

    def logits(self):
        return self.form(self.top(self.hidden.value.tanh()), self.t)

    def energy(self):
        return self.hidden.energy(self.up(self.below.value)) + self.above.energy(self.logits())

    def learned(self):
        return [*self.up.parameters(), *self.top.parameters(), self.t]


def data(kind, batch=9):
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 5, generator=generator).double()
    if kind is CategoricalNode:
        return x, torch.randint(3, (batch,), generator=generator)
    return x, torch.randint(2, (batch, 3), generator=generator).double()


forms = pytest.mark.parametrize("form", FORMS)
kinds = pytest.mark.parametrize("kind", [CategoricalNode, BernoulliNode])


@forms
@kinds
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_steps_and_gradients_are_autograds(kind, form, shape):
    net = Net(kind, form, shape)
    with torch.no_grad():
        net.start(*data(kind))
    told = assert_as_autograd(net.energy, [net.hidden.value], net.learned(), steps=5)
    assert told.startswith("executor: chain\n")
    assert "not fused" not in told


@forms
@kinds
@pytest.mark.parametrize("weights", [False, True])
def test_a_whole_batch(kind, form, weights):
    """A sweep, E-steps and gradients are one call; of samples with weights, too."""
    nets = [Net(kind, form) for _ in range(2)]
    optimizers = [torch.optim.Adam(net.learned(), 0.01) for net in nets]
    of_samples = torch.rand(9, generator=torch.Generator().manual_seed(0)).double()

    def energy(net):
        return of_samples * net.energy() if weights else net.energy()

    em = pyro.EM(lambda: energy(nets[0]), [nets[0].hidden.value], optimizers[0], start=nets[0].start, steps=4, lr=0.1)
    for _ in range(5):
        x, y = data(kind)
        em.step(x, y)
        with torch.no_grad():
            nets[1].start(x, y)
        z = nets[1].hidden.value
        for _ in range(4):
            (gradient,) = torch.autograd.grad(energy(nets[1]).sum(), z)
            z.data -= 0.1 * gradient
        optimizers[1].zero_grad()
        energy(nets[1]).mean().backward(inputs=nets[1].learned())
        optimizers[1].step()
    for p, q in zip(nets[0].learned(), nets[1].learned(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)
    assert em.explain().startswith("a batch: one call of an operator, then the optimizer\n")
    assert nets[0].t.item() != 0.3


@pytest.mark.usefixtures("native_backend")
@pytest.mark.parametrize("method", [pyro.methods.Accelerated(), pyro.methods.Adam(0.05)], ids=repr)
def test_a_whole_batch_by_a_method(method):
    net = Net(CategoricalNode, "over-exp")
    optimizer = torch.optim.Adam(net.learned(), 0.01)
    em = pyro.EM(
        net.energy, [net.hidden.value], optimizer, start=net.start, steps=50, method=method,
        tol=1e-3 if method.moves == "errors" else None,
    )  # fmt: skip
    before = None
    for _ in range(30):
        em.step(*data(CategoricalNode))
        before = before or net.energy().mean().item()
    assert em.explain().startswith("a batch: one call of an operator, then the optimizer\n")
    assert net.energy().mean().item() < 0.8 * before


@pytest.mark.parametrize("kind", [CategoricalNode, BernoulliNode])
def test_the_best_temperature(kind):
    """Where logits are a or -a, and right in a share p of the samples: that at which ``sigmoid(a / T)`` is p."""
    a, right, count = 3.0, 8, 11
    z = FloatNode(1).double()
    z.init(torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0).double()[:, None])
    hit = torch.arange(count) < right
    positive = (z.value.detach()[:, 0] > 0) == hit
    top, t = (
        nn.Linear(1, 2 if kind is CategoricalNode else 1, bias=False).double(),
        nn.Parameter(torch.zeros(()).double()),
    )
    target = kind(top.out_features).double()
    if kind is CategoricalNode:
        top.weight.data = torch.tensor([[-a / 2], [a / 2]]).double()
        target.init(positive.long())
    else:
        top.weight.data = torch.tensor([[a]]).double()
        target.init(positive.double()[:, None])
    loop = pyro.InferenceLoop(
        lambda: 0.5 * z.value.square().sum(1) + target.energy(top(z.value) / t.exp()),
        [z.value],
        lr=0.1,
        executor="chain",
    )
    optimizer = torch.optim.SGD([t], lr=0.5)
    for _ in range(400):
        optimizer.zero_grad()
        loop.backward([t])
        optimizer.step()
    assert "not fused" not in loop.explain()
    share = right / count
    assert t.exp().item() == pytest.approx(a / math.log(share / (1 - share)), rel=1e-10)


def test_temperatures_of_classes():
    """By the graph executor, and right."""
    net = Net(CategoricalNode, "times-exp", (3,))
    with torch.no_grad():
        net.start(*data(CategoricalNode))
        net.t.copy_(torch.tensor([0.2, -0.1, 0.4]))
    told = assert_as_autograd(net.energy, [net.hidden.value], net.learned())
    assert told.startswith("executor: graph\n")
