"""What a capture of an energy must see, and what must not be captured."""

import copy
import itertools
import threading

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import pyromancy as pyro
from descent import assert_as_autograd, free
from pyromancy.functional import gaussian_energy

RECURRENT = {
    "RNN": lambda: nn.RNN(4, 5, batch_first=True),
    "GRU": lambda: nn.GRU(4, 5, batch_first=True),
    "LSTM": lambda: nn.LSTM(4, 5, batch_first=True),
}
CELLS = {"RNNCell": nn.RNNCell, "GRUCell": nn.GRUCell}


def data(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_edges(kind):
    """PyTorch's own work in place, on what no state changes too."""
    edge, z, target = RECURRENT[kind]().double(), free(3, 7, 4), data(3, 7, 5)
    explained = assert_as_autograd(
        lambda: gaussian_energy(target, edge(z)[0]) + 0.1 * z.square().sum((1, 2)), [z], list(edge.parameters()), 10
    )
    assert explained.startswith("executor: graph")


@pytest.mark.parametrize("kind", CELLS)
def test_recurrent_cells_with_a_clamped_state(kind):
    edge, z, clamped, target = CELLS[kind](4, 5).double(), free(3, 4), data(3, 5), data(3, 5)
    explained = assert_as_autograd(lambda: gaussian_energy(target, edge(z, clamped)), [z], list(edge.parameters()), 10)
    assert explained.startswith("executor: graph")


@pytest.mark.parametrize("kind", ["attention", "transformer", "maximum"])
def test_results_that_are_no_plain_tensors(kind):
    z, target = free(3, 7, 4), data(3, 7, 4)
    if kind == "attention":
        edge = nn.MultiheadAttention(4, 2, batch_first=True).double()
        predict = lambda: edge(z, z, z, need_weights=False)[0]  # noqa: E731 (a tensor and None)
    elif kind == "transformer":
        edge = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).double()
        predict = lambda: edge(z)  # noqa: E731
    else:
        edge = nn.Linear(4, 4).double()
        predict = lambda: edge(z).max(2).values.unsqueeze(2)  # noqa: E731 (a named tuple)
    energy = lambda: gaussian_energy(target, predict().expand(3, 7, 4))  # noqa: E731
    assert assert_as_autograd(energy, [z], list(edge.parameters())).startswith("executor: graph")


MASK = torch.tensor([True, False, True])


def part_of_a_state(z):
    z.data[0, 0] = 2.0
    return z.square().sum(1)


def with_autocast(z):
    with torch.autocast("cpu", torch.bfloat16):
        product = z @ torch.ones(4, 2, dtype=z.dtype)
    return product.double().square().sum(1)


def swallowing(z):
    try:
        factor = float(torch.tensor(3.0))
    except Exception:
        factor = 1.0
    return factor * z.square().sum(1)


BOUND = torch.tensor(2)
LEFT_TO_AUTOGRAD = {
    "refusal-that-is-caught": (swallowing, "reads values"),
    "number-from-a-list": (lambda z: (z * torch.tensor([BOUND, BOUND, 1, 1])).square().sum(1), "reads values"),
    "split-at-a-tensor": (lambda z: torch.tensor_split(z, torch.tensor([1, 2]), dim=1)[0].square().sum(1), "reads"),
    "sliced-by-a-tensor": (lambda z: z[:, BOUND:].square().sum(1), "a slice reads values"),
    "written-in-part": (part_of_a_state, "__setitem__ works in place"),
    "count-of-a-mask": (lambda z: z.square().sum(1) / len(MASK.nonzero()), "depends on values"),
    "masked-rows": (lambda z: z.square().sum(1) / z[MASK].shape[0], "depends on values"),
    "autocast-within": (with_autocast, "autocast"),
    "sparse": (
        lambda z: torch.sparse.mm(torch.eye(4, dtype=z.dtype).to_sparse(), z.T).square().sum(0),
        "layout torch.sparse",
    ),
    "vmap-within": (lambda z: torch.func.vmap(lambda row: row.square().sum())(z), "torch.func"),
    "reads-a-value": (
        lambda z: F.gaussian_nll_loss(z, torch.zeros_like(z), torch.ones_like(z), reduction="none").sum(1),
        "cannot be traced",
    ),
    "data-from-elsewhere": (
        lambda z: (z * torch.from_numpy(np.ones(4))).square().sum(1),
        "two runs of the energy differ",
    ),
}


@pytest.mark.parametrize("name", LEFT_TO_AUTOGRAD)
def test_what_a_capture_would_get_wrong_is_left_to_autograd(name):
    function, reason = LEFT_TO_AUTOGRAD[name]
    z = free(3, 4)
    explained = assert_as_autograd(lambda: 0.1 * function(z), [z])
    assert explained.startswith("executor: autograd")
    assert reason in explained


ATTENTION, LSTM = nn.MultiheadAttention(4, 2, dropout=0.5).double(), nn.LSTM(4, 4, num_layers=2, dropout=0.5).double()
RANDOM = {
    "attention": lambda x: ATTENTION(x, x, x)[0],
    "lstm": lambda x: LSTM(x)[0],
    "sdpa": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
    "binomial": lambda x: torch.binomial(torch.ones_like(x), torch.full_like(x, 0.5)),
    "feature-dropout": lambda x: torch.feature_dropout(x, 0.5, True),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_within_a_clamped_prediction_are_left_to_autograd(name):
    x, edge, z = data(6, 4), nn.Linear(4, 5).double(), free(6, 5)
    loop = pyro.InferenceLoop(lambda: gaussian_energy(z, edge(RANDOM[name](x))), [z], lr=0.0)
    energies = loop.run(4, record=True).energies.sum(1)
    assert len(energies.unique()) > 1
    assert "random numbers" in loop.explain()


def test_rows_chosen_by_number_are_captured():
    z = free(3, 4)
    assert "graph" in assert_as_autograd(lambda: z[torch.tensor([2, 1, 0])].square().sum(1), [z])


def test_autocast_that_begins_within_is_noticed():
    z, edge, target = free(3, 4, dtype=torch.float32), nn.Linear(4, 4), torch.randn(3, 4)
    half = False

    def energy():
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            prediction = edge(z)
        return gaussian_energy(target, prediction.float())

    loop = pyro.InferenceLoop(energy, [z], lr=0.1)
    loop.run(1)
    assert loop.explain().startswith("executor: chain")
    half = True
    loop.run(1)
    assert loop.explain().startswith("executor: autograd")


class Keeping(nn.Module):
    """Stores its prediction error, and prunes or normalises its edge's weight, which stores the result."""

    def __init__(self, how=None):
        super().__init__()
        self.edge, self.z, self.target = nn.Linear(4, 3).double(), free(5, 4), data(5, 3)
        if how == "pruned":
            prune.random_unstructured(self.edge, "weight", 0.5)
        elif how == "normalised":
            parametrizations.weight_norm(self.edge)

    def energy(self):
        self.error = self.target - torch.sin(self.edge(self.z))
        return 0.5 * self.error.square().sum(1)


@pytest.mark.parametrize("how", [None, "pruned"])
def test_what_the_energy_stores_is_that_of_the_states_at_hand(how):
    net = Keeping(how)
    loop = pyro.InferenceLoop(net.energy, [net.z], lr=0.1)
    for act in (lambda: loop.run(5), lambda: loop.backward(net.parameters()), loop.explain):
        act()
        with torch.no_grad():
            expected = net.target - torch.sin(F.linear(net.z, net.edge.weight, net.edge.bias))
        assert net.edge.weight.isfinite().all()
        torch.testing.assert_close(net.error.detach(), expected)
    assert loop.explain().startswith("executor: graph")


def test_what_is_stored_is_right_whatever_becomes_of_the_run():
    stored, keep, whole = {}, False, False
    z, mu = free(3, 4), data(3, 4)

    def energy():
        error = z - mu
        if keep:
            stored["error"] = error
        return (error.square().mean() if whole else error.square().sum(1)) / 2

    def assert_right():
        torch.testing.assert_close(stored["error"].detach(), z.detach() - mu)

    loop = pyro.InferenceLoop(energy, [z], lr=0.1)
    loop.run(3)
    keep = True  # from the second run on
    loop.run(3)
    assert_right()
    loop.run(0)
    assert_right()
    loop.explain()
    assert_right()
    whole = True
    with pytest.raises(ValueError, match="energy must return one value per sample"):
        loop.run(1, record=True)
    assert_right()


def test_nothing_is_run_again_where_nothing_is_stored():
    z, calls = free(3, 4), []

    def energy():
        calls.append(None)
        return gaussian_energy(z, torch.zeros_like(z))

    loop = pyro.InferenceLoop(energy, [z], lr=0.1)
    loop.run(3)
    calls.clear()
    loop.run(3)
    assert len(calls) == 1


def test_a_cache_of_parametrizations_is_left_to_autograd():
    net = Keeping("normalised")
    twin = copy.deepcopy(net)
    loop = pyro.InferenceLoop(net.energy, [net.z], lr=0.1)
    loop.run(1)
    with parametrize.cached():
        loop.run(2)
        net.energy().mean().backward()
        assert "cached()" in loop.explain()
    plain = torch.optim.SGD([twin.z], lr=0.1)
    for _ in range(3):
        plain.zero_grad()
        twin.energy().sum().backward(inputs=[twin.z])
        plain.step()
    twin.energy().mean().backward()
    torch.testing.assert_close(net.z, twin.z)
    for mine, theirs in zip(net.edge.parameters(), twin.edge.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


class Batches:
    """A network whose energy takes a batch's tensors as they are bound at the moment."""

    def __init__(self, kind):
        self.edge, self.top, self.kind = nn.Linear(4, 5).double(), nn.Linear(5, 3).double(), kind
        self.z = free(6, 5)
        self.take(6)

    def take(self, batch):
        self.x, self.y = data(batch, 4), data(batch, 3)
        self.z.data = data(batch, 5)

    def energy(self):
        hidden = torch.tanh(self.z) if self.kind == "chain" else torch.sin(self.z)
        return gaussian_energy(self.z, self.edge(self.x)) + gaussian_energy(self.y, self.top(hidden))


@pytest.mark.parametrize("kind", ["chain", "graph"])
def test_new_data_need_no_new_capture(kind):
    net = Batches(kind)
    loop = pyro.InferenceLoop(net.energy, [net.z], lr=0.1, executor=kind)
    learned = [*net.edge.parameters(), *net.top.parameters()]
    loop.run(2)
    program = loop.program
    for _ in range(3):
        net.take(6)
        before = net.z.detach().clone()
        loop.run(4)
        found = net.z.detach().clone()
        for p in learned:
            p.grad = None
        net.x, net.y = net.x.clone(), net.y.clone()  # between run and backward as well
        loop.backward(learned)
        expected = torch.autograd.grad(net.energy().mean(), learned)
        torch.testing.assert_close([p.grad for p in learned], list(expected))
        net.z.data = before
        plain = torch.optim.SGD([net.z], lr=0.1)
        for _ in range(4):
            plain.zero_grad()
            net.energy().sum().backward(inputs=[net.z])
            plain.step()
        torch.testing.assert_close(found, net.z.detach(), rtol=1e-11, atol=1e-11)
    assert loop.program is program


def rebind_to_the_state(net):
    net.y = net.z.detach()[:, :3]  # shares the state's memory


def rebind_one_use(net):
    old, new = net.x, data(6, 4)
    uses = itertools.cycle([new, old])
    net.edge.forward = lambda x: F.linear(next(uses), net.edge.weight, net.edge.bias)


def rebind_to_a_result(net):
    net.y = torch.sin(net.edge(net.x))[:, :3].detach()


def rebind_to_the_learned(net):
    net.y = nn.Parameter(net.y.clone())


@pytest.mark.parametrize("change", [rebind_to_the_state, rebind_one_use, rebind_to_a_result, rebind_to_the_learned])
def test_what_is_no_new_data_is_noticed(change):
    net = Batches("graph")
    loop = pyro.InferenceLoop(net.energy, [net.z], lr=0.1)
    loop.run(2)
    change(net)
    before = net.z.detach().clone()
    loop.run(2)
    found = net.z.detach().clone()
    with torch.no_grad():
        net.z.copy_(before)
    plain = torch.optim.SGD([net.z], lr=0.1)
    for _ in range(2):
        plain.zero_grad()
        net.energy().sum().backward(inputs=[net.z])
        plain.step()
    torch.testing.assert_close(found, net.z.detach(), rtol=1e-11, atol=1e-11)


def test_inference_mode():
    net = Batches("graph")
    expected = copy.deepcopy(net)
    pyro.InferenceLoop(expected.energy, [expected.z], lr=0.1).run(3)
    with torch.inference_mode():
        loop = pyro.InferenceLoop(net.energy, [net.z], lr=0.1)
        loop.run(3)
        assert loop.explain().startswith("executor: graph")
    torch.testing.assert_close(net.z, expected.z)


def test_gradients_behind_what_the_energy_takes():
    x, edge, top, z, y = data(6, 4), nn.Linear(4, 5).double(), nn.Linear(5, 3).double(), free(6, 5), data(6, 3)
    mu = edge(x)  # outside the energy
    learned = [*edge.parameters(), *top.parameters()]
    loop = pyro.InferenceLoop(lambda: gaussian_energy(z, mu) + gaussian_energy(y, top(z)), [z], lr=0.1)
    loop.run(2)
    expected = torch.autograd.grad((gaussian_energy(z, edge(x)) + gaussian_energy(y, top(z))).mean(), learned)
    loop.backward(learned)
    torch.testing.assert_close([p.grad for p in learned], list(expected))
    assert "computed from others" in loop.explain()


def test_states_of_no_samples_share_no_memory():
    a, b, edge, x = free(0, 5), free(0, 4), nn.Linear(4, 5).double(), data(0, 5)
    loop = pyro.InferenceLoop(
        lambda: gaussian_energy(x, a.sin() * a) + gaussian_energy(a, edge(b)),
        [a, b],
        method=pyro.methods.Accelerated(),
    )
    trace = loop.run(3, tol=1e-3)
    assert trace.taken.shape == trace.converged.shape == (0,)
    assert loop.explain().startswith("executor: graph")


@pytest.mark.parametrize("runs", [0, 1, 8])
def test_wrapped_functions_of_pytorch_are_called_once(monkeypatch, runs):
    """PyTorch's own Python code names itself to a mode by what has its name now: the wrapper, which calls it again."""
    z, x, elu = free(3, 4), data(3, 4), F.elu
    energy = lambda: gaussian_energy(x, F.elu(z))  # noqa: E731
    loop = pyro.InferenceLoop(energy, [z], lr=0.1)
    for _ in range(runs):
        loop.run(1)
    monkeypatch.setattr(F, "elu", lambda *a: 1.5 * elu(*a))
    expected = z.detach() - 0.1 * torch.autograd.grad(energy().sum(), z)[0]
    loop.run(1)
    torch.testing.assert_close(z.detach(), expected, rtol=1e-12, atol=1e-12)


def test_memory_that_a_state_comes_to_share_is_noticed():
    z, other, edge = free(6, 5), data(6, 5), nn.Linear(5, 5).double()
    energy = lambda: gaussian_energy(z, edge(other.tanh()))  # noqa: E731
    loop = pyro.InferenceLoop(energy, [z], lr=0.1)
    loop.run(2)
    z.data = other
    start = other.clone()
    loop.run(3)
    found = z.detach().clone()
    other.copy_(start)
    sgd = torch.optim.SGD([z], lr=0.1)
    for _ in range(3):
        sgd.zero_grad()
        energy().sum().backward(inputs=[z])
        sgd.step()
    torch.testing.assert_close(found, z.detach(), rtol=1e-11, atol=1e-11)
    assert "shares its memory" in loop.explain()


def test_one_new_tensor_for_two_is_captured_anew():
    x, z, y = data(6, 4), free(6, 5), free(6, 5)
    first, second = nn.Parameter(data(5, 4)), nn.Parameter(data(5, 5))
    biases = [data(5), data(5)]
    energy = lambda: (  # noqa: E731
        gaussian_energy(z, F.linear(x, first, biases[0])) + gaussian_energy(y, F.linear(z.tanh(), second, biases[1]))
    )
    loop = pyro.InferenceLoop(energy, [z, y], lr=0.1)
    loop.run(2)
    tied = data(5)
    biases[:] = tied, tied
    loop.run(2)
    tied.requires_grad_()
    (expected,) = torch.autograd.grad(energy().mean(), [tied])
    loop.backward([tied])
    torch.testing.assert_close(tied.grad, expected)


def test_complex_states_run_on_autograd():
    z = nn.Parameter(torch.randn(6, 4, dtype=torch.complex128))
    target = torch.randn(6, 4, dtype=torch.complex128)
    assert "complex128" in assert_as_autograd(lambda: (z - target).abs().square().sum(1), [z])


def test_a_state_without_a_gradient_has_no_velocity():
    z, idle = free(6, 4), free(6, 4)

    def energy():
        return z.square().sum(1) + 0.0 * float(idle.detach().sum())

    start = idle.detach().clone()
    pyro.InferenceLoop(energy, [z, idle], lr=0.1, momentum=0.5).run(3)
    assert torch.equal(idle, start)


def test_covariance_gradients_in_inference_mode():
    node, edge, x = pyro.nodes.MultivariateGaussianNode(3).double(), nn.Linear(4, 3).double(), data(5, 4)
    node.init(data(5, 3))
    learned = [node.covar_cf_logdiag, node.covar_cf_offtril]
    loop = pyro.InferenceLoop(lambda: node.energy(edge(x)), [node.value], lr=0.1)
    expected = torch.autograd.grad(node.energy(edge(x)).mean(), learned)
    loop.run(0)
    with torch.inference_mode():
        loop.backward(learned)
    torch.testing.assert_close([p.grad for p in learned], list(expected))


def test_graphs_of_several_threads():
    """Tracing changes PyTorch's modules for a moment, and may not be done by two threads at a time."""
    weight, failures = data(4, 4), []

    def work():
        for _ in range(4):
            z = free(3, 4)
            loop = pyro.InferenceLoop(lambda z=z: (z @ weight).tanh().square().sum(1), [z], lr=0.1)
            loop.run(2)
            if not loop.explain().startswith("executor: graph"):
                failures.append(loop.explain())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert not torch.fx._symbolic_trace.is_fx_tracing()
