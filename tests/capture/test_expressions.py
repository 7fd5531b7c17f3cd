"""Laws of one's own, written as functions of a state and its prediction: what chains make of them, against autograd."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyromancy as pyro
from numerics import same_bits
from pyromancy.capture.calls import Call, Slot, alike, does_alike
from pyromancy.laws import expression
from pyromancy.nodes import FixedNode, FloatNode, StandardGaussianNode
from pyromancy.plan import Law

LAWS = {
    "cauchy": lambda z, mu: torch.log1p(((z - mu) / 0.7) ** 2) + 0.01 * (z - mu).abs(),
    "log-cosh": lambda z, mu: torch.log(torch.cosh(z - mu)),
    "cosh": lambda z, mu: torch.cosh(0.5 * (z - mu)) + torch.sinh(0.1 * z),
    "power": lambda z, mu: (z - mu).abs() ** 1.5,
    "odd-power": lambda z, mu: (z - mu).abs().pow(1.3),
    "cubed": lambda z, mu: 0.1 * (z - mu) ** 3,
    "inverse-power": lambda z, mu: (1 + (z - mu) ** 2) ** -1.5 - torch.rsqrt(2 + z * z),
    "softplus": lambda z, mu: F.softplus(mu) - z * mu + 0.1 * z**2,
    "softplus-with-beta": lambda z, mu: F.softplus(mu, 2.0) - z * mu + z.square(),
    "log-sigmoid": lambda z, mu: -F.logsigmoid(z - mu) - torch.log(torch.sigmoid(mu - z)),
    "quartic": lambda z, mu: 0.3 * z**2 + 0.1 * z**4,
    "pseudo-huber": lambda z, mu: torch.sqrt(1 + (z - mu) * (z - mu)) - 1,
    "spike-and-slab": lambda z, mu: -torch.logaddexp(-0.5 * (z - mu) ** 2, -5 * (z - mu) ** 2 - 1),
    "mixture": lambda z, mu: -torch.log(torch.exp(-((z - mu - 1) ** 2)) + torch.exp(-((z - mu + 1) ** 2))),
    "clamped": lambda z, mu: (z - mu).clamp(-0.5, 0.7) ** 2 + (z - mu).clamp(min=0.1) + (z - mu).clamp_max(0.2),
    "where": lambda z, mu: torch.where(z > mu, (z - mu) ** 2, 0.5 * (z - mu) ** 2),
    "quantile": lambda z, mu: torch.maximum(0.9 * (z - mu), -0.1 * (z - mu)),
    "relu": lambda z, mu: F.relu(z - mu - 0.1) ** 2 + torch.minimum(z - mu, 0.5 * mu) ** 2,
    "tanh": lambda z, mu: torch.tanh(z - mu) ** 2 + 1 / (1 + z**2),
    "elastic": lambda z, mu: 0.5 * (z - mu) ** 2 + 0.3 * (z - mu).abs(),
    "penalty-beside": lambda z, mu: 0.5 * (z - mu) ** 2 + 0.3 * z.abs(),
    "sum-of-both": lambda z, mu: (z + mu).square(),
    "sigmoid": lambda z, mu: torch.sigmoid(z * mu) + torch.expm1(-((z - mu) ** 2)),
    "logarithm": lambda z, mu: torch.log(2 + (z - mu) ** 2) - torch.log(3 - torch.tanh(z)),
    "less-than-1": lambda z, mu: torch.log1p(-0.01 * (z - mu) ** 2),
    "residual": lambda z, mu: torch.expm1(pyro.functional.gaussian_error(z, mu).abs()),
    "numbers-first": lambda z, mu: 2 - (1 - z + mu) ** 2 / 3 + 1 / (2 + torch.exp(mu - z)),
    "sign": lambda z, mu: torch.sign(z - mu) * (z - mu) + torch.where(z - mu >= 0, z, 0.0) ** 2,
}  # fmt: skip
OF_DISTANCE = (
    *("cauchy", "log-cosh", "power", "odd-power", "cubed", "log-sigmoid", "pseudo-huber", "spike-and-slab"),
    *("mixture", "clamped", "where", "quantile", "elastic", "residual", "numbers-first", "less-than-1", "quartic"),
)


class Net(nn.Module):
    """8-32-5, where nodes named in `at` have a law of one's own, after an activation or without."""

    def __init__(self, law, at=("hidden", "output"), after=nn.Identity, dtype=torch.float64):
        super().__init__()
        self.law, self.at = law, at
        self.below, self.hidden, self.above = FixedNode(8), StandardGaussianNode(32), StandardGaussianNode(5)
        self.up, self.top = nn.Linear(8, 32), nn.Sequential(nn.Tanh(), nn.Linear(32, 5), after())
        self.to(dtype)

    def energy(self):
        mu, nu = self.up(self.below.value), self.top(self.hidden.value)
        first = self.law(self.hidden.value, mu).sum(1) if "hidden" in self.at else self.hidden.energy(mu)
        return first + (self.law(self.above.value, nu).sum(1) if "output" in self.at else self.above.energy(nu))

    @torch.no_grad()
    def start(self, x, y):
        self.below.init(x), self.hidden.init(x.repeat(1, 4)), self.above.init(y)

    def free(self):
        return list(pyro.get_estep_params(self, exclude=[self.above]))

    def learned(self):
        return list(pyro.get_mstep_params(self))


def batch(size, dtype=torch.float64):
    return torch.randn(size, 8, dtype=dtype), torch.randn(size, 5, dtype=dtype)


def ran(net, x, y, executor=None, steps=10, **options):
    """The states after some steps, the energies before them, what learning gets, and what explains it."""
    loop = pyro.InferenceLoop(net.energy, net.free(), executor=executor, **{"lr": 0.03, **options})
    net.start(x, y)
    trace = loop.run(steps, record=True)
    loop.backward(net.learned())
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in net.learned()]
    return [net.hidden.value.detach().clone(), trace.energies.sum(1), *gradients], loop.explain()


@pytest.mark.parametrize("after", [nn.Identity, nn.Sigmoid], ids=["linear", "activation-after"])
@pytest.mark.parametrize("at", [("hidden",), ("output",), ("hidden", "output")], ids="-".join)
@pytest.mark.parametrize("name", LAWS)
def test_chains_run_what_autograd_makes_of_them(name, at, after):
    torch.manual_seed(0)
    net, (x, y) = Net(LAWS[name], at, after), batch(7)
    ours, explained = ran(copy.deepcopy(net), x, y)
    theirs, _ = ran(net, x, y, "autograd")
    assert explained.startswith("executor: chain"), explained
    assert "not fused" not in explained
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", LAWS)
def test_single_precision(name):
    """Of the rounding of float32 a few times as much, as autograd has it."""
    torch.manual_seed(0)
    net, (x, y) = Net(LAWS[name]), batch(33)
    exact, _ = ran(copy.deepcopy(net), x, y, "autograd", steps=4)
    for executor in ("chain", "autograd"):
        rounded, _ = ran(copy.deepcopy(net).float(), x.float(), y.float(), executor, steps=4)
        for a, b in zip(rounded, exact, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=2e-4, atol=2e-5)


@pytest.mark.usefixtures("native_backend")
@pytest.mark.parametrize("name", LAWS)
def test_samples_do_not_meet(name):
    """To the last bit, whatever else is in the batch and however that is tiled."""
    torch.manual_seed(0)
    net, (x, y) = Net(LAWS[name], dtype=torch.float32), batch(61, torch.float32)
    whole, *_ = ran(net, x, y)[0]
    for rows in (slice(0, 1), slice(3, 8), slice(20, 61)):
        assert same_bits(ran(copy.deepcopy(net), x[rows], y[rows])[0][0], whole[rows])


METHODS = {
    "without-a-rate": pyro.methods.Accelerated(),
    "accelerated": pyro.methods.Accelerated(lr=0.05),
    "momentum": pyro.methods.Descent(lr=0.03, momentum=0.8),
    "heun": pyro.methods.Heun(lr=0.02),
    "adam": pyro.methods.Adam(lr=0.02),
    "on-states": pyro.methods.Accelerated(lr=0.02, coordinates="states"),
}


@pytest.mark.usefixtures("native_backend")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["log-cosh", "pseudo-huber", "elastic", "quartic", "penalty-beside"])
def test_methods_take_them(name, method):
    """In one operator what the methods make of autograd's gradients, stepwise."""
    torch.manual_seed(0)
    net, (x, y) = Net(LAWS[name]), batch(7)
    options = {"method": METHODS[method], "lr": None}
    ours, explained = ran(copy.deepcopy(net), x, y, **options)
    theirs, _ = ran(net, x, y, "graph", **options)
    of_its_own = method == "momentum" or "fused: all sweeps in one operator" in explained
    assert of_its_own == (name in OF_DISTANCE or METHODS[method].moves != "errors"), explained
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if i != 1:  # energies are those of where sweeps look
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", LAWS)
def test_which_are_of_a_distance(name):
    loop, net = loop_of(LAWS[name])
    node = next(n for n in loop._choice.executor.planner.nodes if n.state == slot_of(loop, net.hidden.value))
    assert node.law is Law.EXPRESSION
    assert node.expression.is_of_distance == (name in OF_DISTANCE)


def loop_of(law, at=("hidden",)):
    torch.manual_seed(0)
    net = Net(law, at)
    loop = pyro.InferenceLoop(net.energy, net.free(), lr=0.03)
    net.start(*batch(3))
    loop.run(1)
    return loop, net


def slot_of(loop, tensor):
    return next(i for i, t in enumerate(loop.program.leaves) if t is tensor)


# what a law is at 0, at kinks and far out, and its slope there
ENDS = {
    "absolute-at-0": (lambda z, mu: (z - mu).abs() + 0.0 * z, 0.0, 0.0, 0.0),
    "power-at-0": (lambda z, mu: (z - mu).abs() ** 1.5, 0.0, 0.0, 0.0),
    "relu-at-0": (lambda z, mu: F.relu(z - mu) + 0.1 * z.abs(), 0.0, 0.0, 0.0),
    "maximum-at-0": (lambda z, mu: torch.maximum(z - mu, 0.1 * (mu - z)), 0.0, 0.0, 0.45),
    "clamp-at-1": (lambda z, mu: (z - mu).clamp(-1.0, 1.0), 1.0, 1.0, 1.0),
    "log-cosh-far": (lambda z, mu: torch.log(torch.cosh(z - mu)), 1e4, 1e4 - math.log(2), 1.0),
    "log-cosh-far-below": (lambda z, mu: torch.log(torch.cosh(z - mu)), -1e30, 1e30, -1.0),
    "softplus-far": (lambda z, mu: F.softplus(z - mu), 1e4, 1e4, 1.0),
    "softplus-far-below": (lambda z, mu: F.softplus(z - mu), -1e4, 0.0, 0.0),
    "log-of-exp-far": (lambda z, mu: torch.log1p(torch.exp(z - mu)), 1e4, 1e4, 1.0),
    "mixture-far": (
        lambda z, mu: -torch.log(torch.exp(-((z - mu) ** 2)) + torch.exp(-2 * (z - mu) ** 2)), 1e4, 1e8, 2e4,
    ),
    "tanh-far": (lambda z, mu: torch.tanh(z - mu), 1e4, 1.0, 0.0),
    "sigmoid-far": (lambda z, mu: torch.sigmoid(z - mu), -1e4, 0.0, 0.0),
    "exp-far-below": (lambda z, mu: torch.exp(z - mu), -1e4, 0.0, 0.0),
    "log-of-little": (lambda z, mu: torch.log(z - mu), 2.0**-120, -120 * math.log(2), None),
    "log1p-of-little": (lambda z, mu: torch.log1p(z - mu), 1e-30, 1e-30, 1.0),
    "expm1-of-little": (lambda z, mu: torch.expm1(z - mu), 1e-30, 1e-30, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("end", ENDS)
def test_ends_and_kinks(end, dtype):
    """Of a free state that is its own prior's, 0, but for what it starts at: one step is its slope."""
    law, z, energy, slope = ENDS[end]
    node = FloatNode(17, prior=lambda z, mu: law(z, mu).sum(1)).to(dtype)
    rate = 0.0 if slope is None else 1.0
    loop = pyro.InferenceLoop(node.energy, [node.value], lr=rate, executor="chain")
    node.init(torch.full((5, 17), z, dtype=dtype))
    before = node.value.detach().clone()
    trace = loop.run(1, record=True)
    near = {"rtol": 2e-6, "atol": 1e-12} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    expected = torch.tensor(17 * energy, dtype=dtype)
    torch.testing.assert_close(trace.energies[0].sum(), expected, **near)
    if slope is not None:
        torch.testing.assert_close(node.value, before - slope, **near)


REFUSED = {
    "function": (lambda z, mu: torch.erf(z - mu), "a law of one's own has no erf"),
    "function-beside": (lambda z, mu: (z - mu) ** 2 + torch.cos(mu), "a law of one's own has no cos"),
    "power-of-a-state": (lambda z, mu: (1 + (z - mu) ** 2) ** mu, "has no power that is not a number"),
    "high-power": (lambda z, mu: (z - mu) ** 18, "has no power of 18: whole ones end at 16"),
    "threshold": (lambda z, mu: F.softplus(z - mu, 1.0, 10.0), "has no softplus with a beta of 0, or another thresh"),
    "rounded-division": (
        lambda z, mu: torch.div(z - mu, 2, rounding_mode="floor"), "has no div with rounding_mode='floor'",
    ),
    "too-long": (
        lambda z, mu: torch.exp(sum(torch.tanh(z - mu - 0.1 * i) ** 2 for i in range(9))),
        "has at most 40 instructions and 16 numbers, slopes included, and not ",
    ),
    "of-no-state": (lambda z, mu: torch.exp(-mu * mu), "is one of a state"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_lacking_is_named(name):
    law, lacks = REFUSED[name]
    torch.manual_seed(0)
    net, (x, y) = Net(law, ("output",)), batch(3)
    ours, explained = ran(copy.deepcopy(net), x, y, steps=2)
    assert explained.startswith("executor: graph")
    assert lacks in explained
    for a, b in zip(ours, ran(net, x, y, "autograd", steps=2)[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_weights_of_samples_and_terms():
    torch.manual_seed(0)
    weights = torch.rand(7).double()
    weights[2] = 0
    net, (x, y) = Net(LAWS["log-cosh"]), batch(7)

    def energy():
        first = net.law(net.hidden.value, net.up(net.below.value)).sum(1)
        return 0.7 * first + weights * net.law(net.above.value, net.top(net.hidden.value)).sum(1)

    runs = []
    for executor in ("chain", "autograd"):
        loop = pyro.InferenceLoop(energy, net.free(), lr=0.1, executor=executor)
        net.start(x, y)
        loop.run(10)
        runs.append(net.hidden.value.detach().clone())
    torch.testing.assert_close(*runs, rtol=1e-10, atol=1e-12)


def test_whole_batches_run_as_one_operator():
    torch.manual_seed(0)
    ours, (x, y) = Net(LAWS["log-cosh"], ("output",)), batch(9)
    theirs = copy.deepcopy(ours)
    em = pyro.EM(ours.energy, ours.free(), torch.optim.Adam(ours.learned(), lr=0.01), start=ours.start, steps=5, lr=0.1)
    m_opt = torch.optim.Adam(theirs.learned(), lr=0.01)
    for _ in range(3):
        em.step(x, y)
        theirs.start(x, y)
        pyro.InferenceLoop(theirs.energy, theirs.free(), lr=0.1, executor="autograd").run(5)
        m_opt.zero_grad()
        theirs.energy().mean().backward()
        m_opt.step()
    assert "one operator" in em.explain() or "executor: chain" in em.explain()
    for a, b in zip(ours.learned(), theirs.learned(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_slopes_are_autograds():
    """Of the programs themselves, run by the reference."""
    for name, law in LAWS.items():
        loop, _ = loop_of(law)
        node = next(n for n in loop._choice.executor.planner.nodes if n.expression is not None)
        of, weight = node.expression, node.weight
        z, mu = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
        if node.prediction == 0.0:
            mu = torch.zeros_like(z, requires_grad=True)
        energy = law(z, mu).sum(1)
        # what depends on neither is no part of it
        beside = energy - expression.energy(z, mu, None, weight, of)
        torch.testing.assert_close(beside, beside.mean().expand(4), msg=name)
        of_z, of_mu = torch.autograd.grad(energy.sum(), [z, mu], materialize_grads=True)
        torch.testing.assert_close(expression.pull(z, mu, None, weight, of), of_z, msg=name)
        if node.prediction != 0.0:
            torch.testing.assert_close(expression.push(z, mu, None, weight, of), -of_mu, msg=name)


@pytest.mark.parametrize("law", [
    lambda z, mu: (2 - (z * mu - 1.5)) ** 2, lambda z, mu: (0.5 + (1 - z) - mu) ** 2,
    lambda z, mu: (1 + (2 - mu * z)).square() + (z - mu) ** 2,
], ids=["difference", "after", "before"])  # fmt: skip
def test_numbers_are_added_to_those_that_something_is_subtracted_from(law):
    loop, net = loop_of(law)
    before = net.hidden.value.detach().clone()
    expected = torch.autograd.grad(net.energy().sum(), net.hidden.value)[0]
    loop.run(1)
    torch.testing.assert_close((before - net.hidden.value) / loop.lr, expected)


def test_activations_of_multiples_belong_to_the_prediction():
    """And not to the law: a sweep is then the chain's own, and the errors after it are zero in every bit."""

    def read(*made):
        net = Net(LAWS["log-cosh"], ("output",))

        def energy():
            mu = net.top(net.hidden.value)
            law = sum(net.law(net.above.value, of(mu)) for of in made)
            return law.sum(1) + net.hidden.energy(net.up(net.below.value))

        loop = pyro.InferenceLoop(energy, net.free(), lr=0.1)
        net.start(*batch(3))
        loop.run(1)
        return next(n.expression for n in loop._choice.executor.planner.nodes if n.expression is not None)

    bare, multiple = torch.tanh, lambda mu: torch.tanh(-0.7 * mu)
    assert read(multiple) == read(bare) == read(lambda mu: torch.sigmoid(-mu / 3))
    assert read(multiple, multiple) != read(bare, bare)  # what is computed twice stays a part of the law
    assert read(lambda mu: mu + multiple(mu)) != read(bare)


@pytest.mark.parametrize("law", [
    lambda z, mu, _: torch.log(torch.cosh(z - 0.0 * mu)),
    lambda z, mu, _: torch.log(torch.cosh(z - torch.tanh(0.0 * mu))),
    lambda z, mu, theta: torch.log(torch.cosh(z - mu)) + 0.0 * z * theta,
    lambda z, _, theta: torch.log(torch.cosh(z)) + 0.0 * z * theta,
], ids=["sum", "activation", "theta", "without-a-prediction"])  # fmt: skip
def test_what_is_multiplied_by_zero_is_no_theta(law):
    """As a weight of a term that a schedule has at zero: of a sum of predictions the clamped part was taken for one."""
    torch.manual_seed(0)
    net, (x, y), theta, side = Net(None), batch(7), torch.rand(5).double(), nn.Linear(8, 5).double()

    def energy():
        mu = net.top(net.hidden.value) + side(net.below.value)
        return law(net.above.value, mu, theta).sum(1) + net.hidden.energy(net.up(net.below.value))

    def found(executor):
        free = [net.hidden.value, net.above.value]
        loop = pyro.InferenceLoop(energy, free, lr=0.1, executor=executor)
        net.start(x, y)
        loop.run(3)
        learned = [*net.learned(), *side.parameters()]
        needed = torch.autograd.grad(energy().sum(), learned, allow_unused=True)
        used = [p for p, gradient in zip(learned, needed, strict=True) if gradient is not None]
        for p in used:
            p.grad = None
        loop.backward(used)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in used]
        return [z.detach().clone() for z in free] + gradients

    for a, b in zip(found("chain"), found("autograd"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_penalties_beside_a_prediction_leave_its_error():
    """A chain takes both as one law; on errors, what predicts the state decides what its error is."""
    torch.manual_seed(0)
    net, (x, y) = Net(LAWS["log-cosh"], ("output",)), batch(7)
    results = []
    for coordinates in ("errors", "states"):
        method = pyro.methods.Accelerated(lr=0.1, coordinates=coordinates)
        energy = lambda: net.energy() + 0.05 * (net.hidden.value**4).sum(1)  # noqa: E731
        loop = pyro.InferenceLoop(energy, net.free(), method=method)
        net.start(x, y)
        loop.run(400)
        results.append(net.hidden.value.detach().clone())
        assert "executor: chain" in loop.explain()
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_two_states_of_one_prediction_stay_two_nodes():
    """In one sum, where the prediction comes from data."""
    torch.manual_seed(0)
    net, other = Net(LAWS["log-cosh"], ("output",)), StandardGaussianNode(32).double()
    x, y = batch(7)
    results = []
    for executor in ("chain", "autograd"):

        def energy():
            mu = net.up(net.below.value)
            both = 0.5 * (net.hidden.value - mu) ** 2 + 0.5 * (other.value - mu) ** 2
            return both.sum(1) + net.law(net.above.value, net.top(net.hidden.value)).sum(1)

        loop = pyro.InferenceLoop(energy, [*net.free(), other.value], lr=0.1, executor=executor)
        net.start(x, y), other.init(x.repeat(1, 4))
        loop.run(5)
        results.append(torch.cat([net.hidden.value.detach(), other.value.detach()]))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_a_product_with_a_bias_is_not_like_one_without():
    """Whatever the tensors are: laws of one's own look for what is computed twice."""
    biased = Call(F.linear, (Slot(0), Slot(1), Slot(2)), {}, Slot(3), (0, 1, 2), (3,))
    plain = Call(F.linear, (Slot(0), Slot(1), None), {}, Slot(4), (0, 1), (4,))
    assert does_alike(biased, replace(biased, outputs=(5,)))
    assert not does_alike(biased, plain)
    assert not alike({3: biased, 4: plain}, 3, 4, {})
