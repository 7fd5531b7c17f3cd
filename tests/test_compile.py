"""`torch.compile` takes the energy of a network and its gradients whole, without a graph break."""

import shutil

import pytest
import torch
import torch._dynamo

import networks
import pyromancy as pyro
from networks import KINDS
from numerics import assert_near
from pyromancy import backends, functional

WIDTHS = (5, 7, 6, 3)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def grad_inside():
    """Lets torch trace `torch.autograd.grad`, which the versions that can do not do by themselves."""
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        pytest.skip(f"torch {torch.__version__} does not trace torch.autograd.grad")
    return torch._dynamo.config.patch(trace_autograd_ops=True)


def compiled(function, compiler="aot_eager"):
    return torch.compile(function, fullgraph=True, backend=compiler)


def network(kind, batch=4):
    pcn = networks.Chain(("FixedNode", kind, kind, kind), WIDTHS)
    for node in pcn.nodes[1:]:
        if kind != "StandardGaussianNode":
            node.covariance = networks.covariance_of(node.size)
    pcn.init(torch.randn(batch, WIDTHS[0], dtype=torch.float64), torch.randn(batch, WIDTHS[-1], dtype=torch.float64))
    return pcn


@pytest.mark.parametrize("kind", KINDS)
class TestNetwork:
    def test_energy_and_backward_outside(self, kind):
        pcn = network(kind)
        parameters = [*pcn.parameters()]
        energy = compiled(pcn.energy)()
        assert_near(energy, pcn.energy(), 50)
        energy.sum().backward()
        for p, expected in zip(parameters, torch.autograd.grad(pcn.energy().sum(), parameters), strict=True):
            assert_near(p.grad, expected, 200)

    def test_gradient_inside(self, kind, grad_inside):
        pcn = network(kind)
        parameters = [*pcn.parameters()]

        def gradient():
            return torch.autograd.grad(pcn.energy().sum(), parameters)

        with grad_inside:
            results = compiled(gradient)()
        for ours, expected in zip(results, gradient(), strict=True):
            assert_near(ours, expected, 200)

    def test_errors(self, kind):
        node = network(kind).nodes[1]
        pred = torch.randn(4, 7, dtype=torch.float64)
        assert_near(compiled(node.error)(pred), node.error(pred), 50)


@pytest.mark.slow
def test_follows_parameters_batches_and_backends():
    pcn = network("MultivariateGaussianNode")
    energy = compiled(pcn.energy)
    for batch in (4, 3, 9):
        pcn.init(torch.randn(batch, 5, dtype=torch.float64), torch.randn(batch, 3, dtype=torch.float64))
        with torch.no_grad():
            for p in pcn.parameters():
                p.add_(0.05 * torch.randn_like(p))
        assert_near(energy(), pcn.energy(), 50)
    with backends.use("reference"):
        assert_near(energy(), pcn.energy(), 50)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor(grad_inside):
    pcn = network("FactorizedGaussianNode")
    states = [node.value for node in pcn.nodes[1:-1]]

    def gradient():
        energy = pcn.energy()
        return energy.detach(), *torch.autograd.grad(energy.sum(), states)

    with grad_inside:
        results = compiled(gradient, "inductor")()
    for ours, expected in zip(results, gradient(), strict=True):
        assert_near(ours, expected, 200)


class TestFunctional:
    def test_step_in_place(self):
        def step(value, error, buffer):
            functional.estep_(value, error, lr=0.1)
            functional.estep_(value, error, lr=0.1, momentum=0.9, buffer=buffer)
            return value * 2

        inputs = [torch.randn(3, 5, dtype=torch.float64) for _ in range(3)]
        twins = [t.clone() for t in inputs]
        version = inputs[0]._version
        assert_near(compiled(step)(*inputs), step(*twins))
        for a, b in zip(inputs, twins, strict=True):
            assert_near(a, b)
        assert inputs[0]._version > version

    def test_broadcasting_and_promotion(self):
        value, pred, logvar = torch.randn(3, 5), torch.randn(5, dtype=torch.float64), torch.randn([])
        assert_near(compiled(functional.gaussian_energy)(value, pred, logvar),
                    functional.gaussian_energy(value, pred, logvar), 5)  # fmt: skip
        weight = torch.randn(3)
        assert_near(compiled(functional.gaussian_error)(value, pred, logvar, weight),
                    functional.gaussian_error(value, pred, logvar, weight))  # fmt: skip

    def test_multivariate(self):
        value, pred, a = torch.randn(3, 4, 5), torch.randn(4, 5), torch.randn(5, 5) / 5

        def error(value, pred, a):
            return functional.multivariate_error(value, pred, functional.cholesky_factor(a.diagonal(), a))

        assert_near(compiled(error)(value, pred, a), error(value, pred, a), 50)


@pytest.mark.parametrize("kind", ["chain", "graph"])
def test_a_compiled_step_around_the_loop(kind):
    """The compiler leaves the loop as it is, and what is before and after it is compiled."""
    pcn = network("StandardGaussianNode")
    loop = pyro.InferenceLoop(pcn.energy, [node.value for node in pcn.nodes[1:-1]], lr=0.05, executor=kind)
    learned = list(pyro.get_mstep_params(pcn))

    def step(x):
        with torch.no_grad():
            pcn.nodes[1].value.copy_(torch.tanh(x))
        loop.run(5)
        loop.backward(learned)
        return pcn.nodes[1].value * 2

    around = torch.compile(step, backend="aot_eager")
    for _ in range(3):
        x = torch.randn(4, 7, dtype=torch.float64)
        found = []
        for way in (step, around):
            pcn.init(torch.ones(4, 5, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64))
            pcn.zero_grad()
            found.append([way(x), *(p.grad for p in learned)])
        for ours, expected in zip(*found, strict=True):
            assert_near(ours, expected)
    assert loop.explain().startswith(f"executor: {kind}")
