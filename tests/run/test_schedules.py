"""Steps of graphs, whose products are theirs and what lies between fused: as autograd's, and no more than they need."""

import warnings

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import pyromancy as pyro
from descent import assert_as_autograd, free
from networks import Row
from numerics import same_bits
from pyromancy.capture.partition import module_of
from pyromancy.functional import gaussian_energy
from pyromancy.nodes import FactorizedGaussianNode, StandardGaussianNode
from pyromancy.run import graph

aten = torch.ops.aten

ACTIVATIONS = {
    "relu": F.relu, "relu6": F.relu6, "leaky relu": lambda x: F.leaky_relu(x, 0.2), "elu": lambda x: F.elu(x, 1.3),
    "selu": F.selu, "celu": F.celu, "gelu": F.gelu, "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu, "mish": F.mish, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
    "softplus": lambda x: F.softplus(x, 1.4),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.7), "hardswish": F.hardswish, "square": torch.square, "abs": torch.abs,
    "power": lambda x: (0.3 * x) ** 3, "exp": lambda x: torch.exp(-0.2 * x),
    "root": lambda x: torch.sqrt(x.square() + 1),
    "log": lambda x: torch.log(x.square() + 1), "quotient": lambda x: 1 / (2 + x.square()), "turned": lambda x: 2 - x,
    "softsign": F.softsign, "clamp": lambda x: x.clamp(-0.3, 0.4), "negative": lambda x: -x / 3,
}  # fmt: skip
POOLS = {
    "max": lambda x: F.max_pool2d(x, 2),
    "max, 3 x 2": lambda x: F.max_pool2d(x, (3, 2)),
    "max, overlapping": lambda x: F.max_pool2d(x, 3, 2),
    "max, padded": lambda x: F.max_pool2d(x, 2, 2, 1),
    "max, a rest": lambda x: F.max_pool2d(x[..., :5, :], 2),
    "max, ceil": lambda x: F.max_pool2d(x, 4, ceil_mode=True),
    "max, dilated": lambda x: F.max_pool2d(x, 2, dilation=2),
    "max with places": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "max of all": lambda x: F.adaptive_max_pool2d(x, 2),
    "mean": lambda x: F.avg_pool2d(x, 2),
    "mean, 2 x 3": lambda x: F.avg_pool2d(x, (2, 3)),
    "mean, overlapping": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "mean, a divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "mean of all": lambda x: F.adaptive_avg_pool2d(x, 1),
    "of what is activated": lambda x: F.max_pool2d(torch.tanh(x), 2),
    "of what is pooled": lambda x: F.max_pool2d(F.avg_pool2d(x, 2), 3),
    "twice": lambda x: F.max_pool2d(x, 2) - F.avg_pool2d(x, 2),
}


def data(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def schedule_of(loop, velocities=False):
    return loop._choice.executor._schedules[velocities, True][0]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_between_convolutions(name):
    torch.manual_seed(1)
    f, conv = ACTIVATIONS[name], nn.Conv2d(3, 4, 3, padding=1).double()
    z, mu, target = free(2, 3, 5, 7), data(2, 3, 5, 7), data(2, 4, 5, 7)
    explained = assert_as_autograd(
        lambda: gaussian_energy(z, mu) + gaussian_energy(target, f(conv(f(z)))), [z], list(conv.parameters())
    )
    assert explained.startswith("executor: graph")


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.7}, {"momentum": 0.7, "dampening": 0.2}, {"momentum": 0.6, "nesterov": True}],
    ids=str,
)
@pytest.mark.parametrize("name", POOLS)
def test_pooling(name, options):
    torch.manual_seed(2)
    pool, conv = POOLS[name], nn.Conv2d(3, 4, 3, padding=1).double()
    z = free(2, 3, 6, 12)
    with torch.no_grad():
        shape = pool(conv(z)).shape
    y, target, top = free(*shape), data(*shape[:1], 5), nn.Linear(shape.numel() // shape[0], 5).double()
    energy = lambda: (  # noqa: E731
        0.5 * z.square().sum((1, 2, 3)) + gaussian_energy(y, pool(conv(z))) + gaussian_energy(target, top(y.flatten(1)))
    )
    explained = assert_as_autograd(energy, [z, y], [*conv.parameters()], **options)
    assert explained.startswith("executor: graph")


def test_values_and_their_negatives():
    """Which one group may read of another, but only where that comes before it."""
    z = free(2, 3, 4)
    centred = lambda: z - z.mean(2, keepdim=True)  # noqa: E731
    energy = lambda: 0.5 * (z - (0.0 + F.softplus(centred()) + (2 - -centred()))).square().sum((1, 2))  # noqa: E731
    assert assert_as_autograd(energy, [z]).startswith("executor: graph")


@pytest.mark.parametrize("pool", [lambda x: F.max_pool2d(x, 2), lambda x: F.avg_pool2d(x, 2)], ids=["max", "mean"])
def test_what_is_pooled_goes_to_a_convolution(pool):
    conv = nn.Conv2d(3, 4, 3, padding=1).double()
    z, target = free(2, 3, 6, 4), data(2, 4, 3, 2)
    energy = lambda: gaussian_energy(target, conv(pool(F.relu(z)))) + 0.5 * z.square().sum((1, 2, 3))  # noqa: E731
    assert assert_as_autograd(energy, [z], [*conv.parameters()]).startswith("executor: graph")


def test_maxima_that_are_equal_send_their_gradient_to_the_first():
    z = nn.Parameter(torch.tensor([[[[1.0, 1, 0, 2], [1, 1, 2, 2]]]]).double())
    assert_as_autograd(lambda: (3 * F.max_pool2d(z, 2)).square().sum((1, 2, 3)), [z], steps=1)
    assert (z == torch.tensor([[1.0, 1, 0, 2], [1, 1, 2, 2]])).sum() == 6


def test_steps_that_cannot_be_scheduled_are_run_by_operators_of_their_own(monkeypatch):
    class Failing(graph.Ends):
        def __init__(self, of, states, velocities=False, *args, **options):
            super().__init__(of, states, velocities, *args, **options)
            if velocities:
                raise RuntimeError

    monkeypatch.setattr(graph, "Ends", Failing)
    conv, z, y = nn.Conv2d(3, 4, 3, padding=1).double(), free(2, 3, 6, 4), data(2, 4, 6, 4)
    energy = lambda: gaussian_energy(y, conv(F.gelu(z)))  # noqa: E731
    explained = assert_as_autograd(energy, [z], [*conv.parameters()], momentum=0.5)
    assert explained.startswith("executor: graph")
    assert "element-wise operators, states' updates among them" not in explained


class Vgg(Row):
    """Two convolutions with pooling, and a Linear edge."""

    def __init__(self, activation=nn.ReLU):
        edges = (
            nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2)),
            nn.Sequential(activation(), nn.Conv2d(4, 6, 3, padding=1), nn.MaxPool2d(2)),
            nn.Sequential(activation(), nn.Flatten(), nn.Linear(24, 5)),
        )
        super().__init__([StandardGaussianNode(*s) for s in [(3, 8, 8), (4, 4, 4), (6, 2, 2), (5,)]], edges)


def running(net, batch=3, dtype=torch.float64, **options):
    net.to(dtype).start(torch.rand(batch, 3, 8, 8, dtype=dtype), torch.rand(batch, 5, dtype=dtype))
    return pyro.InferenceLoop(net.energy, net.free(), lr=0.1, **options)


def test_a_step_does_what_states_need_and_no_more():
    """Two products an edge but for the first, which no state enters, and a call for every node and activation."""
    loop = running(Vgg())
    loop.run(2)
    targets = [str(n.target) for n in schedule_of(loop).graph.nodes if n.op == "call_function"]
    assert [targets.count(f"aten.{name}") for name in ("convolution.default", "convolution_backward.default")] == [1, 1]
    assert targets.count("aten.mm.out") == 2  # the bias is added with the error
    assert schedule_of(loop).fused[0] == 2 + 2 + 1  # activations, nodes, the output's error
    allocating = {"aten.convolution.default", "aten.convolution_backward.default"}
    views = {"aten.view.default", "aten._unsafe_view.default", "aten.slice.Tensor", "aten.expand.default"}
    assert {t for t in targets if t.startswith("aten.")} == allocating | views | {"aten.mm.out"} - (
        views - set(targets)
    )
    assert "in 5 of these" in loop.explain()


def test_memory_is_used_again_by_what_comes_later():
    loop = running(Vgg(nn.Tanh))
    loop.run(1)
    schedule = schedule_of(loop)
    blocks = {m.block for m in schedule.memory}
    assert len(schedule.blocks) == len(blocks) < len({(m.block, m.shape) for m in schedule.memory})


def test_states_move_at_once():
    """Each by the gradient at all states before the step, also where states predict one another in a circle."""
    a, b = free(3, 2, 4, 4), free(3, 2, 4, 4)
    f, g = (nn.Conv2d(2, 2, 3, padding=1).double() for _ in range(2))
    energy = lambda: gaussian_energy(a, f(torch.tanh(b))) + gaussian_energy(b, g(a * b))  # noqa: E731
    assert assert_as_autograd(energy, [a, b], [*f.parameters()], steps=6).startswith("executor: graph")
    both = lambda: (a.square() * b.square()).sum((1, 2, 3)) + (a.sum((2, 3)) - b.sum((2, 3))).square().sum(1)  # noqa: E731
    assert_as_autograd(both, [a, b], steps=6)


@pytest.mark.parametrize(
    "kind", ["LayerNorm", "GroupNorm", "BatchNorm", "embedding", "transposed", "grouped", "1d", "unfolded"]
)
def test_other_edges(kind):
    torch.manual_seed(3)
    z, y = free(2, 4, 6, 6), data(2, 4, 6, 6)
    edge = {
        "LayerNorm": nn.LayerNorm(6), "GroupNorm": nn.GroupNorm(2, 4), "BatchNorm": nn.BatchNorm2d(4).eval(),
        "embedding": nn.Embedding(5, 6), "transposed": nn.ConvTranspose2d(4, 4, 3, padding=1),
        "grouped": nn.Conv2d(4, 4, 3, padding=2, groups=2, dilation=2), "1d": nn.Conv1d(4, 4, 3, padding=1),
        "unfolded": nn.Unfold(3, padding=1),
    }[kind].double()  # fmt: skip
    tokens = torch.randint(5, (2, 4, 6))
    predicted = {
        "embedding": lambda: edge(tokens) * z, "1d": lambda: edge(z.flatten(2)).view_as(y),
        "unfolded": lambda: edge(z).view(2, 4, 9, 6, 6).mean(2),
    }.get(kind, lambda: edge(F.gelu(z)))  # fmt: skip
    explained = assert_as_autograd(
        lambda: gaussian_energy(y, predicted()) + 0.1 * z.square().sum((1, 2, 3)), [z], list(edge.parameters())
    )
    assert explained.startswith("executor: graph")


class Block(nn.Module):
    """Attention and two layers, residual, before which is normalised."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.norm, self.other = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def attend(self, z):
        b, t, d = z.shape
        q, k, v = self.qkv(self.norm(z)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return z + self.out(mixed.transpose(1, 2).reshape(b, t, d))


@pytest.mark.parametrize("shape", [(2, 5, 8), (1, 1, 4)])
def test_transformers(shape):
    torch.manual_seed(4)
    block = Block(shape[-1], 2).double()
    z, h, y = free(*shape), free(*shape), data(*shape)
    energy = lambda: (  # noqa: E731
        0.1 * z.square().sum((1, 2))
        + gaussian_energy(h, block.attend(z))
        + gaussian_energy(y, h + block.mlp(block.other(h)))
    )
    assert assert_as_autograd(energy, [z, h], list(block.parameters()), momentum=0.5).startswith("executor: graph")


@pytest.mark.parametrize("kind", [StandardGaussianNode, FactorizedGaussianNode])
def test_nodes_with_weights_per_sample(kind):
    torch.manual_seed(5)
    node, conv, w = kind(4, 6, 6).double(), nn.Conv2d(3, 4, 3, padding=1).double(), torch.rand(3, dtype=torch.float64)
    node.init(data(3, 4, 6, 6))
    with torch.no_grad():
        for p in pyro.get_mstep_params(node):
            p.normal_()
    z = free(3, 3, 6, 6)
    energy = lambda: w * node.energy(torch.tanh(conv(z))) + gaussian_energy(z, torch.zeros_like(z))  # noqa: E731
    learned = [*conv.parameters(), *pyro.get_mstep_params(node)]
    assert assert_as_autograd(energy, [z, node.value], learned, steps=5).startswith("executor: graph")


def test_recorded_energies_are_those_before_the_steps():
    net = Vgg(nn.Tanh)
    loop = running(net)
    start = [z.detach().clone() for z in net.free()]
    recorded = loop.run(4, record=True).energies[:-1].sum(1) * len(start[0])
    for z, before in zip(net.free(), start, strict=True):
        z.data.copy_(before)
    plain = []
    for _ in range(4):
        energy = net.energy().sum()
        plain.append(energy.detach())
        for z, g in zip(net.free(), torch.autograd.grad(energy, net.free()), strict=True):
            z.data.sub_(0.1 * g)
    torch.testing.assert_close(recorded, torch.stack(plain))


def test_states_that_lie_in_other_ways():
    """Sliced, turned, with their channels last; others of another layout are captured anew."""
    for turn in (
        lambda t: t,
        lambda t: t.mT.contiguous().mT,
        lambda t: t.contiguous(memory_format=torch.channels_last),
    ):
        z, conv, y = free(2, 3, 4, 4), nn.Conv2d(3, 2, 3, padding=1).double(), data(2, 2, 4, 4)
        z.data = turn(z.data)
        assert_as_autograd(lambda z=z, conv=conv, y=y: gaussian_energy(y, conv(F.silu(z))), [z])


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU])
def test_states_that_are_their_predictions_stay_in_the_first_run(activation):
    """Whatever products and activations are rounded to; then all move, by gradients of any size."""
    torch.manual_seed(9)
    net = Vgg(activation)
    loop = running(net, 5, torch.float32)
    first, second = (z.detach().clone() for z in net.free())
    loop.run(1)
    assert torch.equal(net.free()[0], first)
    assert (net.free()[1] != second).float().mean() > 0.9
    loop.run(1)
    assert (net.free()[0] != first).float().mean() > 0.5


@pytest.mark.parametrize("pool", [F.max_pool2d, F.avg_pool2d])
def test_windows_of_one_element(pool):
    x, z, mu = free(2, 3, 4, 4), free(2, 3, 4, 4), data(2, 3, 4, 4)
    assert_as_autograd(lambda: gaussian_energy(z, pool(x, 1)) + gaussian_energy(x, mu), [x, z])


@pytest.mark.parametrize("size", [1e6, float("inf"), float("nan")])
def test_a_sample_of_any_size_leaves_others_moving(size):
    torch.manual_seed(18)
    conv = nn.Conv2d(3, 3, 3, padding=1)

    def after(first):
        x, z = torch.ones(2, 3, 5, 5), torch.full((2, 3, 5, 5), 0.5)
        z[0], z = first, nn.Parameter(z)
        loop = pyro.InferenceLoop(lambda: gaussian_energy(z, conv(x)), [z], lr=0.1, executor="graph")
        loop.run(3)
        return z.detach()[1]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert same_bits(after(size), after(0.5))


def test_energies_that_are_means_come_as_near_to_equilibrium():
    torch.manual_seed(19)
    z, target, mu = free(2, 3, 9, 9, dtype=torch.float32), torch.randn(2, 3, 9, 9), torch.randn(2, 3, 9, 9)

    def energy():
        errors = (z - F.gelu(mu)).square() + (target - torch.tanh(z)).square()
        return 1e-4 * errors.sum((1, 2, 3))

    before = z.detach().clone()
    found = {}
    for executor in ("autograd", "graph"):
        with torch.no_grad():
            z.copy_(before)
        pyro.InferenceLoop(energy, [z], lr=2000.0, executor=executor).run(30)
        found[executor] = z.detach().clone()
    torch.testing.assert_close(found["graph"], found["autograd"], rtol=0, atol=1e-5)


def test_numbers_may_be_truth_values():
    z, target = free(2, 3), data(2, 3)
    explained = assert_as_autograd(
        lambda: gaussian_energy(z, target) + (torch.tanh(z) * True).sum(1) + (z + True).erf().sum(1), [z]
    )
    assert explained.startswith("executor: graph")


def test_groups_that_become_one_leave_no_circle():
    z, target, mu = free(2, 3), data(2, 3), data(2, 3)
    f = lambda x: sum(g(x) for g in (F.hardtanh, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu))  # noqa: E731
    explained = assert_as_autograd(lambda: gaussian_energy(target, f(z)) + gaussian_energy(z, mu), [z])
    assert explained.startswith("executor: graph")


@pytest.mark.parametrize("factors", [14, 15, 16])
def test_a_group_of_which_all_is_made_again_elsewhere_writes_nothing(factors):
    """Where there are 15, what ``z / 2`` would join is full as it is, and makes that again: it reads z anyway."""
    z = nn.Parameter(torch.rand(4, 6, dtype=torch.float64))
    expected = z.detach().clone()
    for _ in range(3):
        slope = (factors + 1) * expected**factors + 0.5
        expected -= 0.01 * torch.cos(expected ** (factors + 1) + 0.5 * expected) * slope

    def energy():
        half, product = 0.5 * z, z
        for _ in range(factors):
            product = product * z
        return torch.sin(product + half).sum(1)

    loop = pyro.InferenceLoop(energy, [z], lr=0.01, executor="graph")
    loop.run(3)
    torch.testing.assert_close(z.detach(), expected, rtol=1e-9, atol=1e-9)
    written = [n.args[0] for n in schedule_of(loop).graph.nodes if n.op == "call_function"]
    assert written
    assert all(written)


def test_signs_are_of_errors_by_the_operators_that_made_the_states():
    torch.manual_seed(10)
    edge, z, y = nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 6)).double(), free(7, 5, 4), free(7, 5, 6)
    with torch.no_grad():
        y.copy_(edge(z))
    energy = lambda: (y - edge(z)).abs().sum((1, 2))  # noqa: E731
    before = y.detach().clone()
    loop = pyro.InferenceLoop(energy, [z, y], lr=0.1)
    loop.run(1)
    assert loop.explain().startswith("executor: graph")
    assert torch.equal(y, before)


def test_threads_do_not_matter():
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            torch.manual_seed(6)
            net = Vgg(nn.GELU)
            running(net, 9, torch.float32).run(5)
            results.append([z.detach().clone() for z in net.free()])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_by_operators_of_its_own(dtype):
    z, y = free(3, 2, 4, 4, dtype=dtype), torch.randn(3, 2, 4, 4, dtype=dtype)
    loop = pyro.InferenceLoop(lambda: (y - torch.tanh(z)).square().sum((1, 2, 3)), [z], lr=0.1)
    before = z.detach().clone()
    loop.run(1)
    assert loop.explain().startswith("executor: graph")
    t = torch.tanh(before.float())
    expected = before.float() + 0.1 * 2 * (y.float() - t) * (1 - t * t)
    torch.testing.assert_close(z.float(), expected, rtol=2e-2, atol=2e-2)


def test_a_graph_with_more_than_a_program_holds():
    """Sums of many predictions: programs end where they would be too long."""
    z, targets = free(2, 3, 4), [data(2, 3, 4) for _ in range(70)]
    energy = lambda: sum(gaussian_energy(torch.tanh(i * z), t) for i, t in enumerate(targets))  # noqa: E731
    assert assert_as_autograd(energy, [z], steps=2).startswith("executor: graph")


IMAGES = st.sampled_from(("conv", "depthwise", "skip", "scaled", "pointwise", "pooled", "masked", "turned"))


@st.composite
def graphs(draw):
    count = draw(st.integers(2, 4))
    edges = [
        (
            draw(st.integers(0, count)),
            draw(st.integers(1, count)),
            draw(IMAGES),
            draw(st.sampled_from(sorted(ACTIVATIONS))),
        )
        for _ in range(draw(st.integers(count, 2 * count)))
    ]
    return count, edges, draw(st.booleans()), draw(st.integers(0, 2**20)), draw(st.sampled_from((0.0, 0.6)))


@pytest.mark.slow
@given(graphs())
@settings(max_examples=25, deadline=None)
def test_random_graphs(case):
    """Fan-in, fan-out, skips, cycles, shared weights, masks and pooling between nodes of images of one form."""
    count, edges, tied, seed, momentum = case
    torch.manual_seed(seed)
    conv, depthwise = nn.Conv2d(4, 4, 3, padding=1).double(), nn.Conv2d(4, 4, 3, padding=1, groups=4).double()
    shared = nn.Conv2d(4, 4, 1).double()
    points = [shared if tied else nn.Conv2d(4, 4, 1).double() for _ in edges]
    mask = (torch.rand(4, 4, 4) > 0.5).double()
    x, states = data(2, 4, 4, 4), [free(2, 4, 4, 4) for _ in range(count)]
    nodes = [x, *states]
    safe = {name: f for name, f in ACTIVATIONS.items() if name not in ("exp", "power", "square")}

    def edge(i):
        source, _, kind, name = edges[i]
        z = safe.get(name, torch.tanh)(nodes[source])
        match kind:
            case "conv":
                return conv(z)
            case "depthwise":
                return depthwise(z)
            case "pointwise":
                return points[i](z)
            case "scaled":
                return 0.3 * z
            case "pooled":
                return F.interpolate(F.max_pool2d(conv(z), 2), scale_factor=2)
            case "masked":
                return points[i](z * mask)
            case "turned":
                return z.mT
        return z

    def energy():
        total = 0.0
        for n in range(1, count + 1):
            incoming = [edge(i) for i, e in enumerate(edges) if e[1] == n]
            total = total + gaussian_energy(nodes[n], sum(incoming) if incoming else torch.zeros_like(nodes[n]))
        return total

    learned = [*conv.parameters(), *shared.parameters()]
    assert_as_autograd(energy, states, learned, steps=3, momentum=momentum)


def test_the_graph_that_is_scheduled_gives_the_gradient_itself():
    net = Vgg(nn.SiLU)
    loop = running(net)
    loop.run(1)
    executor = loop._choice.executor
    leaves = executor._layout.of(executor.program.leaves)
    gradients = module_of(executor._gradient)(*leaves, *executor._once(*leaves))
    expected = torch.autograd.grad(net.energy().sum(), net.free())
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_an_m_step_is_a_sweep_and_a_product_for_every_weight():
    net = Vgg()
    loop = running(net)
    loop.run(1)
    loop.backward(pyro.get_mstep_params(net))
    (learning,) = loop._choice.executor._learnings.values()
    calls = [n for n in learning.schedule.graph.nodes if n.op == "call_function"]
    convolutions = [n for n in calls if n.target is aten.convolution.default]
    backward = [n for n in calls if n.target is aten.convolution_backward.default]
    assert len(convolutions) == len(backward) == 2
    assert all(n.args[-1][0] is False for n in backward)  # no gradient of an input
    assert sum(n.target is aten.mm.out for n in calls) == 2
    assert f"gradients of {len(learning.reached)} tensors in {learning.schedule.calls} operator calls" in loop.explain()
    schedules, owner = (learning.schedule, schedule_of(loop)), loop._choice.executor.program
    blocks = [t.data_ptr() for schedule in schedules for t in schedule.lend(owner)]
    loop.run(1)
    loop.backward(pyro.get_mstep_params(net))
    again = [t.data_ptr() for schedule in schedules for t in schedule.lend(owner)]
    assert blocks == again  # E-steps and M-steps take turns in one memory


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
@pytest.mark.parametrize("steps", [0, 1])
def test_what_no_error_has_reached_learns_nothing(activation, steps):
    """To the last bit, as Adam makes a step of any gradient: a sweep leaves an error at the target alone."""
    torch.manual_seed(6)
    net = Vgg(activation)
    loop = running(net, batch=16, dtype=torch.float32)
    loop.run(steps)
    net.zero_grad()
    loop.backward(pyro.get_mstep_params(net))
    silent = [p for edge in net.edges[: 2 - steps] for p in edge.parameters()]
    assert all(p.grad is not None and not p.grad.any() for p in silent)
    heard = [p.grad for p in net.edges[2 - steps].parameters()]
    plain = torch.autograd.grad(net.energy().mean(), [*net.edges[2 - steps].parameters()])
    for a, b in zip(heard, plain, strict=True):
        assert a.any()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def learning_of(energy, z, learned):
    loop = pyro.InferenceLoop(energy, [z], lr=0.1, executor="graph")
    loop.run(1)
    for p in learned:
        p.grad = None
    loop.backward(learned)
    return loop.explain()


def test_what_learns_may_change():
    """What is frozen, or has no part in the energy, gets no gradient; gradients are added to those that are there."""
    torch.manual_seed(7)
    conv, other = nn.Conv2d(3, 4, 3).double(), nn.Parameter(torch.ones(2).double())
    z, y = free(2, 3, 5, 5), data(2, 4, 3, 3)
    energy = lambda: gaussian_energy(y, conv(z))  # noqa: E731
    loop = pyro.InferenceLoop(energy, [z], lr=0.1)
    conv.bias.requires_grad_(False)
    loop.backward([*conv.parameters(), other])
    expected = torch.autograd.grad(energy().mean(), conv.weight)[0]
    torch.testing.assert_close(conv.weight.grad, expected, rtol=1e-12, atol=1e-12)
    assert conv.weight.grad.is_contiguous()
    assert conv.bias.grad is None
    assert other.grad is None
    conv.bias.requires_grad_(True)
    loop.backward([*conv.parameters()])
    torch.testing.assert_close(conv.weight.grad, 2 * expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(conv.bias.grad, torch.autograd.grad(energy().mean(), conv.bias)[0])
    assert "not fused M-step" not in loop.explain()


@pytest.mark.parametrize("kind", ["hook", "sign", "half", "computed", "sparse", "empty"])
def test_what_is_left_to_autograd(kind):
    torch.manual_seed(8)
    dtype = torch.bfloat16 if kind == "half" else torch.float64
    weight = nn.Parameter(torch.randn(4, 3, 2, 2, dtype=dtype))
    z, y = free(0 if kind == "empty" else 2, 3, 5, 5, dtype=dtype), data(2, 4, 4, 4).to(dtype)
    table = nn.Embedding(5, 5, sparse=True, dtype=dtype)
    y, learned, computed = y[: len(z)], [weight], 2 * weight
    energy = {
        "sign": lambda: gaussian_energy(z, torch.zeros_like(z)) + (y - F.conv2d(z, weight)).abs().sum((1, 2, 3)),
        "computed": lambda: gaussian_energy(y, F.conv2d(z, computed)),
        "sparse": lambda: gaussian_energy(z * table(torch.arange(3))[:, None], torch.zeros_like(z)),
    }.get(kind, lambda: gaussian_energy(y, F.conv2d(z, weight)))  # fmt: skip
    seen = []
    if kind == "hook":
        weight.register_hook(seen.append)
    if kind == "sparse":
        learned = [table.weight]
    told = learning_of(energy, z, learned)
    reason = {
        "hook": "has a gradient hook", "sign": "run by operators of their own", "half": "run by operators of their own",
        "computed": "is computed from others", "sparse": "is sparse", "empty": "there is no sample",
    }[kind]  # fmt: skip
    assert "not fused M-step gradients" in told
    assert reason in told
    computed = 2 * weight
    found, learned[0].grad = learned[0].grad, None
    energy().mean().backward(inputs=learned)
    torch.testing.assert_close(found, learned[0].grad, equal_nan=True)
    assert len(seen) == (2 if kind == "hook" else 0)
