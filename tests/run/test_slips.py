"""What is easily got wrong, and what is said of it: options, targets, and data that are not finite."""

import warnings

import pytest
import torch
from torch import nn

import pyromancy as pyro
from pyromancy import functional, methods
from pyromancy.nodes import BernoulliNode, CategoricalNode, FixedNode, FloatNode, PoissonNode, StandardGaussianNode


def network(output="gaussian"):
    torch.manual_seed(0)
    return pyro.networks.mlp([3, 6, 2], "tanh", output=output).double()


def batch(n=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, width, generator=generator).double() for width in (3, 2)]


def em_of(net, **options):
    options = {"lr": 0.1} if "method" not in options and "lr" not in options else options
    optimizer = torch.optim.SGD(net.m_params(), 0.1)
    return pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=3, **options)


@pytest.mark.parametrize("wrong", ["no", 1, None])
def test_flags(wrong):
    with pytest.raises(TypeError, match=f"adaptive must be True or False, got {wrong!r}"):
        methods.Heun(adaptive=wrong)
    with pytest.raises(TypeError, match=f"nesterov must be True or False, got {wrong!r}"):
        methods.Descent(0.1, momentum=0.5, nesterov=wrong)
    net = network()
    with pytest.raises(TypeError, match=f"nesterov must be True or False, got {wrong!r}"):
        pyro.InferenceLoop(net.energy, net.e_params(), 0.1, momentum=0.5, nesterov=wrong)


def test_a_long_schedule_is_shown_in_short():
    assert repr(methods.Heun(adaptive=False, schedule=[1.0, 0.5, 0.25, 0.0])).endswith(
        "schedule=(1.0, 0.5, 0.25, 0.0))"
    )
    shown = repr(methods.Sequential(0.1, schedule=[0.5] * 100))
    assert shown == "Sequential(lr=0.1, schedule=(0.5, 0.5, 0.5, 0.5, ... 100 factors))"


def test_options_of_em_are_those_of_its_loop():
    """Also between batches that are done as the last one was; and not beside a method."""
    nets = [network(), network()]
    em, other = (em_of(net, lr=0.1) for net in nets)
    for lr in (0.1, 0.4):
        em.lr = lr
        assert em.loop.lr == em.lr == lr
        for _ in range(8):
            em.step(*batch())
    for lr in (0.1, 0.4):
        other.loop.lr = lr
        for _ in range(8):
            other.step(*batch())
    for p, q in zip(nets[0].m_params(), nets[1].m_params(), strict=True):
        assert torch.equal(p, q)
    em.momentum, em.nesterov = 0.9, True
    assert em.loop.method == methods.Descent(0.4, momentum=0.9, nesterov=True)
    em = em_of(network(), method=methods.Accelerated())
    em.lr = 0.5
    with pytest.raises(ValueError, match="lr, momentum, dampening and nesterov must be left to Accelerated"):
        em.step(*batch())


@pytest.mark.parametrize(
    "node", [StandardGaussianNode(3), BernoulliNode(3), PoissonNode(3), CategoricalNode(3)], ids=str
)
def test_empty_batches(node):
    with pytest.raises(ValueError, match=r"value must have a row per sample, and one at least, got shape \(0, 3\)"):
        node.init(torch.zeros(0, 3))
    if isinstance(node, CategoricalNode):
        with pytest.raises(ValueError, match=r"value must have a row per sample, and one at least, got shape \(0,\)"):
            node.init(torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x must have a row per sample, and one at least, got shape \(0, 3\)"):
        network().start(torch.zeros(0, 3).double())


@pytest.mark.parametrize("kind", [BernoulliNode, PoissonNode])
def test_targets_that_are_handed_over_as_free(kind):
    node, mu = kind(3), torch.randn(4, 3)
    node.init(torch.ones(4, 3))
    told = rf"it is the state of a {kind.__name__}\(3\), which is clamped"
    with pytest.raises(ValueError, match=told):
        pyro.InferenceLoop(lambda: node.energy(mu), [node.value], lr=0.1)


@pytest.mark.parametrize("energy", [functional.bernoulli_energy, functional.poisson_energy])
def test_free_states_whose_energy_has_no_least(energy):
    z, mu = FloatNode(3), torch.randn(4, 3)
    z.init(torch.ones(4, 3))
    loop = pyro.InferenceLoop(lambda: energy(z.value, mu), [z.value], lr=0.1)
    assert "predicts nothing and never rests, as its energy has no least: exclude a target" in loop.explain()


def test_a_free_target_of_a_law_of_ones_own_may_rest_or_not():
    h, z, down = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4, 2)), nn.Linear(3, 2)
    law = lambda d: torch.log(torch.cosh(d)).sum(1)  # noqa: E731
    loop = pyro.InferenceLoop(lambda: 0.5 * h.square().sum(1) + law(z - down(h)), [h, z], 0.1)
    assert "z predicts nothing: exclude a target" in loop.explain()


class Net(nn.Module):
    """x predicts a hidden state, and that a target."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.below, self.hidden, self.target = FixedNode(3), StandardGaussianNode(4), kind(6)
        self.up, self.top = nn.Linear(3, 4), nn.Linear(4, 6)

    def start(self, x, y):
        self.hidden.init(self.up(self.below.init(x)))
        self.target.init(y)

    def energy(self):
        z = self.hidden.value
        return self.hidden.energy(self.up(self.below.value)) + self.target.energy(self.top(z.tanh()))

    def em(self):
        optimizer = torch.optim.SGD([*self.up.parameters(), *self.top.parameters()], 0.1)
        return pyro.EM(self.energy, [self.hidden.value], optimizer, start=self.start, steps=3, lr=0.1)


BAD = {
    "bernoulli": (BernoulliNode, 1.5, r"BernoulliNode\(6\).value must be from 0 to 1 everywhere, got 1.5"),
    "bernoulli-nan": (BernoulliNode, torch.nan, r"BernoulliNode\(6\).value must be from 0 to 1 everywhere, got nan"),
    "poisson": (PoissonNode, -2.0, r"PoissonNode\(6\).value must be counts, finite and not negative, got -2.0"),
    "poisson-inf": (PoissonNode, torch.inf, r"PoissonNode\(6\).value must be counts, finite and not negative, got inf"),
}


@pytest.mark.usefixtures("native_backend")
@pytest.mark.parametrize("case", BAD)
def test_targets_of_any_batch_are_looked_at(case):
    """Of the first, and of those that are done as the last one was, before weights learn."""
    kind, wrong, told = BAD[case]
    x, good = torch.randn(5, 3), torch.randint(2, (5, 6)).float()
    bad = good.clone()
    bad[3, 2] = wrong
    for before in (0, 1, 10):
        net = Net(kind)
        em = net.em()
        for _ in range(before):
            em.step(x, good)
        assert (em._repeat is not None) == (before == 10)
        weights = net.top.weight.detach().clone()
        with pytest.raises(ValueError, match=told):
            em.step(x, bad)
        assert torch.equal(net.top.weight, weights)
        em.step(x, good)
        assert not torch.equal(net.top.weight, weights)


@pytest.mark.parametrize("case", BAD)
def test_targets_of_an_epoch_are_looked_at(case):
    """Before it learns where batches are one call; and again once they have been written to."""
    kind, wrong, told = BAD[case]
    x, data = torch.randn(50, 3), torch.randint(2, (50, 6)).float()
    net = Net(kind)
    em = net.em()
    assert sum(part.batches for part in em.epoch(x, data, batch_size=10)) == 5
    weights = net.top.weight.detach().clone()
    data[47, 1] = wrong
    with pytest.raises(ValueError, match=told):
        list(em.epoch(x, data, batch_size=10, shuffle=False))
    assert torch.equal(net.top.weight, weights)


def test_targets_of_an_epoch_are_looked_at_once(monkeypatch):
    x, data, seen = torch.randn(50, 3), torch.rand(50, 6), []
    check = BernoulliNode.check
    monkeypatch.setattr(BernoulliNode, "check", lambda node, value: (seen.append(len(value)), check(node, value)))
    net = Net(BernoulliNode)
    em = net.em()
    for _ in range(4):
        list(em.epoch(x, data, batch_size=10))
    assert seen.count(50) == 1


@pytest.mark.parametrize("output", ["gaussian", "categorical"])
def test_a_missing_target(output):
    """Once, and not where there is one."""
    net = network(output)
    em = em_of(net)
    x, y = batch()
    y = y if output == "gaussian" else y.softmax(1)
    em.step(x, y)
    with pytest.warns(UserWarning, match=r"start sets nodes.2.value, which E-steps leave alone, to its own prediction"):
        em.step(x)
    em.step(x)
    em.step(x, y)


def test_a_target_at_something_else_than_its_prediction():
    """As an autoencoder's, whose target is its input."""
    net = pyro.networks.mlp([3, 6, 3], "tanh").double()
    em = pyro.EM(
        net.energy,
        net.e_params(),
        torch.optim.SGD(net.m_params(), 0.1),
        start=lambda x: net.start(x, x),
        steps=3,
        lr=0.1,
    )
    em.step(batch()[0])


@pytest.mark.parametrize("options", [{"lr": 0.1}, {"method": methods.Accelerated()}], ids=str)
def test_weights_that_are_not_finite(options):
    net = network()
    em = em_of(net, **options)
    with torch.no_grad():
        net.edges[0].weight.fill_(torch.nan)
    with pytest.warns(
        UserWarning, match=r"are not finite after .*, nor (is|are) edges.0.weight, .*\. Make (these )?anew"
    ):
        em.step(*batch())


def test_weights_that_have_learned_from_what_is_not_finite():
    with pytest.warns(UserWarning, match=r"edges.0.weight.*, which learn from them\. Make these anew"):
        em_of(network(), lr=1e300).step(*batch())


@pytest.mark.parametrize("executor", ["chain", "graph"])
def test_data_that_are_not_finite(executor):
    net = network()
    x, y = batch()
    y[2, 0] = torch.inf
    net.start(x, y)
    loop = pyro.InferenceLoop(net.energy, net.e_params(), 0.1, executor=executor)
    with pytest.warns(
        UserWarning, match=r"^states of 1 of 4 samples .*, nor is nodes.2.value, which the energy reads\. Make"
    ):
        loop.run(3)


@pytest.mark.parametrize("method", [methods.Adam(1e38), methods.Descent(1e38, coordinates="errors")], ids=repr)
def test_rates_that_are_none_of_descent(method, request):
    if isinstance(method, methods.Adam):  # PyTorch's quotients by a square that overflows are 0
        request.getfixturevalue("native_backend")
    net = network().float()
    net.start(*(t.float() for t in batch()))
    for p in net.e_params():
        p.data += 1
    with pytest.warns(UserWarning, match=r"are not finite after .*\. pyromancy.methods.Accelerated\(\) needs no rate$"):
        pyro.InferenceLoop(net.energy, net.e_params(), method=method).run(20)


TARGETS = {
    "gaussian": functional.gaussian_energy, "bernoulli": functional.bernoulli_energy,
    "poisson": functional.poisson_energy, "student": functional.student_energy,
    "categorical": functional.categorical_energy,
}  # fmt: skip


@pytest.mark.parametrize("law", TARGETS)
@pytest.mark.parametrize("wrong", [torch.inf, -torch.inf, torch.nan])
def test_targets_that_are_not_finite_are_as_in_autograd(law, wrong):
    """Of descent; and other samples are as they are without."""
    results = {}
    for how in ("chain", "autograd", "without"):
        torch.manual_seed(0)
        edges, x = [nn.Linear(3, 6).double(), nn.Linear(6, 2).double()], batch()[0]
        h, y = nn.Parameter(torch.randn(4, 6).double()), torch.eye(2).repeat(2, 1).double()
        if how != "without":
            y[1, 0] = wrong
        energy = lambda: functional.gaussian_energy(h, edges[0](x)) + TARGETS[law](y, edges[1](h.tanh()))  # noqa: B023, E731
        loop = pyro.InferenceLoop(energy, [h], 0.1, executor="chain" if how == "without" else how)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            loop.run(3)
        results[how] = h.detach()
    torch.testing.assert_close(results["chain"], results["autograd"], equal_nan=True)
    others = [0, 2, 3]
    assert torch.equal(results["chain"][others], results["without"][others])


def test_probabilities_that_are_taken_for_logits():
    torch.manual_seed(0)
    for output, last in (("categorical", nn.Softmax(1)), ("bernoulli", nn.Sigmoid())):
        layers = [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)]
        with pytest.warns(
            UserWarning, match=rf"output='{output}' takes logits, and module ends with a {type(last).__name__}"
        ):
            pyro.networks.from_sequential(nn.Sequential(*layers, last), output=output)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pyro.networks.from_sequential(nn.Sequential(*layers), output=output)
            pyro.networks.from_sequential(nn.Sequential(*layers, last))
    z, up, node = nn.Parameter(torch.randn(4, 3)), nn.Linear(3, 2), CategoricalNode(2)
    labels = node.init(torch.tensor([0, 1, 1, 0])).argmax(1)
    told = "a cross-entropy takes logits, and is given probabilities, of softmax: leave that out"
    prior = lambda: 0.5 * z.square().sum(1)  # noqa: E731
    for energy, wrong in (
        (lambda: prior() + node.energy(up(z).softmax(1)), True),
        (lambda: prior() + nn.functional.cross_entropy(up(z).softmax(1), labels, reduction="none"), True),
        (lambda: prior() + node.energy(up(z)), False),
        (lambda: prior() + nn.functional.cross_entropy(up(z), labels, reduction="none"), False),
    ):
        assert (told in pyro.InferenceLoop(energy, [z], lr=0.1).explain()) == wrong


def test_states_that_are_frozen_with_their_network():
    net = network()
    net.requires_grad_(False)
    with pytest.raises(ValueError, match=r"StandardGaussianNode\(6\), and requires_grad_\(False\) .* freeze its edges"):
        em_of(net)
    net = network()
    net.edges.requires_grad_(False)
    em_of(net)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_an_eps_that_is_0(kind, dtype):
    """Where PyTorch's own step makes a parameter NaN, as 0 / 0, it is told before, also of what was converted later."""
    p = nn.Parameter(torch.ones(3, dtype=dtype))
    p.grad = torch.zeros_like(p)
    kind([p], 0.1).step()
    net = network().float()
    optimizer = kind(net.m_params(), 0.1)
    em = pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=3, lr=0.1)
    net.to(dtype)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        em.step(*batch())
    told = [w for w in caught if "optimizer's eps=1e-08 is 0 in torch.float16, of which edges.0." in str(w.message)]
    assert len(told) == bool(p.isnan().any())
