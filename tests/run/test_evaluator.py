"""Methods on graphs, step by step: energies and gradients by a schedule, as those of autograd."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import pyromancy as pyro
from descent import free
from numerics import same_bits
from pyromancy.functional import gaussian_energy
from pyromancy.methods import LBFGS, Accelerated, Adam, Descent, Heun


class Net(nn.Module):
    """Two convolutions, the first pooled, and a Linear edge."""

    def __init__(self, activation=nn.GELU):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.top = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(64, 5)
        self.act, self.pool = activation(), nn.MaxPool2d(2)
        self.z = nn.ParameterList(nn.Parameter(torch.empty(0)) for _ in range(2))
        self.x = self.y = torch.empty(0)

    def predictions(self):
        return [
            self.pool(self.a(self.x)), self.z[0] + self.b(self.act(self.z[0])), self.top(self.act(self.z[1]).flatten(1))
        ]  # fmt: skip

    def start(self, b=3, dtype=torch.float64):
        torch.manual_seed(0)
        self.to(dtype)
        self.x, self.y = torch.rand(b, 3, 8, 8, dtype=dtype), torch.rand(b, 5, dtype=dtype)
        with torch.no_grad():
            self.z[0].data = self.pool(self.a(self.x))
            self.z[1].data = self.z[0] + self.b(self.act(self.z[0]))
        return self

    def energy(self):
        return sum(gaussian_energy(z, mu) for z, mu in zip([*self.z, self.y], self.predictions(), strict=True))


METHODS = [
    Accelerated(coordinates="states"),
    Accelerated(0.1, 0.5, coordinates="states"),
    Adam(0.03),
    LBFGS(coordinates="states"),
    Heun(0.1),
    Descent(0.1, max_norm=0.3),
]


def problem_of(loop):
    return next(iter(loop._choice.executor.problems.values()))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
def test_methods_do_what_they_do_on_autograd(method, activation):
    ends = []
    for executor in (None, "autograd"):
        net = Net(activation).start()
        loop = pyro.InferenceLoop(net.energy, list(net.z), method=method, executor=executor)
        trace = loop.run(5, record=True)
        trace = loop.run(2)
        assert trace.steps == 2
        ends.append([z.detach() for z in net.z])
        if executor is None:
            assert problem_of(loop)._both._schedule is not None
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("coordinates", ["states", "errors"])
def test_equilibria_by_either_coordinates(coordinates):
    net = Net(nn.Tanh).start()
    loop = pyro.InferenceLoop(net.energy, list(net.z), method=Accelerated(coordinates=coordinates))
    assert loop.run(500, tol=1e-13).steps > 3
    assert problem_of(loop)._both._schedule is not None
    gradients = torch.autograd.grad(net.energy().sum(), list(net.z))
    assert max(float(g.abs().max()) for g in gradients) < 1e-5


def test_energies_and_gradients_at_any_point_and_in_any_layout():
    net = Net().start()
    loop = pyro.InferenceLoop(net.energy, list(net.z), method=Adam(0.1))
    loop.run(1)
    problem = problem_of(loop)
    problem.begin()
    for turn in (lambda t: t, lambda t: t.contiguous(memory_format=torch.channels_last)):
        problem.point = [turn(torch.randn_like(x)) for x in problem.point]
        found = problem.evaluate()
        for z, x in zip(net.z, problem.point, strict=True):
            z.data.copy_(x)
        energy = net.energy()
        torch.testing.assert_close(found.energy, energy.detach(), rtol=1e-10, atol=1e-10)
        for g, h, x in zip(found.gradient, torch.autograd.grad(energy.sum(), list(net.z)), problem.point, strict=True):
            torch.testing.assert_close(g, h, rtol=1e-10, atol=1e-10)
            assert g.stride() == x.stride()
    first = problem.evaluate()
    kept = [g.clone() for g in first.gradient]
    problem.point = [torch.randn_like(x) for x in problem.point]
    problem.evaluate()
    assert all(map(same_bits, first.gradient, kept))  # which methods keep


def test_what_no_error_has_reached_rests_under_methods_that_take_steps_of_one_length():
    """By whatever products the states were set: rounding in an error would move all of a state by Adam's rate."""
    net = Net().start(16, torch.float32)
    before = [z.detach().clone() for z in net.z]
    loop = pyro.InferenceLoop(net.energy, list(net.z), method=Adam(0.1))
    loop.run(1)
    assert problem_of(loop)._both._schedule is not None
    assert torch.equal(net.z[0], before[0])
    assert (net.z[1] != before[1]).float().mean() > 0.9


def test_variances_far_from_one_leave_gradients_what_they_are():
    """Errors are compared with rounding, and not gradients, which may be small by right."""
    torch.manual_seed(1)
    conv, z, y = nn.Conv2d(3, 3, 3, padding=1), free(2, 3, 4, 4, dtype=torch.float32), torch.randn(2, 3, 4, 4)
    energy = lambda: 1e-9 * (gaussian_energy(y, conv(torch.tanh(z))) + gaussian_energy(z, y))  # noqa: E731
    before = z.detach().clone()
    pyro.InferenceLoop(energy, [z], method=Adam(0.1, eps=0.0)).run(1)
    assert ((z - before).abs() > 0.05).all()


def test_signs_and_half_precision_go_by_operators_of_their_own():
    conv, z, y = nn.Conv2d(3, 3, 3, padding=1).double(), free(2, 3, 4, 4), torch.randn(2, 3, 4, 4).double()
    energy = lambda: (y - F.relu(conv(z))).abs().sum((1, 2, 3)) + 0.1 * z.square().sum((1, 2, 3))  # noqa: E731
    before = z.detach().clone()
    loop = pyro.InferenceLoop(energy, [z], method=Heun(0.05))
    loop.run(2)
    assert problem_of(loop)._both._schedule is None
    found = z.detach().clone()
    z.data.copy_(before)
    pyro.InferenceLoop(energy, [z], method=Heun(0.05), executor="autograd").run(2)
    torch.testing.assert_close(found, z.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", [Accelerated(), Adam(0.1)], ids=["errors", "states"])
def test_energies_alone(method):
    """What is asked for beside gradients is a graph of its own, of weights as they are."""
    net = Net().start()
    loop = pyro.InferenceLoop(net.energy, list(net.z), method=method)
    for scale in (1.0, 0.5):
        with torch.no_grad():
            net.b.weight.mul_(scale)
        loop.run(1)
        problem = problem_of(loop)
        problem.begin()
        for _ in range(2):
            problem.point = [torch.randn_like(x) for x in problem.point]
            value = problem.value()
            problem.end()
            torch.testing.assert_close(value, net.energy().detach(), rtol=1e-10, atol=1e-10)
        problem.release()


@pytest.mark.parametrize("method", [Accelerated(), None], ids=["Accelerated", "descent"])
def test_images_of_one_channel_have_theirs_last_too(method):
    """Which their strides do not tell: all that a convolution makes of them would lie as these look."""
    lying = []
    for channels in (1, 3):
        net = Net().start(dtype=torch.float32)
        net.a, net.x = nn.Conv2d(channels, 4, 3, padding=1), net.x[:, :channels].contiguous()
        loop = pyro.InferenceLoop(net.energy, list(net.z), lr=None if method else 0.1, method=method)
        loop.run(3)
        executor = loop._choice.executor
        schedule = problem_of(loop)._both._schedule if method else next(iter(executor._schedules.values()))[0]
        lying.append([m.stride for m in schedule.memory if len(m.shape) == 4])
    assert lying[0] == lying[1]
    assert sum(stride[1] == 1 for stride in lying[0]) > len(lying[0]) / 2
