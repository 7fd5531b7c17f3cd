"""Batches that `EM.step` repeats with little looking: whatever changes meanwhile is followed all the same."""

import copy
import functools
import gc
import weakref

import pytest
import torch
from torch import nn

import pyromancy as pyro
from numerics import same_bits
from pyromancy import native
from pyromancy.run import repeat
from twins import assert_same, batches, plainly, twins

pytestmark = pytest.mark.skipif(native.MODULE is None, reason="objects are compared in the compiled module")
SETTLED = 12  # batches after which they are repeated
LR, STEPS, SIZE = 0.1, 3, 7


class Both:
    """Two of a kind: one that learns by `EM`, and its twin that learns by autograd."""

    def __init__(self, make=None, **options):
        self.net, self.plain = twins(**options)
        self.ours, self.theirs = ((make or self.adam)(net) for net in (self.net, self.plain))
        net = self.net
        self.em = pyro.EM(net.energy, net.e_params(), self.ours, start=net.start, steps=STEPS, lr=LR)
        self.how = {"steps": STEPS, "lr": LR}
        ((self.x, self.y),) = batches(1, SIZE)
        self.factor = 1

    @staticmethod
    def adam(net):
        m = net.m_params()
        return torch.optim.Adam([{"params": m[:2], "lr": 1e-2, "betas": [0.9, 0.999]}, {"params": m[2:]}], eps=1e-2)

    def settle(self):
        for _ in range(SETTLED):
            self.batch()
        assert self.em._repeat is not None
        return self

    def batch(self):
        self.x, self.y = torch.rand_like(self.x), torch.rand_like(self.y)
        self.em.step(self.x, self.y)
        plainly(self.plain, self.theirs, self.factor * self.x, self.y, **self.how)
        assert_same(self.net.m_params() + self.net.e_params(), self.plain.m_params() + self.plain.e_params())


def each(change):
    """A change of both networks and optimizers alike."""

    @functools.wraps(change)
    def both(case):
        change(case.net, case.ours)
        change(case.plain, case.theirs)

    return both


@each
def rate_of_a_group(_, optimizer):
    optimizer.param_groups[1]["lr"] = 0.05


@each
def decay_of_a_group(_, optimizer):
    optimizer.param_groups[1]["weight_decay"] = 0.1


@each
def betas_in_place(_, optimizer):
    optimizer.param_groups[0]["betas"][0] = 0.5


@each
def parameter_of_another_group(_, optimizer):
    first, second = optimizer.param_groups
    second["params"].insert(0, first["params"].pop())


@each
def parameter_of_no_group(_, optimizer):
    optimizer.param_groups[0]["params"].pop()


@each
def state_of_the_optimizer_lost(_, optimizer):
    optimizer.state.clear()


@each
def state_of_the_optimizer_loaded(_, optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


@each
def average_replaced(_, optimizer):
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    state["exp_avg"] = torch.zeros_like(state["exp_avg"])


@each
def weights_in_place(net, _):
    with torch.no_grad():
        net.edges[0][1].weight.mul_(0.5)


@each
def memory_of_weights(net, _):
    net.edges[1][1].weight.data = 0.5 * net.edges[1][1].weight.data


@each
def columns_first(net, _):
    weight = net.edges[1][1].weight
    weight.data = weight.data.t().contiguous().t()


@each
def new_weights(net, optimizer):
    old, new = net.edges[0][1].weight, nn.Parameter(torch.full_like(net.edges[0][1].weight, 0.01))
    net.edges[0][1].weight = new
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]


@each
def no_bias(net, optimizer):
    old = net.edges[2][1].bias
    net.edges[2][1].bias = None
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p is not old]


@each
def other_activation(net, _):
    net.edges[1][0] = nn.Sigmoid()


@each
def other_node(net, _):
    last = net.nodes[2]
    net.nodes[2] = pyro.nodes.StandardGaussianNode(3).double()
    net.nodes[2].init(last.value)


@each
def energy_of_an_instance(net, _):
    net.nodes[1].energy = lambda mu: 2 * type(net.nodes[1]).energy(net.nodes[1], mu)


@each
def hook_on_an_edge(net, _):
    net.edges[1].register_forward_hook(lambda module, given, mu: 0.5 * mu)


@each
def parameter_hook(net, _):
    net.edges[0][1].weight.register_hook(lambda gradient: 2 * gradient)


@each
def optimizer_hook(net, optimizer):
    def halve(*_):
        with torch.no_grad():
            net.edges[0][1].bias.mul_(0.5)

    optimizer.register_step_post_hook(halve)


@each
def memory_of_states(net, _):
    for node in net.nodes:
        node.value.data = torch.zeros_like(node.value)


@each
def states_of_another_batch(net, _):
    for node in (net.below, *net.nodes):
        node.init(torch.zeros(3, node.size, dtype=torch.float64))


def start_that_doubles(case):
    start, case.factor = case.em.start, 2
    case.em.start = lambda x, y: start(2 * x, y)


def fewer_steps(case):
    case.em.steps = case.how["steps"] = 1


def other_rate(case):
    case.em.loop.lr = case.how["lr"] = 0.03


def momentum(case):
    case.em.loop.momentum = case.how["momentum"] = 0.5


def mean_of_the_batch(case):
    case.em.loop.reduction, case.how["lr"] = "mean", LR / SIZE


def incremental(case):
    case.em.incremental = case.how["incremental"] = True


def larger_batches(case):
    case.x, case.y = batches(1, SIZE + 2)[0]


def optimizer_of_another_kind(case):
    case.em.optimizer = case.ours = torch.optim.SGD(case.net.m_params(), 0.1, momentum=0.9)
    case.theirs = torch.optim.SGD(case.plain.m_params(), 0.1, momentum=0.9)


CHANGES = [
    *(rate_of_a_group, decay_of_a_group, betas_in_place, parameter_of_another_group, parameter_of_no_group),
    *(state_of_the_optimizer_lost, state_of_the_optimizer_loaded, average_replaced, weights_in_place),
    *(memory_of_weights, columns_first, new_weights, no_bias, other_activation, other_node, energy_of_an_instance),
    *(hook_on_an_edge, parameter_hook, optimizer_hook, memory_of_states, states_of_another_batch),
    *(start_that_doubles, fewer_steps, other_rate, momentum, mean_of_the_batch, incremental, larger_batches),
    optimizer_of_another_kind,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changes_is_followed(change):
    case = Both().settle()
    change(case)
    for _ in range(3):
        case.batch()


@pytest.mark.parametrize("learning", [False, True, "joint"])
def test_an_error_in_the_middle_is_raised_and_nothing_learned_twice(monkeypatch, learning):
    """As of memory that runs out when some of the batch's steps have learned."""
    case = Both()
    case.em.incremental = case.how["incremental"] = learning
    case.settle()
    operator, called = repeat.ops.run_plan_, []

    def failing(*call):
        operator(*call)
        called.append(call)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(repeat.ops, "run_plan_", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        case.em.step(case.x, case.y)
    monkeypatch.undo()
    assert len(called) == 1
    plainly(case.plain, case.theirs, case.x, case.y, **case.how)
    assert_same(case.net.m_params(), case.plain.m_params())
    case.batch()


def test_a_patched_base_is_followed(monkeypatch):
    case = Both().settle()
    base = pyro.nodes.StandardGaussianNode
    energy = base.energy
    monkeypatch.setattr(base, "energy", lambda self, pred: 3 * energy(self, pred))
    for _ in range(3):
        case.batch()


def test_a_scheduler_is_followed():
    case = Both().settle()
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in (case.ours, case.theirs)]
    for _ in range(2 * SETTLED):  # its first step makes entries of groups
        case.batch()
        for scheduler in schedulers:
            scheduler.step()
    repeat = case.em._repeat
    assert repeat is not None
    case.batch()
    assert case.em._repeat is repeat


@each
def one_rate_of_two(_, optimizer):
    optimizer.param_groups[0]["lr"] = 0.02


@each
def one_rate_for_both(_, optimizer):
    for group in optimizer.param_groups:
        group["lr"] = 0.02


@each
def a_whole_number(_, optimizer):
    optimizer.param_groups[0]["lr"] = 0


@each
def a_tensor(_, optimizer):
    optimizer.param_groups[0]["lr"] = torch.tensor(0.02, dtype=torch.float64)


@pytest.mark.parametrize("rates", [(0.01, 0.01), (0.01, 0.03)], ids=["alike", "different"])
@pytest.mark.parametrize(
    "change", [one_rate_of_two, one_rate_for_both, a_whole_number, a_tensor], ids=lambda change: change.__name__
)
def test_rates_of_groups_are_followed(change, rates):
    def groups(net):
        m = net.m_params()
        return torch.optim.SGD([{"params": m[:2], "lr": rates[0]}, {"params": m[2:], "lr": rates[1]}])

    case = Both(groups).settle()
    before = copy.deepcopy([group["lr"] for group in case.ours.param_groups])
    change(case)
    for _ in range(SETTLED):
        case.batch()
    for optimizer in (case.ours, case.theirs):
        for group, rate in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = rate
    for _ in range(3):
        case.batch()


def test_epochs_and_runs_between_batches():
    case = Both().settle()
    x, y = torch.rand(21, 8).double(), torch.rand(21, 3).double()
    repeat = case.em._repeat
    for _ in range(2):
        list(case.em.epoch(x, y, batch_size=SIZE, shuffle=False))
        for rows in torch.arange(21).split(SIZE):
            plainly(case.plain, case.theirs, x[rows], y[rows], **case.how)
        case.batch()
        case.em.loop.run(2)
        case.batch()
        assert "a batch: one call of an operator" in case.em.explain()
    assert case.em._repeat is repeat


@pytest.mark.parametrize(
    "given",
    [
        lambda x: x.t().contiguous().t(),
        lambda x: x.clone().requires_grad_(),
        lambda x: nn.Parameter(x),
        lambda x: x[:1].expand(SIZE, -1),
    ],
    ids=["columns first", "with a gradient", "a parameter", "expanded"],
)
def test_batches_of_another_kind(given):
    case = Both().settle()
    x = given(case.x)
    for _ in range(2):
        case.em.step(x, case.y)
        plainly(case.plain, case.theirs, x.detach(), case.y, **case.how)
        assert_same(case.net.m_params(), case.plain.m_params())


def test_a_state_may_be_what_is_given():
    case = Both().settle()
    y = case.y.clone()
    case.em.step(case.x, case.net.nodes[-1].value)
    plainly(case.plain, case.theirs, case.x, y, **case.how)
    assert_same(case.net.m_params(), case.plain.m_params())


def test_a_frozen_parameter_rests():
    case = Both().settle()
    weight = case.net.edges[0][1].weight
    weight.requires_grad_(False)
    before = weight.detach().clone()
    case.em.step(case.x, case.y)
    assert same_bits(weight, before)


def test_a_state_that_is_frozen_is_refused():
    case = Both().settle()
    case.net.nodes[0].value.requires_grad_(False)
    with pytest.raises(ValueError, match="params must require gradients"):
        case.em.step(case.x, case.y)


def test_a_precision_is_followed():
    case = Both().settle()
    repeat = case.em._repeat
    try:
        torch.set_float32_matmul_precision("high")
        case.batch()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert case.em._repeat is not repeat


def test_gradients_are_none_afterwards():
    case = Both().settle()
    for p in (*case.net.m_params(), *case.net.e_params()):
        p.grad = torch.ones_like(p)
    case.batch()
    assert all(p.grad is None for p in (*case.net.m_params(), *case.net.e_params()))


KEPT = {
    "tensor": lambda t: t.detach(),
    "view": lambda t: t.detach()[1:],
    "array": lambda t: t.detach().numpy(),
    "storage": lambda t: t.untyped_storage(),
}


def numbers(kept):
    """All of a tensor, an array, or bytes of a storage."""
    return kept if isinstance(kept, torch.UntypedStorage) else kept.reshape(-1).tolist()


@pytest.mark.parametrize("kind", KEPT)
def test_states_that_are_kept_are_not_overwritten(kind):
    case = Both().settle()
    held, copied = [], []
    for _ in range(3):
        case.batch()
        held += [KEPT[kind](node.value) for node in (case.net.below, *case.net.nodes)]
        copied += [copy.deepcopy(h) for h in held[-4:]]
    assert [list(h) for h in map(numbers, held)] == [list(c) for c in map(numbers, copied)]


def test_states_in_shared_memory_are_left():
    case = Both().settle()
    value = case.net.nodes[0].value.share_memory_()
    assert value.is_shared()
    case.batch()
    assert not value.is_shared()


def test_states_that_nobody_holds_keep_their_memory():
    case = Both().settle()
    memory = [node.value.data_ptr() for node in case.net.nodes]
    case.batch()
    assert memory == [node.value.data_ptr() for node in case.net.nodes]


def test_graphs_over_old_states_are_void():
    case = Both().settle()
    energy = (case.net.nodes[0].value ** 2).sum()
    case.batch()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        energy.backward()


def test_modes_are_followed():
    """A mode sees every operator, and what it makes of them counts."""

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.seen += 1
            return function(*args, **(kwargs or {}))

    case = Both().settle()
    with Counting() as mode:
        case.batch()
    assert mode.seen > 0
    with torch.profiler.profile() as profile:
        case.em.step(case.x, case.y)
    assert any("pyromancy" in event.key for event in profile.key_averages())


@pytest.mark.slow
def test_nothing_is_kept_alive():
    case = Both().settle()
    gone = weakref.ref(case.net), weakref.ref(case.em)
    del case
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


class Elsewhere(nn.Module):
    """All to all: states start at what one of the two that predict them makes, or at a function of those before."""

    def __init__(self):
        super().__init__()
        self.x, self.y = (pyro.nodes.FixedNode(n) for n in (8, 3))
        self.h, self.k = (pyro.nodes.StandardGaussianNode(n) for n in (6, 5))
        self.xh, self.kh, self.hk, self.hy = (nn.Linear(*n) for n in ((8, 6), (5, 6), (6, 5), (6, 3)))

    def start(self, x, y):
        self.x.init(x)
        self.h.init(self.xh(self.x.value))
        self.k.init(torch.sin(self.hk(self.h.value)))
        self.y.init(y)

    def energy(self):
        of_h = self.xh(self.x.value) + self.kh(torch.tanh(self.k.value))
        above = self.k.energy(self.hk(self.h.value))
        return self.h.energy(of_h) + above + pyro.functional.gaussian_energy(self.y.value, self.hy(self.h.value))

    def e_params(self):
        return [self.h.value, self.k.value]

    def m_params(self):
        return list(pyro.get_mstep_params(self))


def test_states_that_start_at_what_is_computed_are_set_anew():
    """In their order, each from those before it, at every batch that is repeated, and whatever comes between."""
    torch.manual_seed(0)
    net = Elsewhere().double()
    for node, n in ((net.x, 8), (net.h, 6), (net.k, 5), (net.y, 3)):
        node.init(torch.zeros(SIZE, n).double())
    twin = copy.deepcopy(net)
    ours, theirs = (torch.optim.SGD(of.m_params(), lr=0.05) for of in (net, twin))
    em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=STEPS, lr=LR)
    for i in range(3 * SETTLED):
        x, y = torch.randn(SIZE, 8).double(), torch.randn(SIZE, 3).double()
        if i == 2 * SETTLED:
            assert em._repeat is not None
            for of in (net, twin):
                with torch.no_grad():
                    of.xh.weight.mul_(0.5)
        em.step(x, y)
        plainly(twin, theirs, x, y, steps=STEPS, lr=LR)
        assert_same([*net.m_params(), *net.e_params()], [*twin.m_params(), *twin.e_params()])
    assert "a batch: one call of an operator" in em.explain()
