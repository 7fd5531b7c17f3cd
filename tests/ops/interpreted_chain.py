"""Both ways to take a chain's steps with Triton, and what decides between them; test_triton.py runs this."""

from dataclasses import replace

import pytest
import torch

import pyromancy
from chains import (
    ELEMENTWISE,
    FUNCTIONS,
    call,
    check,
    operator,
    planned,
    problem,
    run_plan_,
    to,
    with_laws,
    with_weights_and_scales,
)
from numerics import assert_near
from pyromancy import backends, plan
from pyromancy.nodes import FactorizedGaussianNode, LaplaceNode, StandardGaussianNode
from pyromancy.ops import run_plan as definition
from pyromancy.ops.triton import chain, persistent, rule
from pyromancy.plan import Law, Learned, Learning, Rule, RuleKind
from twins import assert_same, batches, plainly, twins


@pytest.fixture(autouse=True, scope="module")
def in_the_interpreter():
    with backends.use("triton"):
        yield


@pytest.fixture(params=[0, 16, 64], ids=["one-by-one", "tiles-of-16", "tiles-of-64"])
def way(request, monkeypatch):
    """The way that every chain takes which can, and which of the two ran."""
    monkeypatch.setattr(persistent, "height", lambda *_: request.param)
    taken = []
    at_once, one_by_one = persistent.descend, chain._descend
    for module, function in ((persistent, at_once), (chain, one_by_one)):
        monkeypatch.setattr(module, function.__name__, lambda *args, f=function: (taken.append(f), f(*args)))
    return {"taken": taken, "one by one": one_by_one, "expected": at_once if request.param else one_by_one}


class TestBothWays:
    @pytest.mark.parametrize("widths", [(3, 1, 5), (4, 70, 33)], ids=lambda w: "-".join(map(str, w)))
    def test_sizes(self, way, widths):
        for batch in (0, 18):
            arguments = problem(widths, batch, "tanh", prior="batch", clamped=(-1,), record=True, dtype=torch.float32)
            arguments["precisions"] = [torch.rand(n) + 0.5 for n in widths]
            check(arguments)
        assert way["taken"] == 2 * [way["expected"]]

    def test_activations_that_differ_from_edge_to_edge(self, way):
        edges = [
            ("relu", "elu"),
            ("gelu_tanh", "softplus"),
            ("leaky_relu", "gelu"),
            ("identity", "silu"),
            ("hardtanh", "selu"),
            ("clipped_relu", "identity"),
        ]
        arguments = problem((5, 9, 7, 6, 4, 5, 3), 3, prior="one", clamped=(), dtype=torch.float32)
        names = [f for edge in edges for f in edge]
        arguments["activations"] = [[*FUNCTIONS].index(f) for f in names]
        arguments["parameters"] = [FUNCTIONS[f][1] for f in names]
        check(arguments)
        assert way["taken"] == [way["expected"]]

    def test_grams(self, way):
        arguments = problem((5, 7, 9, 70), 17, "tanh", momentum={"momentum": 0.8}, dtype=torch.float32)
        arguments["precisions"][-1] = torch.rand(70) + 0.5
        arguments["grams"][-1] = True
        check(arguments)
        assert way["taken"] == [way["expected"]]

    def test_what_one_kernel_does_not_take_goes_one_by_one(self, way):
        check(problem((5, 7, 3), 4))
        check(problem((5, 7, 6, 3), 4, covariances=True, prior="one", clamped=(-1,), dtype=torch.float32))
        check(problem((5, 7, 3), 4, clamped=(0, 1), dtype=torch.float32))  # nothing varies but the state
        assert set(way["taken"]) == {way["one by one"]}

    def test_velocities_of_some_nodes_go_one_by_one(self, way):
        arguments = problem((5, 7, 6, 3), 4, momentum={"momentum": 0.8}, dtype=torch.float32)
        arguments["velocities"][1] = None
        made, operands = planned(arguments)
        encoded, expected = plan.encode(made), to(operands.written)
        definition.run_plan_(expected, operands.read, *encoded)
        run_plan_(operands.written, operands.read, *encoded)
        for found, exact in zip(operands.written, expected, strict=True):
            assert_near(found, exact.double(), 50)
        assert way["taken"] == [way["one by one"]]

    def test_two_chains_one_within_the_other(self, way):
        """Each runs by itself; their energies stand in the order of the plan's nodes."""
        arguments = problem((5, 7, 7, 5), 4, record=True, dtype=torch.float32)
        made, operands = planned(arguments)
        outer, inner = made.edges[0], made.edges[1]
        nodes = [replace(n, law=plan.Law.NONE if i < 2 else plan.Law.GAUSSIAN) for i, n in enumerate(made.nodes)]
        weight = torch.randn(5, 5)
        edges = replace(outer, target=3, weight=len(operands.written) + len(operands.read), bias=None), inner
        targets = tuple(plan.Target(Learned.WEIGHT, i, 0, len(operands.written) + i) for i in range(2))
        more = [torch.zeros(5, 5), torch.zeros(7, 7)]
        shifted = renumbered(replace(made, nodes=tuple(nodes), edges=edges), len(operands.written), len(more))
        made = replace(shifted, targets=targets, rules=(Rule(),), learning=Learning.AT_THE_END)
        written, read = [*operands.written, *more], [*operands.read, weight]
        encoded, expected = plan.encode(made), to(written)
        definition.run_plan_(expected, read, *encoded)
        run_plan_(written, read, *encoded)
        for found, exact in zip(written, expected, strict=True):
            assert_near(found, exact.double(), 100)
        assert len(way["taken"]) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_counts_that_lie_on_the_cpu_are_read_there(dtype, monkeypatch):
    """As they do where the rest is on a GPU."""
    found = []
    for on_host in (False, True):
        monkeypatch.setattr(rule, "on_host", lambda _, here=on_host: here)
        torch.manual_seed(1)
        a = problem((5, 7, 3), 4, dtype=dtype)
        w = a["weights"][0]
        slots = (torch.full((), 4.0), torch.rand_like(w), torch.rand_like(w))
        targets = [(Learned.WEIGHT, 0, 0, w, slots)]
        call(*planned(a, targets, learning=Learning.AFTER_EACH_STEP,
                      rules=(Rule(RuleKind.ADAM, 0.1, 0.0, 0.9, 0.99, 1e-8),)))  # fmt: skip
        assert slots[0] == 4 + a["steps"]
        found.append(w)
    assert torch.equal(*found)


def test_chains_that_sweep_go_one_by_one(way):
    """With products of the library, with which what has been swept has no error."""
    a = problem((5, 33, 7, 3), 17, dtype=torch.float32) | {"swept": [False, True, True, False]}
    call(*planned(a))
    assert way["taken"] == [way["one by one"]]


class TestLaws:
    """Every law that goes element by element, with and without weights per sample."""

    @pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
    @pytest.mark.parametrize("laws", [*([law] for law in ELEMENTWISE), ELEMENTWISE, ELEMENTWISE[::-1]], ids=str)
    def test_steps_are_autograds(self, way, laws, weighted):
        for options in ({"prior": "one", "clamped": (-1,)}, {"prior": "batch", "clamped": ()}, {}):
            a = problem((5, 33, 40, 3), 18, "tanh", "softplus", covariances="one", scales=True,
                        momentum={"momentum": 0.8}, record=True, dtype=torch.float32, **options)  # fmt: skip
            a = with_laws(a, [laws[i % len(laws)] for i in range(4)])
            if weighted:
                with_weights_and_scales(a)["sample_weights"][0] = torch.rand(18) if options else None
            check(a)
        numbered = any(law.has_parameter or law is Law.EXPRESSION for law in a["laws"])
        assert way["taken"] == 3 * [way["one by one" if numbered else "expected"]]

    def test_beside_a_gram(self, way):
        a = problem((5, 7, 9, 70), 17, "tanh", dtype=torch.float32)
        a["laws"], a["grams"][-1] = [Law.LAPLACE, Law.LAPLACE, Law.LAPLACE, Law.GAUSSIAN], True
        a["sample_weights"] = [None, torch.rand(17), torch.rand(17), None]
        check(a)
        assert way["taken"] == [way["expected"]]

    def test_weights_per_sample_of_a_full_covariance(self):
        a = problem((5, 33, 40, 3), 18, "tanh", "softplus", covariances=True, prior="one", clamped=(-1,), record=True)
        a["sample_weights"] = [torch.rand(18, dtype=torch.float64) + 0.5 for _ in range(4)]
        check(a)

    def test_at_the_kink_and_with_nan(self, way):
        """A state that is its prediction stays, and NaN does."""
        a = problem((3, 3), 2, prior="one", clamped=(-1,), dtype=torch.float32) | {"steps": 1, "lr": 0.25}
        a["laws"] = [Law.LAPLACE, Law.LAPLACE]
        a["states"][0].copy_(torch.tensor([[2.0, 1.0, -2.0], 3 * [float("nan")]]))
        a["prior"].fill_(1.0)
        a["weights"][0].zero_()
        operator(**a)
        assert a["states"][0][0].tolist() == [1.75, 1.0, -1.75]
        assert a["states"][0][1].isnan().all()
        assert way["taken"] == [way["expected"]]


def renumbered(made, after, by):
    """A plan for tensors of which some more are written, after the first ones."""

    def shift(i):
        return i if i is None or i < after else i + by

    nodes = tuple(replace(n, state=shift(n.state), theta=shift(n.theta), prior=shift(n.prior)) for n in made.nodes)
    edges = tuple(replace(e, weight=shift(e.weight), bias=shift(e.bias)) for e in made.edges)
    return replace(made, nodes=nodes, edges=edges)


class TestDecision:
    """784-256-256-10, clamped at both ends, and wider ones; 132 multiprocessors."""

    def height(self, batch, width, processors=132):
        return persistent.height(batch, 2 * 4 * (width * width + 10 * width), 9, processors)

    def test_narrow_chains_take_one_launch(self):
        assert self.height(500, 256) == 16

    def test_wide_chains_do_not(self):
        assert self.height(500, 2048) == 0

    def test_more_samples_take_taller_tiles_until_there_are_too_many(self):
        heights = [self.height(batch, 128) for batch in (100, 16 * 132, 32 * 132, 64 * 132, 10**6)]
        assert heights == [16, 16, 32, 64, 0]

    def test_nothing_to_launch(self):
        assert persistent.height(500, 0, 0, 132) == 0


def test_masks_are_refused():
    made, operands = planned(problem((3, 5, 2), 4, dtype=torch.float32))
    way = plan.NodeStep(known=operands.number(torch.ones(4, 5, dtype=torch.bool)))
    made = replace(made, nodes=tuple(replace(n, way=way) if i == 1 else n for i, n in enumerate(made.nodes)))
    before = [t.clone() for t in operands.written]
    with pytest.raises(NotImplementedError, match="is the CPU's alone in a plan"):
        call(made, operands)
    assert all(torch.equal(t, b) for t, b in zip(operands.written, before, strict=True))
    assert backends.without_masks("cpu") == "the triton kernels on cpu take no masks"


def test_networks_that_are_no_chains_are_refused():
    made, operands = planned(problem((3, 5, 2), 4, dtype=torch.float32))
    twice = replace(made, edges=(*made.edges, made.edges[1]))
    before = [t.clone() for t in operands.written]
    with pytest.raises(NotImplementedError, match="networks that are no chains are the CPU's alone in a plan"):
        call(twice, operands)
    assert all(torch.equal(t, b) for t, b in zip(operands.written, before, strict=True))
    assert backends.without_graphs("cpu") == "the triton kernels on cpu take chains alone"


@pytest.mark.parametrize(("precision", "unit"), [("high", 2.0**-11), ("medium", 2.0**-8)])
def test_less_precise_products(way, precision, unit):
    check(problem((5, 33, 7, 3), 17, "tanh", dtype=torch.float32) | {"matmul_precision": precision}, unit=unit)


@pytest.mark.parametrize("incremental", [False, True, "joint"], ids=str)
@pytest.mark.parametrize("kinds", [(LaplaceNode,) * 3, (StandardGaussianNode, LaplaceNode, FactorizedGaussianNode)],
                         ids=["scales", "a-hidden-scale"])  # fmt: skip
def test_laplace_nodes_learn_in_one_call(kinds, incremental):
    net, plain = twins((8, 5, 4, 3), kinds=kinds)
    ours, theirs = (torch.optim.Adam(n.m_params(), 1e-2) for n in (net, plain))
    em = pyromancy.EM(net.energy, net.e_params(), ours, start=net.start, steps=3, lr=0.1, incremental=incremental)
    for x, y in batches(3, size=6):
        em.step(x, y)
        plainly(plain, theirs, x, y, steps=3, lr=0.1, incremental=incremental)
    assert_same(net.e_params() + net.m_params(), plain.e_params() + plain.m_params())
    assert "one call" in em.explain().splitlines()[0]


def test_energies_with_weights_per_sample_learn_in_one_call():
    net, plain = twins((8, 5, 4, 3), kinds=(StandardGaussianNode, FactorizedGaussianNode, LaplaceNode))
    weights = torch.rand(6).double()
    for n in (net, plain):
        n.energy = lambda of=n.energy: weights * of()
    ours, theirs = (torch.optim.SGD(n.m_params(), 1e-2) for n in (net, plain))
    em = pyromancy.EM(net.energy, net.e_params(), ours, start=net.start, steps=3, lr=0.1)
    for x, y in batches(2, size=6):
        em.step(x, y)
        plainly(plain, theirs, x, y, steps=3, lr=0.1)
    assert_same(net.e_params() + net.m_params(), plain.e_params() + plain.m_params())
    assert "one call" in em.explain().splitlines()[0]
