"""Chains on the CUDA kernels, which are compiled for the CPU here; run as a script with their library.

Devices are made up, so that every way of laying a chain out is taken: clusters of all sizes, matrices in shared memory
and outside, and the library's products where nothing fits. Prints how many kernels ran in clusters of which size, and a
digest of all bits that came out.
"""

import ctypes
import hashlib
import itertools
import os
import random
import sys
from dataclasses import replace

import pytest
import torch

from chains import (
    FUNCTIONS,
    OPTIONS,
    STEPS,
    call,
    check,
    check_mstep,
    check_resumed,
    exact_problem,
    of_size,
    operator,
    planned,
    problem,
    run_plan_,
    thetas,
    to,
    with_gram,
    with_laws,
    with_weights_and_scales,
)
from numerics import FLOATS, assert_near, saying
from pyromancy import plan
from pyromancy.ops import run_plan as definition
from pyromancy.plan import Activation, Descent, Edge, Law, Learned, Learning, Node, Plan, Rule, Target

FLOAT = torch.float32
# multiprocessors, bytes of shared memory that a block can have, compute capability
DEVICES = {
    "large": (132, 232_448, 9),
    "vast": (100_000, 232_448, 9),  # to spread out costs nothing
    "cramped": (132, 40_000, 9),  # matrices stay outside
    "single": (1, 232_448, 9),
    "few": (4, 232_448, 9),
    "few, cramped": (5, 56_000, 9),
    "old": (108, 166_912, 8),  # knows no clusters
    "none": (132, 0, 9),  # nothing fits
    "old, cramped": (108, 30_000, 8),
}
NAMES = ("PYROMANCY_EMULATED_MULTIPROCESSORS", "PYROMANCY_EMULATED_SHARED_BYTES", "PYROMANCY_EMULATED_CAPABILITY")
UNIT = {"highest": 0.0, "high": 2.0**-11, "medium": 2.0**-8}


def become(device):
    for name, value in zip(NAMES, DEVICES[device], strict=True):
        os.environ[name] = str(value)


def float32(arguments):
    return {k: to(x, FLOAT) for k, x in arguments.items()}


def laws_and_weights(widths, batch, seed=0, **options):
    """A chain of several laws, with weights per sample, and recorded energies."""
    return float32(exact_problem(random.Random(seed), widths, batch, record=True, **options))


def laws_of_ones_own(widths, batch, **options):
    """A chain of nothing else, with recorded energies."""
    return with_laws(
        problem(widths, batch, "tanh", record=True, dtype=FLOAT, **options), [Law.EXPRESSION] * len(widths)
    )


def calls():
    """A device and arguments, by what is special."""
    for device in [d for d in DEVICES if not d.startswith("few")]:
        for option, changes in OPTIONS.items():
            yield f"{option} on {device}", device, problem((5, 33, 7, 6, 3), 17, record=True, dtype=FLOAT, **changes)
        for precision in ("unit", "diagonal"):
            yield f"gram, {precision}, on {device}", device, float32(with_gram(precision))
        yield f"no record on {device}", device, problem((4, 70, 37, 5), 35, "tanh", "relu", dtype=FLOAT)
        weighted = problem((5, 33, 7, 3), 17, "tanh", prior="one", clamped=(-1,), covariances=True, record=True)
        yield f"weights per sample on {device}", device, float32(with_weights_and_scales(weighted))
        for seed in range(4):
            options = {"prior": "one", "clamped": (-1,)} if seed % 2 else {}
            yield f"laws {seed} on {device}", device, laws_and_weights((5, 33, 7, 6, 3), 17, seed, **options)
        yield f"own laws on {device}", device, laws_of_ones_own((5, 33, 7, 6, 3), 17, scales=True)
    everything = OPTIONS["everything"] | {"clamped": (0, -1)}
    for device in ("large", "few", "few, cramped", "old"):
        yield f"wide on {device}", device, problem((20, 128, 120, 10), 20, "relu", record=True, dtype=FLOAT)
        yield f"deep on {device}", device, problem((3, *[40] * 8, 4), 17, record=True, dtype=FLOAT, **everything)
    for device in ("few, cramped", "old, cramped"):  # panels of all sizes follow one another at the same place
        widths = (10, 60, 17, 64, 12, 40, 5, 3)
        yield f"uneven on {device}", device, problem(widths, 16, "tanh", dtype=FLOAT)
    yield "nothing wide", "large", problem((5, 6, 0, 4), 3, "tanh", dtype=FLOAT)
    for widths in ((3, 1, 5), (63, 129, 2), (5, 40, 33, 17, 3), (4, 5), (9, 8, 16, 24, 7)):
        for batch in (0, 1, 3, 65):
            yield f"{widths}, {batch}", "large", of_size(widths, batch, FLOAT)
    for side in ("before", "after"):
        for function in FUNCTIONS:
            for device in ("large", "none"):
                yield f"{function} {side}", device, problem((5, 33, 7, 3), 17, **{side: function}, dtype=FLOAT)
    for changes in OPTIONS.values():
        yield "float64", "large", problem((5, 33, 7, 6, 3), 17, record=True, dtype=torch.float64, **changes)
    yield "40 nodes", "large", problem((3,) * 40, 2, "tanh", dtype=FLOAT)


def digest_of(sha, arguments):
    for x in [*arguments["states"], arguments["energies"]]:
        if x is not None:
            sha.update(x.numpy().tobytes())


def keeps_nan(launches):
    """What is not a number stays so at every precision, in its sample only where it is a state."""
    become("large")
    for precision in UNIT:
        arguments = problem((5, 7, 6, 3), 4, dtype=FLOAT) | {"matmul_precision": precision}
        arguments["weights"][1].view(torch.int32).fill_(0x7FFF_FFFF)  # as GPUs write it
        operator(**arguments)
        assert [z.isnan().all().item() for z in arguments["states"]] == [False, True, True, False], precision
    become("old")
    os.environ[NAMES[1]] = "20000"  # several rounds, and panels of an odd number of neurons' tiles
    arguments = problem((8, 37, 5, 8, 20), 16, dtype=FLOAT)
    arguments["states"][1][3] = float("inf")
    before = sum(launches)
    operator(**arguments)
    assert sum(launches) == before + 1
    for z in arguments["states"]:
        assert z[[i for i in range(16) if i != 3]].isfinite().all()


def knows_its_clusters(launches):
    """No more blocks than the device and the compiled code allow."""
    become("large")
    for name, value, largest in (("PTX", "80", 1), ("CLUSTER", "4", 4)):
        os.environ[f"PYROMANCY_EMULATED_{name}"] = value
        before = [*launches]
        check(problem((20, 128, 120, 10), 17, dtype=FLOAT))
        (ran,) = (i for i, (a, b) in enumerate(zip(before, launches, strict=True)) if a != b)
        assert ran <= largest, f"{name}: {ran}"
        del os.environ[f"PYROMANCY_EMULATED_{name}"]


def goes_the_way_that_is_asked_for(launches):
    """On a device where either is possible, and on one where the tile does not fit."""
    for device, asked, kernels in (("large", "tile", 1), ("large", "steps", 0), ("none", "tile", 0)):
        become(device)
        os.environ["PYROMANCY_CUDA_CHAIN"] = asked
        before = sum(launches)
        with saying(f"{asked} on {device}"):
            check(problem((5, 33, 7, 3), 17, dtype=FLOAT))
            check(laws_of_ones_own((5, 33, 7, 6, 3), 17))
            check(laws_of_ones_own((5, 33, 7, 6, 3, 4), 17))  # one more than a tile has room for
            assert sum(launches) == before + 2 * kernels
    del os.environ["PYROMANCY_CUDA_CHAIN"]


def check_learning(arguments, steps):
    """A plan that sweeps, takes steps and wants all gradients; those of nodes that no step has reached are zero."""
    widths = [z.shape[1] for z in arguments["states"]]
    last = len(widths) - 1
    arguments["swept"] = [0 < i < last for i in range(last + 1)]
    arguments["steps"], arguments["energies"] = steps, arguments["energies"][:steps].clone()
    for i in range(1, last):
        arguments["states"][i].fill_(float("nan"))
    arguments["thetas"] = [t if t is None else t.clone() for t in arguments.get("thetas") or thetas(arguments)]
    parameters = {Learned.WEIGHT: arguments["weights"], Learned.BIAS: arguments["biases"]}
    parameters[Learned.LOGVAR] = [t if t is not None and t.dim() < 2 else None for t in arguments["thetas"]]
    targets = [(what, i, 0, torch.full_like(t, float("nan")), ())
               for what, some in parameters.items() for i, t in enumerate(some)
               if t is not None and (i or what is not Learned.LOGVAR)]  # fmt: skip
    made, operands = planned(arguments, targets, learning=Learning.AT_THE_END, rules=(Rule(),))
    exact = to(operands.written, torch.float64)
    definition.run_plan_(exact, to(operands.read, torch.float64), *plan.encode(made))
    call(made, operands)
    for a, b in zip(operands.written, exact, strict=True):
        size = max(1.0, b.abs().max().item())  # terms are of this order, not of one
        assert_near(a / size, b / size, 6 * max(widths))
    for what, i, _, gradient, _ in targets:
        if what is not Learned.LOGVAR:
            assert bool((gradient == 0).all()) == (i + 1 < last - steps)


def sweeps_and_learns_in_one_kernel(library, launches):
    """On every device, where it fits, and in every layout."""

    def chain(widths, batch=20, covariances="one"):
        return problem(widths, batch, "tanh", "silu", record=True, covariances=covariances, dtype=FLOAT)

    def with_matrices(widths):
        return chain(widths, covariances=True)

    def with_laws(widths):
        return laws_and_weights(widths, 20, functions=["identity"])

    for device, made in itertools.product(DEVICES, (chain, with_matrices, with_laws)):
        become(device)
        before = sum(launches)
        with saying((device, made)):
            check_learning(made((20, 128, 120, 10)), 3 if made is not with_laws else 2)
            check_learning(made((10, 60, 17, 64, 12, 40, 5, 3)), 2)
            if "cramped" not in device:
                assert sum(launches) == before + 2 * (device != "none")
    ask = ctypes.CDLL(library).pyromancy_ask_chain_layout
    become("large")
    for layout in itertools.product((1, 2, 3), (1, 2, 4, 8), (1, 2, 4)):
        ask(*layout)
        with saying(layout):
            check_learning(chain((5, 33, 7, 40, 3), 70), 2)
            check_learning(laws_and_weights((5, 33, 7, 40, 3), 70, functions=["identity"]), 2)
    ask(0, 0, 0)


def takes_the_layout_that_is_asked_for(library, launches):
    """Whatever the plan would choose; where it does not fit, that is an error and not another way."""
    ask = ctypes.CDLL(library).pyromancy_ask_chain_layout
    become("large")
    for rounds, cluster, sample_tiles in itertools.product((1, 2, 3), (1, 2, 4, 8), (1, 2, 4)):
        ask(rounds, cluster, sample_tiles)
        before = [*launches]
        with saying((rounds, cluster, sample_tiles)):
            check(problem((5, 33, 7, 40, 3), 70, "tanh", record=True, dtype=FLOAT))
            check(laws_and_weights((5, 33, 7, 40, 3), 70, rounds))
            check(laws_of_ones_own((5, 33, 7, 40, 3), 70))
        (ran,) = (i for i, (a, b) in enumerate(zip(before, launches, strict=True)) if a != b)
        assert ran == cluster
    ask(0, 3, 0)
    with pytest.raises(RuntimeError, match="must fit the layout that is asked for, 0 rounds, clusters of 3 and 0 samp"):
        operator(**problem((5, 33, 7, 3), 17, dtype=FLOAT))
    check(problem((5, 33, 7, 3), 17, dtype=torch.float64))  # which no layout serves
    ask(0, 0, 0)
    become("none")
    check(problem((5, 33, 7, 3), 17, dtype=FLOAT))


def both(written, read, ints, numbers):
    """A plan by the kernels and by its definition, which must leave the same in float64."""
    expected = to(written)
    definition.run_plan_(expected, read, ints, numbers)
    run_plan_(written, read, ints, numbers)
    for a, b in zip(written, expected, strict=True):
        assert_near(a, b, 200)


def runs_chains_side_by_side():
    """One of them a node alone; energies and gradients go to their own places."""
    double, batch = torch.float64, 17
    for states in ([4, 5, 6, 3, 7], [6, 2, 2, 9, 1]):
        a, b, c, d, alone = (torch.randn(batch, n, dtype=double) for n in states)
        weights = [torch.randn(y.shape[1], x.shape[1], dtype=double) for x, y in ((a, c), (b, d))]
        biases = [torch.randn(w.shape[0], dtype=double) for w in weights]
        prior, logvar = torch.randn(1, states[4], dtype=double), torch.randn(1, dtype=double)
        spread = torch.randn(states[2], dtype=double)
        gradients = [torch.full_like(t, float("nan")) for t in (*weights, *biases, logvar, spread)]
        energies = torch.full((STEPS, 5, batch), float("nan"), dtype=double)
        # 0 to 2 move; 3 is the energies, and 4 to 9 are the gradients
        tensors = [a, b, alone, energies, *gradients], [c, d, *weights, *biases, prior, logvar, spread]
        nodes = (
            Node(0, True), Node(1, True), Node(10, False, law=Law.GAUSSIAN, theta=18, weight=0.7),
            Node(11, False, law=Law.GAUSSIAN, weight=1.5),
            Node(2, True, law=Law.GAUSSIAN, theta=17, prior=16, weight=2.0),
        )  # fmt: skip
        tanh = Activation([*FUNCTIONS].index("tanh"))
        edges = (Edge(1, 3, 13, 15, after=tanh), Edge(0, 2, 12, 14, before=tanh))
        targets = (
            Target(Learned.WEIGHT, 1, 0, 4), Target(Learned.WEIGHT, 0, 0, 5), Target(Learned.BIAS, 1, 0, 6),
            Target(Learned.BIAS, 0, 0, 7), Target(Learned.LOGVAR, 4, 0, 8), Target(Learned.LOGVAR, 2, 0, 9),
        )  # fmt: skip
        made = Plan(nodes, edges, Descent(0.05), STEPS, 3, None, Learning.AT_THE_END, (Rule(),), targets)
        both(*tensors, *plan.encode(made))


def gives_velocities_to_some_nodes_only():
    for dtype in FLOATS:
        arguments = problem((5, 7, 6, 3), 4, momentum={"momentum": 0.8}, dtype=dtype)
        arguments["velocities"][1] = None
        made, operands = planned(arguments)
        both(operands.written, operands.read, *plan.encode(made))


def refuses():
    for wrong in (
        {"states": [x.half() for x in problem((5, 7, 3), 4)["states"]]}, {"lr": float("inf")},
        {"weights": [w.T for w in problem((5, 7, 3), 4)["weights"]]}, {"prior": torch.zeros(2, 5)},
        {"grams": [True, False]}, {"grams": [False, True], "energies": torch.zeros(STEPS, 3, 4)},
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=r"must|needs"), saying(wrong):
            operator(**problem((5, 7, 3), 4, dtype=FLOAT) | wrong)
    made, operands = planned(problem((5, 7, 3), 4, dtype=FLOAT))
    masked = plan.NodeStep(known=operands.number(torch.ones(4, 7, dtype=torch.bool)))
    nodes = tuple(replace(n, way=masked) if i == 1 else n for i, n in enumerate(made.nodes))
    with pytest.raises(RuntimeError, match="masks are the CPU's alone in a plan"):
        call(replace(made, nodes=nodes), operands)
    with pytest.raises(RuntimeError, match="node 2 must have one prediction here, got edge 2 beside another"):
        call(replace(made, edges=(*made.edges, made.edges[1])), operands)


def main(library):
    """Run everything."""
    torch.ops.load_library(library)
    launches = (ctypes.c_int64 * 9).in_dll(ctypes.CDLL(library), "emulated_launches")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # with NaN: who forgets to write is found out
    torch.manual_seed(21)
    sha = hashlib.sha256()
    for what, device, arguments in calls():
        become(device)
        before = [*launches]
        with saying(what):
            check(arguments)
            if (
                device == "none"
                or arguments["states"][0].dtype == torch.float64
                or what in ("40 nodes", "nothing wide")
            ):
                assert [*launches] == before
            elif arguments["states"][0].shape[0] and "cramped" not in device:
                assert sum(launches) == sum(before) + 1
            digest_of(sha, arguments)
    become("large")
    for precision, unit in UNIT.items():
        with saying(precision):
            arguments = problem((5, 33, 40, 3), 40, "tanh", record=True, dtype=FLOAT)
            check(arguments | {"matmul_precision": precision}, unit=unit)
            digest_of(sha, arguments)
    for dtype in FLOATS:
        check_resumed(problem((5, 7, 3), 4, "tanh", momentum={"momentum": 0.8}, dtype=dtype))
    for option, changes in OPTIONS.items():
        for dtype in FLOATS:
            with saying(f"the M-step, {option}, {dtype}"):
                check_mstep(problem((5, 33, 7, 6, 3), 17, dtype=dtype, **changes))
    for batch in (0, 1, 3):
        check_mstep(of_size((63, 12, 2), batch, FLOAT))
    runs_chains_side_by_side()
    gives_velocities_to_some_nodes_only()
    refuses()
    keeps_nan(launches)
    knows_its_clusters(launches)
    goes_the_way_that_is_asked_for(launches)
    takes_the_layout_that_is_asked_for(library, launches)
    sweeps_and_learns_in_one_kernel(library, launches)
    print({cluster: count for cluster, count in enumerate(launches) if count})
    print(sha.hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])
