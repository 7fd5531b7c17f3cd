"""Laws of one's own with a tensor of their own: a scale that learns, or weights of elements, such as masks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyromancy as pyro
from pyromancy.functional import gaussian_energy

BATCH, WIDTH, OUT = 7, 4, 3


class Net(nn.Module):
    """A hidden state between data; scales, and a mask."""

    def __init__(self):
        super().__init__()
        self.up, self.top = nn.Linear(5, WIDTH), nn.Linear(WIDTH, OUT)
        self.hidden, self.out = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(OUT))
        self.one, self.of_all = nn.Parameter(torch.tensor([0.2])), nn.Parameter(torch.tensor(0.3))
        self.double()
        self.x, self.y, self.row = (torch.rand(BATCH, n, dtype=torch.float64) for n in (5, OUT, 1))
        self.known = torch.rand(BATCH, OUT) < 0.6
        self.z = nn.Parameter(torch.empty(BATCH, WIDTH, dtype=torch.float64))

    @property
    def mu(self):
        return self.up(self.x)

    @property
    def logits(self):
        return self.top(self.z)

    @property
    def prior(self):
        return gaussian_energy(self.z, self.mu)

    @property
    def gaussian(self):
        return gaussian_energy(self.y, self.logits)

    @property
    def losses(self):
        return F.binary_cross_entropy_with_logits(self.logits, self.y, reduction="none")


def logistic(z, mu, scale):
    d = (z - mu) * torch.exp(-scale)
    return (d + 2 * F.softplus(-d) + scale).sum(1)


CASES = {
    "per feature": lambda n: logistic(n.z, n.mu, n.hidden) + n.gaussian,
    "one for all": lambda n: logistic(n.z, n.mu, n.of_all) + n.gaussian,
    "one": lambda n: logistic(n.z, n.mu, n.one) + n.gaussian,
    "computed": lambda n: logistic(n.z, n.mu, 2 * n.hidden.tanh()) + n.gaussian,
    "of the output": lambda n: n.prior + logistic(n.y, n.logits, n.out),
    "a quotient": lambda n: n.prior + torch.log(torch.cosh((n.y - n.logits) / F.softplus(n.out))).sum(1),
    "a prior's": lambda n: (n.hidden.exp() * n.z.abs() - n.hidden).sum(1) + n.gaussian,
    "a variance": lambda n: n.prior + 0.5 * ((n.y - n.logits) ** 2 / n.out.exp() + n.out).sum(1),
    "a mask": lambda n: n.prior + (n.known * n.losses).sum(1),
    "a mask of numbers": lambda n: n.prior + (n.known.double() * n.losses).sum(1),
    "a mask and weights": lambda n: n.prior + (n.row * n.known * n.losses).sum(1),
    "where": lambda n: n.prior + torch.where(n.known, n.losses, 0.0).sum(1),
    "squares and a mask": lambda n: n.prior + 0.5 * (n.known.double() * (n.y - n.logits) ** 2).sum(1),
    "counts and a mask": lambda n: n.prior + (n.known * F.poisson_nll_loss(n.logits, n.y, reduction="none")).sum(1),
}


def run(net, energy, executor, **how):
    """States and gradients after some E-steps, energies where they are recorded, and which executor it was."""
    net.zero_grad()
    with torch.no_grad():
        net.z.copy_(torch.linspace(-1, 2, net.z.numel(), dtype=torch.float64).view_as(net.z))
    loop = pyro.InferenceLoop(lambda: energy(net), [net.z], executor=executor, **how)
    recorded = loop.run(5, record=True).energies if "lr" in how else loop.run(5) and None
    learned = [p for p in net.parameters() if p is not net.z]
    loop.backward(learned)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in learned]
    energies = [] if recorded is None else [recorded.sum(1)]
    return [net.z.detach().clone(), *gradients, *energies], loop.explain()


@pytest.mark.parametrize("name", CASES)
def test_chains_take_a_law_with_a_tensor(name, backend):
    net, energy = Net(), CASES[name]
    found, told = run(net, energy, None, lr=0.05)
    expected, _ = run(net, energy, "autograd", lr=0.05)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    assert ("executor: chain" in told) == (backend != "triton"), told
    if backend == "triton":
        assert "take no parameter in a law of one's own" in told


@pytest.mark.usefixtures("native_backend")
@pytest.mark.parametrize("name", CASES)
def test_methods_run_it_in_one_operator(name):
    net, energy = Net(), CASES[name]
    for method in (pyro.methods.Accelerated(coordinates="states"), pyro.methods.Adam(0.05)):
        found, told = run(net, energy, None, method=method)
        expected, _ = run(net, energy, "graph", method=method)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
        assert "fused" in told or "one operator" in told, told
        assert "not fused" not in told, told


OTHERS = {
    "two scales": lambda n: (
        n.prior + (n.out.exp() * (n.y - n.logits).abs() + torch.tanh(n.y - n.logits) ** 2 * n.one).sum(1)
    ),
    "of free states": lambda n: n.prior + (n.z.sum(1, keepdim=True) * n.losses).sum(1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_run_by_the_graph(name):
    net = Net()
    found, told = run(net, OTHERS[name], None, lr=0.05)
    expected, _ = run(net, OTHERS[name], "autograd", lr=0.05)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    assert "executor: graph" in told


class Masked(nn.Module):
    """Data whose mask is another for every batch."""

    def __init__(self):
        super().__init__()
        self.x, self.y, self.known = (pyro.nodes.FixedNode(n) for n in (5, OUT, OUT))
        self.z = pyro.nodes.StandardGaussianNode(WIDTH)
        self.up, self.top = nn.Linear(5, WIDTH), nn.Linear(WIDTH, OUT)
        self.double()

    def energy(self):
        losses = F.binary_cross_entropy_with_logits(self.top(self.z.value), self.y.value, reduction="none")
        return self.z.energy(self.up(self.x.value)) + (self.known.value * losses).sum(1)

    def start(self, x, y, known):
        self.z.init(self.up(self.x.init(x))), self.y.init(y), self.known.init(known)


@pytest.mark.usefixtures("native_backend")
def test_a_batch_with_a_mask_is_one_call():
    ours, theirs = Masked(), Masked()
    theirs.load_state_dict(ours.state_dict())
    sgd = torch.optim.SGD(pyro.get_mstep_params(ours), 0.1)
    em = pyro.EM(ours.energy, [ours.z.value], sgd, start=ours.start, steps=5, lr=0.1)
    sgd = torch.optim.SGD(pyro.get_mstep_params(theirs), 0.1)
    for _ in range(3):
        x, y, known = (torch.rand(BATCH, n, dtype=torch.float64) for n in (5, OUT, OUT))
        batch = x, y, (known < 0.5).double()
        em.step(*batch)
        theirs.start(*batch)
        for _ in range(5):
            (slope,) = torch.autograd.grad(theirs.energy().sum(), theirs.z.value)
            theirs.z.value.data -= 0.1 * slope
        sgd.zero_grad(), theirs.energy().mean().backward(), sgd.step()
        torch.testing.assert_close(ours.z.value, theirs.z.value, rtol=1e-10, atol=1e-12)
    for a, b in zip(pyro.get_mstep_params(ours), pyro.get_mstep_params(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert "one call" in em.explain()
    assert "not one call" not in em.explain()
