"""Every row of the tables of laws and rules, against float64 autograd and `torch.optim`."""

import pytest
import torch

from chains import OWN_LAW
from pyromancy.laws import LAWS
from pyromancy.plan import Law, Rule, RuleKind
from pyromancy.rules import RULES

B, N = 3, 4


def vector(*shape):
    return lambda: torch.randn(shape, dtype=torch.float64)


def matrix():
    a = torch.randn(N, N, dtype=torch.float64)
    return a @ a.mT + torch.eye(N)


SCALES = [lambda: None, vector(N), vector(1), vector()]
NONE = [lambda: None]
THETAS = {
    Law.GAUSSIAN: SCALES,
    Law.FULL_GAUSSIAN: [matrix],
    Law.LAPLACE: SCALES,
    Law.BERNOULLI: NONE,
    Law.POISSON: NONE,
    Law.STUDENT: SCALES,
    Law.HUBER: NONE,
    Law.CATEGORICAL: NONE,
    Law.EXPRESSION: NONE,
}
PARAMETERS = {Law.STUDENT: 3.5, Law.HUBER: 0.7, Law.EXPRESSION: OWN_LAW}
DECAYS = [{}, {"weight_decay": 0.1}, {"maximize": True, "weight_decay": 0.1}]


def sgd(momentum=0.0, dampening=0.0, **options):
    rule = Rule(RuleKind.SGD, 0.1, first=momentum, second=dampening, fresh=True, **options)
    options = {"momentum": momentum, "dampening": dampening, **options}
    return rule, lambda p: torch.optim.SGD([p], 0.1, **options), ["momentum_buffer"] if momentum else []


def adam(amsgrad=False, decoupled=False, **options):
    rule = Rule(RuleKind.ADAM, 0.1, first=0.8, second=0.9, epsilon=1e-3, decoupled=decoupled, **options)
    cls = torch.optim.AdamW if decoupled else torch.optim.Adam
    options = {"weight_decay": 0.0, "amsgrad": amsgrad, "betas": (0.8, 0.9), "eps": 1e-3, **options}
    slots = ["step", "exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])]
    return (
        rule,
        lambda p: torch.optim.AdamW([p], 0.1, **options) if cls is torch.optim.AdamW else cls([p], 0.1, **options),
        slots,
    )


def rmsprop(momentum=0.0, centered=False, **options):
    rule = Rule(RuleKind.RMSPROP, 0.1, first=0.9, second=momentum, epsilon=1e-3, **options)
    options = {"alpha": 0.9, "momentum": momentum, "eps": 1e-3, "centered": centered, **options}
    slots = ["step", "square_avg", "momentum_buffer" if momentum else None, "grad_avg" if centered else None]
    return rule, lambda p: torch.optim.RMSprop([p], 0.1, **options), slots


def plain(**options):
    return Rule(RuleKind.GRADIENT), None, []


CASES = {
    RuleKind.GRADIENT: [plain()],
    RuleKind.SGD: [
        sgd(**more, **decay)
        for more in ({}, {"momentum": 0.9, "dampening": 0.3}, {"momentum": 0.9, "nesterov": True})
        for decay in DECAYS
    ],
    RuleKind.ADAM: [
        adam(amsgrad, decoupled, **decay)
        for amsgrad in (False, True)
        for decoupled in (False, True)
        for decay in DECAYS
    ],
    RuleKind.RMSPROP: [
        rmsprop(momentum, centered, **decay)
        for momentum in (0.0, 0.8)
        for centered in (False, True)
        for decay in DECAYS
    ],
}


def test_every_row_is_tested():
    assert set(THETAS) == set(LAWS) == set(Law) - {Law.NONE}
    assert set(CASES) == set(RULES) == set(RuleKind)


@pytest.mark.parametrize(("law", "theta"), [(law, theta) for law in THETAS for theta in THETAS[law]])
@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_laws_are_derivatives_of_their_energy(law, theta, weight):
    torch.manual_seed(0)
    functions, theta = LAWS[law], theta()
    z, mu = (torch.randn(B, N, dtype=torch.float64, requires_grad=True) for _ in range(2))
    inputs = [z, mu] if theta is None else [z, mu, theta.requires_grad_()]
    numbers = weight, PARAMETERS.get(law, 0.0)
    energy = functions.energy(z, mu, theta, *numbers)
    assert energy.shape == (B,)
    of_z, of_mu, *of_theta = torch.autograd.grad(energy.sum(), inputs)
    torch.testing.assert_close(functions.pull(z, mu, theta, *numbers), of_z)
    torch.testing.assert_close(functions.push(z, mu, theta, *numbers), -of_mu)
    torch.testing.assert_close(torch.autograd.grad(functions.deviation(z, mu, theta, *numbers).sum(), z)[0], of_z)
    if law.is_of_distance:
        assert not functions.deviation(z, z, theta, *numbers).any()
        assert torch.equal(functions.push(z, mu, theta, *numbers), functions.pull(z, mu, theta, *numbers))
    for expected in of_theta:
        torch.testing.assert_close(functions.moment(z, mu, theta, *numbers), expected)


@pytest.mark.parametrize(("rule", "optimizer", "names"), [case for cases in CASES.values() for case in cases])
def test_rules_are_those_of_torch(rule, optimizer, names):
    torch.manual_seed(0)
    ours = torch.randn(N, dtype=torch.float64)
    theirs = ours.clone().requires_grad_()
    optimizer = optimizer and optimizer(theirs)
    slots = [None if n is None else torch.zeros(()) if n == "step" else torch.zeros_like(ours) for n in names]
    for i in range(4):
        gradient = torch.randn(N, dtype=torch.float64)
        RULES[rule.kind](Rule(**{**vars(rule), "fresh": rule.fresh and i == 0}), ours, gradient, slots)
        if optimizer is None:
            assert torch.equal(ours, gradient)
            continue
        theirs.grad = gradient
        optimizer.step()
        torch.testing.assert_close(ours, theirs.detach())
        for name, slot in zip(names, slots, strict=True):
            assert (name is None) == (slot is None)
            if slot is not None:
                torch.testing.assert_close(slot, optimizer.state[theirs][name])
