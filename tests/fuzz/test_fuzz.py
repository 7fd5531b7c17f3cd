"""The campaign finds a fault that is planted, shrinks it and prints it as a program; and what it printed runs."""

import pytest

from fuzz import __main__ as fuzz
from fuzz import pair
from fuzz.cases import ACTS, KINDS, LAYOUTS, METHODS, OPTIMIZERS, Batch, Case, Do, Edge, Epoch, Learn, Node, Run, Step


def carried_out(printed):
    exec(compile(printed, "printed", "exec"), {})


def test_a_planted_fault_is_shrunk_to_what_it_needs(monkeypatch, capsys):
    plain = pair.Network.plain

    def wrong(self, *given):
        return 1.01 * plain(self, *given) if any(n.law == "student" for n in self.case.nodes) else plain(self, *given)

    monkeypatch.setattr(pair.Network, "plain", wrong)
    campaign = fuzz.Campaign(1, 60)
    assert not campaign.run()
    printed = capsys.readouterr().out
    assert "AssertionError" in printed
    found = campaign.failing[0]
    assert [n.law for n in found.nodes].count("student") == 1
    assert len(found.nodes) <= 2
    program = printed[printed.index("from fuzz.cases") :].rsplit("\n\n", 1)[0]
    with pytest.raises(AssertionError):
        carried_out(program)
    monkeypatch.setattr(pair.Network, "plain", plain)
    carried_out(program)


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
