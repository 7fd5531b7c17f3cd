"""Batches of graphs by `EM`: a sweep and the first E-steps as one graph, which makes nothing that no state needs."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import pyromancy as pyro
from networks import Row
from numerics import same_bits
from pyromancy.functional import gaussian_energy
from pyromancy.nodes import FactorizedGaussianNode, StandardGaussianNode, StudentNode

aten = torch.ops.aten
CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)


class Images(Row):
    """Convolutions in a row, and a Linear edge to the output."""

    def __init__(self, edges=3, activation=nn.Tanh, node=StandardGaussianNode, pool=True):
        size, channels, shapes, made = 8, 3, [(3, 8, 8)], []
        for i in range(edges):
            pools = pool and i < 2
            size //= 1 + pools
            conv = nn.Conv2d(channels, 4, 3, padding=1)
            made.append(nn.Sequential(activation(), conv, nn.MaxPool2d(2) if pools else nn.Identity()))
            shapes.append((channels := 4, size, size))
        made.append(nn.Sequential(activation(), nn.Flatten(), nn.Linear(4 * size**2, 5)))
        super().__init__([StandardGaussianNode(3, 8, 8), *(node(*s) for s in shapes[1:]), node(5)], made)


def batch(b=3, classes=5, dtype=torch.float64):
    return torch.rand(b, 3, 8, 8, dtype=dtype), torch.rand(b, classes, dtype=dtype)


def em_of(net, start=None, steps=5, rate=0.5, optimizer=torch.optim.SGD, **options):
    return pyro.EM(
        net.energy, net.free(), optimizer(net.learned(), lr=rate), start=start or net.start, steps=steps, lr=0.1,
        **options,
    )  # fmt: skip


def by_autograd(net, x, y, steps, start=None, rate=0.5, **options):
    """The documented loop, by PyTorch alone."""
    (start or net.start)(x, y)
    descent = torch.optim.SGD(net.free(), lr=0.1, **options)
    for _ in range(steps):
        descent.zero_grad()
        net.energy().sum().backward(inputs=net.free())
        descent.step()
    learned = net.learned()
    for p, g in zip(learned, torch.autograd.grad(net.energy().mean(), learned), strict=True):
        p.data.sub_(rate * g)


def assert_as_autograd(net, *batches, steps=5, start=None, scheduled=True, **options):
    """Two batches, and what they have made of states and parameters."""
    before = [p.detach().clone() for p in net.learned()]
    em = em_of(net, start, steps, **options)
    for xy in batches:
        em.step(*xy)
    found = [t.detach().clone() for t in (*net.free(), *net.learned())]
    for p, b in zip(net.learned(), before, strict=True):
        p.data.copy_(b)
    for xy in batches:
        by_autograd(net, *xy, steps, start, **options)
    for a, b in zip(found, (*net.free(), *net.learned()), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-10, atol=1e-10)
    assert (em._scheduled is not None) == scheduled
    return em


def opened(em):
    """The calls of the opening of the last batch."""
    (known,) = em.loop._choice.executor._openings.values()
    last = [*known.values()][-1]
    return last, [n.target for n in last.schedule.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 7])
def test_batches_are_those_of_autograd(steps, activation):
    torch.manual_seed(1)
    assert_as_autograd(Images(3, activation).double(), batch(), batch(), steps=steps)


@pytest.mark.parametrize(
    "options",
    [{"momentum": 0.7}, {"momentum": 0.7, "dampening": 0.2}, {"momentum": 0.6, "nesterov": True}],
    ids=str,
)
def test_with_momentum_too(options):
    torch.manual_seed(2)
    assert_as_autograd(Images().double(), batch(), batch(), **options)


def test_nodes_with_variances():
    torch.manual_seed(3)
    net = Images(node=FactorizedGaussianNode).double()
    for p in net.learned():
        p.data.add_(0.1 * torch.randn_like(p))
    em = assert_as_autograd(net, batch(), batch())
    assert opened(em)[0].whole


def test_graphs_of_signs_are_started_by_the_function_itself():
    torch.manual_seed(3)
    em = assert_as_autograd(Images(node=StudentNode).double(), batch(), scheduled=False)
    assert "start is called for every batch: the graph is run by operators of their own" in em.explain()


def test_an_opening_makes_what_states_need_and_no_more():
    """Step t moves the top t states. Of four convolutions the sweep makes all, and no step what none has changed."""
    torch.manual_seed(4)
    net = Images(4)
    em = em_of(net.float(), steps=9)
    em.step(*batch(dtype=torch.float32))
    opening, targets = opened(em)
    assert (opening.steps, opening.whole) == (4, True)
    forward, backward = (targets.count(t) for t in CONVOLUTIONS)
    # of the first edge, which no state enters, the prediction is made once a batch, and that is all of the sweep
    assert forward == 3 + (0 + 0 + 1 + 2)
    assert backward == 0 + 1 + 2 + 3
    assert "sweep and 4 E-steps in" in em.explain()


def test_gradients_of_normalized_groups_read_nothing_beyond():
    torch.manual_seed(5)
    net = Images(edges=2, pool=False).double()
    # a convolution in float64 gives back a gradient that is contiguous, also where its image has the channels last
    net.edges[1].insert(0, nn.GroupNorm(2, 4).double())
    assert_as_autograd(net, batch(), batch())


def test_a_sweep_from_elsewhere_saves_nothing_and_is_right():
    torch.manual_seed(5)
    net = Images().double()

    def start(x, y):
        with torch.no_grad():
            net.start(x, y)
            net.nodes[2].init(torch.zeros(len(x), 4, 2, 2, dtype=x.dtype))

    # which sets a state twice
    em = assert_as_autograd(net, batch(), batch(), start=start, scheduled=False)
    assert "not one call: start cannot be captured: it sets the state" in em.explain()

    def other(x, y):
        with torch.no_grad():
            net.nodes[0].init(x)
            net.nodes[1].init(net.edges[0](x))  # of the tensor, not of the state that is set to it
            net.nodes[2].init(torch.zeros(len(x), 4, 2, 2, dtype=x.dtype))
            net.nodes[3].init(0.9 * net.edges[2](net.nodes[2].value))
            net.nodes[-1].init(y)

    em = assert_as_autograd(net, batch(), batch(), start=other, steps=6)
    assert opened(em)[0].whole
    assert opened(em)[0].steps < 3


def test_targets_may_be_computed():
    torch.manual_seed(6)
    net = Images().double()

    def start(x, y):
        with torch.no_grad():
            net.start(x, F.one_hot(y, 5).double())

    xs, ys = batch()[0], torch.tensor([0, 4, 2])
    assert_as_autograd(net, (xs, ys), (xs.flip(0), ys.roll(1)), start=start)


def test_a_sweep_may_take_tensors_that_the_energy_does_not():
    torch.manual_seed(7)
    net, scale = Images().double(), torch.rand(3, 1, 1, 1, dtype=torch.float64)

    def start(x, y):
        with torch.no_grad():
            z = net.nodes[0].init(x)
            for edge, node in zip(net.edges, net.nodes[1:-1], strict=False):
                z = edge(z) * scale
                node.init(z)
            net.nodes[-1].init(y)

    assert_as_autograd(net, batch(), batch(), start=start, steps=4)


def test_clamped_states_that_are_set_by_others_are_left_to_start():
    torch.manual_seed(8)
    net = Images().double()

    def start(x, y):
        with torch.no_grad():
            net.start(x, y)

    def without_target(x, y):
        with torch.no_grad():
            z = net.nodes[0].init(x)
            for edge, node in zip(net.edges, net.nodes[1:], strict=True):
                z = node.init(edge(z))

    assert_as_autograd(net, batch(), start=start)
    em = assert_as_autograd(net, batch(), start=without_target, scheduled=False)
    assert "start sets the state of StandardGaussianNode(5) by those of others" in em.explain()


@pytest.mark.parametrize("incremental", [True, "joint"])
def test_incremental_batches_start_by_the_schedule(incremental):
    torch.manual_seed(9)
    net, (x, y) = Images().double(), batch()
    before = [p.detach().clone() for p in net.learned()]
    em = em_of(net, steps=3, incremental=incremental)
    em.step(x, y)
    assert em._scheduled is not None
    found = [t.detach().clone() for t in (*net.free(), *net.learned())]
    for p, b in zip(net.learned(), before, strict=True):
        p.data.copy_(b)
    net.start(x, y)
    for _ in range(3):
        moved = [*net.free(), *net.learned()]
        energy = net.energy()
        g = torch.autograd.grad(energy.sum(), net.free(), retain_graph=True)
        h = torch.autograd.grad(energy.mean(), net.learned())
        for p, step in zip(moved[: len(g)], g, strict=True):
            p.data.sub_(0.1 * step)
        if incremental is True:
            h = torch.autograd.grad(net.energy().mean(), net.learned())
        for p, step in zip(moved[len(g) :], h, strict=True):
            p.data.sub_(0.5 * step)
    for a, b in zip(found, (*net.free(), *net.learned()), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-10, atol=1e-10)


def test_what_others_hold_of_the_last_batch_stays():
    net = Images()
    em = em_of(net)
    em.step(*batch(dtype=torch.float32))
    held = [z.detach() for z in net.free()]
    before = [h.clone() for h in held]
    em.step(*batch(dtype=torch.float32))
    assert all(map(same_bits, held, before))
    assert not any(same_bits(z.detach(), h) for z, h in zip(net.free(), held, strict=True))


def test_another_batch_size_and_what_is_no_longer_the_same():
    torch.manual_seed(10)
    net = Images().double()
    em = em_of(net, steps=4, rate=0.0)
    for b in (3, 2, 3):
        x, y = batch(b)
        em.step(x, y)
        found = [z.detach().clone() for z in net.free()]
        by_autograd(net, x, y, 4, rate=0.0)
        for a, z in zip(found, net.free(), strict=True):
            torch.testing.assert_close(a, z.detach(), rtol=1e-10, atol=1e-10)
        with torch.no_grad():
            net.edges[1][1].weight.mul_(0.5)
    net.edges[0][0] = nn.ReLU()
    em.steps = 2
    x, y = batch(3)
    em.step(x, y)
    found = [z.detach().clone() for z in net.free()]
    by_autograd(net, x, y, 2, rate=0.0)
    for a, z in zip(found, net.free(), strict=True):
        torch.testing.assert_close(a, z.detach(), rtol=1e-10, atol=1e-10)


def test_methods_start_as_they_step():
    """By the user's function: their products are those of the operators that it calls."""
    net = Images().double()
    em = pyro.EM(
        net.energy, net.free(), torch.optim.SGD(net.learned(), lr=0.1), start=net.start, steps=3,
        method=pyro.methods.Adam(0.01),
    )  # fmt: skip
    x, y = batch()
    em.step(x, y)
    assert em._scheduled is None
    first = net.free()[0].detach().clone()
    with torch.no_grad():
        expected = net.edges[0](x)
    assert not torch.equal(first, expected)  # three steps have reached it


@pytest.mark.parametrize("steps", [1, 2])
def test_what_no_step_has_reached_is_its_prediction_to_the_last_bit_and_teaches_nothing(steps):
    torch.manual_seed(11)
    net = Images(3, nn.GELU)
    em = em_of(net, steps=steps, rate=1e-3, optimizer=torch.optim.Adam)
    before = [p.detach().clone() for p in net.learned()]
    em.step(*batch(16, dtype=torch.float32))
    silent = [p for edge in net.edges[: 3 - steps] for p in edge.parameters()]
    assert silent
    for p, b in zip(net.learned(), before, strict=True):
        assert torch.equal(p, b) == any(p is s for s in silent)


def test_states_that_diverge_are_told_of():
    net = Images(activation=nn.ReLU)
    em = pyro.EM(net.energy, net.free(), torch.optim.SGD(net.learned(), lr=0.0), start=net.start, steps=60, lr=1e3)
    with pytest.warns(UserWarning, match="are not finite"):
        em.step(*batch(dtype=torch.float32))


KINDS = st.sampled_from(("conv", "pointwise", "skip", "scaled", "pooled", "turned"))


@st.composite
def graphs(draw):
    count = draw(st.integers(2, 4))
    parents = [[(draw(st.integers(0, i)), draw(KINDS)) for _ in range(draw(st.integers(1, 2)))] for i in range(count)]
    back = [(draw(st.integers(1, count)), draw(st.integers(1, count))) for _ in range(draw(st.integers(0, 2)))]
    swept = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return parents, back, swept, draw(st.integers(0, 6)), draw(st.integers(0, 2**20)), draw(st.sampled_from((0.0, 0.6)))


@pytest.mark.slow
@given(graphs())
@settings(max_examples=20, deadline=None)
def test_random_graphs(case):
    """Several parents, skips, cycles and shared weights; some states start at their predictions and some do not."""
    parents, back, swept, steps, seed, momentum = case
    torch.manual_seed(seed)
    conv, point = nn.Conv2d(4, 4, 3, padding=1).double(), nn.Conv2d(4, 4, 1).double()
    nodes = nn.ModuleList(StandardGaussianNode(4, 4, 4) for _ in range(len(parents) + 2))
    top = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    target = StandardGaussianNode(3)

    def edge(z, kind):
        match kind:
            case "conv":
                return conv(torch.tanh(z))
            case "pointwise":
                return point(F.gelu(z))
            case "scaled":
                return 0.3 * z
            case "pooled":
                return F.interpolate(F.max_pool2d(conv(z), 2), scale_factor=2)
            case "turned":
                return z.mT
        return z

    def predicted(i):
        return sum(edge(nodes[source].value, kind) for source, kind in parents[i])

    def start(x, y):
        with torch.no_grad():
            nodes[0].init(x)
            for i, own in enumerate(swept):
                nodes[i + 1].init(predicted(i) if own else 0.1 * x)
            target.init(y)

    class Net(nn.Module):
        def energy(self):
            total = gaussian_energy(target.value, top(torch.tanh(nodes[len(parents)].value)))
            for i in range(len(parents)):
                total = total + nodes[i + 1].energy(predicted(i))
            for a, b in back:
                total = total + gaussian_energy(nodes[a].value, point(torch.tanh(nodes[b].value)))
            return total

        def free(self):
            return [n.value for n in nodes[1 : len(parents) + 1]]

        def learned(self):
            return [*point.parameters(), *top.parameters()]

    nodes.double()
    target.double()
    net = Net()
    net.start = start
    xs = [torch.randn(2, 4, 4, 4, dtype=torch.float64) for _ in range(2)]
    ys = [torch.randn(2, 3, dtype=torch.float64) for _ in range(2)]
    used = {id(p) for p in net.learned()}
    assert used
    if any(kind == "pointwise" for of in parents for _, kind in of) or back:
        assert_as_autograd(net, *zip(xs, ys, strict=True), steps=steps, momentum=momentum)
