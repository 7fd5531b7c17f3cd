"""Runs that are captured and replayed, with a stand-in for the CUDA graph that runs its function again."""

import copy
import gc
import pickle
import weakref
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn

import pyromancy as pyro
from networks import KINDS, Chain, Images, data_for, loop_for
from numerics import same_bits
from pyromancy import backends
from pyromancy.laws import full_gaussian
from pyromancy.run import loop, replay
from pyromancy.run.choice import READY
from pyromancy.run.replay import Replay

MOMENTUM = {"momentum": 0.6, "dampening": 0.25}
NESTEROV = {"momentum": 0.6, "nesterov": True}


class Tape:
    """Like a CUDA graph, it gives its results in the same memory every time."""

    def __init__(self, function, results):
        self.function, self.results, self.replays = function, results, 0

    def replay(self):
        self.replays += 1
        for mine, new in zip(self.results, self.function(), strict=True):
            mine.copy_(new)


@pytest.fixture
def device(monkeypatch):
    """A CPU that takes itself for a GPU while `on` is set, and fails to capture with `error`."""
    state = SimpleNamespace(on=True, error=None, tapes=[])

    class Recorder:
        def __init__(self, device):
            assert device.type == "cpu"

        def capture(self, function):
            if state.error is not None:
                raise state.error
            results = function()
            for t in results:
                t.fill_(float("nan"))  # a capture computes nothing
            state.tapes.append(Tape(function, results))
            return state.tapes[-1], results

    monkeypatch.setattr(loop, "settles", lambda device: False)
    monkeypatch.setattr(pyro.run.executor, "replayed", lambda device: state.on)
    monkeypatch.setattr(replay, "recorder", Recorder)
    return state


def chain():
    return Chain(KINDS, (6, 9, 8, 5))


def train(network, loop, batches, record, runs=2):
    """Every batch with M-steps between its runs; gives all that is computed, and keeps it where it was."""
    learned = list(pyro.get_mstep_params(network))
    found = []
    for x, y in batches:
        network.init(x, y)
        for _ in range(runs):
            found.append(loop.run(5, record=record).energies)
            found.extend(n.value.data for n in network.nodes)
            network.zero_grad()
            loop.backward(learned)
            found.extend(p.grad for p in learned)
        with torch.no_grad():
            for p in learned:
                p.sub_(0.1 * p.grad)
        found.extend(p.detach().clone() for p in learned)
    return found


CASES = {
    "chain": (chain, None),
    "chain-on-graph": (chain, "graph"),
    "convolutions": (Images, None),
}


@pytest.mark.parametrize("record", [False, True], ids=["plain", "record"])
@pytest.mark.parametrize("options", [{}, MOMENTUM, NESTEROV], ids=["sgd", "momentum", "nesterov"])
@pytest.mark.parametrize("case", CASES)
def test_every_batch_as_without(case, options, record, device):
    make, executor = CASES[case]
    mine = make()
    twin = copy.deepcopy(mine)
    batches = [data_for(mine, 7) for _ in range(5)]
    loop = loop_for(mine, executor, **options)
    replayed = train(mine, loop, batches, record)
    kinds = 2 if options else 1  # with momentum the second run of a batch goes on where the first ended
    assert len(device.tapes) == kinds
    assert sum(t.replays for t in device.tapes) == 10 - 2 * kinds
    assert "all steps in one CUDA graph" in loop.explain()
    device.on = False
    plain = train(twin, loop_for(twin, executor, **options), batches, record)
    assert len(plain) == len(replayed)
    for a, b in zip(replayed, plain, strict=True):
        assert (a is None and b is None) or same_bits(a, b)


def prepared(device, **options):
    """A loop whose next run replays, and its network."""
    network = chain()
    loop = loop_for(network, **options)
    for _ in range(3):
        network.init(*data_for(network, 7))
        loop.run(5)
    assert [t.replays for t in device.tapes] == [1]
    return network, loop


def new_rate(network, loop):
    loop.lr = 0.01


def new_momentum(network, loop):
    loop.momentum = 0.5


def new_dtype(network, loop):
    network.float()


def new_weight(network, loop):
    network.edges[1].weight.data = torch.randn_like(network.edges[1].weight)


def new_layout(network, loop):
    weight = network.edges[1].weight
    weight.data = weight.data.mT.contiguous().mT


def new_parameter(network, loop):
    network.edges[1].weight = nn.Parameter(torch.randn_like(network.edges[1].weight))


def new_precision(network, loop):
    torch.set_float32_matmul_precision("medium")


def new_determinism(network, loop):
    torch.use_deterministic_algorithms(not torch.are_deterministic_algorithms_enabled())


@pytest.fixture
def switches():
    """Back to where they were."""
    precision, deterministic = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(deterministic)


CHANGES = [
    new_rate, new_momentum, new_dtype, new_weight, new_layout, new_parameter, new_precision, new_determinism
]  # fmt: skip


@pytest.mark.usefixtures("switches")
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_another_kind_of_run_is_another_graph(change, device):
    network, loop = prepared(device)
    change(network, loop)
    kept = []
    for _ in range(3):
        x, y = data_for(network, 7)
        network.init(x, y)
        twin = copy.deepcopy(network)
        loop.run(5)
        kept.append(network.nodes[1].value.data)
        device.on = False
        loop_for(twin, lr=loop.lr, momentum=loop.momentum).run(5)
        device.on = True
        assert same_bits(kept[-1], twin.nodes[1].value.data)
    assert [t.replays for t in device.tapes] == [1, 1]


def test_another_backend_is_another_graph(device):
    _, loop = prepared(device)
    with backends.use("reference"):
        loop.run(5)
    assert [t.replays for t in device.tapes] == [1]
    loop.run(5)
    assert [t.replays for t in device.tapes] == [2]


@pytest.mark.usefixtures("switches")
def test_high_and_medium_precision_are_kinds(device):
    torch.set_float32_matmul_precision("high")
    _, loop = prepared(device)
    torch.set_float32_matmul_precision("medium")
    loop.run(5)
    assert [t.replays for t in device.tapes] == [1]
    torch.set_float32_matmul_precision("high")
    loop.run(5)
    assert [t.replays for t in device.tapes] == [2]


def test_steps_and_recording_are_kinds(device):
    _, loop = prepared(device)
    for _ in range(3):
        loop.run(6)
        loop.run(5, record=True)
    assert [t.replays for t in device.tapes] == [1, 1, 1]


def test_batch_sizes_by_turns_are_captured_once_each(device):
    network = chain()
    loop = loop_for(network)
    for batch in (7, 4) * 5:
        network.init(*data_for(network, batch))
        loop.run(5)
    assert [t.replays for t in device.tapes] == [3, 3]


def test_graphs_of_the_same_forms_share_memory(device):
    network, loop = prepared(device)
    found = []
    for steps in (3, 3, 3, 5, 3, 5):
        network.init(*data_for(network, 7))
        twin = copy.deepcopy(network)
        loop.run(steps)
        device.on = False
        loop_for(twin).run(steps)
        device.on = True
        found.append(same_bits(network.nodes[1].value.data, twin.nodes[1].value.data))
    assert all(found)
    assert [t.replays for t in device.tapes] == [3, 2]
    first, second = loop._choice.replay._graphs.values()
    assert first.moving is second.moving


def test_inference_mode_needs_no_graph_of_its_own(device):
    _, loop = prepared(device)
    for _ in range(3):
        with torch.inference_mode():
            loop.run(5)
        loop.run(5)
    assert len(device.tapes) == 1


@pytest.mark.slow
def test_many_kinds_take_bounded_memory(device):
    network, loop = prepared(device)
    for steps in range(1, 21):
        loop.run(steps)
        loop.run(steps)
        given_up = f"{steps - replay.GRAPHS} CUDA graphs given up, as a loop keeps {replay.GRAPHS}"
        assert (given_up in loop.explain()) == (steps > replay.GRAPHS)
    assert len(device.tapes) == 20  # one of them was there before
    tapes = [weakref.ref(t) for t in device.tapes]
    device.tapes.clear()
    assert sum(t() is not None for t in tapes) == replay.GRAPHS
    for batch in range(1, 80):
        network.init(*data_for(network, batch))
        loop.run(5)
        loop.run(5)
    owners = [weakref.ref(ready.executor) for ready in loop._choice.ready]
    device.tapes.clear()
    assert len(owners) == READY
    assert len(loop._choice.replay._graphs) == replay.GRAPHS
    assert all(k[0] in [e() for e in owners] for k in (*loop._choice.replay._graphs, *loop._choice.replay._met))
    del loop
    gc.collect()
    assert all(e() is None for e in owners)


@pytest.mark.parametrize("case", CASES)
def test_a_failed_capture_changes_nothing(case, device):
    make, executor = CASES[case]
    mine = make()
    twin = copy.deepcopy(mine)
    batches = [data_for(mine, 7) for _ in range(4)]
    device.error = RuntimeError("operation not permitted when stream is capturing\nand more")
    loop = loop_for(mine, executor)
    tried = train(mine, loop, batches, record=True)
    device.error = None
    assert "no CUDA graph: operation not permitted when stream is capturing\n" in loop.explain() + "\n"
    device.on = False
    plain = train(twin, loop_for(twin, executor), batches, record=True)
    assert all(same_bits(a, b) for a, b in zip(tried, plain, strict=True))
    device.on = True
    loop.run(5, record=True)
    assert not device.tapes  # what failed once is not tried again


def test_captures_that_keep_failing_are_given_up(device):
    _, loop = prepared(device)
    device.error = RuntimeError("no")
    for steps in range(10, 30):
        loop.run(steps)
        loop.run(steps)
    device.error = None
    loop.run(100)
    loop.run(100)
    assert len(device.tapes) == 1
    assert "no CUDA graph: 8 captures have failed" in loop.explain()
    loop.run(5)
    assert device.tapes[0].replays == 2  # what was captured before still serves


def test_the_first_error_is_the_reason(device):
    network, loop = chain(), None
    first = RuntimeError("the reason")
    device.error = RuntimeError("capture was invalidated")
    device.error.__context__ = first
    network.init(*data_for(network, 7))
    loop = loop_for(network)
    loop.run(5)
    loop.run(5)
    assert "no CUDA graph: the reason" in loop.explain()


def test_recorded_energies_are_the_callers(device):
    network = chain()
    loop = loop_for(network)
    network.init(*data_for(network, 7))
    traces = [loop.run(1, record=True).energies for _ in range(4)]
    assert len({t.data_ptr() for t in traces}) == 4
    before = [t.clone() for t in traces]
    loop.run(1, record=True)
    assert all(same_bits(a, b) for a, b in zip(traces, before, strict=True))
    assert (traces[0].sum(1) > traces[3].sum(1)).all()


def test_states_in_odd_memory(device):
    """States that are not contiguous or start within their memory, and clamped ones that are expanded."""
    for executor in ("chain", "graph"):
        results = []
        for device.on in (True, False):
            torch.manual_seed(3)
            network = chain()
            network.init(*data_for(network, 7))
            loop = loop_for(network, executor)
            kept = []
            for _ in range(4):
                whole = torch.randn(9, 15, dtype=torch.float64)
                network.nodes[1].value.data = whole.mT[1:8]
                network.nodes[0].value.data = torch.randn(1, 6, dtype=torch.float64).expand(7, 6)
                network.nodes[2].value.data = torch.randn(8, 8, dtype=torch.float64)[1:]
                loop.run(5)
                kept += [whole, network.nodes[2].value.data]
            results.append(kept)
        assert all(same_bits(a, b) for a, b in zip(*results, strict=True))
    assert [t.replays for t in device.tapes] == [2, 2]


def test_states_that_share_memory_are_not_moved_apart(device):
    network, loop = prepared(device)
    both = torch.randn(7, 17, dtype=torch.float64)
    network.nodes[1].value.data, network.nodes[2].value.data = both[:, :9].contiguous(), both[:, 9:].contiguous()
    loop.run(5)
    memory = torch.randn(7 * 17, dtype=torch.float64)
    network.nodes[1].value.data, network.nodes[2].value.data = memory[:63].view(7, 9), memory[63:].view(7, 8)
    loop.run(5)
    assert "not chain or graph: a state shares its memory with another tensor" in loop.explain()


def test_versions_count(device):
    network, loop = prepared(device)
    before = network.nodes[1].value._version
    loop.run(5)
    assert network.nodes[1].value._version > before
    assert device.tapes[0].replays == 2


def test_copies_and_pickles_have_no_graphs(device):
    _, loop = prepared(device)
    again = pickle.loads(pickle.dumps(loop))
    again.run(5)
    assert [t.replays for t in device.tapes] == [1]
    assert "one CUDA graph from the third run of a kind on" in again.explain()


def test_elsewhere_nothing_is_replayed():
    network = chain()
    network.init(*data_for(network, 7))
    loop = loop_for(network)
    for _ in range(3):
        loop.run(2)
    assert "CUDA" not in loop.explain()


class TestAlone:
    """`Replay` without a loop: y <- y + x, and gives 2 y."""

    @staticmethod
    def body(tensors):
        y, x, w = tensors
        y.add_(x * w)
        return [2 * y]

    def run(self, over, y, x, w, owner="me"):
        return over.run(owner, (), self.body, [y, x, w], [0], [1])

    def test_nothing_is_moved_that_stays(self, device):
        over, w = Replay(), torch.tensor(3.0)
        for i in range(5):
            y, x = torch.full((4,), float(i)), torch.ones(4)
            (result,) = self.run(over, y, x, w)
            assert y.tolist() == [i + w.item()] * 4
            assert result.tolist() == [2 * (i + w.item())] * 4
            w.add_(1)  # in place, as optimizers do
        assert [t.replays for t in device.tapes] == [3]
        self.run(over, torch.ones(4), torch.ones(4), torch.tensor(3.0))
        assert [t.replays for t in device.tapes] == [3]

    def test_no_batch(self, device):
        over = Replay()
        for _ in range(3):
            self.run(over, torch.ones(0), torch.ones(0), torch.tensor(3.0))
        assert not device.tapes
        assert over.notes("me") == ["no CUDA graph: a state is empty"]

    def test_another_device(self, device):
        over = Replay()
        w = torch.ones(4, device="meta")
        over.run("me", (), lambda tensors: [], [torch.ones(4), torch.ones(4), w], [0], [1])
        assert over.notes("me") == [
            "no CUDA graph: a tensor of shape (4,) is on meta, and a graph would keep its value"
        ]

    def test_forgets_one_owner(self, device):
        over, w = Replay(), torch.tensor(3.0)
        owners = object(), object()
        for owner in owners:
            for _ in range(2):
                self.run(over, torch.ones(4), torch.ones(4), w, owner)
        over.forget(owners[0])
        for owner in owners:
            self.run(over, torch.ones(4), torch.ones(4), w, owner)
        assert [t.replays for t in device.tapes] == [0, 1]


def test_inverse_of_a_covariance_without_waiting():
    factor = torch.randn(9, 9, dtype=torch.float64).tril(-1) + torch.diag(torch.rand(9, dtype=torch.float64) + 0.5)
    torch.testing.assert_close(full_gaussian._inverse(factor), torch.cholesky_inverse(factor), rtol=1e-10, atol=1e-10)


class Cuda:
    """What `Recorder` uses of `torch.cuda`; a capture whose function raises cannot be ended either."""

    def __init__(self):
        self.stream, self.log = "user's", []

    def graph(self, graph, pool, stream, mode):
        assert (pool, stream, mode) == ("pool", "side", "thread_local")
        return self._capture()

    @contextmanager
    def _capture(self):
        before, self.stream = self.stream, "side"
        self.log.append("begin")
        try:
            yield
        except BaseException as first:
            raise RuntimeError("the capture was invalidated") from first
        self.stream = before

    def set_stream(self, stream):
        self.stream = stream


@pytest.fixture
def cuda(monkeypatch):
    fake = Cuda()
    for name, value in {
        "Stream": lambda device: "side",
        "graph_pool_handle": lambda: "pool",
        "CUDAGraph": object,
        "device": lambda device: nullcontext(),
        "current_device": lambda: 0,
        "current_stream": lambda: fake.stream,
        "set_stream": fake.set_stream,
        "graph": fake.graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("_cuda_clearCublasWorkspaces", "_cuda_endAllocateToPool"):
        short = name.removeprefix("_cuda_")
        monkeypatch.setattr(torch._C, name, lambda *_, short=short: fake.log.append(short), raising=False)
    return fake


def test_a_recorder_recovers_from_a_failed_capture(cuda):
    recorder = replay.Recorder(torch.device("cpu"))
    clear, end = "clearCublasWorkspaces", "endAllocateToPool"
    assert cuda.log == [clear, "begin", clear]  # the graph that holds on to the pool
    cuda.log.clear()

    def fails():
        assert cuda.stream == "side"
        raise ValueError("no")

    with pytest.raises(RuntimeError, match="the capture was invalidated"):
        recorder.capture(fails)
    assert cuda.log == [clear, "begin", end, "begin", clear]
    assert cuda.stream == "user's"
    assert not replay._capturing.locked()
    _, results = recorder.capture(lambda: [torch.ones(2)])
    assert results[0].tolist() == [1, 1]
    assert cuda.stream == "user's"


def test_an_energy_that_counts_from_where_memory_begins_is_not_moved(device):
    memory = torch.randn(3, 4, dtype=torch.float64)
    z = nn.Parameter(torch.empty(0, dtype=torch.float64))
    z.data = memory[1:]
    loop = pyro.InferenceLoop(lambda: torch.cosh(z.as_strided((2, 4), (4, 1), 4)).sum(1), [z], lr=0.1)
    for _ in range(4):
        expected = z.detach() - 0.1 * torch.sinh(z.detach())
        loop.run(1)
        torch.testing.assert_close(z.detach(), expected)
    assert loop.explain().startswith("executor: graph")
    assert device.tapes == []
