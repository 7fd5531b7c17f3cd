"""The mathematics of nodes as functions: checked, broadcast, differentiable.

With a state z, a prediction mu and a covariance Sigma, a Gaussian node's energy is the negative log-density
without its constant (Bogacz 2017, "A tutorial on the free-energy framework", eq. 13)::

    F = 1/2 [ (z - mu)^T Sigma^-1 (z - mu) + log|Sigma| ]     per sample

and so is a Laplace node's, with scales b::

    F = sum_i |z_i - mu_i| / b_i + log b_i     per sample

and a Student node's, with v degrees of freedom and scales s; a Bernoulli node's, whose prediction is logits, and a
Poisson node's, whose prediction is logarithms of rates::

    F = sum_i (v + 1) / 2 log(1 + (z_i - mu_i)^2 / (v s_i^2)) + log s_i
    F = sum_i log(1 + exp(mu_i)) - z_i mu_i
    F = sum_i exp(mu_i) - z_i mu_i

A categorical node's state is a distribution over classes, its prediction logits, and its energy the cross-entropy::

    F = -sum_i z_i log softmax(mu)_i     per sample

Every function takes float32, float64, bfloat16 or float16 (the last two accumulate in float32), any layout,
and NaN or infinity, which propagate. States and predictions broadcast, one state for many predictions with a warning.
Under `torch.func` transforms and in forward mode (`torch.autograd.forward_ad`) the eager reference runs, which they can
see through; everywhere else the fused operators of ``torch.ops.pyromancy`` do. The functions of other nodes than
Gaussian ones are made of PyTorch's own operators.
Tensor subclasses and `torch.overrides.TorchFunctionMode` can override all but the in-place function.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import ops
from .operands import check_floating, multivariate_operands, operands, operands_with_classes
from .ops import autograd, reference

__all__ = [
    "bernoulli_energy",
    "bernoulli_error",
    "categorical_energy",
    "categorical_error",
    "cholesky_factor",
    "estep_",
    "gaussian_energy",
    "gaussian_error",
    "laplace_energy",
    "laplace_error",
    "multivariate_energy",
    "multivariate_error",
    "poisson_energy",
    "poisson_error",
    "student_energy",
    "student_error",
]

_is_compiling = torch.compiler.is_compiling
_transforming_functions = torch._C._are_functorch_transforms_active
_GaussianEnergy = super(Function, autograd.GaussianEnergy).apply  # past the Python wrapper for torch.func
_GaussianError = super(Function, autograd.GaussianError).apply
_CholeskyFactor = super(Function, autograd.CholeskyFactor).apply
_MultivariateEnergy = super(Function, autograd.MultivariateEnergy).apply
_MultivariateError = super(Function, autograd.MultivariateError).apply


def gaussian_energy(value: Tensor, pred: Tensor, logvar: Tensor | None = None) -> Tensor:
    """Energy of a Gaussian node with independent components, one number per sample.

    Computes ``1/2 sum_i [ (value_i - pred_i)^2 / exp(logvar_i) + logvar_i ]`` over all node positions i; a
    log-variance that several positions share counts at each of them.

    Args:
        value: states, ``[B, *node]``.
        pred: predictions, of the same shape or broadcasting with it.
        logvar: log-variances, broadcasting against the node dimensions; None is unit variance.

    Returns:
        Energies in nats, ``[B]``.

    Raises:
        TypeError: a tensor is not of a floating-point dtype.
        ValueError: shapes do not broadcast, or devices differ.
    """
    if has_torch_function_variadic(value, pred, logvar):
        return handle_torch_function(gaussian_energy, (value, pred, logvar), value, pred, logvar)
    value, pred, logvar = operands(value, pred, logvar)
    if _calls_operators():
        return ops.gaussian_energy(value, pred, logvar)
    if _transforming():
        return reference.gaussian_energy(value, pred, logvar)
    return _GaussianEnergy(value, pred, logvar)


def gaussian_error(value: Tensor, pred: Tensor, logvar: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    """Precision-weighted prediction error ``(value - pred) / exp(logvar)``: the gradient of the energy for `value`.

    Args:
        value: states, ``[B, *node]``.
        pred: predictions, of the same shape or broadcasting with it.
        logvar: log-variances, broadcasting against the node dimensions; None is unit variance.
        weight: one factor per sample, ``[B]``; None is 1.

    Returns:
        Errors, ``[B, *node]``.

    Raises:
        TypeError: a tensor is not of a floating-point dtype.
        ValueError: shapes do not broadcast, or devices differ.
    """
    if has_torch_function_variadic(value, pred, logvar, weight):
        return handle_torch_function(gaussian_error, (value, pred, logvar, weight), value, pred, logvar, weight)
    value, pred, logvar = operands(value, pred, logvar)
    if weight is not None:
        if weight.shape != value.shape[:1]:
            raise ValueError(f"weight must have shape ({value.shape[0]},), got {tuple(weight.shape)}")
        weight = weight.to(value.dtype)
    if _calls_operators():
        return ops.gaussian_error(value, pred, logvar, weight)
    if _transforming():
        return reference.gaussian_error(value, pred, logvar, weight)
    return _GaussianError(value, pred, logvar, weight)


def own_energies(energies: Tensor, value: Tensor, pred: Tensor) -> Tensor:
    """Energies of elements by a law of one's own, as they are.

    It tells whoever captures an energy which of two states is the node's, and which predicts it: their difference, or
    another law of both, does not.
    """
    if has_torch_function_variadic(energies, value, pred):
        return handle_torch_function(own_energies, (energies, value, pred), energies, value, pred)
    return energies


def laplace_energy(value: Tensor, pred: Tensor, logscale: Tensor | None = None) -> Tensor:
    """Energy of a Laplace node with independent components, one number per sample.

    Computes ``sum_i [ |value_i - pred_i| / exp(logscale_i) + logscale_i ]`` over all node positions i; a log-scale that
    several positions share counts at each of them. Where ``value`` is ``pred`` its gradient for both is 0.

    Args:
        value: states, ``[B, *node]``.
        pred: predictions, of the same shape or broadcasting with it.
        logscale: logarithms of the scales, broadcasting against the node dimensions; None is a scale of 1.

    Returns:
        Energies in nats, ``[B]``.

    Raises:
        TypeError: a tensor is not of a floating-point dtype.
        ValueError: shapes do not broadcast, or devices differ.
    """
    if has_torch_function_variadic(value, pred, logscale):
        return handle_torch_function(laplace_energy, (value, pred, logscale), value, pred, logscale)
    value, pred, logscale = operands(value, pred, logscale, "logscale")
    return reference.laplace_energy(value, pred, logscale)


def laplace_error(value: Tensor, pred: Tensor, logscale: Tensor | None = None) -> Tensor:
    """Prediction error ``sign(value - pred) / exp(logscale)``: the gradient of the energy for `value`.

    Args:
        value: states, ``[B, *node]``.
        pred: predictions, of the same shape or broadcasting with it.
        logscale: logarithms of the scales, broadcasting against the node dimensions; None is a scale of 1.

    Returns:
        Errors, ``[B, *node]``: 0 where ``value`` is ``pred``.

    Raises:
        TypeError: a tensor is not of a floating-point dtype.
        ValueError: shapes do not broadcast, or devices differ.
    """
    if has_torch_function_variadic(value, pred, logscale):
        return handle_torch_function(laplace_error, (value, pred, logscale), value, pred, logscale)
    value, pred, logscale = operands(value, pred, logscale, "logscale")
    return reference.laplace_error(value, pred, logscale)


def categorical_energy(value: Tensor, pred: Tensor) -> Tensor:
    """Energy of a categorical node, one number per sample: the cross-entropy of its state and its prediction.

    Computes ``-sum_i value_i log softmax(pred)_i`` over the classes, the first of the node's dimensions, and sums over
    the others. Its gradient for `pred` is minus `categorical_error`; a state that is a distribution is not inferred.

    Args:
        value: states, ``[B, classes, *]``, probabilities of the classes.
        pred: logits, of the same shape or broadcasting with it.

    Returns:
        Energies in nats, ``[B]``, finite for all finite logits.

    Raises:
        TypeError: a tensor is not of a floating-point dtype.
        ValueError: shapes do not broadcast, or have no dimension of classes, or devices differ.
    """
    if has_torch_function_variadic(value, pred):
        return handle_torch_function(categorical_energy, (value, pred), value, pred)
    return reference.categorical_energy(*operands_with_classes(value, pred))


def categorical_error(value: Tensor, pred: Tensor) -> Tensor:
    """Prediction error ``value - softmax(pred)``: minus the gradient of the energy for `pred`.

    Where the values of a sample do not sum to 1, softmax is multiplied by their sum.

    Args:
        value: states, ``[B, classes, *]``, probabilities of the classes.
        pred: logits, of the same shape or broadcasting with it.

    Returns:
        Errors, ``[B, classes, *]``.

    Raises:
        TypeError: a tensor is not of a floating-point dtype.
        ValueError: shapes do not broadcast, or have no dimension of classes, or devices differ.
    """
    if has_torch_function_variadic(value, pred):
        return handle_torch_function(categorical_error, (value, pred), value, pred)
    return reference.categorical_error(*operands_with_classes(value, pred))


def bernoulli_energy(value: Tensor, pred: Tensor) -> Tensor:
    """Energy of a Bernoulli node, one number per sample: the cross-entropy of `value` and ``sigmoid(pred)``.

    Computes ``sum_i [ log(1 + exp(pred_i)) - value_i pred_i ]`` over all node positions i, without overflow.

    Args:
        value: states, ``[B, *node]``, as a rule in [0, 1].
        pred: logits, of the same shape or broadcasting with it.

    Returns:
        Energies in nats, ``[B]``.

    Raises:
        TypeError: a tensor is not of a floating-point dtype.
        ValueError: shapes do not broadcast, or devices differ.
    """
    if has_torch_function_variadic(value, pred):
        return handle_torch_function(bernoulli_energy, (value, pred), value, pred)
    value, pred, _ = operands(value, pred, None)
    return reference.bernoulli_energy(value, pred)


def bernoulli_error(value: Tensor, pred: Tensor) -> Tensor:
    """Prediction error ``value - sigmoid(pred)``: the energy's gradient for `pred`, with the other sign.

    Args:
        value: states, ``[B, *node]``.
        pred: logits, of the same shape or broadcasting with it.

    Returns:
        Errors, ``[B, *node]``.

    Raises:
        TypeError: a tensor is not of a floating-point dtype.
        ValueError: shapes do not broadcast, or devices differ.
    """
    if has_torch_function_variadic(value, pred):
        return handle_torch_function(bernoulli_error, (value, pred), value, pred)
    value, pred, _ = operands(value, pred, None)
    return reference.bernoulli_error(value, pred)


def poisson_energy(value: Tensor, pred: Tensor) -> Tensor:
    """Energy of a Poisson node without the constant of its counts, one number per sample.

    Computes ``sum_i [ exp(pred_i) - value_i pred_i ]`` over all node positions i.

    Args:
        value: counts, ``[B, *node]``.
        pred: logarithms of rates, of the same shape or broadcasting with it.

    Returns:
        Energies in nats, ``[B]``.

    Raises:
        TypeError: a tensor is not of a floating-point dtype.
        ValueError: shapes do not broadcast, or devices differ.
    """
    if has_torch_function_variadic(value, pred):
        return handle_torch_function(poisson_energy, (value, pred), value, pred)
    value, pred, _ = operands(value, pred, None)
    return reference.poisson_energy(value, pred)


def poisson_error(value: Tensor, pred: Tensor) -> Tensor:
    """Prediction error ``value - exp(pred)``: the energy's gradient for `pred`, with the other sign.

    Args:
        value: counts, ``[B, *node]``.
        pred: logarithms of rates, of the same shape or broadcasting with it.

    Returns:
        Errors, ``[B, *node]``.

    Raises:
        TypeError: a tensor is not of a floating-point dtype.
        ValueError: shapes do not broadcast, or devices differ.
    """
    if has_torch_function_variadic(value, pred):
        return handle_torch_function(poisson_error, (value, pred), value, pred)
    value, pred, _ = operands(value, pred, None)
    return reference.poisson_error(value, pred)


def student_energy(value: Tensor, pred: Tensor, logscale: Tensor | None = None, dof: float = 1.0) -> Tensor:
    """Energy of a Student node with independent components, one number per sample; with ``dof=1``, a Cauchy node.

    Computes ``sum_i [ (dof + 1) / 2 log(1 + d_i^2 / (dof s_i^2)) + logscale_i ]`` over all node positions i, with
    ``d = value - pred`` and ``s = exp(logscale)``, without overflow; a log-scale that several positions share counts at
    each of them.

    Args:
        value: states, ``[B, *node]``.
        pred: predictions, of the same shape or broadcasting with it.
        logscale: logarithms of the scales, broadcasting against the node dimensions; None is a scale of 1.
        dof: degrees of freedom.

    Returns:
        Energies in nats, ``[B]``.

    Raises:
        TypeError: a tensor is not of a floating-point dtype.
        ValueError: shapes do not broadcast, devices differ, or `dof` is not finite and above 0.
    """
    if has_torch_function_variadic(value, pred, logscale):
        return handle_torch_function(student_energy, (value, pred, logscale), value, pred, logscale, dof)
    _check_dof(dof)
    value, pred, logscale = operands(value, pred, logscale, "logscale")
    return reference.student_energy(value, pred, logscale, dof)


def student_error(value: Tensor, pred: Tensor, logscale: Tensor | None = None, dof: float = 1.0) -> Tensor:
    """Prediction error ``(dof + 1) d / (dof s^2 + d^2)`` with ``d = value - pred``: the energy's gradient for `value`.

    Args:
        value: states, ``[B, *node]``.
        pred: predictions, of the same shape or broadcasting with it.
        logscale: logarithms of the scales s, broadcasting against the node dimensions; None is a scale of 1.
        dof: degrees of freedom.

    Returns:
        Errors, ``[B, *node]``.

    Raises:
        TypeError: a tensor is not of a floating-point dtype.
        ValueError: shapes do not broadcast, devices differ, or `dof` is not finite and above 0.
    """
    if has_torch_function_variadic(value, pred, logscale):
        return handle_torch_function(student_error, (value, pred, logscale), value, pred, logscale, dof)
    _check_dof(dof)
    value, pred, logscale = operands(value, pred, logscale, "logscale")
    return reference.student_error(value, pred, logscale, dof)


def cholesky_factor(logdiag: Tensor, offtril: Tensor) -> Tensor:
    """Cholesky factor ``L = tril(offtril, -1) + diag(exp(logdiag))`` of the covariance ``L L^T``.

    Args:
        logdiag: logarithm of the diagonal, ``[n]``.
        offtril: its strict lower triangle is used, ``[n, n]``; the rest may hold anything.

    Returns:
        ``L``, ``[n, n]``, zero above the diagonal.

    Raises:
        TypeError: a tensor is not of a floating-point dtype.
        ValueError: shapes do not fit.
    """
    if has_torch_function_variadic(logdiag, offtril):
        return handle_torch_function(cholesky_factor, (logdiag, offtril), logdiag, offtril)
    check_floating(logdiag=logdiag, offtril=offtril)
    n = logdiag.shape[0] if logdiag.dim() == 1 else -1
    if tuple(offtril.shape) != (n, n):
        raise ValueError(
            f"logdiag must have shape (n,) and offtril (n, n), got {tuple(logdiag.shape)} and {tuple(offtril.shape)}"
        )
    if logdiag.dtype != offtril.dtype:
        dtype = torch.promote_types(logdiag.dtype, offtril.dtype)
        logdiag, offtril = logdiag.to(dtype), offtril.to(dtype)
    if _calls_operators():
        return ops.cholesky_factor(logdiag, offtril)
    if _transforming():
        return reference.cholesky_factor(logdiag, offtril)
    return _CholeskyFactor(logdiag, offtril)


def multivariate_energy(value: Tensor, pred: Tensor, factor: Tensor) -> Tensor:
    """Energy of a Gaussian node with a full covariance ``Sigma = L L^T``, one number per sample.

    With ``u = L^-1 (value - pred)``, from one triangular solve, computes ``1/2 |u|^2 + sum_i log L_ii`` at every
    position and sums over positions. Relative error of u: about n eps cond(L), as for any triangular solve.

    Args:
        value: states, ``[B, *positions, n]``; all positions share the covariance.
        pred: predictions, of the same shape or broadcasting with it.
        factor: the lower triangular ``L``, ``[n, n]``, as `cholesky_factor` makes it.

    Returns:
        Energies in nats, ``[B]``.

    Raises:
        TypeError: a tensor is not of a floating-point dtype.
        ValueError: shapes do not fit, or devices differ.
    """
    if has_torch_function_variadic(value, pred, factor):
        return handle_torch_function(multivariate_energy, (value, pred, factor), value, pred, factor)
    value, pred, factor, shape = multivariate_operands(value, pred, factor)
    if len(shape) == 2 and not (_calls_operators() or _transforming()):
        return _MultivariateEnergy(value, pred, factor)[0]
    value, pred = _as_positions(value, shape), _as_positions(pred, shape)
    if _calls_operators():
        return ops.multivariate_energy(value, pred, factor)[0]
    if _transforming():
        return reference.multivariate_energy(value, pred, factor)[0]
    return _MultivariateEnergy(value, pred, factor)[0]


def multivariate_error(value: Tensor, pred: Tensor, factor: Tensor) -> Tensor:
    """Precision-weighted prediction error ``(L L^T)^-1 (value - pred)``, by two triangular solves.

    Args:
        value: states, ``[B, *positions, n]``; all positions share the covariance.
        pred: predictions, of the same shape or broadcasting with it.
        factor: the lower triangular ``L``, ``[n, n]``.

    Returns:
        Errors, of the shape of `value`.

    Raises:
        TypeError: a tensor is not of a floating-point dtype.
        ValueError: shapes do not fit, or devices differ.
    """
    if has_torch_function_variadic(value, pred, factor):
        return handle_torch_function(multivariate_error, (value, pred, factor), value, pred, factor)
    value, pred, factor, shape = multivariate_operands(value, pred, factor)
    value, pred = _as_positions(value, shape), _as_positions(pred, shape)
    if _calls_operators():
        error = ops.multivariate_error(value, pred, factor)
    elif _transforming():
        error = reference.multivariate_error(value, pred, factor)
    else:
        error = _MultivariateError(value, pred, factor)
    return error.reshape(shape)


@torch.no_grad()
def estep_(
    value: Tensor,
    error: Tensor,
    feedback: Tensor | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    buffer: Tensor | None = None,
) -> Tensor:
    """One E-step in place: ``value <- value - lr (error - feedback)``.

    `error` is the node's own precision-weighted error, `feedback` what the errors of the nodes it predicts send
    back; their difference is the gradient of the free energy. With `buffer` the step has the momentum of
    `torch.optim.SGD`: ``buffer <- momentum buffer + (1 - dampening) g``, and the step is along `buffer`, or with
    `nesterov` along ``g + momentum buffer``.

    Args:
        value: states, ``[B, *node]``; overwritten.
        error: errors, of the same shape.
        feedback: of the same shape; None is zero.
        lr: E-step rate.
        momentum: momentum factor; needs `buffer` where it is not 0.
        dampening: dampening of the momentum.
        nesterov: Nesterov's variant.
        buffer: velocity, of the same shape; overwritten. Start it as the first gradient, or as zeros.

    Returns:
        `value`.

    Raises:
        TypeError: a tensor is not of a floating-point dtype.
        ValueError: shapes, dtypes or devices differ, or `momentum` comes without a `buffer`.
    """
    check_floating(value=value, error=error, feedback=feedback, buffer=buffer)
    for name, t in (("error", error), ("feedback", feedback), ("buffer", buffer)):
        if t is not None and (t.shape != value.shape or t.dtype != value.dtype or t.device != value.device):
            raise ValueError(f"{name} must be like value, {_describe(value)}, got {_describe(t)}")
    if momentum and buffer is None:
        raise ValueError(f"momentum={momentum} needs buffer, a tensor like value that keeps the velocity")
    ops.estep_(value, buffer, error, feedback, lr, momentum, dampening, nesterov)
    return value


def _check_dof(dof: float) -> None:
    if not (math.isfinite(dof) and dof > 0):
        raise ValueError(f"dof must be finite and above 0, got {dof}")


def _calls_operators() -> bool:
    """Whether the operators are called as they are: compilers trace them, and inference mode makes no graph."""
    return _is_compiling() or (torch.is_inference_mode_enabled() and not _transforming())


def _transforming() -> bool:
    """Whether something is under way that sees through PyTorch's own operators only."""
    return forward_ad._current_level >= 0 or _transforming_functions()


def _describe(t: Tensor) -> str:
    return f"{tuple(t.shape)} {t.dtype} on {t.device}"


def _as_positions(t: Tensor, shape: torch.Size) -> Tensor:
    """[B, *positions, n] as [B, P, n]: a view wherever the strides allow one."""
    return t if len(shape) == 3 else t.reshape(shape[0], shape[1:-1].numel(), shape[-1])
