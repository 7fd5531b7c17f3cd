"""Networks that learn at the same time, each in a thread of its own."""

import threading
import time

import pytest
import torch

import pyromancy as pyro
import resumed
from pyromancy import native


def test_networks_in_threads_come_to_the_bits_that_they_come_to_by_themselves():
    """Of several kinds, whose captures and dry runs get in each other's way if anything of them is shared."""
    kinds = [kind for kind in resumed.KINDS if kind not in ("called", "dropout", "langevin")]  # one generator for all
    trainings, alone = ([resumed.Training(kind) for kind in kinds] for _ in range(2))
    started, failures = threading.Barrier(len(kinds)), []

    def work(training):
        try:
            started.wait()
            training.run()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(training,)) for training in trainings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for training, other in zip(trainings, alone, strict=True):
        other.run()
        torch.manual_seed(0)
        result = training.result()
        torch.manual_seed(0)
        assert all(map(torch.equal, result, other.result()))


@pytest.mark.skipif(native.MODULE is None, reason="the reference is Python, and takes turns")
def test_others_run_while_an_operator_does():
    net = pyro.networks.mlp([64, 128, 128, 10])
    x, y = torch.rand(64, 64), torch.rand(64, 10)
    optimizer = torch.optim.SGD(net.m_params(), 0.0)
    em = pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=100, lr=0.1)
    em.step(x, y)
    assert "one call" in em.explain()
    began = time.perf_counter()
    em.step(x, y)
    em.steps = int(100 * 0.3 / (time.perf_counter() - began))  # a call of about 0.3 s
    thread = threading.Thread(target=em.step, args=(x, y))
    thread.start()
    turns = 0
    while thread.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 20
