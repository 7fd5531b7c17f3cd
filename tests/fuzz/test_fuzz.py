"""The campaign finds what is planted, shrinks it and prints it as a program, which runs; and it draws everything."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

import pyromancy as pyro
from fuzz import __main__ as fuzz
from fuzz import cases, pair
from fuzz.cases import ACTS, KINDS, LAYOUTS, METHODS, OPTIMIZERS, Batch, Case, Do, Edge, Epoch, Learn, Node, Run, Step
from fuzz.draw import drawn, features
from fuzz.judge import Diverged, Judge
from fuzz.reference import Reference
from pyromancy import backends
from pyromancy.run.chain import ChainExecutor
from pyromancy.run.loop import InferenceLoop


def carried_out(printed):
    exec(compile(printed, "printed", "exec"), {})


def test_what_fails_is_shrunk_to_what_it_needs(monkeypatch, capsys):
    plain = pair.Network.plain

    def wrong(self, *given):
        return 1.01 * plain(self, *given) if any(n.law == "student" for n in self.case.nodes) else plain(self, *given)

    monkeypatch.setattr(pair.Network, "plain", wrong)
    campaign = fuzz.Campaign(28, 60, "avx2")
    campaign.case(0)  # of two nodes, one of them of that law
    printed = capsys.readouterr().out
    assert "python -m fuzz --seed 28 --kernels avx2 --case 0\n" in printed
    assert "AssertionError" in printed
    (found,) = campaign.failing
    assert [n.law for n in found.nodes] == ["student"]
    assert len(found.actions) <= 1
    program = printed[printed.index("from fuzz.cases") :]
    with pytest.raises(AssertionError):
        carried_out(program)
    monkeypatch.setattr(pair.Network, "plain", plain)
    carried_out(program)


SEED = 27


def first_found(histories, most=100):
    """The number of the first case that fails."""
    cases_ = (drawn(SEED, number, histories) for number in range(most))
    return next((number for number, case in enumerate(cases_) if fuzz.failure(case) is not None), None)


def after(monkeypatch, of, name, change):
    """Let a method's result be changed once it is there."""
    plain = getattr(of, name)

    def changed(self, *args, **options):
        return change(self, plain(self, *args, **options))

    monkeypatch.setattr(of, name, changed)


def gradients_off_by_a_millionth(monkeypatch):
    after(
        monkeypatch, ChainExecutor, "gradients",
        lambda _, found: found if isinstance(found, str) else [g if g is None else g * (1 + 1e-6) for g in found],
    )  # fmt: skip


def changes_that_are_not_noticed(monkeypatch):
    monkeypatch.setattr("pyromancy.run.choice.check", lambda energy, program: None)


def a_clamped_state_that_moves(monkeypatch):
    def moved(loop, trace):
        program = loop.program
        states = [] if program is None else [t for t in program.leaves if not t.requires_grad and t.dim() == 2]
        for z in states:
            z.data = z + 1e-9
        return trace

    after(monkeypatch, InferenceLoop, "run", moved)


def momentum_that_is_lost(monkeypatch):
    def lost(loop, trace):
        loop.forget_velocities()
        return trace

    after(monkeypatch, InferenceLoop, "run", lost)


def a_bit_that_depends_on_the_batch(monkeypatch):
    def moved(loop, trace):
        for z in loop.params:
            if len(z) > 1:
                z.data = torch.nextafter(z, torch.tensor(torch.inf, dtype=z.dtype))
        return trace

    after(monkeypatch, InferenceLoop, "run", moved)


def a_run_that_forgets_a_step(monkeypatch):
    run = ChainExecutor.run
    monkeypatch.setattr(
        ChainExecutor, "run",
        lambda self, of, velocities: run(self, replace(of, steps=of.steps - (of.steps > 4)), velocities),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("plant", "histories"),
    [
        (gradients_off_by_a_millionth, False),
        (changes_that_are_not_noticed, True),
        (a_clamped_state_that_moves, False),
        (momentum_that_is_lost, True),
        (a_bit_that_depends_on_the_batch, False),
        (a_run_that_forgets_a_step, False),
    ],
)
def test_what_is_planted_is_found(plant, histories, monkeypatch):
    plant(monkeypatch)
    number = first_found(histories)
    assert number is not None
    monkeypatch.undo()
    assert fuzz.failure(drawn(SEED, number, histories)) is None


class TestJudge:
    def test_what_is_well_conditioned_has_its_last_bits_alone(self):
        exact = torch.ones(3, dtype=torch.float64)
        Judge(torch.float64).agree(exact * (1 + 1e-14), [exact], "x")
        with pytest.raises(AssertionError, match=r"x: off by 2\.0e-14 of 1, where rounding allows 1e-14"):
            Judge(torch.float64).agree(exact * (1 + 2e-14), [exact], "x")

    def test_what_amplifies_rounding_may_be_off_by_as_much(self):
        exact = torch.full((3,), 2.0, dtype=torch.float64)
        judge = Judge(torch.float64)
        judge.agree(exact * (1 + 7e-9), [exact, exact * (1 - 1e-9), exact], "x")
        with pytest.raises(AssertionError, match=r"x: off by 9\.0e-09 of 2, where rounding allows 8e-09"):
            judge.agree(exact * (1 + 9e-9), [exact, exact], "x")

    def test_neighbours_are_a_rounding_off_and_no_more(self):
        case = Case((Node(3, "factorized", (Edge(-1, "bias"),)), Node(3, clamped=True)), (Batch(5), Run(2)))
        one = pair.Pair(case, 3)
        one.run(Run(2))
        assert 1e-17 < one.judge.spread < 1e-14


@pytest.mark.parametrize("what", ["copy", "pickle"])
def test_copies_within_a_batch_begin_its_velocity_anew(what):
    case = Case(actions=(Run(), Do(what), Run()), momentum=0.5)
    assert pair.check(case) == "ok"


@pytest.mark.parametrize("lost", [float("nan"), float("inf"), 1.0])
def test_neighbours_that_went_elsewhere_end_a_case(lost):
    """As where E-steps are unstable and begin at an error of 0: of one rounding they make anything, here NaN."""
    exact = torch.ones(3, dtype=torch.float64)
    astray = exact.clone()
    astray[1] = lost + 1
    with pytest.raises(Diverged):
        Judge(torch.float32).agree(exact, [exact, exact, astray, exact], "x")


def test_what_float32_cannot_hold_is_not_judged():
    """Its last state pulls the first by less than float32 tells from nothing, which is a Laplace node's whole pull.

    Without kernels no such node is judged at rest.
    """
    there = backends.available("native")[0]
    above = Node(law="mixed", edges=(Edge(1, activation="sigmoid", scale=-0.7),))
    nodes = Node(law="laplace"), Node(edges=(Edge(0),)), above
    assert pair.check(Case(nodes, (Step(),), float32=True, sweep=True)) == ("diverged" if there else "refused")
    assert pair.check(Case(nodes, (Step(),), sweep=True)) == ("ok" if there else "refused")


@pytest.mark.parametrize("after", ["tanh", "square"])
def test_laplace_nodes_rest_below_a_law_of_ones_own(after):
    """Where its prediction is the chain's; what is a part of the law, as a square, is rounded in another way."""
    nodes = (
        Node(law="laplace", edges=(Edge(kind="masked"),)),
        Node(law="mixed", edges=(Edge(0, scale=-0.7),), after=after),
    )
    rests = backends.available("native")[0] and after == "tanh"
    assert pair.check(Case(nodes, (Epoch(),), sweep=True)) == ("ok" if rests else "refused")


def test_sweeps_of_graphs_give_what_activations_take():
    """Predictions that the next edge takes an activation of, which adds the bias of other products itself."""
    nodes = (
        Node(edges=(Edge(kind="bias"),)),
        Node(edges=(Edge(0, "bias", "tanh"),)),
        Node(edges=(Edge(1, "bias", "tanh"),), after="square"),
    )
    assert pair.check(Case(nodes, (Step(),), sweep=True)) == "ok"


def test_starts_are_swept(monkeypatch):
    """By operators, as what predictions are copied to would not be."""
    swept, step = [], pyro.EM.step

    def watched(em, *batch):
        result = step(em, *batch)
        swept.append(len(em._fused.swept))
        return result

    monkeypatch.setattr(pyro.EM, "step", watched)
    pair.check(Case((Node(), Node(edges=(Edge(0),)), Node(edges=(Edge(1),), clamped=True)), (Step(),), sweep=True))
    assert swept == [2]


def test_errors_that_move_are_rounded_for_neighbours():
    """A state is its prediction and its error, which may both be much larger."""
    nodes = Node(edges=(Edge(scale=1e3),)), Node(clamped=True)
    of = pair.Pair(Case(nodes, (Batch(),), float32=True, method="errors"), 3)
    for reference in of.references:
        reference.step_errors()
    exact, *near = (r.net.nodes[0].value for r in of.references)
    assert max((z - exact).abs().max() for z in near) > 1e-4


@pytest.mark.parametrize(
    "nodes",
    [
        (Node(8, edges=(Edge(), Edge(activation="relu", scale=0.5)), after="square"), Node(8, clamped=True)),
        (Node(9, edges=(Edge(),)), Node(16, edges=(Edge(source=0),), clamped=True)),
    ],
    ids=["by PyTorch's products", "by W^T W in large batches"],
)
def test_samples_alone_are_judged_where_they_go_the_same_way(nodes):
    before = pair.counts["alone"]
    assert pair.check(Case(nodes, (Batch(65), Run(3, alone=True)), input=9)) == "ok"
    assert pair.counts["alone"] == before


@pytest.mark.parametrize(
    "case",
    [
        Case((Node(5, "multivariate"),), (Do("move"), Learn()), images=True, seed=6077),
        Case(actions=(Do("method", 33675), Run(), Do("replace"), Run())),
    ],
    ids=["neighbours after a move", "what Adam remembers of another energy"],
)
def test_judged_wrongly_once(case):
    assert pair.check(case) in ("ok", "diverged")


def test_errors_of_laplace_nodes_after_a_sweep_are_zero_for_neighbours():
    case = Case((Node(5, "laplace", (Edge(-1, "bias", "tanh"),)),), (Batch(4),), sweep=True)
    for reference in pair.Pair(case, 3).references:
        assert torch.equal(reference.net.nodes[0].value, reference.net.predict(0, reference.net.states()))
        assert not torch.cat([g.flatten() for g in reference.gradients()]).any()
    assert isinstance(reference, Reference)


def test_everything_is_drawn():
    counts = Counter()
    for number in range(1000):
        counts.update(features(drawn(3, number, False)))
        counts.update(features(drawn(3, number, True)))
    words = {
        "law": cases.FREE_LAWS + cases.TARGET_LAWS, "edge": KINDS, "activation": cases.ACTIVATIONS,
        "after": cases.ACTIVATIONS, "layout": LAYOUTS, "method": METHODS, "optimizer": OPTIMIZERS, "what": ACTS,
        "prior": ("none", "square", "tails"), "incremental": (False, True, "joint"),
        "action": ("Batch", "Run", "Learn", "Step", "Epoch", "Do"),
    }  # fmt: skip
    wanted = {f"{kind} {word}" for kind, known in words.items() for word in known}
    wanted |= {
        "images", "float32", "medium", "sweep", "record", "alone", "cycle", "two parents", "leap over nodes",
        "several edges of one parent", "clamped inside", "starts by some edges",
    }  # fmt: skip
    assert not {word: counts[word] for word in wanted if counts[word] < 10}


def test_a_case_is_drawn_by_its_seed_and_number():
    assert drawn(1, 7, True) == drawn(1, 7, True)
    assert len({drawn(seed, number, False) for seed in (1, 2) for number in range(50)}) == 100


@pytest.mark.parametrize("method", METHODS)
def test_every_method_agrees(method):
    nodes = Node(3), Node(2, "factorized", (Edge(0, "bias", "tanh"),), clamped=True)
    actions = Batch(5), Run(3, True, True), Learn(), Step(3), Epoch(5, 2)
    assert pair.check(Case(nodes, actions, method=method, momentum=0.5 * (method == "nesterov"))) == "ok"


@pytest.mark.parametrize("what", ACTS)
def test_every_act_is_followed(what):
    nodes = Node(3), Node(2, "laplace", (Edge(0, "bias", "tanh"),), clamped=True)
    actions = Batch(5), Run(2), Do(what), Run(2), Learn(), Do(what, 1), Step(3), Batch(4), Run(1), Learn()
    for optimizer in OPTIMIZERS:
        assert pair.check(Case(nodes, actions, optimizer=optimizer)) == "ok"


@pytest.mark.parametrize("kind", KINDS)
def test_every_edge_and_layout_agrees(kind):
    nodes = Node(3), Node(3, "isotropic", (Edge(0, kind, "sigmoid"), Edge()), clamped=True)
    for images in (False, True):
        for layout in LAYOUTS:
            assert pair.check(Case(nodes, (Batch(4, layout), Run(2), Learn()), images=images)) == "ok"
