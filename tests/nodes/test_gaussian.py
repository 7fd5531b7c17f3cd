"""Gaussian nodes: energies by the distribution they stand for, covariances, gradients, and what is remembered."""

import math

import pytest
import torch
import torch.nn as nn
from torch._subclasses.fake_tensor import FakeTensorMode

import formulas
import networks
import pyromancy
from nodes_common import GAUSSIAN, LEARNED
from numerics import FLOATS, LOW, assert_near, name
from pyromancy import nodes

pytestmark = pytest.mark.usefixtures("backend")

# (node dimensions, the same with sizes for the placeholders)
SHAPES = [((63,), (63,)), ((3, 5), (3, 5)), ((3, None), (3, 7)), ((None, 3, None), (2, 3, 5)), ((None,), (7,))]
shapes = pytest.mark.parametrize(("dims", "filled"), SHAPES, ids=str)
learned = pytest.mark.parametrize("kind", LEARNED)


def rows(t, dims):
    """[B, *node] as [B, positions, size]."""
    order = sorted(range(len(dims)), key=lambda i: dims[i] is not None)
    size = math.prod(d for d in dims if d is not None)
    return t.permute(0, *(i + 1 for i in order)).reshape(t.shape[0], -1, size)


@shapes
@pytest.mark.parametrize("kind", GAUSSIAN)
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
class TestDensity:
    def problem(self, kind, dims, filled, dtype):
        node = GAUSSIAN[kind](*dims).to(dtype)
        if kind != "standard":
            node.covariance = networks.covariance_of(node.size)
        covariance = node.covariance.detach().double()
        value, pred = torch.randn(2, 3, *filled).to(dtype)
        node.init(value)
        return node, value.double(), pred.requires_grad_(), covariance

    def test_energy_is_the_log_density(self, kind, dims, filled, dtype):
        node, value, pred, covariance = self.problem(kind, dims, filled, dtype)
        wide = pred.detach().double().requires_grad_()
        expected = formulas.multivariate_normal_energy(rows(value, dims), rows(wide, dims), covariance)
        energy = node.energy(pred)
        assert energy.shape == (3,)
        assert_near(energy, expected, 63 * 63)
        assert_near(torch.autograd.grad(energy.sum(), pred)[0], torch.autograd.grad(expected.sum(), wide)[0], 63 * 63)

    def test_error_is_the_gradient_of_the_energy(self, kind, dims, filled, dtype):
        node, value, pred, covariance = self.problem(kind, dims, filled, dtype)
        error = node.error(pred)
        assert error.shape == value.shape
        expected = rows(value - pred.double(), dims) @ torch.linalg.inv(covariance)
        assert_near(rows(error, dims), expected, 63 * 63)
        assert_near(torch.autograd.grad(node.energy(pred).sum(), node.value)[0], error.double(), 63 * 63)

    def test_predictions_broadcast(self, kind, dims, filled, dtype):
        node, value, _, covariance = self.problem(kind, dims, filled, dtype)
        pred = torch.randn(1, *filled).to(dtype)
        wide = pred.double().expand_as(value)
        assert_near(
            node.energy(pred),
            formulas.multivariate_normal_energy(rows(value, dims), rows(wide, dims), covariance),
            63**2,
        )
        assert_near(rows(node.error(pred), dims), rows(value - wide, dims) @ torch.linalg.inv(covariance), 63**2)


@pytest.mark.parametrize("dtype", LOW, ids=name)
@pytest.mark.parametrize("kind", ["standard", "isotropic", "factorized"])
def test_low_precision(kind, dtype):
    node = GAUSSIAN[kind](63).to(dtype)
    value, pred = torch.randn(2, 3, 63).to(dtype)
    node.init(value)
    assert_near(node.energy(pred), 0.5 * (value.double() - pred.double()).square().sum(1), 63)


def test_low_precision_multivariate():
    node = nodes.MultivariateGaussianNode(5).bfloat16()
    value, pred = torch.randn(2, 3, 5).bfloat16()
    node.init(value)
    assert_near(node.energy(pred), 0.5 * (value.double() - pred.double()).square().sum(1), 5)
    node.energy(pred).sum().backward()
    assert node.covar_cf_logdiag.grad.dtype == torch.bfloat16


def gradcheck_parameters(node, function):
    """gradcheck for a node's parameters; it moves its inputs behind autograd's back, so they are not the node's own."""
    names = [k for k, _ in node.named_parameters() if k != "value"]
    node.forward = function

    def call(*leaves):
        return torch.func.functional_call(node, dict(zip(names, leaves, strict=True)), ())

    return torch.autograd.gradcheck(call, [getattr(node, k).detach().clone().requires_grad_() for k in names])


BAD = {
    "zero": (0.0, "every variance in covariance must be positive, got 0"),
    "negative": (-1.0, "every variance in covariance must be positive, got -1"),
    "negative-element": (torch.tensor([1.0, -2.0, 1.0]), "every variance in covariance must be positive, got -2"),
    "nan": (math.nan, "covariance must be finite"),
    "infinite": (math.inf, "covariance must be finite"),
    "infinite-element": (torch.eye(3) * math.inf, "covariance must be finite"),
    "nan-matrix": (torch.full((3, 3), math.nan), "covariance must be finite"),
    "not-symmetric": (torch.eye(3) + torch.ones(3, 3).triu(1) * 0.1, r"must be symmetric, got .* up to 0.1"),
    "not-definite": (torch.ones(3, 3) - 2 * torch.eye(3), "covariance must be positive-definite"),
    "singular": (torch.ones(3, 3), "covariance must be positive-definite"),
    "short-vector": (torch.ones(2), r"vector of 3 variances or a 3 x 3 matrix, got shape \(2,\)"),
    "one-element": (torch.ones(1), r"vector of 3 variances or a 3 x 3 matrix, got shape \(1,\)"),
    "wrong-matrix": (torch.eye(4), r"got shape \(4, 4\)"),
    "not-square": (torch.ones(3, 2), r"got shape \(3, 2\)"),
    "three-dimensions": (torch.ones(3, 3, 3), r"got shape \(3, 3, 3\)"),
    "empty": (torch.ones(0), r"got shape \(0,\)"),
}


@learned
class TestCovariance:
    def expected(self, kind, matrix):
        diagonal = matrix.diagonal()
        if kind == "isotropic":
            return diagonal.mean() * torch.eye(len(matrix), dtype=matrix.dtype)
        return diagonal.diag() if kind == "factorized" else matrix

    @pytest.mark.parametrize("n", [1, 3, 63])
    def test_of_a_matrix(self, kind, n):
        node, matrix = LEARNED[kind](n).double(), networks.covariance_of(n)
        node.covariance = matrix
        assert_near(node.covariance, self.expected(kind, matrix), n)
        assert_near(node.covariance, node.covariance.mT.detach(), n)

    def test_of_a_vector(self, kind):
        node, vector = LEARNED[kind](2, 3).double(), torch.rand(6).double() + 0.5
        node.covariance = vector
        assert_near(node.covariance, self.expected(kind, vector.diag()))

    @pytest.mark.parametrize("form", [3, 3.0, True, torch.tensor(3), torch.tensor(3.0)], ids=repr)
    def test_of_a_scalar(self, kind, form):
        node = LEARNED[kind](4)
        node.covariance = form
        assert_near(node.covariance, float(form) * torch.eye(4, dtype=torch.float64))

    def test_of_the_constructor(self, kind):
        key = "covariance" if kind == "multivariate" else "variance"
        assert_near(LEARNED[kind](3).covariance, torch.eye(3, dtype=torch.float64))
        assert_near(LEARNED[kind](3, **{key: 2.5}).covariance, 2.5 * torch.eye(3, dtype=torch.float64))
        with pytest.raises(ValueError, match="positive"):
            LEARNED[kind](3, **{key: -2.5})

    @pytest.mark.parametrize("dtype", FLOATS, ids=name)
    def test_of_a_product_that_is_symmetric_but_for_rounding(self, kind, dtype):
        x = torch.randn(200, 129, dtype=dtype)
        matrix = x.T @ x / 200
        matrix = matrix + torch.triu(torch.full_like(matrix, torch.finfo(dtype).eps), 1)
        node = LEARNED[kind](129).to(dtype)
        node.covariance = matrix
        assert_near(node.covariance, self.expected(kind, matrix.double()), 129)

    def test_has_gradients(self, kind):
        node = LEARNED[kind](3).double()
        node.covariance = networks.covariance_of(3)
        assert gradcheck_parameters(node, lambda: node.covariance)

    @pytest.mark.parametrize("bad", BAD)
    def test_refuses_and_changes_nothing(self, kind, bad):
        value, message = BAD[bad]
        node = LEARNED[kind](3)
        node.covariance = networks.covariance_of(3)
        before = {k: v.clone() for k, v in node.named_parameters()}
        with pytest.raises(ValueError, match=message):
            node.covariance = value
        for k, v in node.named_parameters():
            assert torch.equal(v, before[k])

    def test_refuses_what_is_no_real_number(self, kind):
        with pytest.raises(TypeError, match=r"covariance must be real, got torch.complex64"):
            LEARNED[kind](2).covariance = torch.eye(2, dtype=torch.complex64)
        with pytest.raises(TypeError, match="covariance must be a number or a tensor, got '1'"):
            LEARNED[kind](2).covariance = "1"


def test_standard_covariance_is_fixed():
    node = nodes.StandardGaussianNode(2, 2)
    assert torch.equal(node.covariance, torch.eye(4))
    with pytest.raises(RuntimeError, match="StandardGaussianNode has a fixed unit covariance"):
        node.covariance = 1.0


class TestSample:
    @pytest.mark.parametrize("kind", GAUSSIAN)
    def test_repeats_with_the_generator(self, kind):
        node, mean = GAUSSIAN[kind](3, None), torch.randn(2, 3, 5)
        first, second = (node.sample(mean, torch.Generator().manual_seed(1)) for _ in range(2))
        assert torch.equal(first, second)
        assert not torch.equal(first, node.sample(mean))
        assert first.shape == mean.shape

    @pytest.mark.parametrize("kind", LEARNED)
    def test_is_differentiable(self, kind):
        node, mean = LEARNED[kind](3).double(), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda m: node.sample(m, torch.Generator().manual_seed(1)), [mean])
        assert gradcheck_parameters(node, lambda: node.sample(mean.detach(), torch.Generator().manual_seed(1)))

    @pytest.mark.parametrize("kind", GAUSSIAN)
    def test_samples_around_something_else(self, kind):
        node = GAUSSIAN[kind](3)
        with pytest.raises(ValueError, match=r"value must fit the node's shape \(None, 3\), got \(2, 4\)"):
            node.sample(torch.zeros(2, 4))
        with pytest.raises(TypeError, match="value must be a tensor, got list"):
            node.sample([1.0])


class TestFactor:
    """A multivariate node's factor is that of its parameters, however they were changed."""

    N = 64

    @pytest.fixture
    def node(self):
        node = nodes.MultivariateGaussianNode(self.N)
        node.init(torch.randn(2, self.N))
        self.energy(node)
        return node

    def energy(self, node):
        return node.energy(torch.zeros(2, self.N, dtype=node.value.dtype))

    def check(self, node):
        """The energy is that of the parameters as they are."""
        factor = node.covar_cf_offtril.detach().double().tril(-1) + node.covar_cf_logdiag.detach().double().exp().diag()
        value = node.value.detach().double()[:, None]
        expected, _ = formulas.multivariate_energy(value, torch.zeros_like(value), factor)
        assert_near(self.energy(node), expected, self.N**2)

    def optimizer(self, node):
        optimizer = torch.optim.Adam(pyromancy.get_mstep_params(node), lr=0.1)
        self.energy(node).mean().backward()
        optimizer.step()

    def fused_optimizer(self, node):
        optimizer = torch.optim.SGD(pyromancy.get_mstep_params(node), lr=0.1, fused=True)
        self.energy(node).mean().backward()
        optimizer.step()

    def load(self, node):
        node.load_state_dict({k: v + 0.1 for k, v in node.state_dict().items()})

    def load_assigned(self, node):
        node.load_state_dict({k: v + 0.1 for k, v in node.state_dict().items()}, assign=True)

    def double(self, node):
        node.double()

    def double_and_change(self, node):
        node.double()
        with torch.no_grad():
            node.covar_cf_offtril.add_(0.1)

    def assign_data(self, node):
        node.covar_cf_logdiag.data = node.covar_cf_logdiag.data + 0.1

    def assign_data_twice(self, node):
        for step in (1.0, 2.0):  # the second may lie where the original did
            node.covar_cf_logdiag.data = torch.full((self.N,), step)

    def copy_in_place(self, node):
        with torch.no_grad():
            node.covar_cf_offtril.copy_(torch.randn(self.N, self.N) / self.N)

    def assign_parameter(self, node):
        node.covar_cf_logdiag = torch.nn.Parameter(torch.full((self.N,), 0.3))

    def set_covariance(self, node):
        node.covariance = 3.0

    def through_data_before_init(self, node):
        node.covar_cf_logdiag.data.add_(0.1)
        node.init(node.value.detach().clone())

    def through_data_after_backward(self, node):
        self.energy(node).mean().backward()
        node.covar_cf_logdiag.data.sub_(node.covar_cf_logdiag.grad)

    CHANGES = (
        optimizer, fused_optimizer, load, load_assigned, double, double_and_change, assign_data, assign_data_twice,
        copy_in_place, assign_parameter, set_covariance, through_data_before_init, through_data_after_backward,
    )  # fmt: skip

    @pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
    def test_notices(self, node, change):
        for _ in range(3):
            change(self, node)
            self.check(node)

    def test_is_part_of_the_graph_every_time(self, node):
        gradients = [
            torch.autograd.grad(self.energy(node).sum(), [node.covar_cf_logdiag, node.covar_cf_offtril])
            for _ in range(2)
        ]
        for a, b in zip(*gradients, strict=True):
            assert torch.equal(a, b)
            assert a.any()

    def test_is_not_used_under_transforms(self, node):
        value = node.value.detach()

        def energy(parameters):
            return torch.func.functional_call(node, parameters | {"value": value}, (torch.zeros(2, self.N),)).sum()

        node.forward = node.energy
        parameters = {k: p.detach() + 0.1 for k, p in node.named_parameters() if k != "value"}
        gradient = torch.func.grad(energy)(parameters)
        leaves = {k: p.double().requires_grad_() for k, p in parameters.items()}
        factor = leaves["covar_cf_offtril"].tril(-1) + leaves["covar_cf_logdiag"].exp().diag()
        wide = value.double()[:, None]
        expected = formulas.multivariate_normal_energy(wide, torch.zeros_like(wide), factor @ factor.T).sum()
        for k, g in zip(leaves, torch.autograd.grad(expected, [*leaves.values()]), strict=True):
            assert_near(gradient[k], g, self.N**2)


def test_a_factor_made_in_inference_mode_or_a_trace_is_not_kept():
    node, pred = nodes.MultivariateGaussianNode(4).double(), torch.randn(3, 4).double().requires_grad_()
    node.init(torch.randn(3, 4))
    with torch.no_grad():
        node.covar_cf_logdiag.add_(0.1)
    with torch.inference_mode():
        logged = node.energy(pred).clone()
    energy = node.energy(pred)
    energy.sum().backward()
    torch.testing.assert_close(energy.detach(), logged, rtol=0, atol=0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        node.energy(torch.zeros(3, 4).double())
    torch.testing.assert_close(node.energy(pred).detach(), logged, rtol=0, atol=0)


class Energy(nn.Module):
    def __init__(self, node):
        super().__init__()
        self.node = node

    def forward(self, pred):
        return self.node.energy(pred)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_module_follows_a_changed_covariance():
    """The factor that the node remembers is no constant of the trace."""
    node, pred = nodes.MultivariateGaussianNode(4, covariance=2.0), torch.randn(3, 4)
    node.init(torch.randn(3, 4))
    module = Energy(node)
    module(pred)
    traced = torch.jit.trace(module, (pred,))
    node.covariance = 5.0
    torch.testing.assert_close(traced(pred), module(pred))


@pytest.mark.parametrize("kind", GAUSSIAN)
def test_construction_without_memory(kind):
    with torch.device("meta"):
        node = GAUSSIAN[kind](3)
    assert all(p.is_meta for p in node.parameters())
