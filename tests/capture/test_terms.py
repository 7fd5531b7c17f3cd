"""Terms of an energy, however they are written: chains where they come to energies of Gaussian nodes."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import pyromancy as pyro
from descent import assert_as_autograd, free
from pyromancy.functional import (
    bernoulli_energy,
    gaussian_energy,
    gaussian_error,
    laplace_energy,
    poisson_energy,
    student_energy,
)
from pyromancy.nodes import (
    BernoulliNode,
    BiasNode,
    FactorizedGaussianNode,
    FixedNode,
    FloatNode,
    LaplaceNode,
    MultivariateGaussianNode,
    StandardGaussianNode,
    StudentNode,
)


class Net(nn.Module):
    """A hidden state between data and a target, in float64."""

    def __init__(self, batch=4):
        super().__init__()
        self.below, self.hidden, self.out = FixedNode(6), StandardGaussianNode(5), FactorizedGaussianNode(3)
        self.up, self.top = nn.Linear(6, 5), nn.Linear(5, 3)
        self.double()
        for node in (self.below, self.hidden, self.out):
            node.init(torch.randn(batch, *node.shape).double())
        self.weights = torch.rand(batch).double()  # one per sample
        with torch.no_grad():
            self.out.logvar.normal_()

    @property
    def z(self):
        return self.hidden.value

    @property
    def y(self):
        return self.out.value

    def first(self):
        return self.hidden.energy(self.up(self.below.value))

    def second(self):
        return self.out.energy(self.mu())

    def mu(self):
        return self.top(torch.tanh(self.z))

    def error(self):
        return self.y - self.mu()


def assert_is_a_chain(energy, net, terms=None):
    """States, recorded energies and gradients are plain autograd's, and the chain's own."""
    learned = [*net.up.parameters(), *net.top.parameters(), net.out.logvar]
    z, start = net.hidden.value, net.hidden.value.detach().clone()
    states, energies = [], []
    for _ in range(3):
        value = energy(net)
        energies.append(value.detach().sum())
        (gradient,) = torch.autograd.grad(value.sum(), z)
        with torch.no_grad():
            z -= 0.1 * gradient
    states.append(z.detach().clone())
    gradients = torch.autograd.grad(energy(net).mean(), learned, allow_unused=True)
    with torch.no_grad():
        z.copy_(start)
    loop = pyro.InferenceLoop(lambda: energy(net), [z], lr=0.1)
    if energy(net).dim():
        recorded = loop.run(3, record=True).energies
        assert terms in (None, recorded.shape[1])
        torch.testing.assert_close(recorded[:-1].sum(1) * len(z), torch.stack(energies), rtol=1e-12, atol=1e-12)
    else:
        with pytest.warns(UserWarning, match="one number for states of 4 samples"):
            loop.run(3)
    torch.testing.assert_close(z.detach(), states[0], rtol=1e-12, atol=1e-12)
    loop.backward(learned)
    for p, gradient in zip(learned, gradients, strict=True):
        assert (p.grad is not None and bool(p.grad.any())) == (gradient is not None and bool(gradient.any()))
        if gradient is not None and p.grad is not None:
            torch.testing.assert_close(p.grad, gradient, rtol=1e-12, atol=1e-12)
    explained = loop.explain()
    assert explained.startswith("executor: chain")
    assert "\nnot" not in explained


def added_into(start):
    def energy(n):
        total = start(n)
        total += n.first()
        return total.add_(n.second())

    return energy


def less_in_place(n):
    total = n.first()
    total.sub_(n.second(), alpha=-0.5)
    return total


# How two energies are added up, and how many terms that makes
SUMS = {
    "zeros": (added_into(lambda n: torch.zeros(4, dtype=torch.float64)), 3),
    "new_zeros": (added_into(lambda n: n.below.value.new_zeros(4)), 3),
    "new_zeros-of-the-state": (added_into(lambda n: n.z.new_zeros(len(n.z))), 3),
    "zeros_like": (added_into(lambda n: torch.zeros_like(n.y[:, 0])), 3),
    "zeros_like-of-the-state": (added_into(lambda n: torch.zeros_like(n.z.sum(1))), 3),
    "into-the-first": (added_into(lambda n: n.below.value.square().sum(1) * 0.5), 3),
    "less-in-place": (less_in_place, 2),
    "number-first": (lambda n: 0.0 + n.first() + n.second(), 2),
    "add": (lambda n: torch.add(n.first(), n.second()), 2),
    "add-by-name": (lambda n: torch.add(input=n.first(), other=n.second(), alpha=2), 2),
    "minus-the-negative": (lambda n: n.first() - (-n.second()), 2),
    "sum": (lambda n: sum([n.first(), n.second()]), 2),
    "sum-from": (lambda n: sum([n.second()], n.first()), 2),
    "stack": (lambda n: torch.stack([n.first(), n.second()]).sum(0), 2),
    "stack-sum-of-list": (lambda n: torch.stack([n.first(), n.second()]).sum([0]), 2),
    "stack-first": (lambda n: torch.sum(torch.stack([n.first(), n.second()], 0), dim=0), 2),
    "stack-dim": (lambda n: torch.stack([n.first(), n.second()], dim=1).sum(1), 2),
    "stack-dim-sum-last": (lambda n: torch.stack([n.first(), n.second()], dim=1).sum(-1), 2),
    "stack-last": (lambda n: torch.stack([n.first(), n.second()], -1).sum(dim=(1,)), 2),
    "stack-axis": (lambda n: torch.stack([n.first(), n.second()], -1).sum(axis=1), 2),
    "stack-mean": (lambda n: torch.stack([n.first(), 3 * n.second()]).mean(0), 2),
    "stack-dim-mean": (lambda n: torch.mean(torch.stack([n.first(), n.second()], dim=1), -1), 2),
    "stack-keepdim": (lambda n: torch.stack([n.first(), n.second()], 1).sum(1, keepdim=True).squeeze(1), 2),
    "stack-with-another": (lambda n: torch.stack([n.first(), n.y.square().sum(1), n.second()], 1).sum(1), 3),
    "cat": (lambda n: torch.cat([n.first().unsqueeze(1), n.second().view(-1, 1)], 1).sum(1), 2),
    "scaled": (lambda n: 2 * n.first() + n.second() * 0.3 / 2, 2),
    "constant": (lambda n: n.first() + 3.0 + n.second(), 3),
    "constant-tensor": (lambda n: n.first() + torch.tensor(3.0) + n.second(), 3),
    "decay": (lambda n: n.first() + n.second() + 0.5 * 0.01 * n.top.weight.square().sum(), 3),
    "decay-of-all": (
        lambda n: n.first() + n.second() + 0.01 * sum(p.pow(2).sum() for p in n.up.parameters()), 4,
    ),
    "decay-of-a-product": (lambda n: n.first() + n.second() + (n.top.weight @ n.up.weight).square().mean(), 3),
}  # fmt: skip


@pytest.mark.parametrize("name", SUMS)
def test_sums_of_energies(name):
    energy, terms = SUMS[name]
    assert_is_a_chain(energy, Net(), terms)


SQUARES = {
    "power": lambda n: 0.5 * (n.error() ** 2).sum(1),
    "other-sign": lambda n: 0.5 * ((n.mu() - n.y) ** 2).sum(1),
    "no-half": lambda n: (n.error() ** 2).sum(1),
    "pow": lambda n: 0.5 * n.error().pow(2).sum(dim=-1),
    "pow-by-name": lambda n: 0.5 * torch.pow(n.error(), exponent=2.0).sum((1,)),
    "square": lambda n: 0.5 * n.error().square().sum(1),
    "square-function": lambda n: 0.5 * torch.sum(torch.square(n.error()), dim=-1),
    "product": lambda n: (lambda d: 0.5 * (d * d).sum(1))(n.error()),
    "product-written-twice": lambda n: 0.5 * ((n.y - n.mu()) * (n.y - n.mu())).sum(1),
    "product-of-opposites": lambda n: -0.5 * ((n.y - n.mu()) * (n.mu() - n.y)).sum(1),
    "product-scaled": lambda n: (lambda d: (0.5 * d * d).sum(1))(n.error()),
    "half-inside": lambda n: (0.5 * n.error() ** 2).sum(1),
    "by-two": lambda n: (n.error() ** 2).sum(1) / 2,
    "by-two-inside": lambda n: (n.error() ** 2 / 2).sum(1),
    "variance": lambda n: 0.5 * (n.error() ** 2).sum(1) / 0.3,
    "variance-inside": lambda n: (n.error() ** 2 / (2 * 0.3)).sum(1) + 1.5,
    "deviation": lambda n: 0.5 * ((n.error() / 0.6) ** 2).sum(1),
    "root-inside": lambda n: (0.7 * -n.error()).square().sum(1),
    "subtract": lambda n: torch.subtract(n.y, n.mu()).square().sum(1),
    "add-alpha": lambda n: torch.add(n.mu(), n.y, alpha=-1).square().sum(1),
    "error-function": lambda n: 0.5 * gaussian_error(n.y, n.mu()).square().sum(1),
    "mean": lambda n: n.error().square().mean(1),
    "flattened": lambda n: 0.5 * n.error().square().flatten(1).sum(1),
    "constant-inside": lambda n: (0.5 * n.error() ** 2 + 2.0).sum(1),
    "concatenated": lambda n: torch.cat([n.error().square(), n.y], 1).sum(1),
    "loss": lambda n: F.mse_loss(n.mu(), n.y, reduction="none").sum(1),
    "loss-other-way": lambda n: 0.5 * F.mse_loss(n.y, n.mu(), reduction="none").mean(-1),
    "loss-module": lambda n: 0.5 * nn.MSELoss(reduction="none")(n.mu(), n.y).sum(1),
}  # fmt: skip


@pytest.mark.parametrize("name", SQUARES)
def test_squared_errors_are_energies_of_unit_variance(name):
    assert_is_a_chain(lambda n: n.first() + SQUARES[name](n), Net())


ABSOLUTES = {
    "abs": lambda n: n.error().abs().sum(1),
    "scaled": lambda n: 0.3 * n.error().abs().sum(dim=-1),
    "other-sign": lambda n: torch.abs(n.mu() - n.y).sum(1) / 2,
    "builtin": lambda n: (0.5 * abs(n.error())).sum(1),
    "by-name": lambda n: torch.absolute(input=n.error()).mean(1),
    "factor-inside": lambda n: (-0.7 * n.error()).abs().flatten(1).sum(1) + 1.5,
    "loss": lambda n: F.l1_loss(n.mu(), n.y, reduction="none").sum(1),
    "loss-mean": lambda n: 0.5 * F.l1_loss(n.y, n.mu(), reduction="none").mean(-1),
    "loss-module": lambda n: nn.L1Loss(reduction="none")(n.mu(), n.y).sum(1),
    "function": lambda n: laplace_energy(n.y, n.mu()),
    "log-scales": lambda n: 0.3 * laplace_energy(n.y, n.mu(), n.out.logvar),
    "a-log-scale": lambda n: laplace_energy(n.y, n.mu(), n.out.logvar[:1]),
}  # fmt: skip


@pytest.mark.parametrize("name", ABSOLUTES)
def test_absolute_errors_are_energies_of_laplace_nodes(name):
    assert_is_a_chain(lambda n: n.first() + ABSOLUTES[name](n), Net())


def test_absolute_errors_of_a_free_state():
    of_state = lambda n: 0.8 * (n.z - n.up(n.below.value)).abs().sum(1)  # noqa: E731
    assert_is_a_chain(lambda n: of_state(n) + n.second(), Net(), 2)
    assert_is_a_chain(lambda n: laplace_energy(n.z, n.up(n.below.value)) + n.error().abs().sum(1), Net(), 2)


# binary and count data, and errors with heavy tails, of whose energies the rest is autograd's
BINARY = {
    "loss": lambda n: F.binary_cross_entropy_with_logits(n.mu(), n.b, reduction="none").sum(1),
    "loss-mean": lambda n: 0.5 * F.binary_cross_entropy_with_logits(n.mu(), target=n.b, reduction="none").mean(1),
    "loss-module": lambda n: nn.BCEWithLogitsLoss(reduction="none")(n.mu(), n.b).sum(1),
    "weighted": lambda n: n.weights * F.binary_cross_entropy_with_logits(n.mu(), n.b, reduction="none").sum(1),
    "softplus": lambda n: (F.softplus(n.mu()) - n.b * n.mu()).sum(1),
    "softplus-module": lambda n: 0.7 * (nn.Softplus()(n.mu()) - n.mu() * n.b).sum(1),
    "likelihood": lambda n: -(lambda mu: n.b * mu - F.softplus(mu))(n.mu()).sum(1),
    "added": lambda n: (lambda mu: -(n.b * mu) + F.softplus(mu))(n.mu()).mean(1),
    "of-the-rest": lambda n: F.binary_cross_entropy_with_logits(n.mu(), 1 - n.b, reduction="none").sum(1),
    "function": lambda n: bernoulli_energy(n.b, n.mu()),
}  # fmt: skip
COUNTS = {
    "loss": lambda n: F.poisson_nll_loss(n.mu(), n.counts, reduction="none").sum(1),
    "loss-module": lambda n: 0.5 * nn.PoissonNLLLoss(reduction="none")(n.mu(), n.counts).mean(1),
    "exp": lambda n: (torch.exp(n.mu()) - n.counts * n.mu()).sum(1),
    "exp-method": lambda n: 0.7 * (lambda mu: mu.exp() - mu * n.counts + 2.0)(n.mu()).sum(1),
    "function": lambda n: poisson_energy(n.counts, n.mu()),
}  # fmt: skip
TAILS = {
    "huber": lambda n: F.huber_loss(n.mu(), n.y, reduction="none").sum(1),
    "huber-delta": lambda n: 0.5 * F.huber_loss(n.y, n.mu(), reduction="none", delta=0.3).mean(1),
    "huber-module": lambda n: n.weights * nn.HuberLoss("none", 0.7)(n.mu(), n.y).sum(1),
    "smooth": lambda n: F.smooth_l1_loss(n.mu(), n.y, reduction="none", beta=0.4).sum(1),
    "smooth-module": lambda n: nn.SmoothL1Loss(reduction="none")(n.mu(), n.y).sum(1),
    "smooth-without-beta": lambda n: F.smooth_l1_loss(n.mu(), n.y, reduction="none", beta=0).sum(1),
    "cauchy": lambda n: torch.log1p(n.error() ** 2).sum(1),
    "cauchy-of-a-scale": lambda n: 0.3 * torch.log1p((n.error() / 0.6).square()).sum(1),
    "student": lambda n: 2 * torch.log1p(n.error().square() / 3).sum(1),
    "log": lambda n: (1 + 2 * n.error() ** 2).log().mean(1),
    "weighted": lambda n: n.weights * (n.error() ** 2 / 2).log1p().sum(1),
    "function": lambda n: student_energy(n.y, n.mu()),
    "function-of-scales": lambda n: 0.4 * student_energy(n.y, n.mu(), n.out.logvar, 4),
    "variance": lambda n: F.gaussian_nll_loss(n.mu(), n.y, 0.3, reduction="none").sum(1),
    "variances": lambda n: F.gaussian_nll_loss(n.mu(), n.y, n.out.logvar.exp().expand(4, -1), reduction="none").sum(1),
    "variances-like": lambda n: F.gaussian_nll_loss(
        n.mu(), n.y, torch.exp(n.out.logvar).expand_as(n.y), reduction="none"
    ).mean(1),
    "variances-module": lambda n: nn.GaussianNLLLoss(reduction="none")(
        n.mu(), n.y, n.out.logvar.exp().expand(4, 3)
    ).sum(1),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in (BINARY, COUNTS, TAILS) for name in kind],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_other_losses_are_energies_of_nodes(kind, name):
    n = Net()
    n.b, n.counts = torch.rand(4, 3).double().round(decimals=1), torch.randint(5, (4, 3)).double()
    assert_is_a_chain(lambda n: n.first() + kind[name](n), n)


# whose energy is another, or that have no one law
NO_LAW = {
    "positive-weights": lambda n: F.binary_cross_entropy_with_logits(
        n.mu(), n.b, pos_weight=torch.tensor([1.0, 2.0, 3.0]).double(), reduction="none"
    ),
    "weights-of-elements": lambda n: F.binary_cross_entropy_with_logits(n.mu(), n.b, weight=n.b, reduction="none"),
    "rates": lambda n: F.poisson_nll_loss(n.mu().exp(), n.b, log_input=False, reduction="none"),
    "with-the-constant": lambda n: F.poisson_nll_loss(n.mu(), n.b, full=True, reduction="none"),
    "exp-alone": lambda n: n.mu().exp(),
    "variances-of-samples": lambda n: F.gaussian_nll_loss(n.mu(), n.y, n.weights[:, None] + 1, reduction="none"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_LAW)
def test_what_looks_like_an_energy_and_is_none(name):
    n = Net()
    n.b = torch.rand(4, 3).double()
    explained = assert_as_autograd(lambda: n.first() + NO_LAW[name](n).sum(1), [n.z], [*n.top.parameters()])
    assert "\nnot chain: a term of the energy" in explained


TARGETS = {
    "view": lambda n: n.y.view(-1, 3),
    "flattened": lambda n: n.y.unsqueeze(2).flatten(1),
    "other-precision": lambda n: n.y.float().double(),
    "classes": lambda n: F.one_hot(n.y.argmax(1), 3).double(),
}


@pytest.mark.parametrize("energy_of", [gaussian_energy, lambda y, mu: F.mse_loss(mu, y, reduction="none").sum(1)])
@pytest.mark.parametrize("name", TARGETS)
def test_targets_that_are_computed_from_data(name, energy_of):
    assert_is_a_chain(lambda n: n.first() + energy_of(TARGETS[name](n), n.mu()), Net(), 2)


def test_a_target_that_is_learned_has_its_gradient_from_autograd():
    n, target = Net(), free(4, 3)
    energy = lambda: n.first() + gaussian_energy(target * 2, n.mu())  # noqa: E731
    (gradient,) = torch.autograd.grad(energy().mean(), target)
    loop = pyro.InferenceLoop(energy, [n.z], lr=0.1)
    loop.backward([target])
    torch.testing.assert_close(target.grad, gradient, rtol=1e-12, atol=1e-12)
    explained = loop.explain()
    assert explained.startswith("executor: chain")
    assert "the gradient of target is autograd's: mul takes it, not an edge" in explained


def test_every_term_a_square():
    assert_is_a_chain(
        lambda n: 0.5 * (n.z - n.up(n.below.value)).square().sum(1) + ((n.mu() - n.y) ** 2).sum(1), Net(), 2
    )


def test_squares_of_two_nodes_in_one_sum():
    """Of the same width, so that their elements can be added before they are summed."""
    n, y = Net(), torch.randn(4, 5).double()
    n.top = nn.Linear(5, 5).double()
    assert_is_a_chain(lambda n: (0.5 * (n.z - n.up(n.below.value)) ** 2 + 0.3 * (n.mu() - y).square()).sum(1), n, 2)


PRIORS = {
    "standard": lambda n: 0.5 * n.z.square().sum(1),
    "power": lambda n: (0.5 * n.z**2).sum(1),
    "product": lambda n: (n.z * n.z).sum(1),
    "around-a-number": lambda n: 0.5 * ((n.z - 0.5) ** 2).sum(1),
    "number-first": lambda n: 0.5 * ((0.5 - n.z) ** 2).sum(1),
    "scaled": lambda n: 0.5 * (2 * n.z).square().sum(1),
    "scaled-sum": lambda n: 0.5 * (0.8 * (n.z + 0.5)).square().sum(1),
    "absolute": lambda n: 0.3 * n.z.abs().sum(1),
    "absolute-around-a-number": lambda n: 0.3 * (n.z - 0.5).abs().sum(1),
    "cauchy": lambda n: 0.3 * torch.log1p(n.z**2).sum(1),
    "huber": lambda n: 0.3 * F.huber_loss(n.z, torch.zeros_like(n.z), reduction="none", delta=0.2).sum(1),
    "around-data": lambda n: 0.5 * (n.z - n.below.value[:, :5]).square().sum(1),
}


# Energies of which samples, or all of them, have weights that are tensors
WEIGHTED = {
    "energy": lambda n: n.first() + n.weights * n.second(),
    "energy-first": lambda n: torch.mul(n.first(), other=n.weights) + n.second(),
    "twice": lambda n: n.weights * (n.first() + 2 * (n.second() * n.weights)),
    "sum": lambda n: n.weights * (n.first() + n.second() + 3.0),
    "and-decay": lambda n: (n.first() + n.second() + n.top.weight.square().sum()) * n.weights,
    "column": lambda n: n.first() + (n.weights[:, None] * n.error() ** 2).sum(1),
    "column-in-float": lambda n: n.first() + (0.5 * n.weights.float()[:, None] * n.error().square()).sum(1),
    "mask": lambda n: n.first() + (n.weights > 0.5) * n.second(),
    "laplace": lambda n: n.first() + n.weights * laplace_energy(n.y, n.mu(), n.out.logvar),
    "computed": lambda n: n.first() + n.weights.softmax(0) * n.second(),
    "one-for-all": lambda n: n.first() + n.weights[0] * n.second(),
    "one-for-all-of-one-element": lambda n: n.first() + n.weights[:1] * n.second(),
    "stack": lambda n: (torch.stack([n.first(), n.second()], 1) * n.weights[:, None]).sum(1),
    "mean-of-the-batch": lambda n: (n.first() + n.weights * n.second()).mean(),
    "column-in-a-sum-of-all": lambda n: n.first().sum() + (n.weights[:, None] * n.error() ** 2).sum(),
    "stack-in-a-sum-of-all": lambda n: (torch.stack([n.first(), n.second()], 1) * n.weights[:, None]).sum(),
    "one-for-all-of-a-sum": lambda n: n.first().sum() + n.weights[0] * n.second().mean(),
    "of-errors": lambda n: n.first() + 0.5 * ((n.weights[:, None] * n.error()) ** 2).sum(1),
    "of-errors-after": lambda n: n.first() + 0.5 * (2 * n.error() * n.weights.unsqueeze(1)).square().mean(1),
    "of-one-error-of-two": lambda n: n.first() + (n.error() * (n.weights[:, None] * n.error())).sum(1),
    "of-errors-in-a-sum-of-all": lambda n: n.first().sum() + (n.weights[:, None] * n.error()).square().sum(),
    "of-errors-one-for-all": lambda n: n.first() + (n.weights[0] * -n.error()).square().sum(1),
    "of-errors-and-energies": lambda n: n.weights * (n.first() + (n.weights[:, None] * n.error()).square().sum(1)),
    "divisor": lambda n: n.first() + n.second() / n.weights,
    "divisor-of-all": lambda n: (n.first() + n.second()) / n.weights + n.weights.log(),
    "divisor-of-columns": lambda n: n.first() + (n.error().square() / n.weights[:, None]).sum(1),
    "divisor-of-errors": lambda n: n.first() + 0.5 * ((n.error() / n.weights[:, None]) ** 2).sum(1),
    "number-as-divisor": lambda n: n.first() + n.second() / n.weights[1] - n.weights[1].log(),
    "number-as-divisor-of-errors": lambda n: n.first() + 0.5 * ((n.error() / n.weights[1]) ** 2).sum(1),
    "variance": lambda n: n.first() + (n.error() ** 2 / (2 * n.weights[1] ** 2)).sum(1),
    "scale": lambda n: n.first() + n.error().abs().sum(1) / n.weights[1],
    "norm-as-divisor": lambda n: n.first() + n.second() / n.below.value.norm(),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_per_sample(name):
    assert_is_a_chain(WEIGHTED[name], Net())


def test_weights_per_sample_of_a_full_covariance():
    n = Net()
    n.out = MultivariateGaussianNode(3).double()
    n.out.init(torch.randn(4, 3).double())
    learned = [*n.up.parameters(), *n.top.parameters(), *n.out.parameters()]
    learned = [p for p in learned if p is not n.out.value]
    energy = lambda: n.first() + n.weights * n.second()  # noqa: E731
    value, (gradient,) = energy(), torch.autograd.grad(energy().sum(), n.z)
    expected = n.z.detach() - 0.1 * gradient
    loop = pyro.InferenceLoop(energy, [n.z], lr=0.1)
    recorded = loop.run(1, record=True).energies
    torch.testing.assert_close(recorded[0].sum(), value.detach().mean(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(n.z.detach(), expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(energy().mean(), learned, allow_unused=True)
    loop.backward(learned)
    for p, exact in zip(learned, gradients, strict=True):
        torch.testing.assert_close(p.grad, exact, rtol=1e-12, atol=1e-12)
    assert loop.explain().startswith("executor: chain")


@pytest.mark.parametrize("use", ["alone", "as a bias too"])
def test_weights_per_sample_that_are_learned_have_their_gradients_from_autograd(use):
    n = Net(batch=3)
    n.weights = n.top.bias if use == "as a bias too" else free(3)
    energy = lambda: n.first() + n.weights * n.second()  # noqa: E731
    learned = [n.weights, *n.top.parameters()]
    gradients = torch.autograd.grad(energy().mean(), learned)
    loop = pyro.InferenceLoop(energy, [n.z], lr=0.1)
    loop.backward(learned)
    for p, exact in zip(learned, gradients, strict=True):
        torch.testing.assert_close(p.grad, exact, rtol=1e-12, atol=1e-12)
    explained = loop.explain()
    assert explained.startswith("executor: chain")
    assert "autograd" in explained or "used outside the chain's edges" in explained


# How a scale that learns enters: the energy, and what takes it there
SCALES = {
    "factor": (lambda n, s: s * n.second(), "a node's energy is multiplied by it"),
    "divisor": (lambda n, s: n.second() / s, "div takes it, not an edge"),
    "of-errors": (lambda n, s: (n.error() / s).square().sum(1), "div takes it, not an edge"),
    "factor-of-errors": (lambda n, s: (n.error() * s).square().sum(1), "mul takes it, not an edge"),
    "log-scale": (lambda n, s: n.error().abs().sum(1) / s.exp() + 3 * s, "exp takes it, not an edge"),
}


@pytest.mark.parametrize("learns", [True, False], ids=["learned", "fixed"])
@pytest.mark.parametrize("name", SCALES)
def test_a_scale_of_one_number(name, learns):
    """E-steps are a chain's all the same; the gradient of one that learns is autograd's."""
    scaled, told = SCALES[name]
    n, scale = Net(), nn.Parameter(torch.tensor(0.7).double(), learns)
    energy = lambda: n.first() + scaled(n, scale)  # noqa: E731
    explained = assert_as_autograd(energy, [n.z], [*n.top.parameters(), *([scale] if learns else [])])
    assert explained.startswith("executor: chain")
    assert (f"not fused M-step gradients: the gradient of scale is autograd's: {told}" in explained) == learns
    loop = pyro.InferenceLoop(energy, [n.z], lr=0.1)
    loop.run(1)
    with torch.no_grad():
        scale.mul_(2)
    (gradient,) = torch.autograd.grad(energy().sum(), n.z)
    expected = n.z.detach() - 0.1 * gradient
    loop.run(1)
    torch.testing.assert_close(n.z.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [2, 4])
def test_weights_of_what_is_no_sample(batch):
    """Of two energies that are stacked: none per sample, whatever the number of these."""
    n, of = Net(batch), torch.tensor([0.5, 2.0]).double()
    energy = lambda: (torch.stack([n.first(), n.second()]) * of[:, None]).sum()  # noqa: E731
    (gradient,) = torch.autograd.grad(energy(), n.z)
    expected = n.z.detach() - 0.1 * gradient
    loop = pyro.InferenceLoop(energy, [n.z], lr=0.1)
    with pytest.warns(UserWarning, match="one number"):
        loop.run(1)
    torch.testing.assert_close(n.z.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("incremental", [False, True, "joint"])
@pytest.mark.parametrize("per_batch", [False, True])
def test_a_batch_with_weights_per_sample_does_what_its_parts_do(per_batch, incremental):
    """One call where somebody holds the weights, which may change; given with the batch, they are read anew."""
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    theirs.weights = ours.weights.clone()
    energy = lambda n: n.first() + n.weights * n.second()  # noqa: E731
    learned = [[*n.up.parameters(), *n.top.parameters(), n.out.logvar] for n in (ours, theirs)]

    def start(x, y, w=None, n=ours):
        n.hidden.init(n.up(n.below.init(x)).detach())
        n.out.init(y)
        if w is not None:
            n.weights.copy_(w)

    em = pyro.EM(
        lambda: energy(ours), [ours.z], torch.optim.Adam(learned[0], 0.01), start=start, steps=3, lr=0.1,
        incremental=incremental,
    )  # fmt: skip
    optimizer = torch.optim.Adam(learned[1], 0.01)
    for i in range(9):
        batch = torch.randn(4, 6).double(), torch.randn(4, 3).double()
        if i == 5:
            for n in (ours, theirs):
                n.weights.mul_(0.5)
        elif i == 7:
            ours.weights = torch.rand(4).double()
            theirs.weights = ours.weights.clone()
        batch = (*batch, torch.rand(4).double()) if per_batch else batch
        em.step(*batch)
        with torch.no_grad():
            start(*batch, n=theirs)
        for step in range(3):
            (gradient,) = torch.autograd.grad(energy(theirs).sum(), theirs.z)
            gradients = torch.autograd.grad(energy(theirs).mean(), learned[1])
            with torch.no_grad():
                theirs.z.sub_(0.1 * gradient)
            if not incremental and step < 2:
                continue
            if incremental != "joint":
                gradients = torch.autograd.grad(energy(theirs).mean(), learned[1])
            for p, g in zip(learned[1], gradients, strict=True):
                p.grad = g
            optimizer.step()
        for mine, other in zip([*learned[0], ours.z], [*learned[1], theirs.z], strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
    assert em.explain().startswith("a batch: one call") or per_batch


@pytest.mark.parametrize("name", PRIORS)
def test_squares_of_a_state_are_its_prior(name):
    assert_is_a_chain(lambda n: PRIORS[name](n) + n.second(), Net())


HEADS = {
    "float-node": (lambda: FloatNode(6, prior=student_energy), lambda n: n.code.energy()),
    "of-ones-own": (
        lambda: FloatNode(6, prior=lambda z, mu: 0.3 * F.huber_loss(z, mu, reduction="none").sum(1)),
        lambda n: n.code.energy(),
    ),
    "laplace-node": (lambda: LaplaceNode(6, scale=0.7), lambda n: n.code.energy(torch.zeros(()).double())),
    "student-node": (lambda: StudentNode(6, dof=4, scale=0.7), lambda n: n.code.energy(torch.ones(6).double())),
    "gaussian-node": (lambda: FactorizedGaussianNode(6), lambda n: n.code.energy(torch.ones(1, 6).double())),
    "bias": (lambda: StandardGaussianNode(6), lambda n: n.code.energy(n.mean(n.code.value))),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_a_chain_have_priors(name):
    """A free state that nothing predicts, above binary data: states, scales and weights are plain autograd's."""
    kind, prior = HEADS[name]
    n = Net()
    n.code, n.mean, n.pixels = kind().double(), BiasNode(6).double(), BernoulliNode(3).double()
    n.code.init(torch.randn(4, 6).double()), n.pixels.init(torch.rand(4, 3).double())
    learned = [*n.up.parameters(), *n.top.parameters(), *(p for k, p in n.code.named_parameters() if k == "logscale")]

    def energy():
        return prior(n) + n.hidden.energy(n.up(n.code.value)) + n.pixels.energy(n.mu())

    explained = assert_as_autograd(energy, [n.code.value, n.z], learned)
    assert explained.startswith("executor: chain")
    assert "not fused M-step" not in explained


NUMBERS = {
    "sum": lambda n: (n.first() + n.second()).sum(),
    "sums": lambda n: n.first().sum() + n.second().sum(),
    "mean": lambda n: (n.first() + 2 * n.second()).mean(),
    "means-and-decay": lambda n: n.first().mean(0) + n.second().mean() + n.top.weight.square().sum(),
    "decay-inside": lambda n: (n.first() + n.second() + n.top.weight.square().sum()).sum(),
    "constant-inside": lambda n: (n.first() + n.second() + 1.0).sum(),
    "stacked": lambda n: torch.stack([n.first(), n.second()]).sum(),
    "stacked-numbers": lambda n: torch.stack([n.first().sum(), n.second().mean()]).sum(),
    "squares": lambda n: 0.5 * (n.z - n.up(n.below.value)).square().sum() + 0.5 * n.error().square().sum(),
    "squares-mean": lambda n: 0.5 * (n.z - n.up(n.below.value)).square().sum(1).mean() + n.error().square().mean(),
    "loss-sum": lambda n: n.first().sum() + 0.5 * F.mse_loss(n.y, n.mu(), reduction="sum"),
    "loss-mean": lambda n: F.mse_loss(n.up(n.below.value), n.z) + nn.MSELoss()(n.mu(), n.y),
    "absolute-loss-sum": lambda n: n.first().sum() + 0.5 * F.l1_loss(n.y, n.mu(), reduction="sum"),
    "absolute-loss-mean": lambda n: F.l1_loss(n.up(n.below.value), n.z) + nn.L1Loss()(n.mu(), n.y),
    "binary-loss-mean": lambda n: (
        n.first().mean() + F.binary_cross_entropy_with_logits(n.mu(), n.below.value[:, :3].sigmoid())
    ),
    "huber-loss-sum": lambda n: n.first().sum() + F.huber_loss(n.mu(), n.y, reduction="sum", delta=0.4),
    "loss-none": lambda n: n.first().sum() + F.mse_loss(n.y, n.mu(), reduction="none").sum(),
    "view": lambda n: (n.first() + n.second()).view(-1, 1).sum(),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_energies_of_the_whole_batch(name):
    """They descend as they are, and their gradients are their own, not a mean's."""
    assert_is_a_chain(NUMBERS[name], Net())


# What looks like a node's energy and is none; what it is called
NONE = {
    "norm": (lambda n: n.error().norm(dim=1), "norm of n.hidden.value"),
    "in-parts": (lambda n: (n.error().square() + n.mu().cos()).sum(1), "sum of cos of n.hidden.value"),
    "cat": (lambda n: torch.cat([n.first()[:2], n.first()[2:]]), "cat of n.hidden.value"),
    "over-the-batch": (lambda n: n.error().square().sum(0).sum() + n.first() * 0, "add of n.hidden.value"),
    "two-tensors": (
        lambda n: (n.top.bias.square() * n.error().square() / n.out.logvar.exp()).sum(1),
        "div of n.hidden.value, has a tensor as a factor, exp of n.out.logvar",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_nodes_energy_is_called_by_its_name(name):
    energy, called = NONE[name]
    net = Net()
    start = net.z.detach().clone()
    (gradient,) = torch.autograd.grad((net.first() + energy(net)).sum(), net.z)
    n = net
    loop = pyro.InferenceLoop(lambda: n.first() + energy(n), [n.z], lr=0.1)
    loop.run(1)
    torch.testing.assert_close(n.z.detach(), start - 0.1 * gradient, rtol=1e-12, atol=1e-12)
    explained = loop.explain()
    assert explained.startswith("executor: graph")
    assert f"not chain: a term of the energy, {called}" in explained


# What is a law of one's own, with a tensor in it
OF_A_TENSOR = {
    "weighted-elements-and-a-variance": lambda n: (
        torch.stack([n.weights] * 3, 1) * n.error().square() / n.out.logvar.exp()
    ).sum(1),
    "weighted-elements-of-errors": lambda n: (n.top.bias * n.error()).square().sum(1),
    "weighted-absolute-errors": lambda n: (n.weights[:, None] * n.error()).abs().sum(1),
    "weights-of-different-errors": lambda n: ((n.weights[:, None] * n.error()) * (n.y - 2 * n.mu())).sum(1),
    "divided-elements-of-errors": lambda n: (n.error() / n.out.logvar.exp()).square().sum(1),
    "weighted-elements": lambda n: (torch.stack([n.weights] * 3, 1) * n.error().square()).sum(1),
    "precision": lambda n: (n.error() ** 2 / n.out.logvar.exp()).sum(1),
}


@pytest.mark.parametrize("name", OF_A_TENSOR)
def test_errors_times_a_tensor_stay_in_the_chain(name):
    n, energy = Net(), OF_A_TENSOR[name]
    start = n.z.detach().clone()
    (gradient,) = torch.autograd.grad((n.first() + energy(n)).sum(), n.z)
    loop = pyro.InferenceLoop(lambda: n.first() + energy(n), [n.z], lr=0.1)
    loop.run(1)
    torch.testing.assert_close(n.z.detach(), start - 0.1 * gradient, rtol=1e-12, atol=1e-12)
    assert loop.explain().startswith("executor: chain")


def test_a_column_for_every_node_whatever_runs_it():
    n = Net()
    energy = lambda: (n.second() + (0.5 * (n.z - n.up(n.below.value)) ** 2).sum(1)) * 0.5  # noqa: E731
    columns = [
        pyro.InferenceLoop(energy, [n.z], lr=0.0, executor=executor).run(1, record=True).energies
        for executor in ("chain", "graph")
    ]
    assert columns[0].shape == (2, 2)
    torch.testing.assert_close(*columns, rtol=1e-12, atol=1e-12)


def by_hand(n):
    return (0.5 * (n.z - n.up(n.below.value)) ** 2).sum(1) + F.mse_loss(n.mu(), n.y, reduction="none").sum(1) / 0.8 + 1


@pytest.mark.parametrize("incremental", [False, True, "joint"])
def test_a_batch_of_an_energy_written_by_hand_is_one_call(incremental):
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    x, y = torch.randn(4, 6).double(), torch.randn(4, 3).double()

    def start(n):
        n.hidden.init(n.up(n.below.init(x)).detach())
        n.out.init(y)

    learned = [[*n.up.parameters(), *n.top.parameters()] for n in (ours, theirs)]
    em = pyro.EM(
        lambda: by_hand(ours), [ours.z], torch.optim.Adam(learned[0], 0.01), start=lambda: start(ours),
        steps=3, lr=0.1, incremental=incremental,
    )  # fmt: skip
    optimizer = torch.optim.Adam(learned[1], 0.01)
    for _ in range(2):
        em.step()
        start(theirs)
        for step in range(3):
            (gradient,) = torch.autograd.grad(by_hand(theirs).sum(), theirs.z)
            gradients = torch.autograd.grad(by_hand(theirs).mean(), learned[1])
            with torch.no_grad():
                theirs.z.sub_(0.1 * gradient)
            if not incremental and step < 2:
                continue
            if incremental != "joint":
                gradients = torch.autograd.grad(by_hand(theirs).mean(), learned[1])
            for p, g in zip(learned[1], gradients, strict=True):
                p.grad = g
            optimizer.step()
    assert em.explain().startswith("a batch: one call")
    for mine, other in zip(learned[0], learned[1], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


def test_a_square_computed_twice_in_a_deep_network_takes_no_time():
    """Which calls compute the same is asked once for every pair of them."""
    z, y = free(2, 3), torch.randn(2, 3).double()

    def deep(x):
        for _ in range(60):
            x = torch.sin(x) + torch.cos(x)
        return x

    loop = pyro.InferenceLoop(lambda: ((y - deep(z)) * (y - deep(z))).sum(1), [z], lr=0.0)
    assert "comes from add" in loop.explain()
