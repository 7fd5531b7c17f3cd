"""What steps do beside a plain rate, in one operator: as stepwise, sample by sample, and in a batch of EM."""

import copy

import pytest
import torch

import pyromancy as pyro
from numerics import same_bits
from pyromancy.methods import Accelerated, Descent, Known, Range, Shrink
from twins import batches, twins

SIZES = (5, 40, 33, 17, 3)
STEPS = 6
OPTIONS = {
    "rates": lambda net, batch: {"lr": {net.nodes[1]: 0.05, net.nodes[2]: 0.0, None: 0.02}},
    "schedule": lambda net, batch: {"schedule": lambda t: 0.8**t},
    "warm-up": lambda net, batch: {"schedule": [0.0, 0.0, 0.5, 1.0, 1.0, 1.0]},
    "norm": lambda net, batch: {"max_norm": 0.3},
    "range": lambda net, batch: {"constraints": {net.nodes[1]: Range(-0.2, 0.3), net.nodes[3]: Range(0)}},
    "high": lambda net, batch: {"constraints": {net.nodes[2]: Range(None, 0.1)}},
    "above-zero": lambda net, batch: {"constraints": {net.nodes[2]: Range(0.5, 1)}},
    "mask": lambda net, batch: {"constraints": {net.nodes[2]: Known(torch.arange(33) % 3 == 0)}},
    "mask-per-sample": lambda net, batch: {"constraints": {net.nodes[3]: Known(mask(batch, 17))}},
    "samples": lambda net, batch: {"constraints": {net.nodes[3]: Known(mask(batch, 1))}},
    "shrink": lambda net, batch: {"constraints": {net.nodes[1]: Shrink(0.4), net.nodes[2]: Shrink(0.2, 0.3)}},
    "all": lambda net, batch: {
        "lr": {net.nodes[1]: 0.05, None: 0.02}, "schedule": lambda t: 0.9**t, "max_norm": 0.5,
        "constraints": {
            net.nodes[1]: (Shrink(0.2), Range(0.0)), net.nodes[2]: (Known(mask(batch, 33)), Shrink(0.1), Range(-1, 1))
        },
    },
}  # fmt: skip
METHODS = {
    "descent": lambda **options: Descent(**options),
    "restarts": lambda **options: Accelerated(coordinates="states", **options),
    "momentum": lambda **options: Accelerated(momentum=0.6, coordinates="states", **options),
    "errors": lambda **options: Accelerated(coordinates="errors", **options),
    "errors-descent": lambda **options: Descent(dampening=0.3, coordinates="errors", **options),  # which is of momenta
}
OF_ERRORS = ("rates", "schedule", "warm-up", "norm")
WAYS = [(k, m) for k in OPTIONS for m in METHODS if "errors" not in m or k in OF_ERRORS]
ways = pytest.mark.parametrize(("option", "method"), WAYS)


def mask(batch, width):
    """Of samples that do not depend on how many there are."""
    return (torch.arange(batch)[:, None] + 2 * torch.arange(width)) % 3 == 0


def network(batch, dtype=torch.float64):
    net = pyro.networks.mlp([*SIZES], activation="tanh").to(dtype)
    net.start(*data(batch, dtype))
    with torch.no_grad():
        for i, p in enumerate(net.e_params()):
            p += torch.sin(torch.arange(p.numel(), dtype=dtype)).reshape(p.shape) * (i + 1)
    return net


def data(batch, dtype):
    generator = torch.Generator().manual_seed(batch)
    return [torch.randn(batch, n, dtype=dtype, generator=generator) for n in (SIZES[0], SIZES[-1])]


def made(option, method, net, batch):
    return METHODS[method](**{"lr": 0.05} | OPTIONS[option](net, batch))


@pytest.mark.usefixtures("native_backend")
@ways
@pytest.mark.parametrize("batch", [3, 40])
def test_one_operator_does_what_steps_do(option, method, batch):
    net = network(batch)
    other = copy.deepcopy(net)
    loop = pyro.InferenceLoop(net.energy, net.e_params(), method=made(option, method, net, batch))
    executor = "graph" if "errors" in method else "autograd"  # which needs no trace, and has no errors
    stepwise = pyro.InferenceLoop(
        other.energy, other.e_params(), method=made(option, method, other, batch), executor=executor
    )
    starts = [p.detach().clone() for p in net.e_params()]
    loop.run(STEPS)
    stepwise.run(STEPS)
    assert "fused: all sweeps in one operator" in loop.explain()
    assert f"stepwise, on {'autograd' if executor == 'autograd' else 'what was captured'}" in stepwise.explain()
    for p, q in zip(net.e_params(), other.e_params(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-11)
    assert any(not torch.equal(p, s) for p, s in zip(net.e_params(), starts, strict=True))
    for node, constraint in (loop.method.constraints or {}).items():
        for known in (c for c in constraint if isinstance(c, Known)):
            held = known.mask.expand(node.value.shape)
            place = [*net.nodes].index(node) - 1
            assert torch.equal(node.value[held], starts[place][held])


@pytest.mark.parametrize("executor", [None, "graph"])
def test_a_schedule_goes_on_from_run_to_run(executor):
    """Until states are set anew."""
    net = network(3)
    other = copy.deepcopy(net)
    loops = [
        pyro.InferenceLoop(n.energy, n.e_params(), method=Descent(0.05, schedule=lambda t: 0.5**t), executor=executor)
        for n in (net, other)
    ]
    for _ in range(2):
        for n in (net, other):
            n.start(*data(3, torch.float64))
        loops[0].run(5)
        loops[1].run(2)
        loops[1].run(3)
        for p, q in zip(net.e_params(), other.e_params(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("native_backend")
@ways
def test_runs_go_on(option, method):
    """As one run does."""
    net = network(19)
    nets = [net, copy.deepcopy(net)]
    loops = [pyro.InferenceLoop(n.energy, n.e_params(), method=made(option, method, n, 19)) for n in nets]
    loops[0].run(STEPS)
    for steps in (1, 2, STEPS - 3):
        loops[1].run(steps)
    assert "fused: all sweeps in one operator" in loops[1].explain()
    for whole, parts in zip(*(n.e_params() for n in nets), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-11, atol=1e-11)


def test_a_run_that_a_schedule_is_too_short_for_changes_nothing():
    net = network(3)
    nets = [net, copy.deepcopy(net)]
    loops = [
        pyro.InferenceLoop(n.energy, n.e_params(), method=Accelerated(0.05, momentum=0.6, schedule=[1.0] * 4))
        for n in nets
    ]
    for loop in loops:
        loop.run(2)
    with pytest.raises(ValueError, match=r"schedule must have a factor for each of 5 steps, got 4"):
        loops[0].run(3)
    for loop in loops:
        loop.run(2)
    assert all(same_bits(p, q) for p, q in zip(*(n.e_params() for n in nets), strict=True))


def spread(batch):
    """A network whose samples are at different distances from rest."""
    net = network(batch)
    with torch.no_grad():
        for p in net.e_params():
            p *= torch.linspace(0.1, 2.0, batch, dtype=p.dtype)[:, None]
    return net


def steps_until_alike(loops, nets, steps, tol):
    """The steps that samples took until they stopped, the same in two loops, as are their states."""
    fused, stepwise = (loop.run(steps, tol=tol) for loop in loops)
    assert torch.equal(fused.taken, stepwise.taken)
    assert torch.equal(fused.converged, stepwise.converged)
    for p, q in zip(*(n.e_params() for n in nets), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-11)
    return {*fused.taken.tolist()}


@pytest.mark.usefixtures("native_backend")
@pytest.mark.parametrize("option", OF_ERRORS)
@pytest.mark.parametrize("method", ["errors", "errors-descent"])
def test_samples_stop_as_stepwise(option, method):
    """Each at its own step, of fewer than windows of the operator hold; a schedule goes on from the last of these."""
    start, kinds = spread(150), set()
    for tol in (2.0, 1.0, 0.5, 0.2):
        nets, loops = [copy.deepcopy(start) for _ in range(2)], []
        for net, executor in zip(nets, (None, "graph"), strict=True):
            options = {"lr": 0.05} | OPTIONS[option](net, 150)
            if option == "warm-up":
                options["schedule"] = [0.5, 0.0, 0.5, 0.0, 1.0, *[0.7, 1.2] * 30]
            made = METHODS[method](**options)
            loops.append(pyro.InferenceLoop(net.energy, net.e_params(), method=made, executor=executor))
        for steps in (40, 20) if method == "errors-descent" else (40,):
            kinds |= steps_until_alike(loops, nets, steps, tol)
        assert "fused: all sweeps in one operator" in loops[0].explain()
    assert len(kinds) > 3


@pytest.mark.usefixtures("native_backend")
@pytest.mark.parametrize(
    "option", [k for k in OPTIONS if any(w in k for w in ("range", "high", "zero", "shrink", "all"))]
)
@pytest.mark.parametrize("method", ["descent", "restarts", "momentum"])
def test_constrained_samples_stop_as_stepwise(option, method):
    """Each at its own step, at the point that leads to; and what goes on from there."""
    start, kinds = spread(150), set()
    for tol in (0.5, 0.1, 0.02):
        nets = [copy.deepcopy(start) for _ in range(2)]
        loops = [
            pyro.InferenceLoop(net.energy, net.e_params(), method=made(option, method, net, 150), executor=executor)
            for net, executor in zip(nets, (None, "autograd"), strict=True)
        ]
        for steps in (60, 10):
            kinds |= steps_until_alike(loops, nets, steps, tol)
        assert "fused: all sweeps in one operator" in loops[0].explain()
        assert "no bound: constraints hold states" in loops[0].explain()
    assert len(kinds) > 3


@pytest.mark.usefixtures("native_backend")
@ways
def test_samples_do_not_interact(option, method):
    """To the last bit, in any number, whatever tiles and threads there are."""
    rows = [(0, 1, 2), (1, 4, 1), (4, 9, 2), (9, 41, 1), (41, 131, 2), (0, 131, 2)]
    for dtype in (torch.float32, torch.float64):
        net = network(131, dtype)
        starts = [n.value.detach().clone() for n in net.nodes]
        was = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            pyro.InferenceLoop(net.energy, net.e_params(), method=made(option, method, net, 131)).run(STEPS)
            whole = [p.detach().clone() for p in net.e_params()]
            for i, j, threads in rows:
                torch.set_num_threads(threads)
                for node, value in zip(net.nodes, starts, strict=True):
                    node.init(value[i:j])
                method_of = made(option, method, net, 131)
                for constraint in (c for of in (method_of.constraints or {}).values() for c in of):
                    if isinstance(constraint, Known) and len(constraint.mask) == 131:
                        object.__setattr__(constraint, "mask", constraint.mask[i:j])
                pyro.InferenceLoop(net.energy, net.e_params(), method=method_of).run(STEPS)
                assert all(same_bits(p, q[i:j]) for p, q in zip(net.e_params(), whole, strict=True))
        finally:
            torch.set_num_threads(was)


@pytest.mark.usefixtures("native_backend")
@pytest.mark.parametrize("option", [k for k in OPTIONS if "samples" not in k and "sample" not in k and k != "all"])
@pytest.mark.parametrize("method", ["descent", "restarts"])
def test_a_batch_is_its_lines(option, method):
    """Also where it repeats the last, and where a mask has been changed in place."""
    net, other = twins()
    of = [n.nodes[:2] for n in (net, other)]
    changed = []

    def options(first, second):
        held = torch.arange(16) % 3 == 0
        changed.append(held)
        return {
            "rates": {"lr": {first: 0.05, None: 0.02}}, "schedule": {"schedule": lambda t: 0.8**t},
            "warm-up": {"schedule": [0.0, 0.5, 1.0]}, "norm": {"max_norm": 0.3},
            "range": {"constraints": {first: Range(-0.2, 0.3)}}, "high": {"constraints": {second: Range(None, 0.1)}},
            "above-zero": {"constraints": {second: Range(0.5, 1)}}, "mask": {"constraints": {second: Known(held)}},
            "shrink": {"constraints": {second: Shrink(0.4)}},
        }[option]  # fmt: skip

    both = [METHODS[method](**{"lr": 0.05} | options(*nodes)) for nodes in of]
    optimizers = [torch.optim.SGD(n.m_params(), 0.05, momentum=0.9) for n in (net, other)]
    em = pyro.EM(net.energy, net.e_params(), optimizers[0], start=net.start, steps=3, method=both[0])
    loop = pyro.InferenceLoop(other.energy, other.e_params(), method=both[1])
    for i, (x, y) in enumerate(batches(1) * 6):
        if i == 4:
            for held in changed:
                held.logical_not_()
        em.step(x, y)
        with torch.no_grad():
            other.start(x, y)
        loop.run(3)
        optimizers[1].zero_grad()
        loop.backward(other.m_params())
        optimizers[1].step()
        for p, q in zip(net.m_params(), other.m_params(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)
    assert em.explain().startswith("a batch: one call of an operator")
