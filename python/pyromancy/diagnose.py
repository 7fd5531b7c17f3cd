"""What regime inference is in: curvature, rates that are stable, and how far the equilibrium is.

Samples do not interact, so the Hessian of the summed energy for all free states is block-diagonal by sample, and one
product with it serves every sample. The extreme eigenvalues of all blocks come from one batched Lanczos iteration
(Golub & Van Loan, "Matrix Computations", 10.1), bounds on the energy from the errors of Gaussian nodes
(docs/diagnose.md derives them).
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from types import MappingProxyType
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import functional
from .arguments import check_energy_argument

__all__ = ["Diagnosis", "diagnose", "max_rate"]

_SEED = 20  # of the start vector, drawn from a generator of its own
_EVERY = 4  # products between two looks at the residuals
_PATIENCE = 200  # products with the Hessian until an equilibrium has to be found
# Functions of autograd whose derivative jumps; what a Hessian says holds up to the next jump.
_KINKED = re.compile(
    r"(Relu|LeakyRelu|Prelu|PreluKernel|Rrelu|RreluWithNoise|Threshold|Hardtanh|Hardswish|Hardsigmoid|Hardshrink|"
    r"Softshrink|Elu|Abs|Clamp|ClampMin|ClampMax|Maximum|Minimum|Max|Min|Amax|Amin|Topk|Sort|Sign|Sgn|Where|"
    r"\w*MaxPool\w*|Huber\w*|SmoothL1Loss|L1Loss)Backward\d*$"
)
_ONCE = (
    "energy must be differentiable twice, and a function in it is not: a custom autograd function needs a backward "
    "that is differentiable itself, and a compiled energy has none"
)
_Product = Callable[[Tensor], Tensor]  # of the Hessian, or another operator, with a vector for every sample: [B, n]


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What `diagnose` found, per sample; ``str()`` of it says so in words.

    Attributes:
        energy: the energy F, ``[B]``.
        lambda_max: largest eigenvalue of the Hessian for the free states, ``[B]``. Never above the true one, but for
            rounding: Ritz values lie inside the spectrum.
        lambda_max_error: its error bar, ``[B]``: there is an eigenvalue within it, by the residual of the Ritz vector.
        lambda_min: smallest eigenvalue, ``[B]``, never below the true one.
        lambda_min_error: its error bar, ``[B]``.
        condition: ``lambda_max / lambda_min``, ``[B]``, never above the true one; infinite where the Hessian is known
            to have an eigenvalue that is not positive, as the energy has no single minimum there.
        max_rate: largest rate at which descent is stable, ``2 / (lambda_max + lambda_max_error)``, ``[B]``; infinite
            where no curvature is positive.
        gap: bound on what the energy can still fall, F - F*, ``[B]``; infinite where nothing certifies one.
        certificate: what `gap` rests on, or why there is none.
        equilibrium: for linear networks the energy F* at equilibrium, ``[B]``, NaN where it was not found; else None.
        share: share f of their way to equilibrium that the asked-for E-steps let the states go, ``[B]``; NaN where the
            rate is not stable, None where none were asked for.
        kinks: whether the energy has functions with kinks, such as ReLU. The Hessian is that of the piece then that
            the states are on, and what follows from it holds on that piece.
        unseen: what curvature, rates and the share say nothing of, in words: states that a Laplace node pulls at, as
            much at any distance; empty where there are none.
        steps: the E-steps asked for.
        lr: their rate.
    """

    energy: Tensor
    lambda_max: Tensor
    lambda_max_error: Tensor
    lambda_min: Tensor
    lambda_min_error: Tensor
    condition: Tensor
    max_rate: Tensor
    gap: Tensor
    certificate: str
    equilibrium: Tensor | None
    share: Tensor | None
    kinks: bool
    unseen: str = ""
    steps: int | None = None
    lr: float | None = None

    def __str__(self) -> str:
        count = len(self.energy)
        low, high = self.lambda_min.min().item(), self.lambda_max.max().item()
        lines = [
            f"{count} sample{'s' * (count > 1)}, energy {_middle(self.energy)}. Curvature from {low:.3g} to "
            f"{high:.3g}; descent is stable at rates below {self.max_rate.min().item():.3g}."
        ]
        single, certain = self.condition.isfinite(), self.gap.isfinite()
        if not single.all():
            lines.append(
                f"Not convex, or flat in some direction, around {(~single).sum().item()} of {count} samples: "
                "they have no condition, and descent may end in one of several places."
            )
        if single.any():
            ratio = self.condition[single]
            known = (self.lambda_min_error <= 0.1 * self.lambda_min)[single].all()
            least, more = ("", "") if known else ("at least ", " or more")
            lines.append(
                f"Condition {least}{_middle(ratio)}: descent at its best rate takes about "
                f"{math.ceil(ratio.max().item() * math.log(10) / 2)}{more} steps for a digit of the states."
            )
        if certain.any():
            others = "" if certain.all() else f" for {certain.sum().item()} of {count} samples, none for the others"
            lines.append(f"At most {_middle(self.gap[certain])} above equilibrium, by {self.certificate}{others}.")
        else:
            lines.append(f"How far equilibrium is cannot be certified: {self.certificate}.")
        if self.equilibrium is not None:
            lines.append(f"Linear: the energy at equilibrium is {_middle(self.equilibrium)}.")
        if self.share is not None:
            lines.append(f"{self.steps} E-steps at rate {self.lr:g}: {_regime(self.share)}.")
        if self.kinks:
            lines.append("The energy has kinks; this holds on the piece where the states are.")
        if self.unseen:
            lines.append(f"{self.unseen}.")
        return "\n".join(lines)


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
    problem = _Problem(energy, params, products, tol)
    if unseen := problem.unseen():
        warnings.warn(unseen, stacklevel=4)  # past the decorators
    spectrum = _lanczos(problem.product, problem.random_start(), products, tol, (-1,), problem.eps)
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
    problem = _Problem(energy, params, products, tol)
    spectrum = _lanczos(problem.product, problem.random_start(), products, tol, (0, -1), problem.eps)
    low, high = spectrum.values[:, 0], spectrum.values[:, -1]
    low_error, high_error = spectrum.errors[:, 0], spectrum.errors[:, -1]
    rounding = 10 * problem.eps * math.sqrt(problem.size) * high.abs()
    convex = low >= -rounding  # as far as is known: what is negative is so for certain

    gap, certificate, equilibrium = torch.full_like(low, math.inf), "", None
    kinks, quadratic = problem.has_kinks(), problem.is_quadratic()
    precondition: _Product | None = None
    try:
        errors = _Errors(problem)
    except _NoErrors as reason:
        certificate = str(reason)
        if spectrum.exhausted.all():
            certificate = "the smallest of all eigenvalues"
            gap = 0.5 * problem.gradient.square().sum(1) / (low - low_error).clamp(min=0)
    else:
        certificate = "the curvature of errors"
        precondition = errors.precondition
        gap = 0.5 * errors.down(problem.gradient).square().sum(1)
        if not quadratic:  # the Hessian may be less than what the errors alone have
            inner = _lanczos(
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
        fall = _fall(problem.product, precondition, problem.gradient, problem.eps)
        equilibrium = (problem.energies - fall).where(resolved, math.nan)
    share = None
    if steps is not None and lr is not None:
        modes = _lanczos(problem.product, problem.gradient, products, tol=0.0, ends=(), eps=problem.eps)
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


class _Problem:
    """The energy at the states as they are: its gradient, and products with its Hessian, as ``[B, n]`` in float64."""

    def __init__(self, energy: Callable[[], Tensor], params: Iterable[Tensor], products: int, tol: float) -> None:
        check_energy_argument(energy)
        if isinstance(products, bool) or not isinstance(products, int) or products < 1:
            raise ValueError(f"products must be an int, 1 or more, got {products!r}")
        if not (isinstance(tol, int | float) and tol >= 0):
            raise ValueError(f"tol must be a number, 0 or more, got {tol!r}")
        self.params = _states(params)
        first = self.params[0]
        self.count = len(first)
        self.eps = max(torch.finfo(p.dtype).eps for p in self.params)
        self.size = sum(p[0].numel() for p in self.params)
        self._device = first.device
        devices = sorted({p.device.index for p in self.params if p.is_cuda})
        with torch.random.fork_rng(devices=devices), _Watch() as watch:
            energies = energy()
        _check_energies(energies, self.count)
        self.total, self.terms, self._absolute = energies.sum(), watch.terms, watch.absolute
        self._smooth = watch.smooth
        self._moving = torch.ones(self.count, self.size, dtype=torch.bool, device=self._device)
        # what cannot be differentiated twice says so, but only where its factor requires a gradient, and if it is asked
        one = torch.ones_like(self.total, requires_grad=True)
        slopes = torch.autograd.grad(self.total, self.params, one, create_graph=True, allow_unused=True)
        for i, slope in enumerate(slopes):
            if slope is None:
                raise ValueError(f"params[{i}] must be a state that the energy depends on, and it does not use it")
        if any(f.name().endswith("::Error") for f in _functions(s.grad_fn for s in slopes)):
            raise RuntimeError(_ONCE)
        self._root = energies.grad_fn
        self.energies = energies.detach().double()
        self.gradient = self.flat(slopes)
        self._slopes = slopes
        if watch.unused:
            self._leave_out(watch.unused)
        if self.count > 1:
            self._check_samples()

    def flat(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """One row per sample, of tensors of the states' shapes; None is zeros."""
        rows = [
            torch.zeros_like(p).flatten(1) if t is None else t.detach().reshape(self.count, -1)
            for t, p in zip(tensors, self.params, strict=True)
        ]
        return torch.cat([r.to(self._device, torch.float64) for r in rows], 1)

    def parts(self, rows: Tensor) -> list[Tensor]:
        """`flat`, backwards."""
        split = rows.split([p[0].numel() for p in self.params], 1)
        return [
            r.reshape(p.shape).to(p.device, p.dtype, copy=True, memory_format=torch.contiguous_format)
            for r, p in zip(split, self.params, strict=True)
        ]

    def random_start(self) -> Tensor:
        """The same vector for every sample, so that no result depends on the batch around it: [B, n]."""
        generator = torch.Generator("cpu").manual_seed(_SEED)
        row = torch.randn(self.size, generator=generator, dtype=torch.float64, device="cpu")
        return row.to(self._device).expand(self.count, -1) * self._moving

    def _leave_out(self, unused: list[tuple[Tensor, Tensor]]) -> None:
        """Pass over entries of states in whose place the energy takes data: nothing depends on them."""
        where = [torch.zeros_like(p, dtype=torch.bool) for p in self.params]
        for state, mask in unused:
            for p, found in zip(self.params, where, strict=True):
                if _is_whole(state, p):
                    found |= mask.expand(state.shape).reshape(p.shape)
        idle = torch.cat([w.reshape(self.count, -1).to(self._device) for w in where], 1)
        self._moving = ~idle | (self.gradient != 0) | (self.product(self.random_start()) != 0)

    def product(self, vector: Tensor) -> Tensor:
        """The Hessian times a vector for every sample: [B, n]."""
        return self.flat(self._product(vector, create_graph=False))

    def _product(self, vector: Tensor, create_graph: bool) -> tuple[Tensor | None, ...]:
        try:
            return torch.autograd.grad(
                self._slopes,
                self.params,
                self.parts(vector),
                retain_graph=True,
                create_graph=create_graph,
                allow_unused=True,
            )
        except RuntimeError as error:
            raise RuntimeError(_ONCE) from error

    def is_quadratic(self) -> bool:
        """Whether the curvature in a direction stays the same whatever the states are, to first order."""
        vector = self.random_start()
        products = self._product(vector, create_graph=True)
        curvature = [(h * v).sum() for h, v in zip(products, self.parts(vector), strict=True) if h is not None]
        curvature = [c for c in curvature if c.requires_grad]
        if not curvature:
            return True
        slopes = torch.autograd.grad(curvature, self.params, retain_graph=True, allow_unused=True)
        return not any(s.any() for s in slopes if s is not None)

    def has_kinks(self) -> bool:
        """Whether a function of the energy is known to have kinks."""
        return any(_KINKED.match(f.name()) for f in _functions([self._root], self._smooth))

    def unseen(self) -> str:
        """What pulls at states without curvature, and which rates suit it, in words; empty where nothing does."""
        of, least = [], math.inf
        for value, scale, energy in self._absolute:
            own = [f"params[{i}]" for i, p in enumerate(self.params) if _is_whole(value, p)]
            slopes = torch.autograd.grad(energy.sum(), self.params, retain_graph=True, allow_unused=True)
            reached = [f"what params[{i}] predicts" for i, s in enumerate(slopes) if s is not None]
            if own or reached:
                of += own or reached[-1:]
                least = min(least, scale)
        if not of:
            return ""
        return (
            f"The Laplace energies of {', '.join(of)} pull as much at any distance: curvature, rates and the share say "
            f"nothing of them. Take rates well below their scales, the least of which is {least:.3g}"
        )

    def _check_samples(self) -> None:
        """Raise where samples interact: a sample's share in the Hessian is then no block of its own."""
        vector = self.random_start()
        weights = 2.0 ** (torch.arange(self.count, device=self._device) % 5).to(torch.float64).unsqueeze(1)
        product = self.product(vector)
        apart = (self.product(vector * weights) - product * weights).abs().amax()
        if apart > 1e4 * self.eps * (product * weights).abs().amax():
            raise ValueError(
                "energy must keep samples apart, and the gradient for one depends on another's states, "
                "as with batch normalisation in training mode: evaluate it in evaluation mode"
            )


def _states(params: Iterable[Tensor]) -> list[Tensor]:
    """The free states, checked."""
    source = "as pyromancy.get_estep_params gives them"
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise TypeError(f"params must be an iterable of tensors, {source}, got {type(params).__name__}")
    listed = list(params)
    if not listed:
        raise ValueError("params must hold at least one tensor, got none; an iterator gives its tensors only once")
    for i, p in enumerate(listed):
        if not isinstance(p, Tensor):
            raise TypeError(f"params must hold tensors, {source}, got {type(p).__name__}")
        if p.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"params[{i}] must be of float32 or float64, as others do not resolve curvature, got {p.dtype}"
            )
        if not p.requires_grad or p.is_inference():
            raise ValueError(f"params[{i}] must require gradients, got one that does not, or of inference mode")
        if p.dim() == 0 or p.numel() == 0 or len(p) != len(listed[0]):
            wanted = "[B, ...] and not empty" if i == 0 else f"[{len(listed[0])}, ...], as params[0] is, and not empty"
            raise ValueError(f"params[{i}] must be of shape {wanted}, one row per sample, got {tuple(p.shape)}")
    if len({id(p) for p in listed}) < len(listed):
        raise ValueError("params must hold every state once, got one of them twice")
    return listed


def _check_energies(energies: Any, count: int) -> None:
    if not isinstance(energies, Tensor):
        raise TypeError(f"energy must return a tensor, got {type(energies).__name__}")
    if energies.shape != (count,):
        raise ValueError(
            f"energy must return one energy per sample, [{count}] for these states, got shape {tuple(energies.shape)}; "
            "leave the sum or mean over the batch away"
        )
    if energies.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"energy must return float32 or float64, got {energies.dtype}")
    if not energies.requires_grad:
        raise ValueError("energy must be differentiable in the states, got energies that do not depend on them")
    lost = (~energies.isfinite()).nonzero().flatten().tolist()
    if lost:
        raise ValueError(
            f"energy must be finite, got {energies[lost[0]].item()} for sample {lost[0]}"
            + (f", and {len(lost) - 1} more like it" if len(lost) > 1 else "")
        )


def _functions(roots: Iterable[Any], whole: Mapping[Any, Sequence[Any]] = MappingProxyType({})) -> Iterator[Any]:
    """The functions of an autograd graph, each once; those of `whole` and what makes them up are passed over.

    Args:
        roots: where the graph begins.
        whole: functions, with those that are behind all that they are made up of.
    """
    found, ahead = set(), [*roots]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in found:
            found.add(node)
            if node in whole:
                ahead.extend(whole[node])
                continue
            ahead.extend(n for n, _ in node.next_functions)
            yield node


@dataclass(frozen=True)
class _Spectrum:
    """Ritz values in ascending order, their error bars, the shares of the start vector; each [B, k].

    `exhausted`, [B]: whether the vectors span all that the Hessian makes of the start vector. From a random start the
    Ritz values are all eigenvalues then.
    """

    values: Tensor
    errors: Tensor
    weights: Tensor
    exhausted: Tensor


def _lanczos(
    product: _Product, start: Tensor, products: int, tol: float, ends: tuple[int, ...], eps: float
) -> _Spectrum:
    """Lanczos iterations for all samples at once, each until it is done: its residuals at `ends` are below `tol`.

    A sample that is done stays as it is, whatever the others need. Its further rows of the tridiagonal matrix repeat
    its first diagonal element, which lies within its spectrum, and have no weight.
    """
    count, size = start.shape
    steps = min(products, size)
    basis = start.new_zeros(count, steps, size)
    diagonal, beside = start.new_zeros(count, steps), start.new_zeros(count, steps)
    norm = start.norm(dim=1)
    alive, exhausted = norm > 0, norm == 0
    vector = start / norm.where(alive, 1.0).unsqueeze(1)
    taken, residual = torch.ones_like(norm, dtype=torch.long), torch.zeros_like(norm)
    scale = torch.zeros_like(norm)  # of the eigenvalues
    for j in range(steps):
        basis[:, j] = vector
        after = product(vector)
        inside = (vector * after).sum(1)
        diagonal[:, j] = inside.where(alive, diagonal[:, 0])
        so_far = basis[:, : j + 1]
        for _ in range(2):  # once does not suffice where almost nothing is left
            after = after - torch.einsum("bk,bkn->bn", torch.einsum("bkn,bn->bk", so_far, after), so_far)
        beta = after.norm(dim=1)
        scale = scale.maximum(inside.abs() + beta)
        taken, residual = (j + 1) * alive + taken * ~alive, beta.where(alive, residual)
        if j + 1 == size:  # what is left is rounding
            residual = residual.masked_fill(alive, 0.0)
        ended = alive & (residual <= 10 * eps * math.sqrt(size) * scale)
        exhausted, alive = exhausted | ended, alive & ~ended
        if ends and alive.any() and (j + 1) % _EVERY == 0:
            values, errors, _ = _ritz(diagonal[:, : j + 1], beside[:, :j], taken, residual)
            settled = torch.stack([errors[:, e] <= tol * values[:, e].abs() for e in ends]).all(0)
            alive = alive & ~settled
        if not alive.any():
            break
        beside[:, j] = beta.where(alive, 0.0)
        vector = (after / beta.where(alive, 1.0).unsqueeze(1)).where(alive.unsqueeze(1), 0.0)
    values, errors, weights = _ritz(diagonal[:, : j + 1], beside[:, :j], taken, residual)
    return _Spectrum(values, errors + 10 * eps * scale.unsqueeze(1), weights, exhausted)


def _ritz(diagonal: Tensor, beside: Tensor, taken: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ritz values, norms of their residuals and shares of the start vector: [B, k] each."""
    matrix = torch.diag_embed(diagonal) + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
    values, vectors = torch.linalg.eigh(matrix)
    last = vectors.gather(1, (taken - 1).reshape(-1, 1, 1).expand(-1, 1, values.shape[1])).squeeze(1)
    return values, last.abs() * residual.unsqueeze(1), vectors[:, 0].square()


def _rates(curvature: Tensor) -> Tensor:
    return (2 / curvature).where(curvature > 0, math.inf)


class _NoErrors(Exception):
    """Why states cannot be told as errors; what it says goes into a diagnosis."""


@dataclass(frozen=True)
class _Term:
    """A Gaussian node's energy: states and predictions, and how to multiply by a root of the covariance, or its T."""

    value: Tensor
    pred: Tensor
    spread: Callable[[Tensor, bool], Tensor]
    energy: Tensor


@dataclass(frozen=True)
class _Edge:
    """A prediction, and its products with a dual variable: linear in that, so that their derivatives lead forward."""

    pred: Tensor
    dual: Tensor
    backs: dict[int, Tensor]  # by the place of the state that it is predicted from


class _Watch(TorchFunctionMode):
    """Notes while an energy is evaluated: energies of Gaussian and Laplace nodes, and what is smooth though it chooses.

    That is a Student node's energy, which is computed in two ways, and what a mask chooses that depends on no state.
    """

    def __init__(self) -> None:
        super().__init__()
        self.terms: list[_Term] = []
        self.absolute: list[tuple[Tensor, float, Tensor]] = []  # states, the least scale, and the energies
        self.smooth: dict[Any, list[Any]] = {}  # functions of autograd, and those behind them
        self.unused: list[tuple[Tensor, Tensor]] = []  # states, and where they are not taken
        self._told: dict[int, Tensor] = {}  # what tells of states and has no gradient, such as a comparison

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        given = [x for x in (*args, *(kwargs or {}).values()) if isinstance(x, Tensor)]
        if isinstance(result, Tensor) and not result.requires_grad:
            if any(x.requires_grad or id(x) in self._told for x in given):
                self._told[id(result)] = result
        elif func is functional.student_energy:
            self.smooth[result.grad_fn] = [x.grad_fn for x in given]
        elif func in (torch.where, Tensor.where) and len(args) == 3:
            mask, chosen, other = args if func is torch.where else (args[1], args[0], args[2])
            if id(mask) not in self._told:
                self.smooth[result.grad_fn] = [x.grad_fn for x in (chosen, other) if isinstance(x, Tensor)]
                pairs = (chosen, ~mask), (other, mask)
                self.unused += [(x, m) for x, m in pairs if isinstance(x, Tensor) and x.requires_grad]
        if func is functional.gaussian_energy:
            value, pred, logvar = args
            scale = 1.0 if logvar is None else (0.5 * logvar.detach()).exp()
            self.terms.append(_Term(value, pred, lambda d, _: d * scale, result))
        elif func is functional.multivariate_energy:
            value, pred, factor = args
            factor = factor.detach().tril()
            self.terms.append(_Term(value, pred, lambda d, flip: d @ (factor if flip else factor.mT), result))
        elif func is functional.laplace_energy:
            value, _, logscale = args
            scale = 1.0 if logscale is None else logscale.detach().exp().min().item()
            if result.requires_grad:
                self.absolute.append((value, scale, result))
        return result


class _Errors:
    """Free states as errors, ``z_l = mu_l + e_l``: one sweep down the network, or up.

    With A = dz/de and the covariances ``S S^T`` of the free nodes, their own energies have the curvature
    ``(A S S^T A^T)^-1`` for the states. In a linear network the others add to that.
    """

    def __init__(self, problem: _Problem) -> None:
        self._problem = problem
        params, terms = problem.params, problem.terms
        if not terms:
            raise _NoErrors("the energy has none of a Gaussian node")
        weights = torch.autograd.grad(problem.total, [t.energy for t in terms], create_graph=True, allow_unused=True)
        self._terms: dict[int, tuple[_Term, Tensor]] = {}
        for term, weight in zip(terms, weights, strict=True):
            for i, p in enumerate(params):
                if i not in self._terms and weight is not None and _is_whole(term.value, p):
                    self._terms[i] = term, weight
        for i in range(len(params)):
            if i not in self._terms:
                raise _NoErrors(f"params[{i}] has no energy of a Gaussian node")
            term, weight = self._terms[i]
            if weight.requires_grad and any(
                t is not None for t in torch.autograd.grad(weight.sum(), params, retain_graph=True, allow_unused=True)
            ):
                raise _NoErrors(f"the energy of params[{i}] has a factor that depends on states")
            if not (weight > 0).all() or torch.broadcast_shapes(term.pred.shape, term.value.shape) != term.value.shape:
                raise _NoErrors(f"the energy of params[{i}] does not pull every sample towards a prediction of its own")
        self._edges: dict[int, _Edge] = {}
        for i, (term, _) in self._terms.items():
            pred = term.pred.expand(term.value.shape)
            dual = torch.zeros_like(pred, requires_grad=True)
            backs: tuple[Tensor | None, ...] = ()
            if pred.requires_grad:
                backs = torch.autograd.grad(pred, params, dual, create_graph=True, allow_unused=True)
            reached = {j: back for j, back in enumerate(backs) if back is not None and back.requires_grad}
            self._edges[i] = _Edge(pred, dual, reached)
        try:
            self._order = [*TopologicalSorter({i: edge.backs for i, edge in self._edges.items()}).static_order()]
        except CycleError:
            raise _NoErrors("states predict one another in a circle") from None

    def down(self, rows: Tensor) -> Tensor:
        """``S^T A^T`` times a gradient for the states: that for the errors, whitened."""
        parts = self._problem.parts(rows)
        for i in reversed(self._order):
            edge, own = self._edges[i], self._rows(i, parts[i])
            if edge.backs:
                sources = [self._problem.params[j] for j in edge.backs]
                pulls = torch.autograd.grad(edge.pred, sources, own, retain_graph=True)
                for j, pull in zip(edge.backs, pulls, strict=True):
                    parts[j] += pull
            own.copy_(self._scaled(i, own, transposed=True))
        return self._problem.flat(parts)

    def up(self, rows: Tensor) -> Tensor:
        """``A S`` times whitened errors: what they move the states by."""
        parts = self._problem.parts(rows)
        for i in self._order:
            edge, own = self._edges[i], self._rows(i, parts[i])
            moved = self._scaled(i, own, transposed=False)
            if edge.backs:
                moves = [parts[j] for j in edge.backs]
                moved = moved + torch.autograd.grad([*edge.backs.values()], edge.dual, moves, retain_graph=True)[0]
            own.copy_(moved)
        return self._problem.flat(parts)

    def precondition(self, rows: Tensor) -> Tensor:
        return self.up(self.down(rows))

    def _scaled(self, i: int, rows: Tensor, transposed: bool) -> Tensor:
        """By the root S of the node's covariance, of one sample's energy as it stands in the sum."""
        term, weight = self._terms[i]
        root = weight.detach().rsqrt().reshape(-1, *[1] * (rows.dim() - 1))
        return term.spread(rows, transposed) * root

    def _rows(self, i: int, part: Tensor) -> Tensor:
        """A view of a tensor of the state's shape as the node's energy views the state."""
        value = self._terms[i][0].value
        return part.as_strided(value.shape, value.stride())


def _is_whole(value: Tensor, state: Tensor) -> bool:
    """Whether this is a state, or a view of all of it."""
    if value is state:
        return state.is_contiguous()
    return value._base is state and value.numel() == state.numel() and state.is_contiguous()


def _fall(product: _Product, precondition: _Product | None, gradient: Tensor, eps: float) -> Tensor:
    """``1/2 g^T H^-1 g``, what a quadratic energy falls to its minimum, by conjugate gradients: [B].

    NaN for samples of which `_PATIENCE` products do not suffice.
    """

    def smoothed(rows: Tensor) -> Tensor:
        return rows if precondition is None else precondition(rows)

    fall, rest = torch.zeros_like(gradient[:, 0]), gradient
    towards = smoothed(rest)
    direction, height = towards, (rest * towards).sum(1)
    enough = height * eps**2
    for _ in range(_PATIENCE):
        alive = height > enough
        if not alive.any():
            break
        image = product(direction)
        step = (height / (direction * image).sum(1)).where(alive, 0.0)
        fall = fall + 0.5 * step * height
        rest = rest - step.unsqueeze(1) * image
        towards = smoothed(rest)
        before, height = height, (rest * towards).sum(1).where(alive, height)
        direction = towards + (height / before).where(alive, 0.0).unsqueeze(1) * direction
    return fall.where(height <= enough, math.nan)


def _middle(numbers: Tensor) -> str:
    """The median over samples, and the largest where it differs."""
    middle, most = numbers.median().item(), numbers.max().item()
    return f"{middle:.3g}" if f"{middle:.3g}" == f"{most:.3g}" else f"{middle:.3g} (median, at most {most:.3g})"


def _regime(share: Tensor) -> str:
    if share.isnan().any():
        return "the rate is above what is stable, so that the states diverge"
    middle = share.median().item()
    name = "backpropagation-like" if middle < 0.1 else "equilibrium" if middle > 0.9 else "in between"
    return f"{middle:.2f} of the way, {name}"
