"""Networks with a categorical output, by EM: what plain autograd, F.cross_entropy and torch.optim come to."""

import pytest
import torch
import torch.nn.functional as F

import pyromancy as pyro
from pyromancy import backends, methods

SIZES, N = (7, 20, 15, 4), 4
OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m, 0.1, momentum=0.9),
    "adam": lambda m: torch.optim.Adam(m, 0.01),
}


def network():
    torch.manual_seed(0)
    return pyro.networks.mlp(SIZES, "tanh", output="categorical").double()


def data(count):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, SIZES[0], generator=generator, dtype=torch.float64)
    return x, torch.randint(N, (count,), generator=generator)


def one_hot(t):
    return F.one_hot(t, N).double()


class Plain:
    """The same network, trained by autograd alone, one batch after another."""

    def __init__(self, optimizer):
        self.net = pyro.networks.mlp(SIZES, "tanh").double()
        self.net.load_state_dict(network().state_dict())
        self.optimizer = OPTIMIZERS[optimizer](self.net.m_params())

    def energy(self, x, t, states):
        lower, edges = [x, *states], self.net.edges
        squares = sum(0.5 * (z - edge(a)).square().sum(1) for z, a, edge in zip(states, lower, edges, strict=False))
        return squares + F.cross_entropy(edges[-1](states[-1]), t, reduction="none")

    def learn(self, x, t, states):
        self.optimizer.zero_grad()
        self.energy(x, t, states).mean().backward(inputs=self.net.m_params())
        self.optimizer.step()

    def step(self, x, t, steps, incremental=False):
        states = []
        for edge in self.net.edges[:-1]:
            states.append(edge(states[-1] if states else x).detach())
        for _ in range(steps):
            states = [z.requires_grad_() for z in states]
            gradients = torch.autograd.grad(self.energy(x, t, states).sum(), states)
            before = [z.detach() for z in states]
            states = [z - 0.1 * g for z, g in zip(before, gradients, strict=True)]
            if incremental:
                self.learn(x, t, before if incremental == "joint" else states)
        if not incremental:
            self.learn(x, t, states)


def assert_same(net, plain):
    for p, q in zip(net.m_params(), plain.net.m_params(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("incremental", [False, True, "joint"], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("form", ["classes", "probabilities"])
def test_steps_are_those_of_autograd(optimizer, incremental, form):
    """More than enough of them for batches to be repeated, and one that is shorter."""
    net, plain = network(), Plain(optimizer)
    em = pyro.EM(
        net.energy, net.e_params(), OPTIMIZERS[optimizer](net.m_params()), start=net.start, steps=4, lr=0.1,
        incremental=incremental,
    )  # fmt: skip
    x, t = data(103)
    for rows in torch.arange(103).split(10):
        em.step(x[rows], t[rows] if form == "classes" else one_hot(t[rows]))
        plain.step(x[rows], t[rows], 4, incremental)
        assert "one call" in em.explain().splitlines()[0]
    assert_same(net, plain)


@pytest.mark.skipif(not backends.available("native")[0], reason="nothing is watched without the compiled module")
@pytest.mark.parametrize("form", ["classes", "probabilities"])
def test_batches_are_repeated(form):
    net = network()
    em = pyro.EM(net.energy, net.e_params(), torch.optim.SGD(net.m_params(), 0.1), start=net.start, steps=4, lr=0.1)
    x, t = data(10)
    y = t if form == "classes" else one_hot(t)
    for _ in range(10):
        em.step(x, y)
    assert em._repeat is not None
    before = [p.detach().clone() for p in net.m_params()]
    wrong = torch.where(torch.arange(10) == 3, 7, t) if form == "classes" else 2 * y
    with pytest.raises(ValueError, match="got 7" if form == "classes" else "got a sum of 2"):
        em.step(x, wrong)
    assert all(torch.equal(p, q) for p, q in zip(before, net.m_params(), strict=True))
    em.step(x, y)
    assert torch.equal(net.nodes[-1].value, one_hot(t))


@pytest.mark.parametrize("form", ["classes", "probabilities"])
def test_epochs_are_those_of_autograd(form):
    net, plain = network(), Plain("adam")
    em = pyro.EM(net.energy, net.e_params(), OPTIMIZERS["adam"](net.m_params()), start=net.start, steps=4, lr=0.1)
    x, t = data(103)
    y = t if form == "classes" else one_hot(t)
    for _ in range(2):
        assert sum(part.batches for part in em.epoch(x, y, batch_size=10, shuffle=False)) == 11
        for rows in torch.arange(103).split(10):
            plain.step(x[rows], t[rows], 4)
    assert_same(net, plain)


@pytest.mark.parametrize("wrong", [N, -1])
def test_classes_of_a_part_of_an_epoch_are_looked_at_before_it_learns(wrong):
    net = network()
    em = pyro.EM(net.energy, net.e_params(), torch.optim.SGD(net.m_params(), 0.1), start=net.start, steps=4, lr=0.1)
    x, t = data(100)
    em.step(x[:10], t[:10])  # an epoch's first part is one batch where `start` is not known yet
    t[95] = wrong
    before = [p.detach().clone() for p in net.m_params()]
    with pytest.raises(ValueError, match=f"value must be class indices from 0 to 3, got {wrong}"):
        list(em.epoch(x, t, batch_size=10, shuffle=False))
    assert all(torch.equal(p, q) for p, q in zip(before, net.m_params(), strict=True))


@pytest.mark.parametrize("coordinates", ["errors", "states"])
def test_methods_come_to_the_same_equilibrium(coordinates):
    net = network()
    x, t = data(9)
    loop = pyro.InferenceLoop(net.energy, net.e_params(), method=methods.Accelerated(coordinates=coordinates))
    net.start(x, t)
    loop.run(3000)
    gradients = torch.autograd.grad(net.energy().sum(), net.e_params())
    assert all(g.abs().max() < 1e-5 for g in gradients)


@pytest.mark.slow
@pytest.mark.parametrize("executor", [None, "graph"])
def test_a_tolerance_stops_every_sample_within_it(executor):
    """Fused and stepwise alike; the network is linear, so that the bound is one."""
    torch.manual_seed(0)
    net = pyro.networks.mlp(SIZES, "identity", output="categorical").double()
    x, t = data(33)

    def run(**options):
        loop = pyro.InferenceLoop(net.energy, net.e_params(), method=methods.Accelerated(), executor=executor)
        return loop.run(**options)

    net.start(x, t)
    first = net.energy().detach()
    trace = run(steps=500, tol=1e-2)
    found = net.energy().detach()
    assert trace.converged.all()
    assert (trace.taken < 60).all()
    run(steps=2000)
    least = net.energy().detach()
    assert (found - least <= 1e-2 * (first - found) + 1e-10).all()


def test_predictions_are_logits():
    net = network()
    x, t = data(9)
    plain = net.sequential()
    assert torch.equal(net.predict(x), plain(x))
    net.start(x)
    torch.testing.assert_close(net.nodes[-1].value.detach(), plain(x).softmax(1).detach())
    with pytest.raises(ValueError, match="y must have as many rows as x, 9, got 8"):
        net.start(x, t[:8])
    with pytest.raises(
        ValueError, match=r"y must be class indices of shape \(None,\), got \(9, 1\), which y.squeeze\(-1\) makes fit"
    ):
        net.start(x, t[:, None])
    with pytest.raises(TypeError, match="y must be a tensor, got list"):
        net.start(x, t.tolist())
