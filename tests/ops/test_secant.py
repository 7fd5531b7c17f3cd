"""Inner products of a step and the gradients around it, against their definitions in float64."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pyromancy import ops

DTYPES = {torch.float32: 2e-6, torch.float64: 1e-14}
SHAPES = [(5, 7), (3,), (4, 1), (2, 3, 4, 5), (3, 32, 28, 28), (2, 70000), (1, 5000), (0, 4), (3, 0)]


def rows(t):
    return t.double().reshape(len(t), t[:1].numel())


def products(gradient, before, step):
    g, h, s = map(rows, (gradient, before, step))
    y = g - h
    pairs = (g, g), (g, s), (g, y), (h, h), (h, s), (h, y), (s, s), (s, y), (y, y)
    return torch.stack([torch.einsum("bi,bi->b", a, b) for a, b in pairs])


def whole(shape, dtype):
    return torch.randn(3, *shape, dtype=dtype).unbind()


def channels_last(shape, dtype):
    return [t.transpose(1, -1).contiguous().transpose(1, -1) if t.dim() > 2 else t for t in whole(shape, dtype)]


def of_nothing(shape, dtype):
    """A first step: nothing has led there, which takes no memory."""
    gradient, zero = torch.randn(shape, dtype=dtype), torch.zeros((), dtype=dtype).expand(shape)
    return gradient, zero, zero


def strided(shape, dtype):
    """Each in a layout of its own."""
    gradient, before, step = whole(shape, dtype)
    wide = torch.randn(*shape, 2, dtype=dtype)
    wide[..., 0] = before
    return gradient, wide[..., 0], step.flip(0).contiguous().flip(0)


def found(gradient, before, step):
    out = torch.full((9, len(gradient)), torch.nan, dtype=torch.float64)
    ops.secant_products_(out, gradient, before, step)
    return out


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lay", [whole, channels_last, of_nothing, strided])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_formula(shape, lay, dtype):
    given = lay(shape, dtype)
    size = sum(rows(t).square().sum(1) for t in given)  # of what is summed
    assert ((found(*given) - products(*given)).abs() <= DTYPES[dtype] * size).all()


@pytest.mark.usefixtures("backend")
def test_a_small_change_of_the_gradient_is_not_lost():
    """y is made of elements: of gradients that hardly differ, y.y is no difference of their squares."""
    before, step = torch.randn(2, 4, 900)
    gradient = before * (1 + 1e-5)
    y = (gradient - before).double()
    torch.testing.assert_close(found(gradient, before, step)[8], (y * y).sum(1), rtol=1e-5, atol=0)


@pytest.mark.usefixtures("backend")
def test_what_is_no_number_stays_in_its_sample():
    gradient, before, step = torch.randn(3, 3, 2000)
    gradient[1, 70] = torch.nan
    out = found(gradient, before, step)
    assert out[[0, 1, 2, 5, 7, 8], 1].isnan().all()
    torch.testing.assert_close(out[:, [0, 2]], products(gradient, before, step)[:, [0, 2]], rtol=1e-5, atol=1e-3)


@pytest.mark.usefixtures("native_backend")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_samples_are_independent_of_batch_and_threads(dtype):
    given = torch.randn(3, 6, 70001, dtype=dtype).unbind()
    threads, all_ = torch.get_num_threads(), found(*given)
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(found(*given), all_)
            assert torch.equal(found(*(t[4:5] for t in given)), all_[:, 4:5])
    finally:
        torch.set_num_threads(threads)


OUT, G = torch.zeros(9, 3, dtype=torch.float64), torch.zeros(3, 4)
WRONG = {
    r"gradient must have a batch dimension, got shape \(\)": (OUT.clone(), G.sum(), G.sum(), G.sum()),
    "gradient must be float32 or float64": (OUT.clone(), G.half(), G.half(), G.half()),
    r"before must have the shape of gradient \(3, 4\)": (OUT.clone(), G, G[:2], G),
    "step must have dtype": (OUT.clone(), G, G, G.double()),
    "out must be float64": (OUT.float(), G, G, G),
    r"out must have shape \(9, 3\), got \(3, 9\)": (OUT.mT.clone(), G, G, G),
    "out must be contiguous": (torch.zeros(3, 9, dtype=torch.float64).mT, G, G, G),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message, backend):
    args = WRONG[message]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.pyromancy.secant_products_(*args)
    with FakeTensorMode() as mode, pytest.raises(RuntimeError, match=message):
        torch.ops.pyromancy.secant_products_(*map(mode.from_tensor, args))


@pytest.mark.usefixtures("backend")
def test_memory_that_overlaps_is_refused():
    given = torch.zeros(9, 9, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="must not overlap gradient in memory"):
        ops.secant_products_(given, given, given.clone(), given.clone())
    with pytest.raises(RuntimeError, match=r"must not be expanded|must be contiguous"):
        ops.secant_products_(given[:, :1].expand(9, 9), given.clone(), given.clone(), given.clone())


@pytest.mark.usefixtures("backend")
def test_opcheck():
    torch.library.opcheck(
        torch.ops.pyromancy.secant_products_.default,
        (torch.zeros(9, 3, dtype=torch.float64), *torch.randn(3, 3, 4).unbind()),
        test_utils=("test_schema", "test_faketensor"),
    )
