"""States that become NaN or infinite: told after a run, and with `check_finite` where, and at which step."""

import math

import pytest
import torch
from torch import nn

import pyromancy as pyro
from networks import Chain, covariance_of
from pyromancy.nodes import FixedNode, StandardGaussianNode

EXECUTORS = ["chain", "graph", "autograd"]


class Net(nn.Module):
    """x = 1, W = (2, 3), y = 1: the energy's gradient is 10 z - 5, so that z = 0.5 stays where it is."""

    def __init__(self):
        super().__init__()
        self.below, self.hidden, self.above = FixedNode(1), StandardGaussianNode(1), StandardGaussianNode(1)
        self.up, self.top = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.up.weight, 2.0)
        nn.init.constant_(self.top.weight, 3.0)
        self.start(torch.tensor([0.5, 2.0]))

    def start(self, z):
        self.below.init(torch.ones(2, 1)), self.hidden.init(z.unsqueeze(1)), self.above.init(torch.ones(2, 1))

    def energy(self):
        return self.hidden.energy(self.up(self.below.value)) + self.above.energy(self.top(self.hidden.value))


@pytest.mark.parametrize("executor", EXECUTORS)
class TestLoop:
    def loop(self, executor, lr, check_finite=True):
        net = Net()
        return net, pyro.InferenceLoop(
            net.energy, [net.hidden.value], lr=lr, executor=executor, check_finite=check_finite
        )

    def test_where_and_when(self, executor):
        """At lr = 1e30 the second sample's state is -1.5e31 after one step, and beyond float32 after two."""
        net, loop = self.loop(executor, 1e30)
        with pytest.raises(FloatingPointError, match=r"^hidden\.value\[1, 0\] is inf after E-step 2$"):
            loop.run(5)
        assert net.hidden.value[0] == 0.5
        net, loop = self.loop(executor, 1e30, check_finite=False)
        with pytest.warns(UserWarning, match="of 1 of 2 samples are not finite"):
            loop.run(5)
        assert not net.hidden.value.isfinite().all()

    def test_a_divergence_is_told_once(self, executor):
        """The curvature is 10, so that rates are stable up to 0.2."""
        net, loop = self.loop(executor, 1e30, check_finite=False)
        told = r"^states of 1 of 2 samples are not finite after Descent\(lr=1e\+30\)\. Take a "
        rate = "lower rate, or" if executor == "autograd" else r"rate below 0\.2, up to which .* at their predictions"
        for _ in range(2):
            with pytest.warns(UserWarning, match=told + rate) as warned:
                loop.run(5)
            loop.run(5)  # warnings are errors here
            assert warned[0].filename == __file__
            assert not net.hidden.value.isfinite().all()
            net.start(torch.tensor([0.5, 2.0]))
            loop.lr = 0.01
            loop.run(5)  # all is well: the next will be told
            loop.lr = 1e30

    def test_steps_are_counted_from_when_the_states_were_set(self, executor):
        net, loop = self.loop(executor, 0.01)
        for _ in range(2):
            loop.run(3)
            loop.run(1)
            loop.lr = 1e30
            with pytest.raises(FloatingPointError, match=r"after E-step 6$"):
                loop.run(7)
            net.start(torch.tensor([0.5, 2.0]))
            loop.lr = 0.01

    @pytest.mark.parametrize("steps", [0, 3])
    def test_a_start_that_is_not_finite(self, executor, steps):
        net, loop = self.loop(executor, 0.1)
        net.start(torch.tensor([math.nan, 1.0]))
        with pytest.raises(FloatingPointError, match=r"^hidden\.value\[0, 0\] is nan before the first E-step$"):
            loop.run(steps)

    def test_steps_of_a_method_are_counted_that_were_made(self, executor):
        net, loop = self.loop(executor, 0.01, check_finite=False)
        method = pyro.methods.Accelerated(coordinates="states" if executor == "autograd" else "errors")
        wanted = None if executor == "chain" else executor  # which looks at no step of a method
        loop = pyro.InferenceLoop(net.energy, [net.hidden.value], method=method, executor=wanted)
        taken = loop.run(500, tol=0.5).steps
        loop.check_finite = True
        with torch.no_grad():
            net.hidden.value[1] = math.nan
        with pytest.raises(FloatingPointError, match=rf"^hidden\.value\[1, 0\] is nan after E-step {taken}$"):
            loop.run(3)

    @pytest.mark.parametrize("options", [{}, {"momentum": 0.8, "nesterov": True}], ids=["plain", "nesterov"])
    def test_it_changes_nothing_else(self, executor, options):
        results = []
        for check_finite in (False, True):
            torch.manual_seed(0)
            pcn = Chain(("FixedNode", *["FactorizedGaussianNode"] * 3), (9, 7, 6, 5))
            for node in pcn.nodes[1:]:
                node.covariance = covariance_of(node.size)
            pcn.init(torch.randn(5, 9, dtype=torch.float64), torch.randn(5, 5, dtype=torch.float64))
            states = [node.value for node in pcn.nodes[1:-1]]
            loop = pyro.InferenceLoop(
                pcn.energy, states, lr=0.05, executor=executor, check_finite=check_finite, **options
            )
            traces = [loop.run(4, record=True), loop.run(0, record=True), loop.run(3)]
            assert [t.steps for t in traces] == [4, 0, 3]
            assert traces[2].energies is None
            results.append([*states, traces[0].energies, traces[1].energies])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (1, 1)], ids=["number", "one-row"])
@pytest.mark.parametrize("executor", ["graph", "autograd"])
@pytest.mark.filterwarnings("ignore:the energy is of 2 samples, which share")
def test_of_states_without_a_row_per_sample_it_is_told_how_many_are_not_finite(executor, shape):
    net, shared = Net(), torch.full(shape, 2.0, requires_grad=True)
    loop = pyro.InferenceLoop(
        lambda: net.energy() + net.above.energy(shared * net.hidden.value), [net.hidden.value, shared], lr=1e30,
        executor=executor,
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"^2 of 2 states are not finite after Descent\(lr=1e\+30\)\. Take a lower "):
        loop.run(5)


@pytest.mark.parametrize("incremental", [False, True, "joint"], ids=str)
def test_em(incremental):
    net = Net()
    weights = [net.up.weight, net.top.weight]
    optimizer = torch.optim.SGD(weights, lr=0.0)
    em = pyro.EM(
        net.energy, [net.hidden.value], optimizer, start=net.start, steps=5, lr=0.01, incremental=incremental,
        check_finite=True,
    )  # fmt: skip
    em.step(torch.tensor([0.5, 2.0]))
    assert "not one call: check_finite looks at all states after every E-step" in em.explain()
    em.loop.lr = 1e30  # after the first step the weights' gradients are not finite either
    with pytest.raises(FloatingPointError, match=r"hidden\.value\[\d, 0\] is (inf|nan) after E-step 2$"):
        em.step(torch.tensor([0.5, 2.0]))
    em.loop.check_finite, em.loop.lr = False, 0.01
    em.step(torch.tensor([0.5, 2.0]))
    assert "one call of an operator" in em.explain()


@pytest.mark.parametrize("incremental", [False, True, "joint"], ids=str)
def test_em_tells(incremental):
    """Where a batch is one call, too, also of one that is done as the last one was."""
    net = Net()
    optimizer = torch.optim.SGD([net.up.weight, net.top.weight], lr=0.0)
    em = pyro.EM(net.energy, [net.hidden.value], optimizer, start=net.start, steps=5, lr=0.01, incremental=incremental)
    for _ in range(12):
        em.step(torch.tensor([0.5, 2.0]))
    net.start(torch.tensor([0.5, 2.0]))
    for _ in range(2):
        with pytest.warns(UserWarning, match="states of 2 of 2 samples are not finite"):
            em.step(torch.tensor([math.inf, math.inf]))
        em.step(torch.tensor([math.inf, math.inf]))  # warnings are errors here
        with torch.no_grad():  # which have learned from that
            net.up.weight.fill_(2.0), net.top.weight.fill_(3.0)
        em.step(torch.tensor([0.5, 2.0]))
    assert "one call of an operator" in em.explain()


@pytest.mark.parametrize("batch", [1, 3, 5, 17, 33, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_element_of_one_sample_is_found(batch, dtype):
    torch.manual_seed(0)
    pcn = Chain(("FixedNode", *["StandardGaussianNode"] * 2), (9, 7, 5)).to(dtype)
    x, y = torch.randn(batch, 9, dtype=dtype), torch.randn(batch, 5, dtype=dtype)
    for sample in {0, batch // 2, batch - 1}:
        pcn.init(x, y)
        loop = pyro.InferenceLoop(pcn.energy, [pcn.nodes[1].value], lr=0.05, executor="chain")
        loop.run(1)
        with torch.no_grad():
            pcn.nodes[1].value[sample, 6] = math.inf
        with pytest.warns(UserWarning, match=f"of 1 of {batch} samples are not finite"):
            loop.run(1)
