"""Inference loops on a GPU, whose runs are replayed CUDA graphs."""

import copy
import threading

import pytest
import torch

import pyromancy as pyro
from networks import KINDS, Chain, Images, data_for, loop_for
from pyromancy.run import replay
from waiting import no_waiting

pytestmark = pytest.mark.gpu

REPLAYED = "all steps in one CUDA graph"
MOMENTUM = {"momentum": 0.6, "dampening": 0.25}


class Synchronising(Chain):
    """Its energy reads a number back at every step, as `torch.linalg.inv` does to look for errors."""

    def predict(self, state, edge):
        matrix = torch.linalg.inv(2 * torch.eye(state.shape[1], dtype=state.dtype, device=state.device))
        return edge(torch.tanh(state @ matrix))


def chain(kinds=KINDS, widths=(6, 9, 8, 5), make=Chain):
    return make(kinds, widths).cuda()


def train(network, loop, batches, record=False):
    learned = list(pyro.get_mstep_params(network))
    found = []
    for x, y in batches:
        network.init(x, y)
        for _ in range(2):
            trace = loop.run(5, record=record)
            if record:
                found.append(trace.energies.sum(1))
            found.extend(n.value.data for n in network.nodes)
        network.zero_grad()
        loop.backward(learned)
        found.extend(p.grad for p in learned)
        with torch.no_grad():
            for p in learned:
                p.sub_(0.1 * p.grad)
    return found


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.usefixtures("gpu_backend")
@pytest.mark.parametrize("record", [False, True], ids=["plain", "record"])
@pytest.mark.parametrize("options", [{}, MOMENTUM], ids=["sgd", "momentum"])
@pytest.mark.parametrize("case", ["chain", "chain-on-graph", "convolutions"])
def test_training_as_with_autograd(case, options, record):
    results = []
    for executor in ("graph" if case == "chain-on-graph" else None, "autograd"):
        torch.manual_seed(7)
        network = Images().double().cuda() if case == "convolutions" else chain()
        loop = loop_for(network, executor, **options)
        results.append(train(network, loop, [data_for(network, 7) for _ in range(5)], record))
        assert (REPLAYED in loop.explain()) == (executor != "autograd")
    assert_same(*results)


def test_memory_does_not_grow():
    network = chain(["StandardGaussianNode"] * 4, (60, 90, 80, 50))
    loop = loop_for(network)
    learned = list(pyro.get_mstep_params(network))
    used = []
    for i in range(200):
        network.init(*data_for(network, (64, 48, 64, 33)[i % 4]))
        loop.run(8)
        network.zero_grad()
        loop.backward(learned)
        torch.cuda.synchronize()
        used.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert REPLAYED in loop.explain()
    assert max(used[40:]) <= max(used[:40])


def test_many_kinds_do_not_pile_up():
    network = chain(["StandardGaussianNode"] * 4, (60, 90, 80, 50))
    loop = loop_for(network)
    network.init(*data_for(network, 64))
    used = []
    for steps in range(1, 41):
        for _ in range(3):
            loop.run(steps % 20 + 1)
        torch.cuda.synchronize()
        used.append(torch.cuda.memory_allocated())
    assert max(used[20:]) <= max(used[:20])


def test_streams():
    """Runs on one stream and another, neither of which waits for the other, follow each other all the same."""
    results = []
    for streams in ([torch.cuda.Stream(), torch.cuda.Stream(), torch.cuda.current_stream()], [None]):
        torch.manual_seed(7)
        network = chain(["StandardGaussianNode"] * 4, (300, 500, 400, 100))
        loop = loop_for(network)
        found = []
        torch.cuda.synchronize()
        for i in range(12):
            with torch.cuda.stream(streams[i % len(streams)]):
                network.init(*data_for(network, 256))
                loop.run(20)
                found.append(network.nodes[1].value.data.clone())
        torch.cuda.synchronize()
        assert REPLAYED in loop.explain()
        results.append(found)
    assert_same(*results)


def test_threads_that_pin_memory():
    stop, pinned = threading.Event(), []

    def load():
        while not stop.is_set():
            pinned[:] = [torch.randn(1000, 100).pin_memory().to("cuda", non_blocking=True)]

    thread = threading.Thread(target=load)
    thread.start()
    try:
        network = chain()
        loop = loop_for(network)
        network.init(*data_for(network, 7))
        for steps in range(1, 30):
            for _ in range(3):
                loop.run(steps)
            assert REPLAYED in loop.explain()
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("executor", ["chain", "graph"])
def test_inside_a_capture_of_the_users(executor):
    network = chain(["StandardGaussianNode"] * 4)
    loop = loop_for(network, executor)
    network.init(*data_for(network, 7))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            loop.run(5)
    torch.cuda.current_stream().wait_stream(side)
    assert REPLAYED in loop.explain()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loop.run(5)
    assert "no CUDA graph: another is being captured" in loop.explain()
    twin = copy.deepcopy(network)
    loop_for(twin, "autograd").run(5)
    graph.replay()
    torch.testing.assert_close(network.nodes[1].value, twin.nodes[1].value, rtol=1e-9, atol=1e-10)


def test_what_cannot_be_captured_runs_as_it_is():
    results = []
    for executor in ("graph", "autograd"):
        torch.manual_seed(7)
        network = chain(["StandardGaussianNode"] * 4, make=Synchronising)
        loop = loop_for(network, executor)
        results.append(train(network, loop, [data_for(network, 7) for _ in range(4)], record=True))
        if executor == "graph":
            assert "no CUDA graph: " in loop.explain()
            assert loop._choice.replay._failures == 1
    assert_same(*results)
    stream = torch.cuda.current_stream()
    assert stream == torch.cuda.default_stream()
    torch.randn(3, device="cuda")  # the generator is not in a capture that never ended
    network = chain()
    loop = loop_for(network)
    for _ in range(3):
        network.init(*data_for(network, 7))
        loop.run(5)
    assert REPLAYED in loop.explain()


def test_another_capture_after_a_failed_one():
    device = torch.device("cuda", torch.cuda.current_device())
    recorder = replay.recorder(device)
    x = torch.ones(1000, device=device)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            recorder.capture(lambda: [x * x.sum().item()])
        graph, (y,) = recorder.capture(lambda: [x + 1])
        graph.replay()
        assert y.sum().item() == 2000
        assert torch.rand(5, device=device).sum().item() > 0


@pytest.mark.parametrize("shape", [(7, 64), (65, 300)], ids=str)
def test_no_run_waits_for_the_device(shape):
    batch, width = shape
    network = chain(widths=(6, width, 8, 5))
    loop = loop_for(network)
    learned = list(pyro.get_mstep_params(network))
    network.init(*data_for(network, batch))
    loop.run(5)  # compiles and loads
    loop.backward(learned)
    loop.run(5)
    with no_waiting():
        loop.run(5)
        loop.run(5, record=True)
        loop.backward(learned)
    assert "executor: chain" in loop.explain()
