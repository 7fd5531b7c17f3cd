"""Deep networks that learn at equilibrium, by the method without a rate, beside backpropagation of the same ones."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import pyromancy as pyro
from pyromancy import backends
from pyromancy.nodes import IsotropicGaussianNode

HIDDEN, WIDTH, BATCH, EPOCHS, RATE = 10, 32, 32, 12, 1e-3


@pytest.fixture(scope="module")
def digits():
    """Scikit-learn's 1,797 digits, ``[N, 64]`` and labels, the last 360 for testing."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    x, labels = torch.from_numpy(found.data / 16).float()[order], torch.from_numpy(found.target).long()[order]
    return x[:-360], labels[:-360], x[-360:], labels[-360:]


def deep(seed, variance):
    """Tanh layers with weights of variance 1/fan-in, below an output of one variance."""
    torch.manual_seed(seed)
    net = pyro.networks.mlp([64, *[WIDTH] * HIDDEN, 10], activation="tanh")
    for layer in net.sequential():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
    output = IsotropicGaussianNode(10, variance=variance).requires_grad_(False)
    return pyro.networks.PCN([*list(net.nodes)[:-1], output], net.edges)


def by_backpropagation(net, x, y, generator):
    optimizer = torch.optim.Adam(net.m_params(), RATE)
    for _ in range(EPOCHS):
        for i in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            (0.5 * (net.predict(x[i]) - y[i]).square().sum(1)).mean().backward()
            optimizer.step()


def at_equilibrium(net, x, y, generator):
    em = pyro.EM(
        net.energy, net.e_params(), torch.optim.Adam(net.m_params(), RATE), start=net.start, steps=32,
        method=pyro.methods.Accelerated(), tol=1e-1,
    )  # fmt: skip
    for _ in range(EPOCHS):
        assert sum(part.samples for part in em.epoch(x, y, batch_size=BATCH, generator=generator)) == len(x)
    is_one_call = em.explain().splitlines()[0] == "a batch: one call of an operator"
    assert is_one_call == backends.available("native")[0]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Layers this small are slower on more, far more so on a machine that is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def accuracy(train, digits, variance):
    """On what was not learned, of two networks."""
    x, labels, test_x, test_labels = digits
    right = []
    for seed in range(2):
        net = deep(seed, variance)
        train(net, x, F.one_hot(labels, 10).float(), torch.Generator().manual_seed(seed))
        with torch.no_grad():
            right.append(net.predict(test_x).argmax(1) == test_labels)
    return torch.cat(right).float().mean().item()


@pytest.mark.slow
def test_deep_without_a_rate(digits):
    """Ten tanh layers come near backpropagation's accuracy, and to it where the target is clamped weakly.

    At unit variance states move until the output is nearly the target, and weights learn from where they went. Where
    the output's variance is far above the squared slopes of the output for the errors, those at equilibrium are
    backpropagation's, scaled.
    """
    backpropagation = accuracy(by_backpropagation, digits, 1.0)
    assert backpropagation > 0.9
    assert accuracy(at_equilibrium, digits, 1.0) > backpropagation - 0.06  # measured over six seeds: 0.011 to 0.047
    assert accuracy(at_equilibrium, digits, 100.0) > backpropagation - 0.02  # -0.006 to 0.006
