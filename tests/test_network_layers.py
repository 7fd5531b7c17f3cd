"""Blocks, transformers, and layers that hold for a batch, against formulas and `torch.nn`."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyromancy as pyro
from pyromancy import networks
from pyromancy.networks import LockedAlphaDropout, LockedDropout, LockedRReLU, Skip, SweptBatchNorm


def residual(norm=False):
    """A small ResNet, in which the last block halves the image."""
    first = [nn.BatchNorm2d(4)] if norm else []
    second = [nn.BatchNorm2d(4)] if norm else []
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(),
        Skip(nn.Sequential(*first, nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), *second, nn.ReLU(), nn.Conv2d(4, 4, 1))),
        nn.ReLU(),
        Skip(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Conv2d(4, 6, 1, stride=2)), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 4, 3),
    ).double()  # fmt: skip


def batch(n=5):
    return torch.randn(n, 1, 4, 4, dtype=torch.float64), torch.randn(n, 3, dtype=torch.float64)


def perturb(net):
    with torch.no_grad():
        for p in net.e_params():
            p.add_(torch.randn_like(p))


def squares(*errors):
    return sum(0.5 * e.flatten(1).square().sum(1) for e in errors)


class TestBlocks:
    def test_a_node_follows_every_block(self):
        module = residual()
        net = networks.from_sequential(module)
        assert [n.shape for n in net.nodes] == [
            (1, None, None),
            (4, None, None),
            (4, None, None),
            (6, None, None),
            (3,),
        ]
        x, y = batch()
        assert torch.equal(net.predict(x), module(x))
        net.start(x, y)
        perturb(net)
        z = [n.value for n in net.nodes]
        expected = squares(
            z[1] - module[0](x), z[2] - module[2](z[1].relu()), z[3] - module[4](z[2].relu()),
            y - module[7](z[3].relu().flatten(1)),
        )  # fmt: skip
        torch.testing.assert_close(net.energy(), expected)

    def test_it_is_its_sum(self):
        branch, shortcut = nn.Linear(3, 2), nn.Linear(3, 2)
        x = torch.randn(4, 3)
        assert torch.equal(Skip(branch, shortcut)(x), shortcut(x) + branch(x))
        assert torch.equal(Skip(nn.Identity())(x), 2 * x)

    def test_an_input_may_lead_to_one(self):
        net = networks.from_sequential(nn.Sequential(Skip(nn.Linear(5, 5)), nn.Tanh(), nn.Linear(5, 2)))
        assert [n.shape for n in net.nodes] == [(5,), (5,), (2,)]

    def test_it_learns_in_one_network_with_the_module(self):
        module = residual(norm=True)
        net = networks.from_sequential(module)
        assert {id(p) for p in net.m_params()} == {id(p) for p in module.parameters()}
        assert list(net.sequential().state_dict()) == list(module.state_dict())
        assert not any(isinstance(m, SweptBatchNorm) for m in net.sequential().modules())


class TestOtherRandomLayers:
    SATURATION = -1.6732632423543772 * 1.0507009873554805  # -lambda alpha of SELU

    @staticmethod
    def locked(layer, x):
        made = {nn.RReLU: LockedRReLU}.get(type(layer), LockedAlphaDropout)(layer)
        with networks.sweeping():
            made(x)
        return made

    @pytest.mark.parametrize("p", [0.0, 0.2, 0.7])
    def test_alpha_dropout(self, p):
        """Its two values, and that it keeps mean 0 and variance 1."""
        x = torch.randn(200, 500, dtype=torch.float64)
        layer = self.locked(nn.AlphaDropout(p), x)
        a = (1 - p + self.SATURATION**2 * p * (1 - p)) ** -0.5
        b = -a * self.SATURATION * p
        expected = torch.where(layer.mask == 1, a * x + b, torch.full_like(x, a * self.SATURATION + b))
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
        dropped = float((layer.mask == 0).double().mean())
        assert abs(dropped - p) <= 4 * (p * (1 - p) / x.numel()) ** 0.5
        assert abs(float(layer(x).mean())) < 0.02
        assert abs(float(layer(x).var()) - 1) < 0.03
        assert torch.equal(layer(x), layer(x))

    @pytest.mark.parametrize("layer", [nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.4), nn.AlphaDropout(1.0)])
    def test_it_draws_what_the_layer_draws(self, layer):
        x = torch.randn(4, 6, 5, dtype=torch.float64)
        torch.manual_seed(3)
        expected = layer(x)
        torch.manual_seed(3)
        torch.testing.assert_close(self.locked(layer, x)(x), expected, rtol=1e-12, atol=1e-12)

    def test_random_leaky_relus(self):
        x, layer = torch.randn(50, 40, dtype=torch.float64), nn.RReLU(0.2, 0.5)
        torch.manual_seed(4)
        made = self.locked(layer, x)
        assert 0.2 <= float(made.mask.min()) < 0.21
        assert 0.49 < float(made.mask.max()) <= 0.5
        torch.testing.assert_close(made(x), torch.where(x >= 0, x, made.mask * x), rtol=0, atol=0)
        other = torch.randn_like(x)  # states move, slopes stay
        torch.testing.assert_close(made(other), torch.where(other >= 0, other, made.mask * other), rtol=0, atol=0)
        made.eval()
        torch.testing.assert_close(made(x), torch.where(x >= 0, x, 0.35 * x), rtol=1e-15, atol=0)

    @pytest.mark.parametrize("layer", [nn.AlphaDropout(0.3), nn.RReLU()])
    def test_e_steps_descend_one_energy(self, layer):
        torch.manual_seed(5)
        module = nn.Sequential(nn.Linear(5, 8), nn.SELU(), layer, nn.Linear(8, 3)).double()
        net = networks.from_sequential(module)
        x, y = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
        net.start(x, y)
        assert torch.equal(net.energy(), net.energy())
        assert net.node_energies()[0].abs().max() == 0
        loop = pyro.InferenceLoop(net.energy, net.e_params(), lr=0.05)
        energies = loop.run(20, record=True).energies.sum(1)
        assert (energies.diff() < 0).all()
        assert type(net.sequential()[2]) is type(layer)


class TestDropout:
    def make(self, p=0.4):
        module = nn.Sequential(
            nn.Linear(5, 8), nn.Tanh(), nn.Dropout(p), nn.Linear(8, 7), nn.Dropout(p), nn.Linear(7, 3)
        )
        return module.double(), networks.from_sequential(module)

    @staticmethod
    def data():
        return torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)

    @staticmethod
    def masks(net):
        return [m.mask for m in net.modules() if isinstance(m, LockedDropout)]

    def test_a_mask_holds_for_a_batch(self):
        module, net = self.make()
        x, y = self.data()
        net.start(x, y)
        perturb(net)
        a, b = (m.clone() for m in self.masks(net))
        z1, z2 = net.e_params()
        first, second, third = module[0], module[3], module[5]
        expected = squares(z1 - first(x), z2 - second(z1.tanh() * a), y - third(z2 * b))
        for _ in range(2):
            torch.testing.assert_close(net.energy(), expected, rtol=0, atol=1e-12)
        net.start(x, y)
        assert any(not torch.equal(old, new) for old, new in zip((a, b), self.masks(net), strict=True))

    def test_it_is_drawn_as_pytorch_draws_it(self):
        _, net = self.make(0.25)
        net.start(torch.randn(4000, 5, dtype=torch.float64), torch.randn(4000, 3, dtype=torch.float64))
        mask = self.masks(net)[0]
        assert set(mask.unique().tolist()) == {0.0, 1 / 0.75}
        assert abs((mask == 0).double().mean().item() - 0.25) < 4 * (0.25 * 0.75 / mask.numel()) ** 0.5

    def test_errors_are_zero_after_the_sweep(self):
        _, net = self.make()
        net.start(*self.data())
        assert net.node_energies()[:2].abs().max() == 0

    @pytest.mark.parametrize("steps", [1, 5])
    def test_a_batch_of_em_is_descent_on_one_energy(self, steps):
        _, net = self.make()
        other = copy.deepcopy(net)
        x, y = self.data()
        optimizer = torch.optim.SGD(net.m_params(), lr=0.1)
        em = pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=steps, lr=0.05)
        for _ in range(3):
            em.step(x, y)
            other.start(x, y)
            for mask, drawn in zip(self.masks(other), self.masks(net), strict=True):
                mask.copy_(drawn)
            z = x
            for node, edge in zip(other.nodes[1:-1], other.edges, strict=False):  # the sweep by those masks
                z = node.init(edge(z).detach())
            free = other.e_params()
            for _ in range(steps):
                for p, g in zip(free, torch.autograd.grad(other.energy().sum(), free), strict=True):
                    p.data.sub_(0.05 * g)
            learned = other.m_params()
            for p, g in zip(learned, torch.autograd.grad(other.energy().mean(), learned), strict=True):
                p.data.sub_(0.1 * g)
            for p, q in zip(net.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=0, atol=1e-12)

    def test_evaluation_and_prediction_are_the_module(self):
        module, net = self.make()
        x, _ = self.data()
        torch.manual_seed(0)
        expected = module(x)
        torch.manual_seed(0)
        assert torch.equal(net.predict(x), expected)
        net.eval()
        assert torch.equal(net.predict(x), module(x))
        net.start(x, None)
        assert net.energy().abs().max() == 0

    def test_without_a_start_there_is_none(self):
        _, net = self.make()
        with pytest.raises(RuntimeError, match=r"LockedDropout holds nothing for a batch of shape \(6, 8\): start"):
            net.edges[1](torch.randn(6, 8, dtype=torch.float64))

    def test_within_a_block_of_ones_own(self):
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.drop, self.up, self.none = nn.Dropout(0.4), nn.Linear(8, 8), None

            def forward(self, x):
                return x + self.up(self.drop(x))

        block = Block()
        module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), block, nn.Linear(8, 3)).double()
        net = networks.from_sequential(module)
        net.start(*self.data())
        assert torch.equal(net.energy(), net.energy())
        assert len(self.masks(net)) == 1
        assert isinstance(block.drop, nn.Dropout)
        assert net.edges[1][1].up is block.up
        assert list(net.sequential().state_dict()) == list(module.state_dict())
        assert isinstance(net.sequential()[2].drop, nn.Dropout)
        net.eval()
        x, _ = self.data()
        assert torch.equal(net.predict(x), module.eval()(x))

    def test_a_network_by_hand(self):
        layer = LockedDropout(nn.Dropout(0.5))
        x = torch.ones(100)
        with networks.sweeping():
            drawn = layer(x)
        assert torch.equal(layer(x), drawn)
        assert 0 < int((drawn == 0).sum()) < 100

    def test_it_is_not_saved_and_moves(self):
        _, net = self.make()
        net.start(*self.data())
        assert not any("mask" in name for name in net.state_dict())
        assert all(m.dtype == torch.float32 for m in self.masks(net.float()))


class TestBatchNorm:
    def make(self):
        module = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        )
        return module.double(), networks.from_sequential(module)

    def test_running_statistics_move_once_a_batch(self):
        module, net = self.make()
        twin = copy.deepcopy(module)
        x, y = batch()
        em = pyro.EM(net.energy, net.e_params(), torch.optim.SGD(net.m_params(), 0.1), start=net.start, steps=4, lr=0.1)
        twin(x)
        net.start(x, y)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(getattr(module[1], name), getattr(twin[1], name))
        em.step(x, y)
        before = module[1].num_batches_tracked.item()
        em.step(x, y)
        assert module[1].num_batches_tracked == before + 1
        told = "BatchNorm2d in training mode updates its running statistics whenever it is called"
        assert f"start cannot be captured: {told}" in em.explain()

    def test_a_batch_shares_one_energy(self):
        module, net = self.make()
        x, y = batch()
        net.start(x, y)
        assert net.node_energies()[0].abs().max() == 0
        perturb(net)
        (z,) = net.e_params()
        norm = module[1]
        mean, var = (s.view(1, 4, 1, 1) for s in (z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)))
        scaled = (z - mean) / (var + norm.eps).sqrt() * norm.weight.view(1, 4, 1, 1) + norm.bias.view(1, 4, 1, 1)
        expected = squares(z - module[0](x), y - module[4](scaled.relu().flatten(1)))
        torch.testing.assert_close(net.energy(), expected)
        (gradient,) = torch.autograd.grad(expected.sum(), z)
        loop, start = pyro.InferenceLoop(net.energy, [z], lr=0.1), z.detach().clone()
        loop.run(1)
        torch.testing.assert_close(z.detach(), start - 0.1 * gradient)

    def test_it_learns_and_evaluates(self):
        module, net = self.make()
        x, y = batch(16)
        em = pyro.EM(
            net.energy, net.e_params(), torch.optim.Adam(net.m_params(), 0.01), start=net.start, steps=4, lr=0.1
        )
        before = F.mse_loss(net.predict(x), y)
        for _ in range(60):
            em.step(x, y)
        net.eval()
        assert torch.equal(net.predict(x), module(x))
        assert F.mse_loss(net.predict(x), y) < 0.3 * before


class TestTransformer:
    SYMBOLS, LENGTH, WIDTH = 7, 6, 8

    def make(self, **options):
        return networks.transformer(self.SYMBOLS, self.LENGTH, self.WIDTH, 2, 2, **options).double()

    def data(self, n=3):
        return torch.randint(self.SYMBOLS, (n, self.LENGTH)), torch.randint(self.SYMBOLS, (n, self.LENGTH))

    def attention(self, layer, x, causal):
        """By its formula, head by head."""
        q, k, v = (x @ w.T + b for w, b in zip(layer.inputs.weight.chunk(3), layer.inputs.bias.chunk(3), strict=True))
        heads = []
        for a, b, c in zip(q.chunk(2, 2), k.chunk(2, 2), v.chunk(2, 2), strict=True):
            scores = a @ b.transpose(1, 2) / a.shape[2] ** 0.5
            if causal:
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            heads.append(scores.softmax(2) @ c)
        return torch.cat(heads, 2) @ layer.output.weight.T + layer.output.bias

    @pytest.mark.parametrize("causal", [True, False])
    def test_energy_is_its_formula(self, causal):
        net = self.make(causal=causal, variance=10)
        x, y = self.data()
        net.start(x, y)
        perturb(net)
        z = net.e_params()
        first, last = net.edges[0], net.edges[-1]
        errors = [z[0] - first.weight[x] - first.position]
        for below, edge, above in zip(z[:-1], net.edges[1:-1], z[1:], strict=True):
            norm, *rest = edge.branch
            h = F.layer_norm(below, (self.WIDTH,), norm.weight, norm.bias)
            if len(rest) == 1:
                h = self.attention(rest[0], h, causal)
            else:
                h = F.linear(F.gelu(F.linear(h, rest[0].weight, rest[0].bias)), rest[2].weight, rest[2].bias)
            errors.append(above - below - h)
        logits = F.linear(
            F.layer_norm(z[-1], (self.WIDTH,), last[0].weight, last[0].bias), last[1].weight, last[1].bias
        )
        expected = squares(*errors) + F.cross_entropy(logits.transpose(1, 2), y, reduction="none").sum(1) / 10
        torch.testing.assert_close(net.energy(), expected)

    def test_a_position_does_not_see_those_after(self):
        net = self.make()
        x, _ = self.data()
        changed = x.clone()
        changed[:, 4:] = (changed[:, 4:] + 1) % self.SYMBOLS
        a, b = net.predict(x), net.predict(changed)
        assert a.shape == (3, self.SYMBOLS, self.LENGTH)
        torch.testing.assert_close(a[:, :, :4], b[:, :, :4])
        assert (a[:, :, 4:] - b[:, :, 4:]).abs().amin((0, 1)).min() > 0

    def test_it_learns(self):
        """What comes next in a row of symbols that goes round."""
        net = networks.transformer(self.SYMBOLS, self.LENGTH, 32, 4, 1)
        x = (torch.arange(self.LENGTH) + torch.arange(self.SYMBOLS).unsqueeze(1)) % self.SYMBOLS
        optimizer = torch.optim.Adam(net.m_params(), 0.001)  # at 0.01 it unlearns, by plain autograd as well
        em = pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=4, lr=0.1)
        for _ in range(60):
            em.step(x, (x + 1) % self.SYMBOLS)
        with torch.no_grad():
            assert (net.predict(x).argmax(1) == (x + 1) % self.SYMBOLS).all()

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((7, 6, 10, 3), ValueError, "width must be a multiple of heads, got 10 and 3"),
            ((7, 0), ValueError, "length must be at least 1, got 0"),
            ((7, 6.0), TypeError, "length must be an int, got 6.0"),
        ],
    )
    def test_bad_sizes(self, arguments, error, message):
        with pytest.raises(error, match=message):
            networks.transformer(*arguments)

    def test_sequences_may_be_shorter(self):
        net = self.make()
        x, y = self.data()
        torch.testing.assert_close(net.predict(x[:, :3]), net.predict(x)[:, :, :3])
        net.start(x[:, :3].int(), y[:, :3])
        assert net.e_params()[0].shape == (3, 3, self.WIDTH)

    def test_symbols_that_are_none(self):
        with pytest.raises(ValueError, match="x must be symbols from 0 to 6, got 7"):
            self.make().predict(torch.tensor([[0, 7]]))
        with pytest.raises(ValueError, match="x must be sequences of at most 6 symbols, got 7"):
            self.make().predict(torch.zeros(2, 7, dtype=torch.int64))

    def test_symbols_are_integers(self):
        with pytest.raises(TypeError, match=r"x must be symbols of an integer dtype, got torch\.float32"):
            self.make().predict(torch.rand(2, 6))


class TestTemperature:
    @pytest.mark.parametrize("output", ["categorical", "bernoulli", "laplace", "poisson"])
    def test_it_divides_the_energy_of_the_output(self, output):
        net = networks.mlp([5, 6, 3], output=output, variance=4.0).double()
        other = networks.mlp([5, 6, 3], output=output).double()
        other.load_state_dict(net.state_dict())
        x, y = torch.randn(4, 5, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]
        for n in (net, other):
            n.start(x, y)
        perturb(net)
        other.nodes[1].init(net.nodes[1].value.detach())
        hidden, last = other.node_energies()
        torch.testing.assert_close(net.energy(), hidden + last / 4)

    def test_a_gaussian_output_has_a_variance(self):
        net = networks.mlp([5, 6, 3], variance=4.0).double()
        assert net.temperature == 1
        net.start(torch.zeros(1, 5, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64))
        error = torch.ones(1, 3, dtype=torch.float64) - net.predict(torch.zeros(1, 5, dtype=torch.float64))
        expected = 0.5 * error.square().sum(1) / 4 + 1.5 * torch.tensor(4.0, dtype=torch.float64).log()
        torch.testing.assert_close(net.node_energies()[1], expected)

    def test_a_batch_is_one_call_still(self):
        net = networks.mlp([5, 6, 3], output="categorical", variance=10.0)
        em = pyro.EM(net.energy, net.e_params(), torch.optim.SGD(net.m_params(), 0.1), start=net.start, steps=3, lr=0.1)
        em.step(torch.randn(4, 5), torch.tensor([0, 1, 2, 0]))
        assert em.explain().startswith("a batch: one call of an operator")

    @pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), "1"])
    def test_it_must_be_positive(self, value):
        nodes = [pyro.nodes.FixedNode(3), pyro.nodes.StandardGaussianNode(2)]
        with pytest.raises((TypeError, ValueError), match="temperature must be"):
            networks.PCN(nodes, [nn.Linear(3, 2)], temperature=value)
