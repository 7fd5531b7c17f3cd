"""`EM` on a GPU, on every backend that runs there: whole batches in one call, against autograd in float64."""

import pytest
import torch
from torch import nn

import pyromancy as pyro
from numerics import same_bits
from pyromancy.nodes import FactorizedGaussianNode, IsotropicGaussianNode, LaplaceNode, StandardGaussianNode
from twins import UNIT, assert_same, batches, plainly, twins

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

DEVICE = "cuda"
OPTIMIZERS = {
    "momentum": lambda m: torch.optim.SGD(m, 1e-2, momentum=0.9, dampening=0.2, weight_decay=1e-2),
    "adam": lambda m: torch.optim.Adam(m, 1e-3),
    "adam-fused": lambda m: torch.optim.Adam(m, 1e-3, fused=True),  # whose counts of steps lie on the device
    "adamw": lambda m: torch.optim.AdamW(m, 1e-2, weight_decay=0.1, amsgrad=True),
    "rmsprop": lambda m: torch.optim.RMSprop(m, 1e-3, momentum=0.8, centered=True, eps=1e-3),
}
KINDS = {
    "unit": UNIT,
    "variances": (FactorizedGaussianNode, IsotropicGaussianNode, FactorizedGaussianNode),
    "scales": (LaplaceNode,) * 3,
    "a-hidden-scale": (StandardGaussianNode, LaplaceNode, FactorizedGaussianNode),
}

pytestmark = pytest.mark.usefixtures("gpu_backend")


def there(*args, **kwargs):
    """Twins on the device."""
    return [net.to(DEVICE) for net in twins(*args, **kwargs)]


def device_batches(count, **options):
    return [(x.to(DEVICE), y.to(DEVICE)) for x, y in batches(count, **options)]


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("incremental", [False, True, "joint"], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_equals_the_plain_loop(optimizer, incremental, kinds):
    net, plain = there(kinds=KINDS[kinds])
    ours, theirs = (OPTIMIZERS[optimizer](n.m_params()) for n in (net, plain))
    em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=5, lr=0.1, incremental=incremental)
    for x, y in device_batches(6, last=7):
        em.step(x, y)
        plainly(plain, theirs, x, y, steps=5, lr=0.1, incremental=incremental)
        assert_same(net.e_params(), plain.e_params())
    assert_same(net.m_params(), plain.m_params())
    assert "one call" in em.explain().splitlines()[0]
    for p, q in zip(net.m_params(), plain.m_params(), strict=True):  # and PyTorch goes on from there
        assert ours.state[p].keys() == theirs.state[q].keys()
        for name, value in theirs.state[q].items():
            if isinstance(value, torch.Tensor):
                assert ours.state[p][name].device == value.device
    x, y = device_batches(1)[0]
    for one, optimizer_ in ((net, ours), (plain, theirs)):
        plainly(one, optimizer_, x, y, steps=5, lr=0.1)
    assert_same(net.m_params(), plain.m_params())


@pytest.mark.parametrize("incremental", [False, True, "joint"], ids=str)
def test_weights_per_sample(incremental):
    net, plain = there(kinds=KINDS["a-hidden-scale"])
    weights = torch.rand(16, dtype=torch.float64, device=DEVICE)
    for one in (net, plain):
        one.energy = lambda of=one.energy: weights * of()
    ours, theirs = (OPTIMIZERS["adam"](n.m_params()) for n in (net, plain))
    em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=5, lr=0.1, incremental=incremental)
    for x, y in device_batches(4, size=16):
        em.step(x, y)
        plainly(plain, theirs, x, y, steps=5, lr=0.1, incremental=incremental)
    assert_same(net.m_params() + net.e_params(), plain.m_params() + plain.e_params())
    assert "one call" in em.explain().splitlines()[0]


class Scaled(nn.Module):
    """A Linear's weight, transposed as it is kept, and half of what it makes."""

    def __init__(self, linear):
        super().__init__()
        self.weight, self.bias = nn.Parameter(linear.weight.detach().T.contiguous()), linear.bias

    def forward(self, z):
        return 0.5 * (z @ self.weight + self.bias)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_weights_that_are_scaled_and_transposed(optimizer):
    net, plain = there()
    for one in (net, plain):
        one.edges[1] = nn.Sequential(nn.Tanh(), Scaled(one.edges[1][1]))
    ours, theirs = (OPTIMIZERS[optimizer](n.m_params()) for n in (net, plain))
    em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=5, lr=0.1)
    for x, y in device_batches(4):
        em.step(x, y)
        plainly(plain, theirs, x, y, steps=5, lr=0.1)
    assert_same(net.m_params() + net.e_params(), plain.m_params() + plain.e_params())
    assert "one call" in em.explain().splitlines()[0]


@pytest.mark.parametrize("where", [DEVICE, "cpu"])
def test_epochs(where):
    """Of data on the device, which a call picks batches from, and of data that every batch would have to be brought."""
    net, plain = there()
    ours, theirs = (OPTIMIZERS["adam"](n.m_params()) for n in (net, plain))
    start = net.start if where == DEVICE else lambda x, y: net.start(x.to(DEVICE), y.to(DEVICE))
    em = pyro.EM(net.energy, net.e_params(), ours, start=start, steps=4, lr=0.1)
    torch.manual_seed(2)
    x, y = torch.rand(64, 8).double().to(where), torch.rand(64, 3).double().to(where)
    for _ in range(2):
        assert sum(part.samples for part in em.epoch(x, y, batch_size=16, shuffle=False)) == 64
        for rows in torch.arange(64).split(16):
            plainly(plain, theirs, x[rows].to(DEVICE), y[rows].to(DEVICE), steps=4, lr=0.1)
    assert_same(net.m_params() + net.e_params(), plain.m_params() + plain.e_params())


@pytest.mark.parametrize("chain", ["tile", "steps"])
@pytest.mark.parametrize("incremental", [False, True, "joint"], ids=str)
def test_what_no_error_has_reached_does_not_learn(incremental, chain, monkeypatch):
    """In float32 and by Adam, for which rounding would be as good as any error: to the last bit."""
    monkeypatch.setenv("PYROMANCY_CUDA_CHAIN", chain)
    net, _ = there((8, 64, 64, 48, 3), kinds=(*UNIT, UNIT[0]))
    net.float()
    before = [p.detach().clone() for p in net.m_params()]
    em = pyro.EM(
        net.energy, net.e_params(), torch.optim.Adam(net.m_params(), 1e-2), start=net.start, steps=1, lr=0.1,
        incremental=incremental,
    )  # fmt: skip
    x, y = (t.float() for t in device_batches(1)[0])
    em.step(x, y)
    assert "one call" in em.explain().splitlines()[0]
    reached = 1 if incremental == "joint" else 2  # edges from above: that to the clamped node, and the one before
    for i, (p, q) in enumerate(zip(net.m_params(), before, strict=True)):  # a weight and a bias of every edge
        assert same_bits(p.detach(), q) == (i // 2 < 4 - reached)
