"""Cross-entropies however they are written: chains, whose every number is that of autograd."""

import warnings

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import pyromancy as pyro
from descent import assert_as_autograd
from pyromancy.nodes import CategoricalNode, FixedNode, StandardGaussianNode

B, N = 9, 4


class Net(nn.Module):
    """A hidden state between data and classes, in float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.below, self.hidden, self.out = FixedNode(6), StandardGaussianNode(5), CategoricalNode(N)
        self.up, self.top = nn.Linear(6, 5), nn.Linear(5, N)
        self.double()
        self.t = torch.randint(N, (B,))
        self.some = self.t.clone()
        self.some[3] = -100
        self.soft, self.w = torch.randn(B, N).double().softmax(1), torch.rand(N).double()
        self.of_samples = torch.rand(B).double()
        self.below.init(torch.randn(B, 6)), self.hidden.init(torch.randn(B, 5)), self.out.init(self.t)

    def mu(self):
        return self.top(torch.tanh(self.hidden.value))

    def first(self):
        return self.hidden.energy(self.up(self.below.value))


HEADS = {
    "node": lambda n: n.out.energy(n.mu()),
    "classes": lambda n: F.cross_entropy(n.mu(), n.t, reduction="none"),
    "module": lambda n: nn.CrossEntropyLoss(reduction="none")(n.mu(), n.t),
    "weight": lambda n: F.cross_entropy(n.mu(), n.t, n.w, reduction="none"),
    "smoothing": lambda n: F.cross_entropy(n.mu(), n.t, label_smoothing=0.1, reduction="none"),
    "weight-and-smoothing": lambda n: F.cross_entropy(n.mu(), n.t, n.w, label_smoothing=0.1, reduction="none"),
    "ignored": lambda n: F.cross_entropy(n.mu(), n.some, n.w, label_smoothing=0.1, reduction="none"),
    "ignored-index": lambda n: F.cross_entropy(n.mu(), n.t, ignore_index=1, reduction="none"),
    "probabilities": lambda n: F.cross_entropy(n.mu(), n.soft, reduction="none"),
    "probabilities-weight": lambda n: F.cross_entropy(n.mu(), n.soft, n.w, label_smoothing=0.2, reduction="none"),
    "state": lambda n: F.cross_entropy(n.mu(), n.out.value, reduction="none"),
    "times-a-number": lambda n: 0.3 * F.cross_entropy(n.mu(), n.t, reduction="none"),
    "times-samples": lambda n: n.of_samples * F.cross_entropy(n.mu(), n.t, reduction="none"),
    "product": lambda n: -(n.soft * F.log_softmax(n.mu(), 1)).sum(1),
    "product-other-way": lambda n: (n.mu().log_softmax(-1) * -0.5 * n.soft).sum(dim=-1) * -2,
    "product-minus-inside": lambda n: torch.sum(n.out.value * -torch.log_softmax(n.mu(), dim=1), 1),
    "nll": lambda n: F.nll_loss(F.log_softmax(n.mu(), 1), n.t, reduction="none"),
    "nll-weight": lambda n: F.nll_loss(F.log_softmax(n.mu(), dim=1), n.some, n.w, reduction="none"),
}


@pytest.mark.parametrize("head", HEADS)
def test_one_number_per_sample(head):
    net = Net()
    energy = lambda: net.first() + HEADS[head](net)  # noqa: E731
    explained = assert_as_autograd(energy, [net.hidden.value], [*net.up.parameters(), *net.top.parameters()])
    assert explained.startswith("executor: chain")
    assert "\nnot" not in explained


@pytest.mark.parametrize("head", HEADS)
def test_recorded_energies(head):
    net = Net()
    energy = lambda: net.first() + HEADS[head](net)  # noqa: E731
    expected = energy().detach()
    recorded = pyro.InferenceLoop(energy, [net.hidden.value], lr=0.1).run(2, record=True).energies
    torch.testing.assert_close(recorded[0].sum(), expected.mean(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("head", ["weight", "smoothing", "ignored", "probabilities-weight", "nll", "nll-weight"])
def test_one_number_for_all(head, reduction):
    options = {
        "weight": lambda n: F.cross_entropy(n.mu(), n.t, n.w, reduction=reduction),
        "smoothing": lambda n: F.cross_entropy(n.mu(), n.some, n.w, label_smoothing=0.1, reduction=reduction),
        "ignored": lambda n: F.cross_entropy(n.mu(), n.some, reduction=reduction),
        "probabilities-weight": lambda n: F.cross_entropy(n.mu(), n.soft, n.w, reduction=reduction),
        "nll": lambda n: F.nll_loss(F.log_softmax(n.mu(), 1), n.some, reduction=reduction),
        "nll-weight": lambda n: F.nll_loss(F.log_softmax(n.mu(), 1), n.some, n.w, reduction=reduction),
    }
    net = Net()
    energy = lambda: net.first().sum() + options[head](net)  # noqa: E731
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*one number for states")
        explained = assert_as_autograd(energy, [net.hidden.value], [*net.up.parameters(), *net.top.parameters()])
    assert explained.startswith("executor: chain")


def test_other_classes_take_their_place():
    """A batch may bring a tensor of its own: it is read anew, not what was made of the one before."""
    net = Net()
    z, t = net.hidden.value, net.t
    loop = pyro.InferenceLoop(lambda: net.first() + F.cross_entropy(net.mu(), net.t, reduction="none"), [z], lr=0.1)
    start = z.detach().clone()
    for classes in (t, (t + 1) % N, (t + 2) % N):
        net.t = classes
        expected = start.clone().requires_grad_()
        for _ in range(3):
            net.hidden.init(expected)
            head = F.cross_entropy(net.mu(), classes, reduction="none")
            (gradient,) = torch.autograd.grad((net.first() + head).sum(), z)
            expected = expected.detach() - 0.1 * gradient
        net.hidden.init(start)
        loop.run(3)
        torch.testing.assert_close(z.detach(), expected, rtol=1e-12, atol=1e-12)
    net.t.add_(1).remainder_(N)  # in place, too
    net.hidden.init(start), loop.run(1)
    found = z.detach().clone()
    net.hidden.init(start)
    (gradient,) = torch.autograd.grad((net.first() + F.cross_entropy(net.mu(), net.t, reduction="none")).sum(), z)
    torch.testing.assert_close(found, start - 0.1 * gradient, rtol=1e-12, atol=1e-12)


OTHERS = {
    "another-dimension": (lambda n: -(n.soft * F.log_softmax(n.mu(), 0)).sum(1), "from log_softmax of"),
    "positions": (
        lambda n: F.cross_entropy(n.mu().view(B, 2, 2), n.t.view(B, 1).expand(B, 2) % 2, reduction="none").sum(1),
        "not the energy of",
    ),
    "activation": (lambda n: F.cross_entropy(torch.tanh(n.mu()), n.t, reduction="none"), "come through an activation"),
}


@pytest.mark.parametrize("head", OTHERS)
def test_what_chains_do_not_take_runs_by_the_graph(head):
    make, reason = OTHERS[head]
    net = Net()
    explained = assert_as_autograd(lambda: net.first() + make(net), [net.hidden.value], list(net.top.parameters()))
    assert explained.startswith("executor: graph")
    assert reason in explained


def test_classes_out_of_range_raise_as_in_pytorch():
    net = Net()
    loop = pyro.InferenceLoop(
        lambda: net.first() + F.cross_entropy(net.mu(), net.t, reduction="none"), [net.hidden.value], lr=0.1
    )
    loop.run(1)
    for wrong in (N, -1):
        net.t[2] = wrong
        before = net.hidden.value.detach().clone()
        with pytest.raises(IndexError, match=f"Target {wrong} is out of bounds"):
            loop.run(1)
        assert torch.equal(net.hidden.value, before)


def test_a_free_categorical_state_is_refused():
    net = Net()
    energy = lambda: net.first() + net.out.energy(net.mu())  # noqa: E731
    with pytest.raises(ValueError, match="params must not hold the state of a categorical node, got"):
        pyro.InferenceLoop(energy, [net.hidden.value, net.out.value], lr=0.1).run(1)
