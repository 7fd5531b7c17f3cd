"""Nodes without a distribution: biases and inputs."""

import pytest
import torch

import pyromancy
from pyromancy import functional, nodes


class TestBias:
    def test_is_what_it_returns_whatever_comes_in(self):
        node = nodes.BiasNode(2, 3)
        with torch.no_grad():
            node.bias.copy_(torch.arange(6.0).reshape(2, 3))
        for mode in (True, False):
            out = node.train(mode)(torch.full((4, 2, 3), float("nan")))
            assert torch.equal(out, torch.arange(6.0).reshape(1, 2, 3).expand(4, 2, 3))

    def test_starts_at_zero_and_is_learned(self):
        node = nodes.BiasNode(3)
        assert torch.equal(node.bias, torch.zeros(3))
        node(torch.empty(5, 3)).sum().backward()
        assert torch.equal(node.bias.grad, torch.full((3,), 5.0))
        assert [k for k, _ in pyromancy.get_named_mstep_params(node)] == ["bias"]
        assert [*pyromancy.get_estep_params(node)] == []

    def test_is_shared_along_placeholders(self):
        node = nodes.BiasNode(2, None)
        assert node.bias.shape == (2, 1)
        assert node(torch.empty(3, 2, 5)).shape == (3, 2, 5)

    def test_is_saved_and_not_reset(self):
        node = nodes.BiasNode(2)
        with torch.no_grad():
            node.bias.fill_(3.0)
        node.reset()
        assert torch.equal(node.bias, torch.full((2,), 3.0))
        assert [*node.state_dict()] == ["bias"]

    def test_error(self):
        node = nodes.BiasNode(2)
        pred = torch.randn(3, 2)
        assert torch.equal(node.error(pred), -pred)


class TestInputs:
    def test_error(self):
        for cls in (nodes.FixedNode, nodes.FloatNode):
            node = cls(3)
            value, pred = torch.randn(2, 4, 3)
            node.init(value)
            assert torch.equal(node.error(pred), value - pred)

    def test_fixed_states_are_no_parameters_but_move_with_the_module(self):
        node = nodes.FixedNode(3)
        node(torch.ones(2, 3))
        assert [*node.parameters()] == []
        assert node.double().value.dtype == torch.float64
        assert [*node.state_dict()] == []

    def test_float_states_are_inferred(self):
        node = nodes.FloatNode(3)
        assert [k for k, _ in pyromancy.get_named_estep_params(node)] == ["value"]
        assert [*pyromancy.get_mstep_params(node)] == []
        node(torch.ones(2, 3)).sum().backward()
        assert torch.equal(node.value.grad, torch.ones(2, 3))

    def test_fixed_ones_have_no_energy(self):
        assert not hasattr(nodes.FixedNode(3), "energy")


class TestPriors:
    @pytest.mark.parametrize(
        "prior", [functional.gaussian_energy, functional.laplace_energy, functional.student_energy]
    )
    def test_are_energies_around_zero(self, prior):
        node, value = nodes.FloatNode(5, prior=prior).double(), torch.randn(3, 5).double()
        node.init(value)
        assert torch.equal(node.energy(), prior(value, torch.zeros(3, 5).double()))

    def test_are_functions(self):
        with pytest.raises(TypeError, match=r"prior must be a function of a state and a prediction, or None, got 1\.0"):
            nodes.FloatNode(5, prior=1.0)
        node = nodes.FloatNode(5)
        node.init(torch.zeros(2, 5))
        with pytest.raises(RuntimeError, match=r"FloatNode\(5\) has no energy without a prior"):
            node.energy()
        with pytest.raises(RuntimeError, match=r"FloatNode\(5\).energy\(\) needs a state"):
            nodes.FloatNode(5, prior=functional.gaussian_energy).energy()
