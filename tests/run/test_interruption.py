"""Long runs of a chain are made in parts, between which Ctrl-C is noticed."""

import copy
import itertools
import signal

import pytest
import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

import forks
import networks
import pyromancy as pyro
from pyromancy import plan
from pyromancy.capture import interrupt, program, trace
from pyromancy.capture.checker import Checker
from pyromancy.capture.recording import Operators, Recording
from pyromancy.nodes import FixedNode, StandardGaussianNode
from pyromancy.run import chain

WIDTHS = (9, 7, 6, 5)
OPTIONS = {
    "plain": {},
    "momentum": {"momentum": 0.9, "dampening": 0.2},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "mean": {"reduction": "mean"},
}


def network(kind):
    pcn = networks.Chain(("FixedNode", kind, kind, kind), WIDTHS)
    for node in pcn.nodes[1:]:
        if kind != "StandardGaussianNode":
            node.covariance = networks.covariance_of(node.size)
    pcn.init(torch.randn(65, WIDTHS[0], dtype=torch.float64), torch.randn(65, WIDTHS[-1], dtype=torch.float64))
    return pcn


def run(pcn, record, options):
    """States, energies and gradients of two runs, in which the second goes on from the first."""
    states = [node.value for node in pcn.nodes[1:-1]]
    loop = pyro.InferenceLoop(pcn.energy, states, lr=0.05, executor="chain", **options)
    energies = [loop.run(steps, record=record).energies for steps in (7, 4)]
    learned = [*pyro.get_mstep_params(pcn)]
    loop.backward(learned)
    return [*states, *(e for e in energies if e is not None), *(p.grad for p in learned)]


@pytest.mark.parametrize("record", [False, True], ids=["plain", "record"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", networks.KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_parts_change_no_bit(monkeypatch, kind, options, record, dtype):
    pcn = network(kind).to(dtype)
    twin = copy.deepcopy(pcn)
    calls = []
    operator = chain.ops.run_plan_

    def counted(*args):
        if steps := plan.decode(*args[2:]).steps:
            calls.append(steps)
        operator(*args)

    monkeypatch.setattr(chain.ops, "run_plan_", counted)
    expected = run(pcn, record, OPTIONS[options])
    assert calls == [7, 4]
    monkeypatch.setattr(chain, "_SHORT", 1)
    monkeypatch.setattr(chain, "_PART", 0.0)
    found = run(twin, record, OPTIONS[options])
    assert calls == [7, 4] + 11 * [1]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_parts_follow_the_clock(monkeypatch):
    pcn = network("StandardGaussianNode")
    loop = pyro.InferenceLoop(pcn.energy, [pcn.nodes[1].value], lr=0.1, executor="chain")
    loop.run(1)
    clock = iter([0.0, 0.01, 0.01, 0.21, 0.21, 0.31, 0.31, 0.32])
    monkeypatch.setattr(chain.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(loop._choice.executor, "_surely_short", 4)
    assert [*loop._choice.executor._parts(4 + 32 + 16 + 9)] == [(0, 4), (4, 32), (36, 16), (52, 9)]


INTERRUPTED = """
import signal, threading
import torch
import pyromancy as pyro
from pyromancy import plan
from pyromancy.run import chain
from pyromancy.nodes import StandardGaussianNode

torch.set_default_dtype(torch.float64)
hidden, above, top = StandardGaussianNode(30), StandardGaussianNode(10), torch.nn.Linear(30, 10)
x, y = torch.randn(64, 30), torch.randn(64, 10)
energy = lambda: hidden.energy(x) + above.energy(top(hidden.value))
loop = pyro.InferenceLoop(energy, [hidden.value], lr=1e-8, momentum=0.5)  # which comes to no end meanwhile
hidden.init(x), above.init(y)
loop.run(3)
begun, operator = [], chain.ops.run_plan_
def counted(*args):
    begun.append(plan.decode(*args[2:]).steps)
    operator(*args)
chain.ops.run_plan_ = counted
threading.Timer(1.0, signal.raise_signal, (signal.SIGINT,)).start()
try:
    loop.run(10**12)
except KeyboardInterrupt:
    pass
left, parts = hidden.value.detach().clone(), [*begun]
loop.run(5)
after = hidden.value.detach().clone()
hidden.init(x), above.init(y)
loop.run(3 + sum(parts[:-1]))
if not torch.equal(hidden.value, left):  # the part that was under way was done
    loop.run(parts[-1])
assert torch.equal(hidden.value, left)
loop.run(5)
assert torch.equal(hidden.value, after)
assert len(parts) > 2
print("stopped")
"""


@pytest.mark.slow
def test_an_interrupted_run_leaves_whole_steps():
    assert forks.python("-c", INTERRUPTED).endswith("stopped\n")


MODES = {
    "recording": (Recording, TorchFunctionMode),
    "operators": (Operators, TorchDispatchMode),
    "checker": (Checker, TorchFunctionMode),
    "tracer": (trace._Tracer, TorchDispatchMode),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("starts", [True, False])
def test_no_mode_of_pytorchs_stays_on(starts, mode, monkeypatch):
    """Where Ctrl-C comes as an energy, or `start`, has been run dry, or recorded, and a mode is about to be left."""

    def made():
        torch.manual_seed(1)
        edges = [torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(32, 2)]
        net = pyro.networks.from_sequential(torch.nn.Sequential(*edges))
        return net, pyro.InferenceLoop(net.energy, net.e_params(), lr=0.1)

    def batch(net, loop):
        if starts:
            optimizer = torch.optim.SGD(net.m_params(), 0.1)
            em = pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=2, lr=0.1)
            return lambda: em.step(x, y)
        net.start(x, y)
        return lambda: loop.run(2)

    x, y = torch.rand(4, 1, 6, 6), torch.rand(4, 2)
    own, base = MODES[mode]
    net, loop = made()
    run = batch(net, loop)
    came = []

    def leave(self, *error):
        if not came:
            came.append(own)
            signal.raise_signal(signal.SIGINT)
        return base.__exit__(self, *error)

    def thrice(run):
        for _ in range(3):
            run()

    with monkeypatch.context() as patch:
        patch.setattr(own, "__exit__", leave)
        with pytest.raises(KeyboardInterrupt):
            thrice(run)
        assert came
        assert not _get_current_function_mode_stack()
        assert not _get_current_dispatch_mode_stack()
        assert torch.is_grad_enabled()
    run()
    assert all(p.isfinite().all() for p in [*net.e_params(), *net.m_params()])


class Small(torch.nn.Module):
    """That keeps what it computes, and so is run dry before every batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.below, self.hidden, self.above = FixedNode(3), StandardGaussianNode(4), StandardGaussianNode(2)
        self.up, self.top = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
        optimizer = torch.optim.SGD(pyro.get_mstep_params(self), 0.1)
        self.em = pyro.EM(self.energy, [self.hidden.value], optimizer, start=self.start, steps=2, lr=0.1)

    def start(self, x, y):
        self.above.init(y)
        self.hidden.init(self.up(self.below.init(x)))

    def energy(self):
        self.error = self.above.value - self.top(self.hidden.value)
        return self.hidden.energy(self.up(self.below.value)) + self.error.square().sum(1)


def interrupted_at_every(monkeypatch, owner, name, act):
    """Do something again and again, with Ctrl-C after ever more calls of a function, until there are fewer; yields."""
    original, n, came = getattr(owner, name), 0, True
    while came:
        n, left = n + 1, [n + 1]

        def called(*args, left=left, **kwargs):
            result = original(*args, **kwargs)
            left[0] -= 1
            if not left[0]:
                signal.raise_signal(signal.SIGINT)
            return result

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, called)
            try:
                act()
                came = False
            except KeyboardInterrupt:
                pass
        yield
    assert n > 2


@pytest.mark.parametrize("how", ["run", "step", "epoch"])
def test_gradients_are_on_where_they_were(how, monkeypatch):
    """Where Ctrl-C comes when `no_grad` has turned them off, and is not yet entered."""
    net, x, y = Small(), torch.rand(5, 3), torch.rand(5, 2)
    acts = {
        "run": lambda: net.em.loop.run(2, record=True),
        "step": lambda: net.em.step(x, y),
        "epoch": lambda: list(net.em.epoch(x, y, batch_size=5)),
    }
    net.start(x, y)
    for _ in interrupted_at_every(monkeypatch, torch.no_grad, "__enter__", acts[how]):
        assert torch.is_grad_enabled()
        torch.set_grad_enabled(True)


def test_what_is_kept_of_a_dry_run_is_whole(monkeypatch):
    net, twin = Small(), Small()
    batches = [(torch.rand(5, 3), torch.rand(5, 2)) for _ in range(9)]
    for x, y in batches[:3]:
        net.em.step(x, y)
    ends = itertools.cycle(batches)
    for _ in interrupted_at_every(monkeypatch, program, "filled", lambda: net.em.step(*next(ends))):
        assert net.error.isfinite().all()
        x, y = next(ends)
        twin.load_state_dict(net.state_dict())
        net.em.step(x, y)
        twin.em.step(x, y)
        assert torch.equal(net.error, twin.error)
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("batches", [0, 3])
@pytest.mark.parametrize("reads", [False, True])
def test_what_a_handler_raises_is_raised(reads, batches):
    """And is not taken for an error of the energy's, which may be one of a dry run alone."""
    net, pressed = Small(), []

    def handler(*_):
        raise TimeoutError("pressed")

    def energy():
        result = net.energy()
        if reads:
            result.detach().sum().item()
        if pressed:
            pressed.clear()
            signal.raise_signal(signal.SIGINT)
        return result

    optimizer = torch.optim.SGD(pyro.get_mstep_params(net), 0.1)
    em = pyro.EM(energy, [net.hidden.value], optimizer, start=net.start, steps=2, lr=0.1)
    for _ in range(batches):
        em.step(torch.rand(5, 3), torch.rand(5, 2))
    before = signal.signal(signal.SIGINT, handler)
    try:
        pressed.append(True)
        with pytest.raises(TimeoutError, match="pressed"):
            em.step(torch.rand(5, 3), torch.rand(5, 2))
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_who_presses_again_after_a_second_does_not_wait(monkeypatch):
    """As where an energy that is run dry never returns."""
    now = [0.0]
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now[0])

    def presses(*times):
        with interrupt.Uninterrupted():
            for now[0] in times:
                signal.raise_signal(signal.SIGINT)
                went_on.append(now[0])

    for times, heeded in (((0.0, 0.5), [0.0, 0.5]), ((0.0, 0.5, 1.5, 2.0), [0.0, 0.5])):
        went_on = []
        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            presses(*times)
        assert went_on == heeded
        assert signal.getsignal(signal.SIGINT) is before
