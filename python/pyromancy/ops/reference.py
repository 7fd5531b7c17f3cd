"""Eager reference of every operator, and of what has none: the meaning the kernels are tested against, in PyTorch.

The operators are registered for every device, so that everything works without a compiler or a GPU. The functions
that compute values are made of differentiable operations; double backward and `torch.func` use them as they are.
bfloat16 and float16 are computed in float32 and rounded once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks
from .elementwise import elementwise_
from .run_plan import run_plan_
from .schema import library, registered
from .secant import secant_products_
from .sequences import attention_, attention_backward_, layer_norm_, layer_norm_backward_

if TYPE_CHECKING:
    from collections.abc import Callable


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t


def _per_sample(t: Tensor) -> Tensor:
    """Sum over all but the batch dimension."""
    return t.sum(dim=tuple(range(1, t.dim()))) if t.dim() > 1 else t


def _rows(per_sample: Tensor, like: Tensor) -> Tensor:
    """[B] as [B, 1, ...], to scale the rows of `like`."""
    return per_sample.reshape(-1, *[1] * (like.dim() - 1))


def gaussian_energy(value: Tensor, pred: Tensor, logvar: Tensor | None) -> Tensor:
    square = (_wide(value) - _wide(pred)).square()
    if logvar is None:
        return (0.5 * _per_sample(square)).to(value.dtype)
    logvar = _wide(logvar)
    logdet = logvar.expand(value.shape[1:]).sum()
    return (0.5 * (_per_sample(square * torch.exp(-logvar)) + logdet)).to(value.dtype)


def gaussian_error(value: Tensor, pred: Tensor, logvar: Tensor | None, weight: Tensor | None) -> Tensor:
    error = _wide(value) - _wide(pred)
    if logvar is not None:
        error = error * torch.exp(-_wide(logvar))
    if weight is not None:
        error = _rows(_wide(weight), error) * error
    return error.to(value.dtype)


def gaussian_energy_backward(grad: Tensor, value: Tensor, pred: Tensor, logvar: Tensor | None) -> tuple[Tensor, Tensor]:
    grad_value = gaussian_error(value, pred, logvar, grad)
    return grad_value, -grad_value


def gaussian_energy_backward_logvar(
    grad: Tensor, value: Tensor, pred: Tensor, logvar: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    wide_grad, wide_logvar = _rows(_wide(grad), value), _wide(logvar)
    square = (_wide(value) - _wide(pred)).square() * torch.exp(-wide_logvar)
    grad_logvar = (0.5 * wide_grad * (1 - square)).sum(0).sum_to_size(logvar.shape)
    return *gaussian_energy_backward(grad, value, pred, logvar), grad_logvar.to(logvar.dtype)


def laplace_energy(value: Tensor, pred: Tensor, logscale: Tensor | None) -> Tensor:
    distance = (_wide(value) - _wide(pred)).abs()
    if logscale is None:
        return _per_sample(distance).to(value.dtype)
    logscale = _wide(logscale)
    return (_per_sample(distance * torch.exp(-logscale)) + logscale.expand(value.shape[1:]).sum()).to(value.dtype)


def laplace_error(value: Tensor, pred: Tensor, logscale: Tensor | None) -> Tensor:
    error = torch.sign(_wide(value) - _wide(pred))
    return (error if logscale is None else error * torch.exp(-_wide(logscale))).to(value.dtype)


def categorical_energy(value: Tensor, pred: Tensor) -> Tensor:
    return -_per_sample(_wide(value) * torch.log_softmax(_wide(pred), 1)).to(value.dtype)


def categorical_error(value: Tensor, pred: Tensor) -> Tensor:
    z = _wide(value)
    return (z - torch.softmax(_wide(pred), 1) * z.sum(1, keepdim=True)).to(value.dtype)


def bernoulli_energy(value: Tensor, pred: Tensor) -> Tensor:
    mu = _wide(pred)
    return _per_sample(-F.logsigmoid(-mu) - _wide(value) * mu).to(value.dtype)


def bernoulli_error(value: Tensor, pred: Tensor) -> Tensor:
    return (_wide(value) - _wide(pred).sigmoid()).to(value.dtype)


def poisson_energy(value: Tensor, pred: Tensor) -> Tensor:
    mu = _wide(pred)
    return _per_sample(mu.exp() - _wide(value) * mu).to(value.dtype)


def poisson_error(value: Tensor, pred: Tensor) -> Tensor:
    return (_wide(value) - _wide(pred).exp()).to(value.dtype)


def _student(value: Tensor, pred: Tensor, logscale: Tensor | None, dof: float) -> tuple[Tensor, Tensor]:
    """R = (z - mu) / (sqrt(v) s), and the one of r and 1 / r that is nearer to 0, of which squares do not overflow."""
    r = (_wide(value) - _wide(pred)) / math.sqrt(dof)
    r = r if logscale is None else r * torch.exp(-_wide(logscale))
    far = r.abs() > 1
    return r, torch.where(far, torch.where(far, r, 1.0).reciprocal(), r)


def student_energy(value: Tensor, pred: Tensor, logscale: Tensor | None, dof: float) -> Tensor:
    r, least = _student(value, pred, logscale, dof)
    logs = 2 * torch.where(r.abs() > 1, r, 1.0).abs().log() + least.square().log1p()
    energy = 0.5 * (dof + 1) * _per_sample(logs)
    return (energy if logscale is None else energy + _wide(logscale).expand(value.shape[1:]).sum()).to(value.dtype)


def student_error(value: Tensor, pred: Tensor, logscale: Tensor | None, dof: float) -> Tensor:
    _, least = _student(value, pred, logscale, dof)
    error = (dof + 1) / math.sqrt(dof) * least / (1 + least.square())
    return (error if logscale is None else error * torch.exp(-_wide(logscale))).to(value.dtype)


def cholesky_factor(logdiag: Tensor, offtril: Tensor) -> Tensor:
    # `where` and not `tril`, because the unused triangle may hold anything, NaN included
    n = logdiag.shape[0]
    below = torch.ones(n, n, dtype=torch.bool, device=offtril.device).tril(-1)
    return torch.where(below, offtril, 0.0) + torch.diag_embed(_wide(logdiag).exp().to(offtril.dtype))


def cholesky_factor_backward(grad: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    return grad.diagonal() * factor.diagonal(), grad.tril(-1)


def _whiten(residual: Tensor, factor: Tensor) -> Tensor:
    """Give u = L^-1 d for rows d of [B, P, n]."""
    rows = residual.reshape(-1, residual.shape[-1])
    return torch.linalg.solve_triangular(factor, rows.mT, upper=False).mT.reshape(residual.shape)


def _unwhiten(whitened: Tensor, factor: Tensor) -> Tensor:
    """Give L^-T u for rows u of [B, P, n]."""
    rows = whitened.reshape(-1, whitened.shape[-1])
    return torch.linalg.solve_triangular(factor.mT, rows.mT, upper=True).mT.reshape(whitened.shape)


def multivariate_energy(value: Tensor, pred: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    wide = _wide(factor)
    u = _whiten(_wide(value) - _wide(pred), wide)
    energy = 0.5 * _per_sample(u.square()) + value.shape[1] * wide.diagonal().log().sum()
    return energy.to(value.dtype), u.to(value.dtype)


def multivariate_energy_backward(grad: Tensor, whitened: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    error = _unwhiten(_wide(whitened), _wide(factor))
    grad_value = (_rows(_wide(grad), error) * error).to(whitened.dtype)
    return grad_value, -grad_value


def multivariate_energy_backward_factor(grad: Tensor, whitened: Tensor, grad_value: Tensor, factor: Tensor) -> Tensor:
    # dE = u^T du with du = -L^-1 dL u, so dE/dL = -(L^-T u) u^T, and log|L| adds 1/L_ii per position
    wide, n = _wide(factor), factor.shape[0]
    quadratic = _wide(grad_value).reshape(-1, n).mT @ _wide(whitened).reshape(-1, n)
    logdet = whitened.shape[1] * _wide(grad).sum() / wide.diagonal()
    return (torch.diag_embed(logdet) - quadratic.tril()).to(factor.dtype)


def multivariate_error(value: Tensor, pred: Tensor, factor: Tensor) -> Tensor:
    wide = _wide(factor)
    return _unwhiten(_whiten(_wide(value) - _wide(pred), wide), wide).to(value.dtype)


def estep_(
    value: Tensor,
    buffer: Tensor | None,
    error: Tensor,
    feedback: Tensor | None,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
) -> None:
    step = _wide(error) if feedback is None else _wide(error) - _wide(feedback)
    if buffer is not None:
        velocity = momentum * _wide(buffer) + (1 - dampening) * step
        step = step + momentum * velocity if nesterov else velocity
        buffer.copy_(velocity)  # last, since it may be the error
    value.copy_(_wide(value) - lr * step)


REFERENCE: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        gaussian_energy,
        gaussian_energy_backward,
        gaussian_energy_backward_logvar,
        gaussian_error,
        cholesky_factor,
        cholesky_factor_backward,
        multivariate_energy,
        multivariate_energy_backward,
        multivariate_energy_backward_factor,
        multivariate_error,
        estep_,
        run_plan_,
        elementwise_,
        attention_,
        attention_backward_,
        layer_norm_,
        layer_norm_backward_,
        secant_products_,
    )
}


# outputs that keep the layout of an input, by the index of that input; every other output is contiguous
_LAYOUT_FROM: dict[str, tuple[int, ...]] = {
    "gaussian_energy_backward": (1, 2),
    "gaussian_energy_backward_logvar": (1, 2),
    "gaussian_error": (0,),
}


def _laid_out(output: Tensor, like: Tensor | None) -> Tensor:
    """`output` with the strides that the operator's fake promises."""
    if like is None or like.is_contiguous():
        return output.contiguous()
    expected = torch.empty_like(like)
    return output if output.stride() == expected.stride() else expected.copy_(output)


def _as_kernel(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    layout_from = _LAYOUT_FROM.get(name, ())

    def kernel(*args: Any) -> Any:
        with torch.no_grad():
            checks.check(name, args)
            result = function(*args)
        if result is None:
            return None
        single = isinstance(result, Tensor)
        outputs = (result,) if single else result
        models = [args[i] for i in layout_from] + [None] * (len(outputs) - len(layout_from))
        laid_out = tuple(_laid_out(o, m) for o, m in zip(outputs, models, strict=True))
        return laid_out[0] if single else laid_out

    return kernel


KERNELS: dict[str, Callable[..., Any]] = {name: _as_kernel(name, f) for name, f in REFERENCE.items()}
for _name, _kernel in KERNELS.items():
    if not registered(_name, "CompositeExplicitAutograd"):
        library.impl(_name, _kernel, "CompositeExplicitAutograd")
