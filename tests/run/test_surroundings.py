"""How often an energy is evaluated, and what is done around runs: inference mode, states changed in place, turns."""

import pytest
import torch
import torch.nn as nn
from torch.autograd import Function

import pyromancy as pyro
from networks import autograd_loop
from pyromancy.functional import gaussian_energy
from pyromancy.nodes import FixedNode, MultivariateGaussianNode, StandardGaussianNode

EXECUTORS = ["chain", "graph", "autograd"]


class Net(nn.Module):
    def __init__(self, act=None):
        super().__init__()
        self.below, self.hidden, self.above = FixedNode(4), StandardGaussianNode(6), StandardGaussianNode(3)
        self.up, self.top, self.act = nn.Linear(4, 6), nn.Linear(6, 3), act or nn.Tanh()
        self.weight, self.evaluations = 1.0, 0
        self.double()
        generator = torch.Generator().manual_seed(0)
        self.start = [torch.randn(5, n, generator=generator, dtype=torch.float64) for n in (4, 6, 3)]
        self.init()

    def init(self):
        for node, value in zip((self.below, self.hidden, self.above), self.start, strict=True):
            node.init(value)

    def energy(self):
        self.evaluations += 1
        top = self.top(self.act(self.hidden.value))
        return self.hidden.energy(self.up(self.below.value)) + self.weight * self.above.energy(top)

    @property
    def free(self):
        return [self.hidden.value]


def plain(net, steps, reduce=torch.sum, **options):
    net.init()
    autograd_loop(net.energy, net.free, steps, 0.1, reduce, **options)
    return net.hidden.value.detach().clone()


class Sign(Function):
    """A straight-through activation."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_a_function_with_a_backward_of_its_own_is_found_in_any_mode(around):
    net = Net(Sign.apply)
    expected = plain(net, 10)
    loop = pyro.InferenceLoop(net.energy, net.free, lr=0.1)
    for mode in (around, torch.enable_grad):
        net.init()
        with mode():
            loop.run(10)
        torch.testing.assert_close(net.hidden.value.detach(), expected)
    assert "backward of its own" in loop.explain()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_all_of_a_batch_in_inference_mode(executor):
    """What it makes, states, velocities and gradients, can be used outside afterwards."""
    net = Net()
    expected = plain(net, 6, momentum=0.9)
    net.energy().mean().backward(inputs=[net.top.weight])
    gradient, net.top.weight.grad = net.top.weight.grad, None
    loop = pyro.InferenceLoop(net.energy, net.free, lr=0.1, momentum=0.9, executor=executor)
    with torch.inference_mode():
        net.init()
        loop.run(3)
    loop.run(3)
    torch.testing.assert_close(net.hidden.value.detach(), expected)
    with torch.inference_mode():
        loop.backward([net.top.weight])
    torch.testing.assert_close(net.top.weight.grad, gradient)
    loop.backward([net.top.weight])
    torch.testing.assert_close(net.top.weight.grad, 2 * gradient)
    net.energy().sum().backward(inputs=net.free)


def test_data_made_in_inference_mode():
    with torch.inference_mode():
        target = torch.ones(5, 3)
    state, edge = nn.Parameter(torch.zeros(5, 4)), nn.Linear(4, 3)
    loop = pyro.InferenceLoop(lambda: gaussian_energy(target, edge(state)), [state], lr=0.1)
    before = loop.energy().sum()
    loop.run(5)
    assert loop.energy().sum() < before


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_state_that_is_changed_in_place_keeps_its_velocity(executor):
    """As it does in `torch.optim.SGD`."""
    net = Net()
    sgd = torch.optim.SGD(net.free, lr=0.05, momentum=0.9)
    for _ in range(8):
        sgd.zero_grad()
        net.energy().sum().backward(inputs=net.free)
        sgd.step()
        with torch.no_grad():
            net.hidden.value.clamp_(-0.5, 0.5)
    expected = net.hidden.value.detach().clone()
    loop = pyro.InferenceLoop(net.energy, net.free, lr=0.05, momentum=0.9, executor=executor)
    net.init()
    for _ in range(8):
        loop.run(1)
        with torch.no_grad():
            net.hidden.value.clamp_(-0.5, 0.5)
    torch.testing.assert_close(net.hidden.value.detach(), expected)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("record", [False, True])
def test_autograd_evaluates_an_energy_once_a_step(reduction, record):
    """More would draw other random numbers, or update the statistics of a batch norm once too often."""
    net = Net()
    expected = plain(net, 4, getattr(torch, reduction))
    loop = pyro.InferenceLoop(net.energy, net.free, lr=0.1, executor="autograd", reduction=reduction)
    net.init()
    net.evaluations = 0
    trace = loop.run(4, record=record)
    loop.explain()
    assert net.evaluations == 4 + record  # the last of them after the steps
    assert (trace.energies is not None) == record
    torch.testing.assert_close(net.hidden.value.detach(), expected)


def test_an_energy_that_cannot_be_captured_is_seldom_tried_again():
    net = Net(nn.Dropout(0.5))
    loop = pyro.InferenceLoop(net.energy, net.free, lr=0.1)
    for _ in range(100):
        loop.run(1)
    assert "random" in loop.explain()
    assert net.evaluations < 110
    net.eval()
    loop.run(1)
    assert loop.explain().startswith("executor: chain")
    net.train()
    loop.run(1)
    assert loop.explain().startswith("executor: autograd")


def test_energies_that_take_turns_are_captured_once(monkeypatch):
    """As two phases of a batch that weigh the target otherwise do."""
    captures = []
    original = pyro.run.choice.capture
    monkeypatch.setattr(pyro.run.choice, "capture", lambda *args: captures.append(1) or original(*args))
    net = Net()
    loop = pyro.InferenceLoop(net.energy, net.free, lr=0.1)
    for net.weight in (0.25, 0.5, 0.25, 0.5, 0.25):
        expected = plain(net, 3)
        net.init()
        loop.run(3)
        torch.testing.assert_close(net.hidden.value.detach(), expected)
    assert len(captures) == 2


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_edges_in_float32(kind):
    """Whatever the library behind them can do without autograd."""
    edge, target = kind(4, 3, batch_first=True), torch.randn(5, 3)
    state = nn.Parameter(torch.randn(5, 2, 4))
    energy = lambda: gaussian_energy(target, edge(state)[0][:, -1])  # noqa: E731
    start = state.detach().clone()
    autograd_loop(energy, [state], 3, 0.1)
    expected = state.detach().clone()
    state.data = start
    pyro.InferenceLoop(energy, [state], lr=0.1).run(3)
    torch.testing.assert_close(state.detach(), expected)


@pytest.mark.parametrize("executor", [None, "autograd"])
def test_an_energy_that_is_no_tensor_is_refused(executor):
    state = nn.Parameter(torch.randn(5, 4))
    loop = pyro.InferenceLoop(lambda: (state.square().sum(1),), [state], lr=0.1, executor=executor)
    for act in (lambda: loop.run(1), loop.energy):
        with pytest.raises(TypeError, match="energy must return a tensor, got tuple"):
            act()


def test_a_singular_factor_raises_no_error():
    """As under autograd: the states are no numbers then."""
    node = MultivariateGaussianNode(3)
    node.init(torch.randn(5, 3))
    with torch.no_grad():
        node.covar_cf_logdiag.fill_(-200.0)
    loop = pyro.InferenceLoop(lambda: node.energy(torch.zeros(5, 3)), [node.value], lr=0.1)
    with pytest.warns(UserWarning, match="states of 5 of 5 samples are not finite"):
        loop.run(2)
    assert loop.explain().startswith("executor: chain")
    assert not node.value.isfinite().any()


@pytest.mark.parametrize("executor", ["chain", "graph"])
def test_a_penalty_on_weights_moves_no_state(executor):
    net = Net()

    def energy():
        return net.energy() + 0.1 * net.top.weight.square().sum() + net.up.bias.square().sum().reshape(1)

    expected = plain(net, 4)
    totals, gradient = [], torch.autograd.grad(energy().mean(), net.top.weight)[0]
    loop = pyro.InferenceLoop(energy, net.free, lr=0.1, executor=executor)
    net.init()
    for _ in range(4):
        totals.append(loop.energy().mean())
        loop.run(1)
    net.init()
    trace = loop.run(4, record=True)
    assert trace.energies.shape == (5, 4)
    torch.testing.assert_close(trace.energies[:-1].sum(1), torch.stack(totals))
    torch.testing.assert_close(net.hidden.value.detach(), expected)
    loop.backward([net.top.weight])
    torch.testing.assert_close(net.top.weight.grad, gradient)


def test_a_program_that_could_not_run_does_not_outlive_its_batch():
    """A capture that only autograd can run, between captures that fail, tells nothing of later batches."""
    torch.manual_seed(0)
    edge, noise, state = nn.LSTM(4, 3, batch_first=True), nn.Dropout(1e-9), nn.Parameter(torch.randn(5, 2, 4))
    net = nn.ModuleList([edge, noise])
    target = torch.randn(5, 3)
    energy = lambda: gaussian_energy(target, net[1](net[0](state)[0][:, -1]))  # noqa: E731
    loop = pyro.InferenceLoop(energy, [state], lr=0.5, reduction="mean")
    for _ in range(4):
        loop.run(1)
    net.eval()
    loop.run(1)
    net.train()
    start = torch.randn(50, 2, 4)
    state.data, target = start.clone(), torch.randn(50, 3)
    autograd_loop(energy, [state], 1, 0.5, torch.mean)
    expected, state.data = state.detach().clone(), start.clone()
    loop.run(1)
    torch.testing.assert_close(state.detach(), expected)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_other_parts_of_one_memory_are_other_states(executor):
    memory, edge, state = torch.randn(9, 4), nn.Linear(4, 3), nn.Parameter(torch.zeros(5, 4))
    targets = {5: torch.randn(5, 3), 4: torch.randn(4, 3)}
    energy = lambda: gaussian_energy(targets[len(state)], edge(state))  # noqa: E731
    loop = pyro.InferenceLoop(energy, [state], lr=0.1, momentum=0.9, executor=executor)
    for part in (slice(0, 5), slice(2, 7), slice(5, 9)):
        start = memory[part].clone()
        state.data = memory[part]
        loop.run(3)
        found = state.detach().clone()
        state.data = start
        autograd_loop(energy, [state], 3, 0.1, momentum=0.9)
        torch.testing.assert_close(found, state.detach())


def test_a_variable_that_is_not_set_yet():
    state = nn.Parameter(torch.randn(5, 4))
    if state.dim() != 2:
        never = state

    def energy():
        return state.logsumexp(1) if state.dim() == 2 else never

    loop = pyro.InferenceLoop(energy, [state], lr=0.1)
    loop.run(2)
    assert "executor: graph" in loop.explain()


def test_a_function_with_a_backward_of_its_own_and_data_made_in_inference_mode():
    with torch.inference_mode():
        target = torch.randn(5, 3)
    edge, state = nn.Linear(4, 3), nn.Parameter(torch.randn(5, 4))
    loop = pyro.InferenceLoop(lambda: gaussian_energy(target, Sign.apply(edge(state))), [state], lr=0.1)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):  # as plainly
        loop.run(5)


def test_a_network_made_in_inference_mode():
    with torch.inference_mode():
        net = Net()
        before = net.energy().sum()
        loop = pyro.InferenceLoop(net.energy, net.free, lr=0.1)
        loop.run(5)
        assert net.energy().sum() < before
        assert loop.explain().startswith("executor: chain")


def test_a_module_that_is_the_energy_switches_modes():
    net = Net(nn.Dropout(0.5))
    net.forward = net.energy
    loop = pyro.InferenceLoop(net, net.free, lr=0.1)
    for _ in range(20):
        loop.run(1)
    net.eval()
    loop.run(1)
    assert loop.explain().startswith("executor: chain")
    assert "hidden.value" in loop.explain()
