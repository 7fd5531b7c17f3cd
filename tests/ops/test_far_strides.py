"""Elements more than 2^31 apart: 64-bit index arithmetic, in tensors of which a few pages are ever touched."""

import numpy as np
import pytest
import torch

import formulas
from numerics import assert_near
from pyromancy import ops

pytestmark = pytest.mark.usefixtures("backend")

PLAIN = (0.1, 0.0, 0.0, False)  # a rate, and no momentum
ROWS, STRIDE = 3, 2**30 + 7  # the last row starts past 2^31 elements


@pytest.fixture(scope="module")
def memory():
    """Address space of 8.6 GB; the operating system backs only what is written."""
    try:
        return torch.from_numpy(np.zeros((ROWS - 1) * STRIDE + 4096, dtype=np.float32))
    except MemoryError:
        pytest.skip("8.6 GB of address space are not to be had")


def far(memory, offset, strides):
    """A [3, 5, 7] tensor of random numbers spread over the memory."""
    t = memory.as_strided((ROWS, 5, 7), strides, offset)
    return t.copy_(torch.randn(ROWS, 5, 7))


def pair(memory, inner=(7, 1)):
    a, b = (far(memory, offset, (STRIDE, *inner)) for offset in (0, 512))
    assert a.stride(0) * (ROWS - 1) > 2**31
    return a, b


@pytest.mark.parametrize("inner", [(7, 1), (14, 2), (1, 5)], ids=["rows", "gaps", "transposed"])
class TestFarRows:
    def test_energy_and_its_gradients(self, memory, inner):
        value, pred = pair(memory, inner)
        grad, logvar = torch.randn(ROWS), torch.randn(5, 7)
        wide = value.double(), pred.double(), logvar.double()
        assert_near(ops.gaussian_energy(value, pred, logvar), formulas.gaussian_energy(*wide)[0], 35)
        assert_near(ops.gaussian_error(value, pred, logvar, grad), formulas.gaussian_error(*wide, grad.double())[0])
        dense = value.contiguous()
        for first, second in ((value.contiguous(), pred), (dense, pred), (pred.contiguous(), value)):
            exact = formulas.gaussian_energy_backward_logvar(grad.double(), first.double(), second.double(), wide[2])
            outputs = ops.autograd._energy_backward_logvar(grad, first, second, logvar)
            for output, truth in zip(outputs, exact, strict=True):
                assert_near(output, truth, ROWS)

    def test_steps_in_place(self, memory, inner):
        value, buffer = pair(memory, inner)
        error = torch.randn(ROWS, 5, 7)
        (expected,) = formulas.estep_(value.double(), None, error.double(), None, *PLAIN)
        ops.estep_(value, None, error, None, *PLAIN)
        assert_near(value, expected)
        exact = formulas.estep_(value.double(), buffer.double(), error.double(), None, 0.1, 0.9, 0.0, True)
        ops.estep_(value, buffer, error, None, 0.1, 0.9, 0.0, True)
        for output, truth in zip((value, buffer), exact, strict=True):
            assert_near(output, truth)

    def test_multivariate(self, memory, inner):
        value, pred = pair(memory, inner)
        factor = torch.randn(7, 7).tril(-1) / 7 + torch.eye(7)
        wide = value.double(), pred.double(), factor.double()
        for output, truth in zip(
            ops.multivariate_energy(value, pred, factor), formulas.multivariate_energy(*wide), strict=True
        ):
            assert_near(output, truth, 49)
        assert_near(ops.multivariate_error(value, pred, factor), formulas.multivariate_error(*wide)[0], 49)


def test_far_columns(memory):
    value = memory.as_strided((2, 3), (64, STRIDE)).copy_(torch.randn(2, 3))
    pred = torch.randn(2, 3)
    assert_near(
        ops.gaussian_energy(value, pred, None), formulas.gaussian_energy(value.double(), pred.double(), None)[0], 3
    )
    exact = formulas.estep_(value.double(), None, pred.double(), None, *PLAIN)[0]
    ops.estep_(value, None, pred, None, *PLAIN)
    assert_near(value, exact)
