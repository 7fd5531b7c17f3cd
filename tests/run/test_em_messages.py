"""What `EM` says of a batch that is not one call, by the names of the user's own."""

import copy

import pytest
import torch
import torch.nn as nn

import pyromancy as pyro
from pyromancy import native
from pyromancy.functional import gaussian_energy
from pyromancy.nodes import FixedNode, MultivariateGaussianNode, StandardGaussianNode
from twins import assert_same, batches, plainly, twins


class Net(nn.Module):
    """A hidden node between data and a target, in float64."""

    def __init__(self, kind=StandardGaussianNode):
        super().__init__()
        self.below, self.hidden, self.out = FixedNode(6), StandardGaussianNode(5), kind(3)
        self.up, self.top = nn.Linear(6, 5), nn.Linear(5, 3)
        self.double()

    def start(self, x, y):
        self.hidden.init(self.up(self.below.init(x)) + 0.1)
        self.out.init(y)

    def energy(self):
        return self.hidden.energy(self.up(self.below.value)) + self.out.energy(self.top(self.hidden.value))

    def learned(self):
        return [*pyro.get_mstep_params(self)]


def twice(net, x, y):
    net.start(x, y)
    net.hidden.init(net.hidden.value * 0.5)


def forgotten(net, x, y):
    net.start(x, y)
    net.spare.reset()


def read_before(net, x, y):
    before = net.out.value.sum() if net.out.value.numel() else 0.0
    net.start(x, y + 0.0 * before)


NORM, UNTRACKED = (nn.BatchNorm1d(6, affine=False, track_running_stats=kept).double() for kept in (True, False))
DROP = nn.Dropout()


def normalizing(net, x, y):
    net.start(NORM(x), y)


def dropping(net, x, y):
    net.start(DROP(x), y)


def scaling(net, x, y):
    net.start(x.mul_(0.5), y)


STARTS = {
    "in place": (scaling, "start cannot be captured: torch.Tensor.mul_ works in place, on what start has not made"),
    "batch norm": (
        normalizing,
        "start cannot be captured: BatchNorm1d in training mode updates its running statistics whenever it is called; "
        "with track_running_stats=False, or as a LayerNorm or GroupNorm, it has none",
    ),
    "dropout": (
        dropping, "start cannot be captured: aten.bernoulli_.float draws random numbers at every batch, in Dropout",
    ),
    "twice": (twice, "start cannot be captured: it sets the state of StandardGaussianNode(5) twice"),
    "forgotten": (forgotten, "start cannot be captured: it resets FixedNode(2) and does not set its state"),
    "read-before": (
        read_before, "start cannot be captured: it reads the state of StandardGaussianNode(3) before it sets it, by",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STARTS)
def test_starts_that_cannot_be_captured(name):
    start, told = STARTS[name]
    net = Net()
    net.spare = FixedNode(2)
    x, y = torch.randn(4, 6).double(), torch.randn(4, 3).double()
    net.start(x, y)
    states = [*pyro.get_estep_params(net, exclude=[net.out])]
    em = pyro.EM(
        net.energy, states, torch.optim.SGD(net.learned(), 0.1), start=lambda *xy: start(net, *xy), steps=2, lr=0.1
    )
    em.step(x, y)
    assert f"  not one call: {told}" in em.explain()


def storing(net, x, y):
    net.start(x, y)
    net.target = 2.0 * y


def asking(net, x, y):
    net.start(x, y if x.is_contiguous() else -y)


def of_a_set(net, x, y):
    net.start(x, y * len(MEMBERS))


def of_a_list(net, x, y):
    net.start(x, y[0])


MEMBERS = {1, 2}


def own(t):
    t.weight = 1.0
    return t


# A start, what it is given, and why it is run dry before every batch, or that it is not
DRY = {
    "stores": (storing, lambda x, y: (x, y), "it stores what it computes, such as mul of a tensor [4, 3]"),
    "layout": (asking, lambda x, y: (x, y), "it asks a tensor for is_contiguous, which is not looked at"),
    "a-list": (of_a_list, lambda x, y: (x, [y]), "it is given a list, which may be changed in place"),
    "attributes": (
        Net.start, lambda x, y: (x, own(y)), "it is given a tensor of a type of its own, or with attributes",
    ),
    "unknown": (of_a_set, lambda x, y: (x, y), "set, which may hold more than can be looked at"),
    "watched": (Net.start, lambda x, y: (x, y), None),
}  # fmt: skip


@pytest.mark.skipif(native.MODULE is None, reason="nothing is watched without the compiled module")
@pytest.mark.parametrize("name", DRY)
def test_why_a_start_is_run_dry_before_every_batch(name):
    start, given, told = DRY[name]
    net = Net()
    batch = given(torch.randn(4, 6).double(), torch.randn(4, 3).double())
    start(net, *batch)
    states = [*pyro.get_estep_params(net, exclude=[net.out])]
    em = pyro.EM(
        net.energy, states, torch.optim.SGD(net.learned(), 0.1), start=lambda *xy: start(net, *xy), steps=2, lr=0.1
    )
    for _ in range(7):
        em.step(*batch)
    lines = [line for line in em.explain().splitlines() if "start is run dry" in line]
    assert len(lines) == (told is not None)
    assert told is None or lines[0].startswith(f"  start is run dry before every batch: {told}")


def of_the_batch(net):
    return net.energy().sum()


def with_decay(net):
    return net.energy() + 0.1 * net.top.weight.square().sum()


def with_another_term(net):
    return net.energy() + net.hidden.value.logsumexp(1)


def of_a_computed_target(net):
    target = net.out.value.abs()
    return net.hidden.energy(net.up(net.below.value)) + gaussian_energy(target, net.top(net.hidden.value))


# The energy, the kind of the last node, and what is said, where it is not one call
ENERGIES = {
    "one-number": (of_the_batch, StandardGaussianNode, "  not one call: the energy is one number for the whole batch"),
    "decay": (
        with_decay, StandardGaussianNode,
        ", then the optimizer\n  the optimizer is called: a term of the energy, sum of net.top.weight, depends on "
        "parameters and on no free state",
    ),
    "covariance": (
        Net.energy, MultivariateGaussianNode,
        ", then the optimizer\n  the optimizer is called: the full covariance of net.out.value is learned",
    ),
    "computed-target": (of_a_computed_target, StandardGaussianNode, None),
    "no-chain": (with_another_term, StandardGaussianNode, "  not one call: the energy is no chain, as is told below"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:the energy is one number:UserWarning")
@pytest.mark.parametrize("name", ENERGIES)
def test_energies_that_are_done_by_parts_or_could_be(name):
    """To the same weights as by hand."""
    energy, kind, told = ENERGIES[name]
    torch.manual_seed(0)
    net = Net(kind)
    twin = copy.deepcopy(net)
    x, y = torch.randn(4, 6).double(), torch.randn(4, 3).double()
    net.start(x, y)
    states = [*pyro.get_estep_params(net, exclude=[net.out])]
    optimizer = torch.optim.SGD(net.learned(), 0.1)
    em = pyro.EM(lambda: energy(net), states, optimizer, start=net.start, steps=2, lr=0.1)
    em.step(x, y)
    how = "one call of an operator" if told is None or "\n" in told else "start, E-steps, gradients, optimizer"
    assert em.explain().startswith(f"a batch: {how}")
    assert (told or "") in em.explain()

    with torch.no_grad():
        twin.start(x, y)
    for _ in range(2):
        (gradient,) = torch.autograd.grad(energy(twin).sum(), twin.hidden.value)
        with torch.no_grad():
            twin.hidden.value -= 0.1 * gradient
    gradients = torch.autograd.grad(energy(twin).mean(), twin.learned())
    for mine, other, gradient in zip(net.learned(), twin.learned(), gradients, strict=True):
        torch.testing.assert_close(mine.detach(), other.detach() - 0.1 * gradient, rtol=1e-12, atol=1e-12)


def em_of(net, learned=None, energy=None, **options):
    optimizer = torch.optim.SGD(net.learned() if learned is None else learned, 0.1)
    states = [*pyro.get_estep_params(net, exclude=[net.out])]
    return pyro.EM(energy or net.energy, states, optimizer, **({"start": net.start, "steps": 2, "lr": 0.1} | options))


def batch(size=4):
    return torch.rand(size, 6).double(), torch.rand(size, 3).double()


@pytest.mark.parametrize("way", ["step", "epoch"])
def test_explain_before_the_first_batch_says_what_to_call(way):
    net = Net()
    em = em_of(net)
    told = "no batch so far: call step(*batch), or go through epoch(*data), and explain() tells what runs it"
    assert em.explain() == told
    net.start(*batch())
    assert em.explain() == told
    if way == "step":
        em.step(*batch())
    else:
        list(em.epoch(*batch(), batch_size=2))
    assert em.explain().startswith("a batch: one call of an operator\nexecutor: chain")


@pytest.mark.parametrize("started", [False, True], ids=["before-init", "after-init"])
@pytest.mark.parametrize("later", [False, True], ids=["at-once", "later"])
def test_an_optimizer_of_all_parameters_is_told_the_states_names(started, later):
    """The clamped target's among them."""
    net = Net()
    if started:
        net.start(*batch())
    em = em_of(net)
    told = r"must not move states, got hidden\.value, out\.value; pyromancy\.get_mstep_params\(net\) gives what is lear"
    if later:
        em.step(*batch())
        em.optimizer = torch.optim.Adam(net.parameters())
        with pytest.raises(ValueError, match=told):
            em.step(*batch())
    else:
        with pytest.raises(ValueError, match=told):
            em_of(net, net.parameters())


def test_an_optimizer_that_needs_a_closure_is_refused_by_name():
    net = Net()
    with pytest.raises(TypeError, match="optimizer must step without a closure, got LBFGS, which would evaluate"):
        pyro.EM(net.energy, [net.hidden.value], torch.optim.LBFGS(net.learned()), start=net.start, steps=2, lr=0.1)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_a_network_that_is_converted_under_its_optimizer_is_told(kind):
    """Before anything is learned; and the way that the message tells goes on."""
    net = Net().float()
    optimizer = kind(net.learned(), 0.1)
    em = pyro.EM(net.energy, [net.hidden.value], optimizer, start=net.start, steps=2, lr=0.1)
    em.step(torch.randn(4, 6), torch.randn(4, 3))
    net.double()
    before = [p.clone() for p in net.learned()]
    steps = [state["step"].clone() for state in optimizer.state.values()]
    told = (
        "hold averages of its parameters' dtype, got exp_avg of torch.float32 for up.weight of torch.float64: convert"
    )
    with pytest.raises(TypeError, match=told):
        em.step(torch.randn(4, 6).double(), torch.randn(4, 3).double())
    assert all(map(torch.equal, net.learned(), before))
    assert [state["step"] for state in optimizer.state.values()] == steps
    optimizer.load_state_dict(optimizer.state_dict())
    em.step(torch.randn(4, 6).double(), torch.randn(4, 3).double())
    assert em.explain().startswith("a batch: one call of an operator")


def test_an_optimizer_of_what_the_energy_lacks_is_told_the_names():
    net = Net()
    net.spare = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"that the energy uses, got spare\.weight, spare\.bias, which it does not"):
        em_of(net, net.learned()).step(*batch())


@pytest.mark.parametrize("given", [(0, 1), (0,), (1,)], ids=["both", "x", "y"])
@pytest.mark.parametrize("way", ["step", "epoch", "start", "node"])
def test_arrays_are_told_how_to_become_tensors(given, way):
    net = pyro.networks.mlp([6, 5, 3]).double()
    data = [t.numpy() if i in given else t for i, t in enumerate(batch())]
    em = pyro.EM(net.energy, net.e_params(), torch.optim.SGD(net.m_params(), 0.1), start=net.start, steps=2, lr=0.1)
    call, name = {
        "step": (em.step, "xy"[given[0]]),
        "epoch": (lambda *data: list(em.epoch(*data, batch_size=2)), "data"),
        "start": (net.start, "xy"[given[0]]),
        "node": (lambda *data: net.nodes[-given[0]].init(data[given[0]]), "value"),
    }[way]
    with pytest.raises(TypeError, match=rf"{name} must be (a )?tensors?.*, got ndarray, of which torch\.from_numpy"):
        call(*data)
    with pytest.raises(TypeError, match=r"x must be a tensor, got ndarray, of which torch\.from_numpy makes one"):
        pyro.networks.from_sequential(nn.Sequential(nn.Flatten(), nn.Linear(6, 3))).predict(batch()[0].numpy())


def test_a_network_without_hidden_nodes_is_refused():
    net = pyro.networks.mlp([5, 3])
    told = "params must hold at least one tensor, got none; .*a network without hidden nodes has no free state"
    with pytest.raises(ValueError, match=told):
        pyro.EM(net.energy, net.e_params(), torch.optim.SGD(net.m_params(), 0.1), start=net.start, steps=2, lr=0.1)
    with pytest.raises(ValueError, match=told):
        pyro.InferenceLoop(net.energy, net.e_params(), lr=0.1)


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), torch.tensor(float("nan"))], ids=str)
@pytest.mark.parametrize("before", [0, 1, 12])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad])
def test_a_rate_that_is_not_finite_is_named_by_its_group(rate, before, kind):
    """Whenever it becomes that, and nothing is learned by it."""
    net = Net()
    em = em_of(net)
    em.optimizer = kind([{"params": net.up.parameters()}, {"params": net.top.parameters(), "lr": 1e-3}], lr=0.01)
    for _ in range(before):
        em.step(*batch())
    em.optimizer.param_groups[1]["lr"] = rate
    learned = [p.detach().clone() for p in net.learned()]
    with pytest.raises(ValueError, match=rf"optimizer\.param_groups\[1\]\['lr'\] must be finite, got {float(rate)}"):
        em.step(*batch())
    with pytest.raises(ValueError, match=r"optimizer\.param_groups\[1\]\['lr'\] must be finite"):
        list(em.epoch(*batch(), batch_size=2))
    assert all(torch.equal(p, b) for p, b in zip(net.learned(), learned, strict=True))


# Weights of the samples that are read as a parameter learns
SHARED = {
    "bias": lambda layer: layer.bias.detach(),
    "column": lambda layer: layer.weight.detach()[:, 0],
}


def weighted(net, name):
    shared = SHARED[name](net.edges[0][1])

    def energy():
        (first, second, third), (up, on, top) = net.nodes, net.edges
        others = second.energy(on(first.value)) + third.energy(top(second.value))
        return shared * first.energy(up(net.below.value)) + others

    return energy


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("incremental", [False, True, "joint"], ids=str)
def test_sample_weights_in_the_memory_of_what_learns(name, incremental):
    """To the same weights as by hand, step after step."""
    net, plain = twins(sizes=(8, 20, 16, 3))
    for n in (net, plain):
        with torch.no_grad():
            for p in n.edges[0][1].parameters():
                p.abs_()
        n.energy = weighted(n, name)
    ours, theirs = (torch.optim.SGD(n.m_params(), 0.1) for n in (net, plain))
    em = pyro.EM(net.energy, net.e_params(), ours, start=net.start, steps=2, lr=0.1, incremental=incremental)
    for x, y in batches(3, 20):
        em.step(x, y)
        plainly(plain, theirs, x, y, steps=2, lr=0.1, incremental=incremental)
        assert_same(net.m_params(), plain.m_params())
        told = {"bias": "bias", "column": "weight"}[name]
        assert f"  not one call: shared shares its memory with net.edges.0.1.{told}, which learns" in em.explain()


def test_a_batch_that_the_energy_is_not_of_is_told():
    net, weights = Net(), torch.rand(4).double()
    em = em_of(net, energy=lambda: weights * net.energy())
    em.step(*batch(4))
    with pytest.raises(RuntimeError, match="size of tensor a") as caught:
        em.step(*batch(3))
    told = "start has set states of 3 samples: what the energy takes beside them, such as weights or targets, must be"
    assert any(note.startswith(told) for note in caught.value.__notes__)
    told = r"energy must return one value per sample, \[1\] for the states that start has set, got \[4\]"
    with pytest.raises(ValueError, match=told):  # it broadcasts
        em.step(*batch(1))
    em.step(*batch(4))
    assert em.explain().startswith("a batch: one call of an operator")


def test_a_free_state_that_samples_would_share_is_told_and_nothing_is_learned():
    """As of an input that was given for one sample; the prediction would broadcast to all targets."""
    net = Net()
    em = em_of(net)
    x, y = batch(4)
    before = [p.detach().clone() for p in net.learned()]
    told = r"free states of 4 samples, as others are, got 1 for StandardGaussianNode\(5\), .*: x has one row"
    with pytest.raises(ValueError, match=told):
        em.step(x[:1], y)
    assert_same(net.learned(), before)
    em.start = lambda *both: net.start(*both)
    with pytest.raises(ValueError, match="would share: argument 0 of step has one row"):
        em.step(x[:1], y)
    em.step(x, y)


def test_an_input_that_samples_share_is_meant():
    """It is clamped, and each sample has free states of its own: as with the input in every row, in float64."""
    ours, plain = Net(), Net()
    plain.load_state_dict(ours.state_dict())
    x, y = batch(4)

    def start(x, y):
        ours.below.init(x), ours.hidden.init(torch.zeros(4, 5)), ours.out.init(y)

    def start_plainly(x, y):
        plain.below.init(x), plain.hidden.init(torch.zeros(4, 5)), plain.out.init(y)

    em, other = em_of(ours), em_of(plain)
    em.start, other.start = start, start_plainly
    for _ in range(3):
        em.step(x[:1], y)
        other.step(x[:1].expand(4, -1), y)
    for p, q in zip(ours.learned(), plain.learned(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-12)


def test_states_of_different_batches_are_told():
    net = Net()
    em = em_of(net)
    em.start = lambda x, y: (net.hidden.init(net.up(net.below.init(x))), net.out.init(y))
    told = r"as many samples each, got 4 for FixedNode\(6\), 4 for StandardGaussianNode\(5\), 3 for StandardGaussian"
    with pytest.raises(ValueError, match=told):
        em.step(batch(4)[0], batch(3)[1])


def test_a_start_with_a_batch_norm_that_keeps_no_statistics_is_captured():
    """As the message says: the states are those of the layer's own."""
    net = Net()
    x, y = torch.randn(4, 6).double(), torch.randn(4, 3).double()
    em = pyro.EM(
        net.energy, [net.hidden.value], torch.optim.SGD(net.learned(), 0.0),
        start=lambda x, y: net.start(UNTRACKED(x), y), steps=2, lr=0.1,
    )  # fmt: skip
    em.step(x, y)
    assert em.explain().startswith("a batch: one call of an operator")
    torch.testing.assert_close(net.below.value, (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt())
