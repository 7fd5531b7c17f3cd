"""`Shape` beside the oracle's, over arbitrary shapes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracle_package
from pyromancy import Shape

oracle = oracle_package.load()

dimensions = st.lists(st.none() | st.integers(1, 4), min_size=1, max_size=5)
anything = st.none() | st.integers(-2, 5) | st.sampled_from([1.0, "3", True])


def outcome(function, *args):
    """What a call gives, or the type of what it raises."""
    try:
        return function(*args)
    except (TypeError, ValueError, RuntimeError) as error:
        return type(error)


@given(st.lists(anything, max_size=4))
def test_construction(dims):
    ours, theirs = outcome(Shape, *dims), outcome(oracle.Shape, *dims)
    if isinstance(theirs, type):
        assert ours is theirs
    else:
        assert ours.rshape == theirs.rshape
        assert [type(d) for d in ours] == [type(d) for d in theirs]


@given(dimensions)
def test_properties(dims):
    ours, theirs = Shape(*dims), oracle.Shape(*dims)
    for key in ("rshape", "bshape", "size", "ndim", "nconcrete", "nvirtual"):
        assert getattr(ours, key) == getattr(theirs, key)
    assert repr(ours) == repr(theirs)
    assert len(ours) == len(theirs)
    assert [*ours] == [*theirs]
    for index in (0, -1, slice(1, None), slice(None, None, 2), len(dims) - 1):
        assert ours[index] == theirs[index]


@given(dimensions, dimensions, st.sampled_from(["shape", "tuple", "list"]))
def test_equality(a, b, form):
    ours, theirs = (s(*a) == {"shape": s(*b), "tuple": tuple(b), "list": b}[form] for s in (Shape, oracle.Shape))
    assert ours is theirs


@given(dimensions, st.lists(st.integers(-1, 4) | st.sampled_from([2.0, None, "1"]), max_size=5))
def test_compat_and_filled(dims, sizes):
    ours, theirs = Shape(*dims), oracle.Shape(*dims)
    assert outcome(ours.compat, *sizes) == outcome(theirs.compat, *sizes)
    assert outcome(ours.filled, *sizes) == outcome(theirs.filled, *sizes)


@given(dimensions)
def test_compat_accepts_what_filled_makes(dims):
    sizes = range(2, 2 + dims.count(None))
    assert Shape(*dims).compat(*oracle.Shape(*dims).filled(*sizes))


@given(dimensions, st.data())
def test_coalesce_and_disperse(dims, data):
    ours, theirs = Shape(*dims), oracle.Shape(*dims)
    tensor = torch.randn(
        ours.filled(*data.draw(st.lists(st.integers(1, 4), min_size=ours.nvirtual, max_size=ours.nvirtual)))
    )
    if data.draw(st.booleans()):
        tensor = tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor
    (a, pragma), (b, expected) = ours.coalesce(tensor), theirs.coalesce(tensor)
    assert torch.equal(a, b)
    assert pragma == expected
    assert torch.equal(ours.disperse(a, expected), theirs.disperse(b, pragma))
    other = a + torch.arange(a.numel()).reshape(a.shape)
    assert torch.equal(ours.disperse(other, pragma), theirs.disperse(other, pragma))


@given(dimensions)
def test_empty_batches_coalesce(dims):
    ours, theirs = Shape(None, *dims), oracle.Shape(None, *dims)
    tensor = torch.zeros(0, *(1 if d is None else d for d in dims))
    assert torch.equal(ours.coalesce(tensor)[0], theirs.coalesce(tensor)[0])


def test_wrong_number_of_dimensions():
    for shape in (Shape(None, 3), oracle.Shape(None, 3)):
        with pytest.raises((ValueError, RuntimeError)):
            shape.coalesce(torch.zeros(2))
