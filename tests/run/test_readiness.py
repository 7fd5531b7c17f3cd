"""What a loop keeps of the energies that it has captured: all that it meets within its bounds, and no memory for it."""

import gc
import linecache
import weakref

import pytest
import torch
import torch.nn as nn
from torch.fx import graph_module

import pyromancy as pyro
from networks import autograd_loop
from pyromancy.nodes import StandardGaussianNode
from pyromancy.run.choice import ALIKE, READY


class Net(nn.Module):
    """Its input is data, replaced for every batch."""

    def __init__(self, executor):
        super().__init__()
        self.hidden, self.above = StandardGaussianNode(6), StandardGaussianNode(3)
        self.up, self.top = nn.Linear(4, 6), nn.Linear(6, 3)
        self.weight, self.chain = 1.0, executor == "chain"
        self.double()

    def set(self, batch):
        self.x = torch.randn(batch, 4, dtype=torch.float64)
        self.above.init(torch.randn(batch, 3))
        self.hidden.init(torch.randn(batch, 6))

    def energy(self):
        z = self.hidden.value.tanh()
        top = self.above.energy(self.top(z if self.chain else z * z.abs()))
        return self.hidden.energy(self.up(self.x)) + self.weight * top

    @property
    def free(self):
        return [self.hidden.value]


@pytest.fixture
def captures(monkeypatch):
    """One entry for every capture."""
    found, original = [], pyro.run.choice.capture
    monkeypatch.setattr(pyro.run.choice, "capture", lambda *args: found.append(1) or original(*args))
    return found


def check(net, loop):
    """A run comes to what autograd comes to from the same states, as do the gradients after it."""
    start = net.hidden.value.detach().clone()
    autograd_loop(net.energy, net.free, 4, 0.1)
    expected = net.hidden.value.detach().clone()
    net.hidden.init(start)
    loop.run(4)
    torch.testing.assert_close(net.hidden.value.detach(), expected)
    check_gradients(net, loop)


def check_gradients(net, loop):
    learned = list(pyro.get_mstep_params(net))
    expected = torch.autograd.grad(net.energy().mean(), learned)
    net.zero_grad()
    loop.backward(learned)
    for p, gradient in zip(learned, expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)


@pytest.mark.parametrize("executor", ["chain", "graph"])
def test_batch_sizes_that_take_turns_are_captured_once_each(executor, captures):
    net = Net(executor)
    loop = pyro.InferenceLoop(net.energy, net.free, lr=0.1)
    batches = []
    for batch in (*range(1, 11), 3, *range(10, 0, -1)):
        net.set(batch)
        batches.append(weakref.ref(net.x))
        check(net, loop)
    assert loop.explain().startswith(f"executor: {executor}")
    assert len(captures) == 10
    assert sum(x() is not None for x in batches) == 1
    assert "captured 10 times so far, the last because a tensor of shape (9, 6) now is (10, 6)" in loop.explain()
    assert "; ready for 10 energies\n" in loop.explain() + "\n"
    assert "given up" not in loop.explain()


def test_one_energy_has_no_history():
    net = Net("chain")
    loop = pyro.InferenceLoop(net.energy, net.free, lr=0.1)
    for _ in range(3):
        net.set(5)
        loop.run(2)
    assert "captured" not in loop.explain()


def test_gradients_after_another_energy_had_its_turn():
    """They are of the states at hand, and not what the last run of their energy has left."""
    net = Net("chain")
    loop = pyro.InferenceLoop(net.energy, net.free, lr=0.1)
    for batch in (5, 7):
        net.set(batch)
        loop.run(2)
    for batch in (5, 7):
        net.set(batch)
        check_gradients(net, loop)


def test_what_is_given_up_is_said(captures):
    net = Net("chain")
    loop = pyro.InferenceLoop(net.energy, net.free, lr=0.1)
    net.set(5)
    phases = [1 / 2**i for i in range(ALIKE + 1)]
    for net.weight in phases[:-1] * 2:
        check(net, loop)
    assert len(captures) == ALIKE
    assert "the last because other arguments of " in loop.explain()
    assert "given up" not in loop.explain()
    net.weight = phases[-1]
    check(net, loop)
    assert f"captured {ALIKE + 1} times so far" in loop.explain()
    assert f"ready for {ALIKE} energies\n  1 given up" in loop.explain()
    net.weight = phases[0]
    check(net, loop)
    assert len(captures) == ALIKE + 2


def test_batch_sizes_are_bounded(captures):
    net = Net("chain")
    loop = pyro.InferenceLoop(net.energy, net.free, lr=0.1)
    executors = []
    for batch in range(1, READY + 4):
        net.set(batch)
        loop.run(1)
        executors.append(weakref.ref(loop._choice.executor))
    gc.collect()
    assert [e() is not None for e in executors] == [False] * 3 + [True] * READY
    assert f"ready for {READY} energies\n  3 given up" in loop.explain()
    for batch in range(4, READY + 4):
        net.set(batch)
        loop.run(1)
    assert len(captures) == READY + 3


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["chain", "graph"])
def test_weights_that_were_replaced_go(executor):
    net = Net(executor)
    loop = pyro.InferenceLoop(net.energy, net.free, lr=0.1)
    net.set(5)
    weights = []
    for _ in range(4):
        net.top.weight = nn.Parameter(torch.randn_like(net.top.weight))
        weights.append(weakref.ref(net.top.weight))
        check(net, loop)
        net.zero_grad()
        gc.collect()
    assert [w() is not None for w in weights] == [False] * 3 + [True]
    assert "captured 4 times so far, the last because other arguments of linear; ready for 2 energies" in loop.explain()


@pytest.mark.slow
@pytest.mark.parametrize("edge", [nn.Tanh(), nn.GRUCell(4, 4), nn.BatchNorm1d(4)], ids=lambda m: type(m).__name__)
def test_a_graph_leaves_no_source_code_behind(edge):
    """fx enters the source code of every graph into the cache of tracebacks, and takes none out."""

    def entries():
        return sum("eval_with_key" in name for name in (*graph_module._loader.eval_cache, *linecache.cache))

    gc.collect()
    before = entries()
    state, edge = nn.Parameter(torch.randn(5, 4)), edge.eval()
    for executor in ("graph", None):
        loop = pyro.InferenceLoop(lambda: edge(state).softmax(1).square().sum(1), [state], lr=0.1, executor=executor)
        loop.run(2)
        assert loop.explain().startswith("executor: graph")
        assert entries() > before
        del loop
        gc.collect()
        assert entries() == before
