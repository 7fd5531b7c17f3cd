"""Gradients of the operators, one boundary each.

The same backward serves two ways in. `torch.ops.pyromancy.*` is differentiable through the dispatcher, which
is also what `torch.compile` traces. `functional` takes the `torch.autograd.Function` below directly: half the
overhead per call. A backward that is itself differentiated (``create_graph=True``) runs the reference formula.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import reference
from .schema import NAMESPACE, library, registered

_ops = torch.ops.pyromancy
_energy = _ops.gaussian_energy.default
_energy_backward = _ops.gaussian_energy_backward.default
_energy_backward_logvar = _ops.gaussian_energy_backward_logvar.default
_error = _ops.gaussian_error.default
_factor = _ops.cholesky_factor.default
_factor_backward = _ops.cholesky_factor_backward.default
_multivariate_energy = _ops.multivariate_energy.default
_multivariate_energy_backward = _ops.multivariate_energy_backward.default
_multivariate_energy_backward_factor = _ops.multivariate_energy_backward_factor.default
_multivariate_error = _ops.multivariate_error.default

below_autograd = torch._C._AutoDispatchBelowAutograd
_WORTH_ASKING = 1 << 15  # elements of a gradient from which computing it costs more than asking whether it is wanted


def _runs(ctx: Any, index: int) -> bool:
    """Whether this backward pass wants the gradient of input `index`.

    ``needs_input_grad`` only says that the input requires one. `backward(inputs=...)` of an E-step leaves most
    of them out, the covariance's among them, and computing those would cost as much as the E-step itself.
    """
    if not ctx.needs_input_grad[index]:
        return False
    try:
        return torch._C._will_engine_execute_node(ctx.next_functions[index][0])
    except (AttributeError, RuntimeError, TypeError):  # not told while tracing, nor for a leaf in autograd.grad
        return True


def _narrow(dtype: torch.dtype, *wide: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients that were computed in a wider type, each rounded once."""
    return tuple(t if t is None else t.to(dtype) for t in wide)


class GaussianEnergy(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, pred: Tensor, logvar: Tensor | None) -> Tensor:
        ctx.save_for_backward(value, pred, logvar)
        with below_autograd():
            return _energy(value, pred, logvar)

    @staticmethod
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, pred, logvar = ctx.saved_tensors
        if torch.is_grad_enabled():
            if logvar is not None and ctx.needs_input_grad[2]:
                return reference.gaussian_energy_backward_logvar(grad, value, pred, logvar)
            return *reference.gaussian_energy_backward(grad, value, pred, logvar), None
        both = value.numel() < _WORTH_ASKING
        with below_autograd():
            if logvar is not None and ctx.needs_input_grad[2] and (both or _runs(ctx, 2)):
                return _energy_backward_logvar(grad, value, pred, logvar)
            for_value, for_pred = both or _runs(ctx, 0), both or _runs(ctx, 1)
            if for_value and for_pred:
                return *_energy_backward(grad, value, pred, logvar), None
            if for_value:
                return _error(value, pred, logvar, grad), None, None
            if for_pred:  # the gradient for pred is the error with the two exchanged
                return None, _error(pred, value, logvar, grad), None
        return None, None, None


class GaussianError(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, pred: Tensor, logvar: Tensor | None, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(value, pred, logvar, weight)
        with below_autograd():
            return _error(value, pred, logvar, weight)

    @staticmethod
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # linear in value and pred; made of differentiable operations, so it needs no second path
        dtype = grad.dtype
        value, pred, grad = map(reference._wide, (*ctx.saved_tensors[:2], grad))
        logvar, weight = (t if t is None else reference._wide(t) for t in ctx.saved_tensors[2:])
        grad_value = reference.gaussian_error(grad, torch.zeros_like(grad), logvar, weight)
        grad_logvar = grad_weight = None
        if logvar is not None and ctx.needs_input_grad[2]:
            slope = -grad * reference.gaussian_error(value, pred, logvar, weight)
            grad_logvar = slope.sum(0).sum_to_size(logvar.shape)
        if weight is not None and ctx.needs_input_grad[3]:
            grad_weight = reference._per_sample(grad * reference.gaussian_error(value, pred, logvar, None))
        return _narrow(dtype, grad_value, -grad_value, grad_logvar, grad_weight)


class CholeskyFactor(Function):
    @staticmethod
    def forward(ctx: Any, logdiag: Tensor, offtril: Tensor) -> Tensor:
        with below_autograd():
            factor = _factor(logdiag, offtril)
        ctx.save_for_backward(logdiag, offtril, factor)
        return factor

    @staticmethod
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logdiag, _, factor = ctx.saved_tensors
        if torch.is_grad_enabled():
            return grad.diagonal() * logdiag.exp(), grad.tril(-1)
        gradients: tuple[Tensor, Tensor] = _factor_backward(grad, factor)
        return gradients


class MultivariateEnergy(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, pred: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """States may come as [B, n] too: a view made here costs no node in the graph."""
        ctx.flat = value.dim() == 2
        rows = (value.unsqueeze(1), pred.unsqueeze(1)) if ctx.flat else (value, pred)
        with below_autograd():
            energy, whitened = _multivariate_energy(*rows, factor)
        # not the views, which are detached here: a second derivative goes through what is saved
        MultivariateEnergy.setup(ctx, (value, pred, factor), (energy, whitened))
        return energy, whitened

    @staticmethod
    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # or the engine fills a tensor with zeros for the second output
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None
        value, pred, factor, whitened = ctx.saved_tensors
        grad_factor, flat = None, getattr(ctx, "flat", False)
        if torch.is_grad_enabled():
            dtype = value.dtype
            if flat:
                value, pred = value.unsqueeze(1), pred.unsqueeze(1)
            value, pred, factor, grad = map(reference._wide, (value, pred, factor, grad))
            whitened = reference._whiten(value - pred, factor)
            gradients = reference.multivariate_energy_backward(grad, whitened, factor)
            grad_factor = reference.multivariate_energy_backward_factor(grad, whitened, gradients[0], factor)
            gradients, grad_factor = (gradients[0].to(dtype), gradients[1].to(dtype)), grad_factor.to(dtype)
        else:
            gradients = _multivariate_energy_backward(grad, whitened, factor)
            if _runs(ctx, 2):
                grad_factor = _multivariate_energy_backward_factor(grad, whitened, gradients[0], factor)
        if flat:
            gradients = gradients[0].squeeze(1), gradients[1].squeeze(1)
        return *gradients, grad_factor


class MultivariateError(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, pred: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(value, pred, factor)
        with below_autograd():
            return _multivariate_error(value, pred, factor)

    @staticmethod
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # e = (L L^T)^-1 d: with h = (L L^T)^-1 grad, dL receives -(h (L^T e)^T + e (L^T h)^T)
        dtype = grad.dtype
        value, pred, factor, grad = map(reference._wide, (*ctx.saved_tensors, grad))
        factor, n = factor.tril(), factor.shape[0]  # what is above the diagonal is not the factor's
        h = reference.multivariate_error(grad, torch.zeros_like(grad), factor)
        grad_factor = None
        if ctx.needs_input_grad[2]:
            e_rows = reference.multivariate_error(value, pred, factor).reshape(-1, n)
            h_rows = h.reshape(-1, n)
            grad_factor = -(h_rows.mT @ (e_rows @ factor) + e_rows.mT @ (h_rows @ factor)).tril()
        return _narrow(dtype, h, -h, grad_factor)


_DIFFERENTIABLE: dict[str, Any] = {
    "gaussian_energy": GaussianEnergy,
    "gaussian_error": GaussianError,
    "cholesky_factor": CholeskyFactor,
    "multivariate_energy": MultivariateEnergy,
    "multivariate_error": MultivariateError,
}

for _name, _function in _DIFFERENTIABLE.items():
    if not registered(_name, "Autograd"):
        torch.library.register_autograd(
            f"{NAMESPACE}::{_name}", _function.backward, setup_context=_function.setup, lib=library
        )
