"""Accelerated E-steps in `run_plan_`: where they end, what they tell, and that samples do not interact."""

import re
from dataclasses import replace

import pytest
import torch

from chains import SOME, STEPS, call, energies, planned, problem, thetas, to, with_skips
from numerics import assert_near, same_bits
from pyromancy import plan
from pyromancy.plan import Accelerated, Edge, Law, Learned, Learning, Rule, RuleKind

MANY = 400
CHAIN = (5, 40, 33, 17, 3)
LEVEL = (5, 17, 17, 17, 3)  # for skips
METHODS = {
    "errors": Accelerated(),
    "states": Accelerated(errors=False),
    "errors-at-a-rate": Accelerated(lr=0.05),
    "errors-momentum": Accelerated(lr=0.05, momentum=0.5),
    "states-at-a-rate": Accelerated(lr=0.05, errors=False),
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
skipping = pytest.mark.parametrize("skips", [False, True], ids=["plain", "skips"])
OPTIONS = {
    "plain": {},
    "tanh": {"before": "tanh"},
    "after": {"before": "gelu", "after": "tanh"},
    "open-end": {"clamped": (0,)},
    "clamped-within": {"clamped": (0, 2, -1), "before": "tanh"},
    "all-free": {"prior": "one", "clamped": ()},
    "no-prior": {"clamped": (-1,), "before": "tanh"},
    "prior-per-sample": {"prior": "batch", "clamped": (-1,), "before": "tanh"},
    "covariances": {"covariances": True, "prior": "batch", "clamped": (-1,)},
    "one-variance": {"covariances": "one", "scales": True, "prior": "one", "clamped": (-1,), "after": "tanh"},
}


def run(a, method, steps=MANY, targets=(), **options):
    """Its outcome: the sweeps of every sample, and whether it stopped by itself."""
    outcome = torch.full((len(a["states"][0]), 2), float("nan"), dtype=a["states"][0].dtype)
    call(*planned(a | {"steps": steps, "velocities": []}, targets, method, outcome, **options))
    return outcome[:, 0], outcome[:, 1]


def gradients(a):
    """Of the energy at the states, for the free ones."""
    states = [z.detach().requires_grad_(free) for z, free in zip(a["states"], a["free"], strict=True)]
    free = [z for z in states if z.requires_grad]
    total = torch.stack(energies(a | {"states": states})).sum()
    return torch.autograd.grad(total, free)


def total(a):
    return torch.stack(energies(a)).sum(0)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("errors", [True, False], ids=["errors", "states"])
def test_without_a_rate_it_ends_where_the_gradient_is_zero(errors, options):
    for a in (problem(CHAIN, 7, **options), with_skips(problem(LEVEL, 7, **options), 0.5)):
        before = total(a)
        run(a, Accelerated(errors=errors), 3000 if errors else 30000)
        assert (total(a) <= before).all()
        assert all(g.abs().max() < 1e-5 for g in gradients(a))


@methods
def test_a_linear_chain_ends_at_its_one_equilibrium(method):
    a = problem(CHAIN, 7)
    b = {k: to(x) for k, x in a.items()}
    run(a, method, 4000)
    run(b, replace(Accelerated(), errors=not method.errors), 4000)
    assert all(torch.allclose(x, y, atol=1e-8) for x, y in zip(a["states"], b["states"], strict=True))


@pytest.mark.parametrize("kind", ["plain", "one-variance"])
@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-4])
def test_what_stops_is_within_the_tolerance(tol, kind):
    """Nearly always: the bound is one, in a linear network, but a sample that gains nothing for long stops too."""
    options = {k: x for k, x in OPTIONS[kind].items() if k != "after"}
    a = problem(CHAIN, 65, **options)
    first = problem_after_sweep(a)
    best = {k: to(x) for k, x in a.items()}
    run(best, Accelerated(), 4000)
    taken, stopped = run(a, Accelerated(tol=tol), 4000)
    assert stopped.all()
    assert (taken < 200).all()
    share = (total(a) - total(best) - 1e-10) / (first - total(a))
    assert (share > tol).sum() <= 2
    assert (share <= 2 * tol).all()


def problem_after_sweep(a):
    """Set the states to their predictions, and give the energies there."""
    a["swept"] = [f and p for f, p in zip(a["free"], a["predicted"], strict=True)]
    b = {k: to(x) for k, x in a.items()}
    call(*planned(b | {"steps": 0}))
    b["swept"] = [False] * len(a["free"])
    return total(b)


@methods
@pytest.mark.parametrize("threads", [1, 2])
@skipping
def test_samples_do_not_interact(method, skips, threads):
    """To the last bit, and in any number, whatever tiles and threads there are."""
    method = replace(method, tol=1e-2)
    for dtype in (torch.float32, torch.float64):
        a = problem((7, 33, 33, 5), 131, "tanh", covariances="one", prior="batch", clamped=(-1,), dtype=dtype)
        a = with_skips(a) if skips else a
        rows = [(0, 1), (1, 4), (4, 9), (9, 41), (41, 131)]
        parts = [
            {k: to(x) for k, x in a.items()} | {"states": [z[i:j].clone() for z in a["states"]],
                                                "prior": a["prior"][i:j].clone()}
            for i, j in rows
        ]  # fmt: skip
        was = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            whole = run(a, method, 30)
            found = [run(part, method, 30) for part in parts]
        finally:
            torch.set_num_threads(was)
        for i, z in enumerate(a["states"]):
            assert same_bits(z, torch.cat([part["states"][i] for part in parts]))
        assert same_bits(whole[0], torch.cat([taken for taken, _ in found]))
        assert same_bits(whole[1], torch.cat([stopped for _, stopped in found]))


@pytest.mark.parametrize("method", [m for m in METHODS.values() if m.lr], ids=[k for k, m in METHODS.items() if m.lr])
@pytest.mark.parametrize("batch", [1, 3, 40])
@skipping
def test_rates_are_those_of_nesterov(method, skips, batch):
    """By the formulas, written out."""
    a = problem(LEVEL if skips else CHAIN, batch, "tanh", covariances="one", prior="batch", clamped=(-1,))
    a = with_skips(a) if skips else a
    expected = {k: to(x) for k, x in a.items()}
    nesterov(expected, method)
    run(a, method, STEPS)
    for x, y in zip(a["states"], expected["states"], strict=True):
        assert_near(x, y, 1000)


def nesterov(a, method):
    """Take the steps, and set the states."""
    x = [z.clone() for z in a["states"]]
    if method.errors:
        x = [z - mu for z, mu in zip(a["states"], predictions(a, a["states"]), strict=True)]
    v, t = [z.clone() for z in x], torch.ones(len(x[0]), 1, dtype=x[0].dtype)
    for _ in range(STEPS):
        point = [z.clone().requires_grad_() for z in v]
        states = risen(a, point) if method.errors else [
            p if free else z for p, z, free in zip(point, a["states"], a["free"], strict=True)
        ]  # fmt: skip
        grads = torch.autograd.grad(torch.stack(energies(a | {"states": states})).sum(), point, allow_unused=True)
        grads = [
            torch.zeros_like(z) if g is None or not free else g for g, z, free in zip(grads, v, a["free"], strict=True)
        ]
        new = [z - method.lr * g for z, g in zip(v, grads, strict=True)]
        blend = method.momentum
        if blend is None:
            up = sum((g * (n - o)).sum(1, keepdim=True) for g, n, o in zip(grads, new, x, strict=True)) > 0
            t = torch.where(up, torch.ones_like(t), t)
            following = (1 + torch.sqrt(1 + 4 * t * t)) / 2
            blend, t = (t - 1) / following, following
        v = [n + blend * (n - o) for n, o in zip(new, x, strict=True)]
        x = new
    last = risen(a, x) if method.errors else x
    a["states"] = [z if free else s for z, s, free in zip(last, a["states"], a["free"], strict=True)]


def predictions(a, states):
    """Of all nodes; 0 of one that nothing predicts."""
    shifted = a | {"states": states, "precisions": [None] * len(states), "scales": [1.0] * len(states)}
    inner = [z.detach().clone() for z in states]
    found = [a["prior"].expand_as(inner[0]) if a["predicted"][0] else torch.zeros_like(inner[0])]
    for i in range(1, len(inner)):
        probe = [z.clone() for z in inner]
        probe[i].requires_grad_()
        (g,) = torch.autograd.grad(energies(shifted | {"states": probe})[i].sum(), [probe[i]])
        found.append(inner[i] - g)
    return found


def risen(a, errors):
    """The states whose errors these are, from the first on; differentiable."""
    states = []
    for i, error in enumerate(errors):
        if not a["free"][i]:
            states.append(a["states"][i])
            continue
        mu = predicted(a, states, i)
        states.append(mu + error)
    return states


def predicted(a, states, i):
    from chains import FUNCTIONS
    from pyromancy.plan import activations

    if i == 0:
        return a["prior"] if a["predicted"][0] else 0.0
    names = [*activations.ACTIVATIONS]
    before, after = (
        lambda x, k=k, p=p: FUNCTIONS[names[k]][0](x, p)
        for k, p in zip(a["activations"][2 * i - 2 : 2 * i], a["parameters"][2 * i - 2 : 2 * i], strict=True)
    )
    product = torch.nn.functional.linear(before(states[i - 1]), a["weights"][i - 1], a["biases"][i - 1])
    skip = a["forms"][i - 1][3:] if "forms" in a else ()
    return after(product + skip[0] * states[i - 1] if skip else product)


@methods
def test_energies_are_recorded(method):
    a = problem(CHAIN, SOME, "tanh", covariances="one", prior="one", clamped=(-1,))
    at_first = torch.stack(energies(a))
    a["energies"] = torch.full((STEPS, len(CHAIN), SOME), float("nan"), dtype=torch.float64)
    b = {k: to(x) for k, x in a.items()} | {"energies": None}
    run(a, method, STEPS)
    run(b, method, STEPS)
    assert_near(a["energies"][0], at_first, 1000)
    assert a["energies"].isfinite().all()
    assert all(same_bits(x, y) for x, y in zip(a["states"], b["states"], strict=True))


@methods
@pytest.mark.parametrize("batch", [3, 40])
@pytest.mark.parametrize("after", ["identity", "tanh"])
@skipping
def test_parameters_learn_from_the_states_that_it_ends_in(method, skips, after, batch):
    """As they do from the same states in a plan of their own."""
    widths = LEVEL if skips else CHAIN
    a = problem(widths, batch, "tanh", after, covariances="one", prior="one", clamped=(-1,))
    a = with_skips(a) if skips else a
    a["thetas"] = thetas(a)
    laws = [Law.GAUSSIAN, Law.LAPLACE, Law.GAUSSIAN, Law.GAUSSIAN, Law.LAPLACE]
    a["laws"] = laws if method.lr else [Law.GAUSSIAN] * len(laws)
    parameters = [
        *((Learned.WEIGHT, i, t) for i, t in enumerate(a["weights"])),
        *((Learned.BIAS, i, t) for i, t in enumerate(a["biases"])),
        *((Learned.LOGVAR, i, t) for i, t in enumerate(a["thetas"]) if t is not None),
    ]

    def wanted():
        return [(what, i, 0, torch.empty_like(t), ()) for what, i, t in parameters]

    found, expected, learns = wanted(), wanted(), {"learning": Learning.AT_THE_END, "rules": (Rule(),)}
    run(a, method, STEPS, found, **learns)
    call(*planned(a | {"steps": 0, "velocities": []}, expected, **learns))
    for (*_, g, _), (*_, e, _) in zip(found, expected, strict=True):
        assert_near(g, e, 1000)


@methods
def test_states_that_are_not_finite_do_not_stop(method):
    a = problem(CHAIN, 3, "tanh")
    a["states"][0][1] = float("nan")
    _, stopped = run(a, replace(method, tol=1e-2), 500)
    others = float(method.errors or not method.lr)  # of states that momentum carries nothing tells their end
    assert stopped.tolist() == [others, 0.0, others]
    assert all(z[0].isfinite().all() and z[2].isfinite().all() for z in a["states"])


def test_a_step_into_what_is_not_finite_is_taken_back():
    """Where products overflow: the sample goes nearer, and comes to its equilibrium."""
    a = problem((3, 8, 8, 2), 5, "softplus", dtype=torch.float32)
    a["parameters"] = [1.0] * 6
    a["states"][-1] *= 1e17
    before = total({k: to(x, torch.float64) for k, x in a.items()})
    run(a, Accelerated(), 40)
    assert all(z.isfinite().all() for z in a["states"])
    assert (total({k: to(x, torch.float64) for k, x in a.items()}) < before).all()


@methods
def test_what_is_at_its_end_already_stays(method):
    """Where everything is predicted exactly, no sample moves by a bit, and all stop at once."""
    a = problem(CHAIN, 5, "tanh", clamped=(0,))
    a["swept"] = [False, True, True, True, True]
    call(*planned(a | {"steps": 0}))
    before = [z.clone() for z in a["states"]]
    taken, stopped = run(a, replace(method, tol=1e-3), 50)
    assert stopped.all()
    assert (taken == 1).all()
    assert all(same_bits(x, y) for x, y in zip(a["states"], before, strict=True))


def test_steps_of_zero_take_none():
    a = problem(CHAIN, 5, "tanh")
    before = [z.clone() for z in a["states"]]
    taken, stopped = run(a, Accelerated(), 0)
    assert all(same_bits(x, y) for x, y in zip(a["states"], before, strict=True))
    assert taken.tolist() == stopped.tolist() == [0.0] * 5


@pytest.mark.parametrize("method", [m for m in METHODS.values() if m.errors], ids=repr)
@pytest.mark.parametrize("after", ["identity", "tanh"])
def test_where_no_target_feeds_back_it_stops_within_the_tolerance(method, after):
    """The energy is |e|^2 / 2 of free errors, 0 at its least; what the dual has beside that is nothing but rounding."""
    a = problem((8, 5, 10), 33, after=after, clamped=(0,), covariances="one")
    first = total(a)
    _, stopped = run(a, replace(method, tol=1e-2), MANY)
    assert stopped.all()
    assert (total(a) <= 1e-2 * (first - total(a)) + 1e-12).all()


def test_no_bound_where_an_error_has_no_weight():
    """A free node of weight 0 for one sample has no curvature of its own there, by which the gradient could tell."""
    a = problem((3, 4, 2), 8, "tanh", clamped=(0, -1))
    a["sample_weights"] = [None, torch.ones(8, dtype=torch.float64), None]
    a["sample_weights"][1][2] = 0.0
    a["weights"][1] *= 0.01
    first = total(a)
    best = {k: to(x) for k, x in a.items()}
    run(best, Accelerated(), 5000)
    _, stopped = run(a, Accelerated(tol=0.5), 3)
    left, fallen = total(a) - total(best), first - total(a)
    assert (left[stopped.bool()] <= 0.5 * fallen[stopped.bool()]).all()
    assert stopped[2] == 0


@pytest.mark.parametrize("errors", [True, False], ids=["errors", "states"])
@pytest.mark.parametrize("tol", [0.0, 1e-3])
def test_a_plateau_above_is_no_end(errors, tol):
    """A step of a state that nothing predicts may end where ReLU is flat: no gradient there, and a higher energy."""
    a = problem((1, 1), 64, "relu", clamped=(1,), biases=False)
    a["weights"][0].fill_(3.0)
    a["states"][0].copy_(torch.linspace(0.01, 2.0, 64)[:, None])
    a["states"][1].copy_(torch.linspace(0.1, 0.2, 64)[:, None])
    before = total(a)
    run(a, Accelerated(errors=errors, tol=tol), 30)
    assert (total(a) <= before).all()
    assert (total(a) < 1e-2 * before.max()).all()


def test_a_trial_that_overflows_is_taken_back():
    """Its gradient is not finite, and so not a number times 0: the sample goes on from where it was."""
    a = problem((1, 1, 1), 2, after="softplus", biases=False, dtype=torch.float32)
    a["parameters"] = [0.0, 1.0] * 2
    for w, x in zip(a["weights"], (1e19, 1e19), strict=True):
        w.fill_(x)
    for z, x in zip(a["states"], ([0.0, 0.0], [-1.0, 0.1], [0.0, 0.0]), strict=True):
        z.copy_(torch.tensor(x)[:, None])
    before = total({k: to(x, torch.float64) for k, x in a.items()})
    run(a, Accelerated(errors=False), 20)
    assert all(z.isfinite().all() for z in a["states"])
    assert (total({k: to(x, torch.float64) for k, x in a.items()}) <= before * (1 + 1e-6)).all()


def test_what_it_cannot_do_is_refused():
    a = problem(CHAIN, 5)
    made, operands = planned(a, method=Accelerated())

    def refused(message, **changes):
        changed = replace(made, **changes)
        with pytest.raises(RuntimeError, match=re.escape(message)):
            call(changed, operands)

    refused("must not be negative", method=Accelerated(lr=-1.0))
    refused("must not be negative", method=Accelerated(tol=-1.0))
    refused("needs plain descent", edges=(*made.edges[:-1], replace(made.edges[-1], gram=True)))
    gradient = torch.empty_like(a["weights"][0])
    target = [(Learned.WEIGHT, 0, 0, gradient, ())]
    for when in (Learning.AFTER_EACH_STEP, Learning.WITH_EACH_STEP):
        with pytest.raises(RuntimeError, match=re.escape("must learn at the end")):
            call(*planned(a, target, Accelerated(), learning=when, rules=(Rule(RuleKind.GRADIENT),)))
    with pytest.raises(RuntimeError, match=re.escape("outcome must have shape (5, 2)")):
        call(*planned(a, (), Accelerated(), torch.empty(4, 2, dtype=torch.float64)))
    assert isinstance(made.edges[0], Edge)
    assert made.nodes[1].law is Law.GAUSSIAN
    assert plan.decode(*plan.encode(made)) == made
