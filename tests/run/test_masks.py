"""States of which entries are data, by `torch.where` in the energy: fused, and the same as plain autograd's."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn as nn

import pyromancy as pyro
from descent import assert_as_autograd
from kernels import AVAILABLE
from numerics import same_bits
from pyromancy import backends, functional, methods
from pyromancy.methods import Known
from pyromancy.nodes import FixedNode, FloatNode, StandardGaussianNode

SIZES, BATCH = (5, 33, 17, 4), 7
FUSED = "fused: all sweeps in one operator"
# every one that operators run, but for noise, which is another one's test
METHODS = [
    methods.Descent(0.05, coordinates="errors"),
    methods.Descent(0.05, momentum=0.8, nesterov=True, coordinates="errors"),
    methods.Descent(0.05, schedule=lambda t: 0.9**t),
    methods.Descent(0.05, max_norm=0.3),
    methods.Accelerated(),
    methods.Accelerated(coordinates="states"),
    methods.Accelerated(0.05),
    methods.Accelerated(0.05, coordinates="states"),
    methods.Accelerated(0.05, momentum=0.5),
    methods.Heun(0.05),
    methods.Heun(0.05, adaptive=False, coordinates="errors"),
    methods.Adam(0.05),
    methods.Adam(0.05, coordinates="errors"),
    methods.LBFGS(),
    methods.LBFGS(memory=2, coordinates="states"),
    methods.Sequential(0.05),
    methods.ZIL(),
    methods.FixedPrediction(0.3),
    methods.LBFGS(),
    methods.LBFGS(coordinates="states"),
]


class Network(nn.Module):
    """x - h1 - h2 - y, each but for h1 known in some entries; data are NaN where they are not."""

    def __init__(self, batch=BATCH, dtype=torch.float64, linear=False, prior=True, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.edges = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(SIZES))
        self.nodes = nn.ModuleList([FloatNode(SIZES[0]), *map(StandardGaussianNode, SIZES[1:])])
        self.linear, self.prior = linear, prior
        self.to(dtype)
        self.data, self.known = [], []
        for node in self.nodes:
            n = node.size
            node.init(torch.randn(batch, n, dtype=torch.float64))
            known = torch.rand(batch, n) < 0.4
            self.known.append(known if n != SIZES[1] else torch.zeros_like(known))
            data = torch.randn(batch, n, dtype=torch.float64).to(dtype)
            self.data.append(data.where(self.known[-1], torch.nan))
        self.before = [node.value.detach().clone() for node in self.nodes]

    def states(self):
        return [
            node.value if i == 1 else torch.where(known, data, node.value)
            for i, (node, known, data) in enumerate(zip(self.nodes, self.known, self.data, strict=True))
        ]

    def f(self, z):
        return z if self.linear else z.tanh()

    def energy(self):
        x, h1, h2, y = self.states()
        a, b, c = self.edges
        energy = functional.gaussian_energy(h1, a(x)) + functional.gaussian_energy(h2, b(self.f(h1)))
        energy = energy + 0.7 * (y - c(self.f(h2))).square().sum(1)
        return energy + 0.5 * x.square().sum(1) if self.prior else energy

    def free(self):
        return [node.value for node in self.nodes]

    def rows(self, chosen):
        """The same network of some samples."""
        other = Network(1, self.edges[0].weight.dtype)
        other.edges, other.linear, other.prior = self.edges, self.linear, self.prior
        other.known, other.data = [k[chosen] for k in self.known], [d[chosen] for d in self.data]
        for node, z in zip(other.nodes, self.before, strict=True):
            node.init(z[chosen])
        return other

    def assert_untouched(self):
        """What nodes hold where data stand in its place."""
        for node, known, before in zip(self.nodes, self.known, self.before, strict=True):
            assert same_bits(node.value.detach()[known], before[known])


def loop_of(net, method=None, **options):
    if method is None:
        options = {"lr": 0.05} | options
    return pyro.InferenceLoop(net.energy, net.free(), method=method, **options)


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str)
def test_descent_is_autograds(options, backend):
    net = Network()
    with backends.use(backend):
        told = assert_as_autograd(net.energy, net.free(), list(net.edges.parameters()), steps=5, **options)
    assert told.startswith("executor: chain\n")
    assert "not " not in told
    net.assert_untouched()


@pytest.mark.usefixtures("native_backend")
@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_one_operator_does_what_steps_do(method, dtype):
    nets = [Network(dtype=dtype), Network()]
    loops = [loop_of(nets[0], method), loop_of(nets[1], method, executor="graph")]
    for net, loop in zip(nets, loops, strict=True):
        loop.run(6)
        loop.backward(net.edges.parameters())
        net.assert_untouched()
    assert FUSED in loops[0].explain()
    assert "stepwise" in loops[1].explain()
    near = 1e-10 if dtype is torch.float64 else 2e-5
    for mine, exact in zip(nets[0].states(), nets[1].states(), strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=near, atol=near)
    for mine, exact in zip(nets[0].edges.parameters(), nets[1].edges.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.double(), exact.grad, rtol=near, atol=near)


@pytest.mark.parametrize(
    "method",
    [
        methods.Descent(0.1), methods.Accelerated(), methods.Accelerated(0.1, momentum=0.8),
        methods.Accelerated(0.05, coordinates="states"), methods.Heun(0.1, adaptive=False, coordinates="errors"),
        methods.Sequential(0.1),
    ],
    ids=repr,
)  # fmt: skip
def test_a_linear_networks_equilibrium(method):
    """Of what is not known, by the system of equations that autograd's Hessian is."""
    net = Network(linear=True)
    loop = loop_of(net, method)
    loop.run(4000)
    assert loop.explain().startswith("executor: chain\n")

    def energy(z):
        x, h1, h2, y = (torch.where(k, d, v) for k, d, v in zip(known, data, z.split(SIZES), strict=True))
        a, b, c = net.edges
        return 0.5 * sum(r.square().sum() for r in (x, h1 - a(x), h2 - b(h1), 1.4**0.5 * (y - c(h2))))

    for row in range(BATCH):
        known, data = [k[row] for k in net.known], [d[row] for d in net.data]
        zero, moves = torch.zeros(sum(SIZES), dtype=torch.float64), ~torch.cat(known)
        slope = torch.autograd.functional.jacobian(energy, zero)[moves]
        hessian = torch.autograd.functional.hessian(energy, zero)[moves][:, moves]
        expected = torch.cat(data).clone()
        expected[moves] = torch.linalg.solve(hessian, -slope)
        found = torch.cat([s[row] for s in net.states()]).detach()
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
        # of a target that is not known no error is left
        open_ = torch.cat([torch.zeros(sum(SIZES[:-1]), dtype=torch.bool), ~known[-1]])
        torch.testing.assert_close(found[open_], net.edges[-1](net.states()[2][row])[~known[-1]], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "method", [methods.Accelerated(), methods.Accelerated(0.05, coordinates="states"), methods.Descent(0.1)], ids=repr
)
def test_samples_that_stop_by_themselves(method):
    """To a tolerance, with the bound that networks without masks have; and more where they need more."""
    nets = [Network(linear=True) for _ in range(2)]
    traces = [
        loop_of(net, method, executor=how).run(2000, tol=1e-3) for net, how in zip(nets, (None, "graph"), strict=True)
    ]
    assert traces[0].converged.all()
    assert traces[0].taken.tolist() == traces[1].taken.tolist()
    best = Network(linear=True)
    first = best.energy()
    loop_of(best, methods.Accelerated()).run(3000)
    for net in nets:
        assert (net.energy() - best.energy() <= 1e-3 * (first - best.energy())).all()
        net.assert_untouched()


@pytest.mark.usefixtures("native_backend")
@pytest.mark.parametrize("method", [None, methods.Accelerated(), methods.Adam(0.05), methods.Langevin(0.01)], ids=repr)
def test_no_sample_depends_on_others(method):
    net = Network(batch=19, dtype=torch.float32)
    if isinstance(method, methods.Langevin):
        method = methods.Langevin(0.01, generator=torch.Generator())
        method.generator.manual_seed(3)
    loop_of(net, method).run(5)
    for rows in (slice(0, 1), slice(0, 8)):
        some = net.rows(rows)
        if isinstance(method, methods.Langevin):
            method.generator.manual_seed(3)
        loop_of(some, method).run(5)
        for whole, part in zip(net.free(), some.free(), strict=True):
            assert same_bits(part.detach(), whole.detach()[rows])


@pytest.mark.usefixtures("native_backend")
def test_noise_moves_what_is_not_known():
    net = Network()
    loop = loop_of(net, methods.Langevin(0.01, generator=torch.Generator().manual_seed(0)))
    loop.run(3)
    assert FUSED in loop.explain()
    net.assert_untouched()
    for node, known, before in zip(net.nodes, net.known, net.before, strict=True):
        assert (node.value.detach() != before)[~known].all()


@pytest.mark.parametrize(
    "method", [None, methods.Descent(0.05, momentum=0.8, coordinates="errors"), methods.Adam(0.05), methods.Heun(0.05)],
    ids=repr,
)  # fmt: skip
def test_runs_go_on(method):
    """As one run does, with the energies that autograd has of the states before every step."""
    nets = [Network(), Network()]
    whole, parts = (loop_of(net, method, **({} if method else {"momentum": 0.9})) for net in nets)
    recorded = whole.run(6, record=True).energies
    expected = []
    for steps in (1, 2, 3):
        expected.append(nets[1].energy().mean().item())
        parts.run(steps)
    for mine, theirs in zip(*(net.states() for net in nets), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        recorded.sum(1)[[0, 1, 3]], torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("again", ["mask", "data", "weights"])
def test_predictions_are_fixed_anew_where_what_they_are_of_has_changed(again):
    """As a run begins that has no memory, in one operator and step by step."""
    nets = [Network(seed=1) for _ in range(3)]
    loops = [
        loop_of(net, methods.FixedPrediction(0.3), executor=e)
        for net, e in zip(nets, (None, "graph", None), strict=True)
    ]
    for net, loop in zip(nets, loops, strict=True):
        loop.run(2)
        with torch.no_grad():
            if again == "mask":
                net.known[2][:, :2] = False
            elif again == "data":
                net.data[2].mul_(2.0)
            else:
                net.edges[1].weight.mul_(1.5)
    loops[2] = loop_of(nets[2], methods.FixedPrediction(0.3))
    for loop in loops:
        loop.run(3)
    for net in nets[1:]:
        for mine, theirs in zip(nets[0].states(), net.states(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_states_that_do_not_lie_in_one_piece():
    torch.manual_seed(0)
    z = nn.Parameter(torch.randn(7, 6).double().T)
    known, data, before = torch.rand(6, 7) < 0.5, torch.randn(6, 7).double(), z.detach().clone()
    loop = pyro.InferenceLoop(lambda: 0.5 * (torch.where(known, data, z) - 1).square().sum(1), [z], lr=0.5)
    loop.run(80)
    assert loop.explain().startswith("executor: chain\n")
    assert same_bits(z.detach()[known], before[known])
    torch.testing.assert_close(z.detach()[~known], torch.ones_like(z[~known]))


@pytest.mark.parametrize("method", [None, methods.Accelerated()], ids=repr)
def test_states_that_are_looked_at_after_every_step(method):
    nets = [Network(), Network()]
    for net, check in zip(nets, (False, True), strict=True):
        loop_of(net, method, check_finite=check).run(4)
    for mine, theirs in zip(*(net.states() for net in nets), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


SPELLINGS = {
    "where": lambda k, d, z: torch.where(k, d, z),
    "unknown": lambda k, d, z: torch.where(~k, z, d),
    "method": lambda k, d, z: d.where(k, z),
    "method-of-the-state": lambda k, d, z: z.where(~k, d),
    "operator": lambda k, d, z: torch.ops.aten.where.self(k, d, z),
    "number": lambda k, d, z: torch.where(k, 0.25, z),
    "one-number": lambda k, d, z: torch.where(k, d[:1, :1], z),
    "of-all-samples": lambda k, d, z: torch.where(k[0], d, z),
    "of-whole-samples": lambda k, d, z: torch.where(k[:, :1], d, z),
    "one-row": lambda k, d, z: torch.where(k[:1], d[0], z),
    "by-nan": lambda k, d, z: torch.where(torch.where(k, d, torch.nan).isnan(), z, d),
}


@pytest.mark.usefixtures("native_backend")
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("twice", [False, True])
def test_ways_to_write_it(spelling, twice):
    """Once for all uses of a state, or for every one anew."""
    torch.manual_seed(0)
    net = Network()
    known, data, write = net.known[2], torch.randn(BATCH, SIZES[2]).double(), SPELLINGS[spelling]
    y = torch.randn(BATCH, SIZES[3]).double()

    def energy():
        z = write(known, data, net.nodes[2].value)
        other = write(known, data, net.nodes[2].value) if twice else z
        h = net.nodes[1].value
        below = 0.5 * (h - net.edges[0].bias).square().sum(1) + 0.5 * (z - net.edges[1](h)).square().sum(1)
        return below + 0.5 * (y - net.edges[2](other.relu())).square().sum(1)

    states = [net.nodes[1].value, net.nodes[2].value]
    told = assert_as_autograd(energy, states, list(net.edges[1:].parameters()))
    assert told.startswith("executor: chain\n")
    assert FUSED in pyro.InferenceLoop(energy, states, method=methods.Accelerated()).explain()


_OTHER = "is taken with two masks, or with other data"
_FORM = r"is no state: chains take torch.where\(known, data, state\)"
UNUSUAL = {  # of a network, z, and ones of its form: what has an energy and what predicts, and what is told of it
    "two masks": (lambda n, z, one: (torch.where(n.known[2], one, z), torch.where(~n.known[2], one, z)), _OTHER),
    "other data": (lambda n, z, one: (torch.where(n.known[2], 1.0, z), torch.where(n.known[2], 0.0, z)), _OTHER),
    "as it is": (lambda n, z, one: (torch.where(n.known[2], one, z), z), "is taken as it is by relu"),
    "by name": (lambda n, z, one: [torch.where(n.known[2], input=one, other=z)] * 2, _FORM),
    "data that moves": (lambda n, z, one: [torch.where(n.known[2], n.nodes[1].value[:, :17], z)] * 2, _FORM),
    "a mask that moves": (lambda n, z, one: [torch.where(z > 0, 0.5, z)] * 2, _FORM),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_what_chains_do_not_take(case):
    """It runs all the same."""
    net, y = Network(), torch.randn(BATCH, SIZES[3]).double()
    write, reason = UNUSUAL[case]

    def energy():
        z, other = write(net, net.nodes[2].value, torch.ones_like(y[:, :1]).expand(-1, SIZES[2]))
        h = net.nodes[1].value
        below = 0.5 * h.square().sum(1) + 0.5 * (z - net.edges[1](h)).square().sum(1)
        return below + 0.5 * (y - net.edges[2](other.relu())).square().sum(1)

    states = [net.nodes[1].value, net.nodes[2].value]
    told = assert_as_autograd(energy, states, list(net.edges[1:].parameters()))
    assert told.startswith("executor: graph\n")
    with pytest.raises(RuntimeError, match=reason):
        pyro.InferenceLoop(energy, states, lr=0.1, executor="chain").run(1)


def test_data_of_another_dtype():
    net = Network(dtype=torch.float32)
    net.data[3] = net.data[3].double()
    with pytest.raises(RuntimeError, match=r"chains take torch.where\(known, data, state\).* of the state's own"):
        loop_of(net, executor="chain").run(1)


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (lambda k: k.double(), "boolean"),
        (lambda k: k[:, :3], "must match the size"),
        (lambda k: k[:3], "must match the size"),
    ],
)
def test_masks_of_another_form(mask, told):
    net = Network()
    net.known[2] = mask(net.known[2])
    with pytest.raises(RuntimeError, match=told):
        loop_of(net).run(1)
    assert all(same_bits(z.detach(), before) for z, before in zip(net.free(), net.before, strict=True))


def test_kernels_without_masks(monkeypatch):
    """They leave it to traced graphs, and so does a loop that has run where there were masks."""
    loops = [loop_of(Network()) for _ in range(3)]
    for loop in loops[1:]:
        loop.run(1)
    monkeypatch.setattr(backends, "without_masks", lambda device: "the Triton kernels take no masks")
    loops[0].run(2)
    loops[1].run(1)
    for loop in loops[:2]:
        assert loop.explain().startswith("executor: graph\n")
        assert "not chain: the Triton kernels take no masks" in loop.explain()
    monkeypatch.undo()
    loops[2].run(1)
    assert loops[2].explain().startswith("executor: chain\n")
    for states in zip(*(loop.params for loop in loops), strict=True):
        for z in states[1:]:
            torch.testing.assert_close(z, states[0], rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("native_backend")
@pytest.mark.parametrize(
    "method", [methods.Descent(0.05, momentum=0.8), methods.Adam(0.05), methods.Heun(0.05)], ids=repr
)
def test_known_of_methods_that_remember(method):
    """In one operator as stepwise, by itself and with data in the place of other entries."""
    results = []
    for how in (None, "graph"):
        net = Network()
        own = torch.rand(BATCH, SIZES[2], generator=torch.Generator().manual_seed(1)) < 0.5
        first = torch.arange(SIZES[1]) % 2 == 0
        held = {net.nodes[1]: Known(first), net.nodes[2]: Known(own)}
        loop = loop_of(net, replace(method, constraints=held), executor=how)
        loop.run(5)
        assert (FUSED in loop.explain()) == (how is None)
        assert same_bits(net.nodes[1].value.detach()[:, first], net.before[1][:, first])
        assert same_bits(net.nodes[2].value.detach()[own], net.before[2][own])
        results.append(net.states())
    for mine, exact in zip(*results, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-11, atol=1e-11)


class Completion(nn.Module):
    """y is predicted by a code, and known in some pixels: NaN in data stands for what is not."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.code, self.image, self.data = FloatNode(6), StandardGaussianNode(20), FixedNode(20)
        self.edge = nn.Linear(6, 20)
        self.double()

    def energy(self):
        y = torch.where(self.data.value.isnan(), self.image.value, self.data.value)
        z = self.code.value
        return 0.5 * z.square().sum(1) + functional.gaussian_energy(y, self.edge(z.tanh()))

    def start(self, y):
        self.code.init(torch.zeros(len(y), 6, dtype=y.dtype))
        self.image.init(torch.zeros_like(y))
        self.data.init(y)


def batches():
    generator = torch.Generator().manual_seed(3)
    for _ in range(6):
        y = torch.randn(9, 20, dtype=torch.float64, generator=generator)
        yield torch.where(torch.rand(9, 20, generator=generator) < 0.5, torch.nan, y)


@pytest.mark.usefixtures("native_backend")
@pytest.mark.parametrize("method", [None, methods.Accelerated(), methods.Adam(0.05)], ids=repr)
@pytest.mark.parametrize("incremental", [False, True, "joint"])
def test_whole_batches(method, incremental):
    """Of other masks every time, in one call, as by E-steps and M-steps one after another."""
    nets = [Completion(), Completion()]
    optimizers = [torch.optim.Adam(net.edge.parameters(), 0.01) for net in nets]
    free = [pyro.get_estep_params(net, exclude=[net.data]) for net in nets]
    how = {"lr": 0.1} if method is None else {"method": method}
    em = pyro.EM(nets[0].energy, free[0], optimizers[0], start=nets[0].start, steps=5, incremental=incremental, **how)
    for y in batches():
        em.step(y)
        loop = pyro.InferenceLoop(nets[1].energy, pyro.get_estep_params(nets[1]), **how)
        nets[1].start(y)
        for _ in range(5 if incremental else 1):
            if incremental == "joint":
                optimizers[1].zero_grad()
                loop.backward(nets[1].edge.parameters())
            loop.run(1 if incremental else 5)
            if incremental != "joint":
                optimizers[1].zero_grad()
                loop.backward(nets[1].edge.parameters())
            optimizers[1].step()
        for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)
        assert (nets[0].image.value.detach()[~y.isnan()] == 0).all()
    one_call = method is None or not incremental
    assert em.explain().startswith("a batch: one call" if one_call else "a batch: start, E-steps")


def test_epochs_of_other_masks():
    nets = [Completion(), Completion()]
    y = torch.cat([*batches()])
    for net in nets:
        optimizer = torch.optim.Adam(net.edge.parameters(), 0.01)
        em = pyro.EM(net.energy, pyro.get_estep_params(net), optimizer, start=net.start, steps=5, lr=0.1)
        if net is nets[0]:
            assert sum(part.batches for part in em.epoch(y, batch_size=16, shuffle=False)) == 4
        else:
            for rows in y.split(16):
                em.step(rows)
    for p, q in zip(*(net.edge.parameters() for net in nets), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)


def test_learned_data():
    """A value that is learned for what is known is autograd's, and right."""
    net, scale = Network(), nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
    net.data[3] = torch.randn(BATCH, SIZES[3]).double()
    plain = net.data[3]

    def energy():
        net.data[3] = plain * scale
        return net.energy()

    told = assert_as_autograd(energy, net.free(), [scale, *net.edges.parameters()])
    assert told.startswith("executor: chain\n")


@pytest.mark.usefixtures("native_backend")
def test_a_full_covariance():
    torch.manual_seed(0)
    n, y = 6, torch.randn(BATCH, 4).double()
    factor = functional.cholesky_factor(0.2 * torch.randn(n).double(), 0.3 * torch.randn(n, n).double())
    h = nn.Parameter(torch.randn(BATCH, n).double())
    known, data = torch.rand(BATCH, n) < 0.5, torch.randn(BATCH, n).double()
    prior, edge = torch.randn(n).double(), nn.Linear(n, 4).double()

    def energy():
        z = torch.where(known, data, h)
        below = functional.multivariate_energy(z, prior.expand_as(z), factor)
        return below + 0.5 * (y - edge(z)).square().sum(1)

    assert assert_as_autograd(energy, [h], list(edge.parameters())).startswith("executor: chain\n")
    loop = pyro.InferenceLoop(energy, [h], method=methods.Accelerated(0.05))
    loop.run(2000)
    assert FUSED in loop.explain()
    (gradient,) = torch.autograd.grad(energy().sum(), h)
    torch.testing.assert_close(gradient, torch.zeros_like(h), rtol=0, atol=1e-9)
    stop = pyro.InferenceLoop(energy, [h], method=methods.Accelerated())
    stop.run(50, tol=1e-2)
    assert "no bound: a state has no error, or no precision" in stop.explain()
