"""Steppers in `run_plan_`: what they compute, where they end, and that samples do not interact."""

import re
from dataclasses import replace

import pytest
import torch

from chains import SOME, STEPS, call, energies, planned, problem, thetas, to, with_laws, with_skips
from networks import covariance_of
from numerics import assert_near, same_bits
from pyromancy import plan
from pyromancy.methods import noise
from pyromancy.plan import (
    LBFGS,
    Adam,
    Edge,
    Heun,
    Langevin,
    Law,
    Learned,
    Learning,
    Momentum,
    Nesterov,
    QuasiNewton,
    Rule,
    RuleKind,
    Sequential,
)

pytestmark = pytest.mark.usefixtures("native_backend")  # the only one that takes them

MANY = 400
CHAIN = (5, 40, 33, 17, 3)
LEVEL = (5, 17, 17, 17, 3)  # for skips
ACCELERATED = {
    "errors": QuasiNewton(),
    "states": QuasiNewton(errors=False),
    "LBFGS": LBFGS(),
    "LBFGS-states": LBFGS(memory=3.0, errors=False),
    "errors-at-a-rate": Nesterov(lr=0.05, restarts=True),
    "errors-momentum": Nesterov(lr=0.05, momentum=0.5),
    "states-at-a-rate": Nesterov(lr=0.05, restarts=True, errors=False),
}
CONVERGENT = ACCELERATED | {
    "descent": Momentum(lr=0.05),
    "SGD": Momentum(lr=0.02, momentum=0.8, dampening=0.3),
    "SGD-states": Momentum(lr=0.02, momentum=0.8, nesterov=True, errors=False),
    "Heun": Heun(lr=0.05),
    "Heun-states": Heun(lr=0.05, errors=False),
    "sequential": Sequential(lr=0.05, errors=False),
}
METHODS = CONVERGENT | {
    "Heun-adaptive": Heun(lr=0.05, adaptive=True, rtol=1e-3, atol=1e-3),
    "Heun-adaptive-states": Heun(lr=5.0, adaptive=True, rtol=1e-2, atol=1e-3, errors=False),
    "Adam": Adam(lr=0.02),
    "Adam-states": Adam(lr=0.02, first=0.5, second=0.8, epsilon=1e-3, errors=False),
}
DRAWING = {
    "Langevin": Langevin(lr=0.02, temperature=0.5, seed=2**53 - 5),
    "Langevin-states": Langevin(lr=0.02, seed=20, errors=False),
}


def each(of):
    return pytest.mark.parametrize("method", of.values(), ids=of)


methods = each(METHODS)
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
    """Its outcome: the steps of every sample, and whether it stopped by itself."""
    outcome = torch.full((len(a["states"][0]), 2), float("nan"), dtype=a["states"][0].dtype)
    goes_on = a | {"steps": steps} if "progress" in a else a | {"steps": steps, "velocities": []}
    call(*planned(goes_on, targets, method, outcome, **options))
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
        run(a, QuasiNewton(errors=errors), 3000 if errors else 30000)
        assert (total(a) <= before).all()
        assert all(g.abs().max() < 1e-5 for g in gradients(a))


@each(CONVERGENT)
def test_a_linear_chain_ends_at_its_one_equilibrium(method):
    a = problem(CHAIN, 7)
    b = {k: to(x) for k, x in a.items()}
    run(a, method, 4000)
    run(b, QuasiNewton(errors=not method.errors), 4000)
    assert all(torch.allclose(x, y, atol=1e-8) for x, y in zip(a["states"], b["states"], strict=True))


@pytest.mark.parametrize("kind", ["plain", "one-variance"])
@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-4])
def test_what_stops_is_within_the_tolerance(tol, kind):
    """Nearly always: the bound is one, in a linear network, but a sample that gains nothing for long stops too."""
    options = {k: x for k, x in OPTIONS[kind].items() if k != "after"}
    a = problem(CHAIN, 65, **options)
    first = problem_after_sweep(a)
    best = {k: to(x) for k, x in a.items()}
    run(best, QuasiNewton(), 4000)
    taken, stopped = run(a, QuasiNewton(tol=tol), 4000)
    assert stopped.all()
    assert (taken < 200).all()
    share = (total(a) - total(best) - 1e-10) / (first - total(a))
    assert (share > tol).sum() <= 2
    assert (share <= 2 * tol).all()


@pytest.mark.parametrize("kind", ["plain", "one-variance", "covariances-of-data"])
@each({k: m for k, m in CONVERGENT.items() if not m.errors} | {"momentum-states": Momentum(lr=0.05, errors=False)})
def test_what_stops_on_states_is_within_the_tolerance(method, kind):
    """By the same bound, found in every fifth step: that of the errors of the states."""
    if kind == "covariances-of-data":
        a = problem(CHAIN, 65)
        a["precisions"][-1] = covariance_of(CHAIN[-1])
    else:
        a = problem(CHAIN, 65, **{k: x for k, x in OPTIONS[kind].items() if k != "after"})
    first = problem_after_sweep(a)
    best = {k: to(x) for k, x in a.items()}
    run(best, QuasiNewton(), 4000)
    taken, stopped = run(a, replace(method, tol=1e-2), 4000)
    assert stopped.all()
    share = (total(a) - total(best) - 1e-10) / (first - total(a))
    swings = isinstance(method, Nesterov) or (isinstance(method, Momentum) and method.momentum)
    assert (share <= (1e-2 if swings else 1e-1)).all()  # gains certify nothing, least of all where steps are small
    assert not swings or (taken % 5 == 1).all()


SMOOTH = (Law.BERNOULLI, Law.POISSON, Law.HUBER)  # and convex; a Laplace node's kinks leave it to gains when to stop


def with_data(a, law):
    """A problem of Gaussian nodes whose last one is clamped to what a law is for, a little of it far away."""
    a = with_laws(a, [*[Law.GAUSSIAN] * (len(a["states"]) - 1), law])
    z = a["states"][-1]
    data = {Law.BERNOULLI: (z > 0).double(), Law.POISSON: (3 * z.abs()).floor()}
    z.copy_(data.get(law, torch.where(z > 1, 20 * z, z)))
    return a


@pytest.mark.parametrize("law", SMOOTH, ids=lambda law: law.name.lower())
@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-3])
def test_what_stops_by_the_bound_of_a_convex_law_is_within_the_tolerance(tol, law):
    """The energy of Gaussian errors has at least their curvature, whatever is convex beside it."""
    a = with_data(problem(CHAIN, 65, covariances="one", prior="one", clamped=(-1,)), law)
    first = problem_after_sweep(a)
    best = {k: to(x) for k, x in a.items()}
    run(best, QuasiNewton(), 4000)
    taken, stopped = run(a, QuasiNewton(tol=tol), 4000)
    share = (total(a) - total(best) - 1e-10) / (first - total(a))
    assert stopped.all()
    assert (share > tol).sum() <= 2  # which have gained nothing for long
    assert taken.median() < 30


@pytest.mark.parametrize("errors", [True, False], ids=["errors", "states"])
@pytest.mark.parametrize(
    "laws",
    [
        [Law.STUDENT, Law.GAUSSIAN, Law.GAUSSIAN, Law.GAUSSIAN, Law.BERNOULLI],
        [Law.GAUSSIAN, Law.GAUSSIAN, Law.HUBER, Law.GAUSSIAN, Law.POISSON],
        [Law.GAUSSIAN, Law.STUDENT, Law.GAUSSIAN, Law.GAUSSIAN, Law.STUDENT],
        [Law.GAUSSIAN, Law.GAUSSIAN, Law.GAUSSIAN, Law.GAUSSIAN, Law.HUBER],
    ],
    ids=lambda laws: "-".join(law.name.lower() for law in laws if law is not Law.GAUSSIAN),
)
def test_smooth_laws_end_where_the_gradient_is_zero(laws, errors):
    a = problem(CHAIN, 7, "tanh", covariances="one", scales=True, prior="one", clamped=(-1,))
    a = with_laws(a, laws)
    if laws[-1] in (Law.BERNOULLI, Law.POISSON):
        a["states"][-1].copy_(a["states"][-1].abs().clamp(max=1))
    before = total(a)
    run(a, QuasiNewton(errors=errors), 30000)
    assert (total(a) <= before).all()
    assert all(g.abs().max() < 1e-5 for g in gradients(a))


def test_errors_of_a_free_state_that_has_none_are_refused():
    a = with_laws(problem(CHAIN, 3), [Law.GAUSSIAN, Law.POISSON, *[Law.GAUSSIAN] * 3])
    with pytest.raises(RuntimeError, match="errors move where the law of a free node is one of its distance"):
        run(a, QuasiNewton(), 3)
    run(a, QuasiNewton(errors=False), 3)


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


@each({k: m for k, m in METHODS.items() if isinstance(m, Nesterov)})
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
    x = variables(a, method)
    v, t = [z.clone() for z in x], torch.ones(len(x[0]), 1, dtype=x[0].dtype)
    for _ in range(STEPS):
        grads = slopes(a, method, v)
        new = [z - method.lr * g for z, g in zip(v, grads, strict=True)]
        blend = method.momentum
        if method.restarts:
            up = sum((g * (n - o)).sum(1, keepdim=True) for g, n, o in zip(grads, new, x, strict=True)) > 0
            t = torch.where(up, torch.ones_like(t), t)
            following = (1 + torch.sqrt(1 + 4 * t * t)) / 2
            blend, t = (t - 1) / following, following
        v = [n + blend * (n - o) for n, o in zip(new, x, strict=True)]
        x = new
    settle(a, method, x)


def variables(a, method):
    """States, or errors, of all nodes: what moves."""
    if not method.errors:
        return [z.clone() for z in a["states"]]
    return [z - mu for z, mu in zip(a["states"], predictions(a, a["states"]), strict=True)]


def slopes(a, method, at):
    """The energy's gradient for what moves, by autograd; 0 for what is clamped."""
    point = [z.detach().clone().requires_grad_() for z in at]
    states = risen(a, point) if method.errors else [
        p if free else z for p, z, free in zip(point, a["states"], a["free"], strict=True)
    ]  # fmt: skip
    grads = torch.autograd.grad(torch.stack(energies(a | {"states": states})).sum(), point, allow_unused=True)
    return [
        torch.zeros_like(z) if g is None or not free else g for g, z, free in zip(grads, at, a["free"], strict=True)
    ]


def settle(a, method, x):
    """Set the states by what has moved."""
    last = risen(a, x) if method.errors else x
    a["states"] = [z.detach() if free else s for z, s, free in zip(last, a["states"], a["free"], strict=True)]


def sized(kinds):
    """Problems of three sizes of batch, each for another kind of tile, of a method of these kinds."""
    of = {k: m for k, m in (METHODS | DRAWING).items() if isinstance(m, kinds)}
    return lambda test: each(of)(pytest.mark.parametrize("batch", [1, 3, 7, 40])(test))


def moved_alike(method, batch, move):
    """The plan's states are those after steps that move(x, gradient, step) takes."""
    a = problem(CHAIN, batch, "tanh", covariances="one", prior="batch", clamped=(-1,))
    expected = {k: to(x) for k, x in a.items()}
    x = variables(expected, method)
    for step in range(STEPS):
        x = move(x, lambda at: slopes(expected, method, at), step)
    settle(expected, method, x)
    run(a, method, STEPS)
    for found, z in zip(a["states"], expected["states"], strict=True):
        assert_near(found, z, 1000)


@sized(Momentum | Adam)
def test_optimizers_are_those_of_torch(method, batch):
    optimizers = {}

    def move(x, gradient, step):
        if step == 0:
            optimizers["x"] = [z.clone().requires_grad_() for z in x]
            of = optimizers["x"]
            optimizers["it"] = (
                torch.optim.SGD(of, method.lr, method.momentum, method.dampening, nesterov=method.nesterov)
                if isinstance(method, Momentum)
                else torch.optim.Adam(of, method.lr, (method.first, method.second), method.epsilon)
            )
        for z, g in zip(optimizers["x"], gradient(optimizers["x"]), strict=True):
            z.grad = g
        optimizers["it"].step()
        return [z.detach() for z in optimizers["x"]]

    moved_alike(method, batch, move)


@sized(Heun)
def test_heun_is_as_it_is_written(method, batch):
    """Where it adapts, by the sample's own difference of Euler's step and its own, over all that moves."""
    length = {}

    def move(x, gradient, step):
        h = length.setdefault("h", torch.full((batch, 1), method.lr, dtype=x[0].dtype))
        first = gradient(x)
        euler = [z - h * g for z, g in zip(x, first, strict=True)]
        end = [z - h / 2 * (g + k) for z, g, k in zip(x, first, gradient(euler), strict=True)]
        if not method.adaptive:
            return end
        # all nodes but the last one, which is clamped
        of = [
            (e - f) / (method.atol + method.rtol * torch.maximum(z.abs(), e.abs()))
            for z, f, e in [*zip(x, euler, end, strict=True)][:-1]
        ]
        difference = torch.cat(of, 1).square().mean(1, keepdim=True).sqrt()
        length["h"] = h * (0.9 / difference.sqrt()).clamp(0.2, 5.0)
        return [torch.where(difference <= 1, e, z) for z, e in zip(x, end, strict=True)]

    moved_alike(method, batch, move)


@sized(Langevin)
def test_langevin_draws_by_seed_sample_node_element_and_step(method, batch):
    seed = torch.full((batch,), int(method.seed))

    def move(x, gradient, step):
        scale = (2 * method.lr * method.temperature) ** 0.5
        drawn = [noise.normal(seed, torch.full_like(seed, step), i, z) for i, z in enumerate(x[:-1])]
        return [z - method.lr * g + scale * d for z, g, d in zip(x, gradient(x), [*drawn, 0.0], strict=True)]

    moved_alike(method, batch, move)


@each(METHODS | DRAWING)
@pytest.mark.parametrize("batch", [1, 3, 7, 40])
@pytest.mark.parametrize("tol", [0.0, 1e-3])
def test_another_call_goes_on(method, batch, tol):
    """From a progress, velocities and what is kept; a sample that has stopped aside."""
    method = replace(method, tol=tol if method.errors and method in CONVERGENT.values() else 0.0)
    a = problem(CHAIN, batch, "tanh", covariances="one", prior="batch", clamped=(-1,))
    b = {k: to(x) for k, x in a.items()}
    left = {k: to(x) for k, x in a.items()}
    _, stopped = run(left, method, 5)
    taken, _ = run(a, method, 12)
    b["progress"] = torch.full((batch, plan.PROGRESS), float("nan"), dtype=torch.float64)
    b["velocities"] = [torch.full_like(z, float("nan")) for z in b["states"]]
    b["kept"] = [z.new_full(method.vectors + z.shape, float("nan")) for z in b["states"]] if method.KEEPS else None
    first, _ = run(b, method, 5)
    second, _ = run(b, replace(method, resume=True), 7)
    goes_on = stopped == 0
    assert same_bits(taken[goes_on], (first + second)[goes_on])
    for x, y in zip(a["states"], b["states"], strict=True):
        torch.testing.assert_close(x[goes_on], y[goes_on], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("free", [2, 3, 4])
@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("order", [plan.UpdateOrder.ALTERNATE, plan.UpdateOrder.ONE_BY_ONE])
def test_states_are_updated_in_order(order, batch, free):
    """By their gradients at the states that those before them have come to."""
    a = problem((3, 9, 17, 4, 6, 2)[: free + 2], batch, "tanh", "softplus", covariances=True, record=True)
    expected = [z.clone() for z in a["states"]]
    for step in range(STEPS):
        recorded = torch.stack(energies(a | {"states": expected}))
        groups = [[*range(1, free + 1, 2)], [*range(2, free + 1, 2)]]
        if order is plan.UpdateOrder.ONE_BY_ONE:
            groups = [[free - 1 - step]] if free - 1 - step >= 1 else []
        for group in groups:
            g = dict(zip(range(1, free + 1), gradients(a | {"states": expected}), strict=True))
            expected = [z - 0.05 * g[i] if i in group else z for i, z in enumerate(expected)]
        if step == 0:
            first = recorded
    call(*planned(a, method=plan.Descent(0.05, update_order=order, first=int(order is plan.UpdateOrder.ONE_BY_ONE))))
    assert_near(a["energies"][0], first, 1000)
    assert_near(a["energies"][-1], recorded, 1000)
    for x, y in zip(a["states"], expected, strict=True):
        assert_near(x, y, 1000)


FIXED = plan.Descent(0.05, fixed=True)


def fixed_slopes(a, base):
    """For the free states, of energies with their predictions at others, by autograd: of states, and of those."""
    z, at = ([x.detach().clone().requires_grad_() for x in of] for of in (a["states"], base))
    mixed = [[*z[: i - 1], at[i - 1], *z[i:]] if i else z for i in range(len(z))]
    total = sum(energies(a | {"states": states})[i].sum() for i, states in enumerate(mixed))
    pull, back = (torch.autograd.grad(total, of, retain_graph=True, materialize_grads=True) for of in (z, at))
    return [p + b for p, b, free in zip(pull, back, a["free"], strict=True) if free]


@pytest.mark.parametrize("laws", [False, True], ids=["gaussian", "laws"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("batch", [1, 3, 40])
@skipping
def test_predictions_are_fixed(skips, batch, options, laws):
    """And so are their derivatives; in one call, and in another that goes on from states that the first one keeps."""
    a = problem(LEVEL if skips else CHAIN, batch, **options)
    a = with_skips(a) if skips else a
    if laws:
        a["precisions"] = [None if p is None or p.dim() > 1 else p for p in a["precisions"]]
        a = with_laws(a, [Law.LAPLACE, Law.GAUSSIAN, Law.STUDENT, Law.POISSON, Law.HUBER])
    a["sample_weights"] = [None, *(torch.rand(batch, dtype=torch.float64) for _ in CHAIN[1:])]
    base, parts = [x.clone() for x in a["states"]], {k: to(x) for k, x in a.items()}
    parts["kept"] = [torch.full_like(z, float("nan")) for z in parts["states"]]
    run(a, FIXED, STEPS)
    for resume, steps in ((False, 2), (True, STEPS - 2)):
        call(*planned(parts | {"steps": steps}, method=replace(FIXED, resume=resume)))
    expected = parts | {"states": [x.clone() for x in base]}
    for _ in range(STEPS):
        moves = iter(fixed_slopes(expected, base))
        expected["states"] = [
            z - FIXED.lr * next(moves) if free else z for z, free in zip(expected["states"], a["free"], strict=True)
        ]
    for x, y, z, first, kept, free in zip(
        a["states"], parts["states"], expected["states"], base, parts["kept"], a["free"], strict=True
    ):
        assert_near(x, z, 1000)
        assert same_bits(x, y)
        assert not free or same_bits(kept, first)


@pytest.mark.parametrize("batch", [1, 40])
@pytest.mark.parametrize("after", ["identity", "tanh"])
@pytest.mark.parametrize("before", ["identity", "gelu"])
@pytest.mark.parametrize("transposed", [False, True], ids=["straight", "transposed"])
def test_a_sweep_and_fixed_predictions_learn_as_backpropagation(transposed, before, after, batch):
    """At a rate of 1, after a step for every free node: all weights, biases and the last node's variance."""
    a = problem(CHAIN, batch, before, after)
    a["precisions"][-1] = torch.rand(CHAIN[-1], dtype=torch.float64) + 0.5
    a["thetas"] = thetas(a)
    if transposed:
        a["forms"] = [(True, 1.0, 1.0)] * len(a["weights"])
        a["weights"] = [w.T.contiguous() for w in a["weights"]]
    learned = [*((Learned.WEIGHT, i, w) for i, w in enumerate(a["weights"])),
               *((Learned.BIAS, i, b) for i, b in enumerate(a["biases"])),
               (Learned.LOGVAR, len(CHAIN) - 1, a["thetas"][-1])]  # fmt: skip
    leaves = [t.detach().clone().requires_grad_() for *_, t in learned]
    count = len(a["weights"])
    twin = a | {"weights": [w.T if transposed else w for w in leaves[:count]], "biases": leaves[count:-1]}
    z = a["states"][0]
    for i in range(1, len(CHAIN)):
        z = predicted(twin | {"forms": [(False, 1.0, 1.0)] * count}, [z] * i, i)
    off = a["states"][-1] - z
    loss = 0.5 * (off.square() * torch.exp(-leaves[-1]) + leaves[-1]).sum(1).mean()
    expected = torch.autograd.grad(loss, leaves)
    found = [(what, i, 0, torch.full_like(t, float("nan")), ()) for what, i, t in learned]
    a["swept"] = a["free"]
    a["velocities"] = []
    method = plan.Descent(1.0, fixed=True)
    call(*planned(a | {"steps": count}, found, method, learning=Learning.AT_THE_END, rules=(Rule(),)))
    for (*_, g, _), e in zip(found, expected, strict=True):
        assert_near(g, e, 1000)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_do_not_interact_at_fixed_predictions(dtype, threads):
    a = problem((7, 33, 33, 5), 131, "tanh", "gelu", covariances=True, prior="batch", clamped=(-1,), dtype=dtype)
    rows = [(0, 1), (1, 4), (4, 9), (9, 41), (41, 131)]
    parts = [a | {"states": [z[i:j].clone() for z in a["states"]], "prior": a["prior"][i:j].clone()} for i, j in rows]
    was = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for one in (a, *parts):
            run(one, FIXED, 9)
    finally:
        torch.set_num_threads(was)
    for i, z in enumerate(a["states"]):
        assert same_bits(z, torch.cat([part["states"][i] for part in parts]))


@each(DRAWING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_drawn_does_not_depend_on_the_samples_behind(method, dtype):
    """To the last bit, whatever the kind of tile."""
    a = problem((7, 40, 33, 5), 131, "tanh", clamped=(0, -1), dtype=dtype)
    parts = {n: {k: to(x) for k, x in a.items()} | {"states": [z[:n].clone() for z in a["states"]]} for n in (1, 3, 41)}
    run(a, method, 5)
    for n, part in parts.items():
        run(part, method, 5)
        assert all(same_bits(z, whole[:n]) for z, whole in zip(part["states"], a["states"], strict=True))


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


@each(METHODS | DRAWING)
def test_what_rests_is_recorded_where_it_rests(method):
    """Also where all samples beside it do."""
    method = replace(method, tol=1e-2 if method in CONVERGENT.values() else 0.0)
    a = problem(CHAIN, 40, "tanh", covariances="one", prior="one", clamped=(-1,))
    a["energies"] = torch.full((60, len(CHAIN), 40), float("nan"), dtype=torch.float64)
    taken, stopped = run(a, method, 60)
    assert a["energies"].isfinite().all()
    last = torch.stack(energies(a))
    for i in stopped.nonzero()[:, 0].tolist():
        rest = a["energies"][int(taken[i]) :, :, i]
        assert_near(rest, last[:, i].expand_as(rest), 1000)


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
    a["laws"] = [Law.GAUSSIAN] * len(laws) if isinstance(method, QuasiNewton) else laws
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


@each(ACCELERATED)
def test_states_that_are_not_finite_do_not_stop(method):
    a = problem(CHAIN, 3, "tanh")
    a["states"][0][1] = float("nan")
    _, stopped = run(a, replace(method, tol=1e-2), 500)
    assert stopped.tolist() == [1.0, 0.0, 1.0]
    assert all(z[0].isfinite().all() and z[2].isfinite().all() for z in a["states"])


def test_a_step_into_what_is_not_finite_is_taken_back():
    """Where products overflow: the sample goes nearer, and comes to its equilibrium."""
    a = problem((3, 8, 8, 2), 5, "softplus", dtype=torch.float32)
    a["parameters"] = [1.0] * 6
    a["states"][-1] *= 1e17
    before = total({k: to(x, torch.float64) for k, x in a.items()})
    run(a, QuasiNewton(), 40)
    assert all(z.isfinite().all() for z in a["states"])
    assert (total({k: to(x, torch.float64) for k, x in a.items()}) < before).all()


@each(CONVERGENT)
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
    taken, stopped = run(a, QuasiNewton(), 0)
    assert all(same_bits(x, y) for x, y in zip(a["states"], before, strict=True))
    assert taken.tolist() == stopped.tolist() == [0.0] * 5


@each({k: m for k, m in ACCELERATED.items() if m.errors})
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
    run(best, QuasiNewton(), 5000)
    _, stopped = run(a, QuasiNewton(tol=0.5), 3)
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
    run(a, QuasiNewton(errors=errors, tol=tol), 30)
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
    run(a, QuasiNewton(errors=False), 20)
    assert all(z.isfinite().all() for z in a["states"])
    assert (total({k: to(x, torch.float64) for k, x in a.items()}) <= before * (1 + 1e-6)).all()


def test_what_it_cannot_do_is_refused():
    a = problem(CHAIN, 5)
    made, operands = planned(a, method=QuasiNewton())

    def refused(message, **changes):
        changed = replace(made, **changes)
        with pytest.raises(RuntimeError, match=re.escape(message)):
            call(changed, operands)

    refused("must not be negative", method=Nesterov(lr=-1.0))
    refused("must not be negative", method=QuasiNewton(tol=-1.0))
    for memory in (0.0, 1.5, 33.0):
        refused("memory must be a whole number from 1 to 32", method=LBFGS(memory=memory))
    refused("needs states that move at once", method=replace(FIXED, update_order=plan.UpdateOrder.ALTERNATE))
    refused("needs predictions that move", method=FIXED, edges=(*made.edges[:-1], replace(made.edges[-1], gram=True)))
    refused("resume needs the first states", method=replace(FIXED, resume=True))
    refused("needs plain descent", edges=(*made.edges[:-1], replace(made.edges[-1], gram=True)))
    gradient = torch.empty_like(a["weights"][0])
    target = [(Learned.WEIGHT, 0, 0, gradient, ())]
    for when in (Learning.AFTER_EACH_STEP, Learning.WITH_EACH_STEP):
        with pytest.raises(RuntimeError, match=re.escape("must learn at the end")):
            call(*planned(a, target, QuasiNewton(), learning=when, rules=(Rule(RuleKind.GRADIENT),)))
    with pytest.raises(RuntimeError, match=re.escape("outcome must have shape (5, 2)")):
        call(*planned(a, (), QuasiNewton(), torch.empty(4, 2, dtype=torch.float64)))
    assert isinstance(made.edges[0], Edge)
    assert made.nodes[1].law is Law.GAUSSIAN
    assert plan.decode(*plan.encode(made)) == made
