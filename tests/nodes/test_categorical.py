"""Categorical nodes: cross-entropies by PyTorch's, states of classes and of probabilities, and samples."""

import pytest
import torch
import torch.nn.functional as F

from numerics import FLOATS, LOW, assert_near, name
from pyromancy import get_estep_params, get_mstep_params
from pyromancy.nodes import CategoricalNode

SHAPES = [((63,), (63,)), ((3, 5), (3, 5)), ((3, None), (3, 7)), ((1,), (1,)), ((4, None, 2), (4, 3, 2))]


@pytest.mark.parametrize(("dims", "filled"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_energy_is_the_cross_entropy_and_error_its_gradient(dims, filled, dtype):
    node = CategoricalNode(*dims).to(dtype)
    value, pred = torch.randn(3, *filled).double().softmax(1).to(dtype), torch.randn(3, *filled).to(dtype)
    node.init(value)
    logits = pred.double().requires_grad_()
    expected = F.cross_entropy(logits, value.double(), reduction="none").reshape(3, -1).sum(1)
    assert_near(node.energy(pred), expected, 63)
    (of_logits,) = torch.autograd.grad(expected.sum(), logits)
    assert_near(node.error(pred), -of_logits, 63)
    ours = pred.clone().requires_grad_()
    assert_near(torch.autograd.grad(node.energy(ours).sum(), ours)[0], of_logits, 63)
    assert list(get_estep_params(node)) == [node.value]
    assert not list(get_mstep_params(node))


@pytest.mark.parametrize("dtype", LOW, ids=name)
def test_low_precision(dtype):
    node = CategoricalNode(63).to(dtype)
    value, pred = torch.randn(3, 63).softmax(1).to(dtype), torch.randn(3, 63).to(dtype)
    node.init(value)
    assert_near(node.energy(pred), -(value.double() * pred.double().log_softmax(1)).sum(1), 63)


@pytest.mark.parametrize(("dims", "filled"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=name)
def test_classes_become_one_hot(dims, filled, dtype):
    node = CategoricalNode(*dims)
    classes = torch.randint(filled[0], (3, *filled[1:]), dtype=dtype)
    state = node.init(classes)
    assert state is node.value
    expected = F.one_hot(classes.long(), filled[0]).movedim(-1, 1).float()
    assert torch.equal(state, expected)
    pred = torch.randn(3, *filled)
    expected = F.cross_entropy(pred, classes.long(), reduction="none").reshape(3, -1).sum(1)
    torch.testing.assert_close(node.energy(pred), expected)


BAD = {
    "above": (torch.tensor([0, 3]), ValueError, "value must be class indices from 0 to 2, got 3"),
    "below": (torch.tensor([0, -1]), ValueError, "value must be class indices from 0 to 2, got -1"),
    "negative": (torch.tensor([[1.5, -0.5, 0.0]]), ValueError, "probabilities, none of them negative, got -0.5"),
    "more": (torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0.1]]), ValueError, "sum to 1 over the classes, got a sum of 1.1"),
    "less": (torch.zeros(2, 3), ValueError, "sum to 1 over the classes, got a sum of 0"),
    "nan": (torch.full((1, 3), float("nan")), ValueError, "probabilities, none of them negative, got nan"),
    "bool": (torch.ones(2, 3, dtype=torch.bool), TypeError, "class indices or probabilities, got torch.bool"),
    "complex": (torch.ones(2, 3) * 1j, TypeError, "class indices or probabilities, got torch.complex64"),
    "list": ([0, 1], TypeError, "value must be a tensor, got list"),
    "rows-of-classes": (
        torch.zeros(2, 3, dtype=torch.int64), ValueError,
        r"indices of shape \(None,\), got \(2, 3\); probabilities are floats, as value.float\(\)",
    ),
    "classes-in-floats": (torch.zeros(2), ValueError, r"got \(2,\); class indices are of an integer dtype, value.long"),
    "other-width": (torch.full((2, 4), 0.25), ValueError, r"must fit the node's shape \(None, 3\), got \(2, 4\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_states_that_are_none(case):
    value, error, message = BAD[case]
    node = CategoricalNode(3)
    node.init(torch.tensor([1, 2]))
    before = node.value.detach().clone()
    with pytest.raises(error, match=message):
        node.init(value)
    assert torch.equal(node.value, before)


def test_probabilities_that_are_rounded_are_taken():
    for dtype in (*FLOATS, *LOW):
        CategoricalNode(1000).init(torch.randn(5, 1000).softmax(1).to(dtype))


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_extreme_logits(dtype):
    node = CategoricalNode(3).to(dtype)
    node.init(torch.tensor([0, 1, 2]))
    pred = torch.tensor([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], dtype=dtype, requires_grad=True)
    energy = node.energy(pred)
    torch.testing.assert_close(energy.double(), torch.tensor([0.0, 2e4, 3.0], dtype=torch.float64).where(
        torch.tensor([True, True, False]), torch.tensor(3.0).double().log()))  # fmt: skip
    third = 1 / 3
    expected = torch.tensor([[0, 0, 0], [-1, 1, 0], [-third, -third, 1 - third]], dtype=dtype)
    torch.testing.assert_close(node.error(pred), expected)
    torch.testing.assert_close(torch.autograd.grad(energy.sum(), pred)[0], -expected)


def test_samples_have_the_probabilities():
    logits = torch.tensor([0.1, 0.2, 0.7]).log().view(1, 3, 1).expand(1, 3, 20000)
    node = CategoricalNode(3, None)
    drawn = node.sample(logits, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.sum(1), torch.ones(1, 20000))
    assert ((drawn == 0) | (drawn == 1)).all()
    share, p = drawn.mean((0, 2)), torch.tensor([0.1, 0.2, 0.7])
    assert ((share - p).abs() < 5 * (p * (1 - p) / 20000).sqrt()).all()  # of five standard errors
    assert torch.equal(drawn, node.sample(logits, torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="value must fit"):
        node.sample(torch.zeros(1, 4, 2))


def test_a_node_needs_a_number_of_classes():
    with pytest.raises(TypeError, match="classes must be a number, got None"):
        CategoricalNode(None)
