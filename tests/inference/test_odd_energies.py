"""Energies that look like chains and are not quite, and gradients that somebody watches."""

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import pyromancy as pyro
from pyromancy.nodes import StandardGaussianNode


class Net(nn.Module):
    """Three nodes and two edges, in float64; `variant` says how the energy is written."""

    def __init__(self, variant="plain"):
        super().__init__()
        self.below, self.hidden, self.above = (StandardGaussianNode(n) for n in (4, 5, 3))
        self.other, self.far = StandardGaussianNode(5), StandardGaussianNode(5)
        self.up, self.top, self.across = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 5)
        self.variant = variant
        self.double()
        for node, batch in ((self.below, 6), (self.hidden, 6), (self.above, 6), (self.other, 1), (self.far, 1)):
            node.init(torch.randn(batch, *node.shape, dtype=torch.float64))

    def energy(self):
        z = self.hidden.value
        first = self.hidden.energy(self.up(self.below.value))
        match self.variant:
            case "keywords":
                return first + self.above.energy(F.linear(z, weight=self.top.weight, bias=self.top.bias))
            case "broadcast-batch":
                chain = self.far.energy(self.across(self.other.value))
                return first + self.above.energy(self.top(z)) + chain
            case "broadcast-total":
                return first + self.above.energy(self.top(z)) + torch.zeros(2, 1, dtype=z.dtype)
            case "broadcast-bias":
                return first + self.above.energy(F.linear(z, self.top.weight, self.top.bias[:1]))
            case "broadcast-prediction":
                return first + self.above.energy(F.linear(z, self.top.weight[:1]))
        return first + self.above.energy(self.top(z))


def plain_loop(net, states, steps, lr, reduce=torch.sum):
    optimizer = torch.optim.SGD(states, lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        reduce(net.energy()).backward(inputs=states)
        optimizer.step()


VARIANTS = {
    "plain": "chain",
    "keywords": "chain",
    "broadcast-batch": "graph",
    "broadcast-total": "graph",
    "broadcast-bias": "graph",
    "broadcast-prediction": "graph",
}


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_same_as_autograd(variant, reduction):
    net = Net(variant)
    twin = copy.deepcopy(net)
    names = ["hidden", "other"] if variant == "broadcast-batch" else ["hidden"]
    states, twins = ([getattr(n, name).value for name in names] for n in (net, twin))
    loop = pyro.InferenceLoop(net.energy, states, lr=0.05, reduction=reduction)
    loop.run(20)
    plain_loop(twin, twins, 20, 0.05, torch.sum if reduction == "sum" else torch.mean)
    for mine, theirs in zip(states, twins, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)
    assert loop.explain().startswith(f"executor: {VARIANTS[variant]}")


@pytest.mark.parametrize("late", [False, True], ids=["before", "after-capture"])
def test_a_hook_on_a_state_is_obeyed(late):
    net = Net()
    twin = copy.deepcopy(net)
    loop = pyro.InferenceLoop(net.energy, [net.hidden.value], lr=0.05)
    if late:
        loop.run(3)
        plain_loop(twin, [twin.hidden.value], 3, 0.05)
    for n in (net, twin):
        n.hidden.value.register_hook(lambda g: g.clamp(-0.1, 0.1))
    loop.run(10)
    plain_loop(twin, [twin.hidden.value], 10, 0.05)
    torch.testing.assert_close(net.hidden.value, twin.hidden.value, rtol=1e-11, atol=1e-11)
    assert "gradient hook" in loop.explain()


def test_hooks_on_parameters_are_obeyed():
    net = Net()
    loop = pyro.InferenceLoop(net.energy, [net.hidden.value], lr=0.05)
    seen = []
    net.top.weight.register_hook(lambda g: 2 * g)
    net.top.bias.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    loop.backward(net.top.parameters())
    gradients = torch.autograd.grad(net.energy().mean(), list(net.top.parameters()))  # fires the first hook too
    torch.testing.assert_close(net.top.weight.grad, gradients[0])
    torch.testing.assert_close(seen[0], gradients[1])


def test_backward_takes_each_parameter_once_and_accumulates_in_place():
    net = Net()
    loop = pyro.InferenceLoop(net.energy, [net.hidden.value], lr=0.05)
    loop.run(2)
    loop.backward([net.top.weight, net.top.weight])
    (expected,) = torch.autograd.grad(net.energy().mean(), [net.top.weight])
    torch.testing.assert_close(net.top.weight.grad, expected)
    held = net.top.weight.grad
    loop.backward([net.top.weight])
    assert held is net.top.weight.grad
    torch.testing.assert_close(held, 2 * expected)


def test_backward_sees_weights_written_through_data_after_the_run():
    net = Net()
    loop = pyro.InferenceLoop(net.energy, [net.hidden.value], lr=0.05)
    loop.run(3)
    net.up.weight.data.mul_(2)
    loop.backward(net.up.parameters())
    expected = torch.autograd.grad(net.energy().mean(), list(net.up.parameters()))
    torch.testing.assert_close([p.grad for p in net.up.parameters()], list(expected))


def test_states_of_any_layout():
    net = Net()
    twin = copy.deepcopy(net)
    for n in (net, twin):
        n.hidden.value.data = n.hidden.value.detach().T.contiguous().T
        n.below.value.data = torch.cat([n.below.value.detach()] * 2, 1)[:, :4]
    pyro.InferenceLoop(net.energy, [net.hidden.value], lr=0.05, executor="chain").run(10)
    plain_loop(twin, [twin.hidden.value], 10, 0.05)
    torch.testing.assert_close(net.hidden.value, twin.hidden.value, rtol=1e-11, atol=1e-11)


def test_autocast_is_left_to_autograd():
    net = Net().float()
    loop = pyro.InferenceLoop(net.energy, [net.hidden.value], lr=0.05)
    loop.run(1)
    with torch.autocast("cpu", torch.bfloat16):
        loop.run(1)
        assert "autocast" in loop.explain()
    loop.run(1)
    assert loop.explain().startswith("executor: chain")


def test_states_that_share_memory_are_left_to_autograd():
    net = Net()
    memory = torch.randn(6, 5, dtype=torch.float64)
    net.hidden.value.data, net.below.value.data = memory, memory[:, :4]
    loop = pyro.InferenceLoop(net.energy, [net.hidden.value], lr=0.05)
    assert "shares its memory" in loop.explain()


def test_a_frozen_state_is_refused():
    net = Net()
    net.hidden.value.requires_grad_(False)
    with pytest.raises(ValueError, match=r"params must require gradients, got one of shape \(6, 5\)"):
        pyro.InferenceLoop(net.energy, [net.hidden.value], lr=0.05)
