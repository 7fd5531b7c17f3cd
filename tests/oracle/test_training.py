"""A whole training loop, not one line of it changed, with this package's nodes and with the oracle's."""

import copy

import pytest
import torch
from torch.nn.functional import relu, tanh

import networks
import oracle_package
import pyromancy
from networks import KINDS

oracle = oracle_package.load()
pytestmark = pytest.mark.usefixtures("backend")

WIDTHS = (6, 9, 7, 4)


def train(pcn, package, data, incremental=False):
    """Inference learning: E-steps by SGD on the summed energy, M-steps by Adam on its mean."""
    clamped = pcn.nodes[0], pcn.nodes[-1]
    estep = [*package.get_estep_params(pcn, exclude=clamped)]
    mstep = [*package.get_mstep_params(pcn)]
    e_opt = torch.optim.SGD(estep, lr=0.05, momentum=0.2)
    m_opt = torch.optim.Adam(mstep, lr=1e-2)
    history = []

    def learn():
        m_opt.zero_grad()
        pcn.energy().mean().backward(inputs=mstep)
        m_opt.step()

    for x, y in data:
        e_opt.state.clear()
        pcn.init(x, y)
        for _ in range(8):
            e_opt.zero_grad()
            energy = pcn.energy().sum()
            energy.backward(inputs=estep)
            e_opt.step()
            history.append(energy.detach())
            if incremental:
                learn()
        learn()
        history += [p.detach().clone() for p in estep]
        for node in pcn.nodes:
            node.reset()
    return history


@pytest.mark.parametrize(("incremental", "activation"), [(False, relu), (True, tanh)], ids=["il", "incremental-il"])
@pytest.mark.parametrize("kind", KINDS)
def test_states_and_parameters_stay_the_same(kind, incremental, activation):
    kinds = ("StandardGaussianNode", kind, kind, kind)
    ours = networks.Chain(kinds, WIDTHS, activation=activation)
    theirs = networks.Chain(kinds, WIDTHS, package=oracle.nodes, activation=activation)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()), strict=False)
    before = copy.deepcopy(ours.state_dict())
    data = torch.randn(5, 10, WIDTHS[0], dtype=torch.float64), torch.randn(5, 10, WIDTHS[-1], dtype=torch.float64)
    histories = [
        train(pcn, package, list(zip(*data, strict=True)), incremental)
        for pcn, package in ((ours, pyromancy), (theirs, oracle))
    ]
    for a, b in zip(*histories, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p, theirs.get_parameter(name), rtol=1e-12, atol=1e-12)
    learned = [name for name, p in ours.state_dict().items() if not torch.equal(p, before[name])]
    assert any("weight" in name for name in learned)
    assert kind == "StandardGaussianNode" or any("logvar" in name or "covar" in name for name in learned)
