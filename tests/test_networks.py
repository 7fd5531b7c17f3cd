"""`pyromancy.networks`: closed forms, networks written by hand, and what takes such a network as it takes any."""

import copy
import math
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyromancy as pyro
import twins
from pyromancy import backends, networks
from pyromancy.nodes import BernoulliNode, FixedNode, FloatNode, IsotropicGaussianNode, StandardGaussianNode

SIZES = (5, 7, 7, 3)


def data(batch=6, sizes=SIZES, dtype=torch.float64):
    return torch.randn(batch, sizes[0], dtype=dtype), torch.randn(batch, sizes[-1], dtype=dtype)


def classifier(**options):
    """A network for backpropagation, as anybody writes it."""
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(**options), nn.Linear(7, 7), nn.ReLU(**options), nn.Linear(7, 3))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(24, 3),
    ).eval()  # fmt: skip


def em_of(net, steps=8, **options):
    optimizer = torch.optim.Adam(net.m_params(), lr=0.01)
    return pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=steps, lr=0.1, **options)


def perturbed(net):
    """States that are at no prediction."""
    with torch.no_grad():
        for p in net.e_params():
            p.add_(torch.randn_like(p))


class TestPerceptron:
    @pytest.mark.parametrize("skips", [False, True], ids=["", "skips"])
    @pytest.mark.parametrize("bias", [True, False], ids=["bias", ""])
    @pytest.mark.parametrize("activation", networks.ACTIVATIONS)
    def test_energy_is_its_formula(self, activation, bias, skips):
        net = networks.mlp(SIZES, activation, skips=skips, bias=bias).double()
        x, y = data()
        net.start(x, y)
        perturbed(net)
        f = (lambda z: z) if activation == "identity" else getattr(F, activation)
        linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
        assert all((m.bias is not None) == bias for m in linear)
        (w1, b1), (w2, b2), (w3, b3) = ((m.weight, m.bias if bias else 0) for m in linear)
        z1, z2 = (net.nodes[i].value for i in (1, 2))
        mu2 = f(z1) @ w2.T + b2 + (z1 if skips else 0)
        squares = (z1 - x @ w1.T - b1).square(), (z2 - mu2).square(), (y - f(z2) @ w3.T - b3).square()
        expected = torch.stack([0.5 * s.sum(1) for s in squares])
        torch.testing.assert_close(net.node_energies(), expected)
        torch.testing.assert_close(net.energy(), expected.sum(0))
        assert net.energy().shape == (6,)

    def test_a_start_is_a_sweep(self):
        """All errors are zero after it, but that of a target; without a target all of them."""
        net = networks.mlp(SIZES, "tanh").double()
        x, y = data()
        net.start(x, y)
        assert torch.equal(net.nodes[0].value, x)
        assert torch.equal(net.nodes[3].value, y)
        energies = net.node_energies()
        assert energies[:2].abs().max() == 0
        torch.testing.assert_close(energies[2], 0.5 * (y - net.predict(x)).square().sum(1))
        net.start(x)
        assert net.energy().abs().max() == 0
        assert torch.equal(net.nodes[3].value, net.predict(x))
        assert not net.nodes[1].value.grad_fn

    def test_two_nodes(self):
        net = networks.mlp([5, 3]).double()
        x, y = data()
        net.start(x, y)
        torch.testing.assert_close(
            net.energy(), 0.5 * (y - F.linear(x, net.edges[0].weight, net.edges[0].bias)).square().sum(1)
        )
        assert net.e_params() == []

    def test_predict_touches_no_state(self):
        net = networks.mlp(SIZES).double()
        x, y = data()
        net.start(x, y)
        perturbed(net)
        before = [n.value.clone() for n in net.nodes]
        prediction = net.predict(torch.randn(2, 5, dtype=torch.float64))
        assert prediction.shape == (2, 3)
        assert prediction.requires_grad
        assert torch.equal(net(x), net.predict(x))
        assert all(torch.equal(n.value, b) for n, b in zip(net.nodes, before, strict=True))

    def test_what_is_free_and_what_is_learned(self):
        net = networks.mlp(SIZES)
        assert [id(p) for p in net.e_params()] == [id(net.nodes[i].value) for i in (1, 2)]
        assert {id(p) for p in net.m_params()} == {id(p) for p in net.edges.parameters()}
        assert len(net.m_params()) == 6

    def test_one_number_for_every_sample(self):
        net = pyro.networks.mlp([5, 4, 1])
        with pytest.raises(ValueError, match=r"y.unsqueeze\(1\) makes of a number for every sample, got shape \(9,\)"):
            net.start(torch.rand(9, 5), torch.rand(9))

    def test_integers_of_one_hot_targets(self):
        net = networks.mlp(SIZES).double()
        x, _ = data()
        labels = torch.tensor([0, 1, 2, 0, 1, 2])
        net.start(x, F.one_hot(labels, 3))
        assert net.nodes[3].value.dtype == torch.float64
        assert torch.equal(net.nodes[3].value.argmax(1), labels)


class TestLaplaceOutput:
    """Absolute errors of the output, at a scale of 1; all else is as with a Gaussian one."""

    MADE = {  # noqa: RUF012
        "mlp": lambda output: networks.mlp(SIZES, "tanh", output=output),
        "sequential": lambda output: networks.from_sequential(classifier(), output=output),
    }

    @pytest.fixture(params=MADE)
    def pair(self, request):
        made = self.MADE[request.param]
        net, gaussian = made("laplace").double(), made("gaussian").double()
        net.edges.load_state_dict(gaussian.edges.state_dict())
        return net, gaussian

    def test_states_and_predictions(self, pair):
        x, y = data()
        for net in pair:
            net.start(x, y)
        net, gaussian = pair
        assert torch.equal(net.predict(x), gaussian.predict(x))
        assert [type(n) for n in net.nodes[:-1]] == [type(n) for n in gaussian.nodes[:-1]]
        for a, b in zip(net.nodes, gaussian.nodes, strict=True):
            assert torch.equal(a.value, b.value)
        expected = (y - net.predict(x)).abs().sum(1)
        torch.testing.assert_close(net.energy(), expected)
        perturbed(net)
        torch.testing.assert_close(net.node_energies()[:-1], torch.stack([
            0.5 * (node.value - edge(below.value)).square().sum(1)
            for below, node, edge in zip(net.nodes[:-2], net.nodes[1:-1], net.edges[:-1], strict=True)
        ]))  # fmt: skip

    def test_em_is_one_call_and_plain_autograd(self, pair):
        net = pair[0]
        plain = copy.deepcopy(net)
        em, m_opt = em_of(net), torch.optim.Adam(plain.edges.parameters(), lr=0.01)
        for _ in range(4):
            x, y = data()
            em.step(x, y)
            twins.plainly(plain, m_opt, x, y, steps=8, lr=0.1)
        assert em.explain().startswith("a batch: one call of an operator\nexecutor: chain")
        twins.assert_same(net.edges.parameters(), plain.edges.parameters())
        assert (net.nodes[-1].scale == 1).all()

    def test_a_scale_learns_where_it_is_asked_to(self):
        net = networks.mlp(SIZES, "tanh", output="laplace").double()
        net.nodes[-1].logscale.requires_grad_()
        em, (x, y) = em_of(net, steps=0), data()
        em.optimizer = torch.optim.SGD([net.nodes[-1].logscale], 0.1)
        for _ in range(300):
            em.step(x, y)
        expected = (y - net.predict(x)).abs().mean(0).detach()  # which the likelihood is greatest at
        torch.testing.assert_close(net.nodes[-1].scale.detach(), expected, rtol=1e-6, atol=0)

    def test_positions_share_the_scales(self):
        module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).double()
        net, x = networks.from_sequential(module, output="laplace"), torch.randn(3, 1, 6, 6).double()
        net.start(x, torch.zeros(3, 2, 2, 2))
        torch.testing.assert_close(net.energy(), module(x).abs().sum((1, 2, 3)))
        assert torch.equal(net.predict(x), module(x))


class TestTargetOutput:
    """Outputs that are clamped to binary data or counts."""

    LOSSES = {  # noqa: RUF012
        "bernoulli": (lambda mu, y: F.binary_cross_entropy_with_logits(mu, y, reduction="none").sum(1), torch.sigmoid),
        "poisson": (lambda mu, y: F.poisson_nll_loss(mu, y, reduction="none").sum(1), torch.exp),
    }

    @pytest.fixture(params=LOSSES)
    def case(self, request):
        net = networks.mlp(SIZES, "tanh", output=request.param).double()
        x, y = data()
        return net, x, (y > 0).to(y.dtype), *self.LOSSES[request.param]

    def test_energy_and_states(self, case):
        net, x, y, loss, mean = case
        net.start(x, y)
        torch.testing.assert_close(net.energy(), loss(net.predict(x), y))
        assert len(net.e_params()) == len(SIZES) - 2
        net.start(x)
        torch.testing.assert_close(net.nodes[-1].value, mean(net.predict(x)))

    def test_em_is_one_call_and_plain_autograd(self, case):
        net, x, y, *_ = case
        plain = copy.deepcopy(net)
        em, m_opt = em_of(net), torch.optim.Adam(plain.edges.parameters(), lr=0.01)
        for _ in range(4):
            em.step(x, y)
            twins.plainly(plain, m_opt, x, y, steps=8, lr=0.1)
        assert em.explain().startswith("a batch: one call of an operator\nexecutor: chain")
        twins.assert_same(net.edges.parameters(), plain.edges.parameters())

    def test_targets_are_checked(self, case):
        net, x, y, *_ = case
        with pytest.raises(ValueError, match="value must be"):
            net.start(x, y - 2)

    def test_it_is_no_hidden_node(self):
        nodes = [FixedNode(3), BernoulliNode(4), StandardGaussianNode(2)]
        with pytest.raises(TypeError, match=r"nodes\[1\] must be a PredictiveNode, got BernoulliNode"):
            networks.PCN(nodes, [nn.Linear(3, 4), nn.Linear(4, 2)])
        with pytest.raises(TypeError, match=r"nodes\[1\] must be a PredictiveNode or a TargetNode, got FloatNode"):
            networks.PCN([FixedNode(3), FloatNode(4)], [nn.Linear(3, 4)])


class TestVarianceOfTheOutput:
    MADE = {  # noqa: RUF012
        "mlp": lambda variance: networks.mlp(SIZES, "tanh", variance=variance),
        "sequential": lambda variance: networks.from_sequential(classifier(), variance=variance),
    }

    @pytest.mark.parametrize("made", MADE)
    def test_energies(self, made):
        net, (x, y) = self.MADE[made](9.0).double(), data()
        net.start(x, y)
        squares, width = (y - net.predict(x)).square().sum(1), y.shape[1]
        torch.testing.assert_close(net.energy(), squares / 18 + 0.5 * width * math.log(9.0))
        assert torch.equal(net.node_energies()[:-1], torch.zeros_like(net.node_energies()[:-1]))

    def test_weights_learn_as_by_backpropagation_as_it_grows(self):
        """Their gradients times the variance are those of half a square, up to something times its inverse."""
        far = []
        for variance in (1e2, 1e4):
            torch.manual_seed(0)
            net, (x, y) = networks.mlp(SIZES, "tanh", variance=variance).double(), data()
            weights = list(net.edges.parameters())
            exact = torch.autograd.grad(0.5 * (y - net.predict(x)).square().sum(1).mean(), weights)
            net.start(x, y)
            loop = pyro.InferenceLoop(net.energy, net.e_params(), method=pyro.methods.Accelerated())
            loop.run(100)
            loop.backward(weights)
            off = [(variance * w.grad - g).norm() / g.norm() for w, g in zip(weights, exact, strict=True)]
            far.append(max(off).item())
        assert far[0] > 1e-4
        assert far[1] < 0.02 * far[0]

    def test_it_is_not_learned(self):
        net = networks.mlp(SIZES, "tanh", variance=4.0)
        em = em_of(net)
        for _ in range(3):
            em.step(*(t.float() for t in data()))
        assert em.explain().startswith("a batch: one call of an operator")
        torch.testing.assert_close(net.nodes[-1].covariance, 4 * torch.eye(SIZES[-1]))


class TestTraining:
    def twin(self, activation="tanh"):
        """A network of the tests, written by hand, and the same by `mlp`."""
        by_hand = twins.Net((8, 32, 16, 3), activation=nn.Tanh).double()
        net = networks.mlp([8, 32, 16, 3], activation).double()
        by_hand.edges[0] = nn.Linear(8, 32).double()  # no activation before the first edge
        net.sequential().load_state_dict(
            nn.Sequential(
                *(m for e in by_hand.edges for m in (e if isinstance(e, nn.Sequential) else [e]))
            ).state_dict()
        )
        return net, by_hand

    @pytest.mark.parametrize("incremental", [False, True, "joint"])
    def test_em_is_one_call_and_that_of_a_network_by_hand(self, incremental):
        net, by_hand = self.twin()
        one, other = (em_of(n, incremental=incremental) for n in (net, by_hand))
        for x, y in twins.batches(12, last=7):
            one.step(x, y), other.step(x, y)
        assert one.explain().splitlines()[0] == "a batch: one call of an operator"
        for a, b in zip(net.m_params(), by_hand.m_params(), strict=True):
            assert torch.equal(a, b)
        for a, b in zip(net.e_params(), by_hand.e_params(), strict=True):
            assert torch.equal(a, b)

    @pytest.mark.parametrize("kind", ["mlp", "in place"])
    def test_energy_and_start_are_watched(self, kind, native_backend):
        """Not run dry before every batch: all that they reach and do is of kinds that can be watched."""
        net = networks.mlp(SIZES) if kind == "mlp" else networks.from_sequential(classifier(inplace=True))
        em = em_of(net)
        for _ in range(12):
            em.step(*data(dtype=torch.float32))
        assert "run dry" not in em.explain()

    def test_em_is_plain_autograd(self):
        net, _ = self.twin()
        plain = copy.deepcopy(net)
        em, m_opt = em_of(net), torch.optim.Adam(plain.m_params(), lr=0.01)
        for x, y in twins.batches(5):
            em.step(x, y)
            twins.plainly(plain, m_opt, x, y, steps=8, lr=0.1)
        twins.assert_same(net.m_params(), plain.m_params())

    def test_an_epoch_is_its_batches(self):
        net, by_hand = self.twin()
        torch.manual_seed(3)
        x, y = torch.rand(100, 8).double(), torch.rand(100, 3).double()
        for n in (net, by_hand):
            for _ in range(3):
                for _ in em_of(n).epoch(x, y, batch_size=15, generator=torch.Generator().manual_seed(4)):
                    pass
        for a, b in zip(net.m_params(), by_hand.m_params(), strict=True):
            assert torch.equal(a, b)

    def test_inference_loop(self):
        net, _ = self.twin()
        x, y = twins.batches(1)[0]
        net.start(x, y)
        loop = pyro.InferenceLoop(net.energy, net.e_params(), lr=0.1)
        energies = loop.run(10, record=True).energies
        assert energies.shape == (11, 3)
        assert "executor: chain" in loop.explain()
        found = [p.clone() for p in net.e_params()]
        net.start(x, y)
        descent = torch.optim.SGD(net.e_params(), lr=0.1)
        for _ in range(10):
            descent.zero_grad()
            net.energy().sum().backward(inputs=net.e_params())
            descent.step()
        twins.assert_same(found, net.e_params())

    def test_learns(self):
        """Which of three numbers is the largest."""
        net = networks.mlp([3, 32, 3])
        x = torch.randn(500, 3)
        labels = x.argmax(1)
        for _ in range(20):
            for _ in em_of(net).epoch(x, F.one_hot(labels, 3).float(), batch_size=50):
                pass
        assert (net.predict(x).argmax(1) == labels).float().mean() > 0.95


class TestFromSequential:
    @pytest.mark.parametrize(
        ("module", "shape", "nodes"),
        [
            (classifier(), (6, 5), [(5,), (7,), (7,), (3,)]),
            (classifier(inplace=True), (6, 5), [(5,), (7,), (7,), (3,)]),
            (nn.Sequential(nn.Flatten(), classifier(), nn.Sigmoid()), (6, 5, 1), [(5,), (7,), (7,), (3,)]),
            (nn.Sequential(nn.Linear(5, 3)), (6, 5), [(5,), (3,)]),
            (nn.Sequential(nn.LeakyReLU(0.1, inplace=True), nn.Linear(5, 3)), (6, 5), [(5,), (3,)]),
            (convolutional(), (6, 1, 8, 8), [(1, None, None), (4, None, None), (6, None, None), (3,)]),
            (
                nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 3, 3), nn.Softmax(1)),
                (6, 5),
                [(5,), (8,), (3, None)],
            ),
        ],
        ids=["classifier", "in place", "nested", "one layer", "first in place", "convolutional", "unflattened"],
    )
    def test_prediction_is_that_of_the_module(self, module, shape, nodes):
        net = networks.from_sequential(module)
        assert [n.shape for n in net.nodes] == nodes
        x = torch.randn(shape)
        expected = module(x.clone())
        assert torch.equal(net.predict(x), expected)
        assert torch.equal(net.sequential()(x.clone()), expected)
        before = x.clone()
        net.start(x, torch.zeros_like(expected))
        assert torch.equal(x, before)
        hidden = [n.value.clone() for n in net.nodes]
        energies = net.node_energies()
        assert energies[:-1].abs().sum() == 0
        torch.testing.assert_close(energies[-1], 0.5 * expected.square().flatten(1).sum(1))
        assert all(torch.equal(n.value, z) for n, z in zip(net.nodes, hidden, strict=True))  # also of layers in place
        net.start(x)
        assert torch.equal(net.nodes[-1].value, expected)

    def test_energy_of_convolutions_is_its_formula(self):
        module = convolutional().double()
        module[1].running_mean.normal_(), module[1].running_var.uniform_(0.5, 2)
        net = networks.from_sequential(module)
        x, y = torch.randn(6, 1, 8, 8).double(), torch.randn(6, 3).double()
        net.start(x, y)
        perturbed(net)
        z1, z2 = (net.nodes[i].value.clone() for i in (1, 2))
        mu2 = F.conv2d(F.max_pool2d(F.relu(module[1](z1)), 2), module[4].weight, module[4].bias)
        mu3 = F.relu(z2).flatten(1) @ module[8].weight.T + module[8].bias
        mu1 = F.conv2d(x, module[0].weight, module[0].bias, padding=1)
        errors = (z1 - mu1, z2 - mu2, y - mu3)
        expected = sum(0.5 * e.square().flatten(1).sum(1) for e in errors)
        torch.testing.assert_close(net.energy(), expected)
        loop = pyro.InferenceLoop(net.energy, net.e_params(), lr=0.05)
        before = net.energy().sum()
        loop.run(20)
        assert net.energy().sum() < before

    def test_parameters_are_those_of_the_module(self):
        module = classifier(inplace=True)
        net = networks.from_sequential(module)
        assert {id(p) for p in net.m_params()} == {id(p) for p in module.parameters()}
        x, y = data(dtype=torch.float32)
        before = [p.clone() for p in module.parameters()]
        em = em_of(net)
        em.step(x, y)
        assert em.explain().splitlines()[0] == "a batch: one call of an operator"
        assert not any(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))
        assert torch.equal(net.predict(x), module(x))
        other = classifier()
        module.load_state_dict(other.state_dict())
        assert torch.equal(net.predict(x), other(x))
        torch.optim.SGD(module.parameters(), lr=0.1).zero_grad()
        F.mse_loss(module(x), y).backward()
        torch.optim.SGD(module.parameters(), lr=0.1).step()
        assert torch.equal(net.predict(x), module(x))
        assert not torch.equal(net.predict(x), other(x))

    def test_weights_carry_over_and_back(self):
        """By `state_dict`, between `mlp` and a network for backpropagation that shares nothing with it."""
        net, module = networks.mlp(SIZES), classifier()
        net.sequential().load_state_dict(module.state_dict())
        x, y = data(dtype=torch.float32)
        assert torch.equal(net.predict(x), module(x))
        em_of(net).step(x, y)
        assert not torch.equal(net.predict(x), module(x))
        module.load_state_dict(net.sequential().state_dict())
        assert torch.equal(net.predict(x), module(x))

    def test_cut(self):
        module = classifier()
        net = networks.from_sequential(module, cut=[2, 3])
        assert [[type(m).__name__ for m in e.modules()][-1] for e in net.edges] == ["ReLU", "Linear", "Linear"]
        x, y = data(dtype=torch.float32)
        net.start(x, y)
        assert torch.equal(net.nodes[1].value, F.relu(module[0](x)))
        assert torch.equal(net.nodes[2].value, module[2](F.relu(module[0](x))))
        assert torch.equal(net.predict(x), module(x))
        assert len(networks.from_sequential(module, cut=()).edges) == 1

    def test_blocks_of_ones_own(self):
        """Nodes after them take any size."""

        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Conv2d(4, 4, 3, padding=1)

            def forward(self, x):
                return x + F.relu(self.inner(x))

        module = nn.Sequential(nn.Conv2d(1, 4, 3), Block(), nn.AvgPool2d(2), Block(), nn.Flatten(), nn.Linear(36, 2))
        net = networks.from_sequential(module, cut=[1, 2, 4])
        assert [n.shape for n in net.nodes][2:] == [(None, None, None), (None, None, None), (2,)]
        x = torch.randn(3, 1, 8, 8)
        net.start(x, torch.zeros(3, 2))
        assert torch.equal(net.predict(x), module(x))
        assert net.nodes[3].value.shape == (3, 4, 3, 3)

    def test_layers_that_are_there_twice_and_sequentials_of_ones_own(self):
        class Row(nn.Sequential):
            pass

        linear, relu = nn.Linear(5, 5), nn.ReLU()
        module = Row(linear, relu, Row(linear, relu), nn.Linear(5, 3))
        net = networks.from_sequential(module)
        assert [n.shape for n in net.nodes] == [(5,), (5,), (5,), (3,)]
        assert len(net.m_params()) == 4
        x, y = data(dtype=torch.float32)
        assert torch.equal(net.predict(x), module(x))
        em_of(net).step(x, y)
        assert torch.equal(net.predict(x), module(x))

    def test_conversion_reaches_the_module(self):
        module = classifier()
        net = networks.from_sequential(module).double()
        x, y = data()
        em_of(net).step(x, y)
        assert torch.equal(net.predict(x), module(x))

    def test_dtype_is_that_of_the_module(self):
        net = networks.from_sequential(classifier().double())
        net.start(*data())
        assert net.energy().dtype == torch.float64


class TestMuPC:
    def test_prediction_is_its_formula(self):
        net = networks.mlp([6, 8, 8, 8, 2], "tanh", scaling="mupc", skips=True).double()
        x = torch.randn(5, 6).double()
        w = net.m_params()
        assert len(w) == 4  # no bias
        z = x @ w[0].T / math.sqrt(6)
        for v in w[1:3]:
            z = z + torch.tanh(z) @ v.T / math.sqrt(8 * 4)
        torch.testing.assert_close(net.predict(x), torch.tanh(z) @ w[3].T / 8)

    def test_without_skips(self):
        net = networks.mlp([6, 8, 10, 2], "tanh", scaling="mupc").double()
        x, y = torch.randn(5, 6).double(), torch.randn(5, 2).double()
        w = net.m_params()
        z = torch.tanh(x @ w[0].T / math.sqrt(6)) @ w[1].T / math.sqrt(8)
        torch.testing.assert_close(net.predict(x), torch.tanh(z) @ w[2].T / 10)
        net.start(x, y)
        loop = pyro.InferenceLoop(net.energy, net.e_params(), lr=0.1, executor="chain")  # recognised as one
        loop.run(3)

    def test_weights_are_drawn_from_the_standard_normal(self):
        layer = networks.ScaledLinear(400, 300, 0.1)
        n = 400 * 300
        assert abs(layer.weight.mean()) < 5 / math.sqrt(n)
        assert abs(layer.weight.var() - 1) < 5 * math.sqrt(2 / n)

    @pytest.mark.parametrize("width", [64, 256])
    def test_states_are_of_order_one_at_depth_100(self, width):
        """Of ReLU a skip adds half the variance over L: it grows by sqrt(e). Without, an edge leaves a sixth of it."""
        x = torch.randn(50, 30).double()

        @torch.no_grad()
        def growth(net):
            net.start(x)
            first, last = (net.nodes[i].value.square().mean() for i in (1, -2))
            return (last / first).item()

        sizes = [30, *[width] * 99, 10]
        grown = growth(networks.mlp(sizes, scaling="mupc", skips=True).double())
        assert grown == pytest.approx((1 + 1 / 200) ** 98, rel=0.25)
        shrunk = growth(networks.mlp(sizes, bias=False).double())
        assert math.log(shrunk) == pytest.approx(-98 * math.log(6), rel=0.05)

    @pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam], ids=["sgd", "adam"])
    def test_a_batch_is_one_call_that_does_what_autograd_does(self, optimizer):
        net = networks.mlp([6, *[8] * 6, 2], scaling="mupc", skips=True).double()
        x, y = torch.randn(5, 6).double(), torch.randn(5, 2).double()
        net.start(x, y)
        plain = copy.deepcopy(net)
        m_opt, m_plain = (optimizer(n.m_params(), lr=0.1) for n in (net, plain))
        em = pyro.EM(net.energy, net.e_params(), m_opt, start=net.start, steps=4, lr=0.1)
        for _ in range(3):
            em.step(x, y)
            plain.start(x, y)
            e_plain = torch.optim.SGD(plain.e_params(), lr=0.1)
            for _ in range(4):
                e_plain.zero_grad()
                plain.energy().sum().backward(inputs=plain.e_params())
                e_plain.step()
            m_plain.zero_grad()
            plain.energy().mean().backward(inputs=plain.m_params())
            m_plain.step()
        assert em.explain().startswith("a batch: one call of an operator\nexecutor: chain")
        for f, e in zip([*net.m_params(), *net.e_params()], [*plain.m_params(), *plain.e_params()], strict=True):
            torch.testing.assert_close(f.detach(), e.detach(), rtol=1e-10, atol=1e-10)

    @pytest.mark.usefixtures("native_backend")
    @pytest.mark.parametrize("lr", [None, 0.05])
    def test_on_errors_fused_steps_are_those_one_by_one(self, lr):
        net = networks.mlp([6, *[8] * 6, 2], "tanh", scaling="mupc", skips=True).double()
        x, y = torch.randn(5, 6).double(), torch.randn(5, 2).double()
        found = []
        for backend in ("native", "reference"):
            with backends.use(backend):
                net.start(x, y)
                loop = pyro.InferenceLoop(net.energy, net.e_params(), method=pyro.methods.Accelerated(lr=lr))
                loop.run(8)
                assert loop.explain().startswith("executor: chain")
                found.append([z.detach().clone() for z in net.e_params()])
        for f, e in zip(*found, strict=True):
            torch.testing.assert_close(f, e, rtol=1e-10, atol=1e-10)

    def test_every_depth_learns(self):
        """By `EM`, which takes it on whatever executor can."""
        net = networks.mlp([6, *[16] * 6, 2], scaling="mupc", skips=True)
        before = [p.detach().clone() for p in net.m_params()]
        x = torch.randn(30, 6)
        y = x[:, :2] - x[:, 4:]
        net.start(x, y)
        first = net.energy().sum()
        em = em_of(net, steps=20)
        for _ in range(60):
            em.step(x, y)
        net.start(x, y)
        assert net.energy().sum() < 0.2 * first
        assert all((p - b).abs().mean() > 0.05 for p, b in zip(net.m_params(), before, strict=True))


class TestAsAnyModule:
    @pytest.fixture(params=["mlp", "skips", "mupc", "sequential"])
    def net(self, request):
        match request.param:
            case "sequential":
                return networks.from_sequential(classifier(inplace=True))
            case "mupc":
                return networks.mlp(SIZES, scaling="mupc", skips=True)
            case kind:
                return networks.mlp(SIZES, skips=kind == "skips")

    def test_state_dict_holds_what_is_learned(self, net):
        x, y = data(dtype=torch.float32)
        net.start(x, y)
        saved = copy.deepcopy(net.state_dict())
        assert len(saved) == len(net.m_params())
        expected = net.predict(x)
        em_of(net).step(x, y)
        assert not torch.equal(net.predict(x), expected)
        net.load_state_dict(saved)
        assert torch.equal(net.predict(x), expected)

    @pytest.mark.parametrize(
        "copied", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))], ids=["deepcopy", "pickle"]
    )
    def test_copies_are_independent(self, net, copied):
        x, y = data(dtype=torch.float32)
        other = copied(net)
        expected = net.predict(x)
        em_of(other).step(x, y)
        assert torch.equal(net.predict(x), expected)
        assert not torch.equal(other.predict(x), expected)
        em_of(net).step(x, y)
        for a, b in zip(net.m_params(), other.m_params(), strict=True):
            assert torch.equal(a, b)

    def test_double(self, net):
        net.double()
        x, y = data()
        em_of(net).step(x, y)
        assert net.predict(x).dtype == torch.float64
        assert all(p.dtype == torch.float64 for p in (*net.e_params(), *net.m_params()))

    def test_compiled_prediction(self, net):
        x, _ = data(dtype=torch.float32)
        torch.compiler.reset()
        compiled = torch.compile(net.predict, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), net.predict(x))
        torch.compiler.reset()

    def test_gradients_of_the_prediction(self, net):
        x, y = data(dtype=torch.float32)
        F.mse_loss(net(x), y).backward()
        assert all(p.grad is not None for p in net.m_params())
        assert all(p.grad is None for p in net.e_params())


class TestNodesOfOnesOwn:
    def test_learned_variances_and_a_free_input(self):
        nodes = [FloatNode(5), IsotropicGaussianNode(7, variance=2.0), StandardGaussianNode(3)]
        edges = [nn.Linear(5, 7), nn.Sequential(nn.Tanh(), nn.Linear(7, 3))]
        net = networks.PCN(nodes, edges).double()
        x, y = data()
        net.start(x, y)
        perturbed(net)
        assert len(net.e_params()) == 2  # the input among them
        assert any(p is nodes[1].logvar for p in net.m_params())
        z, error = nodes[0].value, nodes[1].value - edges[0](nodes[0].value)
        assert not torch.equal(z, x)
        expected = error.square().sum(1) / 4 + 7 * math.log(2) / 2
        torch.testing.assert_close(net.node_energies()[0], expected)

    @pytest.mark.parametrize(
        ("nodes", "edges", "kind", "message"),
        [
            ([FixedNode(2)], [], ValueError, "nodes must be at least 2, and edges one fewer, got 1 and 0"),
            ([FixedNode(2), StandardGaussianNode(2)], [], ValueError, "one fewer, got 2 and 0"),
            (
                [FixedNode(2), FixedNode(2)],
                [nn.Linear(2, 2)],
                TypeError,
                r"nodes\[1\] must be a PredictiveNode or a TargetNode, got Fix",
            ),
            ([nn.Linear(2, 2)], [], TypeError, r"nodes\[0\] must be a StateNode, got Linear"),
        ],
        ids=["one node", "no edge", "no energy", "no node"],
    )
    def test_refuses(self, nodes, edges, kind, message):
        with pytest.raises(kind, match=message):
            networks.PCN(nodes, edges)


class TestMessages:
    @pytest.mark.parametrize(
        ("arguments", "kind", "message"),
        [
            ({"sizes": []}, ValueError, r"sizes must hold at least 2 widths, got \[\]"),
            ({"sizes": [3]}, ValueError, r"sizes must hold at least 2 widths, got \[3\]"),
            ({"sizes": 3}, TypeError, "sizes must be a sequence of ints, got int"),
            ({"sizes": [3, 0]}, ValueError, r"every width in sizes must be positive, got 0 in \[3, 0\]"),
            ({"sizes": [3, 2.0]}, TypeError, r"every width in sizes must be an int, got 2\.0"),
            ({"sizes": [3, True]}, TypeError, "every width in sizes must be an int, got True"),
            ({"activation": "rely"}, ValueError, "activation must be one of 'identity', 'relu', .*, got 'rely'"),
            ({"activation": nn.ReLU}, ValueError, "activation must be one of 'identity', 'relu'"),
            ({"output": "one-hot"}, ValueError, "one of 'gaussian', 'laplace', 'categorical'.*, got 'one-hot'"),
            ({"variance": "1"}, TypeError, "variance must be a number, got '1'"),
            ({"variance": 0.0}, ValueError, r"variance must be finite, above 0, got 0\.0"),
            ({"variance": -2.0, "output": "laplace"}, ValueError, r"variance must be finite, above 0, got -2\.0"),
            ({"scaling": "mup"}, ValueError, "scaling must be one of 'mupc' or None, got 'mup'"),
            ({"scaling": "mupc", "bias": True}, ValueError, "bias must be False or None with scaling='mupc'"),
            ({"scaling": "mupc", "sizes": [3, 2]}, ValueError, r"at least 3 widths, with scaling, got \[3, 2\]"),
            ({"skips": True, "sizes": [3, 4, 5, 2]}, ValueError, r"must be equal with skips, got \[4, 5\]"),
        ],
        ids=lambda a: ",".join(f"{k}={v}" for k, v in a.items()) if isinstance(a, dict) else "",
    )
    def test_mlp(self, arguments, kind, message):
        with pytest.raises(kind, match=message):
            networks.mlp(**{"sizes": [3, 4, 4, 2]} | arguments)

    @pytest.mark.parametrize(
        ("module", "options", "kind", "message"),
        [
            (nn.Linear(3, 2), {}, TypeError, "module must be a torch.nn.Sequential, got Linear"),
            (nn.Sequential(), {}, ValueError, "module must have layers with parameters, got none"),
            (nn.Sequential(nn.ReLU(), nn.Tanh()), {}, ValueError, "layers with parameters, got ReLU, Tanh"),
            (nn.Sequential(nn.LazyLinear(3)), {}, ValueError, "parameters of known shape, got lazy ones"),
            (nn.Sequential(nn.Embedding(3, 2)), {}, ValueError, "to tell its input's shape, got Embedding"),
            (classifier(), {"cut": [0]}, ValueError, "index in cut must be from 1 to 4: there are 5 layers, .* got 0"),
            (classifier(), {"cut": [2, 5]}, ValueError, r"must be from 1 to 4: .*; got 5 in \[2, 5\]"),
            (classifier(), {"cut": [-1]}, ValueError, "must be from 1 to 4: .*; got -1"),
            (classifier(), {"cut": [3, 2]}, ValueError, r"cut must be in increasing order, got \[3, 2\]"),
            (classifier(), {"cut": [2, 2]}, ValueError, r"cut must be in increasing order, got \[2, 2\]"),
            (classifier(), {"cut": 2}, TypeError, "cut must be None or indices, got 2"),
            (classifier(), {"cut": [2.0]}, TypeError, r"every index in cut must be an int, got 2\.0"),
            (nn.Sequential(nn.Flatten(), *classifier()), {"cut": [1]}, ValueError, "from 2 to 5: .* layer 1 is the"),
            (classifier(), {"output": "one-hot"}, ValueError, "one of 'gaussian', 'laplace', .*, got 'one-hot'"),
        ],
    )  # fmt: skip
    def test_from_sequential(self, module, options, kind, message):
        with pytest.raises(kind, match=message):
            networks.from_sequential(module, **options)

    @pytest.mark.parametrize(
        ("x", "y", "kind", "message"),
        [
            (torch.zeros(4, 6), None, ValueError, r"x must fit the node's shape \(None, 5\), got \(4, 6\)"),
            (torch.zeros(5), None, ValueError, r"x must fit the node's shape \(None, 5\), got \(5,\)"),
            (torch.zeros(4, 1, 5), None, ValueError, r"\(None, 5\), got \(4, 1, 5\), which x.flatten\(1\) makes fit"),
            ([[0.0] * 5], None, TypeError, "x must be a tensor, got "),
            (torch.zeros(4, 5), torch.zeros(4, 2), ValueError, r"y must fit the node's shape \(None, 3\), got \(4"),
            (torch.zeros(4, 5), torch.zeros(1, 3), ValueError, "y must have as many rows as x, 4, got 1"),
            (
                torch.zeros(4, 5),
                torch.zeros(4).long(),
                ValueError,
                r"one_hot\(y, classes\).*class indices, got.*\(4,\)",
            ),
            (torch.zeros(4, 5), [0, 1, 2, 1], TypeError, "y must be a tensor, got"),
        ],
        ids=["width", "dimensions", "images", "no tensor", "width of y", "rows", "classes", "no tensor of y"],
    )
    def test_start_sets_nothing_that_does_not_fit(self, x, y, kind, message):
        net = networks.mlp(SIZES)
        good = data(dtype=torch.float32)
        net.start(*good)
        before = [n.value.clone() for n in net.nodes]
        with pytest.raises(kind, match=message):
            net.start(x, y)
        assert all(torch.equal(n.value, b) for n, b in zip(net.nodes, before, strict=True))

    def test_predict(self):
        with pytest.raises(ValueError, match=r"x must fit the node's shape \(None, 5\), got \(4, 6\)"):
            networks.mlp(SIZES).predict(torch.zeros(4, 6))

    def test_a_batch_of_em(self):
        net = networks.mlp(SIZES)
        with pytest.raises(ValueError, match="class indices"):
            em_of(net).step(torch.zeros(4, 5), torch.zeros(4).long())


GAUSSIAN, IMAGE = StandardGaussianNode, (3, 8, 8)
# Nodes, the edge between the first two, and what is said of it; or that it fits
EDGES = {
    "takes": ([FixedNode(64), GAUSSIAN(10)], nn.Linear(32, 10), "10 from .* 64, .*, whose Linear takes 32"),
    "gives": ([FixedNode(64), GAUSSIAN(10)], nn.Linear(64, 12), "10 from .* 64, got Linear(64, 12), which gives 12"),
    "between": (
        [FixedNode(6), GAUSSIAN(4)], nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(7, 4)),
        "4 from .* 6, got .*, whose Linear takes 7 features",
    ),
    "channels": ([FixedNode(*IMAGE), GAUSSIAN(4, 8, 8)], nn.Conv2d(1, 4, 3), "4 x 8 x 8 .* Conv2d takes 1 channels"),
    "images": ([FixedNode(*IMAGE), GAUSSIAN(4)], nn.Conv2d(3, 4, 3), "4 from .* 3 x 8 x 8, .*, which gives 4 x ? x ?"),
    "positions": ([FixedNode(None, 6), GAUSSIAN(None, 4)], nn.Linear(6, 4), None),
    "flattened": ([FixedNode(*IMAGE), GAUSSIAN(4)], nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), None),
    "unknown": ([FixedNode(6), GAUSSIAN(4)], nn.Sequential(nn.LazyLinear(7), nn.Linear(7, 4)), None),
}  # fmt: skip


@pytest.mark.parametrize("name", EDGES)
def test_an_edge_that_does_not_fit_its_nodes_is_named_with_their_shapes(name):
    nodes, edge, told = EDGES[name]
    if told is None:
        networks.PCN(nodes, [edge])
        return
    told = f"edges[0] must predict nodes[1] of shape {told}"
    with pytest.raises(ValueError, match=re.escape(told).replace(r"\.\*", ".*")):
        networks.PCN(nodes, [edge])


class TestTable:
    def test_of_a_perceptron(self):
        net = networks.mlp([5, 7, 7, 3], "relu", output="categorical", variance=10.0)
        expected = """
PCN(
     node                             shape  state    predicted by        learned
  0  FixedNode                        5      clamped                            0
  1  StandardGaussianNode             7      free     Linear(5, 7)             42
  2  StandardGaussianNode             7      free     ReLU, Linear(7, 7)       56
  3  CategoricalNode(temperature=10)  3      clamped  ReLU, Linear(7, 3)       24
  122 learned parameters; no states yet: start(x, y) sets them
)"""
        assert str(net) == expected.strip()
        net.start(torch.zeros(4, 5), torch.zeros(4, dtype=torch.long))
        assert "122 learned parameters; states of 4 samples" in repr(net)

    def test_of_a_variance_a_prior_and_what_is_frozen(self):
        nodes = [FloatNode(None, 2, prior=pyro.functional.gaussian_energy), IsotropicGaussianNode(None, 4)]
        net = networks.PCN(nodes, [nn.Linear(2, 4)])
        net.edges[0].bias.requires_grad_(False)
        lines = [line.split() for line in str(net).splitlines()]
        assert lines[2] == ["0", "FloatNode(prior=gaussian_energy)", "?", "x", "2", "free", "0"]
        assert lines[3] == ["1", "IsotropicGaussianNode", "?", "x", "4", "clamped", "Linear(2,", "4)", "9"]
        assert lines[4][:3] == ["9", "learned", "parameters;"]

    def test_of_layers(self):
        """Sizes and what changes them; blocks with what they hold; an input that is changed before it is a state."""
        module = nn.Sequential(
            nn.Flatten(), nn.Linear(4, 6, bias=False), networks.Skip(nn.Sequential(nn.ReLU(), nn.Linear(6, 6))),
            nn.Dropout(0.25), nn.LayerNorm(6), nn.Linear(6, 2),
        )  # fmt: skip
        lines = str(networks.from_sequential(module)).splitlines()
        told = [line[line.index(state) + len("clamped") :].rsplit(None, 1)[0].strip()
                for line, state in zip(lines[2:6], ["clamped", "free", "free", "clamped"], strict=True)]  # fmt: skip
        assert told == [
            "x by Flatten", "Linear(4, 6, bias=False)", "Skip(ReLU, Linear(6, 6))",
            "Dropout(p=0.25), LayerNorm((6,)), Linear(6, 2)",
        ]  # fmt: skip

    def test_of_what_trains(self):
        net = networks.mlp(SIZES)
        em = em_of(net)
        method = pyro.methods.Descent(lr=0.1)
        assert repr(em) == f"EM(PCN.energy, start=PCN.start, steps=8, {method}, Adam of 6 parameters)"
        assert repr(em.loop) == f"InferenceLoop(PCN.energy, states nodes.1, nodes.2, {method}, not run yet)"
        em.step(*data(dtype=torch.float32))
        assert repr(em.loop).endswith("executor chain)")
        em.tol, em.incremental = 0.01, False
        assert "tol=0.01" in repr(em)


class TestFreeInput:
    """Codes that are inferred."""

    def test_linear_posterior(self):
        """Of a code with a Gaussian prior, seen through one linear edge: (I + W^T W) z = W^T (y - b)."""
        net = networks.from_sequential(nn.Sequential(nn.Linear(3, 5)), free_input=True).double()
        net.nodes[0].prior = pyro.functional.gaussian_energy
        y = torch.randn(4, 5, dtype=torch.float64)
        net.start(torch.zeros(4, 3, dtype=torch.float64), y)
        assert [id(p) for p in net.e_params()] == [id(net.nodes[0].value)]
        assert net.node_energies().shape == (2, 4)
        pyro.InferenceLoop(net.energy, net.e_params(), lr=0.2).run(2000)
        w, b = net.edges[0].weight.detach(), net.edges[0].bias.detach()
        expected = torch.linalg.solve(torch.eye(3) + w.T @ w, w.T @ (y - b).T).T
        torch.testing.assert_close(net.nodes[0].value.detach(), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(net.node_energies()[0].detach(), 0.5 * expected.square().sum(1))

    @pytest.mark.parametrize("output", ["gaussian", "bernoulli"])
    def test_images_from_codes_learn_in_one_call(self, output):
        net = networks.mlp([2, 16, 12], "tanh", output=output, free_input=True)
        net.nodes[0].prior = pyro.functional.gaussian_energy
        images = (torch.rand(64, 1) > 0.5).float().repeat(1, 12)  # all or nothing: one bit of code
        em = em_of(net, steps=20)
        before = (net.predict(torch.zeros(64, 2)) - images).square().mean()
        for _ in range(150):
            em.step(torch.zeros(64, 2), images)
        assert "one call" in em.explain().splitlines()[0]
        net.start(torch.zeros(64, 2), images)
        em.loop.run(20)
        with torch.no_grad():
            made = net.predict(net.nodes[0].value)
        if output == "bernoulli":
            made = made.sigmoid()
        assert (made - images).square().mean() < 0.5 * before


def test_a_trained_network_goes_there_and_back():
    """Names, running statistics, evaluation and training modes: what the copy has learned the first takes."""
    module = convolutional().train()
    images, labels = torch.randn(8, 1, 8, 8), torch.randint(3, (8,))
    module[4] = nn.Conv2d(4, 6, 3)
    module = module.append(nn.Identity())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(module(images), labels).backward()
        optimizer.step()
    net = networks.from_sequential(copy.deepcopy(module), output="categorical")
    back = net.sequential()
    assert list(back.state_dict()) == list(module.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), module.state_dict().values(), strict=True))
    net.eval(), module.eval()
    assert torch.equal(net.predict(images), module(images))
    assert torch.equal(back.eval()(images), module(images))
    net.train()
    em_of(net, steps=2).step(images, labels)
    moved = net.sequential().state_dict()
    assert not torch.equal(moved["1.running_mean"], module[1].running_mean)
    module.load_state_dict(moved)
    net.eval()
    assert torch.equal(net.predict(images), module(images))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8], ids=str)
def test_predict_takes_an_input_in_the_networks_dtype(dtype):
    """As `start` does: of the very numbers that it is given."""
    net = networks.mlp(SIZES).double()
    x = (4 * torch.rand(6, SIZES[0])).to(dtype)
    assert torch.equal(net.predict(x), net.predict(x.double()))


@pytest.mark.usefixtures("native_backend")
def test_a_transformer_needs_no_dry_run():
    """Nothing that it calls hinders a watch, which says of the energy whether it can have changed."""
    net = networks.transformer(symbols=5, length=4, width=4, heads=2, depth=1)
    m_opt = torch.optim.SGD(net.m_params(), 0.01)
    em = pyro.EM(net.energy, net.e_params(), m_opt, start=net.start, steps=1, lr=0.1)
    x = torch.randint(5, (2, 4))
    for _ in range(8):
        em.step(x, x)
    assert "executor: graph" in em.explain()
    assert "run dry" not in em.explain()
