"""Networks that are no chains: what one operator makes of them is what autograd makes."""

import copy
import functools
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import pyromancy as pyro
from numerics import same_bits
from pyromancy import methods
from pyromancy.functional import gaussian_energy
from pyromancy.nodes import CategoricalNode, FixedNode, IsotropicGaussianNode, StandardGaussianNode

pytestmark = pytest.mark.usefixtures("native_backend")
FUNCTIONS = {"identity": lambda x: x, "tanh": torch.tanh, "relu": torch.relu, "gelu": F.gelu}
STEPS, RATE = 5, 0.05


@dataclass
class Arc:
    """An edge: a product with a weight of the pool, which others may use, with a mask or without, a skip, or both."""

    source: int
    target: int
    pool: int = 0
    product: bool = True
    before: str = "tanh"
    bias: bool = True
    scale: float = 1.0
    skip: float = 0.0
    masked: bool = False


@dataclass
class Drawn:
    """A network, as numbers."""

    widths: list
    free: list
    after: list
    arcs: list
    logvar: bool = True


@dataclass
class Built:
    """The same as tensors, and its energy."""

    drawn: Drawn
    states: list
    weights: dict = field(default_factory=dict)
    biases: dict = field(default_factory=dict)
    masks: dict = field(default_factory=dict)
    logvars: list = field(default_factory=list)

    @classmethod
    def of(cls, drawn, batch=4, dtype=torch.float64):
        make = functools.partial(torch.randn, dtype=dtype)
        states = [
            nn.Parameter(make(batch, n)) if free else make(batch, n)
            for n, free in zip(drawn.widths, drawn.free, strict=True)
        ]
        net = cls(drawn, states, logvars=[nn.Parameter(0.3 * make(n)) for n in drawn.widths])
        for i, arc in enumerate(drawn.arcs):
            shape = drawn.widths[arc.target], drawn.widths[arc.source]
            if arc.product:
                net.weights.setdefault((arc.pool, *shape), nn.Parameter(make(shape) / shape[1] ** 0.5))
            if arc.bias and arc.product:
                net.biases[i] = nn.Parameter(make(shape[0]))
            if arc.masked:
                net.masks[i] = (torch.rand(shape) < 0.6).to(dtype)
        return net

    @property
    def moved(self):
        return [z for z, free in zip(self.states, self.drawn.free, strict=True) if free]

    @property
    def learned(self):
        return [*self.weights.values(), *self.biases.values(), *(self.logvars if self.drawn.logvar else [])]

    def prediction(self, target):
        parts = []
        for i, arc in enumerate(self.drawn.arcs):
            if arc.target != target:
                continue
            z = self.states[arc.source]
            if arc.product:
                weight = self.weights[arc.pool, self.drawn.widths[target], z.shape[1]]
                weight = weight * self.masks[i] if arc.masked else weight
                part = F.linear(FUNCTIONS[arc.before](z), weight, self.biases.get(i))
                parts.append(part if arc.scale == 1 else arc.scale * part)
            if arc.skip:
                parts.append(z if arc.skip == 1 else arc.skip * z)
        return FUNCTIONS[self.drawn.after[target]](functools.reduce(torch.add, parts)) if parts else None

    def energy(self):
        total = 0.0
        for i, z in enumerate(self.states):
            mu = self.prediction(i)
            if mu is None and not self.drawn.free[i]:
                continue
            total = total + gaussian_energy(
                z, torch.full_like(z, 0.3) if mu is None else mu, self.logvars[i] if self.drawn.logvar else None
            )
        return total

    def descended(self, steps, momentum=0.0):
        """The states after some steps, and the gradients of what is learned there, by autograd alone."""
        kept = [z.detach().clone() for z in self.moved]
        velocities = [torch.zeros_like(z) for z in kept]
        for step in range(steps):
            gradients = torch.autograd.grad(self.energy().sum(), self.moved)
            with torch.no_grad():
                for z, v, g in zip(self.moved, velocities, gradients, strict=True):
                    v.copy_(g if step == 0 else momentum * v + g)
                    z.sub_(RATE * v)
        states = [z.detach().clone() for z in self.moved]
        of = self.learned
        gradients = torch.autograd.grad(self.energy().mean(), of, allow_unused=True) if of else ()
        for z, first in zip(self.moved, kept, strict=True):
            z.data = first
        return states, gradients

    def run(self, steps, **options):
        """The same by a loop, and what it explains."""
        kept = [z.detach().clone() for z in self.moved]
        loop = pyro.InferenceLoop(self.energy, self.moved, **options)
        trace = loop.run(steps, record=True)
        for p in self.learned:
            p.grad = None
        if self.learned:
            loop.backward(self.learned)
        states = [z.detach().clone() for z in self.moved]
        for z, first in zip(self.moved, kept, strict=True):
            z.data = first
        return states, [p.grad for p in self.learned], trace.energies, loop.explain()


@st.composite
def networks(draw, circles):
    count = draw(st.integers(2, 5))
    widths = draw(st.lists(st.sampled_from([1, 3, 3, 9]), min_size=count, max_size=count))
    free = draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(any))
    name = st.sampled_from([*FUNCTIONS])
    names = st.lists(name, min_size=count, max_size=count)
    pairs = [(s, t) for s in range(count) for t in range(count) if circles or s < t]
    arcs = []
    for source, target in draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=8, unique=not circles)):
        same = widths[source] == widths[target]
        skip = draw(st.sampled_from([0.0, 1.0, -0.5])) if same else 0.0
        product = draw(st.booleans()) if skip else True
        arcs.append(
            Arc(
                source, target, draw(st.integers(0, 1)), product, draw(name), draw(st.booleans()),
                draw(st.sampled_from([1.0, 0.5, -2.0])), skip, draw(st.booleans()) and product,
            )
        )  # fmt: skip
    return Drawn(widths, free, draw(names), arcs, draw(st.booleans()))


def assert_alike(found, expected, limit=1e-10):
    for a, b in zip(found, expected, strict=True):
        if a is None or b is None:
            assert a is b or (b if a is None else a).count_nonzero() == 0
        else:
            torch.testing.assert_close(a, b, rtol=limit, atol=limit)


@pytest.mark.parametrize("circles", [False, True])
def test_descent_and_learning_are_autograds(circles):
    @settings(max_examples=40)
    @given(networks(circles), st.sampled_from([0.0, 0.7]), st.sampled_from([1, 4, 33]), st.integers(0, 99))
    def check(drawn, momentum, batch, seed):
        torch.manual_seed(seed)
        net = Built.of(drawn, batch)
        states, gradients = net.descended(STEPS, momentum)
        found = net.run(STEPS, lr=RATE, momentum=momentum)
        assert found[3].startswith("executor: chain"), found[3]
        assert "not fused" not in found[3]
        assert_alike(found[0], states)
        assert_alike(found[1], gradients)
        torch.testing.assert_close(found[2][0].sum(), net.energy().mean().detach(), rtol=1e-10, atol=1e-10)

    check()


METHODS = {
    "quasi-newton": lambda: methods.Accelerated(coordinates="states"),
    "errors": lambda: methods.Accelerated(coordinates="errors"),
    "nesterov": lambda: methods.Accelerated(lr=RATE, coordinates="errors"),
    "adam": lambda: methods.Adam(RATE),
    "heun": lambda: methods.Heun(RATE),
    "lbfgs": lambda: methods.LBFGS(coordinates="states"),
    "one-by-one": lambda: methods.Sequential(RATE),
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_are_those_of_the_graph(method):
    """Whose steps are PyTorch's, and whose errors are found by another way."""

    @settings(max_examples=10)
    @given(networks(circles=method not in ("errors", "nesterov")), st.integers(0, 99))
    def check(drawn, seed):
        torch.manual_seed(seed)
        net = Built.of(drawn)
        found = net.run(3, method=METHODS[method]())
        expected = net.run(3, method=METHODS[method](), executor="graph")
        assert found[3].startswith("executor: chain"), found[3]
        assert_alike(found[0], expected[0], 1e-7)
        assert_alike(found[1], expected[1], 1e-7)

    check()


def dense(widths=(17, 40, 33, 33, 9), circles=False):
    """Every node predicts every later one, and with circles every earlier one and itself too."""
    count = len(widths)
    arcs = [
        Arc(
            s,
            t,
            before=("tanh", "relu", "identity")[(s + t) % 3],
            skip=0.5 if widths[s] == widths[t] and s != t else 0.0,
        )
        for s in range(count)
        for t in range(count)
        if s < t or (circles and s > 0)
    ]
    return Drawn([*widths], [False, *[True] * (count - 2), False], ["identity", *["tanh"] * (count - 1)], arcs)


@pytest.mark.parametrize("method", [None, "quasi-newton", "errors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threads", [1, 2])
def test_samples_do_not_interact(method, dtype, threads):
    """In any bit, whatever the batch makes of tiles: a sample alone, some, and all of them."""
    net = Built.of(dense(circles=method != "errors"), 70, dtype)
    options = {"lr": RATE} if method is None else {"method": METHODS[method]()}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = net.run(4, **options)[0]
        for some in (slice(0, 1), slice(3, 7), slice(20, 60)):
            part = Built(net.drawn, [z.detach()[some].clone() for z in net.states], net.weights, net.biases)
            part.logvars = net.logvars
            part.states = [nn.Parameter(z) if f else z for z, f in zip(part.states, net.drawn.free, strict=True)]
            options = {"lr": RATE} if method is None else {"method": METHODS[method]()}
            for a, b in zip(part.run(4, **options)[0], whole, strict=True):
                assert same_bits(a, b[some])
    finally:
        torch.set_num_threads(before)


def test_errors_of_states_in_a_circle_are_refused():
    net = Built.of(dense(circles=True))
    with pytest.raises(ValueError, match="in a circle"):
        net.run(1, method=methods.Accelerated(coordinates="errors"))


def test_tolerance_holds_on_a_graph():
    """The energy that is left above the least, which many steps find, is below what was asked for."""
    drawn = dense()  # whose energy has one least value where it is linear
    drawn.after = ["identity"] * 5
    for arc in drawn.arcs:
        arc.before = "identity"
    net = Built.of(drawn, 6)
    loop = pyro.InferenceLoop(net.energy, net.moved, method=methods.Accelerated(coordinates="errors"))
    first = net.energy().detach()
    trace = loop.run(200, tol=1e-2)
    assert loop.explain().startswith("executor: chain")
    stopped = net.energy().detach()
    assert trace.converged.all()
    loop.run(2000)
    least = net.energy().detach()
    assert ((stopped - least) <= 1e-2 * (first - least)).all()


class TwoParents(nn.Module):
    """A hidden state, another of that and the data, and labels that both predict."""

    def __init__(self):
        super().__init__()
        self.x, self.h, self.k = FixedNode(6), IsotropicGaussianNode(5), StandardGaussianNode(5)
        self.y = CategoricalNode(3)
        self.xh, self.xk, self.hk = nn.Linear(6, 5), nn.Linear(6, 5, bias=False), nn.Linear(5, 5)
        self.hy, self.ky = nn.Linear(5, 3), nn.Linear(5, 3, bias=False)

    def of_h(self):
        return self.xh(self.x.value)

    def of_k(self):
        h = self.h.value
        return 0.5 * (self.hk(torch.tanh(h)) + self.xk(self.x.value)) + h

    def of_y(self):
        return self.hy(self.h.value) + self.ky(self.k.value)

    def energy(self):
        return self.h.energy(self.of_h()) + self.k.energy(self.of_k()) + self.y.energy(self.of_y())

    def start(self, x, y):
        self.x.init(x)
        self.h.init(self.of_h())
        self.k.init(self.of_k())
        self.y.init(y)


@pytest.mark.parametrize("incremental", [False, True, "joint"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_batch_is_one_plan_and_its_lines(incremental, optimizer):
    nets = [TwoParents().double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    ems, data = [], [(torch.randn(8, 6).double(), torch.randint(3, (8,))) for _ in range(3)]
    for net in nets:
        net.start(*data[0])
        opt = optimizer(list(pyro.get_mstep_params(net)), lr=0.01)
        ems.append(
            pyro.EM(net.energy, [net.h.value, net.k.value], opt, start=net.start, steps=4, lr=0.1,
                    incremental=incremental)
        )  # fmt: skip
    for x, y in data:
        ems[0].step(x, y)
        ems[1]._step_unfused((x, y))
        for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert "a batch: one call" in ems[0].explain()
    assert "the optimizer is called" not in ems[0].explain()


class Summed(TwoParents):
    """With the sums of Python, which begin with 0."""

    def of_y(self):
        parts = ((self.hy, self.h), (self.ky, self.k))
        return sum(edge(node.value) for edge, node in parts)

    def of_k(self):
        return sum((self.hk(torch.tanh(self.h.value)), self.xk(self.x.value)))


def test_sums_of_python_learn_their_biases_in_the_call():
    net = Summed().double()
    x, y = torch.randn(8, 6).double(), torch.randint(3, (8,))
    net.start(x, y)
    opt = torch.optim.SGD([*pyro.get_mstep_params(net)], lr=0.1)
    em = pyro.EM(net.energy, [net.h.value, net.k.value], opt, start=net.start, steps=4, lr=0.1)
    other = copy.deepcopy(net)
    for p in net.parameters():
        p.grad = None
    em.step(x, y)
    assert em.explain().startswith("a batch: one call of an operator\n"), em.explain()
    assert "the optimizer is called" not in em.explain()
    other.start(x, y)
    states = [other.h.value, other.k.value]
    for _ in range(4):
        gradients = torch.autograd.grad(other.energy().sum(), states)
        with torch.no_grad():
            for z, g in zip(states, gradients, strict=True):
                z.sub_(0.1 * g)
    learned = [*pyro.get_mstep_params(other)]
    gradients = torch.autograd.grad(other.energy().mean(), learned)
    for a, p, g in zip(pyro.get_mstep_params(net), learned, gradients, strict=True):
        torch.testing.assert_close(a.detach(), p.detach() - 0.1 * g, rtol=1e-10, atol=1e-10)


def test_a_sweep_leaves_no_errors():
    """Without E-steps a batch learns as backpropagation does: all that is not the loss is exactly zero."""
    net = TwoParents()
    x, y = torch.randn(8, 6), torch.randint(3, (8,))
    net.start(x, y)
    opt = torch.optim.SGD([*pyro.get_mstep_params(net)], lr=1.0)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    em = pyro.EM(net.energy, [net.h.value, net.k.value], opt, start=net.start, steps=0, lr=0.1)
    em.step(x, y)
    assert "a batch: one call" in em.explain()
    for name in ("xh.weight", "xh.bias", "xk.weight", "hk.weight", "hk.bias"):
        assert torch.equal(net.get_parameter(name), before[name]), name
    assert not torch.equal(net.hy.weight, before["hy.weight"])


def assert_fused(energy, states, learned):
    """One operator, whose states and gradients are autograd's."""
    first = [z.detach().clone() for z in states]
    for _ in range(STEPS):
        gradients = torch.autograd.grad(energy().sum(), states)
        with torch.no_grad():
            for z, g in zip(states, gradients, strict=True):
                z.sub_(RATE * g)
    expected = [z.detach().clone() for z in states], torch.autograd.grad(energy().mean(), learned)
    for z, before in zip(states, first, strict=True):
        z.data = before
    loop = pyro.InferenceLoop(energy, states, lr=RATE)
    loop.run(STEPS)
    loop.backward(learned)
    told = loop.explain()
    assert told.startswith("executor: chain"), told
    assert "not fused" not in told
    assert_alike(states, expected[0])
    assert_alike([p.grad for p in learned], expected[1])


def free(*shape):
    return nn.Parameter(torch.randn(shape, dtype=torch.float64))


def test_a_linear_of_states_side_by_side():
    a, b, y, x = free(7, 4), free(7, 3), torch.randn(7, 2).double(), torch.randn(7, 5).double()
    of_a, top = nn.Linear(5, 4).double(), nn.Linear(12, 2).double()

    def energy():
        mu = top(torch.tanh(torch.cat([a, x, b], dim=1)))
        parents = gaussian_energy(a, of_a(torch.tanh(x))) + gaussian_energy(b, torch.zeros_like(b))
        return parents + gaussian_energy(y, mu)

    assert_fused(energy, [a, b], [*of_a.parameters(), *top.parameters()])


@pytest.mark.parametrize("masked", [False, True])
def test_a_network_unrolled_in_time(masked):
    """Weights that every moment shares; of masked ones, too, the gradients are those of the weights."""
    inputs, targets = (torch.randn(4, 6, n).double() for n in (3, 2))
    states = [free(6, 5) for _ in inputs]
    first, along, up = (nn.Linear(*n).double() for n in ((3, 5), (5, 5), (5, 2)))
    mask = (torch.rand(5, 5) < 0.5).double() if masked else None

    def energy():
        total, before = 0.0, None
        for x, h, y in zip(inputs, states, targets, strict=True):
            mu = first(x)
            if before is not None:
                weight = along.weight if mask is None else along.weight * mask
                mu = mu + F.linear(torch.tanh(before), weight, along.bias)
            total = total + gaussian_energy(h, mu) + gaussian_energy(y, up(torch.tanh(h)))
            before = h
        return total

    assert_fused(energy, states, [*first.parameters(), *along.parameters(), *up.parameters()])


def test_what_no_state_changes_is_added():
    """Also through functions that no edge has."""
    z, w, y, x = free(6, 4), free(6, 4), torch.randn(6, 3).double(), torch.randn(6, 4).double()
    up, top = nn.Linear(4, 4).double(), nn.Linear(4, 3).double()
    bias = nn.Parameter(torch.randn(4).double())

    def energy():
        mu = torch.relu(up(torch.tanh(z)) - 0.5 * (torch.sin(x) - z) + bias)
        return gaussian_energy(z, x) + gaussian_energy(w, mu) + gaussian_energy(y, top(torch.tanh(w)))

    assert_fused(energy, [z, w], [*up.parameters(), bias, *top.parameters()])
