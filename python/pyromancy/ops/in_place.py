"""What autograd must know of the operators that write in place.

Operators made by define/impl leave version counters alone: a gradient that needs what has been overwritten would be
silently wrong. The ``ADInplaceOrView`` kernels here do what those of PyTorch's own in-place operators do, however an
operator is called. Being in Python they take every argument out of the dispatcher and put it in again; `bound` gives
the operators to this package with the same bookkeeping and no such detour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.utils._pytree import tree_map_only

from .schema import NAMESPACE, library, registered

_below: Any = torch._C._AutoDispatchBelowADInplaceOrView
_keys_below: Any = torch._C._after_ADInplaceOrView_keyset
_keys_below_negation: Any = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.Negative)


# of what may be written, what is
WRITTEN: dict[str, Callable[..., Sequence[Tensor]]] = {
    "estep_": lambda value, buffer, *_: (value,) if buffer is None else (value, buffer),
    "run_plan_": lambda written, *_: written,
    "elementwise_": lambda written, *_: written,
    "attention_": lambda out, *_: (out,),
    "attention_backward_": lambda grads, *_: (grads,),
    "layer_norm_": lambda out, *_: (out,),
    "layer_norm_backward_": lambda out, *_: (out,),
    "secant_products_": lambda out, *_: (out,),
}


def _refuse_gradients(name: str, args: Sequence[Any]) -> None:
    """Refuse what would lose a gradient in silence: these operators have none to give."""
    for arg in args:
        for t in arg if isinstance(arg, list | tuple) else (arg,):
            if isinstance(t, Tensor) and (t.requires_grad or (t._base is not None and t._base.requires_grad)):
                raise RuntimeError(
                    f"{name} has no gradient, and takes a tensor of shape {tuple(t.shape)} that requires one; call it "
                    "under torch.no_grad() or on detached tensors"
                )


def _operator(name: str) -> Any:
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def _kernel(name: str) -> Callable[..., Any]:
    operator, written_by = _operator(name), WRITTEN[name]

    def kernel(keys: Any, *args: Any) -> Any:
        written = written_by(*args)
        if torch.is_grad_enabled():
            _refuse_gradients(name, args)
        with _below():
            result = operator.redispatch(keys & _keys_below, *args)
        increment_version(written)
        return result

    return kernel


def bound(name: str) -> Callable[..., Any]:
    """An operator that writes in place, for calls by position."""
    operator, written_by = _operator(name), WRITTEN[name]

    def call(*args: Any) -> Any:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return operator(*args)
        with _below():
            result = operator(*args)
        increment_version(written_by(*args))
        return result

    return call


def _negation(name: str) -> Callable[..., Any]:
    """The operator for tensors that hold the negative of their memory, as ``z.conj().imag`` does.

    PyTorch's own resolves what is read, and knows in-place operators only that return the one tensor that they write.
    """
    operator, written_by = _operator(name), WRITTEN[name]

    def kernel(keys: Any, *args: Any) -> Any:
        resolved = tree_map_only(Tensor, Tensor.resolve_neg, args)
        result = operator.redispatch(keys & _keys_below_negation, *resolved)
        for t, r in zip(written_by(*args), written_by(*resolved), strict=True):
            if r is not t:
                t.copy_(r)
        return result

    return kernel


for _key, _made in (("ADInplaceOrView", _kernel), ("Negative", _negation)):
    for _name in WRITTEN:
        if not registered(_name, _key):
            library.impl(_name, _made(_name), _key, with_keyset=True)
