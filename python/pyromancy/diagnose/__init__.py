"""What regime inference is in: curvature, rates that are stable, and how far the equilibrium is.

Samples do not interact, so the Hessian of the summed energy for all free states is block-diagonal by sample, and one
product with it serves every sample. The extreme eigenvalues of all blocks come from one batched Lanczos iteration
(Golub & Van Loan, "Matrix Computations", 10.1), bounds on the energy from the errors of Gaussian nodes
(docs/diagnose.md derives them).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Literal, overload

import torch
from torch import Tensor

from .diagnosis import Diagnosis
from .errors import Errors, NoErrors
from .krylov import Product, fall_to_minimum, lanczos
from .problem import Problem

__all__ = ["Diagnosis", "diagnose", "max_rate"]


@overload
def max_rate(
    energy: Callable[[], Tensor], params: Iterable[Tensor], *, per_sample: Literal[False] = False,
    products: int = 20, tol: float = 1e-2,
) -> float: ...  # fmt: skip
@overload
def max_rate(
    energy: Callable[[], Tensor], params: Iterable[Tensor], *, per_sample: Literal[True],
    products: int = 20, tol: float = 1e-2,
) -> Tensor: ...  # fmt: skip
@torch.inference_mode(False)
@torch.enable_grad()
def max_rate(
    energy: Callable[[], Tensor],
    params: Iterable[Tensor],
    *,
    per_sample: bool = False,
    products: int = 20,
    tol: float = 1e-2,
) -> float | Tensor:
    """Largest rate at which descent on the states is stable, ``2 / lambda_max``, of the energy summed over the batch.

    Of Laplace nodes it says nothing, and warns: their pull does not grow with the distance. A few products with the
    Hessian, each of them about two E-steps on autograd. ``lambda_max`` is taken at the upper end of its error bar. It
    is the curvature at the states as they are: that of a nonlinear network changes along the way and as it learns. At
    ``reduction="mean"`` the rate is B times this one.

    Args:
        energy: zero-argument callable returning per-sample energies, ``[B]``; called once.
        params: the free states, as `pyromancy.get_estep_params` gives them.
        per_sample: whether to return a rate for every sample, instead of the smallest.
        products: at most how many products with the Hessian.
        tol: a sample is done when the residual of its Ritz pair is below `tol` times its Ritz value.

    Returns:
        The rate; with `per_sample`, the rates, ``[B]`` in float64. Infinite where no curvature is positive.

    Raises:
        TypeError, ValueError, RuntimeError: as `diagnose`.
    """
    problem = Problem(energy, params, products, tol)
    if unseen := problem.unseen():
        warnings.warn(unseen, stacklevel=4)  # past the decorators
    spectrum = lanczos(problem.product, problem.random_start(), products, tol, (-1,), problem.eps)
    rates = _rates(spectrum.values[:, -1] + spectrum.errors[:, -1])
    return rates if per_sample else rates.min().item()


@torch.inference_mode(False)
@torch.enable_grad()
def diagnose(
    energy: Callable[[], Tensor],
    params: Iterable[Tensor],
    *,
    steps: int | None = None,
    lr: float | None = None,
    products: int = 30,
    tol: float = 1e-3,
) -> Diagnosis:
    """Curvature, condition and stable rate at the states as they are, and how far their equilibrium is.

    The states, their gradients, PyTorch's random numbers and every module's mode stay as they are.

    The Lanczos iteration starts from the same random vector for every sample and orthogonalises in full, in float64.
    Memory: `products` times the states, in float64, besides autograd's graph; `params` of fewer samples take less.

    Args:
        energy: zero-argument callable returning per-sample energies, ``[B]``, that can be differentiated twice;
            called once.
        params: the free states, as `pyromancy.get_estep_params` gives them: ``[B, ...]``, float32 or float64.
        steps: E-steps for which to compute the share f, with `lr`, from the states as they are: call it at the start
            of a batch.
        lr: rate of these E-steps, plain descent on the summed energy.
        products: at most how many products with the Hessian for the eigenvalues, and as many for the share. As many
            as a sample has states give the whole spectrum, to rounding.
        tol: a sample is done when the residuals of both extreme Ritz pairs are below `tol` times their values.

    Returns:
        The diagnosis.

    Raises:
        TypeError: an argument is of the wrong type, or states or energies are not of float32 or float64.
        ValueError: the energy is not one number per sample, does not depend on a state, or samples interact.
        RuntimeError: the energy cannot be differentiated twice.
    """
    if (steps is None) != (lr is None):
        raise ValueError(f"steps and lr must be given together, got steps={steps!r}, lr={lr!r}")
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 0):
        raise ValueError(f"steps must be an int, 0 or more, got {steps!r}")
    if lr is not None and not (isinstance(lr, int | float) and math.isfinite(lr) and lr >= 0):
        raise ValueError(f"lr must be a finite number, 0 or more, got {lr!r}")
    problem = Problem(energy, params, products, tol)
    spectrum = lanczos(problem.product, problem.random_start(), products, tol, (0, -1), problem.eps)
    low, high = spectrum.values[:, 0], spectrum.values[:, -1]
    low_error, high_error = spectrum.errors[:, 0], spectrum.errors[:, -1]
    rounding = 10 * problem.eps * math.sqrt(problem.size) * high.abs()
    convex = low >= -rounding  # as far as is known: what is negative is so for certain

    gap, certificate, equilibrium = torch.full_like(low, math.inf), "", None
    kinks, quadratic = problem.has_kinks(), problem.is_quadratic()
    precondition: Product | None = None
    try:
        errors = Errors(problem)
    except NoErrors as reason:
        certificate = str(reason)
        if spectrum.exhausted.all():
            certificate = "the smallest of all eigenvalues"
            gap = 0.5 * problem.gradient.square().sum(1) / (low - low_error).clamp(min=0)
    else:
        certificate = "the curvature of errors"
        precondition = errors.precondition
        gap = 0.5 * errors.down(problem.gradient).square().sum(1)
        if not quadratic:  # the Hessian may be less than what the errors alone have
            inner = lanczos(
                lambda v: errors.down(problem.product(errors.up(v))),
                problem.random_start(), products, tol, (0,), problem.eps,
            )  # fmt: skip
            least = inner.values[:, 0] - inner.errors[:, 0]
            gap = (gap / least.clamp(max=1)).where(least > 0, math.inf)
            convex &= inner.values[:, 0] >= 0  # as many eigenvalues are negative there, and show sooner
    gap = gap.nan_to_num(nan=0.0, posinf=math.inf).where(convex, math.inf)
    if gap.isinf().all() and (precondition is not None or spectrum.exhausted.all()):
        certificate = "the energy is not convex around the states, or nearly so"
    resolved = convex & (low > rounding)
    if not kinks and quadratic and (precondition is not None or spectrum.exhausted.all()):
        fall = fall_to_minimum(problem.product, precondition, problem.gradient, problem.eps)
        equilibrium = (problem.energies - fall).where(resolved, math.nan)
    share = None
    if steps is not None and lr is not None:
        modes = lanczos(problem.product, problem.gradient, products, tol=0.0, ends=(), eps=problem.eps)
        share = (modes.weights * (1 - (1 - lr * modes.values) ** steps)).sum(1)
        share = share.where(lr * high <= 2, math.nan).where(problem.gradient.any(1), 1.0)
    return Diagnosis(
        energy=problem.energies,
        lambda_max=high,
        lambda_max_error=high_error,
        lambda_min=low,
        lambda_min_error=low_error,
        condition=(high / low).where(resolved, math.inf),
        max_rate=_rates(high + high_error),
        gap=gap,
        certificate=certificate,
        equilibrium=equilibrium,
        share=share,
        kinks=kinks,
        unseen=problem.unseen(),
        steps=steps,
        lr=lr,
    )


def _rates(curvature: Tensor) -> Tensor:
    return (2 / curvature).where(curvature > 0, math.inf)
