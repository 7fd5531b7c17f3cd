"""The network of the tutorial of `pyromancy-ai`, which adds energies in place: `InferenceLoop` runs it as a chain."""

import copy
import itertools

import pytest
import torch
import torch.nn as nn

import oracle_package
import pyromancy

oracle = oracle_package.load()

WIDTHS, BATCH, STEPS, LR = (12, 9, 8, 3), 7, 6, 0.2


class Network(nn.Module):
    """Standard nodes, ReLU before each Linear, in float64; a node is predicted from the state below it.

    In the tutorial itself from the prediction below it, with `through`: its hidden states then act on nothing.
    """

    def __init__(self, package, through):
        super().__init__()
        self.through = through
        self.nodes = nn.ModuleList(package.nodes.StandardGaussianNode(n) for n in WIDTHS)
        self.edges = nn.ModuleList(nn.Sequential(nn.ReLU(), nn.Linear(a, b)) for a, b in itertools.pairwise(WIDTHS))
        self.double()

    @torch.no_grad()
    def clamp(self, x, y):
        z = self.nodes[0].init(x)
        for node, edge in zip(self.nodes[1:-1], self.edges[:-1], strict=True):
            z = node.init(edge(z) + 0.1)
        self.nodes[-1].init(y)

    def energy(self):
        vfe = self.nodes[0].value.new_zeros(self.nodes[0].value.size(0))
        mu = self.nodes[0].value
        for node, edge in zip(self.nodes[1:], self.edges, strict=True):
            mu = edge(mu)
            vfe.add_(node.energy(mu))
            mu = mu if self.through else node.value
        return vfe


def hidden_states(net, package):
    return list(package.get_estep_params(net, exclude=(net.nodes[0], net.nodes[-1])))


@pytest.mark.parametrize("through", [False, True], ids=["states", "predictions"])
def test_the_tutorials_network_is_a_chain(through):
    ours, theirs = Network(pyromancy, through), Network(oracle, through)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()), strict=False)
    x, y = torch.randn(BATCH, WIDTHS[0]).double(), torch.randn(BATCH, WIDTHS[-1]).double()
    for net in (ours, theirs):
        net.clamp(x, y)

    states = hidden_states(theirs, oracle)
    optimizer = torch.optim.SGD(states, lr=LR)
    for _ in range(STEPS):
        theirs.zero_grad()
        theirs.energy().mean().backward(inputs=states)
        optimizer.step()
    theirs.zero_grad()
    learned = list(oracle.get_mstep_params(theirs))
    theirs.energy().mean().backward(inputs=learned)

    loop = pyromancy.InferenceLoop(ours.energy, hidden_states(ours, pyromancy), lr=LR, reduction="mean")
    loop.run(STEPS)
    loop.backward(pyromancy.get_mstep_params(ours))
    explained = loop.explain()
    assert explained.startswith("executor: chain")
    assert ("not fused M-step gradients" in explained) == through  # as backpropagation through all edges is
    for mine, other in zip(hidden_states(ours, pyromancy), states, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
    for name, p in ours.named_parameters():
        if "edges" in name:
            torch.testing.assert_close(p.grad, theirs.get_parameter(name).grad, rtol=1e-12, atol=1e-12)
