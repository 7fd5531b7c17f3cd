"""How close is close, and the memory layouts that tensors come in."""

import math
from contextlib import contextmanager

import torch

FLOATS = (torch.float32, torch.float64)
LOW = (torch.bfloat16, torch.float16)


def name(dtype):
    """A dtype as a test id."""
    return str(dtype).removeprefix("torch.")


def tolerance(dtype, length=1):
    """Tolerances for a result that sums `length` terms of order one.

    The rule: a sum of n rounded terms is off by about sqrt(n) eps of the type it accumulates in, which is float32
    for bfloat16 and float16; 8 eps more for the elementary functions in the terms, 4 for the constant of the
    square root; and a low-precision result is rounded once more.
    """
    low = dtype in LOW
    accumulator = torch.float32 if low else dtype
    error = torch.finfo(accumulator).eps * (8 + 4 * math.sqrt(length)) + (torch.finfo(dtype).eps if low else 0.0)
    return {"atol": error, "rtol": error}


def assert_near(actual, expected, length=1, dtype=None, unit=0.0):
    """`actual` is the float64 `expected`, as well as its dtype allows, and operands of products rounded to `unit`."""
    assert actual.shape == expected.shape
    limits = {k: limit + 16 * unit for k, limit in tolerance(dtype or actual.dtype, length).items()}
    torch.testing.assert_close(actual.detach().double(), expected.detach().double(), equal_nan=True, **limits)


def assert_as_good_as_eager(actual, eager, exact):
    """The error of a low-precision result is at most twice that of the eager formula, plus one rounding."""
    if exact.numel() == 0:
        return
    mine = (actual.double() - exact).abs().max()
    theirs = (eager.double() - exact).abs().max()
    floor = torch.finfo(actual.dtype).eps * exact.abs().max()
    assert mine <= 2 * theirs + floor, f"error {mine:.3g}, eager's {theirs:.3g}, floor {floor:.3g}"


@contextmanager
def saying(what):
    """Add to an error what was being tried."""
    try:
        yield
    except Exception as error:
        error.add_note(f"with {what}")
        raise


def same_bits(a, b):
    """Whether two tensors are equal to the last bit, NaN included."""
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[a.element_size()]
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))
    )


def contiguous(t):
    return t.contiguous()


def sliced(t):
    """Every second element of the last dimension of something wider; the gaps are NaN."""
    if t.dim() == 0:
        return t
    wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1] + 1), math.nan)
    view = wide[..., 1::2]
    return view.copy_(t)


def rows(t):
    """Every third row of something taller: dense rows far apart."""
    if t.dim() == 0:
        return t
    view = t.new_full((3 * t.shape[0] + 1, *t.shape[1:]), math.nan)[1::3]
    return view.copy_(t)


def transposed(t):
    """Dense, with the dimensions in memory in the opposite order."""
    order = tuple(reversed(range(t.dim())))
    return t.permute(order).contiguous().permute(order)


def channels_last(t):
    """As convolutions leave it, where there are four dimensions."""
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t.contiguous()


def expanded(t):
    """The last row for all rows, with stride zero: other values than `t` has."""
    return t[-1:].expand_as(t) if t.dim() else t


def zero_stride(t):
    """One element for all: every stride is zero."""
    return t[-1][(0,) * (t.dim() - 1)].expand(t.shape) if t.dim() else t


def moved(x, device):
    """A copy on a device that has the strides of `x` and shares nothing with it; the gaps are NaN."""
    room = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1 if x.numel() else 0
    memory = torch.full((room + 1,), math.nan, dtype=x.dtype, device=device)
    view = memory.as_strided(x.shape, x.stride())
    if all(s != 0 for n, s in zip(x.shape, x.stride(), strict=True) if n > 1):
        view.copy_(x)
    elif x.numel():  # an element under several indices: any one write will do
        once = tuple(slice(0, 1) if s == 0 else slice(None) for s in x.stride())
        view[once].copy_(x[once])
    return view


def negated(t):
    """The imaginary part of a conjugate, which holds the negative of its memory."""
    if t.dtype not in (torch.float32, torch.float64):  # there are no complex numbers of these
        return torch._neg_view(-t)
    return torch.complex(torch.zeros_like(t), -t).conj().imag


DENSE = (contiguous, sliced, rows, transposed, channels_last)
OVERLAPPING = (expanded, zero_stride)
