"""Chains on a GPU: every way that Triton takes their steps against autograd in float64, and what only a GPU shows."""

import pytest
import torch

import chains
from numerics import FLOATS, assert_near, name, same_bits
from pyromancy import backends

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

persistent = pytest.importorskip("pyromancy.ops.triton.persistent")
WIDTHS = (70, 129, 33, 10)


@pytest.fixture(autouse=True, scope="module")
def on_triton():
    with backends.use("triton"):
        yield


@pytest.fixture(params=[0, *persistent._TILES], ids=lambda tall: f"tiles-of-{tall}" if tall else "one-by-one")
def way(request, monkeypatch):
    """The way that every chain takes which can."""
    monkeypatch.setattr(persistent, "height", lambda *_: request.param)


def on(device, x):
    """Arguments on a device, sharing nothing with the originals."""
    if isinstance(x, dict):
        return {k: on(device, y) for k, y in x.items()}
    if isinstance(x, list):
        return [on(device, y) for y in x]
    return x.to(device, copy=True) if isinstance(x, torch.Tensor) else x


def check(arguments):
    length = chains.STEPS * max(z.shape[1] for z in arguments["states"])
    expected, energies, velocities = chains.descend(arguments)
    there = on("cuda", arguments)
    assert list(chains.operator(**there)) == []
    for z, e in zip(there["states"], expected, strict=True):
        assert_near(z.cpu(), e, length)
    if there["energies"] is not None:
        assert_near(there["energies"].cpu(), energies, length**2)
    for v, e in zip(there["velocities"], velocities, strict=False):
        if e is not None:
            assert_near(v.cpu(), e, length)


@pytest.mark.usefixtures("way")
class TestSteps:
    @pytest.mark.parametrize("dtype", FLOATS, ids=name)
    @pytest.mark.parametrize("option", chains.OPTIONS)
    def test_options(self, option, dtype):
        check(chains.problem(WIDTHS, 100, record=True, dtype=dtype, **chains.OPTIONS[option]))

    @pytest.mark.parametrize("dtype", FLOATS, ids=name)
    @pytest.mark.parametrize("side", ["before", "after"])
    @pytest.mark.parametrize("activation", chains.FUNCTIONS)
    def test_activations(self, activation, side, dtype):
        check(chains.problem(WIDTHS, 17, **{side: activation}, dtype=dtype))

    @pytest.mark.parametrize("batch", [0, 1, 5000])
    def test_batches(self, batch):
        check(chains.problem((64, 256, 256, 16), batch, "tanh", record=True, dtype=torch.float32))

    def test_grams(self):
        arguments = chains.problem((5, 129, 33, 300), 100, "tanh", dtype=torch.float32)
        w = arguments["weights"][-1]
        arguments["grams"][-1] = w.T @ w
        check(arguments)

    def test_one_graph_holds_all_steps(self):
        arguments = on("cuda", chains.problem(WIDTHS, 100, "tanh", momentum={"momentum": 0.8}, dtype=torch.float32))
        wanted = chains.everything_wanted(arguments)
        states = [z.clone() for z in arguments["states"]]

        def both():
            for z, start in zip(arguments["states"], states, strict=True):
                z.copy_(start)
            chains.operator(**arguments)
            return [*arguments["states"], *chains.mstep(**wanted)]

        expected = [t.clone() for t in both()]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            both()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = both()
        for _ in range(2):
            graph.replay()
            assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))

    def test_does_not_wait_for_the_device(self):
        options = chains.OPTIONS["everything"] | {"record": True}
        arguments = on("cuda", chains.problem(WIDTHS, 100, dtype=torch.float32, **options))
        chains.operator(**arguments)
        chains.mstep(**chains.everything_wanted(arguments))
        torch.cuda.set_sync_debug_mode("error")
        try:
            chains.operator(**arguments)
            chains.mstep(**chains.everything_wanted(arguments))
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("option", [o for o in chains.OPTIONS if "momentum" not in chains.OPTIONS[o]])
def test_mstep(option, dtype):
    arguments = chains.problem(WIDTHS, 300, dtype=dtype, **chains.OPTIONS[option])
    found = chains.mstep(**on("cuda", chains.everything_wanted(arguments)))
    for f, e in zip(found, chains.mstep_by_autograd(arguments), strict=True):
        assert_near(f.cpu(), e, 300 * max(WIDTHS))
