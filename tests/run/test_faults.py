"""What a training must survive: being killed, Ctrl-C, forks, no memory, space or permission, errors of user code."""

import gc
import os
import random
import signal
import threading
import time
import weakref
from unittest import mock

import pytest
import torch

import forks
import killed
import processes
import pyromancy as pyro
import resumed

KILLS = int(os.environ.get("PYROMANCY_KILLS", "3"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adam", "langevin"])
def test_who_is_killed_goes_on_to_the_same_bits(kind, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    killed.main(whole, kind)
    moments, kills = random.Random(4), 0
    while not (broken / "result.pt").exists():
        process = forks.start(killed.__file__, broken, kind, **processes.AS_HERE)
        assert process.stdout.readline() == "begins\n"
        if kills < KILLS:
            time.sleep(moments.uniform(0, 0.2))
            process.kill()
            kills += process.wait() == -signal.SIGKILL
            process.stdout.close()
        else:
            processes.finish(process)
    assert kills == KILLS
    found, expected = (torch.load(folder / "result.pt", weights_only=True) for folder in (broken, whole))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in what the garbage collector calls
@pytest.mark.parametrize("kind", ["adam", "accelerated", "graph", "called", "dropout"])
def test_ctrl_c_at_any_moment_of_an_epoch_loses_nothing(kind):
    """Signals that come whenever they come: the epoch goes on from its `state_dict`, to the same bits."""
    training = resumed.Training(kind)
    inside, stopped, done, moments = False, 0, threading.Event(), random.Random(1)

    def interrupt(*_):
        nonlocal inside, stopped
        if inside:
            inside, stopped = False, stopped + 1
            raise KeyboardInterrupt

    def send():
        while not done.wait(moments.uniform(0, 0.02)):
            os.kill(os.getpid(), signal.SIGINT)

    before, thread = signal.signal(signal.SIGINT, interrupt), threading.Thread(target=send)
    thread.start()
    try:
        with mock.patch("pyromancy.run.em._PART", 0.0):
            while training.epoch < resumed.EPOCHS:
                left = True
                while left:
                    parts = training.em.epoch(*training.data, batch_size=8, generator=training.generator)
                    try:
                        inside = True
                        for _ in parts:
                            pass
                        inside = False
                    except KeyboardInterrupt:
                        pass
                    state = training.em.state_dict()
                    left = state["order"] is not None
                    if left:
                        training.em.load_state_dict(state)
                training.epoch += 1
                training.rates.step()
    finally:
        inside = False
        done.set()
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert stopped > 0
    found, whole = training.result(), resumed.Training(kind)
    whole.run()
    assert all(map(torch.equal, found, whole.result()))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_start_after_threads_were_at_work_learn_the_same(method):
    """Forked or spawned ones, and those that bring a loader's batches."""
    told = forks.python(processes.HELPERS / "workers.py", method)
    assert told.endswith("the same\n")


ENDING = """
import atexit, threading
from resumed import Training

def work():
    training = Training("adam")
    started.wait()
    training.run(60)
    print("learned", flush=True)

started = threading.Barrier(3)
threads = [threading.Thread(target=work) for _ in range(2)]
atexit.register(lambda: (Training("adam").run(), print("learned", flush=True)))
for thread in threads:
    thread.start()
started.wait()
assert all(thread.is_alive() for thread in threads)
"""


@pytest.mark.slow
def test_a_program_that_ends_lets_its_threads_learn_to_the_end():
    assert forks.python("-c", ENDING) == "learned\n" * 3


CLOSED = """
import ctypes, os, sys
import torch
import pyromancy as pyro
from resumed import Training

ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())  # root is as others are
try:
    open("file", "w")
except PermissionError:
    pass
for kind in ("adam", "graph", "accelerated"):
    training = Training(kind)
    training.run(1)
    try:
        torch.save(training.state(), "checkpoint.pt")
    except (OSError, RuntimeError) as error:
        training.run()
        print(*(p.double().sum().item() for p in training.result()))
"""


@pytest.mark.slow
def test_where_nothing_may_be_written_a_training_goes_on(tmp_path):
    """Neither beside the program nor in any cache; a checkpoint is refused, and that is all."""
    expected = []
    for kind in ("adam", "graph", "accelerated"):
        training = resumed.Training(kind)
        training.run()
        expected.append(" ".join(str(p.double().sum().item()) for p in training.result()))
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    names = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "MPLCONFIGDIR")
    program, closed_to = f"import os\nos.chdir({str(closed)!r})\n{CLOSED}", dict.fromkeys(names, str(closed))
    told = forks.python("-c", program, package=False, **closed_to, **processes.AS_HERE)
    assert told.splitlines() == expected
    assert not [*closed.iterdir()]


def test_a_checkpoint_for_which_there_is_no_space_harms_no_training():
    torch.manual_seed(0)
    net, twin = (pyro.networks.mlp([4, 6, 2]) for _ in range(2))
    twin.load_state_dict(net.state_dict())
    x, y = torch.rand(20, 4), torch.rand(20, 2)
    ems = [
        pyro.EM(n.energy, n.e_params(), torch.optim.Adam(n.m_params(), 0.01), start=n.start, steps=3, lr=0.1)
        for n in (net, twin)
    ]
    for _ in range(3):
        for em in ems:
            em.step(x, y)
        with pytest.raises((OSError, RuntimeError)):
            torch.save({"net": net.state_dict(), "em": ems[0].state_dict()}, "/dev/full")
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


WITHOUT_MEMORY = """
import resource
import torch
import pyromancy as pyro

torch.manual_seed(0)
net = pyro.networks.mlp([64, 2000, 2000, 10], activation="tanh")
em = pyro.EM(net.energy, net.e_params(), torch.optim.SGD(net.m_params(), 0.1), start=net.start, steps=5, lr=0.1)
x, y = torch.rand(8, 64), torch.rand(8, 10)
em.step(x, y)
many = torch.rand(4000, 64), torch.rand(4000, 10)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
told = 0
for megabytes in (0, 1, 4, 16, 40, 70):
    before = [p.clone() for p in net.m_params()]
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20), resource.RLIM_INFINITY))
    try:
        em.step(*many)
    except (MemoryError, RuntimeError):
        told += 1
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert all(torch.equal(a, b) for a, b in zip(before, net.m_params())), megabytes
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    em.step(x, y)
    assert all(p.isfinite().all() for p in net.parameters())
assert told > 2, told
print("told")
"""


@pytest.mark.slow
def test_a_batch_for_which_there_is_no_memory_leaves_the_weights():
    assert forks.python("-c", WITHOUT_MEMORY).endswith("told\n")


@pytest.mark.parametrize("whose", ["energy", "start", "step"])
def test_errors_of_the_users_own_code_at_every_call(whose):
    """Whatever call it raises at, weights are as before, and the batch after is as if it had not been."""

    def trained(fails_at):
        torch.manual_seed(0)
        net, calls = pyro.networks.mlp([4, 6, 6, 2]), 0
        m_opt = torch.optim.Adam(net.m_params(), 0.01)
        if whose == "step":  # of an optimizer that is called
            m_opt = torch.optim.NAdam(net.m_params(), 0.01)
        functions = {"energy": net.energy, "start": net.start, "step": m_opt.step}

        def fails(*arguments):
            nonlocal calls
            calls += 1
            if calls == fails_at:
                raise KeyError("of the user's own")
            return original(*arguments)

        original, functions[whose] = functions[whose], fails
        m_opt.step = functions["step"]
        em = pyro.EM(functions["energy"], net.e_params(), m_opt, start=functions["start"], steps=3, lr=0.1)
        raised = 0
        for rows in torch.arange(40).split(8):
            before = [p.clone() for p in net.m_params()]
            try:
                em.step(X[rows], Y[rows])
            except KeyError:
                raised += 1
                assert all(torch.equal(a, b) for a, b in zip(before, net.m_params(), strict=True))
                em.step(X[rows], Y[rows])
        return calls, raised, [p.detach() for p in net.m_params()]

    torch.manual_seed(1)
    X, Y = torch.rand(40, 4), torch.rand(40, 2)
    calls, _, expected = trained(None)
    runs = [trained(number) for number in range(1, calls + 1)]
    # where it raises while it is captured, the batch runs on autograd instead
    assert any(raised for _, raised, _ in runs)
    for _, _, found in runs:
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [None, pyro.methods.Adam(0.1)], ids=["descent", "method"])
@pytest.mark.parametrize("when", ["first run", "later run", "M-step"])
def test_what_an_energy_has_made_goes_with_the_error_that_it_raises(when, method):
    """At once, and not with the next collection: the graph of a batch may be most of the memory that there is."""

    class Made:
        pass

    def made_when_it_raises():
        z, y, conv = torch.nn.Parameter(torch.randn(2, 3, 4, 4)), torch.randn(2, 3, 4, 4), torch.nn.Conv2d(3, 3, 1)
        raises, seen = False, []

        def energy():
            made = Made()
            seen.append(weakref.ref(made))
            result = (y - conv(torch.tanh(z))).square().sum((1, 2, 3))
            if raises:
                raise ZeroDivisionError
            return result

        loop = pyro.InferenceLoop(energy, [z], **({"lr": 0.1} if method is None else {"method": method}))
        if when != "first run":
            loop.run(1)
        raises, seen = True, []
        with pytest.raises(ZeroDivisionError):
            loop.backward([*conv.parameters()]) if when == "M-step" else loop.run(1)
        return seen

    made_when_it_raises()  # the first error of a process imports things
    gc.collect()
    gc.disable()
    try:
        seen = made_when_it_raises()
        assert seen
        assert all(made() is None for made in seen)
    finally:
        gc.enable()
