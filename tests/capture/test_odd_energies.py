"""Energies that look like chains and are not quite, and gradients that somebody watches."""

import contextlib
import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import pyromancy as pyro
from descent import assert_as_autograd, free
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


@pytest.mark.filterwarnings("ignore:.*share other.value:UserWarning")  # as samples do where it has one row
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


gaussian_energy = pyro.functional.gaussian_energy


def test_a_prediction_used_twice_counts_twice_in_the_gradients():
    x, edge, z, other = torch.randn(5, 3).double(), nn.Linear(3, 4).double(), free(5, 4), free(5, 4)

    def energy():
        mu = edge(x)
        return gaussian_energy(z, mu) + gaussian_energy(other, mu)

    explained = assert_as_autograd(energy, [z, other], list(edge.parameters()))
    assert explained.startswith("executor: chain")
    assert "not fused" not in explained


def test_a_factor_that_also_predicts():
    logdiag, offtril = free(4), free(4, 4)
    z, noise = free(5, 4), torch.randn(5, 4).double()

    def energy():
        factor = pyro.functional.cholesky_factor(logdiag, offtril)
        return pyro.functional.multivariate_energy(z, noise @ factor.T, factor)

    with torch.no_grad():
        logdiag.mul_(0.1)
    assert_as_autograd(lambda: 0.1 * energy(), [z], [logdiag, offtril])


@pytest.mark.parametrize("executor", ["chain", "graph", "autograd"])
def test_no_steps_begin_no_velocity(executor):
    z, mu = free(5, 4), torch.randn(5, 4).double()
    start = z.detach().clone()
    options = {"momentum": 0.9, "dampening": 0.5}
    loop = pyro.InferenceLoop(lambda: gaussian_energy(z, mu), [z], lr=0.1, executor=executor, **options)
    assert loop.run(0, record=True).energies.shape == (1, 1)
    loop.run(3)
    found = z.detach().clone()
    z.data.copy_(start)
    sgd = torch.optim.SGD([z], lr=0.1, **options)
    for _ in range(3):
        sgd.zero_grad()
        gaussian_energy(z, mu).sum().backward()
        sgd.step()
    torch.testing.assert_close(found, z.detach(), rtol=1e-12, atol=1e-12)


def test_dtypes_that_differ_are_no_chain():
    z, mu, logvar = free(5, 4), torch.randn(5, 4).double(), torch.randn(4)
    assert "mixes torch.float32 (logvar) and torch.float64 (mu)" in assert_as_autograd(
        lambda: gaussian_energy(z, mu, logvar), [z]
    )


def test_a_state_of_any_layout_has_momentum():
    z, mu = nn.Parameter(torch.randn(4, 5).double().T), torch.randn(5, 4).double()
    assert_as_autograd(lambda: gaussian_energy(z, mu), [z], momentum=0.9)


def test_other_strides_are_noticed():
    z, weight, target = free(5, 4), free(6, 4), torch.randn(5, 24).double()

    def energy():
        return 0.1 * (z.repeat(1, 6) * weight.reshape(24) - target).square().sum(1)

    loop = pyro.InferenceLoop(energy, [z], lr=0.01)
    loop.run(2)
    weight.data = torch.randn(4, 6).double().T
    start = z.detach().clone()
    loop.run(1)
    expected = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        0.1 * (expected.repeat(1, 6) * weight.reshape(24) - target).square().sum(), [expected]
    )
    torch.testing.assert_close(z.detach(), start - 0.01 * gradient)


def test_what_is_frozen_is_passed_over_by_autograd_too():
    edge, x, z = nn.Linear(3, 4).double(), torch.randn(5, 3).double(), free(5, 4)
    edge.weight.requires_grad_(False)
    energy = lambda: gaussian_energy(z, torch.sin(edge(x))) + 0.1 * z.pow(4).sum(1)  # noqa: E731
    assert_as_autograd(energy, [z], list(edge.parameters()))
    edge.bias.requires_grad_(False)
    assert_as_autograd(energy, [z], [edge.weight])


def test_random_numbers_from_within_are_left_to_autograd():
    z, queries = free(5, 3, 4), torch.randn(5, 3, 4).double()

    def energy():
        mixed = F.scaled_dot_product_attention(queries, queries, z, dropout_p=0.5)
        return (mixed - queries).square().sum((1, 2))

    loop = pyro.InferenceLoop(energy, [z], lr=0.01)
    loop.run(2)
    assert "random" in loop.explain()


def test_a_fused_gradient_lets_a_node_forget_its_factor():
    node, edge, x = (
        pyro.nodes.MultivariateGaussianNode(3).double(),
        nn.Linear(2, 3).double(),
        torch.randn(4, 2).double(),
    )
    node.init(torch.randn(4, 3))
    loop = pyro.InferenceLoop(lambda: node.energy(edge(x)), [node.value], lr=0.1)
    loop.run(2)
    learned = [node.covar_cf_logdiag, node.covar_cf_offtril]
    loop.backward(learned)
    assert "autograd's" not in loop.explain()
    for p in learned:
        p.data.sub_(0.5 * p.grad)
    factor = pyro.functional.cholesky_factor(*learned)
    expected = pyro.functional.multivariate_energy(node.value, edge(x), factor)
    torch.testing.assert_close(loop.energy(), expected.detach())


def test_the_mean_over_no_samples():
    z = free(0, 4)
    pyro.InferenceLoop(lambda: gaussian_energy(z, torch.zeros(0, 4).double()), [z], lr=0.1, reduction="mean").run(2)
    assert z.shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_infinite_state_has_infinite_energy_at_any_size(dtype):
    for width in (4, 20000):
        z = torch.zeros(1, width, dtype=dtype)
        z[0, 0] = float("inf")
        assert gaussian_energy(z, torch.zeros_like(z)).item() == float("inf")


class HalvedLinear(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return 0.5 * result if function is F.linear else result


class HalvedProduct(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        return 0.5 * result if operator is torch.ops.aten.addmm.default else result


def lossy_hooks():
    return torch.autograd.graph.saved_tensors_hooks(lambda t: 0.5 * t.detach(), lambda t: t)


@pytest.mark.parametrize("executor", ["chain", "graph"])
@pytest.mark.parametrize("surroundings", [HalvedLinear, HalvedProduct, lossy_hooks])
def test_what_is_on_around_a_run_counts_and_leaves_nothing_behind(surroundings, executor):
    net = Net("plain" if executor == "chain" else "broadcast-bias")
    twin = copy.deepcopy(net)
    loop = pyro.InferenceLoop(net.energy, [net.hidden.value], lr=0.1)
    for around in (surroundings, contextlib.nullcontext, surroundings):
        with around():
            loop.run(3)
            assert ("executor: autograd" in loop.explain()) == (around is surroundings)
            plain_loop(twin, [twin.hidden.value], 3, 0.1)
        torch.testing.assert_close(net.hidden.value, twin.hidden.value, rtol=1e-12, atol=1e-12)


class Quantised(torch.Tensor):
    """Brings its own linear, as quantised weights do."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is not F.linear:
            return super().__torch_function__(function, types, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return F.linear(args[0], args[1].as_subclass(torch.Tensor).round(decimals=1), *args[2:])


def test_a_weight_that_computes_otherwise():
    net = Net()
    net.top.weight = nn.Parameter(net.top.weight.detach().as_subclass(Quantised))
    start, expected = net.hidden.value.detach().clone(), None
    for executor in ("autograd", None):
        net.hidden.init(start)
        loop = pyro.InferenceLoop(net.energy, [net.hidden.value], lr=0.1, executor=executor)
        loop.run(5)
        expected = net.hidden.value.detach().clone() if expected is None else expected
    assert "linear takes a Quantised" in loop.explain()
    torch.testing.assert_close(net.hidden.value, expected, rtol=0, atol=0)


def test_an_optimizer_in_the_backward_pass_runs():
    from torch.distributed.optim import _apply_optimizer_in_backward

    net = Net()
    _apply_optimizer_in_backward(torch.optim.SGD, [net.top.bias], {"lr": 1.0})
    before = net.top.bias.detach().clone()
    loop = pyro.InferenceLoop(net.energy, [net.hidden.value], lr=0.1)
    loop.run(2)
    loop.backward([net.top.bias])
    assert not torch.equal(net.top.bias, before)
