"""`EM` does what `start; loop.run; zero_grad; loop.backward; optimizer.step` does: by autograd, in float64."""

import copy
import functools
import platform
import re
import signal
import threading
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyromancy as pyro
from numerics import same_bits
from pyromancy import native, ops
from pyromancy.capture.interrupt import Uninterrupted
from pyromancy.nodes import (
    BernoulliNode,
    FactorizedGaussianNode,
    FixedNode,
    IsotropicGaussianNode,
    LaplaceNode,
    PoissonNode,
    StandardGaussianNode,
    StudentNode,
)
from twins import UNIT, Net, assert_same, assert_same_state, batches, plainly, twins

WAYS = (
    *("under no_grad", "raw values", "zeros", "resets", "noise", "flattened"),
    *("one state of another", "a state twice"),
)
OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m, 0.1),
    "momentum": lambda m: torch.optim.SGD(m, 1e-3, momentum=0.9, dampening=0.2, weight_decay=1e-2, maximize=True),
    "nesterov": lambda m: torch.optim.SGD(m, 0.01, momentum=0.9, nesterov=True),
    "adam": lambda m: torch.optim.Adam(m, 1e-3),
    "adam-all": lambda m: torch.optim.Adam(
        m,
        torch.tensor(1e-3, dtype=torch.float64),
        betas=(0.8, 0.99),
        eps=1e-6,
        weight_decay=0.1,
        amsgrad=True,
        maximize=True,
    ),
    "adamw": lambda m: torch.optim.AdamW(m, 1e-2, weight_decay=0.1, amsgrad=True),
    "groups": lambda m: torch.optim.Adam([{"params": m[:2], "lr": 1e-2}, {"params": m[2:], "weight_decay": 0.1}]),
    "rmsprop": lambda m: torch.optim.RMSprop(m, 1e-3, weight_decay=0.1),
    "rmsprop-all": lambda m: torch.optim.RMSprop(m, 1e-3, momentum=0.8, centered=True, maximize=True, eps=1e-3),
    "called": lambda m: torch.optim.Adagrad(m, 1e-3),
}
KINDS = {
    "unit": UNIT,
    "variances": (FactorizedGaussianNode, IsotropicGaussianNode, FactorizedGaussianNode),
    "scales": (LaplaceNode,) * 3,
    "a-hidden-scale": (StandardGaussianNode, LaplaceNode, FactorizedGaussianNode),
    "heavy-tails": (StudentNode, FactorizedGaussianNode, functools.partial(StudentNode, dof=3)),
    "binary": (StandardGaussianNode, FactorizedGaussianNode, BernoulliNode),
    "counts": (StudentNode, StandardGaussianNode, PoissonNode),
}


class Written(nn.Module):
    """An edge, computed in a way of its own."""

    def __init__(self, linear, forward):
        super().__init__()
        self.linear, self.written = linear, forward

    def forward(self, z):
        return self.written(torch.tanh(z), self.linear.weight, self.linear.bias)


# How an edge may be computed, and whether a batch is one call: parameters that learn in it must be weights themselves
EDGES = {
    "operator": (lambda z, w, b: z @ w.T + b, True),
    "bias-first": (lambda z, w, b: b + z.matmul(w.t()), True),
    "addmm": (lambda z, w, b: torch.addmm(b, z, w.mT), True),
    "einsum": (lambda z, w, b: torch.einsum("bi,oi->bo", z, w) + b, True),
    "columns": (lambda z, w, b: (w @ z.T).T + b, True),
    "views": (lambda z, w, b: F.linear(z.flatten(1), w, b).view(len(z), -1), True),
    "scaled": (lambda z, w, b: 0.5 * F.linear(z, w, b), True),
    "scaled-before": (lambda z, w, b: F.linear(z * 0.5, w, b), True),
    "scaled-parts": (lambda z, w, b: -F.linear(z, 3 * w) / 2 + 0.3 * b, True),
    "transposed": (lambda z, v, b: z @ v + b, True),
    "transposed-linear": (lambda z, v, b: F.linear(z, v.T, b), True),
    "transposed-scaled": (lambda z, v, b: 0.5 * (z @ v + b), True),
    "computed": (lambda z, w, b: z @ (w.T * w.T.sign().abs()) + b, True),
}


class Parents(nn.Module):
    """8-16-4-3, each but the first predicted by several; the inner two start by the one below them."""

    def __init__(self, *sources):
        super().__init__()
        torch.manual_seed(0)
        widths, self.sources = (8, 16, 4, 3), sources
        self.below, self.nodes = FixedNode(8), nn.ModuleList(map(StandardGaussianNode, widths[1:]))
        self.of = {(s, t): nn.Linear(widths[s], widths[t]) for t, of in enumerate(sources, 1) for s in of}
        self.edges = nn.ModuleList(self.of.values())
        self.double()

    def predicted(self, target, sources):
        states = [self.below, *self.nodes]
        return sum(self.of[s, target](torch.tanh(states[s].value)) for s in sources)

    def start(self, x, y):
        self.below.init(x)
        self.nodes[0].init(self.predicted(1, (0,)))
        self.nodes[1].init(self.predicted(2, (1,)))
        self.nodes[2].init(y)

    def energy(self):
        return sum(n.energy(self.predicted(t, self.sources[t - 1])) for t, n in enumerate(self.nodes, 1))

    def e_params(self):
        return [n.value for n in self.nodes[:2]]

    def m_params(self):
        return list(self.edges.parameters())


CIRCLES = (0, 1, 2), (1, 3), (2,)
METHODS = (
    pyro.methods.Heun(0.1, adaptive=False),
    pyro.methods.Heun(0.1, adaptive=False, coordinates="errors"),
    pyro.methods.Accelerated(coordinates="states"),
    pyro.methods.Adam(0.05),
    pyro.methods.Sequential(0.1),
    pyro.methods.ZIL(),
)


def write_edges(net, how):
    """Have a network's edges computed otherwise, some of them with weights that are stored [in, out]."""
    for _, linear in net.edges:
        if how.startswith("transposed"):
            linear.weight.data = linear.weight.data.T.contiguous()
    net.edges = nn.ModuleList(Written(e[1], EDGES[how][0]) for e in net.edges)


def check_epochs(net, *, size, passes):
    """Passes over data in order come to what batches by autograd do."""
    plain = copy.deepcopy(net)
    x, y = torch.rand(30, 8).double(), torch.rand(30, 3).double()
    em = pyro.EM(net.energy, net.e_params(), OPTIMIZERS["sgd"](net.m_params()), start=net.start, steps=3, lr=0.1)
    theirs = OPTIMIZERS["sgd"](plain.m_params())
    for _ in range(passes):
        list(em.epoch(x, y, batch_size=size, shuffle=False))
        for rows in torch.arange(30).split(size):
            plainly(plain, theirs, x[rows], y[rows], steps=3, lr=0.1)
    assert_same(net.m_params() + net.e_params(), plain.m_params() + plain.e_params())


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("incremental", [False, True, "joint"], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_equals_the_plain_loop(optimizer, incremental, kinds):
    rate = 0.02 if kinds == "counts" else 0.1  # steeper: exp would make more and more of what rounding leaves
    em = learned_as_plainly(twins(kinds=KINDS[kinds]), optimizer, incremental, rate)
    assert ("one call" in em.explain().splitlines()[0]) == (optimizer != "called")


def learned_as_plainly(both, optimizer, incremental, rate=0.1):
    """The EM of one of two twins, after five batches that have left what autograd leaves the other."""
    net, plain = both
    ours, theirs = (OPTIMIZERS[optimizer](n.m_params()) for n in (net, plain))
    em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=5, lr=rate, incremental=incremental)
    for x, y in batches(5, last=7):
        em.step(x, y)
        plainly(plain, theirs, x, y, steps=5, lr=rate, incremental=incremental)
        assert_same(net.e_params(), plain.e_params())
    assert_same(net.m_params(), plain.m_params())
    assert_same_state(ours, theirs)
    return em


@pytest.mark.parametrize("incremental", [False, True, "joint"], ids=str)
def test_an_energy_that_cannot_be_captured_learns_from_batches_of_any_size(incremental):
    """From so many that a capture has been tried at every place in a batch."""
    net, plain = twins()
    energy = net.energy
    net.energy = lambda: e if (e := energy()).sum().item() >= 0 else -e
    ours, theirs = (torch.optim.SGD(n.m_params(), 0.01) for n in (net, plain))
    em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=2, lr=0.1, incremental=incremental)
    for n in (7, 7, 4) * 20:
        x, y = torch.rand(n, 8).double(), torch.rand(n, 3).double()
        em.step(x, y)
        plainly(plain, theirs, x, y, steps=2, lr=0.1, incremental=incremental)
        assert_same(net.e_params() + net.m_params(), plain.e_params() + plain.m_params())
    assert "executor: autograd" in em.explain()


@pytest.mark.parametrize("how", ["scaled-parts", "transposed-scaled"])
@pytest.mark.parametrize("incremental", [False, True, "joint"], ids=str)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop-all"])
def test_weights_that_edges_scale_or_transpose_learn_as_they_are_stored(optimizer, incremental, how):
    both = twins()
    for n in both:
        write_edges(n, how)
    assert learned_as_plainly(both, optimizer, incremental).explain().startswith("a batch: one call")


@pytest.mark.parametrize("how", ["scaled", "transposed-scaled"])
def test_an_epoch_of_weights_that_edges_scale_or_transpose(how):
    net, _ = twins()
    write_edges(net, how)
    check_epochs(net, size=10, passes=2)


def test_momentum_below_zero_is_none_to_rmsprop():
    net, plain = twins()
    ours, theirs = (torch.optim.RMSprop(n.m_params(), 1e-3) for n in (net, plain))
    for optimizer in (ours, theirs):
        optimizer.param_groups[0]["momentum"] = -0.5
    em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=2, lr=0.1)
    for x, y in batches(2):
        em.step(x, y)
        plainly(plain, theirs, x, y, steps=2, lr=0.1)
    assert_same(net.m_params(), plain.m_params())
    assert_same_state(ours, theirs)


class Weighted(Net):
    """With weights per sample that `start` computes and keeps."""

    def start(self, x, y, weights):
        self.weights = weights.sqrt()
        super().start(x, y)

    def energy(self):
        return self.weights * super().energy()


def test_what_start_computes_and_keeps_is_that_of_every_batch_of_an_epoch():
    # the last batch is smaller, so that epochs begin with a capture of start
    net = Weighted().double()
    plain = copy.deepcopy(net)
    ours, theirs = (torch.optim.SGD(n.m_params(), 0.1) for n in (net, plain))
    em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=3, lr=0.1)
    x, y, weights = torch.rand(50, 8).double(), torch.rand(50, 3).double(), torch.rand(50).double()
    for _ in range(3):
        list(em.epoch(x, y, weights, batch_size=8, shuffle=False))
        for rows in torch.arange(50).split(8):
            plain.start = lambda x, y, w=weights[rows]: Weighted.start(plain, x, y, w)
            plainly(plain, theirs, x[rows], y[rows], steps=3, lr=0.1)
        assert_same(net.m_params(), plain.m_params())


@pytest.mark.parametrize("options", [{"momentum": 0.8}, {"momentum": 0.8, "nesterov": True}], ids=str)
def test_momentum_of_states_starts_anew_with_every_batch(options):
    net, plain = twins()
    ours, theirs = (OPTIMIZERS["adam"](n.m_params()) for n in (net, plain))
    em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=6, lr=0.05, **options)
    for x, y in batches(3):
        em.step(x, y)
        plainly(plain, theirs, x, y, steps=6, lr=0.05, **options)
    assert_same(net.m_params() + net.e_params(), plain.m_params() + plain.e_params())


def test_a_scheduler_between_batches():
    net, plain = twins()
    ours, theirs = (OPTIMIZERS["adam"](n.m_params()) for n in (net, plain))
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (ours, theirs)]
    em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=4, lr=0.1)
    for x, y in batches(4):
        em.step(x, y)
        plainly(plain, theirs, x, y, steps=4, lr=0.1)
        for schedule in schedules:
            schedule.step()
    assert "one call" in em.explain().splitlines()[0]
    assert_same(net.m_params(), plain.m_params())


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_is_its_batches(shuffle, drop_last):
    net, other = twins()
    x, y = torch.rand(57, 8).double(), torch.rand(57, 3).double()
    ours, theirs = (OPTIMIZERS["adam"](n.m_params()) for n in (net, other))
    em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=4, lr=0.1)
    step = pyro.EM(other.energy, other.e_params(), theirs, start=other.start, steps=4, lr=0.1)
    a, b = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for _ in range(2):
        parts = list(em.epoch(x, y, batch_size=10, shuffle=shuffle, drop_last=drop_last, generator=a))
        assert sum(p.batches for p in parts) == 6 - drop_last
        assert sum(p.samples for p in parts) == 57 - 7 * drop_last
        order = torch.randperm(57, generator=b) if shuffle else torch.arange(57)
        for rows in order[: 50 if drop_last else 57].split(10):
            step.step(x[rows], y[rows])
    assert all(same_bits(p, q) for p, q in zip(net.m_params(), other.m_params(), strict=True))


def test_an_epoch_that_is_left_early_has_learned_from_whole_batches_and_the_next_is_whole():
    net, other = twins()
    x, y = torch.rand(57, 8).double(), torch.rand(57, 3).double()
    ours, theirs = (OPTIMIZERS["adam"](n.m_params()) for n in (net, other))
    em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=4, lr=0.1)
    step = pyro.EM(other.energy, other.e_params(), theirs, start=other.start, steps=4, lr=0.1)
    a, b = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for whole in (False, False, True):
        order, done = torch.randperm(57, generator=b), 0
        for part in em.epoch(x, y, batch_size=10, generator=a):
            done += part.samples
            if not whole:
                break
        assert done == 57 if whole else 0 < done < 57
        for rows in order[:done].split(10):
            step.step(x[rows], y[rows])
    assert em.batches == step.batches
    assert all(same_bits(p, q) for p, q in zip(net.m_params(), other.m_params(), strict=True))
    assert em.state_dict()["order"] is None


def test_an_epoch_resumes_in_the_middle_to_the_same_bits():
    net, other = twins()
    x, y = torch.rand(100, 8).double(), torch.rand(100, 3).double()
    generator = torch.Generator().manual_seed(5)
    em = pyro.EM(net.energy, net.e_params(), OPTIMIZERS["adam"](net.m_params()), start=net.start, steps=4, lr=0.1)
    epoch = em.epoch(x, y, batch_size=10, generator=generator)
    next(epoch)
    saved = copy.deepcopy((em.state_dict(), net.state_dict()))
    list(epoch)
    list(em.epoch(x, y, batch_size=10, generator=generator))
    other.load_state_dict(saved[1])
    again = pyro.EM(
        other.energy, other.e_params(), OPTIMIZERS["adam"](other.m_params()), start=other.start, steps=4, lr=0.1
    )
    again.load_state_dict(saved[0])
    generator = torch.Generator()
    for _ in range(2):
        list(again.epoch(x, y, batch_size=10, generator=generator))
    assert all(same_bits(p, q) for p, q in zip(net.m_params(), other.m_params(), strict=True))


def test_an_epoch_that_nobody_iterates_warns_and_changes_nothing():
    """Neither weights nor generators, nor what is left of an epoch that is to be finished."""
    net, other = twins()
    x, y = torch.rand(40, 8).double(), torch.rand(40, 3).double()
    em, plain = (
        pyro.EM(n.energy, n.e_params(), OPTIMIZERS["sgd"](n.m_params()), start=n.start, steps=2, lr=0.1)
        for n in (net, other)
    )
    generator = torch.Generator().manual_seed(1)
    before, drawn = copy.deepcopy(em.state_dict()), generator.get_state()
    told = r"em\.epoch\(\.\.\.\) was never iterated, so that nothing was learned: write `for part in em\.epoch"
    with pytest.warns(RuntimeWarning, match=told) as warned:
        em.epoch(x, y, batch_size=10, generator=generator)
    assert [w.filename for w in warned] == [__file__]
    assert em.state_dict() == before
    assert torch.equal(generator.get_state(), drawn)
    for each in (em, plain):
        next(each.epoch(x, y, batch_size=10, generator=torch.Generator().manual_seed(1)))  # begun: no warning
        each.load_state_dict(each.state_dict())
    with pytest.warns(RuntimeWarning, match=told):
        em.epoch(x, y, batch_size=10, generator=generator)
    for each in (em, plain):
        assert sum(part.samples for part in each.epoch(x, y, batch_size=10, generator=torch.Generator())) == 30
    assert all(same_bits(p, q) for p, q in zip(net.m_params(), other.m_params(), strict=True))


@pytest.mark.parametrize("incremental", [False, True], ids=str)
@pytest.mark.parametrize("way", ["one call", "parts"])
def test_ctrl_c_in_an_epoch_leaves_whole_batches(way, incremental, monkeypatch):
    """Weights, optimizer and what is left agree, and the rest comes to the same bits; also from the first batch on."""
    kind = "momentum" if way == "one call" else "called"
    x, y = torch.rand(200, 8).double(), torch.rand(200, 3).double()

    def em_of(net):
        return pyro.EM(
            net.energy, net.e_params(), OPTIMIZERS[kind](net.m_params()),
            start=net.start, steps=3, lr=0.1, incremental=incremental,
        )  # fmt: skip

    for first in (True, False):
        net, plain = twins()
        em, undisturbed = em_of(net), em_of(plain)
        epoch = em.epoch(x, y, batch_size=10, shuffle=False)
        if not first:
            next(epoch)
        with monkeypatch.context() as patch:
            owner, name = (ops, "run_plan_") if way == "one call" else (type(em.optimizer), "step")
            original = getattr(owner, name)

            def interrupted(*args, original=original):
                original(*args)
                signal.raise_signal(signal.SIGINT)

            patch.setattr(owner, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                list(epoch)
        assert ("one call" in em.explain().splitlines()[0]) == (way == "one call")
        state, left = copy.deepcopy(em.state_dict()), em.state_dict()["order"]
        assert 0 < len(left) < 200
        assert len(left) % 10 == 0
        again = em_of(net)
        again.load_state_dict(state)
        list(again.epoch(x, y, batch_size=10, shuffle=False))
        list(undisturbed.epoch(x, y, batch_size=10, shuffle=False))
        assert all(map(same_bits, net.m_params(), plain.m_params()))
        assert_same_state(again.optimizer, undisturbed.optimizer)


def test_ctrl_c_in_a_first_batch_leaves_the_velocities_that_it_has_begun(monkeypatch):
    net, plain = twins()
    ours, theirs = (OPTIMIZERS["momentum"](n.m_params()) for n in (net, plain))
    em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=3, lr=0.1)
    original = ops.run_plan_

    def interrupted(*args):
        original(*args)
        signal.raise_signal(signal.SIGINT)

    for i, (x, y) in enumerate(batches(3)):
        with monkeypatch.context() as patch:
            if i == 0:
                patch.setattr(ops, "run_plan_", interrupted)
            with pytest.raises(KeyboardInterrupt) if i == 0 else nullcontext():
                em.step(x, y)
        plainly(plain, theirs, x, y, steps=3, lr=0.1)
        assert_same_state(ours, theirs)
    assert_same(net.m_params(), plain.m_params())


def test_ctrl_c_is_heeded_where_nothing_waits_for_it():
    before = signal.getsignal(signal.SIGINT)
    went_on = []

    def interrupt():
        with Uninterrupted(), Uninterrupted():
            signal.raise_signal(signal.SIGINT)
            went_on.append(True)

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert went_on
    assert signal.getsignal(signal.SIGINT) is before
    thread = threading.Thread(target=Uninterrupted().__enter__)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("optimizer", ["adam", "called"])
def test_an_exception_in_an_epoch_leaves_whole_batches(optimizer):
    net, plain = twins()
    x, y = torch.rand(50, 8).double(), torch.rand(50, 3).double()
    bad = x[30, 0].item()

    def start(a, b):
        if a[0, 0].item() == bad:
            raise OSError("no such sample")
        net.start(a, b)

    ours, theirs = (OPTIMIZERS[optimizer](n.m_params()) for n in (net, plain))
    em = pyro.EM(net.energy, net.e_params(), ours, start=start, steps=3, lr=0.1)
    with pytest.raises(OSError, match="no such sample"):
        list(em.epoch(x, y, batch_size=10, shuffle=False))
    assert em.state_dict()["order"].tolist() == list(range(30, 50))
    for rows in torch.arange(30).split(10):
        plainly(plain, theirs, x[rows], y[rows], steps=3, lr=0.1)
    assert_same(net.m_params(), plain.m_params())
    assert_same_state(ours, theirs)


class TestState:
    """Of an epoch in the middle."""

    def em(self):
        net, _ = twins()
        return pyro.EM(net.energy, net.e_params(), OPTIMIZERS["sgd"](net.m_params()), start=net.start, steps=2, lr=0.1)

    def saved(self, **epoch):
        em = self.em()
        next(em.epoch(torch.rand(40, 8).double(), torch.rand(40, 3).double(), batch_size=10, **epoch))
        return em.state_dict()

    @pytest.mark.parametrize("had", [True, False])
    def test_a_generator_goes_with_it(self, had):
        data = torch.rand(40, 8).double(), torch.rand(40, 3).double()
        state = self.saved(generator=torch.Generator() if had else None)
        em = self.em()
        em.load_state_dict(state)
        message = "generator must be given, as one was" if had else "generator must be None, as it was"
        with pytest.raises(ValueError, match=message):
            em.epoch(*data, batch_size=10, generator=None if had else torch.Generator())
        assert torch.equal(em.state_dict()["order"], state["order"])  # it still is to be finished
        done = em.epoch(*data, batch_size=10, generator=torch.Generator() if had else None)
        assert sum(p.samples for p in done) == len(state["order"])

    def test_before_any_epoch_it_says_nothing_of_generators(self):
        em = self.em()
        em.load_state_dict(self.em().state_dict())
        done = em.epoch(torch.rand(40, 8), torch.rand(40, 3), batch_size=10, generator=torch.Generator())
        assert sum(p.samples for p in done) == 40

    @pytest.mark.parametrize(
        ("entry", "value", "message"),
        [
            ("order", [1, 2], "got list"),
            ("order", torch.tensor([1.0]), r"got torch.float32 of shape \(1,\)"),
            ("order", torch.tensor([[1, 2]]), r"got torch.int64 of shape \(1, 2\)"),
            ("order", torch.tensor([3, -1]), "got -1"),
            ("order", torch.tensor([3, 1, 3]), "got one of them twice"),
            ("generator", 5, "got int"),
            ("generator", torch.ones(3), "got torch.float32"),
        ],
        ids=["list", "dtype", "shape", "negative", "twice", "number", "floats"],
    )
    def test_what_cannot_be_one_is_refused(self, entry, value, message):
        em, state = self.em(), self.saved()
        state["optimizer"]["param_groups"][0]["lr"] = 7.0
        with pytest.raises(ValueError, match=f"{entry} must be None or .*{message}"):
            em.load_state_dict({**state, entry: value})
        assert em.optimizer.param_groups[0]["lr"] == 0.1
        assert em.state_dict()["order"] is None

    def test_what_is_no_state_is_refused(self):
        em, state = self.em(), self.saved()
        with pytest.raises(TypeError, match="state must be a dictionary, as state_dict gives it, got list"):
            em.load_state_dict([])
        del state["order"]
        with pytest.raises(ValueError, match="got none for order"):
            em.load_state_dict(state)

    def test_another_optimizers_state_is_refused(self):
        em, state = self.em(), self.saved()
        other = torch.optim.Adam(em.optimizer.param_groups[0]["params"], 7.0).state_dict()
        with pytest.raises(ValueError, match=r"optimizer must be of this EM's kind, SGD, got one without .*momentum"):
            em.load_state_dict({**state, "optimizer": other})
        assert em.optimizer.param_groups[0]["lr"] == 0.1
        em.load_state_dict(state)

    def test_other_data_are_refused(self):
        em, state = self.em(), self.saved(shuffle=False)
        em.load_state_dict(state)
        with pytest.raises(ValueError, match="data must be those of the epoch that is to be finished, got 39 samples"):
            em.epoch(torch.rand(39, 8), torch.rand(39, 3), batch_size=10)
        assert torch.equal(em.state_dict()["order"], state["order"])


def test_errors_of_a_sweep_are_exactly_zero():
    """With T E-steps only the T + 1 topmost edges have gradients, and Adam leaves the others alone, in every bit."""
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        net = Net((8, *[24] * 6, 3), (StandardGaussianNode,) * 7).to(dtype)
        before = [p.detach().clone() for p in net.m_params()]
        em = pyro.EM(
            net.energy, net.e_params(), torch.optim.Adam(net.m_params(), 0.1), start=net.start, steps=3, lr=0.1
        )
        for batch in (1, 3, 50):
            em.step(torch.rand(batch, 8, dtype=dtype), torch.rand(batch, 3, dtype=dtype))
        assert "one call" in em.explain()
        moved = [not same_bits(p, q) for p, q in zip(net.m_params(), before, strict=True)]
        assert moved == [False] * 6 + [True] * 8


class TestStart:
    def loops(self, start=None, **kwargs):
        net, plain = twins()
        optimizer = OPTIMIZERS["adam"](net.m_params())
        make = start(net) if start else net.start
        return (
            net,
            plain,
            pyro.EM(net.energy, net.e_params(), optimizer, start=make, steps=3, lr=0.1, **kwargs),
            OPTIMIZERS["adam"](plain.m_params()),
        )

    @pytest.mark.parametrize("way", WAYS)
    def test_ways_to_write_it(self, way):
        def written(net):
            def start(x, y):
                if way == "resets":
                    for node in net.nodes:
                        node.reset()
                if way == "flattened":
                    x = x.reshape(len(x), -1)
                net.below.init(x)
                if way == "zeros":
                    hidden = x.new_zeros(len(x), 32), x.new_zeros(len(x), 16)
                elif way == "noise":
                    g = torch.Generator().manual_seed(0)
                    hidden = [torch.randn(len(x), n, generator=g).double() for n in (32, 16)]
                elif way == "raw values":
                    first = net.edges[0](x)
                    hidden = first, net.edges[1](first)
                else:
                    with torch.no_grad():
                        first = net.edges[0](net.below.value)
                        hidden = first, net.edges[1](first)
                if way == "one state of another":
                    z = net.nodes[0].init(0.5 * net.edges[0](net.below.value))
                    net.nodes[1].init(net.edges[1](z) + 0.1)
                    net.nodes[2].init(y)
                    return
                if way == "a state twice":
                    z = net.nodes[0].init(hidden[1] @ hidden[1].mT @ hidden[0])
                    hidden = 0.5 * z, hidden[1]
                net.nodes[0].init(hidden[0])
                net.nodes[1].init(hidden[1])
                net.nodes[2].init(y)

            return start

        net, plain, em, theirs = self.loops(written)
        plain.start = written(plain)
        for x, y in batches(4, last=9):
            em.step(x, y)
            plainly(plain, theirs, x, y, steps=3, lr=0.1)
        assert_same(net.m_params(), plain.m_params())

    @pytest.mark.parametrize("how", EDGES)
    def test_a_sweep_however_its_edges_are_written(self, how):
        """After one E-step only the last hidden state has left its prediction: the edges below do not learn at all."""
        one_call = EDGES[how][1]
        net, plain, em, theirs = self.loops(lambda net: net.start)
        for n in (net, plain):
            write_edges(n, how)
        em.loop.lr, em.steps = 0.1, 1
        before = [p.detach().clone() for p in net.edges[0].parameters()]
        for x, y in batches(1):
            em.step(x, y)
            plainly(plain, theirs, x, y, steps=1, lr=0.1)
        assert em.explain().startswith("a batch: one call" if one_call else "a batch: start")
        assert "executor: chain" in em.explain()
        assert "not fused" not in em.explain()
        assert all(same_bits(p.detach(), q) for p, q in zip(net.edges[0].parameters(), before, strict=True))
        for x, y in batches(3):
            em.step(x, y)
            plainly(plain, theirs, x, y, steps=1, lr=0.1)
        assert_same(net.m_params(), plain.m_params())

    @pytest.mark.parametrize("incremental", [False, True, "joint"], ids=str)
    @pytest.mark.parametrize("momentum", [0.0, 0.5])
    def test_circles_start_by_the_edges_that_do_not_go_back(self, momentum, incremental):
        """Within the one call, which a whole pass is, too."""
        net, plain = Parents(*CIRCLES), Parents(*CIRCLES)
        ours, theirs = (OPTIMIZERS["adam"](n.m_params()) for n in (net, plain))
        how = {"lr": 0.1, "momentum": momentum, "incremental": incremental}
        em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=3, **how)
        x, y = torch.rand(23, 8).double(), torch.rand(23, 3).double()
        for size in (5, 1):
            list(em.epoch(x, y, batch_size=size, shuffle=False))
            for rows in torch.arange(23).split(size):
                plainly(plain, theirs, x[rows], y[rows], steps=3, **how)
        assert_same(net.m_params() + net.e_params(), plain.m_params() + plain.e_params())
        assert em.explain().startswith("a batch: one call of an operator\n")
        assert em._fused.swept
        assert len(em._fused.unswept) == 3
        for _ in range(40):  # until a batch is repeated
            em.step(x, y)
            plainly(plain, theirs, x, y, steps=3, **how)
        assert (em._repeat is None) == (momentum > 0 or native.MODULE is None)
        assert_same(net.m_params() + net.e_params(), plain.m_params() + plain.e_params())

    @pytest.mark.parametrize(("method", "sources"), [
        (method, sources)
        for method in METHODS
        for sources in (CIRCLES, ((0, 3), (0, 1, 3), (1, 2)), ((0,), (0, 1), (1, 2)))
        # errors move where every edge leads to a later node, as in the last
        if method.moves == "states" or sources == ((0,), (0, 1), (1, 2))
    ], ids=str)  # fmt: skip
    def test_what_starts_by_some_edges_begins_with_errors(self, method, sources):
        """Which move, or the states that they are of, which a plan sets itself then."""
        net, plain = Parents(*sources), Parents(*sources)
        ours, theirs = (OPTIMIZERS["sgd"](n.m_params()) for n in (net, plain))
        em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=3, method=method)
        loop = pyro.InferenceLoop(plain.energy, plain.e_params(), method=method, executor="graph")
        for x, y in batches(3):
            em.step(x, y)
            plain.start(x, y)
            loop.run(3)
            theirs.zero_grad()
            loop.backward(plain.m_params())
            theirs.step()
        assert_same(net.m_params() + net.e_params(), plain.m_params() + plain.e_params())
        if native.MODULE is not None:
            assert em.explain().startswith("a batch: one call of an operator\n")
            assert bool(em._fused.unswept) == (method.moves == "states")

    def test_a_weight_that_is_computed_is_told(self):
        net, _, em, _ = self.loops(lambda net: net.start)
        write_edges(net, "computed")
        em.step(*batches(1)[0])
        assert em.explain().startswith("a batch: one call of an operator, then the optimizer\n")
        told = "the optimizer is called: edges.0.linear.weight is learned through what is computed from it, mul of"
        assert told in em.explain()
        em.incremental = True
        em.step(*batches(1)[0])
        assert "not one call: edges.0.linear.weight is learned through what is computed from it" in em.explain()

    def test_images(self):
        """Data that are flattened on their way into the first Linear."""
        net, plain, em, theirs = self.loops(lambda net: net.start)
        for n in (net, plain):
            n.below = FixedNode(1, 2, 4).double()
            n.edges[0] = nn.Sequential(nn.Flatten(), n.edges[0][1])
        for x, y in batches(3):
            em.step(x.view(-1, 1, 2, 4), y)
            plainly(plain, theirs, x.view(-1, 1, 2, 4), y, steps=3, lr=0.1)
        assert "one call" in em.explain().splitlines()[0]
        assert_same(net.m_params(), plain.m_params())
        x, y = torch.rand(40, 1, 2, 4).double(), torch.rand(40, 3).double()
        list(em.epoch(x, y, batch_size=20, shuffle=False))
        for rows in (slice(0, 20), slice(20, 40)):
            plainly(plain, theirs, x[rows], y[rows], steps=3, lr=0.1)
        assert_same(net.m_params(), plain.m_params())

    def test_gradients_of_before_are_zeroed(self):
        """As many write it; by `zero_grad` of the network, which looks at every parameter's gradient."""

        def cleared(net):
            def start(x, y):
                net.zero_grad()
                for node in net.nodes:
                    node.reset()
                net.start(x, y)

            return start

        net, plain, em, theirs = self.loops(cleared)
        plain_start = plain.start
        plain.start = lambda x, y: (plain.zero_grad(), plain_start(x, y))
        for x, y in batches(3):
            for p in net.m_params():
                p.grad = torch.ones_like(p)
            em.step(x, y)
            assert all(p.grad is None for p in net.m_params())
            plainly(plain, theirs, x, y, steps=3, lr=0.1)
        assert "one call" in em.explain().splitlines()[0]
        assert_same(net.m_params(), plain.m_params())

    @pytest.mark.parametrize("optimizer", ["adam", "called"])
    def test_a_start_that_takes_gradients(self, optimizer):
        """Those of the batch before where the optimizer is called, and none where a batch is one call."""

        def leaning(net):
            def start(x, y):
                gradient = net.edges[0][1].bias.grad
                first = net.edges[0](net.below.init(x))
                first = net.nodes[0].init(first if gradient is None else first + gradient)
                net.nodes[1].init(net.edges[1](first))
                net.nodes[2].init(y)

            return start

        net, plain = twins()
        ours, theirs = (OPTIMIZERS[optimizer](n.m_params()) for n in (net, plain))
        em = pyro.EM(net.energy, net.e_params(), ours, start=leaning(net), steps=3, lr=0.1)
        plain.start = leaning(plain)
        for x, y in batches(4):
            em.step(x, y)
            plainly(plain, theirs, x, y, steps=3, lr=0.1)
            if "one call" in em.explain().splitlines()[0]:
                theirs.zero_grad()
        assert_same(net.m_params(), plain.m_params())

    def test_an_energy_that_takes_the_batch_itself(self):
        """An epoch cannot pick rows for it, and goes batch by batch."""

        class Direct(Net):
            def start(self, x, y):
                super().start(x, y)
                self.x = x

            def energy(self):
                values = [self.x, *(n.value for n in self.nodes)]
                return sum(n.energy(e(v)) for n, e, v in zip(self.nodes, self.edges, values, strict=False))

        torch.manual_seed(0)
        net = Direct().double()
        check_epochs(net, size=10, passes=2)

    def test_a_tensor_given_twice(self):
        net, plain = twins((3, 32, 16, 3))
        em = pyro.EM(net.energy, net.e_params(), OPTIMIZERS["sgd"](net.m_params()), start=net.start, steps=3, lr=0.1)
        theirs = OPTIMIZERS["sgd"](plain.m_params())
        for _, y in batches(3):
            em.step(y, y)
            plainly(plain, theirs, y, y, steps=3, lr=0.1)
            em.step(y.flip(1), y)
            plainly(plain, theirs, y.flip(1), y, steps=3, lr=0.1)
        assert_same(net.m_params(), plain.m_params())

    def test_a_changed_start_is_noticed(self):
        net, plain, em, theirs = self.loops(lambda net: lambda x, y: net.start(x * net.scale, y))
        start = plain.start
        plain.start = lambda x, y: start(x * plain.scale, y)
        for i, (x, y) in enumerate(batches(4)):
            net.scale = plain.scale = 1.0 + (i > 1)
            em.step(x, y)
            plainly(plain, theirs, x, y, steps=3, lr=0.1)
        assert_same(net.m_params(), plain.m_params())

    def test_changed_weights_are_noticed(self):
        net, plain, em, theirs = self.loops()
        for i, (x, y) in enumerate(batches(4)):
            if i == 2:
                for n in (net, plain):
                    with torch.no_grad():
                        n.edges[1][1].weight.mul_(0.5)
                    n.edges[2][1].weight.data = n.edges[2][1].weight.data * 2
            em.step(x, y)
            plainly(plain, theirs, x, y, steps=3, lr=0.1)
        assert_same(net.m_params(), plain.m_params())


class TestBadInput:
    def em(self, net=None, **changes):
        net = net or Net()
        given = {"start": net.start, "steps": 3, "lr": 0.1} | changes
        optimizer = given.pop("optimizer", None) or torch.optim.Adam(net.m_params())
        return pyro.EM(net.energy, net.e_params(), optimizer, **given)

    def test_a_start_that_sets_nothing(self):
        em = self.em(start=lambda x, y: None)
        with pytest.raises(ValueError, match="start must set states by their init, and sets none"):
            em.step(torch.rand(4, 8), torch.rand(4, 3))

    def test_an_optimizer_of_states(self):
        net = Net()
        with pytest.raises(ValueError, match=r"must not move states, got nodes\.0\.value"):
            self.em(net, optimizer=torch.optim.Adam(net.parameters()))

    @pytest.mark.parametrize("way", ["one call", "chain", "graph", "autograd"])
    @pytest.mark.parametrize("incremental", [False, True, "joint"], ids=str)
    def test_an_optimizer_of_what_the_energy_lacks(self, way, incremental):
        """Whatever runs a batch; nothing is learned before it is told."""
        net = Net()
        if way in ("graph", "autograd"):
            energy, changed = net.energy, (lambda e: e + 0 * net.nodes[0].value.logsumexp(1))
            if way == "autograd":
                changed = lambda e: e if e.sum().item() >= 0 else -e  # noqa: E731
            net.energy = lambda: changed(energy())
        learned = [*net.m_params(), nn.Parameter(torch.ones(5))]
        kind = torch.optim.Adam if way == "one call" else torch.optim.Adagrad
        em = self.em(net, optimizer=kind(learned), incremental=incremental)
        before = [p.detach().clone() for p in learned]
        with pytest.raises(ValueError, match=r"must hold parameters that the energy uses, got one of shape \(5,\)"):
            em.step(torch.rand(4, 8), torch.rand(4, 3))
        assert f"executor: {'chain' if way == 'one call' else way}" in em.loop.explain()
        assert all(map(same_bits, learned, before))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [({"steps": -1}, "steps must not be negative"), ({"lr": -1.0}, "lr must be finite and not negative"),
         ({"incremental": "both"}, "incremental must be False, True or 'joint', got 'both'")],
        ids=lambda x: "",
    )  # fmt: skip
    def test_options(self, changes, message):
        with pytest.raises(ValueError, match=message):
            self.em(**changes)

    def test_types(self):
        with pytest.raises(TypeError, match=r"optimizer must be of torch\.optim, got int"):
            self.em(optimizer=3)
        with pytest.raises(TypeError, match="start must be callable"):
            self.em(start=3)

    def test_learned_weights_among_the_states(self):
        net = Net()
        weight = net.edges[0][1].weight
        others = [p for p in net.m_params() if p is not weight]
        with pytest.warns(UserWarning, match=r"hold what is learned: edges\.0\.1\.weight; pyromancy\.get_e") as caught:
            pyro.EM(net.energy, [*net.e_params(), weight], torch.optim.SGD(others), start=net.start, steps=3, lr=0.1)
        assert [w.filename for w in caught] == [__file__]

    @pytest.mark.parametrize("unset", range(4))
    def test_a_node_that_start_does_not_set(self, unset):
        """Neither clamped ones nor free ones: the message has the node."""
        net = Net()
        nodes = [net.below, *net.nodes]

        def start(*values):
            for i, (node, value) in enumerate(zip(nodes, values, strict=True)):
                if i != unset:
                    node.init(value)

        em = self.em(net, start=start)
        name = "FixedNode(8)" if unset == 0 else f"StandardGaussianNode({net.nodes[unset - 1].size})"
        with pytest.raises(RuntimeError, match=rf"call init\(.*\) of the {re.escape(name)} first"):
            em.step(*(torch.rand(4, node.size) for node in nodes))

    @pytest.mark.parametrize("other", [0, 1, 2, 3])
    def test_a_state_of_another_batch_size(self, other):
        """Data that `start` is given, or what it makes itself."""
        net = Net()
        nodes = [net.below, *net.nodes]
        before = [p.detach().clone() for p in net.m_params()]

        def start(*values):
            for node, value in zip(nodes, values, strict=True):
                node.init(value)

        em = self.em(net, start=start)
        with pytest.raises(ValueError, match=r"start must set states of as many samples each, got [34] for Fixed"):
            em.step(*(torch.rand(4 - (i == other), node.size) for i, node in enumerate(nodes)))
        assert all(map(same_bits, net.m_params(), before))

    def test_data_of_different_lengths(self):
        with pytest.raises(ValueError, match="data must have the same length, got 6, 5"):
            self.em().epoch(torch.rand(6, 8), torch.rand(5, 3), batch_size=2)
        with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
            self.em().epoch(torch.rand(6, 8), torch.rand(6, 3), batch_size=0)
        with pytest.raises(TypeError, match=r"batch_size must be an integer, got 2\.5"):
            self.em().epoch(torch.rand(6, 8), torch.rand(6, 3), batch_size=2.5)


def test_an_epoch_with_a_prediction_computed_from_the_data():
    """What a row's own prediction is computed from changes with every batch."""

    class Two(Net):
        def __init__(self):
            super().__init__()
            self.aside = StandardGaussianNode(8)

        def start(self, x, y):
            super().start(x, y)
            self.aside.init(x)

        def energy(self):
            return super().energy() + self.aside.energy(self.below.value * 2)

    torch.manual_seed(0)
    net = Two().double()
    check_epochs(net, size=5, passes=3)


def test_a_call_that_learns_nothing_leaves_no_velocity():
    net, plain = twins()
    ours, theirs = (OPTIMIZERS["nesterov"](n.m_params()) for n in (net, plain))
    em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=0, lr=0.1, incremental=True)
    (x, y), *_ = batches(1)
    em.step(x, y)
    assert not any(state for state in ours.state.values())
    em.steps = 2
    em.step(x, y)
    plainly(plain, theirs, x, y, steps=2, lr=0.1, incremental=True)
    assert_same(net.m_params(), plain.m_params())


def test_states_that_are_kept_are_not_overwritten():
    net, _ = twins()
    em = pyro.EM(net.energy, net.e_params(), OPTIMIZERS["sgd"](net.m_params()), start=net.start, steps=2, lr=0.1)
    kept = []
    for x, y in batches(3):
        em.step(x, y)
        kept.append([n.value.detach() for n in (net.below, *net.nodes)])
        kept.append([t.clone() for t in kept[-1]])
    for held, copied in zip(kept[::2], kept[1::2], strict=True):
        assert all(map(same_bits, held, copied))


def test_epochs_do_not_share_their_order():
    net, _ = twins()
    x, y = torch.rand(40, 8).double(), torch.rand(40, 3).double()
    em = pyro.EM(net.energy, net.e_params(), OPTIMIZERS["sgd"](net.m_params()), start=net.start, steps=2, lr=0.1)
    epochs = [em.epoch(x, y, batch_size=10) for _ in range(3)]
    assert [sum(p.samples for p in epoch) for epoch in epochs] == [40, 40, 40]
    saved = em.state_dict() | {"order": torch.arange(15), "generator": None}
    em.load_state_dict(saved)
    assert torch.equal(em.state_dict()["order"], saved["order"])
    assert sum(p.samples for p in em.epoch(x, y, batch_size=10)) == 15


@pytest.mark.parametrize("given", [{"x": None}, [None]], ids=["dict", "list"])
def test_what_start_takes_may_be_anything(given):
    net, plain = twins()
    key = next(iter(given)) if isinstance(given, dict) else 0

    def start(of):
        return lambda inputs, y: of.start(inputs[key], y)

    em = pyro.EM(net.energy, net.e_params(), OPTIMIZERS["sgd"](net.m_params()), start=start(net), steps=2, lr=0.1)
    plain_start, theirs = plain.start, OPTIMIZERS["sgd"](plain.m_params())
    plain.start = lambda inputs, y: plain_start(inputs[key], y)
    for x, y in batches(3):
        inputs = {key: x} if isinstance(given, dict) else [x]
        em.step(inputs, y)
        plainly(plain, theirs, inputs, y, steps=2, lr=0.1)
    assert_same(net.m_params(), plain.m_params())


class TestRounding:
    """States that a forward sweep of PyTorch's products has set are their predictions but for rounding."""

    def deep(self, dtype=torch.float32, skips=False):
        torch.manual_seed(0)
        sizes = (20, *[32] * 8, 3)
        net = pyro.networks.mlp(sizes, skips=True) if skips else Net(sizes, (StandardGaussianNode,) * 9)
        net.to(dtype)
        net.start(torch.rand(24, 20, dtype=dtype), torch.rand(24, 3, dtype=dtype))
        return net, pyro.InferenceLoop(net.energy, net.e_params(), lr=0.05)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
    @pytest.mark.parametrize("steps", [0, 1, 4])
    @pytest.mark.parametrize("skips", [False, True], ids=["plain", "skips"])
    def test_what_no_error_has_reached_has_no_gradient(self, skips, steps, dtype):
        net, loop = self.deep(dtype, skips)
        loop.run(steps)
        loop.backward(net.m_params())
        assert "executor: chain" in loop.explain()
        zero = [not p.grad.any() for p in net.m_params()]
        assert zero == [True] * 2 * (8 - steps) + [False] * 2 * (steps + 1)

    def test_only_before_the_first_step(self):
        """One step at a time does what all at once do, in every bit: small errors are errors then."""
        net, loop = self.deep()
        other, whole = self.deep()
        for _ in range(30):
            loop.run(1)
        whole.run(30)
        assert all(map(same_bits, net.e_params(), other.e_params()))

    def test_gradients_move_no_state(self):
        net, loop = self.deep()
        before = [p.detach().clone() for p in net.e_params()]
        loop.backward(net.m_params())
        assert all(map(same_bits, net.e_params(), before))
        loop.run(3)
        before = [p.detach().clone() for p in net.e_params()]
        loop.backward(net.m_params())
        assert all(map(same_bits, net.e_params(), before))


SETTLED = 10  # batches after which all is watched, and calls are kept


def test_options_are_checked_where_a_batch_is_one_call():
    net, x, y = Net(), torch.randn(4, 8), torch.randn(4, 3)
    net.start(x, y)
    em = pyro.EM(net.energy, net.e_params(), torch.optim.SGD(net.m_params(), 0.1), start=net.start, steps=1, lr=0.1)
    em.step(x, y)
    em.loop.lr = -1.0
    with pytest.raises(ValueError, match=re.escape("lr must be finite and not negative, got -1.0")):
        em.step(x, y)


def test_copies_are_made_of_what_has_settled():
    torch.manual_seed(0)
    net, x, y = Net(), torch.randn(4, 8), torch.randn(4, 3)
    net.start(x, y)
    em = pyro.EM(net.energy, net.e_params(), torch.optim.SGD(net.m_params(), 0.1), start=net.start, steps=2, lr=0.1)
    for _ in range(SETTLED):
        em.step(x, y)
    twin = copy.deepcopy(em)
    em.step(x, y)
    twin.step(x, y)
    for p, q in zip(em.optimizer.param_groups[0]["params"], twin.optimizer.param_groups[0]["params"], strict=True):
        assert p is not q
        assert same_bits(p, q)


@pytest.mark.parametrize(("one", "other"), [(1, True), (1, 1.0), (0.0, -0.0)])
def test_values_that_are_equal_and_not_the_same_are_told_apart(one, other):
    net, x, y = Net(), torch.randn(4, 8), torch.randn(4, 3)
    net.start(x, y)
    given = []

    def start(x, y, value):
        net.start(x if value is one else 2 * x, y)  # whose code can be watched

    em = pyro.EM(net.energy, net.e_params(), torch.optim.SGD(net.m_params(), 0.1), start=start, steps=0, lr=0.1)
    for value in [one] * SETTLED + [other, one]:
        em.step(x, y, value)
        given.append(net.below.value.clone())
    assert same_bits(given[-3], x)
    assert same_bits(given[-2], 2 * x)
    assert same_bits(given[-1], x)


def test_an_epoch_begins_with_parts_as_large_as_the_last_ended_with(monkeypatch):
    monkeypatch.setattr("pyromancy.run.em.time.perf_counter", lambda: 0.0)  # no part takes any time
    net, x, y = Net(), torch.randn(100, 8), torch.randn(100, 3)
    net.start(x[:1], y[:1])
    em = pyro.EM(net.energy, net.e_params(), torch.optim.SGD(net.m_params(), 0.1), start=net.start, steps=1, lr=0.1)
    assert [part.batches for part in em.epoch(x, y, batch_size=1)] == [1, 8, 64, 27]
    assert [part.batches for part in em.epoch(x, y, batch_size=1)] == [100]
    em.steps = 2  # which takes longer
    assert next(em.epoch(x, y, batch_size=1)).batches == 1


@pytest.mark.skipif(native.MODULE is None or platform.machine() != "x86_64", reason="what flushes is in its kernels")
def test_averages_of_gradients_that_have_ended_reach_zero():
    """In numbers below the smallest normal one they would stay for ever, and take many times as long."""
    net, x, y = Net(), torch.randn(4, 8), torch.randn(4, 3)
    net.start(x, y)
    optimizer = torch.optim.Adam(net.m_params())
    em = pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=0, lr=0.1)
    em.step(x, y)
    lowest = optimizer.state[net.edges[0][1].weight]
    for name, value in (("exp_avg", 1e-39), ("exp_avg_sq", 1e-39)):
        lowest[name].fill_(value)
    em.step(x, y)  # without E-steps no error reaches it
    assert not lowest["exp_avg"].any()
    assert not lowest["exp_avg_sq"].any()
