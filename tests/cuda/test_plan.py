"""How chains are laid out for the kernel that runs all E-steps: who owns what, what fits, and what is chosen."""

import ast
import ctypes
import itertools
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulation_flags import CXX, FLAGS, FOLDER, ROOT, obstacle

if reason := obstacle():
    pytest.skip(reason, allow_module_level=True)

# multiprocessors, bytes of shared memory of a block, clusters of 1, 2, 4 and 8 blocks that run at the same time
H200 = (132, 232_448, (132, 66, 31, 15))
EVEN = (132, 232_448, (132, 66, 33, 16))  # that leaves no multiprocessor over
A100 = (108, 166_912, (108, 0, 0, 0))
CLUSTERS, HEIGHTS = (1, 2, 4, 8), (1, 2, 4)
NEURONS, SAMPLES, DEPTH, BLOCK, GROUP = 8, 16, 16, 128, 2


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    library = tmp_path_factory.mktemp("plan") / "plan.so"
    sources = [FOLDER / "plan.cpp", ROOT / "csrc/cuda/chain_plan.cpp"]
    subprocess.run([CXX, *FLAGS, "-shared", *sources, "-o", library], check=True)
    call = ctypes.CDLL(library).plan
    call.restype = ctypes.c_char_p

    def plan(widths, batch, steps, device=H200, precision=0, options=0, asked=(0, 0, 0)):
        multiprocessors, shared_bytes, at_once = device
        text = call(
            len(widths), ints(widths), ctypes.c_int64(batch), ctypes.c_int64(steps), precision, options,
            multiprocessors, shared_bytes, ints(at_once), ints(asked),
        )  # fmt: skip
        return ast.literal_eval(text.decode())

    return plan


def ints(numbers):
    return (ctypes.c_int * len(numbers))(*numbers)


def ceil_div(a, b):
    return -(-a // b)


def regions(p):
    """Begin and end of everything in shared memory, by name, with the rounds and phases in which it is needed."""
    slice_ = SAMPLES * p["sample_tiles"] * NEURONS
    always = {(r, phase) for r in range(len(p["phases"])) for phase in range(3)}
    found = {}
    for i, n in enumerate(p["nodes"]):
        panel = ceil_div(n["tiles"] * p["cluster"] * NEURONS, DEPTH) * p["sample_tiles"] * SAMPLES * DEPTH
        sizes = dict.fromkeys(("z", "e", "deviation", "mu", "v", "constant_feedback_at"), n["tiles"] * slice_)
        sizes |= dict.fromkeys(("bias_at", "rate_at"), n["tiles"] * NEURONS)
        sizes["samples_at"] = SAMPLES * p["sample_tiles"]
        found |= {f"{k} {i}": (n[k], n[k] + size, always) for k, size in sizes.items() if n[k] >= 0}
        for k, r in (("h", "move_round"), ("d", "error_round"), ("residual", "error_round")):
            if n[k] >= 0:
                found[f"{k} {i}"] = n[k], n[k] + panel, {(n[r], phase) for phase in range(3)}
    grams = {n["back"] for n in p["nodes"]}
    for r, phases in enumerate(p["phases"]):
        one, two, three, four = phases["begin"]
        for i, x in enumerate(p["products"][one:four], one):
            if x["resident"] >= 0:
                found[f"matrix {i}"] = x["resident"], x["resident"] + x["tiles"] * x["blocks"] * BLOCK, always
            needed = {0, 1} if i < three else {2}
            if i < two and i in grams:
                needed = {0, 1, 2}
            found[f"out {i}"] = x["out"], x["out"] + x["parts"] * x["tiles"] * slice_, {(r, k) for k in needed}
    return found


def check(p, device):
    assert device[2][CLUSTERS.index(p["cluster"])] > 0
    assert p["shared"] * 4 <= device[1]
    found = regions(p)
    for (a, (begin, end, when)), (b, (other, stop, then)) in itertools.combinations(found.items(), 2):
        assert end <= other or stop <= begin or not when & then, f"{a} and {b} overlap"
    for name, (begin, end, _) in found.items():
        assert 0 <= begin <= end <= p["shared"], name
        assert begin % 4 == 0, name
    for n, following in itertools.pairwise([*p["nodes"], None]):
        assert n["tiles"] * p["cluster"] * NEURONS >= n["n"]  # every neuron has an owner
        assert (n["tiles"] - 1) * p["cluster"] * NEURONS < n["n"]  # and no block is idle without need
        assert n["error_round"] <= n["move_round"]
        if following and following["into"] >= 0:
            assert following["error_round"] == n["move_round"]
    for phases in p["phases"]:
        for phase in range(3):
            units = 0
            for x in p["products"][phases["begin"][phase] : phases["begin"][phase + 1]]:
                assert x["units"] == units
                assert x["groups"] == ceil_div(x["tiles"], GROUP)
                bounds = [x["blocks"] * k // x["parts"] for k in range(x["parts"] + 1)]
                assert bounds[0] == 0
                assert all(a < b for a, b in itertools.pairwise(bounds))  # no part is empty
                units += x["groups"] * x["parts"]
            assert units == phases["units"][phase]


@settings(max_examples=300, deadline=None)
@given(
    widths=st.lists(st.integers(1, 700), min_size=3, max_size=24),
    batch=st.integers(1, 5000),
    options=st.integers(0, 127),
    device=st.sampled_from(
        [
            H200,
            A100,
            (132, 232_448, (132, 60, 16, 0)),
            (132, 232_448, (132, 0, 0, 1)),
            (40, 49_152, (40, 0, 0, 0)),
            (100_000, 101_376, (100_000, 50_000, 25_000, 12_500)),
        ]
    ),
    precision=st.integers(0, 2),
)
def test_layouts_hold_together(plan, widths, batch, options, device, precision):
    p = plan(widths, batch, 20, device, precision, options)
    if p["tile"] >= 0:
        check(p, device)


def test_nothing_fits_without_shared_memory(plan):
    assert plan((784, 256, 256, 10), 500, 32, (132, 0, H200[2]))["tile"] == -1


def test_the_tutorial_keeps_its_weights_on_the_chip(plan):
    p = plan((784, 256, 256, 10), 500, 32, EVEN)
    check(p, EVEN)
    assert p["cluster"] > 1
    between = [x for x in p["products"] if x["blocks"] == 16 and x["tiles"] * p["cluster"] == 32]
    assert len(between) == 2
    assert all(x["resident"] >= 0 for x in between)
    assert p["tile"] < p["steps"]


def test_clusters_that_do_not_run_together_take_turns(plan):
    # 32 tiles of samples in clusters of 4: 31 at a time leave one for a second wave
    time = {
        count: plan((784, 256, 256, 10), 500, 32, (132, 232_448, (132, 66, count, 15)), asked=(1, 4, 1))["tile"]
        for count in (33, 32, 31, 16, 15)
    }
    assert time[33] == time[32] < time[31] == time[16] < time[15]
    assert time[31] == pytest.approx(2 * time[32], rel=0.1)  # but for the launch
    p = plan((784, 256, 256, 10), 500, 32)
    assert ceil_div(500, SAMPLES * p["sample_tiles"]) <= H200[2][CLUSTERS.index(p["cluster"])]


def test_layouts_that_are_asked_for(plan):
    best = plan((784, 256, 256, 10), 500, 32)["tile"]
    for asked in itertools.product((0, 1, 2), (0, *CLUSTERS), (0, *HEIGHTS)):
        p = plan((784, 256, 256, 10), 500, 32, asked=asked)
        if p["tile"] == -1:
            assert asked[2] > 1  # the fewest samples fit anywhere
            continue
        check(p, H200)
        got = len(p["phases"]), p["cluster"], p["sample_tiles"]
        assert all(a in (0, b) for a, b in zip(asked, got, strict=True))
        assert p["tile"] >= best
    for impossible in ((3, 0, 0), (5, 0, 0), (0, 3, 0), (0, 16, 0), (0, 0, 3)):  # it has two edges, for two rounds
        assert plan((784, 256, 256, 10), 500, 32, asked=impossible)["tile"] == -1
    assert plan((784, 256, 256, 10), 500, 32, A100, asked=(0, 2, 0))["tile"] == -1


def test_deep_networks_stay_on_the_chip(plan):
    p = plan((784, *[128] * 19, 10), 64, 64)
    check(p, H200)
    assert len(p["phases"]) > 1
    assert p["tile"] < p["steps"]


def test_wide_networks_go_to_the_library(plan):
    p = plan((784, 4096, 4096, 10), 4096, 20)
    assert p["tile"] == -1 or p["steps"] < p["tile"]


def test_less_precision_takes_no_longer(plan):
    times = [plan((784, 256, 256, 10), 500, 32, precision=k)["tile"] for k in range(3)]
    assert times == sorted(times, reverse=True)
