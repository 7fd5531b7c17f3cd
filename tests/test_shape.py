"""Shapes with placeholders: what they are, what fits them, and matrices out of tensors and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyromancy import Shape

dimensions = st.lists(st.none() | st.integers(1, 5), min_size=1, max_size=5)


class TestConstruction:
    def test_attributes(self):
        shape = Shape(None, 3, None, 4)
        assert shape.rshape == (None, 3, None, 4)
        assert shape.bshape == (1, 3, 1, 4)
        assert (shape.size, shape.ndim, shape.nconcrete, shape.nvirtual) == (12, 4, 2, 2)
        assert len(shape) == 4
        assert [*shape] == [None, 3, None, 4]
        assert shape[1] == 3
        assert shape[-2:] == (None, 4)
        assert repr(shape) == "Shape(None, 3, None, 4)"

    def test_only_placeholders(self):
        assert Shape(None, None).size == 1

    @pytest.mark.parametrize(
        ("dims", "error", "message"),
        [
            ((), ValueError, "at least one dimension, got none"),
            ((3, 0), ValueError, "must be positive, got 0"),
            ((-2,), ValueError, "must be positive, got -2"),
            ((2.0,), TypeError, "must be an int or None, got 2.0"),
            (("3", None), TypeError, "must be an int or None, got '3'"),
            ((-1, "3"), TypeError, "must be an int or None, got '3'"),
        ],
        ids=str,
    )
    def test_refusals(self, dims, error, message):
        with pytest.raises(error, match=message):
            Shape(*dims)


class TestEquality:
    @given(dimensions, dimensions)
    def test_is_that_of_tuples(self, a, b):
        same = tuple(a) == tuple(b)
        assert (Shape(*a) == Shape(*b)) is same
        assert (Shape(*a) == tuple(b)) is same
        assert (Shape(*a) != Shape(*b)) is not same
        assert Shape(*a) != [*a]

    @given(dimensions)
    def test_hashes_agree_with_it(self, dims):
        assert hash(Shape(*dims)) == hash(Shape(*dims)) == hash(tuple(dims))
        assert {Shape(*dims): "found"}[tuple(dims)] == "found"
        assert len({Shape(*dims), Shape(*dims), tuple(dims)}) == 1


class TestFit:
    def test_compat(self):
        shape = Shape(None, 3)
        assert shape.compat(7, 3)
        assert not shape.compat(7, 4)
        assert not shape.compat(3)
        assert not shape.compat(7, 3, 1)

    def test_filled(self):
        assert Shape(None, 3, None).filled(5, 7) == (5, 3, 7)
        assert Shape(3).filled() == (3,)

    @given(dimensions, st.lists(st.integers(1, 9), min_size=5, max_size=5))
    def test_what_is_filled_fits(self, dims, sizes):
        shape = Shape(*dims)
        assert shape.compat(*shape.filled(*sizes[: shape.nvirtual]))

    def test_refusals(self):
        shape = Shape(None, 3)
        for method, name in ((shape.compat, "shape"), (shape.filled, "fill")):
            with pytest.raises(TypeError, match=f"every size in {name} must be an int, got 2.0"):
                method(2.0)
            with pytest.raises(ValueError, match=f"every size in {name} must be positive, got 0"):
                method(0)
        with pytest.raises(TypeError, match="must be an int, got None"):
            shape.compat(0, None)
        for sizes in ((), (2, 3)):
            with pytest.raises(ValueError, match=rf"one size per placeholder \(1\), got {len(sizes)}"):
                shape.filled(*sizes)


class TestMatrices:
    def test_rows_are_placeholders_and_columns_concrete(self):
        tensor = torch.arange(24.0).reshape(2, 3, 4)
        matrix, _ = Shape(None, 3, None).coalesce(tensor)
        assert matrix.shape == (8, 3)
        for b in range(2):
            for p in range(4):
                assert torch.equal(matrix[4 * b + p], tensor[b, :, p])

    @given(dimensions, st.lists(st.integers(1, 4), min_size=5, max_size=5), st.randoms())
    def test_round_trip(self, dims, sizes, random):
        shape = Shape(*dims)
        full = shape.filled(*sizes[: shape.nvirtual])
        order = random.sample(range(len(full)), len(full))  # any layout in memory
        tensor = torch.randn([full[i] for i in order]).permute([order.index(i) for i in range(len(full))])
        matrix, pragma = shape.coalesce(tensor)
        assert matrix.shape == (tensor.numel() // shape.size, shape.size)
        assert torch.equal(shape.disperse(matrix, pragma), tensor)

    def test_is_a_view_where_it_can_be(self):
        tensor = torch.randn(2, 3)
        assert Shape(None, 3).coalesce(tensor)[0].data_ptr() == tensor.data_ptr()

    def test_has_gradients(self):
        shape = Shape(None, 3, None)
        tensor = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda t: shape.disperse(shape.coalesce(t)[0] ** 2, shape.coalesce(t)[1]), tensor
        )

    def test_refusals(self):
        shape = Shape(None, 3)
        with pytest.raises(
            ValueError, match=r"tensor must have 2 dimensions to fit Shape\(None, 3\), got shape \(2, 3, 1\)"
        ):
            shape.coalesce(torch.zeros(2, 3, 1))
        _, pragma = shape.coalesce(torch.zeros(2, 3))
        with pytest.raises(ValueError, match=r"tensor must have shape \(2, 3\) by pragma, got \(3, 2\)"):
            shape.disperse(torch.zeros(3, 2), pragma)
