"""Infinity, NaN and numbers next to 0 and next to float32's end go through as they go through PyTorch's operators."""

import itertools
import math

import pytest
import torch

import pyromancy as pyro
from pyromancy import functional, nodes

TINY = torch.finfo(torch.float32).tiny  # the least normal number: chains take what is below it for 0
NUMBERS = (0.0, -0.0, 1.0, -2.5, math.inf, -math.inf, math.nan, 1e-40, -1e-40, 1e-45, 3e38, -3e38, 1e-38)
VALUE, PRED = (torch.tensor(x)[:, None] for x in zip(*itertools.product(NUMBERS, NUMBERS), strict=True))


def assert_as_pytorch(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=2 * TINY, equal_nan=True)
    assert found.isnan().any()
    assert found.isinf().any()
    assert (found == 0).any()


@pytest.mark.parametrize("logvar", [None, 0.0, -3.0, 80.0, -80.0, math.inf, -math.inf, math.nan])
def test_energies_and_errors(logvar):
    given = None if logvar is None else torch.tensor([logvar])
    precision = 1.0 if given is None else torch.exp(-given)
    energy = 0.5 * ((VALUE - PRED) ** 2 * precision + (0.0 if given is None else given)).sum(1)
    error = (VALUE - PRED) * precision
    same = {"rtol": 1e-6, "atol": 0.0, "equal_nan": True}
    torch.testing.assert_close(functional.gaussian_energy(VALUE, PRED, given), energy, **same)
    torch.testing.assert_close(functional.gaussian_error(VALUE, PRED, given), error, **same)
    if given is None:
        small = error[(error != 0) & (error.abs() < TINY)]
        assert len(small) > 10  # are not taken for 0


def test_steps():
    found = VALUE.clone()
    functional.estep_(found, PRED.clone(), lr=0.5)
    assert_as_pytorch(found, VALUE - 0.5 * PRED)


@pytest.mark.filterwarnings("ignore:.*are not finite")
@pytest.mark.parametrize("executor", ["chain", "graph"])
def test_steps_of_a_node(executor):
    node = nodes.StandardGaussianNode(1)
    node.init(VALUE)
    loop = pyro.InferenceLoop(lambda: node.energy(PRED), [node.value], lr=0.5, executor=executor)
    loop.run(1)
    assert_as_pytorch(node.value.detach(), VALUE - 0.5 * (VALUE - PRED))


@pytest.mark.usefixtures("native_backend")
@pytest.mark.filterwarnings("ignore:.*are not finite")
@pytest.mark.parametrize("kind", ["LaplaceNode", "StudentNode"])
def test_nan_and_infinity_are_seen_at_nodes_of_other_laws(kind):
    """A state whose prediction is NaN is NaN afterwards, at a `LaplaceNode` too, where PyTorch's sign of NaN is 0."""
    node = getattr(nodes, kind)(1)
    node.init(VALUE)
    loop = pyro.InferenceLoop(lambda: node.energy(PRED), [node.value], lr=0.5, executor="chain")
    energies, expected = loop.energy(), node.energy(PRED).detach()
    whole = (VALUE - PRED).abs()[:, 0] >= TINY
    torch.testing.assert_close(energies[whole], expected[whole], rtol=1e-5, atol=0.0)
    assert energies[(VALUE - PRED).isnan()[:, 0]].isnan().all()
    loop.run(1)
    assert torch.equal(node.value.isnan(), (VALUE - PRED).isnan())


@pytest.mark.filterwarnings("ignore:.*are not finite")
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "sigmoid", "tanh", "silu"])
def test_steps_of_a_network(activation):
    """What is not finite stays in its sample and is there for both executors, and the others learn the same."""

    def states(executor):
        torch.manual_seed(0)
        net = pyro.networks.mlp([1, 3, 1], activation=activation)
        net.start(VALUE, PRED)
        pyro.InferenceLoop(net.energy, net.e_params(), lr=0.1, executor=executor).run(2)
        return net.e_params()[0].detach()

    moderate = ((VALUE.abs() < 1e3) & (PRED.abs() < 1e3))[:, 0]
    found, expected = states("chain"), states("autograd")
    assert 50 < moderate.sum() < len(VALUE)
    torch.testing.assert_close(found[moderate], expected[moderate], rtol=1e-5, atol=1e-6)
    nan = VALUE.isnan()[:, 0]
    assert found[nan].isnan().any(1).all()
    assert expected[nan].isnan().any(1).all()
