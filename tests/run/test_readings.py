"""What loops and EM tell of themselves: energies, errors and gradients by name, and how far weights have moved."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyromancy as pyro
from pyromancy import functional, methods
from pyromancy.nodes import FactorizedGaussianNode, FloatNode, LaplaceNode


class Net(nn.Module):
    """An input, a hidden node with variances, and a target of any kind."""

    def __init__(self, top):
        super().__init__()
        self.x = torch.randn(6, 5, dtype=torch.float64)
        self.up, self.down = nn.Linear(5, 4).double(), nn.Linear(4, 3).double()
        self.hidden, self.top = FactorizedGaussianNode(4).double(), top.double()
        with torch.no_grad():
            self.hidden.logvar.normal_()
        self.hidden.init(torch.randn(6, 4))

    def predictions(self):
        return self.up(self.x), self.down(self.hidden.value.tanh())

    def energy(self):
        mu, out = self.predictions()
        return self.hidden.energy(mu) + self.top.energy(out)


def net_of(kind):
    target = torch.randn(6, 3)
    top = {"gaussian": FactorizedGaussianNode(3), "laplace": LaplaceNode(3)}.get(kind)
    if top is None:
        top, target = {
            "categorical": (pyro.nodes.CategoricalNode(3), torch.randint(3, (6,))),
            "bernoulli": (pyro.nodes.BernoulliNode(3), torch.rand(6, 3)),
            "poisson": (pyro.nodes.PoissonNode(3), torch.randint(4, (6, 3)).double()),
        }[kind]
    net = Net(top)
    net.top.init(target)
    return net


def loop_of(net, executor=None, **options):
    return pyro.InferenceLoop(net.energy, [net.hidden.value], executor=executor, **{"lr": 0.05, **options})


@pytest.mark.parametrize("executor", ["chain", "graph"])
@pytest.mark.parametrize("kind", ["gaussian", "laplace", "categorical", "bernoulli", "poisson"])
class TestByNodes:
    def test_energies(self, kind, executor):
        net = net_of(kind)
        found = loop_of(net, executor).node_energies()
        mu, out = net.predictions()
        assert [*found] == ["hidden", "top"]
        torch.testing.assert_close(found["hidden"], net.hidden.energy(mu).detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found["top"], net.top.energy(out).detach(), rtol=1e-12, atol=1e-12)

    def test_errors_are_those_of_the_nodes(self, kind, executor):
        net = net_of(kind)
        loop = loop_of(net, executor)
        loop.run(3)
        found = loop.errors()
        mu, out = net.predictions()
        assert [*found] == ["hidden", "top"]
        torch.testing.assert_close(found["hidden"], net.hidden.error(mu).detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found["top"], net.top.error(out).detach(), rtol=1e-12, atol=1e-12)
        assert not any(e.requires_grad for e in found.values())

    def test_gradients(self, kind, executor):
        net = net_of(kind)
        found = loop_of(net, executor).gradients()
        (expected,) = torch.autograd.grad(net.energy().sum(), net.hidden.value)
        assert [*found] == ["hidden"]
        torch.testing.assert_close(found["hidden"], expected, rtol=1e-12, atol=1e-12)
        assert net.hidden.value.grad is None

    def test_reading_moves_nothing(self, kind, executor):
        nets = []
        for read in (False, True):
            torch.manual_seed(0)
            nets.append(net_of(kind))
            loop = loop_of(nets[-1], executor, momentum=0.9)
            for _ in range(4):
                loop.run(1)
                if read:
                    loop.node_energies(), loop.errors(), loop.gradients()
        assert torch.equal(nets[0].hidden.value, nets[1].hidden.value)


@pytest.mark.parametrize("method", [None, methods.Accelerated(), methods.Adam(0.05)], ids=repr)
@pytest.mark.parametrize("executor", ["chain", "graph", "autograd"])
def test_a_trace_begins_and_ends_with_the_energies_there(executor, method):
    net = net_of("gaussian")
    if executor == "autograd" and getattr(method, "moves", "") == "errors":
        method = methods.Accelerated(coordinates="states")
    options = {"lr": 0.05} if method is None else {"method": method}
    wanted = None if method is not None and executor == "chain" else executor
    loop = pyro.InferenceLoop(net.energy, [net.hidden.value], executor=wanted, **options)
    before = {name: e.mean() for name, e in loop.node_energies().items()}
    trace = loop.run(7, record=True)
    after = {name: e.mean() for name, e in loop.node_energies().items()}
    assert trace.names == (("energy",) if executor == "autograd" else ("hidden", "top")) == tuple(after)
    assert trace.energies.shape == (8, len(after))
    torch.testing.assert_close(trace.energies[0], torch.stack([*before.values()]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(trace.energies[-1], torch.stack([*after.values()]), rtol=1e-12, atol=1e-12)
    assert trace.energies.sum(1)[-1] < trace.energies.sum(1)[0]


def test_a_prior_pulls_a_code_and_names_are_told_apart():
    """Two energies of one state, of which one is a prior's; what is written beside them is a term, and no error."""
    code, edge = FloatNode(4, prior=functional.gaussian_energy), nn.Linear(3, 4)
    code.init(torch.randn(5, 4))
    x, w = torch.randn(5, 3), torch.rand(5)
    energy = lambda: functional.gaussian_energy(code.value, edge(x)) + code.energy() + w  # noqa: E731
    loop = pyro.InferenceLoop(energy, [code.value], lr=0.1, executor="graph")
    found = loop.errors()
    assert [*found] == ["code", "code (2)"]
    torch.testing.assert_close(found["code"], (code.value - edge(x)).detach())
    torch.testing.assert_close(found["code (2)"], code.value.detach())
    energies = loop.node_energies()
    assert len(energies) == 3
    torch.testing.assert_close([*energies.values()][2], w)


def test_errors_of_classes_by_number():
    """As `cross_entropy` takes them: of the shape of the logits."""
    z, top, labels = nn.Parameter(torch.randn(6, 4)), nn.Linear(4, 3), torch.randint(3, (6,))
    loop = pyro.InferenceLoop(
        lambda: functional.gaussian_energy(z, torch.zeros_like(z)) + F.cross_entropy(top(z), labels, reduction="none"),
        [z], lr=0.1,
    )  # fmt: skip
    found = [*loop.errors().values()][1]
    torch.testing.assert_close(found, (F.one_hot(labels, 3) - top(z).softmax(1)).detach(), rtol=1e-5, atol=1e-6)


def test_errors_without_a_capture():
    net = net_of("gaussian")
    with pytest.raises(RuntimeError, match=r"errors need an energy that is captured, .*'autograd' was asked for"):
        loop_of(net, "autograd").errors()


def test_one_number_has_no_energies_by_sample():
    net = net_of("gaussian")
    loop = pyro.InferenceLoop(lambda: net.energy().mean(), [net.hidden.value], lr=0.1)
    with pytest.raises(ValueError, match="energy must return one value per sample"):
        loop.node_energies()


def test_changes_of_weights():
    torch.manual_seed(0)
    net = pyro.networks.mlp([5, 7, 3])
    optimizer = torch.optim.SGD(
        [{"params": net.edges[0].parameters()}, {"params": net.edges[1].parameters(), "lr": 0}], 0.1
    )
    em = pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=5, lr=0.1)
    x, y = torch.randn(20, 5), torch.randn(20, 3)
    before = {name: p.detach().clone() for name, p in net.named_parameters() if "edges" in name}
    names = ["edges.0.weight", "edges.0.bias", "edges.1.1.weight", "edges.1.1.bias"]
    assert em.changes() == dict.fromkeys(names, 0.0)
    for _ in em.epoch(x, y, batch_size=4):
        pass
    moved = em.changes()
    assert [*moved] == names
    for name, p in net.named_parameters():
        if "edges" in name:
            assert moved[name] == pytest.approx((p.detach() - before[name]).norm().item(), rel=1e-6)
    assert moved["edges.0.weight"] > 0
    assert moved["edges.1.1.weight"] == 0
    assert set(em.changes().values()) == {0.0}


def test_a_trace_is_told_in_a_line():
    net = net_of("gaussian")
    loop = pyro.InferenceLoop(net.energy, [net.hidden.value], method=methods.Accelerated())
    trace = loop.run(100, record=True, tol=1e-6)
    first, last = trace.energies.sum(1)[[0, -1]].tolist()
    assert repr(trace) == (
        f"Trace(steps={trace.steps}, energies={first:.4g} to {last:.4g} of 2 terms, "
        f"taken={trace.taken.min()} to {trace.taken.max()}, converged=6 of 6)"
    )
    assert repr(pyro.run.Trace(7)) == "Trace(steps=7)"
    assert trace == trace
    assert trace != pyro.run.Trace(7)
