"""The functional interface: broadcasting, promotion, gradients of all orders, transforms, refusals."""

import math
import warnings

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacrev, jvp, vmap

import formulas
import operators
from numerics import DENSE, FLOATS, LOW, OVERLAPPING, assert_near, contiguous, name
from pyromancy import functional

pytestmark = pytest.mark.usefixtures("backend")

B, NODE = 3, (5, 7)


def randn(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype)


def multivariate(n=5, positions=2, batch=3):
    return randn(batch, positions, n), randn(batch, positions, n), operators.factor(n)


class TestAgainstDistributions:
    """Energies are the negative log-densities of `torch.distributions` without their constant."""

    def test_gaussian_energy(self):
        value, pred, logvar = randn(B, *NODE), randn(B, *NODE), randn(*NODE)
        assert_near(functional.gaussian_energy(value, pred), formulas.normal_energy(value, pred, torch.ones(NODE)), 35)
        assert_near(
            functional.gaussian_energy(value, pred, logvar), formulas.normal_energy(value, pred, logvar.exp()), 35
        )

    def test_laplace_energy(self):
        value, pred, logscale = randn(B, *NODE), randn(B, *NODE), randn(*NODE)
        for given, scale in ((None, torch.ones_like(value)), (logscale, logscale.exp())):
            assert_near(functional.laplace_energy(value, pred, given), formulas.laplace_energy(value, pred, scale), 35)

    def test_categorical_energy(self):
        pred, classes = randn(B, *NODE), torch.randint(NODE[0], (B, *NODE[1:]))
        value = torch.nn.functional.one_hot(classes, NODE[0]).movedim(-1, 1).double()
        density = torch.distributions.Categorical(logits=pred.movedim(1, -1)).log_prob(classes)
        assert_near(functional.categorical_energy(value, pred), -density.flatten(1).sum(1), 35)

    def test_multivariate_energy(self):
        value, pred, factor = multivariate()
        expected = formulas.multivariate_normal_energy(value, pred, factor @ factor.T)
        assert_near(functional.multivariate_energy(value, pred, factor), expected, 25)

    def test_errors_are_the_gradients_for_the_value(self):
        value, pred, logvar = randn(B, *NODE).requires_grad_(), randn(B, *NODE), randn(*NODE)
        (expected,) = torch.autograd.grad(formulas.normal_energy(value, pred, logvar.exp()).sum(), value)
        assert_near(functional.gaussian_error(value, pred, logvar), expected)
        (expected,) = torch.autograd.grad(formulas.laplace_energy(value, pred, logvar.exp()).sum(), value)
        assert_near(functional.laplace_error(value, pred, logvar), expected)
        value, pred = randn(B, *NODE), randn(B, *NODE).requires_grad_()  # of no distribution, and so of any multiple
        (expected,) = torch.autograd.grad((value * pred.log_softmax(1)).sum(), pred)
        assert_near(functional.categorical_error(value, pred), expected, 5)
        value, pred, factor = multivariate()
        energy = formulas.multivariate_normal_energy(value.requires_grad_(), pred, factor @ factor.T)
        assert_near(functional.multivariate_error(value, pred, factor), torch.autograd.grad(energy.sum(), value)[0], 25)


@pytest.mark.filterwarnings("ignore:the state has shape")
class TestBroadcasting:
    @pytest.mark.parametrize(
        ("value", "pred", "warns"),
        [((1, 5), (4, 5), True), ((1, 5), (1, 5), False), ((4, 5), (1, 5), False), ((4, 1), (4, 5), False)],
        ids=str,
    )
    def test_one_state_for_many_predictions_is_told(self, value, pred, warns):
        value, pred, factor = randn(*value), randn(*pred), operators.factor(5)
        for function, rest in (
            (functional.gaussian_energy, ()),
            (functional.gaussian_error, ()),
            (functional.laplace_energy, ()),
            (functional.laplace_error, ()),
            (functional.categorical_energy, ()),
            (functional.categorical_error, ()),
            (functional.bernoulli_energy, ()),
            (functional.bernoulli_error, ()),
            (functional.poisson_energy, ()),
            (functional.poisson_error, ()),
            (functional.student_energy, ()),
            (functional.student_error, ()),
            (functional.multivariate_energy, (factor,)),
            (functional.multivariate_error, (factor,)),
        ):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                function(value, pred, *rest)
            told = ["has shape (1, 5) and its prediction (4, 5)" in str(w.message) for w in caught]
            assert told == [True] * warns

    @pytest.mark.parametrize(
        ("value", "pred"),
        [((3, 5), (5,)), ((3, 5), (1, 5)), ((1, 5), (3, 5)), ((5,), (3, 5)), ((3, 1, 7), (3, 5, 1)), ((3, 5), ())],
        ids=str,
    )
    def test_prediction_with_state(self, value, pred):
        value, pred = randn(*value), randn(*pred)
        a, b = torch.broadcast_tensors(value, pred)
        (expected,) = formulas.gaussian_energy(a, b, None)
        assert_near(functional.gaussian_energy(value, pred), expected, 35)
        assert_near(functional.gaussian_error(value, pred), a - b)

    @pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 1), (1, 7), (5, 7)], ids=str)
    def test_log_variance_with_node(self, shape):
        value, pred, logvar = randn(B, *NODE), randn(B, *NODE), randn(*shape).requires_grad_()
        (expected,) = formulas.gaussian_energy(value, pred, logvar)
        energy = functional.gaussian_energy(value, pred, logvar)
        assert_near(energy, expected, 35)
        ours, theirs = (torch.autograd.grad(e.sum(), logvar)[0] for e in (energy, expected))
        assert_near(ours, theirs, 105)
        assert_near(functional.gaussian_error(value, pred, logvar), (value - pred) / logvar.exp())

    @pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 1), (1, 7), (5, 7)], ids=str)
    def test_log_scale_with_node(self, shape):
        value, pred, logscale = randn(B, *NODE), randn(B, *NODE), randn(*shape).requires_grad_()
        expected = formulas.laplace_energy(value, pred, logscale.exp().expand(B, *NODE))
        energy = functional.laplace_energy(value, pred, logscale)
        assert_near(energy, expected, 35)
        ours, theirs = (torch.autograd.grad(e.sum(), logscale)[0] for e in (energy, expected))
        assert_near(ours, theirs, 105)
        assert_near(functional.laplace_error(value, pred, logscale), (value - pred).sign() / logscale.exp())

    def test_gradients_come_back_in_the_shapes_that_went_in(self):
        value, pred = randn(1, 5).requires_grad_(), randn(5).requires_grad_()
        logvar = randn(1).requires_grad_()
        many = randn(4, 5)
        for inputs in ((many, pred, logvar), (value, many, logvar)):
            functional.gaussian_energy(*inputs).sum().backward()
        assert (value.grad.shape, pred.grad.shape, logvar.grad.shape) == ((1, 5), (5,), (1,))
        expected = ((value - many).sum(0, keepdim=True) / logvar.exp()).detach()
        assert_near(value.grad, expected, 4)

    def test_positions_of_multivariate_states(self):
        value, factor = randn(3, 2, 4, 5), operators.factor(5)
        pred = randn(2, 1, 5)
        a, b = (t.reshape(3, 8, 5) for t in torch.broadcast_tensors(value, pred))
        energy, _ = formulas.multivariate_energy(a, b, factor)
        (error,) = formulas.multivariate_error(a, b, factor)
        assert_near(functional.multivariate_energy(value, pred, factor), energy, 40)
        assert_near(functional.multivariate_error(value, pred, factor), error.reshape(3, 2, 4, 5), 25)
        flat = functional.multivariate_error(value[:, 0, 0], pred[0, 0], factor)
        assert_near(flat, (value[:, 0, 0] - pred[0, 0]) @ torch.linalg.inv(factor @ factor.T), 25)

    @pytest.mark.parametrize("dtype", [*FLOATS, *LOW], ids=name)
    def test_empty_batch(self, dtype):
        empty, logvar, factor = torch.empty(0, 5, dtype=dtype), torch.randn(5).to(dtype), operators.factor(5).to(dtype)
        logvar.requires_grad_()
        factor.requires_grad_()
        for energy in (
            functional.gaussian_energy(empty, empty, logvar),
            functional.laplace_energy(empty, empty, logvar),
            functional.student_energy(empty, empty, logvar, 3),
            functional.bernoulli_energy(empty, empty.clone().requires_grad_()),
            functional.poisson_energy(empty, empty.clone().requires_grad_()),
            functional.multivariate_energy(empty, empty, factor),
        ):
            assert (energy.shape, energy.dtype) == ((0,), dtype)
            energy.sum().backward()
        assert not logvar.grad.any()
        assert not factor.grad.any()
        assert functional.gaussian_error(empty, empty, logvar).shape == (0, 5)
        assert functional.multivariate_error(empty, empty, factor).shape == (0, 5)
        assert functional.estep_(empty, empty, lr=0.1).shape == (0, 5)


class TestPromotion:
    @pytest.mark.parametrize(
        ("value", "pred", "logvar", "expected"),
        [
            (torch.float32, torch.bfloat16, torch.float32, torch.float32),
            (torch.bfloat16, torch.float32, None, torch.float32),
            (torch.float32, torch.float64, torch.float32, torch.float64),
            (torch.bfloat16, torch.float16, None, torch.float32),
            (torch.bfloat16, torch.bfloat16, torch.float32, torch.float32),
        ],
        ids=str,
    )
    def test_as_the_formula_would(self, value, pred, logvar, expected):
        value, pred = (torch.randn(3, 5).to(t).requires_grad_() for t in (value, pred))
        logvar = None if logvar is None else torch.randn(5, dtype=logvar, requires_grad=True)
        eager = formulas.gaussian_energy(value, pred, logvar)[0]
        energy = functional.gaussian_energy(value, pred, logvar)
        assert energy.dtype == eager.dtype == expected
        wide = (value.double(), pred.double(), None if logvar is None else logvar.double())
        assert_near(energy, formulas.gaussian_energy(*wide)[0], 5)
        energy.sum().backward()
        for t in (value, pred, logvar):
            assert t is None or t.grad.dtype == t.dtype

    def test_a_scalar_log_variance_does_not_promote(self):
        state = torch.randn(3, 5, dtype=torch.bfloat16)
        energy = functional.gaussian_energy(state, state, torch.tensor(0.5, dtype=torch.float64))
        assert energy.dtype == torch.bfloat16
        assert_near(energy, torch.full((3,), 1.25, dtype=torch.float64), 5)

    def test_under_autocast(self):
        edge = torch.nn.Linear(5, 7)
        above, value = torch.randn(3, 5), torch.randn(3, 7)
        with torch.autocast("cpu", torch.bfloat16):
            pred = edge(above)
            assert pred.dtype == torch.bfloat16
            energy = functional.gaussian_energy(value, pred, torch.zeros(7))
        assert energy.dtype == torch.float32
        assert_near(energy, formulas.gaussian_energy(value.double(), pred.double(), None)[0], 7)
        energy.sum().backward()
        assert edge.weight.grad.isfinite().all()

    def test_multivariate(self):
        value, pred, factor = multivariate()
        value = value.float()
        assert functional.multivariate_energy(value, pred.bfloat16(), factor.float()).dtype == torch.float32
        energy = functional.multivariate_energy(value, pred, factor)
        assert energy.dtype == torch.float64
        assert_near(energy, formulas.multivariate_energy(value.double(), pred, factor)[0], 25)
        assert functional.multivariate_error(value, pred, factor.float()).dtype == torch.float64

    def test_factor(self):
        factor = functional.cholesky_factor(torch.zeros(3), torch.zeros(3, 3, dtype=torch.float64))
        assert torch.equal(factor, torch.eye(3, dtype=torch.float64))


LAYOUTS = pytest.mark.parametrize("layout", DENSE, ids=lambda f: f.__name__)


def leaves(layout, *tensors):
    return tuple(layout(t).detach().requires_grad_() for t in tensors)


class TestGradients:
    """First and second derivatives against differences, in float64."""

    def check(self, function, inputs):
        fast = sum(t.numel() for t in inputs if t is not None) > 20
        assert gradcheck(function, inputs, fast_mode=fast)
        assert gradgradcheck(function, inputs, fast_mode=fast)

    @LAYOUTS
    def test_gaussian_energy(self, layout):
        value, pred = leaves(layout, randn(2, 3, 2, 2), randn(2, 3, 2, 2))
        self.check(functional.gaussian_energy, (value, pred))
        for shape in ((), (3, 2, 2), (3, 1, 1), (1, 2, 1)):
            self.check(functional.gaussian_energy, (value, pred, randn(*shape).requires_grad_()))

    @LAYOUTS
    def test_laplace_energy(self, layout):
        value, pred = leaves(layout, randn(2, 3, 2, 2), randn(2, 3, 2, 2))
        for function in (functional.laplace_energy, functional.laplace_error):
            inputs = value, pred, randn(3, 1, 1).requires_grad_()
            assert gradcheck(function, inputs)
            assert gradgradcheck(function, inputs)

    @LAYOUTS
    def test_categorical_energy(self, layout):
        inputs = leaves(layout, randn(2, 3, 2, 2), randn(2, 3, 2, 2))
        for function in (functional.categorical_energy, functional.categorical_error):
            assert gradcheck(function, tuple(inputs))
            assert gradgradcheck(function, tuple(inputs))

    @pytest.mark.parametrize("name", ["bernoulli_energy", "bernoulli_error", "poisson_energy", "poisson_error",
                                      "student_energy", "student_error"])  # fmt: skip
    def test_energies_of_other_nodes(self, name):
        function, inputs = getattr(functional, name), leaves(torch.clone, randn(2, 3, 2, 2), randn(2, 3, 2, 2))
        if name.startswith("student"):
            inputs = *inputs, randn(3, 1, 1).requires_grad_(), 2.5
        assert gradcheck(function, inputs)
        assert gradgradcheck(function, inputs)

    @pytest.mark.parametrize("wanted", range(3), ids=["value", "pred", "logvar"])
    def test_gaussian_energy_of_one_argument(self, wanted):
        inputs = [randn(2, 3), randn(2, 3), randn(3)]
        inputs[wanted].requires_grad_()
        self.check(functional.gaussian_energy, tuple(inputs))
        self.check(functional.gaussian_error, tuple(inputs))

    @pytest.mark.parametrize("operator", ["functional", "operator"])
    def test_gaussian_energy_asked_for_some_gradients(self, operator):
        # backward(inputs=...) asks for less than what requires a gradient
        call = functional.gaussian_energy if operator == "functional" else torch.ops.pyromancy.gaussian_energy
        inputs = [randn(2, 3).requires_grad_(), randn(2, 3).requires_grad_(), randn(3).requires_grad_()]
        expected = torch.autograd.grad(formulas.gaussian_energy(*inputs)[0].sum(), inputs)
        for chosen in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)):
            for t in inputs:
                t.grad = None
            call(*inputs).sum().backward(inputs=[inputs[i] for i in chosen])
            for i, (t, e) in enumerate(zip(inputs, expected, strict=True)):
                if i in chosen:
                    assert_near(t.grad, e, 6)
                else:
                    assert t.grad is None
            for i, g in zip(chosen, torch.autograd.grad(call(*inputs).sum(), [inputs[i] for i in chosen]), strict=True):
                assert_near(g, expected[i], 6)

    def test_multivariate_energy_asked_for_some_gradients(self):
        inputs = [t.requires_grad_() for t in multivariate()]
        expected = torch.autograd.grad(formulas.multivariate_energy(*inputs)[0].sum(), inputs)
        for chosen in ((0,), (1,), (2,), (0, 2)):
            for t in inputs:
                t.grad = None
            functional.multivariate_energy(*inputs).sum().backward(inputs=[inputs[i] for i in chosen])
            for i, t in enumerate(inputs):
                if i in chosen:
                    assert_near(t.grad, expected[i].tril() if i == 2 else expected[i], 60)
                else:
                    assert t.grad is None

    @LAYOUTS
    def test_gaussian_error(self, layout):
        value, pred, weight = leaves(layout, randn(2, 3, 2, 2), randn(2, 3, 2, 2), randn(2))
        self.check(functional.gaussian_error, (value, pred, None, weight))
        for shape in ((), (3, 1, 1), (3, 2, 2)):
            self.check(functional.gaussian_error, (value, pred, randn(*shape).requires_grad_(), weight))

    def test_cholesky_factor(self):
        self.check(functional.cholesky_factor, leaves(contiguous, randn(3), randn(3, 3)))

    @LAYOUTS
    @pytest.mark.parametrize("flat", [False, True], ids=["positions", "flat"])
    def test_multivariate(self, layout, flat):
        value, pred, factor = multivariate(3)
        if flat:
            value, pred = value[:, 0], pred[:, 0]
        self.check(functional.multivariate_energy, leaves(layout, value, pred, factor))
        self.check(functional.multivariate_error, leaves(layout, value, pred, factor))

    def test_only_the_lower_triangle_of_a_factor_counts(self):
        value, pred, factor = multivariate(4)
        full = factor + randn(4, 4).triu(1)
        self.check(functional.multivariate_energy, leaves(contiguous, value, pred, full))
        self.check(functional.multivariate_error, leaves(contiguous, value, pred, full))
        grads = [
            torch.autograd.grad(functional.multivariate_error(value, pred, f).square().sum(), f)[0]
            for f in (full.requires_grad_(), factor.requires_grad_())
        ]
        assert_near(*grads, 60)

    def test_multivariate_from_the_parameters(self):
        value, pred, _ = multivariate(3)

        def energy(logdiag, offtril):
            return functional.multivariate_energy(value, pred, functional.cholesky_factor(logdiag, offtril))

        self.check(energy, leaves(contiguous, randn(3), randn(3, 3)))

    @pytest.mark.parametrize("overlap", OVERLAPPING, ids=lambda f: f.__name__)
    def test_expanded_gradients(self, overlap):
        # sum() hands back a gradient with stride zero, and weights may be anything
        value, pred, logvar = randn(4, 5).requires_grad_(), randn(4, 5), randn(5).requires_grad_()
        weight = overlap(randn(4))
        ours, theirs = (
            torch.autograd.grad(f(value, pred, logvar), (value, logvar), weight)
            for f in (functional.gaussian_energy, lambda *a: formulas.gaussian_energy(*a)[0])
        )
        for a, b in zip(ours, theirs, strict=True):
            assert_near(a, b, 20)


@pytest.mark.parametrize("dtype", LOW, ids=name)
class TestLowPrecisionGradients:
    """Computed in float32 and rounded once, whatever the order: against float64 on the same operands."""

    def check(self, function, inputs, length, once=True):
        inputs = [t.detach().requires_grad_() for t in inputs]
        exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
        grads, exact_grads = [], []
        for found, of in ((grads, inputs), (exact_grads, exact_inputs)):
            output = function(*of)
            weight = torch.linspace(-1, 1, output.numel()).reshape(output.shape).to(inputs[0].dtype).to(output.dtype)
            found += torch.autograd.grad(output, of, weight, create_graph=True)
            found += torch.autograd.grad(function(*of), of, weight)  # without: through the fused operators
            found += torch.autograd.grad(sum(g.sum() for g in found[: len(of)]), of)
        for g, exact in zip(grads, exact_grads, strict=True):
            assert g.dtype == inputs[0].dtype
            scale = exact.abs().max().clamp(min=1)
            assert_near(g / scale, exact / scale, length)
        for g, exact in zip(grads[: 2 * len(inputs)], exact_grads, strict=False):
            rounding = (exact.to(g.dtype).double() - exact).norm()
            assert not once or (g.double() - exact).norm() <= 1.1 * rounding

    def test_gaussian_error(self, dtype):
        value, pred, logvar, weight = (t.to(dtype) for t in (randn(64, 9), randn(64, 9), randn(9), randn(64)))
        self.check(functional.gaussian_error, (value, pred, logvar, weight), 600)

    def test_multivariate(self, dtype):
        value, pred, factor = (t.to(dtype) for t in multivariate(9, 2, 32))
        self.check(functional.multivariate_error, (value, pred, factor), 600)
        self.check(functional.multivariate_energy, (value, pred, factor), 600, once=False)  # keeps a rounded residual


class TestForwardMode:
    """Dual numbers of `torch.autograd.forward_ad`, at sizes that take every way."""

    def tangent(self, function, inputs):
        """Of the function along random directions, and the same from its reverse mode."""
        tangents = [torch.randn_like(t) for t in inputs]
        leaves = [t.clone().requires_grad_() for t in inputs]
        output = function(*leaves)
        weight = torch.randn_like(output)
        slopes = torch.autograd.grad(output, leaves, weight)
        expected = sum((s * t).sum() for s, t in zip(slopes, tangents, strict=True))
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, d) for t, d in zip(inputs, tangents, strict=True)]
            found = forward_ad.unpack_dual(function(*duals)).tangent
        return (found * weight).sum(), expected

    @pytest.mark.parametrize("n", [5, 20_000])
    def test_gaussian(self, n):
        value, pred, logvar = randn(B, n), randn(B, n), randn(n)
        for function in (functional.gaussian_energy, functional.gaussian_error):
            for inputs in ((value, pred), (value, pred, logvar)):
                assert_near(*self.tangent(function, inputs), 100 * B * n)

    @pytest.mark.parametrize("positions", [(), (2,)])
    def test_multivariate(self, positions):
        value, pred = randn(2, B, *positions, 5)
        factor = operators.factor(5)
        for function in (functional.multivariate_energy, functional.multivariate_error):
            assert_near(*self.tangent(function, (value, pred, factor)), 1000)
        assert_near(*self.tangent(functional.cholesky_factor, (randn(4), randn(4, 4))), 100)

    @pytest.mark.parametrize("n", [5, 20_000])
    def test_over_reverse_mode(self, n):
        value, pred, tangent = randn(B, n).requires_grad_(), randn(B, n), randn(B, n)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(value, tangent)
            (slope,) = torch.autograd.grad(functional.gaussian_energy(dual, pred).sum(), dual, create_graph=True)
            assert_near(forward_ad.unpack_dual(slope).tangent, tangent)  # the Hessian of a unit variance


class TestTransforms:
    """`torch.func` sees through everything but the step in place."""

    def test_grad(self):
        value, pred, logvar = randn(B, 5), randn(B, 5), randn(5)
        gradients = grad(lambda *a: functional.gaussian_energy(*a).sum(), argnums=(0, 1, 2))(value, pred, logvar)
        for ours, theirs in zip(
            gradients, formulas.gaussian_energy_backward_logvar(torch.ones(B), value, pred, logvar), strict=True
        ):
            assert_near(ours, theirs, 15)

    def test_vmap_over_networks(self):
        value, pred, logvar = randn(4, B, 5), randn(4, B, 5), randn(4, 5)
        together = vmap(functional.gaussian_energy)(value, pred, logvar)
        errors = vmap(functional.gaussian_error, in_dims=(0, 0, None))(value, pred, logvar[0])
        for i in range(4):
            assert_near(together[i], formulas.gaussian_energy(value[i], pred[i], logvar[i])[0], 5)
            assert_near(errors[i], (value[i] - pred[i]) / logvar[0].exp())

    def test_vmap_of_grad_gives_gradients_per_sample(self):
        value, pred, logvar = randn(B, 1, 5), randn(B, 1, 5), randn(5)
        slopes = vmap(grad(lambda v, p, s: functional.gaussian_energy(v, p, s).sum(), argnums=2), (0, 0, None))
        expected = 0.5 * (1 - (value - pred)[:, 0] ** 2 / logvar.exp())
        assert_near(slopes(value, pred, logvar), expected)

    def test_jacrev(self):
        value, pred = randn(B, 5), randn(B, 5)
        jacobian = jacrev(functional.gaussian_energy)(value, pred)
        expected = torch.zeros(B, B, 5, dtype=torch.float64)
        expected[range(B), range(B)] = value - pred
        assert_near(jacobian, expected)

    def test_hessian_is_the_precision(self):
        value, pred, factor = multivariate(4, 1, 1)
        second = hessian(lambda v: functional.multivariate_energy(v, pred, factor).sum())(value).reshape(4, 4)
        assert_near(second, torch.linalg.inv(factor @ factor.T), 16)

    def test_multivariate(self):
        value, pred, factor = multivariate(4)
        logdiag, offtril = factor.diagonal().log(), factor.tril(-1)

        def energy(logdiag, offtril):
            return functional.multivariate_energy(value, pred, functional.cholesky_factor(logdiag, offtril)).sum()

        def expected(logdiag, offtril):
            factor = offtril.tril(-1) + logdiag.exp().diag()
            return formulas.multivariate_normal_energy(value, pred, factor @ factor.T).sum()

        ours, theirs = (grad(f, argnums=(0, 1))(logdiag, offtril) for f in (energy, expected))
        for a, b in zip(ours, theirs, strict=True):
            assert_near(a, b, 40)
        errors = vmap(lambda v, p: functional.multivariate_error(v[None], p[None], factor)[0])(value, pred)
        assert_near(errors, formulas.multivariate_error(value, pred, factor)[0], 16)


class TestEStep:
    def test_returns_the_state_that_it_wrote(self):
        value = randn(3, 5)
        assert functional.estep_(value, randn(3, 5), lr=0.1) is value

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    @pytest.mark.parametrize("dampening", [0.0, 0.3])
    @pytest.mark.parametrize("nesterov", [False, True], ids=["heavy-ball", "nesterov"])
    def test_is_stochastic_gradient_descent(self, momentum, dampening, nesterov):
        if nesterov and (dampening or not momentum):
            pytest.skip("torch.optim.SGD does not have this combination")
        value = randn(3, 5)
        twin = value.clone().requires_grad_()
        sgd = torch.optim.SGD([twin], lr=0.1, momentum=momentum, dampening=dampening, nesterov=nesterov)
        buffer = None
        for _ in range(5):
            error, feedback = randn(3, 5), randn(3, 5)
            twin.grad = error - feedback
            sgd.step()
            if momentum and buffer is None:  # the first velocity of torch.optim.SGD is the first gradient, undamped
                buffer = error - feedback
                functional.estep_(value, error, feedback, lr=0.1 * (1 + momentum if nesterov else 1))
            else:
                functional.estep_(
                    value, error, feedback, lr=0.1, momentum=momentum, dampening=dampening, nesterov=nesterov,
                    buffer=buffer,
                )  # fmt: skip
        assert_near(value, twin, 5)

    def test_leaves_that_require_gradients(self):
        value = torch.nn.Parameter(randn(3, 5))
        expected = value.detach() - 0.1
        functional.estep_(value, torch.ones_like(value), lr=0.1)
        assert_near(value, expected)
        assert value.requires_grad
        assert value.is_leaf

    def test_bumps_the_version_of_what_it_wrote(self):
        value, buffer, error = randn(3, 5), randn(3, 5), randn(3, 5)
        before = value._version, buffer._version, error._version
        functional.estep_(value, error, lr=0.1)
        assert value._version > before[0]
        assert buffer._version == before[1]
        functional.estep_(value, error, lr=0.1, momentum=0.9, buffer=buffer)
        assert buffer._version > before[1]
        assert error._version == before[2]

    def test_autograd_notices(self):
        value = randn(3, 5).requires_grad_()
        energy = functional.gaussian_energy(value, randn(3, 5))
        functional.estep_(value, randn(3, 5), lr=0.1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            energy.sum().backward()


class TestNotFinite:
    """NaN and infinity go where arithmetic takes them and nowhere else."""

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
    @pytest.mark.parametrize("dtype", [*FLOATS, *LOW], ids=name)
    def test_in_a_state(self, bad, dtype):
        value, pred, logvar = torch.randn(3, 65).to(dtype), torch.randn(3, 65).to(dtype), torch.zeros(65, dtype=dtype)
        value[1, 64] = bad
        value.requires_grad_()
        energy = functional.gaussian_energy(value, pred, logvar)
        assert energy[[0, 2]].isfinite().all()
        assert energy[1].isnan() if math.isnan(bad) else energy[1] == math.inf
        energy.sum().backward()
        clean = torch.ones(3, 65, dtype=torch.bool)
        clean[1, 64] = False
        for result in (value.grad, functional.gaussian_error(value, pred, logvar)):
            assert result[clean].isfinite().all()
            torch.testing.assert_close(result[1, 64].item(), bad, equal_nan=True)

    @pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
    def test_in_a_multivariate_state(self, bad):
        value, pred, factor = multivariate()
        value[1, 0, 0] = bad
        energy = functional.multivariate_energy(value, pred, factor)
        assert energy[[0, 2]].isfinite().all()
        assert not energy[1].isfinite()
        error = functional.multivariate_error(value, pred, factor)
        assert error[[0, 2]].isfinite().all()
        assert not error[1, 0].isfinite().all()

    def test_in_a_step(self):
        value, error = randn(2, 65), randn(2, 65)
        error[0, 64], error[1, 0] = math.nan, math.inf
        functional.estep_(value, error, lr=0.1)
        assert value[0, 64].isnan()
        assert value[1, 0] == -math.inf
        assert value.isfinite().sum() == 128

    @pytest.mark.parametrize(("logvar", "expected"), [(math.inf, math.inf), (math.nan, math.nan)], ids=str)
    def test_in_a_log_variance(self, logvar, expected):
        energy = functional.gaussian_energy(randn(2, 3), randn(2, 3), torch.tensor(logvar, dtype=torch.float64))
        torch.testing.assert_close(energy, torch.full_like(energy, expected), equal_nan=True)


class TestRefusals:
    """The message names the argument, what it was, and what it must be."""

    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool, torch.complex64], ids=name)
    @pytest.mark.parametrize("position", range(3), ids=["value", "pred", "logvar"])
    @pytest.mark.parametrize(
        "function", [functional.gaussian_energy, functional.gaussian_error], ids=["energy", "error"]
    )
    def test_dtype(self, function, position, dtype):
        inputs = [torch.zeros(3, 5), torch.zeros(3, 5), torch.zeros(5)]
        inputs[position] = inputs[position].to(dtype)
        argument = ("value", "pred", "logvar")[position]
        with pytest.raises(TypeError, match=f"{argument} must be float32, float64, bfloat16 or float16, got {dtype}"):
            function(*inputs)

    @pytest.mark.parametrize("function", [functional.multivariate_energy, functional.multivariate_error],
                             ids=["energy", "error"])  # fmt: skip
    def test_multivariate_dtype(self, function):
        with pytest.raises(TypeError, match=r"factor must be float32, .* got torch.int64"):
            function(torch.zeros(3, 2), torch.zeros(3, 2), torch.eye(2, dtype=torch.int64))

    @pytest.mark.parametrize(
        "function", [functional.gaussian_energy, functional.gaussian_error], ids=["energy", "error"]
    )
    def test_shape(self, function):
        with pytest.raises(ValueError, match=r"pred must broadcast with value, of shape \(3, 5\), got shape \(3, 4\)"):
            function(torch.zeros(3, 5), torch.zeros(3, 4))
        with pytest.raises(ValueError, match=r"value must have a batch dimension, got shape \(\)"):
            function(torch.tensor(1.0), torch.tensor(1.0))
        for shape in ((4,), (3, 5), (1, 5, 1)):
            with pytest.raises(
                ValueError, match=r"logvar must broadcast against the node dimensions \(5,\), got shape"
            ):
                function(torch.zeros(3, 5), torch.zeros(3, 5), torch.zeros(shape))
        with pytest.raises(ValueError, match=r"weight must have shape \(3,\), got \(5,\)"):
            functional.gaussian_error(torch.zeros(3, 5), torch.zeros(3, 5), weight=torch.zeros(5))

    @pytest.mark.parametrize("function", [functional.multivariate_energy, functional.multivariate_error],
                             ids=["energy", "error"])  # fmt: skip
    def test_multivariate_shape(self, function):
        for value, factor in (((3, 5), (4, 4)), ((3, 5), (5, 4)), ((3, 5), (5,)), ((5,), (5, 5))):
            with pytest.raises(
                ValueError, match=r"value must have shape \(B, \*positions, n\) and factor \(n, n\), got"
            ):
                function(torch.zeros(value), torch.zeros(value), torch.zeros(factor))
        with pytest.raises(ValueError, match="pred must broadcast with value"):
            function(torch.zeros(3, 5), torch.zeros(3, 4), torch.eye(5))

    def test_factor(self):
        with pytest.raises(
            ValueError, match=r"logdiag must have shape \(n,\) and offtril \(n, n\), got \(3,\) and \(3, 4\)"
        ):
            functional.cholesky_factor(torch.zeros(3), torch.zeros(3, 4))
        with pytest.raises(ValueError, match="logdiag must have shape"):
            functional.cholesky_factor(torch.zeros(3, 3), torch.zeros(3, 3))
        with pytest.raises(TypeError, match="offtril must be float32"):
            functional.cholesky_factor(torch.zeros(3), torch.zeros(3, 3, dtype=torch.int8))

    def test_device(self):
        here, meta = torch.zeros(3, 5), torch.zeros(3, 5, device="meta")
        for inputs in ((here, meta), (meta, here), (here, here, torch.zeros(5, device="meta"))):
            for function in (functional.gaussian_energy, functional.gaussian_error):
                with pytest.raises(ValueError, match=r"must be on the device of value, .*got .*"):
                    function(*inputs)
        for function in (functional.multivariate_energy, functional.multivariate_error):
            with pytest.raises(ValueError, match="must be on the device of value, cpu, got cpu and meta"):
                function(here, here, torch.eye(5, device="meta"))
        with pytest.raises(ValueError, match=r"error must be like value, .* on cpu, got .* on meta"):
            functional.estep_(here, meta, lr=0.1)

    def test_step(self):
        value = torch.zeros(3, 5)
        for other in (torch.zeros(3, 4), torch.zeros(5), torch.zeros(3, 5, dtype=torch.float64)):
            for key in ("error", "feedback", "buffer"):
                arguments = {"error": value, key: other}
                with pytest.raises(ValueError, match=f"{key} must be like value, .*3, 5.* torch.float32 on cpu, got"):
                    functional.estep_(value, **arguments, lr=0.1)
        with pytest.raises(TypeError, match=r"value must be float32, .* got torch.int64"):
            functional.estep_(value.long(), value.long(), lr=0.1)
        with pytest.raises(ValueError, match=r"momentum=0.9 needs buffer"):
            functional.estep_(value, value, lr=0.1, momentum=0.9)
        with pytest.raises(RuntimeError, match="value is written in place and must not be expanded"):
            functional.estep_(torch.zeros(1, 5).expand(3, 5), value, lr=0.1)
        with pytest.raises(RuntimeError, match="lr must be finite, got nan"):
            functional.estep_(value, value, lr=math.nan)
        assert not value.any()


def test_an_energy_under_one_transform_after_another():
    value, pred = randn(4, 11), randn(4, 11)

    def energy(value):
        return functional.gaussian_energy(value, pred).sum()

    for _ in range(2):
        assert_near(hessian(energy)(value).reshape(44, 44), torch.eye(44), 1)
        assert_near(grad(energy)(value), value - pred, 1)
        assert_near(jvp(energy, (value,), (pred,))[1], ((value - pred) * pred).sum(), 44)


def test_an_energy_of_infinite_and_huge_differences():
    value = torch.tensor([[float("inf"), 1.0], [1e30, -1e30], [float("nan"), 2.0]], requires_grad=True)
    energy = functional.gaussian_energy(value, torch.zeros(3, 2))
    energy.sum().backward()
    assert energy[:2].tolist() == [float("inf")] * 2
    assert energy[2].isnan()
    assert value.grad[0].tolist() == [float("inf"), 1]
    assert value.grad[1].equal(value[1])
    assert value.grad[2, 0].isnan()


@pytest.mark.parametrize("size", [3, 200])
def test_what_was_made_in_inference_mode_is_taken_there_with_gradients_on(size):
    """There is no graph to save anything for, whatever asks for one."""
    value, pred, logvar = randn(100, size), randn(100, size), randn(size)
    whole, factor = operators.factor(3), randn(4, 3)
    calls = {
        "gaussian_energy": (value, pred, logvar),
        "gaussian_error": (value, pred, logvar),
        "laplace_energy": (value, pred, logvar),
        "laplace_error": (value, pred, logvar),
        "categorical_energy": (value, pred),
        "categorical_error": (value, pred),
        "bernoulli_energy": (value, pred),
        "bernoulli_error": (value, pred),
        "poisson_energy": (value, pred),
        "poisson_error": (value, pred),
        "student_energy": (value, pred, logvar),
        "student_error": (value, pred, logvar),
        "cholesky_factor": (randn(3), randn(3, 3)),
        "multivariate_energy": (factor, randn(4, 3), whole),
        "multivariate_error": (factor, randn(4, 3), whole),
    }
    for function, given in calls.items():
        expected = getattr(functional, function)(*given)
        with torch.inference_mode(), torch.enable_grad():
            found = getattr(functional, function)(*(torch.nn.Parameter(t.clone()) for t in given))
        assert found.is_inference()
        assert torch.equal(found, expected)
