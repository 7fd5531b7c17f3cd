"""Plans whose nodes start by some of the edges that predict them, as in circles, against autograd in float64."""

import re
from dataclasses import replace

import pytest
import torch

from chains import Operands, call
from numerics import FLOATS, assert_near, name, same_bits
from pyromancy import plan
from pyromancy.plan import Activation, Descent, Edge, Learned, Learning, Node, Plan, Rule, Target
from pyromancy.plan.activations import ACTIVATIONS

WIDTHS = (5, 17, 9, 3)
FREE = (1, 2)
# source, target, and whether the target starts by it
EDGES = {
    "circles": (
        (0, 1, True), (1, 1, False), (2, 1, False), (3, 1, False),
        (0, 2, True), (1, 2, True), (3, 2, False), (2, 3, True),
    ),
    "nothing that rests": ((0, 1, True), (1, 2, True), (2, 2, False), (1, 3, True), (2, 3, True)),
    "nothing that moves": ((0, 1, True), (3, 1, False), (0, 2, False), (3, 2, False), (1, 2, True), (2, 3, True)),
    "clamped alone": ((0, 1, True), (3, 1, False), (0, 2, True), (1, 3, True), (2, 3, True)),
}  # fmt: skip
TANH, RATE = [*ACTIVATIONS].index("tanh"), 0.1


class Network:
    """Nodes of several parents, each after an activation, in a dtype."""

    def __init__(self, edges, batch, dtype, seed=0):
        g = torch.Generator().manual_seed(seed)

        def drawn(*shape):
            return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

        self.edges, self.batch, self.dtype = edges, batch, dtype
        self.states = [drawn(batch, n) for n in WIDTHS]
        self.weights = [drawn(WIDTHS[t], WIDTHS[s]) / WIDTHS[s] ** 0.5 for s, t, _ in edges]
        self.biases = [0.3 * drawn(WIDTHS[t]) for _, t, _ in edges]
        self.prior = 0.3 * drawn(1, WIDTHS[1])

    def planned(self, steps, method=None, learning=Learning.AT_THE_END, prior=False):
        gradients = [torch.full_like(w, float("nan")) for w in (*self.weights, *self.biases)]
        of = Operands([*(self.states[i] for i in FREE), *gradients])
        number = of.number
        targets = {1, 2, 3}
        nodes = tuple(
            Node(number(z), i in FREE, i in FREE, plan.Law.GAUSSIAN if i in targets else plan.Law.NONE,
                 prior=number(self.prior) if prior and i == 1 else None)
            for i, z in enumerate(self.states)
        )  # fmt: skip
        edges = tuple(
            Edge(s, t, number(w), number(b), Activation(TANH), Activation(TANH if t == 2 else 0), sweeps=sweeps)
            for (s, t, sweeps), w, b in zip(self.edges, self.weights, self.biases, strict=True)
        )
        what = [(Learned.WEIGHT, i) for i in range(len(edges))] + [(Learned.BIAS, i) for i in range(len(edges))]
        learns = learning is not Learning.NEVER
        made = Plan(
            nodes, edges, method or Descent(RATE), steps, learning=learning, rules=(Rule(),) * learns,
            targets=tuple(Target(w, i, 0, number(g), ()) for (w, i), g in zip(what, gradients, strict=True)) * learns,
        )  # fmt: skip
        return made, of, gradients

    def exact(self, steps, prior=False):
        """The free states, where they start and after the steps, and the gradients, by autograd."""
        states = [z.double() for z in self.states]
        weights, biases = (
            [t.double().detach().clone().requires_grad_() for t in of] for of in (self.weights, self.biases)
        )

        def predicted(t, z, start=False):
            total = self.prior.double() if prior and t == 1 else torch.zeros(())
            for (source, target, sweeps), w, b in zip(self.edges, weights, biases, strict=True):
                if target == t and (sweeps or not start):
                    total = total + torch.tanh(z[source]) @ w.T + b
            return torch.tanh(total) if t == 2 else total

        def energy(z):
            return sum(0.5 * (z[t] - predicted(t, z)).square().sum(1) for t in (1, 2, 3))

        for i in FREE:
            states[i] = predicted(i, states, True).detach().requires_grad_()
        began = [states[i].detach() for i in FREE]
        for _ in range(steps):
            gradients = torch.autograd.grad(energy(states).sum(), [states[i] for i in FREE])
            for i, g in zip(FREE, gradients, strict=True):
                states[i] = (states[i] - RATE * g).detach().requires_grad_()
        return (
            began,
            [states[i].detach() for i in FREE],
            torch.autograd.grad(energy(states).mean(), [*weights, *biases]),
        )


edges = pytest.mark.parametrize("edges", EDGES.values(), ids=EDGES)


@pytest.mark.usefixtures("backend")
class TestStarts:
    @pytest.mark.parametrize("prior", [False, True], ids=["", "prior"])
    @pytest.mark.parametrize("dtype", FLOATS, ids=name)
    @edges
    def test_batches_are_autograds(self, edges, dtype, prior):
        for batch, steps in ((1, 0), (20, 0), (3, 1), (20, 4), (70, 3)):
            net = Network(edges, batch, dtype)
            began, states, gradients = net.exact(steps, prior)
            for i in FREE:
                net.states[i].fill_(float("nan"))
            made, of, found = net.planned(steps, prior=prior)
            call(made, of)
            for i, began_, expected in zip(FREE, began, states, strict=True):
                assert_near(net.states[i], began_ if steps == 0 else expected, 33 * (steps + 1))
            for g, expected in zip(found, gradients, strict=True):
                assert_near(g, expected, 33 * (steps + 1))

    @edges
    def test_learning_in_every_step_sweeps_once(self, edges):
        """As a plan without steps does before others, whose nodes are not swept."""
        one, other = (Network(edges, 7, torch.float64) for _ in range(2))
        made, of, _ = one.planned(3, learning=Learning.AFTER_EACH_STEP)
        call(made, of)
        call(*other.planned(0, learning=Learning.NEVER)[:2])
        made, of, _ = other.planned(3, learning=Learning.NEVER)
        call(replace(made, nodes=tuple(replace(n, swept=False) for n in made.nodes)), of)
        for x, y in zip(one.states, other.states, strict=True):
            assert_near(x, y, 33)

    def test_refused(self):
        net = Network(EDGES["circles"], 3, torch.float64)
        made, of, _ = net.planned(1, learning=Learning.NEVER)

        def with_edges(**changes):
            return replace(made, edges=(replace(made.edges[0], **changes), *made.edges[1:]))

        with pytest.raises(RuntimeError, match=re.escape("edge 0 must sweep, or another to node 1")):
            call(with_edges(sweeps=False), of)
        behind = tuple(replace(e, sweeps=True) if (e.source, e.target) == (2, 1) else e for e in made.edges)
        told = "node 1 starts at its prediction, and edge 2 must lead to it from an earlier one, got 2"
        with pytest.raises(RuntimeError, match=re.escape(told)):
            call(replace(made, edges=behind), of)


@pytest.mark.usefixtures("native_backend")
class TestKernels:
    @pytest.mark.parametrize("method", [
        plan.Momentum(lr=RATE, momentum=0.5, errors=False), plan.Heun(lr=RATE, errors=False),
        plan.QuasiNewton(errors=False),
    ], ids=lambda m: type(m).__name__)  # fmt: skip
    @edges
    def test_methods_on_states_begin_there(self, edges, method):
        swept, kept = (Network(edges, 20, torch.float64) for _ in range(2))
        made, of, _ = swept.planned(3, method=method, learning=Learning.NEVER)
        call(made, of)
        call(*kept.planned(0, learning=Learning.NEVER)[:2])
        made, of, _ = kept.planned(3, method=method, learning=Learning.NEVER)
        call(replace(made, nodes=tuple(replace(n, swept=False) for n in made.nodes)), of)
        for x, y in zip(swept.states, kept.states, strict=True):
            assert_near(x, y, 33)

    def test_methods_on_errors_are_refused(self):
        net = Network(((0, 1, True), (0, 2, True), (1, 2, False), (2, 3, True)), 3, torch.float64)
        method = plan.QuasiNewton(errors=True)
        with pytest.raises(RuntimeError, match="edge 2 must sweep, as errors move"):
            call(*net.planned(1, method=method, learning=Learning.NEVER)[:2])

    @edges
    @pytest.mark.parametrize("dtype", FLOATS, ids=name)
    def test_no_sample_depends_on_others_or_on_threads(self, dtype, edges):
        whole = Network(edges, 70, dtype)
        inputs = [z.clone() for z in whole.states]
        call(*whole.planned(3, learning=Learning.NEVER)[:2])
        threads = torch.get_num_threads()
        try:
            for n, rows in ((1, slice(0, 1)), (2, slice(3, 9)), (7, slice(10, 70)), (4, slice(0, 70))):
                torch.set_num_threads(n)
                part = Network(edges, 70, dtype)
                part.states = [z[rows].clone() for z in inputs]
                call(*part.planned(3, learning=Learning.NEVER)[:2])
                for x, y in zip(part.states, whole.states, strict=True):
                    assert same_bits(x, y[rows])
        finally:
            torch.set_num_threads(threads)
