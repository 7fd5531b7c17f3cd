"""Base classes of nodes.

A folder and not ``base.py``: where `pyromancy-ai` is installed over this package its files replace those of the same
name, and Python still finds a folder first, so that the warning below is given in that case too.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ...arguments import kind_of
from ...distributions import warn_if_shadowed
from ...registration import eparameters, mparameters
from ...shape import Shape

__all__ = ["Node", "PredictiveNode", "StateNode", "VariationalNode"]

warn_if_shadowed()

_AS_IT_IS = nullcontext()


class _Watched(threading.local):
    """Who sets states in a node's place, in this thread: what captures how a batch starts."""

    setter: Callable[[StateNode, Tensor], Any] | None = None
    resetter: Callable[[StateNode], None] | None = None


watched = _Watched()


class _Running(threading.local):
    """What layers are run for, in this thread: an energy, where nothing is said."""

    by: type[_While] | None = None


running = _Running()


class _While:
    """A context, which may be entered in another."""

    def __enter__(self) -> None:
        self._before = running.by
        running.by = type(self)

    def __exit__(self, *_: object) -> None:
        running.by = self._before


class sweeping(_While):
    """Within it layers are run for the sweep that a batch starts with: what they hold for a batch is drawn anew."""


class predicting(_While):
    """Within it layers are run for themselves, as if there were no batch."""


@eparameters()
@mparameters()
class Node(nn.Module, ABC):
    """Base class of nodes.

    Args:
        *shape: dimensions of the node without the batch dimension, which is prepended as a placeholder; each a
            positive int, or None for a placeholder along which parameters are shared.
    """

    _shape: Shape

    def __init__(self, *shape: int | None) -> None:
        super().__init__()
        self._shape = Shape(None, *shape)

    @property
    def shapeobj(self) -> Shape:
        """Shape of the state, batch dimension included."""
        return self._shape

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Dimensions of the node, placeholders being None."""
        return self._shape.rshape[1:]

    @property
    def bshape(self) -> tuple[int, ...]:
        """Dimensions of the node with 1 for each placeholder: the shape of parameters that broadcast."""
        return self._shape.bshape[1:]

    @property
    def size(self) -> int:
        """Product of the concrete dimensions."""
        return self._shape.size

    def extra_repr(self) -> str:
        """The dimensions of the node."""
        return ", ".join(map(str, self.shape))

    def _check_fits(self, name: str, value: Tensor) -> None:
        """Raise where an argument is no tensor of the node's shape."""
        self._check_is_tensor(name, value)
        if value.dim() and value.shape[0] == 0:  # which `len` would make a constant to torch.export
            raise ValueError(f"{name} must have a row per sample, and one at least, got shape {tuple(value.shape)}")
        if not self._shape.compat(*value.shape):
            lacks = value.dim() == len(self.shape) and Shape(*self.shape).compat(*value.shape)
            hint = f"; the first dimension is the batch, as of {name}.unsqueeze(0)" if lacks else ""
            if value.dim() > 2 and self._shape.compat(value.shape[0], value[0].numel()):
                hint = f", which {name}.flatten(1) makes fit"
            raise ValueError(f"{name} must fit the node's shape {self._shape.rshape}, got {tuple(value.shape)}{hint}")

    @staticmethod
    def _check_is_tensor(name: str, value: object) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {kind_of(value)}")

    @abstractmethod
    def reset(self) -> None:
        """Forget the state of the last batch."""

    @abstractmethod
    def forward(self, inputs: Tensor, **kwargs: Any) -> Tensor:
        """The node's value, given its prediction."""


class _Empty(Tensor):
    """A state before its first `init`, and what is computed from it and is empty, too.

    A tensor like any other, but for the message where one of PyTorch's functions does not take it.
    """

    _node: str

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            given = next((t for t in tree_leaves((args, kwargs)) if isinstance(t, _Empty) and t.numel() == 0), None)
            node = getattr(given, "_node", None)
            try:
                result = func(*args, **kwargs or {})
            except (RuntimeError, ValueError, IndexError) as error:
                if node is None or isinstance(error, NotImplementedError):
                    raise
                raise RuntimeError(f"{node}.value is empty: call init(x) of the {node} first") from error
            if node is not None and type(result) is Tensor and result.numel() == 0:
                result.__class__ = _Empty
                vars(result)["_node"] = node
            return result

    @contextmanager
    def _plain(self) -> Iterator[None]:
        """As the tensor that it is otherwise, for what asks for a tensor's type."""
        own = type(self)
        self.__class__ = nn.Parameter if isinstance(self, nn.Parameter) else Tensor  # type: ignore[assignment]
        try:
            yield
        finally:
            self.__class__ = own

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        with self._plain():
            return repr(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        with self._plain():
            return self.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        with self._plain():
            copied: Tensor = self.__deepcopy__(memo)
        copied.__class__ = _EmptyParameter if isinstance(copied, nn.Parameter) else _Empty
        vars(copied)["_node"] = self._node
        return copied


class _EmptyParameter(_Empty, nn.Parameter):
    """A state that is a parameter, before its first `init`."""


class StateNode(Node):
    """A node with a state: one row per sample, set by `init` for every batch and not saved with the model."""

    value: Tensor

    def reset(self) -> None:
        """Drop the state and the gradients of the node's parameters."""
        if watched.resetter is not None:
            watched.resetter(self)
            return
        if self._modules:
            self.zero_grad()
        else:  # whose search for parameters would cost more than all the rest
            for parameter in self._parameters.values():
                if parameter is not None:
                    parameter.grad = None
        state = self.value
        self._hold(torch.empty(0, dtype=state.dtype, device=state.device))

    def init(self, value: Tensor) -> Any:
        """Set the state, in the node's dtype and on its device, and clear its gradient.

        The state of a node that was built on meta is another tensor from then on, on the device of `value`.

        Args:
            value: ``[B, *node]``; copied.

        Returns:
            The state.

        Raises:
            TypeError: `value` is not a tensor.
            ValueError: the shape does not fit the node, or the batch is empty.
        """
        self._check_fits("value", value)
        if watched.setter is not None:
            return watched.setter(self, value)
        if self.value.is_meta and not value.is_meta:
            self._renew(value.device)
        state = self.value
        state.grad = None
        # what is made in inference mode could never again be saved for a gradient
        leave = torch.is_inference_mode_enabled() and not state.is_inference()
        with torch.inference_mode(False) if leave else _AS_IT_IS:
            copy = value.detach().to(state.device, state.dtype, copy=True, memory_format=torch.contiguous_format)
        self._hold(copy)
        torch.autograd.graph.increment_version(state)  # assigning `data` does not; graphs over the old state are void
        return state

    def _refill(self, value: Tensor) -> None:
        """Write into the state what `init` would set it to, of a value of the form that it was last given."""
        self.value.copy_(value)

    def forward(self, inputs: Tensor, **kwargs: Any) -> Tensor:
        """In training mode, set the state to `inputs` and return it; in evaluation mode, return `inputs`."""
        return self.init(inputs) if self.training else inputs

    def _hold(self, data: Tensor) -> None:
        """Make `data` the contents of the state."""
        state = self.value
        if state.shape != data.shape:
            # torch.compile, before torch 2.13, looks at shapes again only where a dictionary on the way has changed
            held: dict[str, Any] = self._parameters if "value" in self._parameters else self._buffers
            held["value"] = None
            held["value"] = state
        state.data = data
        self._name_if_empty()

    def _name_if_empty(self) -> None:
        """Let an empty state tell whose it is, wherever it is used."""
        state = self.value
        if "value" in self._parameters:
            wanted: type[Tensor] = nn.Parameter if state.numel() else _EmptyParameter
        else:
            wanted = Tensor if state.numel() else _Empty
        if type(state) is wanted or torch.compiler.is_compiling():
            return
        state.__class__ = wanted
        if state.numel():
            vars(state).pop("_node", None)
        else:
            vars(state)["_node"] = self._described

    @property
    def _described(self) -> str:
        """What to call the node, which does not know its own name."""
        return f"{type(self).__name__}({', '.join(map(str, self.shape))})"

    def _renew(self, device: torch.device | str) -> None:
        """Put an empty state that is on meta elsewhere: there is nothing to copy, which PyTorch would refuse."""
        state = self.value
        empty = torch.empty(0, dtype=state.dtype, device=device)
        is_parameter = "value" in self._parameters
        self.value = nn.Parameter(empty, state.requires_grad) if is_parameter else nn.Buffer(empty, persistent=False)
        self._name_if_empty()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        if self.value.is_meta and self.value.numel() == 0:
            try:
                fn(self.value)
            except NotImplementedError:
                self._renew("cpu")
        return super()._apply(fn, recurse)

    def _state(self, method: str) -> Tensor:
        """The state, for `method` to use."""
        value: Tensor | None = self._parameters.get("value")  # which `self.value` finds after a search
        if value is None:
            value = self.value
        if value.numel() == 0:
            name = self._described
            raise RuntimeError(
                f"{name}.{method}() needs a state and there is none: call init(value) of the {name} first, "
                "or the node itself in training mode"
            )
        return value

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(f"{prefix}value", None)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        key = f"{prefix}value"
        state_dict.pop(key, None)  # checkpoints of pyromancy-ai hold the states of their last batch
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if key in missing_keys:
            missing_keys.remove(key)


@eparameters("value")
class PredictiveNode(StateNode):
    """Base class of nodes whose state is predicted by others.

    Attributes:
        value: the state, ``[B, *node]``, an E-step parameter; empty before `init`.
    """

    value: nn.Parameter

    def __init__(self, *shape: int | None) -> None:
        super().__init__(*shape)
        self.value = nn.Parameter(torch.empty(0))
        self._name_if_empty()

    def init(self, value: Tensor) -> nn.Parameter:  # noqa: D102 (as in StateNode; here the state is a parameter)
        return super().init(value)

    @abstractmethod
    def error(self, pred: Tensor) -> Tensor:
        """Precision-weighted error of a prediction, of the shape of the state."""

    @abstractmethod
    def energy(self, pred: Tensor) -> Tensor:
        """Free energy of a prediction, one value per sample: ``[B]``."""


class VariationalNode(PredictiveNode):
    """Base class of nodes that model a distribution around their prediction."""

    @abstractmethod
    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A sample of the node's distribution around `value`."""

    def _of_components(self, parameter: Tensor) -> Tensor:
        """A parameter with a number for every component, in a shape that broadcasts against the node's dimensions."""
        plain = len(self._shape) == 2 and self._shape.nvirtual == 1
        return parameter if plain else parameter.view(self.bshape)
