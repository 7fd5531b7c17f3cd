"""What a training must survive: being killed, no memory, no space, errors of the user's own code."""

import os
import random
import signal
import time

import pytest
import torch

import processes
import pyromancy as pyro

KILLED = processes.HELPERS / "killed.py"
KILLS = int(os.environ.get("PYROMANCY_KILLS", "3"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adam", "langevin"])
def test_who_is_killed_goes_on_to_the_same_bits(kind, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    processes.python(KILLED, whole, kind)
    moments, kills = random.Random(4), 0
    while not (broken / "result.pt").exists():
        process = processes.start(KILLED, broken, kind)
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
    assert processes.python("-c", WITHOUT_MEMORY).endswith("told\n")


def test_errors_of_the_energys_own_code_at_every_call():
    """Whatever call it raises at, weights and states are as before, and the batch after is as if it had not been."""

    def trained(fails_at):
        torch.manual_seed(0)
        net, calls = pyro.networks.mlp([4, 6, 6, 2]), 0

        def energy():
            nonlocal calls
            calls += 1
            if calls == fails_at:
                raise KeyError("of the user's own")
            return net.energy()

        m_opt = torch.optim.Adam(net.m_params(), 0.01)
        em = pyro.EM(energy, net.e_params(), m_opt, start=net.start, steps=3, lr=0.1)
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
