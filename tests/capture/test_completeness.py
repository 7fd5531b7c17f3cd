"""An energy's own code is never cut off: what it keeps between its calls, such as caches and flags, is whole."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import pyromancy as pyro
from descent import free
from networks import autograd_loop
from pyromancy.functional import gaussian_energy


class Positions(nn.Module):
    """Sines and cosines in a table that is written in place when a longer sequence comes."""

    table = torch.empty(0, 4, dtype=torch.float64)

    def forward(self, x):
        n, width = x.shape[1:]
        if len(self.table) < n:
            self.table = torch.zeros(n, width, dtype=x.dtype)
            angles = torch.arange(n).unsqueeze(1) / 100 ** (torch.arange(0, width, 2) / width)
            self.table[:, 0::2], self.table[:, 1::2] = angles.sin(), angles.cos()
        return x + self.table[:n]

    def check(self):
        for position, row in enumerate(self.table.tolist()):
            assert math.isclose(row[0], math.sin(position), abs_tol=1e-6)
            assert math.isclose(row[1], math.cos(position), abs_tol=1e-6)


class Causal(nn.Module):
    """Attention under a mask of -inf above the diagonal, made by a call in place at first use."""

    mask = torch.empty(0, 0, dtype=torch.float64)

    def forward(self, x):
        n = x.shape[1]
        if len(self.mask) < n:
            self.mask = torch.full((n, n), -torch.inf, dtype=x.dtype)
            self.mask.triu_(1)
        return torch.softmax(x @ x.mT + self.mask[:n, :n], -1) @ x

    def check(self):
        below = torch.ones(self.mask.shape, dtype=torch.bool).tril()
        assert torch.equal(self.mask, torch.zeros_like(self.mask).masked_fill(~below, -torch.inf))


class Rotary(nn.Module):
    """Notes the length before it makes the table for it."""

    length = 0

    def forward(self, x):
        if x.shape[1] > self.length:
            self.length = x.shape[1]
            self.factors = torch.outer(torch.arange(self.length), torch.ones(4)).double().cos()
        return x * self.factors[: x.shape[1]]

    def check(self):
        assert len(self.factors) == self.length
        assert math.isclose(self.factors[-1, 0].item(), math.cos(self.length - 1))


class Halves(nn.Module):
    """Scales a table in place that was made from what may be known from before."""

    table = None

    def forward(self, x):
        first = torch.tanh(x)
        if self.table is None or len(self.table) < x.shape[1]:
            self.table = torch.ones(x.shape[1], 1, dtype=x.dtype)
            self.table.div_(2)
        return first * self.table[: x.shape[1]]

    def check(self):
        assert torch.equal(self.table, torch.full_like(self.table, 0.5))


class Guarded(nn.Module):
    """Refuses to be entered twice; its scale is a number."""

    busy, scale = False, 1.0

    def forward(self, x):
        if self.busy:
            raise RuntimeError("entered twice")
        self.busy = True
        y = torch.sin(x) * self.scale
        self.busy = False
        return y

    def check(self):
        assert not self.busy


class Sequences(nn.Module):
    """A state per sequence, which an edge predicts."""

    def __init__(self, edge):
        super().__init__()
        self.edge, self.up = edge, nn.Linear(4, 3).double()
        self.z = free(5, 3)
        self.take(6)

    def take(self, length):
        generator = torch.Generator().manual_seed(length)
        self.x = torch.randn(5, length, 4, dtype=torch.float64, generator=generator)
        self.z.data = torch.randn(5, 3, dtype=torch.float64, generator=generator)

    def energy(self):
        return gaussian_energy(self.z, self.up(self.edge(self.x)[:, 1])) + torch.sin(self.z).sum(1)


@pytest.mark.parametrize("executor", [None, "autograd"])
@pytest.mark.parametrize("kind", [Positions, Causal, Rotary, Halves, Guarded])
def test_what_is_made_at_first_use_comes_out_whole(kind, executor):
    net = Sequences(kind())
    twin = copy.deepcopy(net)
    loop = pyro.InferenceLoop(net.energy, [net.z], lr=0.1, executor=executor)
    for length in (6, 6, 9, 9, 4, 12):
        if kind is Guarded:
            net.edge.scale = twin.edge.scale = float(length)
        for n in (net, twin):
            n.take(length)
        loop.run(4)
        autograd_loop(twin.energy, [twin.z], 4, 0.1)
        torch.testing.assert_close(net.z, twin.z, rtol=1e-11, atol=1e-11)
        net.edge.check()
    loop.run(1)
    if executor is None:
        assert loop.explain().startswith("executor: graph")


@pytest.mark.parametrize("kind", [Rotary, Halves])
def test_a_cache_that_is_made_without_more_ado_costs_no_capture(kind):
    """The second run of the energy, which finds the cache, is captured at once."""
    net = Sequences(kind())
    loop = pyro.InferenceLoop(net.energy, [net.z], lr=0.1, executor="graph")
    loop.run(1)
    net.edge.check()


class Normed(nn.Module):
    """Draws random numbers, and counts its batches as it normalises."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.up, self.z = nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 3), free(6, 3)
        self.double()
        self.x = torch.randn(6, 4, dtype=torch.float64)

    def energy(self):
        return gaussian_energy(self.z, self.up(self.drop(self.norm(self.x)))) + torch.sin(self.z).sum(1)


def test_a_failed_capture_is_the_first_of_the_steps():
    """Nothing is evaluated more often than plainly, so the random numbers and the statistics are the same."""
    net = Normed()
    twin = copy.deepcopy(net)
    loop = pyro.InferenceLoop(net.energy, [net.z], lr=0.1)
    for n, step in ((net, lambda: loop.run(5)), (twin, lambda: autograd_loop(twin.energy, [twin.z], 5, 0.1))):
        torch.manual_seed(0)
        n.eval()
        step()
        n.train()
        step()
        n.eval()
        step()
    torch.testing.assert_close(net.z, twin.z, rtol=1e-11, atol=1e-11)
    assert net.norm.num_batches_tracked == 5
    torch.testing.assert_close(net.norm.running_var, twin.norm.running_var)
    assert loop.explain().startswith("executor: graph")


def test_a_failed_capture_is_the_evaluation_of_an_mstep():
    net = Normed()
    pyro.InferenceLoop(net.energy, [net.z], lr=0.1).backward(net.up.parameters())
    assert net.norm.num_batches_tracked == 1
    assert net.up.weight.grad.abs().sum() > 0


def test_no_evaluation_outlives_its_states():
    net = Normed()
    loop = pyro.InferenceLoop(net.energy, [net.z], lr=0.1)
    loop.explain()
    net.eval(), net.drop.train()
    net.drop.p = 0.0
    with torch.no_grad():
        net.z.copy_(torch.ones(6, 3))
    expected = net.z.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        (gaussian_energy(expected, net.up(net.norm(net.x))) + torch.sin(expected).sum(1)).sum(), [expected]
    )
    loop.run(1)
    torch.testing.assert_close(net.z.detach(), (expected - 0.1 * gradient).detach())


def test_what_an_energy_keeps_of_every_run_is_numbers():
    z, mu, kept = free(3, 4), torch.randn(3, 4, dtype=torch.float64), []

    def energy():
        error = z - mu
        kept.append(error)
        return torch.cosh(error).sum(1)

    loop = pyro.InferenceLoop(energy, [z], lr=0.1)
    for _ in range(3):
        loop.run(2)
        torch.testing.assert_close(kept[-1].detach(), z.detach() - mu)
        mu = torch.randn(3, 4, dtype=torch.float64)
    loop.backward([z])
    assert all(error.isfinite().all() for error in kept)


def test_what_is_overwritten_is_kept_as_it_is_at_last():
    z, mu, kept = free(3, 4), torch.randn(3, 4, dtype=torch.float64), {}

    def energy():
        kept["error"] = error = z - mu
        error *= 2
        return error.square().sum(1)

    loop = pyro.InferenceLoop(energy, [z], lr=0.01)
    for _ in range(3):
        loop.run(2)
        torch.testing.assert_close(kept["error"].detach(), 2 * (z.detach() - mu))


class Own(Exception):
    """The user's."""


@pytest.mark.parametrize("where", ["first", "between", "another-call", "last"])
def test_an_error_of_the_energys_own_is_that(where):
    z, mu = free(3, 4), torch.randn(3, 4, dtype=torch.float64)
    state = {"broken": False, "busy": False}

    def fail():
        if state["broken"]:
            raise Own("mine") from KeyError("cause")

    def energy():
        if state["busy"]:
            raise RuntimeError("entered twice")
        state["busy"] = state["broken"]
        if where == "first":
            fail()
        error = z - mu
        if where == "between":
            fail()
        if where == "another-call" and state["broken"]:
            error = torch.relu(error)
            fail()
        result = error.square().sum(1)
        if where == "last":
            fail()
        return result

    loop = pyro.InferenceLoop(energy, [z], lr=0.1)
    loop.run(2)
    state["broken"] = True
    before = z.detach().clone()
    with pytest.raises(Own, match="mine") as caught:
        loop.run(2)
    assert isinstance(caught.value.__cause__, KeyError)
    assert torch.equal(z.detach(), before)
    state.update(broken=False, busy=False)
    loop.run(1)
    torch.testing.assert_close(z.detach(), before - 0.2 * (before - mu))
    assert "two runs" not in loop.explain()


def test_an_error_after_what_cannot_be_captured_is_the_energys_own():
    z = free(3, 4)

    def energy():
        scale = float(z.detach().abs().max())
        raise Own(f"mine, {scale > 0}")

    with pytest.raises(Own, match="mine, True"):
        pyro.InferenceLoop(energy, [z], lr=0.1).run(1)


def test_a_result_that_is_asked_for_its_layout_answers_as_it_is():
    z, mu, edge = free(3, 4), torch.randn(4, 3, dtype=torch.float64), nn.Linear(4, 4).double()
    asked = []

    def energy():
        p = edge(z)
        asked.append(
            (p.is_contiguous(), p.T.is_contiguous(), p.T.stride(), p.T.stride(0), p[1:].storage_offset(),
             p.requires_grad, p.is_leaf, p.T.device, z.is_leaf, torch.is_grad_enabled())
        )  # fmt: skip
        flat = p.T if p.T.is_contiguous() else p.T.contiguous()
        return gaussian_energy(z, torch.sin(flat.T)) + 0.1 * gaussian_energy(mu, flat).sum()

    loop = pyro.InferenceLoop(energy, [z], lr=0.1)
    for _ in range(3):
        loop.run(1)
    cpu = torch.device("cpu")
    assert set(asked) == {(True, False, (1, 4), 1, 4, True, False, cpu, True, True)}
    assert loop.explain().startswith("executor: graph")


@pytest.mark.parametrize("convolves", [False, True])
def test_strides_of_the_energys_own_are_those_of_the_states(convolves):
    z, target = free(2, 3, 6, 6), torch.randn(2, 12, dtype=torch.float64)
    conv = nn.Conv2d(3, 3, 3, padding=1).double()

    def energy():
        part = gaussian_energy(z.as_strided((2, 12), (108, 1)), target)
        return part + (conv(z).square().sum((1, 2, 3)) if convolves else torch.cosh(z).sum((1, 2, 3)))

    start = z.detach().clone()
    loop = pyro.InferenceLoop(energy, [z], lr=0.01)
    loop.run(1)
    pulled = start.clone().requires_grad_()
    other = conv(pulled).square().sum() if convolves else torch.cosh(pulled).sum()
    gradient = torch.autograd.grad(other, pulled)[0]
    gradient.view(2, 108)[:, :12] += start.view(2, 108)[:, :12] - target
    torch.testing.assert_close(z.detach(), start - 0.01 * gradient)
    assert loop.explain().startswith("executor: graph")
    assert "channels last" not in loop.explain()


def test_a_sum_that_is_fused_keeps_its_strides():
    """The energy tells the sum's elements by where they lie, which is as in its first summand."""
    z, weight, other = free(4, 4), torch.randn(4, 4, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)

    def energy():
        return torch.cosh((other.T + z @ weight).as_strided((4, 2), (4, 1))).sum(1)

    twin = nn.Parameter(z.detach().clone())
    expected = torch.autograd.grad(torch.cosh((other.T + twin @ weight).T[:, :2]).sum(), [twin])[0]
    loop = pyro.InferenceLoop(energy, [z], lr=0.1)
    loop.run(1)
    torch.testing.assert_close(z.detach(), (twin - 0.1 * expected).detach())


@pytest.fixture
def anomaly():
    with warnings.catch_warnings(action="ignore"):  # it is slow
        yield torch.autograd.detect_anomaly


def test_anomaly_detection_is_autograds_and_passes(anomaly):
    z, mu = free(3, 4), torch.randn(3, 4, dtype=torch.float64)
    edge = nn.Linear(4, 4).double()
    for first in (True, False):
        loop = pyro.InferenceLoop(lambda: gaussian_energy(mu, edge(torch.sin(z))), [z], lr=0.1)
        if not first:
            loop.run(1)
        with anomaly():
            loop.run(2)
            assert loop.explain().startswith("executor: autograd")
            assert "anomaly detection is on" in loop.explain()
        loop.run(1)
        assert loop.explain().startswith("executor: graph")
        assert "anomaly" not in loop.explain()


def test_anomaly_detection_finds_where_a_gradient_is_no_number(anomaly):
    z = nn.Parameter(torch.zeros(3, 4))
    loop = pyro.InferenceLoop(lambda: (z.square().sum(1)).sqrt(), [z], lr=0.1)
    with anomaly(), pytest.raises(RuntimeError, match="returned nan values"):
        loop.run(1)


def test_a_trace_that_fails_once_is_tried_again(monkeypatch):
    z, mu = free(3, 4), torch.randn(3, 4, dtype=torch.float64)
    loop = pyro.InferenceLoop(lambda: gaussian_energy(mu, torch.sin(z)), [z], lr=0.1)
    attempts, original = [], pyro.capture.partition._traced

    def traced(*args):
        attempts.append(None)
        raise torch.OutOfMemoryError("for the moment")

    monkeypatch.setattr(pyro.capture.partition, "_traced", traced)
    for _ in range(100):
        loop.run(1)
    assert loop.explain().startswith("executor: autograd")
    assert "for the moment" in loop.explain()
    assert 2 <= len(attempts) <= 6
    monkeypatch.setattr(pyro.capture.partition, "_traced", original)
    for _ in range(300):
        loop.run(1)
    assert loop.explain().startswith("executor: graph")
    assert "for the moment" not in loop.explain()


def test_a_reason_that_has_passed_is_told_no_more():
    z, noise = free(3, 4), nn.Dropout(0.5)
    loop = pyro.InferenceLoop(lambda: noise(F.softplus(z)).sum(1), [z], lr=0.1)
    for _ in range(4):
        loop.run(1)
    with torch.autocast("cpu", torch.bfloat16):
        loop.run(1)
        assert "autocast" in loop.explain()
    loop.run(1)
    assert "autocast" not in loop.explain()
    assert "random" in loop.explain()
