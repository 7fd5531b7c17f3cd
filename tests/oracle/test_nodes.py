"""Nodes beside the oracle's, in float64, wherever section "differences" of the documentation lists none."""

import math

import pytest
import torch

import oracle_package
import pyromancy
from networks import KINDS, LEARNED, covariance_of, node

oracle = oracle_package.load()
pytestmark = pytest.mark.usefixtures("backend")

PACKAGES = (pyromancy, oracle)
# (node dimensions, sizes of the placeholders); with placeholders the energy differs by the log-determinant
SHAPES = [
    ((1,), ()),
    ((5,), ()),
    ((3, 4), ()),
    ((2, 3, 2), ()),
    ((4, None), (3,)),
    ((None, 4), (3,)),
    ((2, None, 3), (4,)),
]
shapes = pytest.mark.parametrize(("dims", "fill"), SHAPES, ids=lambda x: "x".join(map(str, x)) or "-")
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def equal(a, b):
    torch.testing.assert_close(a, b, **EXACT)


def pair(kind, dims):
    """The same node of both packages, with a covariance that is no multiple of the identity."""
    covariance = covariance_of(node(kind, *dims).size) if kind in LEARNED else None
    return [node(kind, *dims, covariance=covariance, package=package.nodes) for package in PACKAGES]


def parameters(kind):
    return {
        "StandardGaussianNode": ("value",),
        "MultivariateGaussianNode": ("value", "covar_cf_logdiag", "covar_cf_offtril"),
    }.get(kind, ("value", "logvar"))


@shapes
@pytest.mark.parametrize("kind", KINDS)
class TestGaussian:
    def test_energy_and_gradients(self, kind, dims, fill):
        ours, theirs = pair(kind, dims)
        shape = (3, *ours.shapeobj.filled(7, *fill)[1:])
        value, pred = torch.randn(2, *shape, dtype=torch.float64)
        weight = torch.randn(3, dtype=torch.float64)
        energies, gradients = [], []
        for which in (ours, theirs):
            which.init(value)
            leaf = pred.clone().requires_grad_()
            energies.append(which.energy(leaf))
            # the log-determinant's part is another one where positions share a variance: see test_differences.py
            names = ("value",) if fill else parameters(kind)
            gradients.append(torch.autograd.grad(energies[-1] @ weight, [leaf, *(getattr(which, n) for n in names)]))
        assert energies[0].shape == (3,)
        equal(*gradients)
        logdet = 0.5 * torch.linalg.slogdet(theirs.covariance).logabsdet
        equal(energies[0] - math.prod(fill) * logdet, energies[1] - logdet)

    def test_error(self, kind, dims, fill):
        ours, theirs = pair(kind, dims)
        shape = (3, *ours.shapeobj.filled(7, *fill)[1:])
        value, pred, weight = torch.randn(3, *shape, dtype=torch.float64)
        results = []
        for which in (ours, theirs):
            which.init(value)
            leaf = pred.clone().requires_grad_()
            error = which.error(leaf)
            wanted = [leaf, *(getattr(which, n) for n in parameters(kind))]
            results.append((error, *torch.autograd.grad((error * weight).sum(), wanted)))
        equal(*results)

    def test_forward(self, kind, dims, fill):
        for which in pair(kind, dims):
            shape = (3, *which.shapeobj.filled(7, *fill)[1:])
            first, second = torch.randn(2, *shape, dtype=torch.float64)
            assert which.train()(first) is which.value
            assert torch.equal(which.value, first)
            assert which.eval()(second) is second
            assert torch.equal(which.value, first)

    def test_noise_of_a_sample(self, kind, dims, fill):
        ours, theirs = pair(kind, dims)
        mean = torch.randn(17, *ours.shapeobj.filled(7, *fill)[1:], dtype=torch.float64)
        draws = []
        for which in (ours, theirs):
            draws.append([which.sample(mean, torch.Generator().manual_seed(4))])
            torch.manual_seed(5)
            draws[-1].append(which.sample(mean))
        for a, b in zip(*draws, strict=True):
            torch.testing.assert_close(a - mean, b, rtol=1e-12, atol=1e-14 * mean.abs().max().item() + 1e-14)

    def test_init_and_reset(self, kind, dims, fill):
        for which in pair(kind, dims):
            shape = (3, *which.shapeobj.filled(7, *fill)[1:])
            value = torch.randn(shape)  # float32: the state keeps the node's dtype
            state = which.init(value)
            assert state is which.value
            assert state.dtype == torch.float64
            assert torch.equal(state, value.double())
            assert state.data_ptr() != value.data_ptr()
            which.energy(torch.zeros(shape, dtype=torch.float64)).sum().backward()
            which.reset()
            assert which.value is state
            assert which.value.shape == (0,)
            assert all(p.grad is None for p in which.parameters())

    def test_shapes(self, kind, dims, fill):
        ours, theirs = pair(kind, dims)
        assert (ours.shape, ours.bshape, ours.size) == (theirs.shape, theirs.bshape, theirs.size)
        assert ours.shapeobj.rshape == theirs.shapeobj.rshape
        assert {k: v.shape for k, v in ours.named_parameters()} == {k: v.shape for k, v in theirs.named_parameters()}
        wrong = (3, *(d + 1 for d in ours.shapeobj.filled(7, *fill)[1:]))
        for which in (ours, theirs):
            for shape in (wrong, (3,), (3, *wrong)):
                with pytest.raises(ValueError, match="shape"):
                    which.init(torch.zeros(shape))


@pytest.mark.parametrize("kind", LEARNED)
class TestCovariance:
    @pytest.mark.parametrize("form", ["number", "scalar", "vector", "matrix"])
    @pytest.mark.parametrize("dims", [(1,), (4,), (2, 3), (4, None)], ids=str)
    def test_setter(self, kind, form, dims):
        size = node(kind, *dims).size
        value = {
            "number": 2.5,
            "scalar": torch.tensor(2.5, dtype=torch.float64),
            "vector": torch.rand(size, dtype=torch.float64) + 0.5,
            "matrix": covariance_of(size),
        }[form]
        ours, theirs = (node(kind, *dims, package=package.nodes) for package in PACKAGES)
        for which in (ours, theirs):
            which.covariance = value
        equal(ours.covariance, theirs.covariance)
        for name, parameter in theirs.named_parameters():
            equal(getattr(ours, name), parameter)

    def test_constructor(self, kind):
        matrix = covariance_of(3)
        ours, theirs = pair(kind, (3,)), [node(kind, 3, covariance=matrix, package=p.nodes) for p in PACKAGES]
        assert len(ours) == len(theirs) == 2
        equal(theirs[0].covariance, theirs[1].covariance)

    def test_gradient(self, kind):
        ours, theirs = pair(kind, (4,))
        weight = torch.randn(4, 4, dtype=torch.float64)
        results = []
        for which in (ours, theirs):
            which.zero_grad()
            (which.covariance * weight).sum().backward()
            results.append({k: p.grad for k, p in which.named_parameters() if k != "value"})
        for k in results[0]:
            equal(results[0][k], results[1][k])

    @pytest.mark.parametrize("bad", [0.0, -1.0, torch.zeros(4), torch.ones(3), torch.ones(4, 3), torch.ones(4, 4, 4)],
                             ids=["zero", "negative", "zeros", "short", "not-square", "cube"])  # fmt: skip
    def test_refusals(self, kind, bad):
        for package in PACKAGES:
            which = node(kind, 4, package=package.nodes)
            with pytest.raises(ValueError):  # noqa: PT011 (the messages are ours to word; test_gaussian.py has them)
                which.covariance = bad


def test_standard_covariance_is_fixed():
    for package in PACKAGES:
        which = node("StandardGaussianNode", 3, package=package.nodes)
        assert torch.equal(which.covariance, torch.eye(3, dtype=torch.float64))
        with pytest.raises(RuntimeError, match="fixed"):
            which.covariance = 2.0


@pytest.mark.parametrize("dims", [(4,), (2, 3), (4, None)], ids=str)
def test_bias(dims):
    ours, theirs = (package.nodes.BiasNode(*dims).double() for package in PACKAGES)
    inputs = torch.randn(3, *ours.shapeobj.filled(7, *[5] * dims.count(None))[1:], dtype=torch.float64)
    bias = torch.randn(ours.bshape, dtype=torch.float64)
    results = []
    for which in (ours, theirs):
        assert not which.bias.any()
        which.bias.data.copy_(bias)
        assert which.reset() is None
        (which(inputs) * inputs).sum().backward()
        results.append((which(inputs), which.error(inputs), which.bias.grad, which.eval()(inputs)))
    equal(*results)


@pytest.mark.parametrize("kind", ["FixedNode", "FloatNode"])
def test_inputs(kind):
    for package in PACKAGES:
        which = getattr(package.nodes, kind)(2, None).double()
        first, second = torch.randn(2, 3, 2, 5, dtype=torch.float64)
        assert which(first) is which.value
        assert torch.equal(which.error(second), first - second)
        assert which.eval()(second) is second
        assert [k for k, _ in which.named_parameters()] == (["value"] if kind == "FloatNode" else [])
        with pytest.raises(ValueError, match="shape"):
            which.init(first[0])
        which.reset()
        assert which.value.shape == (0,)
