"""Notes of what an energy is made of, while it is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .. import functional


@dataclass(frozen=True)
class Term:
    """A Gaussian node's energy: states and predictions, and how to multiply by a root of the covariance, or its T."""

    value: Tensor
    pred: Tensor
    spread: Callable[[Tensor, bool], Tensor]
    energy: Tensor


class Watch(TorchFunctionMode):
    """Notes while an energy is evaluated: energies of Gaussian and Laplace nodes, and what is smooth though it chooses.

    That is a Student node's energy, which is computed in two ways, and what a mask chooses that depends on no state.
    """

    def __init__(self) -> None:
        super().__init__()
        self.terms: list[Term] = []
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
            self.terms.append(Term(value, pred, lambda d, _: d * scale, result))
        elif func is functional.multivariate_energy:
            value, pred, factor = args
            factor = factor.detach().tril()
            self.terms.append(Term(value, pred, lambda d, flip: d @ (factor if flip else factor.mT), result))
        elif func is functional.laplace_energy:
            value, _, logscale = args
            scale = 1.0 if logscale is None else logscale.detach().exp().min().item()
            if result.requires_grad:
                self.absolute.append((value, scale, result))
        return result


def is_whole(value: Tensor, state: Tensor) -> bool:
    """Whether this is a state, or a view of all of it."""
    if value is state:
        return state.is_contiguous()
    return value._base is state and value.numel() == state.numel() and state.is_contiguous()
