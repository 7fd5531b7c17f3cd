"""Categorical nodes: targets that are classes, or distributions over them, compared by cross-entropy."""

from __future__ import annotations

import math

import torch
import torch.nn as nn
from torch import Tensor

from .. import functional
from .base import VariationalNode, watched

__all__ = ["CategoricalNode"]


class CategoricalNode(VariationalNode):
    """Node whose state is a class of every sample, or a distribution z over classes, and whose predictions are logits.

    The energy is the cross-entropy ``-sum_i z_i log softmax(mu)_i`` per sample. Classes are the first of the node's
    dimensions, as in `torch.nn.functional.cross_entropy`; positions along the others all count. The state must be
    clamped, as a target is: leave it out of the E-step parameters. Nothing to learn.

    Args:
        classes: how many.
        *shape: more dimensions of the node, None for placeholders.

    Attributes:
        value: the state, ``[B, classes, *shape]``, probabilities: a one-hot row for a class.
    """

    def __init__(self, classes: int, *shape: int | None) -> None:
        if classes is None:
            raise TypeError("classes must be a number, got None")
        super().__init__(classes, *shape)
        self._classes = classes

    def init(self, value: Tensor) -> nn.Parameter:
        """Set the state, in the node's dtype and on its device, and clear its gradient.

        Args:
            value: class indices ``[B, *shape]`` of an integer dtype, or probabilities ``[B, classes, *shape]``; copied.

        Returns:
            The state.

        Raises:
            TypeError: `value` is not a tensor, or of neither dtype.
            ValueError: the shape does not fit the node; an index is not from 0 to classes - 1; probabilities are
                negative, or those of a sample do not sum to 1.
        """
        self._check_is_tensor("value", value)
        self._check_fits("value", value)
        if watched.setter is None:
            value = self.distribution(value)
        return super().init(value)

    def error(self, pred: Tensor) -> Tensor:
        """Error ``z - softmax(mu)``, of the shape of the state: minus the energy's gradient for the logits mu."""
        return functional.categorical_error(self._state("error"), pred)

    def energy(self, pred: Tensor) -> Tensor:
        """Energy ``-sum_i z_i log softmax(mu)_i`` per sample, ``[B]``."""
        return functional.categorical_energy(self._state("energy"), pred)

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Classes drawn by their probabilities, as one-hot vectors.

        Args:
            value: logits, ``[B, classes, *shape]``.
            generator: source of randomness; None is PyTorch's own.

        Returns:
            Samples, of the shape of `value`, without a gradient.

        Raises:
            TypeError: `value` is not a tensor.
            ValueError: its shape does not fit the node.
        """
        self._check_is_tensor("value", value)
        super()._check_fits("value", value)
        with torch.no_grad():
            noise = torch.empty_like(value).exponential_(generator=generator).log()
            drawn = (value - noise).argmax(1, keepdim=True)  # of Gumbel variables around the logits
            return torch.zeros_like(value).scatter_(1, drawn, 1.0)

    def _check_fits(self, name: str, value: Tensor) -> None:
        """A state's shape, or one of class indices."""
        self._check_is_tensor(name, value)
        if _holds_classes(value):
            if value.dim() and len(value) == 0:
                super()._check_fits(name, value)
            fits = value.dim() > 0 and self._shape.compat(value.shape[0], self._classes, *value.shape[1:])
            if not fits:
                expected = (self._shape.rshape[0], *self._shape.rshape[2:])
                hint = f"; probabilities are floats, as {name}.float()" if self._shape.compat(*value.shape) else ""
                if (
                    value.dim() > 1
                    and value.shape[-1] == 1
                    and self._shape.compat(len(value), self._classes, *value.shape[1:-1])
                ):
                    hint = f", which {name}.squeeze(-1) makes fit"
                raise ValueError(f"{name} must be class indices of shape {expected}, got {tuple(value.shape)}{hint}")
            return
        if value.dtype == torch.bool or value.is_complex():
            raise TypeError(f"{name} must be class indices or probabilities, got {value.dtype}")
        try:
            super()._check_fits(name, value)
        except ValueError as error:
            if value.dim() and value.numel() and self._shape.compat(value.shape[0], self._classes, *value.shape[1:]):
                raise ValueError(f"{error}; class indices are of an integer dtype, {name}.long()") from None
            raise

    def check(self, value: Tensor) -> None:
        """Raise ValueError where a value that fits the node is no class indices, or no probabilities, of it."""
        if value.is_meta or value.numel() == 0:
            return
        name = f"{self._described}.value"
        if _holds_classes(value):
            least, most = (int(x) for x in value.aminmax())
            if least < 0 or most >= self._classes:
                wrong = least if least < 0 else most
                raise ValueError(f"{name} must be class indices from 0 to {self._classes - 1}, got {wrong}")
            return
        if not (lowest := float(value.amin())) >= 0:
            raise ValueError(f"{name} must be probabilities, none of them negative, got {lowest}")
        lowest, highest = (float(x) for x in value.sum(1).aminmax())
        eps = max(torch.finfo(t).eps for t in (value.dtype, torch.float32))  # which they may have been rounded to
        if not (1 - lowest <= math.sqrt(eps) >= highest - 1):
            total = lowest if 1 - lowest > highest - 1 else highest
            raise ValueError(f"{name} must be probabilities that sum to 1 over the classes, got a sum of {total:.6g}")

    def distribution(self, value: Tensor) -> Tensor:
        """Probabilities, given those or class indices; ValueError as of `check`."""
        self.check(value)
        if not _holds_classes(value):
            return value
        zeros = value.new_zeros(value.shape[0], self._classes, *value.shape[1:], dtype=self.value.dtype)
        return zeros.scatter_(1, value.long().unsqueeze(1), 1.0)

    def _refill(self, value: Tensor) -> None:
        self.check(value)
        if _holds_classes(value):
            self.value.zero_().scatter_(1, value.unsqueeze(1).long(), 1.0)
        else:
            self.value.copy_(value)


def _holds_classes(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
