"""What only some backends take of a plan yet: sweeps, rules of learning and when they apply, batches in an order.

The kernels for GPUs run this, too, where PYROMANCY_EMULATED_LIBRARY says that they are compiled for the CPU: see
tests/cuda.
"""

import os
import random
from dataclasses import replace

import pytest
import torch

from chains import (
    ELEMENTWISE,
    FUNCTIONS,
    call,
    check_exactly,
    energies,
    everything_learned,
    exact_problem,
    joined,
    planned,
    problem,
    run_plan_,
    to,
    with_laws,
    with_skips,
    with_weights_and_scales,
)
from kernels import EMULATED, running
from networks import covariance_of
from numerics import FLOATS, assert_near, name, same_bits, saying
from pyromancy import backends, plan
from pyromancy.ops import run_plan as definition
from pyromancy.plan import Law, Learned, Learning, Rule, RuleKind

KERNELS = ["emulated"] if EMULATED else [b for b in ("native", "triton") if backends.available(b)[0]]
INTERPRETED = "triton" in KERNELS
COMPLETE = KERNELS if EMULATED else [*KERNELS, "reference"]
# Where one kernel takes all steps, it adds up products as that suits their number, or its plans that do not sweep.
ONE_KERNEL = INTERPRETED or (EMULATED and os.environ["PYROMANCY_CUDA_CHAIN"] == "tile")
LAWS = (Law.GAUSSIAN, Law.GAUSSIAN, *ELEMENTWISE)
# what energies have of theta beside their deviation
NORMALIZERS = {Law.GAUSSIAN: 0.5, Law.LAPLACE: 1.0, Law.STUDENT: 1.0}
SMOOTH = ("identity", "silu", "gelu", "gelu_tanh", "tanh", "sigmoid", "softplus")
# of five predictions; the first network fits a cache
DEEP = [(40, 129, 65, 33, 17, 3)] if EMULATED or INTERPRETED else [(40, 129, 65, 33, 17, 3), (40, 700, 500, 33, 17, 3)]
ROWS = 12 if INTERPRETED else 20  # of an order, in batches of 4
SEEDS, BATCHES = (30, (3,)) if INTERPRETED else (200, (1, 20) if EMULATED else (1, 4, 20, 300))


@pytest.fixture(params=COMPLETE, scope="module")
def complete_backend(request):
    with running(request.param):
        yield


@pytest.fixture(params=KERNELS, scope="module")
def kernels(request):
    with running(request.param):
        yield


def copied(a):
    return {k: to(x) for k, x in a.items()}


def random_problem(seed, laws=LAWS, functions=(*FUNCTIONS,), epsilon=1e-8):
    """A chain with some of these laws and functions, and a plan that does anything to it; `epsilon` is Adam's."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    maybe = lambda *values: draw.choice([None, *values])  # noqa: E731
    widths = [draw.choice([1, 3, 5, 17, 33, 40, 63]) for _ in range(draw.randint(2, 6))]
    if draw.random() < 0.5:  # for skips
        widths = [draw.choice([n, widths[0]]) for n in widths]
    momentum = maybe(None, {"momentum": 0.8, "dampening": 0.3}, {"momentum": 0.8, "nesterov": True})
    a = problem(
        widths, draw.choice([0, 1, 2, 3, 17, 40, 129]), draw.choice(functions),
        draw.choice(["identity", "identity", draw.choice(functions)]), prior=maybe("one", "batch"),
        clamped=draw.choice([(0, -1), (0,), (-1,), (), (0, 2, -1)]), scales=draw.random() < 0.5,
        momentum=momentum, record=draw.random() < 0.3,
    )  # fmt: skip
    a["steps"] = a["energies"].shape[0] if a["energies"] is not None else draw.choice([0, 1, 2, 3, 6])
    a["swept"] = [draw.random() < 0.5 and free and made for free, made in zip(a["free"], a["predicted"], strict=True)]
    kinds = [lambda n: None, lambda n: 0.3 * torch.randn(n), lambda n: 0.3 * torch.randn(1), covariance_of]
    a["thetas"] = [draw.choice(kinds)(n) for n in widths]
    batch = len(a["states"][0])
    weighted = draw.random() < 0.4
    a["sample_weights"] = [
        maybe(torch.rand(batch) + 0.1, torch.rand(1).expand(batch)) if weighted and made else None
        for made in a["predicted"]
    ]
    a["forms"] = [
        (draw.random() < 0.5, draw.choice([1.0, -0.7]), draw.choice([1.0, 0.3]))
        if draw.random() < 0.5
        else (False, 1.0, 1.0)
        for _ in widths[1:]
    ]
    if draw.random() < 0.5:
        with_skips(a, *(draw.choice([0.0, 0.4, 1.0]) for _ in widths))
    a["weights"] = [w.T.contiguous() if form[0] else w for w, form in zip(a["weights"], a["forms"], strict=True)]
    a = {k: to(x, torch.float64) for k, x in a.items()}
    matrices = [t is not None and t.dim() == 2 for t in a["thetas"]]
    a = with_laws(a, [Law.FULL_GAUSSIAN if m else draw.choice(laws) for m in matrices])
    if Law.POISSON in a["laws"]:
        a["lr"] *= 0.2  # exp would leave all numbers behind
    if not a["free"][-1] and draw.random() < 0.4:
        a["laws"][-1], a["thetas"][-1], a["activations"][-1] = Law.CATEGORICAL, None, 0
        a["states"][-1] = a["states"][-1].softmax(1)
    diagonal = a["laws"][-1] is Law.GAUSSIAN and a["sample_weights"][-1] is None
    diagonal &= not any(a["forms"][-1][3:])
    if a["free"][-2] and not a["free"][-1] and diagonal and a["energies"] is None and draw.random() < 0.5:
        a["activations"][-1] = 0
        a["grams"][-1] = True
    learning = draw.choice([*Learning])
    if learning is Learning.NEVER:
        return planned(a)
    rule = draw.choice([
        Rule(),
        Rule(RuleKind.SGD, 0.003, draw.choice([0, 0.1]), draw.choice([0, 0.9]), 0.2, fresh=True,
             maximize=draw.random() < 0.5),
        Rule(RuleKind.ADAM, 0.01, draw.choice([0, 0.1]), 0.9, 0.99, epsilon, decoupled=draw.random() < 0.5),
        Rule(RuleKind.RMSPROP, 0.01, draw.choice([0, 0.1]), 0.9, draw.choice([0, 0.8]), max(1e-3, epsilon),
             maximize=draw.random() < 0.5),
    ])  # fmt: skip
    return planned(a, everything_learned(a, rule), learning=learning, rules=(rule,))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("first", range(10))
def test_random_plans_do_what_the_reference_does(first, dtype):
    """In float32 as far as rounding does not decide on which side of a kink a state is, or where Adam goes."""
    rtol, atol, *kind = {torch.float32: (1e-3, 1e-4, (Law.GAUSSIAN,), SMOOTH, 0.1), torch.float64: (1e-9, 1e-10)}[dtype]
    for seed in range(first, SEEDS, 10):
        with saying(f"seed {seed}"):
            made, operands = random_problem(seed, *kind)
            encoded = plan.encode(made)
            found, read = to(operands.written, dtype), to(operands.read, dtype)
            run_plan_(found, read, *encoded)
            definition.run_plan_(operands.written, operands.read, *encoded)
            for f, e in zip(found, operands.written, strict=True):
                torch.testing.assert_close(f.to(e.dtype), e, rtol=rtol, atol=atol, equal_nan=True)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("first", range(10))
def test_float32_is_exact_where_nothing_is_rounded(first):
    """On either side of every kink, and on it; energies and gradients have more digits than states."""
    for seed in range(first, SEEDS, 10):
        draw = random.Random(seed)
        torch.manual_seed(seed)
        widths = [draw.choice([1, 3, 5, 17, 33, 40]) for _ in range(draw.randint(2, 6))]
        a = exact_problem(
            draw, widths, draw.choice([1, 2, 4, 16, 32, 64]),
            prior=draw.choice([None, "one", "batch"]), clamped=draw.choice([(0, -1), (0,), (), (0, 2, -1)]),
            record=draw.random() < 0.3,
            momentum=draw.choice([None, {"momentum": 0.5}, {"momentum": 0.5, "nesterov": True}]),
        )  # fmt: skip
        a["swept"] = [
            draw.random() < 0.5 and free and made for free, made in zip(a["free"], a["predicted"], strict=True)
        ]
        with saying(f"seed {seed}"):
            check_exactly(a)


# states and predictions, of which squares or exponentials are no numbers in float32
EXTREMES = {
    Law.LAPLACE: [(0.0, 1e20), (0.0, -1e30), (0.0, 0.0)],
    Law.BERNOULLI: [(z, mu) for z in (0.0, 1.0, 0.25) for mu in (-1e4, 1e4, 0.0, 100.0, -100.0)],
    Law.STUDENT: [(0.0, 1e20), (0.0, -1e20), (0.0, 1e-20), (0.0, 1.0), (0.0, 0.0), (0.0, -1e30)],
    Law.HUBER: [(0.0, 1e20), (0.0, -1e30), (0.0, 1e-20), (0.0, 0.75), (0.0, 0.0)],
}


@pytest.mark.usefixtures("complete_backend")
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("law", EXTREMES, ids=lambda law: law.name.lower())
def test_energies_and_pulls_of_extreme_inputs(law, dtype):
    """By the formulas in float64: a step of rate 1 leaves what the law pulls with."""
    z, mu = torch.tensor(EXTREMES[law], dtype=torch.float64).T.reshape(2, -1, 1)
    a = with_laws(problem((1,), len(z), prior="batch", clamped=(), record=True), [law])
    z = z.clone().requires_grad_()
    expected = energies(a | {"states": [z], "prior": mu})[0]
    (pull,) = torch.autograd.grad(expected.sum(), z)
    a = {k: to(x, dtype) for k, x in (a | {"states": [z.detach()], "prior": mu, "steps": 1, "lr": 1.0}).items()}
    a["energies"] = a["energies"][:1].clone()
    call(*planned(a))
    tolerances = {torch.float32: {"rtol": 2e-6, "atol": 1e-30}, torch.float64: {"rtol": 1e-14, "atol": 1e-30}}[dtype]
    torch.testing.assert_close(a["energies"][0, 0].double(), expected.detach(), **tolerances)
    torch.testing.assert_close(a["states"][0].double(), z.detach() - pull, **tolerances)


SGD = {
    "plain": {},
    "weight decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "maximize": {"momentum": 0.5, "weight_decay": 0.1, "maximize": True, "lr": 0.001},  # energies grow fast
}
ADAM = {
    "plain": {},
    "betas": {"betas": (0.5, 0.7), "eps": 1e-3},
    "weight decay": {"weight_decay": 0.1},
    "maximize": {"weight_decay": 0.1, "maximize": True},
    "amsgrad": {"amsgrad": True, "betas": (0.5, 0.6), "weight_decay": 0.1},
}
OPTIMIZERS = [(kind, option) for kind, options in (("SGD", SGD), ("Adam", ADAM), ("AdamW", ADAM)) for option in options]


def rule_of(optimizer):
    """The rule of an optimizer of PyTorch's, before its first step."""
    group = optimizer.param_groups[0]
    common = group["lr"], group["weight_decay"]
    if isinstance(optimizer, torch.optim.SGD):
        rest = {"maximize": group["maximize"], "nesterov": group["nesterov"], "fresh": True}
        return Rule(RuleKind.SGD, *common, group["momentum"], group["dampening"], **rest)
    decoupled = isinstance(optimizer, torch.optim.AdamW)
    return Rule(RuleKind.ADAM, *common, *group["betas"], group["eps"], maximize=group["maximize"], decoupled=decoupled)


def learning_problem(batch=17):
    """A chain that has everything to learn, log-variances of both lengths among it."""
    a = problem((5, 33, 7, 3), batch, "tanh", prior="one", scales=True, clamped=(0, -1))
    a["thetas"] = [0.3 * torch.randn(n, dtype=torch.float64) for n in (5, 1, 7, 3)]
    a["precisions"] = a["thetas"]
    return with_weights_and_scales(a) | {"steps": 5}


def optimizer_of(kind, option, a):
    options = (SGD if kind == "SGD" else ADAM)[option]
    parameters = [*a["weights"], *a["biases"], *(t for t in a["thetas"] if t is not None)]
    return getattr(torch.optim, kind)(parameters, **{"lr": 0.03} | options)


def with_slots(a, optimizer):
    """The targets and the rule of an optimizer; the greatest mean squares only where it keeps them."""
    rule = rule_of(optimizer)
    targets = everything_learned(a, rule)
    if rule.kind is RuleKind.ADAM and not optimizer.param_groups[0]["amsgrad"]:
        targets = [(*rest, slots[:3]) for *rest, slots in targets]
    return targets, rule


def free_energies(a):
    """Of every sample, with normalizers: differentiable."""
    rates = [None if t is None else torch.exp(-t) for t in a["thetas"]]
    total = torch.stack(energies(a | {"precisions": rates})).sum(0)
    by_sample = a.get("sample_weights", [None] * len(a["states"]))
    laws = a.get("laws", [Law.GAUSSIAN] * len(by_sample))
    for z, law, theta, scale, weights in zip(a["states"], laws, a["thetas"], a["scales"], by_sample, strict=True):
        if theta is None:
            continue
        normalizer = NORMALIZERS[law] * scale * theta.expand(z.shape[1]).sum()
        total = total + (normalizer if weights is None else weights * normalizer)
    return total


def trained(kind, option, a, learning):
    """What PyTorch's optimizer, and its SGD for the states, make of a chain; also the optimizer."""
    optimizer = optimizer_of(kind, option, a)
    free = [z.requires_grad_() for z, is_free in zip(a["states"], a["free"], strict=True) if is_free]
    parameters = [p.requires_grad_() for group in optimizer.param_groups for p in group["params"]]
    inference = torch.optim.SGD(free, lr=a["lr"])

    def gradients(tensors, of):
        for t, g in zip(tensors, torch.autograd.grad(of, tensors), strict=True):
            t.grad = g

    for step in range(a["steps"]):
        gradients(free, free_energies(a).sum())
        if learning is Learning.WITH_EACH_STEP:
            gradients(parameters, free_energies(a).mean())
        inference.step()
        if learning is Learning.AFTER_EACH_STEP:
            gradients(parameters, free_energies(a).mean())
        if learning is not Learning.AT_THE_END or step == a["steps"] - 1:
            if learning is Learning.AT_THE_END:
                gradients(parameters, free_energies(a).mean())
            optimizer.step()
    return optimizer


@pytest.mark.usefixtures("complete_backend")
class TestRules:
    """Five steps of PyTorch's optimizers, to 1e-10."""

    def compare(self, a, b, targets, optimizer):
        for key in ("states", "weights", "biases", "thetas"):
            for found, exact in zip(a[key], b[key], strict=True):
                if found is None:
                    continue
                torch.testing.assert_close(found, exact.detach(), rtol=1e-10, atol=1e-10)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for (*_, slots), p in zip(targets, parameters, strict=True):
            state = optimizer.state[p]
            if isinstance(optimizer, torch.optim.SGD):
                expected = [state.get("momentum_buffer")]
            else:
                expected = [state[k] for k in ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq") if k in state]
            for slot, exact in zip(slots, expected, strict=True):
                if exact is not None:
                    torch.testing.assert_close(slot, exact, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize(
        "learning", [Learning.WITH_EACH_STEP, Learning.AFTER_EACH_STEP], ids=lambda x: x.name.lower()
    )
    @pytest.mark.parametrize(("kind", "option"), OPTIMIZERS, ids=str)
    def test_in_every_step_of_one_plan(self, kind, option, learning):
        a = learning_problem()
        b = copied(a)
        targets, rule = with_slots(a, optimizer_of(kind, option, a))
        call(*planned(a, targets, learning=learning, rules=(rule,)))
        self.compare(a, b, targets, trained(kind, option, b, learning))

    @pytest.mark.parametrize(("kind", "option"), OPTIMIZERS, ids=str)
    def test_at_the_end_of_five_plans(self, kind, option):
        a = learning_problem() | {"steps": 0}  # what the states are does not change
        b = copied(a)
        targets, rule = with_slots(a, optimizer_of(kind, option, a))
        optimizer = optimizer_of(kind, option, b)
        parameters = [p.requires_grad_() for group in optimizer.param_groups for p in group["params"]]
        for i in range(5):
            rules = (replace(rule, fresh=i == 0),)
            call(*planned(a, targets, learning=Learning.AT_THE_END, rules=rules))
            for p, g in zip(parameters, torch.autograd.grad(free_energies(b).mean(), parameters), strict=True):
                p.grad = g
            optimizer.step()
        self.compare(a, b, targets, optimizer)

    def test_once_after_all_steps(self):
        a = learning_problem()
        b = copied(a)
        targets, rule = with_slots(a, optimizer_of("Adam", "plain", a))
        call(*planned(a, targets, learning=Learning.AT_THE_END, rules=(rule,)))
        self.compare(a, b, targets, trained("Adam", "plain", b, Learning.AT_THE_END))

    @pytest.mark.parametrize("law", sorted({*LAWS}), ids=lambda x: x.name.lower())
    @pytest.mark.parametrize("learning", [*Learning][1:], ids=lambda x: x.name.lower())
    def test_what_nodes_of_a_law_teach(self, learning, law):
        a = with_laws(learning_problem(), [law] * 4)
        b = copied(a)
        targets, rule = with_slots(a, optimizer_of("SGD", "nesterov", a))
        call(*planned(a, targets, learning=learning, rules=(rule,)))
        self.compare(a, b, targets, trained("SGD", "nesterov", b, learning))

    def test_a_rule_for_each_target(self):
        """Some learn at a rate of their own, and the gradients of others are written."""
        a = learning_problem() | {"steps": 0}
        b = copied(a)
        quick, slow = Rule(RuleKind.SGD, 0.1), Rule(RuleKind.SGD, 0.01)
        gradient = torch.empty_like(a["biases"][0])
        targets = [
            (Learned.WEIGHT, 0, 0, a["weights"][0], ()),
            (Learned.WEIGHT, 1, 1, a["weights"][1], ()),
            (Learned.BIAS, 0, 2, gradient, ()),
        ]
        call(*planned(a, targets, learning=Learning.AT_THE_END, rules=(quick, slow, Rule())))
        leaves = [t.requires_grad_() for t in (b["weights"][0], b["weights"][1], b["biases"][0])]
        found = torch.autograd.grad(free_energies(b).mean(), leaves)
        assert_near(a["weights"][0], leaves[0] - 0.1 * found[0], 17)
        assert_near(a["weights"][1], leaves[1] - 0.01 * found[1], 17)
        assert_near(gradient, found[2], 17)
        assert all(same_bits(x, y.detach()) for x, y in zip(a["biases"], b["biases"], strict=True))


@pytest.mark.usefixtures("complete_backend")
class TestSweeps:
    @pytest.mark.parametrize("swept", [(1, 2, 3), (2,), (1, 3)], ids=str)
    def test_states_are_their_predictions_whatever_they_were(self, swept):
        a = problem((5, 33, 7, 6, 3), 17, "tanh", "softplus")
        expected = to(a["states"])
        for i in swept:
            a["states"][i].fill_(float("nan"))
            panel = torch.tanh(expected[i - 1]) @ a["weights"][i - 1].T + a["biases"][i - 1]
            expected[i] = torch.nn.functional.softplus(panel, FUNCTIONS["softplus"][1])
        call(*planned(a | {"swept": [i in swept for i in range(5)], "steps": 0}))
        for found, exact in zip(a["states"], expected, strict=True):
            assert_near(found, exact, 33)

    @pytest.mark.parametrize("prior", ["one", "batch"])
    def test_the_first_one_is_its_prior(self, prior):
        a = problem((5, 7, 3), 4, "tanh", prior=prior, clamped=(-1,))
        call(*planned(a | {"swept": [True, True, False], "steps": 0}))
        assert torch.equal(a["states"][0], a["prior"].expand(4, 5))
        assert_near(a["states"][1], torch.tanh(a["states"][0]) @ a["weights"][0].T + a["biases"][0], 5)

    @pytest.mark.parametrize("dtype", FLOATS, ids=name)
    @pytest.mark.parametrize("batch", BATCHES)
    @pytest.mark.parametrize("widths", DEEP, ids=joined)
    @pytest.mark.parametrize("option", ["plain", "covariances", "gram"])
    def test_what_has_not_moved_learns_nothing(self, option, widths, batch, dtype):
        """To the last bit: errors come from the clamped end, and get down one node with every step."""
        options = {"covariances": {"covariances": True, "after": "tanh"}}.get(option, {"before": "tanh"})
        first = problem(widths, batch, dtype=dtype, **options) | {"swept": [False, *[True] * 4, False]}
        if option == "gram":
            first["grams"][-1] = True
        threads = torch.get_num_threads()
        try:
            for n, steps in ((1, 1), (2, 2), (7, 3), (1, 3), (7, 1)):
                torch.set_num_threads(n)
                a = copied(first) | {"steps": steps}
                a["thetas"] = [p if p is None or p.dim() == 2 else -torch.log(p) for p in a["precisions"]]
                targets = everything_learned(a, Rule())
                call(*planned(a, targets, learning=Learning.AT_THE_END, rules=(Rule(),)))
                for what, i, _, gradient, _ in targets:
                    if what is not Learned.LOGVAR:
                        assert bool((gradient == 0).all()) == (i + 1 < 5 - steps), (what, i, steps)
                kept = copied(first) | {"steps": 0}
                call(*planned(kept))
                call(*planned(kept | {"steps": steps, "swept": [False] * 6}))
                for x, y in zip(a["states"], kept["states"], strict=True):
                    if ONE_KERNEL:
                        assert_near(x, y.double(), 700)
                    else:
                        assert same_bits(x, y)
        finally:
            torch.set_num_threads(threads)

    @pytest.mark.parametrize("dtype", FLOATS, ids=name)
    @pytest.mark.parametrize(
        "learning", [Learning.WITH_EACH_STEP, Learning.AFTER_EACH_STEP], ids=lambda x: x.name.lower()
    )
    def test_what_has_not_moved_learns_nothing_in_every_step(self, learning, dtype):
        """By Adam, for which rounding would be as good as any error."""
        for steps in (1, 2, 3):
            a = problem(DEEP[0], 20, "tanh", dtype=dtype) | {"swept": [False, *[True] * 4, False], "steps": steps}
            before = copied(a)
            targets = [(Learned.WEIGHT, i, 0, w, (torch.zeros(()), torch.zeros_like(w), torch.zeros_like(w)))
                       for i, w in enumerate(a["weights"])]  # fmt: skip
            call(*planned(a, targets, learning=learning, rules=(Rule(RuleKind.ADAM, 0.01, 0.0, 0.9, 0.99, 1e-8),)))
            reached = steps - (learning is Learning.WITH_EACH_STEP)
            for i, (x, y) in enumerate(zip(a["weights"], before["weights"], strict=True)):
                assert same_bits(x, y) == (i + 1 < 5 - reached)

    @pytest.mark.parametrize("dtype", FLOATS, ids=name)
    @pytest.mark.parametrize("function", ["identity", "silu", "leaky_relu", "selu"])
    def test_a_neuron_that_feeds_nothing_back_learns_nothing(self, function, dtype):
        """To the last bit, though others of its node have moved: its state still is its prediction."""
        a = problem((5, 33, 17, 3), 20, "relu", dtype=dtype) | {"swept": [False, True, True, False], "steps": 1}
        a["activations"][3], a["parameters"][3] = [*FUNCTIONS].index(function), FUNCTIONS[function][1]
        a["biases"][1][:9] -= 10
        targets = [(what, 1, 0, torch.empty_like(t[1]), ())
                   for what, t in ((Learned.WEIGHT, a["weights"]), (Learned.BIAS, a["biases"]))]  # fmt: skip
        call(*planned(a, targets, learning=Learning.AT_THE_END, rules=(Rule(),)))
        for *_, gradient, _ in targets:
            assert (gradient[:9] == 0).all()
            assert (gradient[9:] != 0).any()


@pytest.mark.usefixtures("complete_backend")
class TestTwoChains:
    def test_in_one_plan_do_what_each_does_alone(self):
        momentum = {"momentum": 0.8}
        a = problem((5, 33, 7), 17, "tanh", momentum=momentum, record=True)
        b = problem((4, 6, 9, 3), 17, "relu", "sigmoid", momentum=momentum, record=True)
        lists = ("states", "velocities", "activations", "parameters", "predicted", "free", "scales", "precisions")
        both = copied(a) | {k: to(a[k]) + to(b[k]) for k in lists}
        both["activations"], both["parameters"] = (a[k] + [0, 0] + b[k] for k in ("activations", "parameters"))
        for k in ("weights", "biases", "grams"):
            both[k] = [*to(a[k]), None, *to(b[k])]
        both["energies"] = torch.empty(6, 7, 17, dtype=torch.float64)
        learned = []
        for one in (both, a, b):
            weights = [(Learned.WEIGHT, i, 0, torch.empty_like(w), ())
                       for i, w in enumerate(one["weights"]) if w is not None]  # fmt: skip
            call(*planned(one, weights, learning=Learning.AT_THE_END, rules=(Rule(),)))
            learned.append([gradient for *_, gradient, _ in weights])
        for k in ("states", "velocities"):
            assert all(same_bits(x, y) for x, y in zip(both[k], a[k] + b[k], strict=True))
        assert same_bits(both["energies"], torch.cat([a["energies"], b["energies"]], 1))
        assert all(same_bits(x, y) for x, y in zip(learned[0], learned[1] + learned[2], strict=True))


@pytest.mark.usefixtures("complete_backend")
class TestOrders:
    """An epoch in one plan is its batches one after another."""

    def epoch(self, rule, dtype=torch.float64, samples=23, rows=None):
        a = learning_problem(4)
        a["data"] = [torch.randn(samples, 5), None, None, torch.randn(samples, 3)]
        a["swept"] = [False, True, True, False]
        a = {k: to(x, dtype) for k, x in a.items()}
        a["order"] = torch.randperm(samples)[:ROWS] if rows is None else torch.tensor(rows, dtype=torch.int64)
        return a, everything_learned(a, rule)

    @pytest.mark.parametrize("dtype", FLOATS, ids=name)
    @pytest.mark.parametrize("learning", [*Learning][1:], ids=lambda x: x.name.lower())
    @pytest.mark.parametrize(
        "rule",
        [Rule(RuleKind.SGD, 0.03, 0.1, 0.9, 0.2, fresh=True), Rule(RuleKind.ADAM, 0.03, 0.1, 0.9, 0.99, 1e-8)],
        ids=lambda r: r.kind.name.lower(),
    )
    def test_batch_by_batch(self, rule, learning, dtype):
        torch.manual_seed(3)
        a, targets = self.epoch(rule, dtype)
        torch.manual_seed(3)
        b, own = self.epoch(rule, dtype)
        call(*planned(a, targets, order=a["order"], learning=learning, rules=(rule,)))
        for rows in b["order"].split(4):
            for i in (0, 3):
                b["states"][i].copy_(b["data"][i][rows])
            call(*planned(b | {"data": [None] * 4}, own, learning=learning, rules=(rule,)))
            rule = replace(rule, fresh=False)
        for k in ("states", "weights", "biases", "thetas"):
            assert all(same_bits(x, y) for x, y in zip(a[k], b[k], strict=True))
        for (*_, slots), (*_, others) in zip(targets, own, strict=True):
            assert all(same_bits(x, y) for x, y in zip(slots, others, strict=True))

    @pytest.mark.parametrize("row", [-1, 23])
    def test_rows_that_are_not_there_are_refused_before_anything_is_done(self, row):
        a, targets = self.epoch(Rule(RuleKind.SGD, 0.1, fresh=True), rows=[0, 1, 2, 3, 4, row, 6, 7])
        before = copied(a)
        with pytest.raises(RuntimeError, match=rf"order\[5\] must be from 0 to 22, got {row}"):
            call(*planned(a, targets, order=a["order"], learning=Learning.AT_THE_END,
                          rules=(Rule(RuleKind.SGD, 0.1, fresh=True),)))  # fmt: skip
        for k in ("states", "weights", "biases", "thetas"):
            assert all(same_bits(x, y) for x, y in zip(a[k], before[k], strict=True))

    def test_no_batches(self):
        a, targets = self.epoch(Rule(RuleKind.SGD, 0.1), rows=[])
        before = copied(a)
        call(*planned(a, targets, order=a["order"], learning=Learning.AT_THE_END, rules=(Rule(RuleKind.SGD, 0.1),)))
        assert all(same_bits(x, y) for x, y in zip(a["weights"], before["weights"], strict=True))
