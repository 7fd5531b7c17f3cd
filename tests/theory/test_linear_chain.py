"""Linear chains have closed forms: where inference ends, how it gets there, and at what energy.

For z_0 = x and z_L = y clamped and mu_l = W_l z_{l-1}, with r = y - W_L ... W_1 x the equilibrium energy is
F* = 1/2 r^T S^-1 r, S = I + sum_{l=2..L} P_l P_l^T, P_l = W_L ... W_l.
"""

import pytest
import torch

import networks
from descent import WAYS, descent, inference_loop
from pyromancy import functional, get_estep_params

pytestmark = pytest.mark.usefixtures("backend")

WIDTHS = [(3, 4, 2), (2, 5, 3, 4), (4, 3, 6, 2, 3)]
BATCH = 7
TIGHT = {"rtol": 1e-10, "atol": 1e-10}
widths = pytest.mark.parametrize("widths", WIDTHS, ids=lambda w: "-".join(map(str, w)))


def linear(z):
    return z


def chain(widths):
    """A linear network and a batch; the free states are the E-step parameters."""
    pcn = networks.Chain(["StandardGaussianNode"] * len(widths), widths, activation=linear, bias=False)
    x, y = (torch.randn(BATCH, n, dtype=torch.float64) for n in (widths[0], widths[-1]))
    pcn.init(x, y)
    free = [*get_estep_params(pcn, exclude=(pcn.nodes[0], pcn.nodes[-1]))]
    return pcn, x, y, free


def weights(pcn):
    return [edge.weight.detach() for edge in pcn.edges]


def hessian(pcn):
    """Of the energy for the free states of one sample: block-tridiagonal, I + W_{l+1}^T W_{l+1} and -W_l."""
    w = weights(pcn)
    blocks = [[torch.zeros(b.shape[0], a.shape[0], dtype=torch.float64) for a in w[:-1]] for b in w[:-1]]
    for i in range(len(w) - 1):
        blocks[i][i] = torch.eye(w[i].shape[0], dtype=torch.float64) + w[i + 1].T @ w[i + 1]
        if i:
            blocks[i][i - 1], blocks[i - 1][i] = -w[i], -w[i].T
    return torch.cat([torch.cat(row, 1) for row in blocks])


def equilibrium(pcn, x, y):
    """The free states that solve the block-tridiagonal system: [B, n] for each."""
    w = weights(pcn)
    right = [torch.zeros(BATCH, a.shape[0], dtype=torch.float64) for a in w[:-1]]
    right[0] += x @ w[0].T
    right[-1] += y @ w[-1]
    solved = torch.linalg.solve(hessian(pcn), torch.cat(right, 1).T).T
    return solved.split([a.shape[0] for a in w[:-1]], 1)


def least_energy(pcn, x, y):
    w = weights(pcn)
    p, s = torch.eye(y.shape[1], dtype=torch.float64), torch.eye(y.shape[1], dtype=torch.float64)
    for weight in reversed(w[1:]):
        p = p @ weight
        s = s + p @ p.T
    r = y - x @ (p @ w[0]).T
    return 0.5 * (r * torch.linalg.solve(s, r.T).T).sum(1)


def put(free, states):
    with torch.no_grad():
        for z, value in zip(free, states, strict=True):
            z.copy_(value)


def functional_descent(pcn, free, lr):
    """Steps from errors and feedback, without autograd."""

    @torch.no_grad()
    def run(steps):
        for _ in range(steps):
            above = [node.value for node in pcn.nodes[:-1]]
            errors = [
                node.error(pcn.predict(z, edge)) for node, edge, z in zip(pcn.nodes[1:], pcn.edges, above, strict=True)
            ]
            for z, error, below, edge in zip(free, errors[:-1], errors[1:], pcn.edges[1:], strict=True):
                functional.estep_(z, error, below @ edge.weight, lr=lr)

    return run


def descend(pcn, free, lr, how):
    """A function that runs E-steps, in each of the ways there are."""
    return functional_descent(pcn, free, lr) if how == "functional" else descent(pcn.energy, free, lr, how)


ways = pytest.mark.parametrize("how", ["functional", *WAYS])
loops = pytest.mark.parametrize("how", WAYS[1:])


@widths
def test_energy_at_equilibrium(widths):
    pcn, x, y, free = chain(widths)
    put(free, equilibrium(pcn, x, y))
    torch.testing.assert_close(pcn.energy(), least_energy(pcn, x, y), **TIGHT)
    for gradient in torch.autograd.grad(pcn.energy().sum(), free):
        assert gradient.abs().max() < 1e-10


@widths
@ways
def test_descent_ends_at_equilibrium(widths, how):
    pcn, x, y, free = chain(widths)
    eigenvalues = torch.linalg.eigvalsh(hessian(pcn))
    lr = 2 / (eigenvalues[0] + eigenvalues[-1]).item()
    rate = (1 - lr * eigenvalues).abs().max().item()
    descend(pcn, free, lr, how)(int(-30 / torch.tensor(rate).log()))
    for z, expected in zip(free, equilibrium(pcn, x, y), strict=True):
        torch.testing.assert_close(z.detach(), expected, **TIGHT)
    torch.testing.assert_close(pcn.energy(), least_energy(pcn, x, y), **TIGHT)


@widths
@loops
def test_recorded_energies_end_at_the_least(widths, how):
    pcn, x, y, free = chain(widths)
    lr = 1 / torch.linalg.eigvalsh(hessian(pcn))[-1].item()
    recorded = inference_loop(pcn.energy, free, lr, how).run(25, record=True).energies.sum(1)
    assert recorded.shape == (26,)
    assert (recorded.diff() <= 1e-12).all()
    put(free, equilibrium(pcn, x, y))
    recorded = inference_loop(pcn.energy, free, lr, how).run(1, record=True).energies.sum(1)
    torch.testing.assert_close(recorded, least_energy(pcn, x, y).mean().expand(2), **TIGHT)


@widths
@ways
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_descent_is_monotone_below_the_bound(widths, how, fraction):
    pcn, x, y, free = chain(widths)
    lr = fraction * 2 / torch.linalg.eigvalsh(hessian(pcn))[-1].item()
    run = descend(pcn, free, lr, how)
    before = pcn.energy().detach()
    least = least_energy(pcn, x, y)
    for _ in range(25):
        run(1)
        energy = pcn.energy().detach()
        assert (energy <= before + 1e-12).all()
        assert (energy >= least - 1e-12).all()
        before = energy


@widths
@ways
def test_descent_diverges_above_the_bound(widths, how):
    pcn, x, y, free = chain(widths)
    values, vectors = torch.linalg.eigh(hessian(pcn))
    away = [1e-3 * part.expand(BATCH, -1) for part in vectors[:, -1].split([z.shape[1] for z in free])]
    put(free, [z + d for z, d in zip(equilibrium(pcn, x, y), away, strict=True)])
    lr = 1.02 * 2 / values[-1].item()
    run = descend(pcn, free, lr, how)
    excess = (pcn.energy() - least_energy(pcn, x, y)).detach()
    for _ in range(20):
        run(1)
        now = (pcn.energy() - least_energy(pcn, x, y)).detach()
        torch.testing.assert_close(now, 1.04**2 * excess, rtol=1e-5, atol=0.0)
        excess = now


@widths
def test_second_derivative_is_the_block_tridiagonal_matrix(widths):
    pcn, _, _, free = chain(widths)
    gradients = torch.autograd.grad(pcn.energy()[0], free, create_graph=True)
    rows = [
        torch.cat([h[0] for h in torch.autograd.grad(g, free, retain_graph=True, materialize_grads=True)])
        for gradient in gradients
        for g in gradient[0]
    ]
    torch.testing.assert_close(torch.stack(rows), hessian(pcn), **TIGHT)


@ways
def test_by_hand(how):
    # F(z) = 1/2 (z - 2)^2 + 1/2 (1 - 3 z)^2: least at z = 5 / 10, where it is 9/8 + 1/8
    pcn = networks.Chain(["StandardGaussianNode"] * 3, (1, 1, 1), activation=linear, bias=False)
    with torch.no_grad():
        pcn.edges[0].weight.fill_(2.0)
        pcn.edges[1].weight.fill_(3.0)
    pcn.init(torch.ones(1, 1), torch.ones(1, 1))
    free = [pcn.nodes[1].value]
    assert pcn.energy().item() == 12.5
    descend(pcn, free, 0.1, how)(1)  # 2 - 0.1 (0 - 3 (1 - 6)) is the minimum itself: the curvature is 10
    assert free[0].item() == pytest.approx(0.5, abs=1e-10)
    assert pcn.energy().item() == pytest.approx(1.25, abs=1e-10)
    descend(pcn, free, 0.05, how)(3)
    assert free[0].item() == pytest.approx(0.5, abs=1e-10)
