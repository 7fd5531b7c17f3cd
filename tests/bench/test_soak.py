"""The soak: a short one has nothing that grows, and what grows shows."""

import gc
import importlib
import mmap
from dataclasses import replace
from pathlib import Path

import pytest


@pytest.fixture
def soak(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    return importlib.import_module("bench.soak")


@pytest.mark.slow
def test_every_network_trains_and_nothing_is_left_open(soak):
    kinds = [*soak.METHODS, *soak.OTHERS]
    first, second = soak.soak(2 * len(kinds), 2)
    assert (first.batches, second.batches) == (len(kinds), 2 * len(kinds))
    assert (second.descriptors, second.threads) == (first.descriptors, first.threads)
    assert second.objects <= first.objects + soak.MOST_MORE["objects"]


@pytest.mark.parametrize(
    ("name", "more"), [("memory", 3.0), ("descriptors", 1), ("threads", 1), ("objects", 300), ("milliseconds", 0.3)]
)
def test_what_grows_is_told(soak, name, more):
    flat = [soak.Window(batches, 400.0, 9, 2, 300_000, 1.0) for batches in range(8)]
    assert soak.grown(flat) == []
    warm = [replace(flat[0], **{name: 2 * getattr(flat[0], name)}), *flat[1:]]
    assert soak.grown(warm) == []
    risen = [replace(w, **{name: getattr(w, name) + more * (i >= 6)}) for i, w in enumerate(flat)]
    assert len(soak.grown(risen)) == 1
    assert soak.grown(risen)[0].startswith(f"{name} went from ")


def test_what_is_held_is_seen(soak, tmp_path):
    gc.collect()
    before = soak.held()
    kept = [[] for _ in range(5000)]
    memory = mmap.mmap(-1, 16 << 20)  # not of what the process has at hand
    for page in range(0, len(memory), mmap.PAGESIZE):
        memory[page] = 1
    with open(tmp_path / "open", "w"):
        after = soak.held()
    assert after[0] > before[0] + 12
    assert after[1] == before[1] + 1
    assert after[3] >= before[3] + 4000  # some of others have gone
    del kept, memory


def test_fewer_than_four_windows_are_refused(soak):
    with pytest.raises(ValueError, match="windows must be at least 4, got 3"):
        soak.grown([soak.Window(0, 0.0, 0, 0, 0, 0.0)] * 3)
