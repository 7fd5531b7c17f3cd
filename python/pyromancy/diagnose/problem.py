"""The energy at the states as they are, as gradients and products with its Hessian."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..arguments import check_energy_argument, listed_params
from .watch import Watch, is_whole

_SEED = 20  # of the start vector, drawn from a generator of its own
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


class Problem:
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
        with torch.random.fork_rng(devices=devices), Watch() as watch:
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
                if is_whole(state, p):
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
            own = [f"params[{i}]" for i, p in enumerate(self.params) if is_whole(value, p)]
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
    listed = listed_params(params, "pyromancy.get_estep_params")
    for i, p in enumerate(listed):
        if p.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"params[{i}] must be of float32 or float64, as others do not resolve curvature, got {p.dtype}"
            )
        if not p.requires_grad or p.is_inference():
            raise ValueError(f"params[{i}] must require gradients, got one that does not, or of inference mode")
        if p.dim() == 0 or p.numel() == 0 or len(p) != len(listed[0]):
            wanted = "[B, ...] and not empty" if i == 0 else f"[{len(listed[0])}, ...], as params[0] is, and not empty"
            what = ", which is a state before its first init" if p.shape == (0,) else ""
            raise ValueError(f"params[{i}] must be of shape {wanted}, one row per sample, got {tuple(p.shape)}{what}")
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
