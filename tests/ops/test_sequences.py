"""Attention and layer normalization in memory that is given, against their formulas in float64 by autograd."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pyromancy import ops

DTYPES = {torch.float32: 4e-6, torch.float64: 1e-14}
SHAPES = [(2, 3, 64, 32), (1, 2, 7, 5), (3, 1, 130, 20), (2, 2, 1, 3), (1, 1, 33, 17), (2, 1, 16, 16)]


def attention(query, key, value, causal, scale):
    scores = scale * torch.einsum("bhid,bhjd->bhij", query, key)
    if causal:
        place = torch.arange(query.shape[2])
        scores = scores.where(place[:, None] >= place, -torch.inf)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return torch.einsum("bhij,bhjd->bhid", weights / weights.sum(-1, keepdim=True), value)


def layer_norm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdim=True)
    normal = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return normal * (1 if weight is None else weight) + (0 if bias is None else bias)


def exact(function, tensors, grad):
    """What a function makes of tensors, and gradients of what it makes times grad, in float64."""
    leaves = [t.double().clone().requires_grad_() for t in tensors]
    made = function(*leaves)
    return made.detach(), torch.autograd.grad(made, leaves, grad.double())


def packed(shape, dtype):
    """Three tensors of heads in one, as a layer makes them."""
    b, h, n, d = shape
    return torch.randn(b, n, 3, h, d, dtype=dtype).permute(2, 0, 3, 1, 4)


def apart(shape, dtype):
    return torch.randn(3, *shape, dtype=dtype)


def close(found, right, allowed):
    torch.testing.assert_close(found.double(), right, rtol=allowed, atol=allowed)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestAttention:
    @pytest.mark.parametrize("lay", [packed, apart])
    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_formula(self, shape, causal, lay, dtype):
        query, key, value = lay(shape, dtype)
        grad = lay(shape, dtype)[0]
        made, gradients = exact(lambda *of: attention(*of, causal, 0.4), (query, key, value), grad)
        out, grads = torch.full_like(query, torch.nan), torch.full_like(lay(shape, dtype), torch.nan)
        ops.attention_(out, query, key, value, causal, 0.4)
        ops.attention_backward_(grads, grad, query, key, value, causal, 0.4)
        close(out, made, DTYPES[dtype])
        for found, right in zip(grads, gradients, strict=True):
            close(found, right, 10 * DTYPES[dtype])

    def test_large_scores(self, dtype):
        """The softmax neither overflows nor loses what is far below the largest."""
        query, key, value = 30 * torch.randn(3, 1, 2, 20, 8, dtype=dtype)
        grad = torch.randn_like(query)
        made, gradients = exact(lambda *of: attention(*of, True, 1.0), (query, key, value), grad)
        out, grads = torch.empty_like(query), torch.empty(3, *query.shape, dtype=dtype)
        ops.attention_(out, query, key, value, True, 1.0)
        ops.attention_backward_(grads, grad, query, key, value, True, 1.0)
        # scores of thousands are rounded by as many units as weights are then off by
        close(out, made, 3e3 * DTYPES[dtype])
        for found, right in zip(grads, gradients, strict=True):
            close(found / 900, right / 900, 3e3 * DTYPES[dtype])

    def test_what_is_no_number_stays_in_its_sample_and_its_past(self, dtype):
        query, key, value = torch.randn(3, 2, 1, 9, 4, dtype=dtype)
        key[0, 0, 5] = torch.nan
        out = torch.empty_like(query)
        ops.attention_(out, query, key, value, True, 0.5)
        assert out[0, 0, 5:].isnan().all()
        assert out[0, 0, :5].isfinite().all()
        assert out[1].isfinite().all()

    def test_samples_are_independent_of_batch_and_threads(self, dtype):
        query, key, value = packed((9, 4, 40, 24), dtype)
        grad = torch.randn_like(query)
        threads = torch.get_num_threads()
        whole, part = torch.empty_like(query), torch.empty_like(query[6:7])
        grads, grads_of_part = torch.empty(3, *whole.shape, dtype=dtype), torch.empty(3, *part.shape, dtype=dtype)
        alone = [t[6:7] for t in (query, key, value)]
        try:
            for count in (1, 3):
                torch.set_num_threads(count)
                ops.attention_(whole, query, key, value, False, 0.2)
                ops.attention_(part, *alone, False, 0.2)
                ops.attention_backward_(grads, grad, query, key, value, False, 0.2)
                ops.attention_backward_(grads_of_part, grad[6:7], *alone, False, 0.2)
                assert torch.equal(whole[6:7], part)
                assert torch.equal(grads[:, 6:7], grads_of_part)
        finally:
            torch.set_num_threads(threads)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestLayerNorm:
    @pytest.mark.parametrize("affine", ["weight and bias", "weight", "neither"])
    @pytest.mark.parametrize("shape", [(5, 7, 37), (3, 128), (2, 3, 4, 16), (4, 1), (6,)], ids=str)
    def test_formula(self, shape, affine, dtype):
        x, grad = torch.randn(2, *shape, dtype=dtype) * 3 + 1
        weight = torch.randn(shape[-1], dtype=dtype) if affine != "neither" else None
        bias = torch.randn(shape[-1], dtype=dtype) if affine == "weight and bias" else None
        wide = [None if t is None else t.double() for t in (weight, bias)]
        made, (gradient,) = exact(lambda x: layer_norm(x, *wide, 1e-3), (x,), grad)
        out, into = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
        ops.layer_norm_(out, x, weight, bias, 1e-3)
        ops.layer_norm_backward_(into, grad, x, weight, 1e-3)
        close(out, made, 10 * DTYPES[dtype])
        close(into, gradient, 30 * DTYPES[dtype])

    def test_rows_far_from_zero(self, dtype):
        """The variance is that of differences from the mean: nothing cancels."""
        x = torch.randn(4, 300, dtype=torch.float64).to(dtype) + 1000
        out = torch.empty_like(x)
        ops.layer_norm_(out, x, None, None, 0.0)
        close(out, layer_norm(x.double(), None, None, 0.0), 1000 * DTYPES[dtype])

    def test_samples_are_independent_of_batch_and_threads(self, dtype):
        x, grad = torch.randn(2, 4000, 41, dtype=dtype)
        weight, threads = torch.randn(41, dtype=dtype), torch.get_num_threads()
        whole, part = torch.empty_like(x), torch.empty(1, 41, dtype=dtype)
        try:
            for count in (1, 3):
                torch.set_num_threads(count)
                ops.layer_norm_(whole, x, weight, None, 1e-5)
                ops.layer_norm_(part, x[77:78], weight, None, 1e-5)
                assert torch.equal(whole[77:78], part)
                ops.layer_norm_backward_(whole, grad, x, weight, 1e-5)
                ops.layer_norm_backward_(part, grad[77:78], x[77:78], weight, 1e-5)
                assert torch.equal(whole[77:78], part)
        finally:
            torch.set_num_threads(threads)


Q, R, W = torch.zeros(2, 3, 4, 5), torch.zeros(6, 5), torch.zeros(5)
WRONG = {
    "query must have shape": ("attention_", (W.clone(), W, W, W, False, 1.0)),
    "query must be float32 or float64": ("attention_", (Q.half(), Q.half(), Q.half(), Q.half(), False, 1.0)),
    r"key must have the shape of query \(2, 3, 4, 5\)": ("attention_", (Q.clone(), Q, Q[:1], Q, False, 1.0)),
    "value must have dtype": ("attention_", (Q.clone(), Q, Q, Q.double(), True, 1.0)),
    "value must have the elements of a vector side by side": (
        "attention_", (Q.clone(), Q, Q, torch.zeros(2, 3, 5, 4).mT, True, 1.0)
    ),
    "scale must be finite, got": ("attention_", (Q.clone(), Q, Q, Q, True, float("inf"))),
    "grads must hold three tensors of the shape of query": (
        "attention_backward_", (Q.clone(), Q, Q, Q, Q, False, 1.0)
    ),
    "grad must have the shape of query": (
        "attention_backward_", (torch.zeros(3, *Q.shape), Q[:1], Q, Q, Q, False, 1.0)
    ),
    r"input must have a dimension, got shape \(\)": ("layer_norm_", (W.sum(), W.sum(), None, None, 1.0)),
    "input must be contiguous": ("layer_norm_", (torch.zeros(5, 6), R.mT, None, None, 1.0)),
    r"weight must have shape \(5,\), got \(6, 5\)": ("layer_norm_", (R.clone(), R, R, None, 1.0)),
    "bias must have dtype": ("layer_norm_", (R.clone(), R, W, W.double(), 1.0)),
    "out must have the shape of input": ("layer_norm_", (W.clone(), R, W, None, 1.0)),
    "eps must be finite": ("layer_norm_", (R.clone(), R, W, None, float("nan"))),
    "grad must have the shape of input": ("layer_norm_backward_", (R.clone(), W, R, None, 1.0)),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message, backend):
    name, args = WRONG[message]
    operator = getattr(torch.ops.pyromancy, name)
    before = args[0].clone()
    with pytest.raises(RuntimeError, match=message):
        operator(*args)
    assert torch.equal(args[0], before)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for t in args]
        with pytest.raises(RuntimeError, match=message):
            operator(*fakes)


@pytest.mark.usefixtures("backend")
def test_memory_that_overlaps_is_refused():
    for call in (
        lambda: ops.attention_(Q, Q, Q.clone(), Q.clone(), False, 1.0),
        lambda: ops.attention_(Q[:1].expand_as(Q), Q, Q.clone(), Q.clone(), False, 1.0),
        lambda: ops.layer_norm_(R, R, None, None, 1.0),
        lambda: ops.layer_norm_backward_(R, R, R.clone(), None, 1.0),
    ):
        with pytest.raises(RuntimeError, match=r"is written in place and must not (overlap .* in memory|be expanded)"):
            call()


def test_opcheck():
    heads, rows, width = torch.randn(4, 2, 3, 4, 5), torch.randn(3, 6, 5), torch.randn(5)
    grads = torch.empty(3, *heads[0].shape)
    for operator, args in (
        (torch.ops.pyromancy.attention_, (torch.empty_like(heads[0]), *heads[:3], True, 0.5)),
        (torch.ops.pyromancy.attention_backward_, (grads, *heads, True, 0.5)),
        (torch.ops.pyromancy.layer_norm_, (rows[0], rows[1], width, None, 1e-5)),
        (torch.ops.pyromancy.layer_norm_backward_, (*rows, width, 1e-5)),
    ):
        torch.library.opcheck(operator.default, args)
