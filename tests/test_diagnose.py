"""Curvature, rates and certificates against dense float64 Hessians and closed forms."""

import math
import re

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, vmap

import networks
import pyromancy as pyro
from networks import KINDS, Chain, autograd_loop, convolutional, randomize, states_of
from pyromancy import nodes

BATCH = 7
EXACT = {"rtol": 1e-10, "atol": 1e-10}
NETWORKS = {
    "standard": lambda: Chain(KINDS[:1] * 5, (4, 6, 5, 7, 3)),
    "every-covariance": lambda: Chain(KINDS[:1] + KINDS, (4, 6, 5, 7, 3)),
    "linear": lambda: Chain(KINDS[:1] * 4, (3, 5, 6, 2), activation=identity),
    "linear-every-covariance": lambda: Chain(KINDS[:1] + KINDS[::-1], (4, 6, 5, 7, 3), activation=identity),
    "relu": lambda: Chain(KINDS[:1] * 4, (3, 5, 6, 2), activation=torch.relu),
    "convolutional": lambda: convolutional()[0],
    "positions": lambda: Positions(),
    "skip": lambda: Skip(),
}
LINEAR = ("linear", "linear-every-covariance", "positions", "skip")
SMOOTH = ("standard", "every-covariance", *LINEAR)
some = pytest.mark.parametrize("name", NETWORKS)
linear = pytest.mark.parametrize("name", LINEAR)
# PyTorch's own nodes of a squared error and a few others have no batching rule, which it says where it is slow
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


def identity(z):
    return z


class Positions(networks.Program):
    """A full covariance that is shared by positions: the energy takes a view of the state with its axes moved."""

    def __init__(self):
        shapes = (2, 3, 4), (3, 3, 4), (2, 3, 4)
        super().__init__(
            nodes.FloatNode(*shapes[0]),
            nodes.MultivariateGaussianNode(3, None, None),
            nodes.FactorizedGaussianNode(2, None, None),
            up=nn.Conv2d(2, 3, 3, padding=1),
            top=nn.Conv2d(3, 2, 3, padding=1),
        )
        self.shapes = shapes

    def energy(self):
        below, hidden, above = self.nodes
        return hidden.energy(self.up(below.value)) + 0.7 * above.energy(self.top(hidden.value))


class Skip(networks.Program):
    """A state that predicts two others, one of them predicted by two; terms that are weighed."""

    def __init__(self):
        super().__init__(
            *networks.standard(3, 4, 5, 4, 2), first=nn.Linear(3, 4), second=nn.Linear(4, 5),
            third=nn.Linear(5, 4), top=nn.Linear(4, 2),
        )  # fmt: skip

    def energy(self):
        x, a, b, c, y = self.nodes
        both = self.third(b.value) + a.value
        return (
            c.energy(both)
            + 2 * a.energy(self.first(x.value))
            + b.energy(self.second(a.value)) / 3
            + y.energy(self.top(c.value))
        )


def made(name, batch=BATCH):
    """A network in states that are no fixed point of anything, and its free states; the ends are clamped."""
    network = NETWORKS[name]()
    for node in network.nodes:
        shape = (d or 3 + i for i, d in enumerate(node.shape))
        if isinstance(network, Positions):
            shape = network.shapes[[*network.nodes].index(node)]
        node.init(torch.randn(batch, *shape, dtype=torch.float64))
    if name == "convolutional":
        network.nodes[1].init(torch.randn(batch, 4, 8, 8))
    for node in network.nodes:
        if hasattr(node, "logvar"):
            node.logvar.data.normal_(std=0.3)
        if hasattr(node, "covar_cf_logdiag"):
            node.covariance = networks.covariance_of(node.size)
    return network, states_of(network, (0, len(network.nodes) - 1))


class Energy(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self):
        return self.network.energy()


def dense(network, free):
    """Energy, gradient and Hessian of every sample, by `torch.func` of one sample."""
    names = {id(p): n for n, p in Energy(network).named_parameters()}
    sizes, shapes = [p[0].numel() for p in free], [p.shape[1:] for p in free]
    held = [node.value for node in network.nodes if not any(node.value is p for p in free)]
    rows = torch.cat([p.detach().flatten(1) for p in free], 1)
    module = Energy(network)

    def one(row, *clamped):
        parts = [t.reshape(1, *s) for t, s in zip(row.split(sizes), shapes, strict=True)]
        replaced = {names[id(p)]: t for p, t in zip(free, parts, strict=True)}
        replaced |= {names[id(p)]: t.unsqueeze(0) for p, t in zip(held, clamped, strict=True)}
        return functional_call(module, replaced, ()).squeeze(0)

    arguments = rows, *(p.detach() for p in held)
    return tuple(vmap(f)(*arguments).detach() for f in (one, grad(one), hessian(one)))


def fall(slopes, curvature):
    """``1/2 g^T H^-1 g``, what a quadratic energy falls to its minimum."""
    return 0.5 * (slopes * torch.linalg.solve(curvature, slopes)).sum(1)


def size_of(free):
    return sum(p[0].numel() for p in free)


@some
def test_extreme_eigenvalues(name):
    """All of them, to rounding, with as many products as there are states; the condition and the rate follow."""
    network, free = made(name, 2 if name == "convolutional" else BATCH)
    found = pyro.diagnose(network.energy, free, products=size_of(free), tol=0.0)
    energies, _, curvature = dense(network, free)
    eigenvalues = torch.linalg.eigvalsh(curvature)
    low, high = eigenvalues[:, 0], eigenvalues[:, -1]
    torch.testing.assert_close(found.energy, energies, **EXACT)
    torch.testing.assert_close(found.lambda_max, high, **EXACT)
    torch.testing.assert_close(found.lambda_min, low, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.max_rate, 2 / high, **EXACT)
    torch.testing.assert_close(found.condition, (high / low).where(low > 0, math.inf), rtol=1e-7, atol=0)


@some
@pytest.mark.parametrize("products", [1, 2, 5, 12])
def test_ritz_values_lie_inside_the_spectrum(name, products):
    """And there is an eigenvalue within their error bars, however few products there were."""
    network, free = made(name, 2 if name == "convolutional" else BATCH)
    found = pyro.diagnose(network.energy, free, products=products, tol=0.0)
    eigenvalues = torch.linalg.eigvalsh(dense(network, free)[2])
    assert (found.lambda_max <= eigenvalues[:, -1] + 1e-12).all()
    assert (found.lambda_min >= eigenvalues[:, 0] - 1e-12).all()
    for value, error in ((found.lambda_max, found.lambda_max_error), (found.lambda_min, found.lambda_min_error)):
        assert ((eigenvalues - value.unsqueeze(1)).abs().amin(1) <= error + 1e-12).all()


@some
def test_the_default_is_within_its_tolerance(name):
    network, free = made(name, 2 if name == "convolutional" else BATCH)
    high = torch.linalg.eigvalsh(dense(network, free)[2])[:, -1]
    rates = pyro.max_rate(network.energy, free, per_sample=True)
    torch.testing.assert_close(rates, 2 / high, rtol=1e-2, atol=0)
    assert pyro.max_rate(network.energy, free) == rates.min()


@some
def test_samples_are_diagnosed_by_themselves(name):
    """Whatever batch is around them: also where some are done before others."""
    network, free = made(name)
    together = pyro.diagnose(network.energy, free, steps=9, lr=0.05, tol=0.03)
    values = [node.value.detach().clone() for node in network.nodes]
    for i in range(0, BATCH, 3):
        for node, value in zip(network.nodes, values, strict=True):
            node.init(value[i : i + 1])
        alone = pyro.diagnose(network.energy, free, steps=9, lr=0.05, tol=0.03)
        for field in ("energy", "lambda_max", "lambda_min", "lambda_max_error", "condition", "max_rate", "share"):
            torch.testing.assert_close(getattr(alone, field), getattr(together, field)[i : i + 1], rtol=1e-9, atol=1e-9)


@linear
def test_equilibrium_of_linear_networks(name):
    """F* = F - 1/2 g^T H^-1 g, from the dense Hessian; and no state moved."""
    network, free = made(name)
    energies, slopes, curvature = dense(network, free)
    torch.testing.assert_close(
        pyro.diagnose(network.energy, free).equilibrium, energies - fall(slopes, curvature), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("widths", [(3, 4, 2), (2, 5, 3, 4), (4, *[6] * 20, 2)], ids=len)
def test_equilibrium_of_linear_chains(widths):
    """F* = 1/2 r^T S^-1 r with S = I + sum P_l P_l^T, P_l = W_L ... W_l: at any depth, in a few products."""
    network = Chain(KINDS[:1] * len(widths), widths, activation=identity, bias=False)
    randomize(network, BATCH)
    x, y = network.nodes[0].value.detach(), network.nodes[-1].value.detach()
    total = torch.eye(widths[-1], dtype=torch.float64)
    s = total.clone()
    for edge in [*network.edges][:0:-1]:
        total = total @ edge.weight.detach()
        s += total @ total.T
    r = y - x @ (total @ network.edges[0].weight.detach()).T
    expected = 0.5 * (r * torch.linalg.solve(s, r.T).T).sum(1)
    found = pyro.diagnose(network.energy, states_of(network, (0, len(widths) - 1)))
    torch.testing.assert_close(found.equilibrium, expected, **EXACT)
    assert (found.gap >= found.energy - expected).all()


def test_the_hand_value():
    """X = 1, W = (2, 3), y = 1: F* = 1.25, at z = 0.5; H = 1 + 9, and from z = 2, F = 12.5."""
    network = Chain(KINDS[:1] * 3, (1, 1, 1), activation=identity, bias=False)
    for edge, weight in zip(network.edges, (2.0, 3.0), strict=True):
        edge.weight.data.fill_(weight)
    for node, value in zip(network.nodes, (1.0, 2.0, 1.0), strict=True):
        node.init(torch.tensor([[value]]))
    found = pyro.diagnose(network.energy, [network.nodes[1].value], steps=1, lr=0.05)
    assert found.equilibrium.item() == pytest.approx(1.25, abs=1e-10)
    assert found.lambda_max.item() == pytest.approx(10, abs=1e-10)
    assert found.max_rate.item() == pytest.approx(0.2, abs=1e-10)
    assert found.share.item() == pytest.approx(0.5, abs=1e-10)
    assert found.gap.item() == pytest.approx(0.5 * 15**2, abs=1e-10)  # |g|^2 / 2m, m = 1


@linear
@pytest.mark.parametrize("moved", [0.0, 1e-3, 1.0, 100.0])
def test_the_gap_is_certified(name, moved):
    """Never below the true gap, from far away and close to equilibrium; and above it by the condition of the errors."""
    for trial in range(4):
        torch.manual_seed(trial)
        network, free = made(name)
        _, slopes, curvature = dense(network, free)
        step = torch.linalg.solve(curvature, slopes)
        step -= moved * torch.randn_like(step)
        with torch.no_grad():
            for p, s in zip(free, step.split([p[0].numel() for p in free], 1), strict=True):
                p -= s.reshape(p.shape)
        _, slopes, _ = dense(network, free)
        true = fall(slopes, curvature)
        found = pyro.diagnose(network.energy, free)
        assert (found.gap >= true * (1 - 1e-9) - 1e-25).all()  # at equilibrium gradients are rounding
        assert found.certificate == "the curvature of errors"
        assert found.gap.isfinite().all()


@pytest.mark.slow
def test_the_gap_of_nonlinear_networks_holds_to_second_order():
    """It is no less than what the local quadratic falls, and infinite where that has no minimum."""
    convex = 0
    for trial in range(12):
        torch.manual_seed(trial)
        network, free = made(("standard", "every-covariance")[trial % 2])
        found = pyro.diagnose(network.energy, free)
        _, slopes, curvature = dense(network, free)
        lowest = torch.linalg.eigvalsh(curvature)[:, 0]
        true = fall(slopes, curvature).where(lowest > 0, math.inf)
        assert (found.gap >= true * (1 - 1e-6)).all()
        assert found.gap[lowest < 0].isinf().all()
        convex += found.gap.isfinite().sum()
    assert convex > 20  # and most of them are certified where there is a minimum


def test_hand_written_energies():
    """They have no node that tells its errors: all eigenvalues certify, or nothing does."""
    network, free = made("linear")

    def energy():
        above, total = network.nodes[0].value, 0.0
        for edge, node in zip(network.edges, network.nodes[1:], strict=True):
            total = total + 0.5 * (node.value - edge(above)).square().sum(1)
            above = node.value
        return total

    energies, slopes, curvature = dense(network, free)
    true = fall(slopes, curvature)
    found = pyro.diagnose(energy, free, tol=0.0)
    assert found.certificate == "the smallest of all eigenvalues"
    assert ((true <= found.gap) & (found.gap < math.inf)).all()
    torch.testing.assert_close(found.equilibrium, energies - true, rtol=1e-9, atol=1e-9)
    few = pyro.diagnose(energy, free, products=3)
    assert few.gap.isinf().all()
    assert few.equilibrium is None
    assert "cannot be certified: the energy has none of a Gaussian node" in str(few)


def test_states_that_predict_one_another_are_not_certified():
    a, b = (node.double() for node in networks.standard(3, 3))
    for node in (a, b):
        node.init(torch.randn(BATCH, 3, dtype=torch.float64))
    edge = 0.2 * torch.randn(3, 3, dtype=torch.float64)
    states = [a.value, b.value]
    found = pyro.diagnose(lambda: a.energy(b.value @ edge) + b.energy(a.value @ edge), states, products=2)
    assert "in a circle" in found.certificate
    assert found.gap.isinf().all()


@linear
def test_share_is_what_descent_does(name):
    """f = sum w_k f(lambda_k) = 1 - g_0 . g_T / |g_0|^2 for descent: measured on the loop itself."""
    network, free = made(name)
    lr = 0.5 * pyro.max_rate(network.energy, free)
    for steps in (0, 1, 5, 40):
        found = pyro.diagnose(network.energy, free, steps=steps, lr=lr)
        begun = [p.detach().clone() for p in free]
        _, before, _ = dense(network, free)
        autograd_loop(network.energy, free, steps, lr)
        _, after, _ = dense(network, free)
        torch.testing.assert_close(found.share, 1 - (before * after).sum(1) / before.square().sum(1), **EXACT)
        with torch.no_grad():
            for p, start in zip(free, begun, strict=True):
                p.copy_(start)


def test_share_at_both_ends():
    """From the forward sweep 5 steps at rate 1e-3 are backpropagation-like, and a thousand stable ones are not."""
    network, free = made("linear")
    network.init(*networks.data_for(network, BATCH))
    lr = 0.9 * pyro.max_rate(network.energy, free)
    near, far = (
        pyro.diagnose(network.energy, free, steps=5, lr=1e-3),
        pyro.diagnose(network.energy, free, steps=1000, lr=lr),
    )
    assert (near.share < 0.1).all()
    assert "backpropagation-like" in str(near)
    assert (far.share > 0.9).all()
    assert "of the way, equilibrium" in str(far)
    between = pyro.diagnose(network.energy, free, steps=1, lr=lr / 2)
    assert "in between" in str(between)
    unstable = pyro.diagnose(network.energy, free, steps=5, lr=2 * lr)
    assert unstable.share.isnan().any()
    assert "diverge" in str(unstable)
    for p in free:  # at equilibrium nothing is left of the way
        p.data.zero_()
    network.nodes[0].init(torch.zeros(BATCH, 3))
    network.nodes[-1].init(torch.zeros(BATCH, 2))
    for edge in network.edges:
        nn.init.zeros_(edge.bias)
    there = pyro.diagnose(network.energy, free, steps=0, lr=0.1)
    assert (there.share == 1).all()
    assert (there.gap == 0).all()


@linear
def test_descent_is_stable_up_to_the_rate(name):
    """At 0.99 of the rate it converges, at 1.01 it diverges, for the sample whose rate it is."""
    network, free = made(name, 1)
    rate = pyro.max_rate(network.energy, free, products=size_of(free), tol=0.0)
    start = [p.detach().clone() for p in free]
    least = pyro.diagnose(network.energy, free).equilibrium

    def after(lr):
        with torch.no_grad():
            for p, s in zip(free, start, strict=True):
                p.copy_(s)
        autograd_loop(network.energy, free, 700, lr)
        return (network.energy().detach() - least).item()

    assert after(0.99 * rate) < 1e-6
    assert after(1.01 * rate) > 1e6


def test_the_rate_of_a_batch_is_that_of_an_inference_loop():
    """Float32, on the networks that run in one operator: a rate below is stable, one well above is not."""
    network, free = made("linear")
    network.float()
    rate = pyro.max_rate(network.energy, free)
    assert torch.tensor(rate).isfinite()
    loop = pyro.InferenceLoop(network.energy, free, lr=0.99 * rate)
    loop.run(3000)
    found = pyro.diagnose(network.energy, free)
    torch.testing.assert_close(found.energy, found.equilibrium, rtol=1e-4, atol=1e-5)
    loop.lr = 1.05 * rate
    with pytest.warns(UserWarning, match=f"are not finite after .* Take a rate below {rate:.3g}, "):
        loop.run(3000)
    assert not (loop.energy().double() < 1e3).all()


def test_nonconvex_energies_have_no_condition():
    """F = 1/4 (z^2 - 1)^2 bends down at 0 and up at 1, where F'' = 2."""
    z = torch.tensor([[0.0, 1.0], [1.0, 1.0]], requires_grad=True)
    found = pyro.diagnose(lambda: 0.25 * (z.square() - 1).square().sum(1), [z])
    torch.testing.assert_close(found.lambda_min, torch.tensor([-1.0, 2.0]).double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.lambda_max, torch.tensor([2.0, 2.0]).double(), rtol=1e-5, atol=1e-5)
    assert found.condition.tolist() == [math.inf, pytest.approx(1)]
    assert found.gap[0].isinf()
    assert "Not convex, or flat in some direction, around 1 of 2 samples" in str(found)
    assert found.equilibrium is None


def test_flat_and_linear_energies():
    """Without curvature every rate is stable, and there is no single minimum."""
    z = torch.randn(3, 4, requires_grad=True)
    weight = torch.randn(4)
    assert pyro.max_rate(lambda: z @ weight, [z]) == math.inf
    flat = pyro.diagnose(lambda: (z @ weight).square(), [z])
    assert flat.condition.isinf().all()
    assert "around 3 of 3 samples" in str(flat)


@pytest.mark.parametrize("kind", KINDS)
def test_every_node_is_twice_differentiable(kind):
    """A state alone under a constant prediction: the Hessian is its precision."""
    node = networks.node(kind, 4)
    if kind != "StandardGaussianNode":
        node.covariance = networks.covariance_of(4)
    node.init(torch.randn(BATCH, 4, dtype=torch.float64))
    precision = torch.linalg.eigvalsh(node.covariance.detach()).reciprocal()
    offset = node.value.detach() - 1
    found = pyro.diagnose(lambda: node.energy(offset), [node.value])
    torch.testing.assert_close(found.lambda_max, precision.max().expand(BATCH), **EXACT)
    torch.testing.assert_close(found.lambda_min, precision.min().expand(BATCH), **EXACT)
    torch.testing.assert_close(found.gap, found.energy - found.equilibrium, **EXACT)  # the bound is attained


@pytest.mark.parametrize("kinked", [torch.relu, nn.LeakyReLU(0.1), torch.abs, nn.Hardtanh(), lambda z: z.clamp(min=0)])
def test_kinks_are_told(kinked):
    network = Chain(KINDS[:1] * 4, (3, 5, 6, 2), activation=kinked)
    randomize(network, BATCH)
    found = pyro.diagnose(network.energy, states_of(network, (0, 3)))
    assert found.kinks
    assert found.equilibrium is None
    assert "kinks" in str(found)


def test_laplace_nodes_have_kinks_and_no_curvature():
    """Away from the kink |z - mu| is linear: the curvature is that of the Gaussian above, W^T W."""
    below, above = nodes.LaplaceNode(3).double(), nodes.StandardGaussianNode(5).double()
    edge = nn.Linear(3, 5, dtype=torch.float64)
    below.init(torch.randn(BATCH, 3)), above.init(torch.randn(BATCH, 5))
    origin = torch.zeros(BATCH, 3, dtype=torch.float64)
    found = pyro.diagnose(lambda: below.energy(origin) + above.energy(edge(below.value)), [below.value], products=1)
    told = "The Laplace energies of params[0] pull as much at any distance: curvature, rates and the share say nothing"
    with pytest.warns(UserWarning, match=re.escape(told)) as caught:
        whole = pyro.max_rate(lambda: below.energy(origin) + above.energy(edge(below.value)), [below.value])
    assert caught[0].filename == __file__
    highest = torch.linalg.matrix_norm(edge.weight.detach(), 2).square().item()
    assert whole == pytest.approx(2 / highest, rel=1e-9)
    assert found.kinks
    assert found.gap.isinf().all()
    assert "params[0] has no energy of a Gaussian node" in found.certificate
    assert found.unseen.startswith(told)
    assert found.unseen + "." in str(found)


def test_laplace_nodes_that_curvature_does_not_see_are_told():
    """Free ones, and those that free states predict, with the least of their scales; clamped data's are not meant."""
    kinds = nodes.LaplaceNode, nodes.StandardGaussianNode, nodes.LaplaceNode
    (low, middle, high), scale = (kind(3).double() for kind in kinds), torch.tensor([0.5, 0.25, 2.0])
    high.scale = scale
    edges = [nn.Linear(3, 3, dtype=torch.float64) for _ in range(2)]
    for node in (low, middle, high):
        node.init(torch.randn(BATCH, 3))
    origin = torch.zeros(BATCH, 3, dtype=torch.float64)

    def energy():
        return low.energy(origin) + middle.energy(edges[0](low.value)) + high.energy(edges[1](middle.value))

    for free, told in (
        ([low.value, middle.value], "of params[0], what params[1] predicts pull.*, the least of which is 0.25"),
        ([middle.value], "of what params[0] predicts pull.*, the least of which is 0.25"),
        ([low.value], "of params[0] pull.*, the least of which is 1"),
    ):
        found = pyro.diagnose(energy, free)
        assert re.search(told.replace("[", r"\["), found.unseen)
    silent = pyro.diagnose(lambda: middle.energy(edges[0](origin)), [middle.value])
    assert silent.unseen == ""
    assert "Laplace" not in str(silent)


def test_smooth_energies_have_no_kinks():
    for name in SMOOTH:
        network, free = made(name)
        assert not pyro.diagnose(network.energy, free).kinks


class Unlucky(Exception):
    pass


@pytest.mark.parametrize("fails", [False, True], ids=["", "raises"])
@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("function", [pyro.diagnose, pyro.max_rate])
def test_nothing_of_the_callers_changes(function, grad_mode, fails):
    """States, what they are made of, gradients, random numbers, modes; also where the energy draws some, or raises."""
    network, free = made("every-covariance")
    network.edges[1].eval()
    dropout = nn.Dropout(0.1)
    calls = 0

    def energy():
        nonlocal calls
        calls += 1
        noise = torch.rand(())
        total = network.energy() + 0 * noise + 0 * dropout(free[0]).sum(1)
        if fails:
            raise Unlucky
        return total

    for p in network.parameters():
        p.grad = torch.randn_like(p)
    seen = {
        n: (p, p.data_ptr(), p._version, p.detach().clone(), p.grad, p.grad.clone())
        for n, p in network.named_parameters()
    }
    modes = [m.training for m in network.modules()]
    random = torch.get_rng_state()
    with grad_mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        if fails:
            with pytest.raises(Unlucky):
                function(energy, free)
        else:
            function(energy, free)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert calls == 1
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in network.modules()] == modes
    for name, p in network.named_parameters():
        same, address, version, value, gradient, slope = seen[name]
        assert p is same
        assert (p.data_ptr(), p._version) == (address, version)
        assert torch.equal(p, value)
        assert p.grad is gradient
        assert torch.equal(p.grad, slope)
        assert p.requires_grad


def test_results_repeat():
    """The start vector is drawn from a generator of its own."""
    network, free = made("standard")
    first = pyro.diagnose(network.energy, free)
    torch.manual_seed(1)
    again = pyro.diagnose(network.energy, free)
    assert torch.equal(first.lambda_max, again.lambda_max)
    assert torch.equal(first.lambda_min, again.lambda_min)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.square().sum(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return 2 * slope.unsqueeze(1) * ctx.saved_tensors[0]


def test_bad_arguments_are_named():
    z, other = (torch.randn(5, 3, requires_grad=True) for _ in range(2))
    norm = nn.BatchNorm1d(3)

    def energy():
        return z.square().sum(1)

    def refused(error, match, energy=energy, params=(z,), **options):
        with pytest.raises(error, match=match):
            pyro.diagnose(energy, params, **options)

    refused(TypeError, "energy must be callable, got int", 3)
    refused(TypeError, "energy must return a tensor, got float", lambda: 1.0)
    refused(ValueError, r"one energy per sample, \[5\] .*got shape \(\); leave the sum", lambda: energy().sum())
    refused(ValueError, r"got shape \(5, 3\)", lambda: z.square())
    refused(TypeError, "energy must return float32 or float64, got torch.bfloat16", lambda: energy().bfloat16())
    refused(ValueError, "energy must be differentiable", lambda: energy().detach())
    refused(ValueError, r"params\[1\] must be a state that the energy depends on", params=(z, other))
    refused(RuntimeError, "energy must be differentiable twice", lambda: Once.apply(z))
    refused(ValueError, "must keep samples apart.*batch normalisation", lambda: norm(z).exp().sum(1))
    refused(TypeError, "params must be an iterable of tensors", params=z)
    refused(ValueError, "at least one tensor", params=())
    refused(TypeError, "params must hold tensors.*got str", params=("z",))
    refused(ValueError, "every state once", params=(z, z))
    for dtype in (torch.float16, torch.bfloat16, torch.complex64):
        half = z.detach().to(dtype).requires_grad_()
        refused(TypeError, rf"params\[0\] must be of float32 or float64.*got {dtype}", params=(half,))
    refused(ValueError, r"params\[0\] must require gradients", params=(z.detach(),))
    refused(
        ValueError, r"params\[0\] must be of shape \[B, ...\].*got \(\)", params=(z[0, 0].detach().requires_grad_(),)
    )
    refused(
        ValueError,
        r"params\[1\] must be of shape \[5, ...\].*got \(4, 3\)",
        params=(z, torch.randn(4, 3, requires_grad=True)),
    )
    refused(ValueError, r"params\[0\] must be of shape .*got \(0,\)", params=(nodes.FloatNode(3).value,))
    refused(ValueError, "products must be an int, 1 or more, got 0", products=0)
    refused(ValueError, "tol must be a number, 0 or more, got -1", tol=-1)
    refused(ValueError, "steps and lr must be given together", steps=3)
    refused(ValueError, "steps must be an int, 0 or more, got -1", steps=-1, lr=0.1)
    refused(ValueError, "lr must be a finite number, 0 or more, got nan", steps=1, lr=math.nan)


def test_a_diagnosis_is_frozen():
    network, free = made("linear")
    found = pyro.diagnose(network.energy, free)
    with pytest.raises(AttributeError):
        found.share = None


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("function", [pyro.diagnose, pyro.max_rate])
def test_energies_that_are_not_finite_are_named(function, value):
    z = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    z.data[3, 1] = value
    with pytest.raises(ValueError, match=f"energy must be finite, got {value} for sample 3$"):
        function(lambda: 0.5 * z.square().sum(1), [z])


def test_states_before_their_start():
    net = pyro.networks.mlp([3, 4, 2])
    with pytest.raises(ValueError, match=r"got \(0,\), which is a state before its first init"):
        pyro.diagnose(net.energy, net.e_params())


@pytest.mark.parametrize("target", [True, False])
def test_a_missing_target_is_told(target):
    """Without one no node is off its prediction, whatever the weights are: nothing is left to learn from."""
    net, x = pyro.networks.mlp([3, 4, 2]).double(), torch.randn(5, 3)
    net.start(x, torch.randn(5, 2) if target else None)
    assert ("a target may be missing" in str(pyro.diagnose(net.energy, net.e_params()))) != target
