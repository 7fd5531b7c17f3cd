"""What users are told: which states E-steps move, what an energy lacks, and what keeps it from a faster executor."""

import copy
import pickle

import pytest
import torch
import torch.nn as nn

import pyromancy as pyro
from pyromancy.nodes import FactorizedGaussianNode, FixedNode, StandardGaussianNode


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.below, self.hidden, self.above = FixedNode(4), StandardGaussianNode(5), StandardGaussianNode(3)
        self.up, self.top = nn.Linear(4, 5), nn.Linear(5, 3)

    def energy(self):
        return self.hidden.energy(self.up(self.below.value)) + self.above.energy(self.top(self.hidden.value))

    def init(self):
        self.below.init(torch.rand(2, 4)), self.hidden.init(torch.rand(2, 5)), self.above.init(torch.rand(2, 3))
        return self


class Trainer:
    """Holds a network and is none."""

    def __init__(self, net):
        self.net = net

    def energy(self):
        return self.net.energy()


MOVED = {
    "method": lambda net: (net.energy, "hidden.value [2, 5], above.value [2, 3]"),
    "function": lambda net: (lambda: net.energy(), "net.hidden.value [2, 5], net.above.value [2, 3]"),
    "trainer": lambda net: (Trainer(net).energy, "net.hidden.value [2, 5], net.above.value [2, 3]"),
}


@pytest.mark.parametrize("executor", [None, "graph", "autograd"])
@pytest.mark.parametrize("how", MOVED)
def test_states_that_move_are_named(how, executor):
    """Whoever forgets to exclude the target sees it in the list."""
    net = Net().init()
    energy, moved = MOVED[how](net)
    loop = pyro.InferenceLoop(energy, pyro.get_estep_params(net), lr=0.1, executor=executor)
    assert loop.explain().splitlines()[1].startswith(f"  E-steps move {moved}")


class Holder:
    """Has states that are no module's."""

    def __init__(self):
        self.state = nn.Parameter(torch.rand(2, 5))

    def energy(self):
        return self.state.cos().sum(1)


def variable():
    state = nn.Parameter(torch.rand(2, 5))
    return (lambda: state.cos().sum(1)), state


def in_a_list():
    states = [nn.Parameter(torch.rand(2, 5))]
    return (lambda: states[0].cos().sum(1)), states[0]


def attribute():
    holder = Holder()
    return (lambda: holder.energy()), holder.state


def method():
    holder = Holder()
    return holder.energy, holder.state


def hidden_away():
    states = {"state": nn.Parameter(torch.rand(2, 5))}
    return (lambda: states["state"].cos().sum(1)), states["state"]


HELD = {
    variable: "state", in_a_list: "states[0]", attribute: "holder.state", method: "state",
    hidden_away: "a state [2, 5]",
}  # fmt: skip


@pytest.mark.parametrize("how", HELD)
def test_tensors_are_called_by_how_the_energy_reaches_them(how):
    energy, state = how()
    loop = pyro.InferenceLoop(energy, [state], lr=0.1)
    loop.run(1)
    explained = loop.explain()
    assert f"  E-steps move {HELD[how].removesuffix(' [2, 5]')} [2, 5]" in explained
    assert f"a term of the energy, sum of cos of {HELD[how]}, is not" in explained


ACTS = {
    "run": lambda loop, net: loop.run(1),
    "explain": lambda loop, net: loop.explain(),
    "energy": lambda loop, net: loop.energy(),
    "backward": lambda loop, net: loop.backward(pyro.get_mstep_params(net)),
    "plain": lambda loop, net: net.energy(),
    "activation": lambda loop, net: net.up(torch.tanh(net.below.value)),
    "product": lambda loop, net: net.below.value[None] @ net.up.weight.T,
    "copy": lambda loop, net: copy.deepcopy(net).energy(),
    "moved": lambda loop, net: net.double().energy(),
}


@pytest.mark.parametrize("executor", [None, "chain", "graph", "autograd"])
@pytest.mark.parametrize("act", ACTS)
def test_an_energy_without_states_says_what_is_missing(act, executor):
    """PyTorch's own message is about the shapes in a product."""
    net = Net()
    loop = pyro.InferenceLoop(net.energy, pyro.get_estep_params(net), lr=0.1, executor=executor)
    with pytest.raises(
        RuntimeError, match=r"FixedNode\(4\)\.value is empty: call init\(x\) of the FixedNode\(4\) first"
    ):
        ACTS[act](loop, net)
    net.float().init()
    loop = pyro.InferenceLoop(net.energy, pyro.get_estep_params(net), lr=0.1, executor=executor)
    ACTS[act](loop, net)
    assert type(net.below.value) is torch.Tensor
    assert type(net.hidden.value) is nn.Parameter
    net.below.reset()
    if act == "explain":  # which tells of the last run
        return
    with pytest.raises(RuntimeError, match=r"FixedNode\(4\)\.value is empty"):
        ACTS[act](loop, net)


def test_empty_states_are_tensors_like_others():
    """Sums over all parameters, copies, optimizers and the like come before the first init, too."""
    net = Net()
    twin = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    assert sum(p.detach().square().sum() for p in twin.parameters()) > 0
    assert torch.func.stack_module_state([net, twin])[0]["hidden.value"].shape == (2, 0)
    torch.optim.swa_utils.AveragedModel(net).update_parameters(twin)
    assert repr(net.hidden.value) == repr(nn.Parameter(torch.empty(0)))
    assert repr(net.below.value) == "tensor([])"
    torch.optim.Adam(net.parameters()).step()
    assert isinstance(net.hidden.value, nn.Parameter)
    assert twin.init().energy().shape == (2,)


class Pair(Net):
    """With another free state, and an edge from both."""

    def __init__(self):
        super().__init__()
        self.other, self.side = StandardGaussianNode(5), nn.Linear(10, 3)

    def init(self):
        self.other.init(torch.rand(2, 5))
        return super().init()


# What a target's prediction is, beside a free state h and another, o; and what the loop says of it
PREDICTIONS = {
    "product": (lambda n, h, o: h @ o.T @ h[:, :3], "above.value comes from matmul of net.hidden.value, net.other"),
    "skip": (lambda n, h, o: n.top(h) + h[:, ::2], "from add of net.hidden.value, not from a Linear\n"),
    "two": (lambda n, h, o: n.top(h + o), "the result of add of net.hidden.value, net.other.value, not a state"),
    "softmax": (lambda n, h, o: n.top(h).softmax(1), "from softmax of net.hidden.value, not from a Linear\n"),
    "state": (lambda n, h, o: nn.functional.linear(h, o[0].expand(3, 5)), "expand of net.other.value is a Linear"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_predictions_that_are_no_linear_are_called_by_their_names(kind):
    predict, told = PREDICTIONS[kind]
    net = Pair().init()

    def energy():
        h, o = net.hidden.value, net.other.value
        below = net.up(net.below.value)
        return net.hidden.energy(below) + net.other.energy(below) + net.above.energy(predict(net, h, o))

    loop = pyro.InferenceLoop(energy, [net.hidden.value, net.other.value], lr=0.1)
    assert told in loop.explain() + "\n"


def two_predictions(net):
    bernoulli = pyro.functional.bernoulli_energy
    return (
        lambda: (
            bernoulli(net.hidden.value, net.up(net.below.value))
            + pyro.functional.poisson_energy(net.hidden.value, net.up(2 * net.below.value))
            + net.above.energy(net.top(net.hidden.value))
        ),
        "net.hidden.value has two energies, a Bernoulli one (bernoulli_energy of net.hidden.value) and a Poisson one "
        "(poisson_energy of net.hidden.value): chains take one of each state, and more where all but one are laws of "
        "z - mu, with no activation around mu",
    )


def computed(net):
    gaussian = pyro.functional.gaussian_energy
    return (
        lambda: net.energy() + gaussian(net.hidden.value.tanh(), net.other.value),
        "tanh of net.hidden.value, which has an energy or predicts, is not a state but computed",
    )


OBSTACLES = (two_predictions, computed)


@pytest.mark.parametrize("of", OBSTACLES)
def test_what_keeps_states_from_a_chain_is_told_with_their_names(of):
    net = Pair().init()
    energy, told = of(net)
    used = [net.hidden.value, *([] if of is two_predictions else [net.other.value])]
    assert told in pyro.InferenceLoop(energy, used, lr=0.1).explain()


def softmax(net):
    return (
        lambda: net.hidden.energy(net.up(net.below.value).softmax(1)) + net.above.energy(net.top(net.hidden.value)),
        "the gradient of net.up.weight is autograd's: linear takes it, not an edge",
    )


def shared(net):
    def energy():
        mu = net.up(net.below.value)
        return net.hidden.energy(mu) + net.other.energy(mu.softmax(1))

    return energy, "net.up.weight is used outside the chain's edges too: it enters in 2 ways, through linear"


def hooked(net):
    net.up.bias.register_hook(lambda g: g)
    return net.energy, "up.bias has a gradient hook"


@pytest.mark.parametrize("of", [softmax, shared, hooked])
def test_what_keeps_gradients_from_a_chain_is_told_with_names(of):
    net = Pair().init()
    energy, told = of(net)
    loop = pyro.InferenceLoop(energy, [net.hidden.value, *([net.other.value] if of is shared else [])], lr=0.1)
    loop.run(1)
    loop.backward([*net.up.parameters(), *net.top.parameters()])
    assert f"not fused M-step gradients: {told}" in loop.explain()


def test_a_term_that_is_no_nodes_energy_is_named_by_its_states():
    net = Net().init()
    loop = pyro.InferenceLoop(lambda: net.energy() + net.hidden.value.cos().sum(1), [net.hidden.value], lr=0.1)
    told = "a term of the energy, sum of cos of net.hidden.value, is not the energy of a node of a known law"
    assert told in loop.explain()


def test_a_printed_program_names_its_tensors():
    net = Net().init()
    loop = pyro.InferenceLoop(net.energy, [net.hidden.value], lr=0.1)
    loop.run(1)
    printed = str(loop.program)
    assert "hidden.value, free state (2, 5) float32" in printed
    assert "top.weight, fixed (3, 5) float32" in printed


@pytest.mark.parametrize("executor", ["chain", "graph", "autograd"])
def test_gradients_of_nothing_are_refused(executor):
    """As those of an iterator that an optimizer has used up."""
    net = Net().init()
    loop = pyro.InferenceLoop(net.energy, [net.hidden.value], lr=0.1, executor=executor)
    learned = pyro.get_mstep_params(net)
    torch.optim.SGD(learned, lr=0.1)
    for params, error, told in (
        (learned, ValueError, "at least one tensor, got none"),
        (net.top.weight, TypeError, "iterable of tensors, as pyromancy.get_mstep_params gives them, got Parameter"),
        (net.top, TypeError, "got Linear"),
        (pyro.get_named_mstep_params(net), TypeError, "got tuple"),
    ):
        with pytest.raises(error, match=told):
            loop.backward(params)


LEARNED = {
    "weights": (lambda net: net.parameters(), "up.weight, up.bias, top.weight, top.bias"),
    "variance": (lambda net: net.hidden.parameters(), "hidden.logvar"),
}


@pytest.mark.parametrize("kind", LEARNED)
def test_learned_parameters_among_the_states_are_named(kind):
    """They would move with the states, and not be learned."""
    params, named = LEARNED[kind]
    net = Net()
    net.hidden = FactorizedGaussianNode(5)
    net.init()
    net.above.requires_grad_(False)
    given = [p for p in params(net) if p.requires_grad and (kind == "variance" or p is not net.hidden.logvar)]
    with pytest.warns(
        UserWarning, match=f"E-steps move, and hold what is learned: {named}; pyromancy.get_estep"
    ) as caught:
        pyro.InferenceLoop(net.energy, given, lr=0.1)
    assert caught[0].filename == __file__


class Own(nn.Module):
    """States wherever a user may keep them."""

    def __init__(self):
        super().__init__()
        self.state = nn.Parameter(torch.rand(2, 5))
        self.more = nn.ParameterList([torch.rand(2, 5)])
        self.table = nn.Embedding(2, 5)
        self.node = StandardGaussianNode(5)
        self.node.init(torch.rand(2, 5))

    def energy(self):
        return self.node.energy(self.state * self.more[0] + self.table(torch.arange(2)))


def test_states_outside_of_nodes_are_taken_without_a_word():
    net = Own()
    before = [p.detach().clone() for p in net.parameters()]
    pyro.InferenceLoop(net.energy, net.parameters(), lr=0.1).run(1)
    assert not any(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


def test_a_method_is_explained_after_gradients_of_another_batch_size():
    hidden, above, up = StandardGaussianNode(3), StandardGaussianNode(2), nn.Linear(3, 2)
    loop = pyro.InferenceLoop(
        lambda: hidden.energy(0 * hidden.value.detach()) + above.energy(up(hidden.value)),
        [hidden.value], method=pyro.methods.Adam(0.1),
    )  # fmt: skip
    for batch in (2, 1):
        hidden.init(torch.rand(batch, 3)), above.init(torch.rand(batch, 2))
        if batch == 2:
            loop.backward(list(up.parameters()))
    assert "[1, 3]" in loop.explain()
    loop.run(2)
