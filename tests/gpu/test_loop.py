"""InferenceLoop on a GPU, on every backend that runs there, against autograd in float64."""

import copy
import types

import pytest
import torch

import pyromancy as pyro
from networks import KINDS, Chain, autograd_loop, convolutional, randomize, states_of
from waiting import no_waiting

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

DEVICE = "cuda"
# the benchmarks' settings, narrower: widths, batch, E-steps, activation
SETTINGS = {
    "tutorial": ((78, 26, 26, 10), 50, 32, torch.relu),
    "ngc-learn": ((78, 51, 51, 10), 25, 20, torch.sigmoid),
    "pcx": ((78, 13, 13, 13, 10), 13, 8, torch.tanh),
    "jpc-h5": ((78, *[30] * 5, 10), 7, 50, torch.tanh),
    "deep": ((78, *[13] * 19, 10), 7, 64, torch.tanh),
    "small": ((78, 13, 10), 7, 20, torch.relu),
    "online": ((78, 7, 7, 10), 1, 100, torch.relu),
    "generative": ((10, 26, 26, 78), 50, 32, torch.relu),
}
SGD = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "dampening": {"momentum": 0.5, "dampening": 0.3},
}
STANDARD = ("StandardGaussianNode",) * 4
LAPLACE = ("StandardGaussianNode", "LaplaceNode", "FactorizedGaussianNode", "LaplaceNode")
# without the inverse of a matrix, for which the library may wait
DIAGONAL = ("StandardGaussianNode", "IsotropicGaussianNode", "FactorizedGaussianNode", "StandardGaussianNode")

pytestmark = pytest.mark.usefixtures("gpu_backend")


def chain(kinds, widths, batch, activation=torch.tanh):
    """A network on the device whose ends are clamped, and its free states."""
    network = Chain(kinds, widths, activation=activation)
    randomize(network, batch)
    network.to(DEVICE)
    return network, states_of(network, (0, -1))


def images(batch):
    """The same of convolutions."""
    network, clamped, _ = convolutional()
    for node in network.nodes:
        node.init(torch.randn(batch, *[8 if d is None else d for d in node.shape], dtype=torch.float64))
    network.to(DEVICE)
    return network, states_of(network, clamped)


def assert_close(mine, theirs):
    for a, b in zip(mine, theirs, strict=True):
        assert a.device.type == torch.device(DEVICE).type
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


class Pair:
    """A network and its twin, which `executor="autograd"` serves."""

    def __init__(self, made, clamped=(0, -1), lr=0.02, executor=None, **options):
        self.mine, states = made
        self.twin = copy.deepcopy(self.mine)
        self.loop = pyro.InferenceLoop(self.mine.energy, states, lr=lr, executor=executor, **options)
        twins = states_of(self.twin, clamped)
        self.plain = pyro.InferenceLoop(self.twin.energy, twins, lr=lr, executor="autograd", **options)
        self.learned = [list(pyro.get_mstep_params(network)) for network in (self.mine, self.twin)]

    def init(self, batch):
        """Other states, and another number of them, for both."""
        for a, b in zip(self.mine.nodes, self.twin.nodes, strict=True):
            z = torch.randn(batch, *[8 if d is None else d for d in a.shape], dtype=a.value.dtype)
            a.init(z)
            b.init(z)

    def step(self, steps):
        """E-steps and gradients of both, which come to the same."""
        for loop, learned in zip((self.loop, self.plain), self.learned, strict=True):
            loop.run(steps)
            for p in learned:
                p.grad = None
            loop.backward(learned)
        self.check()

    def check(self):
        assert_close(*([n.value for n in network.nodes] for network in (self.mine, self.twin)))
        mine, theirs = ([p.grad for p in learned] for learned in self.learned)
        assert [g is None for g in mine] == [g is None for g in theirs]
        assert_close(*([g for g in gradients if g is not None] for gradients in (mine, theirs)))


class TestChains:
    @pytest.mark.parametrize("setting", SETTINGS)
    def test_settings(self, setting):
        widths, batch, steps, activation = SETTINGS[setting]
        pair = Pair(chain(["StandardGaussianNode"] * len(widths), widths, batch, activation), lr=0.05)
        pair.step(steps)
        assert pair.loop.explain().startswith("executor: chain")

    @pytest.mark.parametrize("setting", SETTINGS)
    def test_float32_is_as_good_as_autograd(self, setting):
        widths, batch, steps, activation = SETTINGS[setting]
        exact, free = chain(["StandardGaussianNode"] * len(widths), widths, batch, activation)
        single, plain = copy.deepcopy(exact).float(), copy.deepcopy(exact).float()
        pyro.InferenceLoop(exact.energy, free, lr=0.05, executor="autograd").run(steps)
        pyro.InferenceLoop(plain.energy, states_of(plain, (0, -1)), lr=0.05, executor="autograd").run(steps)
        pyro.InferenceLoop(single.energy, states_of(single, (0, -1)), lr=0.05).run(steps)
        for e, s, p in zip(exact.nodes, single.nodes, plain.nodes, strict=True):
            mine = (s.value.double() - e.value).abs().max()
            theirs = (p.value.double() - e.value).abs().max()
            # every step rounds states of order 1 once or twice
            assert mine <= 2 * theirs + 2 * steps * torch.finfo(torch.float32).eps

    @pytest.mark.parametrize("executor", ["chain", "graph"])
    @pytest.mark.parametrize("options", [*SGD, "mean"])
    def test_options(self, options, executor):
        options = SGD.get(options, {"reduction": "mean"})
        pair = Pair(chain(KINDS, (7, 9, 8, 5), 6), lr=0.01, executor=executor, **options)
        for _ in range(2):  # the second run goes on with the velocities of the first
            pair.step(15)

    def test_laws_and_weights_per_sample(self):
        network, states = chain(LAPLACE, (7, 9, 8, 5), 6)
        network.weights = torch.rand(6, dtype=torch.float64, device=DEVICE)
        network.energy = types.MethodType(lambda self: self.weights * type(self).energy(self), network)
        pair = Pair((network, states))
        for _ in range(2):
            pair.step(15)
        assert pair.loop.explain().startswith("executor: chain")

    def test_wide_target(self):
        pair = Pair(chain(STANDARD, (10, 33, 40, 300), 70))
        pair.step(30)
        assert "W^T W chosen" in pair.loop.explain()

    @pytest.mark.parametrize("executor", ["chain", "graph"])
    def test_recorded_energies(self, executor):
        network, states = chain(KINDS, (7, 9, 8, 5), 6)
        twin = copy.deepcopy(network)
        trace = pyro.InferenceLoop(network.energy, states, lr=0.01, executor=executor).run(9, record=True)
        expected = torch.stack([e.mean() for e in autograd_loop(twin.energy, states_of(twin, (0, -1)), 9, 0.01)])
        assert trace.energies.shape == (10, 3)
        torch.testing.assert_close(trace.energies[:-1].sum(1), expected, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("kinds", [STANDARD, KINDS], ids=["standard", "all-kinds"])
    def test_training(self, kinds):
        """Batches of several sizes in a row, the parameters moving between them."""
        pair = Pair(chain(kinds, (7, 9, 8, 5), 6))
        optimizers = [torch.optim.SGD(learned, lr=0.01) for learned in pair.learned]
        for batch in (6, 6, 11, 1, 300, 6):
            pair.init(batch)
            pair.step(12)
            for optimizer in optimizers:
                optimizer.step()
        assert_close(*pair.learned)

    def test_gradients_accumulate(self):
        network, states = chain(STANDARD, (7, 9, 8, 5), 6)
        loop, learned = pyro.InferenceLoop(network.energy, states, lr=0.02), list(pyro.get_mstep_params(network))
        loop.run(2)
        loop.backward(learned)
        once = [p.grad.clone() for p in learned]
        loop.backward(learned)
        assert_close([p.grad for p in learned], [2 * g for g in once])

    def test_on_the_device_of_its_network(self):
        if torch.cuda.device_count() < 2:
            pytest.skip("one CUDA device only")
        before = torch.cuda.current_device()
        network, _ = chain(KINDS, (7, 9, 8, 5), 6)
        network.to(f"cuda:{1 - before}")
        Pair((network, states_of(network, (0, -1)))).step(10)
        assert torch.cuda.current_device() == before


class TestConvolutions:
    @pytest.mark.parametrize("options", SGD)
    def test_batches(self, options):
        pair = Pair(images(3), clamped=(0, 3), **SGD[options])
        for batch in (3, 3, 5):
            pair.init(batch)
            pair.step(7)
            pair.step(6)  # with the velocities of the first run
        assert pair.loop.explain().startswith("executor: graph")

    def test_recorded_energies(self):
        network, states = images(3)
        twin = copy.deepcopy(network)
        energies = pyro.InferenceLoop(network.energy, states, lr=0.02).run(7, record=True).energies
        expected = torch.stack([e.mean() for e in autograd_loop(twin.energy, states_of(twin, (0, 3)), 7, 0.02)])
        torch.testing.assert_close(energies[:-1].sum(1), expected, rtol=1e-10, atol=1e-10)


class TestStreams:
    @pytest.mark.parametrize("executor", ["chain", "graph"])
    @pytest.mark.parametrize("options", SGD)
    @pytest.mark.parametrize("kinds", [STANDARD, DIAGONAL], ids=["standard", "diagonal"])
    def test_the_host_never_waits(self, kinds, options, executor):
        pair = Pair(chain(kinds, (7, 9, 8, 5), 6), executor=executor, **SGD[options])
        pair.step(10)  # what is captured or compiled once
        pair.init(6)
        for p in (*pair.learned[0], *pair.learned[1]):
            p.grad = None
        with no_waiting():
            pair.loop.run(10)
            pair.loop.backward(pair.learned[0])
        pair.plain.run(10)
        pair.plain.backward(pair.learned[1])
        pair.check()

    @pytest.mark.parametrize("made", [lambda: chain(STANDARD, (63, 300, 300, 10), 70), lambda: images(3)],
                             ids=["chain", "convolutions"])  # fmt: skip
    def test_on_the_current_stream(self, made):
        pair = Pair(made(), clamped=(0, 3))
        late = [torch.randn_like(n.value) for n in pair.mine.nodes]
        pair.loop.run(1)
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(20_000_000)  # the states arrive long after the call
            for node, z in zip(pair.mine.nodes, late, strict=True):
                node.init(z)
            pair.loop.run(10)
            pair.loop.backward(pair.learned[0])
        torch.cuda.synchronize()
        for node, z in zip(pair.twin.nodes, late, strict=True):
            node.init(z)
        pair.plain.run(10)
        pair.plain.backward(pair.learned[1])
        pair.check()
