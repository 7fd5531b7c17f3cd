"""Ways to write one energy: sums in place, minus signs, numbers and penalties beside a chain's terms."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import pyromancy as pyro
from descent import assert_as_autograd, free
from pyromancy.functional import gaussian_energy, multivariate_energy


class Nodes:
    """Data, a hidden state and a target, in float64."""

    def __init__(self, batch=4):
        self.x, self.y, self.z = torch.randn(batch, 6).double(), torch.randn(batch, 3).double(), free(batch, 5)
        self.up, self.top = nn.Linear(6, 5).double(), nn.Linear(5, 3).double()
        self.logvar = free(3)
        self.factor = torch.eye(3).double() + 0.1 * torch.ones(3, 3).double().tril()
        self.learned = [*self.up.parameters(), *self.top.parameters(), self.logvar]

    def first(self):
        return gaussian_energy(self.z, self.up(self.x))

    def second(self, logvar=None):
        return gaussian_energy(self.y, self.top(torch.tanh(self.z)), logvar)


def into_zeros(n):
    v = torch.zeros(4, dtype=torch.float64)
    v += n.first()
    return v.add_(n.second(n.logvar))


def into_the_first_term(n):
    v = n.first()
    v += n.second(n.logvar)
    return v


def scaled_in_place(n):
    v = n.x.new_zeros(4)
    v += n.first()
    v -= n.second(n.logvar)
    v *= 0.5
    v /= -2
    return v


def under_another_name(n):
    v = n.x.new_zeros(4)
    total = v
    v += n.first()
    total.add_(n.second(n.logvar), alpha=0.5)
    return v


def used_before_and_after(n):
    """Each use of one tensor takes what it then holds."""
    v = n.first() * 1.0
    before = v * 2.0
    v += n.second(n.logvar)
    after = v * 0.25
    v.sub_(before)
    return v + after


def hidden_activation_in_place(n):
    h = n.top(n.z)
    F.relu(h, inplace=True)
    return n.first() + gaussian_energy(n.y, h, n.logvar)


# How the energy is written; the executor, the number of terms, and whether the M-step's gradients are the chain's
WRITTEN = {
    "sum": (lambda n: sum([n.first(), n.second(n.logvar)]), "chain", 2, True),
    "into-zeros": (into_zeros, "chain", 3, True),
    "into-the-first-term": (into_the_first_term, "chain", 2, True),
    "scaled-in-place": (scaled_in_place, "chain", 3, True),
    "under-another-name": (under_another_name, "chain", 3, True),
    "used-before-and-after": (used_before_and_after, "chain", 3, True),
    "activation-in-place": (hidden_activation_in_place, "chain", 2, True),
    "module-in-place": (lambda n: n.first() + gaussian_energy(n.y, nn.ELU(0.7, True)(n.top(n.z)))
                        + 0 * n.logvar.sum(), "chain", 3, True),
    "minus": (lambda n: n.first() - 0.1 * n.second(n.logvar), "chain", 2, True),
    "minus-first": (lambda n: -(0.1 * n.second(n.logvar)) + n.first(), "chain", 2, True),
    "minus-of-a-sum": (lambda n: n.first() - (0.1 * n.second(n.logvar) - 0.5), "chain", 3, True),
    "subtract-alpha": (lambda n: torch.sub(n.first(), n.second(n.logvar), alpha=0.2), "chain", 2, True),
    "add-alpha": (lambda n: torch.add(n.first(), n.second(n.logvar), alpha=0.2), "chain", 2, True),
    "rsub": (lambda n: torch.rsub(0.1 * n.second(n.logvar), n.first()), "chain", 2, True),
    "number-minus": (lambda n: -(1.5 - n.first()) + n.second(n.logvar), "chain", 3, True),
    "negative-divisor": (lambda n: n.first() + n.second(n.logvar) / -10, "chain", 2, True),
    "aten": (lambda n: torch.ops.aten.sub(n.first(), torch.ops.aten.mul(n.second(n.logvar), 0.1)), "chain", 2, True),
    "minus-full-covariance": (
        lambda n: n.first() - 0.1 * multivariate_energy(n.y, n.top(n.z), n.factor) + 0 * n.logvar.sum(),
        "chain", 3, True,
    ),
    "minus-what-is-no-node": (lambda n: n.first() + n.second(n.logvar) - torch.erf(n.z).sum(1), "graph", 3, True),
    "minus-what-is-of-a-state-with-another": (
        lambda n: n.first() + n.second(n.logvar) - (0.1 * n.z).sum(1), "chain", 2, True,
    ),
    "number": (lambda n: n.first() + 3.0 + n.second(n.logvar), "chain", 3, True),
    "zeros": (lambda n: n.x.new_zeros(4) + n.first() + n.second(n.logvar), "chain", 3, True),
    "data-term": (lambda n: n.first() + n.second(n.logvar) + n.x.square().sum(1), "chain", 3, True),
    "penalty": (lambda n: n.first() + n.second(n.logvar) + 0.1 * n.top.weight.square().sum(), "chain", 3, True),
    "penalties": (
        lambda n: n.first() + n.second(n.logvar)
        - 0.1 * (n.top.weight.square().sum() + n.up.bias.abs().sum() - 2.0) + n.logvar.exp().sum(),
        "chain", 6, True,
    ),
    "penalty-per-sample": (
        lambda n: n.first() + n.second(n.logvar) + (n.x @ n.up.weight.mT).square().sum(1), "chain", 3, True,
    ),
    "penalty-of-nothing-else": (lambda n: n.first() + n.logvar.square().sum() + n.second(), "chain", 3, True),
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}], ids=["plain", "momentum"])
@pytest.mark.parametrize("name", WRITTEN)
def test_as_autograd_however_it_is_written(name, options):
    energy, executor, terms, fused = WRITTEN[name]
    n = Nodes()
    explained = assert_as_autograd(lambda: energy(n), [n.z], n.learned, 5, **options)
    assert explained.startswith(f"executor: {executor}")
    assert ("not fused M-step gradients" not in explained) == fused
    loop = pyro.InferenceLoop(lambda: energy(n), [n.z], lr=0.1)
    expected = energy(n).detach().mean()
    recorded = loop.run(2, record=True).energies
    assert recorded.shape == (3, terms)
    torch.testing.assert_close(recorded[0].sum(), expected, rtol=1e-12, atol=1e-12)


def test_a_column_for_every_term_in_the_order_written():
    n = Nodes()
    loop = pyro.InferenceLoop(lambda: 2.0 - n.second() / 4 + n.first() - n.x.sum(1), [n.z], lr=0.1)
    expected = torch.stack([torch.full((4,), 2.0).double(), -n.second() / 4, n.first(), -n.x.sum(1)]).mean(1).detach()
    torch.testing.assert_close(loop.run(1, record=True).energies[0], expected, rtol=1e-12, atol=1e-12)


def view_of_a_state(n):
    flat = n.z.detach().clone().view(-1)
    flat.mul_(2.0)
    return n.first() + flat.view(4, 5).sum(1)


def view_taken_before(n):
    v = n.first()
    first_row = v[:1]
    v += n.second()
    return v + first_row


kept = torch.zeros(4, dtype=torch.float64)


def what_is_kept(n):
    kept.mul_(0.0)
    return n.first() + kept


LEFT_TO_AUTOGRAD = {
    "view": view_of_a_state,
    "view-taken-before": view_taken_before,
    "what-is-kept": what_is_kept,
    "part": lambda n: n.first()[1:].mul_(2.0).sum() + n.second(),
    "fill": lambda n: n.first() + n.second().fill_(1.0),
}


@pytest.mark.parametrize("name", LEFT_TO_AUTOGRAD)
def test_what_others_see_is_not_written_otherwise(name):
    n = Nodes()
    explained = assert_as_autograd(lambda: LEFT_TO_AUTOGRAD[name](n), [n.z], n.learned[:2])
    assert explained.startswith("executor: autograd")
    assert "works in place" in explained


def test_a_sum_in_place_keeps_the_dtype_of_what_it_is_summed_into():
    z, x = free(4, 5), torch.randn(4, 5).double()

    def energy():
        total = torch.zeros(4)
        total += gaussian_energy(z, x)
        return total

    loop = pyro.InferenceLoop(energy, [z], lr=0.1)
    start = z.detach().clone()
    loop.run(1)
    assert "another shape or dtype" in loop.explain()
    torch.testing.assert_close(z.detach(), start - 0.1 * (start - x), rtol=1e-6, atol=1e-6)


def test_another_way_to_write_is_another_energy():
    """A dry run tells a sum in place from one that is not, and what comes in which order."""
    n = Nodes()
    written = {"energy": into_zeros}
    loop = pyro.InferenceLoop(lambda: written["energy"](n), [n.z], lr=0.1)
    twin = n.z.detach().clone().requires_grad_()
    for energy in (into_zeros, scaled_in_place, used_before_and_after, into_the_first_term, into_zeros):
        written["energy"] = energy
        loop.run(3)
        with torch.no_grad():
            found = n.z.clone()
            n.z.copy_(twin)
        sgd = torch.optim.SGD([n.z], lr=0.1)
        for _ in range(3):
            sgd.zero_grad()
            energy(n).sum().backward(inputs=[n.z])
            sgd.step()
        torch.testing.assert_close(found, n.z.detach(), rtol=1e-10, atol=1e-10)
        twin = n.z.detach().clone()


def test_what_the_energy_stores_of_a_sum_in_place():
    n, stored = Nodes(), {}

    def energy():
        stored["total"] = total = n.x.new_zeros(4)
        total += n.first()
        total += n.second()
        return total * 1.0

    loop = pyro.InferenceLoop(energy, [n.z], lr=0.1)
    loop.run(3)
    torch.testing.assert_close(stored["total"], (n.first() + n.second()).detach(), check_stride=False)


@pytest.mark.slow
@pytest.mark.parametrize("terms", [3000])
def test_thousands_of_terms(terms):
    """A sequence unrolled in time: nothing recurses over its terms."""
    z, data = [free(2, 1) for _ in range(terms)], torch.ones(2, 1).double()

    def energy():
        total = gaussian_energy(z[0], data)
        for state in z[1:]:
            total = total + gaussian_energy(state, data)
        return total

    start = torch.stack(z).detach()
    loop = pyro.InferenceLoop(energy, z, lr=0.1)
    assert loop.run(2, record=True).energies.shape == (3, terms)
    assert loop.explain().startswith("executor: chain")
    torch.testing.assert_close(torch.stack(z).detach(), 1 + 0.81 * (start - 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("how", ["embedding", "bag"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_states_whose_gradients_are_sparse(how, momentum):
    kind = nn.Embedding if how == "embedding" else nn.EmbeddingBag
    options = {"sparse": True} if how == "embedding" else {"sparse": True, "mode": "sum"}
    codes, rows = kind(10, 4, **options).double(), torch.tensor([1, 3, 7])
    index = rows if how == "embedding" else rows.unsqueeze(1)
    before = codes.weight.detach().clone()
    # each row that is used moves as z <- z - lr v with v <- momentum v + z; the others stay
    expected, velocity = before.clone(), torch.zeros(3, 4).double()
    loop = pyro.InferenceLoop(lambda: 0.5 * codes(index).square().sum(1), [codes.weight], lr=0.1, momentum=momentum)
    for steps in (3, 2):  # velocities go on from run to run
        loop.run(steps)
        for _ in range(steps):
            velocity = momentum * velocity + expected[rows]
            expected[rows] -= 0.1 * velocity
        torch.testing.assert_close(codes.weight.detach(), expected, rtol=1e-12, atol=1e-12)
    assert "the gradient of codes.weight is sparse" in loop.explain()


def test_gradients_are_added_to_sparse_ones():
    n = Nodes()
    dense = torch.randn(3, 5).double()
    n.top.weight.grad = dense.to_sparse()
    loop = pyro.InferenceLoop(lambda: n.first() + n.second(), [n.z], lr=0.1)
    loop.backward([n.top.weight])
    assert "not fused" not in loop.explain()
    (gradient,) = torch.autograd.grad((n.first() + n.second()).mean(), [n.top.weight])
    torch.testing.assert_close(n.top.weight.grad, dense + gradient, rtol=1e-12, atol=1e-12)


def conjugated(x):
    return x.conj()


def negated(x):
    """The imaginary part of a conjugate: the same memory, with the negative bit."""
    return x.conj().imag


@pytest.mark.parametrize("bit", [conjugated, negated])
def test_data_with_a_bit_that_the_captured_had_not(bit):
    z = free(3, 4)
    given = {}

    def energy():
        x = given["x"]
        x = torch.view_as_real(x.resolve_conj()).sum(2) if x.is_complex() else x
        return gaussian_energy(z, 2 * x + torch.sin(z))

    loop = pyro.InferenceLoop(energy, [z], lr=0.1)
    for flagged in (False, True, False, True):
        x = torch.randn(3, 4, dtype=torch.complex128)
        given["x"] = bit(x) if flagged else x if bit is conjugated else x.imag
        assert bool(given["x"].is_conj() or given["x"].is_neg()) == flagged
        expected = z.detach() - 0.1 * torch.autograd.grad(energy().sum(), z)[0]
        loop.run(1)
        torch.testing.assert_close(z.detach(), expected, rtol=1e-12, atol=1e-12)


def test_data_of_another_layout():
    z, given = free(3, 4), {}
    loop = pyro.InferenceLoop(lambda: gaussian_energy(z, given["x"].to_dense()), [z], lr=0.1)
    for sparse in (False, True, False):
        x = torch.randn(3, 4).double()
        given["x"] = x.to_sparse() if sparse else x
        expected = z.detach() - 0.1 * (z.detach() - x)
        loop.run(1)
        assert ("layout torch.sparse" in loop.explain()) == sparse
        torch.testing.assert_close(z.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning", "ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize("kind", ["quantized", "nested"])
def test_tensors_that_are_more_than_their_elements_are_left_to_autograd(kind):
    z = free(3, 4)
    if kind == "quantized":
        odd = torch.quantize_per_tensor(torch.randn(3, 4), 0.1, 0, torch.qint8)
        energy = lambda: gaussian_energy(z, odd.dequantize().double())  # noqa: E731
    else:
        odd = torch.nested.nested_tensor([torch.randn(4), torch.randn(2), torch.randn(3)])
        energy = lambda: gaussian_energy(z, odd.to_padded_tensor(0.0).double())  # noqa: E731
    assert "takes a nested or quantized tensor" in assert_as_autograd(energy, [z])


MASK = torch.ones(5, 5, dtype=torch.bool).triu(1)
MASKED = nn.MultiheadAttention(4, 2, batch_first=True).double()


def shifted(z):
    moved = torch.zeros_like(z)
    moved[:, 1:] = torch.tanh(z)[:, :-1]
    return moved


def filled(z):
    scores = z @ z.mT
    scores.masked_fill_(MASK, -1e9)
    return scores.softmax(-1) @ z


def assigned(z):
    scores = z @ z.mT
    scores[:, MASK] = -1e9
    scores[..., 0] = 0.5
    return scores.softmax(-1) @ z


def written(z):
    made = torch.empty(3, 5, 4, dtype=z.dtype)
    made[...] = 2 * z
    made[:, torch.tensor([0, 3])] = z[:, 1:3].square()
    return made.clamp_min_(-0.5).sin_()


def added(z):
    return z.square().index_add_(1, torch.tensor([0, 1, 1, 4]), z[:, 1:])


PARTS = {
    "shifted": shifted,
    "filled": filled,
    "assigned": assigned,
    "written": written,
    "added": added,
    "masked attention": lambda z: MASKED(z, z, z, attn_mask=MASK)[0],
    "masked attention without weights": lambda z: MASKED(z, z, z, attn_mask=MASK, need_weights=False)[0],
}


@pytest.mark.parametrize("name", PARTS)
def test_what_the_energy_has_made_may_be_written_in_parts(name):
    torch.manual_seed(8)
    z, target = nn.Parameter(torch.randn(3, 5, 4).double()), torch.randn(3, 5, 4).double()
    energy = lambda: 0.5 * (target - PARTS[name](z)).square().sum((1, 2))  # noqa: E731
    for _ in range(2):
        assert assert_as_autograd(energy, [z]).startswith("executor: graph")
    loop = pyro.InferenceLoop(energy, [z], lr=0.1)
    expected = energy().detach()
    for _ in range(6):  # from some run on the energy is watched and not run dry
        loop.run(1)
        z.data.normal_()
        expected = energy().detach()
        torch.testing.assert_close(loop.energy(), expected, rtol=1e-12, atol=1e-12)


def test_what_is_assigned_is_read_anew():
    z, data = nn.Parameter(torch.randn(3, 4).double()), {"x": torch.randn(3).double()}

    def energy():
        kept = z * 1.0
        kept[:, 0] = data["x"]
        return kept.square().sum(1)

    loop = pyro.InferenceLoop(energy, [z], lr=0.1)
    for _ in range(5):
        data["x"] = torch.randn(3).double()
        before = z.detach().clone()
        trace = loop.run(1, record=True)
        assert (z[:, 0] == before[:, 0]).all()
        torch.testing.assert_close(z.detach()[:, 1:], 0.8 * before[:, 1:], rtol=1e-12, atol=1e-12)
        total = before[:, 1:].square().sum() + data["x"].square().sum()
        torch.testing.assert_close(trace.energies[0].sum() * len(before), total, rtol=1e-12, atol=1e-12)
