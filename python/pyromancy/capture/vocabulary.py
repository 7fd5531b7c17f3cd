"""What PyTorch's functions mean, by identity: another library's may have the same names."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType
from typing import Any, cast

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.overrides import resolve_name

from .. import functional

Function = Callable[..., Any]
Arguments = tuple[Any, ...]
Options = dict[str, Any]

# A meaning, and what PyTorch calls the functions that have it.
_SPELLINGS = {
    "add": ("add", "__add__", "__radd__"),
    "sub": ("sub", "subtract", "__sub__"),
    "rsub": ("rsub", "__rsub__"),
    "neg": ("neg", "negative", "__neg__"),
    "positive": ("positive", "__pos__"),
    "mul": ("mul", "multiply", "__mul__", "__rmul__"),
    "div": ("div", "divide", "true_divide", "__truediv__"),
    "sum": ("sum",),
    "mean": ("mean",),
    "square": ("square",),
    "pow": ("pow", "__pow__"),
    "abs": ("abs", "absolute", "__abs__"),
    "mse_loss": ("mse_loss",),
    "log_softmax": ("log_softmax",),
    "softmax": ("softmax",),
    "cross_entropy": ("cross_entropy",),
    "nll_loss": ("nll_loss",),
    **{name: (name,) for name in ("l1_loss", "huber_loss", "smooth_l1_loss", "gaussian_nll_loss", "poisson_nll_loss")},
    "binary_cross_entropy_with_logits": ("binary_cross_entropy_with_logits",),
    **{name: (name,) for name in ("exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "reciprocal", "cosh", "sinh")},
    **{name: (name,) for name in ("maximum", "minimum", "clamp_min", "clamp_max", "where", "logaddexp")},
    "rdiv": ("__rdiv__", "__rtruediv__"),
    "sign": ("sign", "sgn"),
    "clamp": ("clamp", "clip"),
    "log_sigmoid": ("log_sigmoid", "logsigmoid"),
    "greater": ("gt", "greater", "__gt__"),
    "less": ("lt", "less", "__lt__"),
    "at_least": ("ge", "greater_equal", "__ge__"),
    "at_most": ("le", "less_equal", "__le__"),
    "expand": ("expand", "broadcast_to"),
    "stack": ("stack",),
    "cat": ("cat", "concat", "concatenate"),
    "reshape": ("view", "reshape", "flatten", "ravel", "squeeze", "unsqueeze"),
    "transpose": ("t", "transpose", "swapaxes", "swapdims", "permute"),
    "copy": ("contiguous", "clone", "float", "double"),
    "dropout": ("dropout",),
    "product": ("matmul", "mm", "__matmul__"),
    "addmm": ("addmm",),
    "einsum": ("einsum",),
    "linear": ("linear",),
    "convolution of images": ("conv2d", "conv_transpose2d"),
    **{name: (name,) for name in ("relu", "tanh", "sigmoid", "silu", "gelu", "leaky_relu", "elu", "softplus")},
    **{name: (name,) for name in ("relu6", "hardtanh", "selu", "prelu")},
    "takes the second's form": ("expand_as", "view_as", "reshape_as", "type_as"),
    "takes forms alone": ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"),
    "normalization": ("batch_norm", "instance_norm", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"),
    "normalization of groups": ("group_norm", "native_group_norm"),
    "makes of values": ("tensor", "as_tensor", "asarray"),
    "tensor_split": ("tensor_split",),
    "columns": ("narrow", "split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "hsplit"),
    "indexing": ("__getitem__",),
    "assignment": ("__setitem__",),
    "autograd": ("_set_grad_enabled", "backward", "requires_grad_", "register_hook", "retain_grad"),
}
# Of these there is one more of the same name with an underscore, which writes the result over its first argument.
_OVERWRITTEN = (
    *("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "pow", "neg", "negative"),
    *("relu", "tanh", "sigmoid", "exp", "square", "abs", "clamp", "clip", "elu", "leaky_relu"),
    *("relu6", "hardtanh", "selu", "celu", "threshold", "clamp_min", "clamp_max", "nan_to_num", "lerp"),
    *("masked_fill", "masked_scatter", "index_fill", "index_add", "index_copy", "index_put", "scatter", "scatter_add"),
    *("sqrt", "rsqrt", "sin", "cos", "log", "log1p", "expm1", "erf", "reciprocal", "sign", "tril", "triu"),
    *("addcmul", "addcdiv", "cumsum"),
)
_AUGMENTED = {"__iadd__": "add", "__isub__": "sub", "__imul__": "mul", "__itruediv__": "div", "__ipow__": "pow"}
# These tell of a tensor's form and not of its contents.
_OF_FORM = (
    *("dim", "size", "numel", "nelement", "ndimension", "get_device"),
    *("is_floating_point", "is_complex", "element_size", "__len__"),
)
_ATTRIBUTES_OF_FORM = (
    *("shape", "dtype", "device", "ndim", "layout", "itemsize", "nbytes"),
    *("is_cuda", "is_meta", "is_nested", "is_quantized", "is_sparse", "is_mkldnn"),
)

_nn: Any = torch._C._nn  # type: ignore[attr-defined, unused-ignore]
_PLACES: tuple[Any, ...] = (torch, Tensor, torch.nn.functional, _nn, torch._C)
_PACKAGE = __name__.partition(".")[0]
_LIBRARIES = ("aten", "prim", "prims", _PACKAGE)
_OPERATORS = (OpOverload, OpOverloadPacket)
_COMPILED = (BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType, MethodWrapperType)

_MEANINGS: dict[Function, str] = {
    getattr(place, name): meaning
    for meaning, names in _SPELLINGS.items()
    for name in names
    for place in _PLACES
    if hasattr(place, name)
}
_MEANINGS[functional.own_energies] = "law of one's own"
_MEANINGS |= dict.fromkeys((torch.autograd.grad, cast(Any, Tensor.grad).__get__), "autograd")
_MEANINGS |= dict.fromkeys((cast(Any, Tensor.T).__get__, cast(Any, Tensor.mT).__get__), "transpose")
_MEANINGS_OF_OPERATORS = {name: meaning for meaning, names in _SPELLINGS.items() for name in names}
_OUT_OF_PLACE: dict[Function, Function] = {
    getattr(place, f"{name}_"): getattr(place, name)
    for name in _OVERWRITTEN
    for place in (torch, Tensor, _nn)
    if hasattr(place, name) and hasattr(place, f"{name}_")
} | {getattr(Tensor, augmented): getattr(Tensor, name) for augmented, name in _AUGMENTED.items()}
# And these of how it lies in memory, and of its part in autograd.
_LAYOUT: frozenset[Function] = frozenset(
    (
        *(Tensor.stride, Tensor.storage_offset, Tensor.is_contiguous),
        *(cast(Any, Tensor.is_leaf).__get__, cast(Any, Tensor.requires_grad).__get__),
    )
)
_METADATA: frozenset[Function] = frozenset(
    (
        *(getattr(Tensor, name) for name in _OF_FORM),
        *(getattr(Tensor, name).__get__ for name in _ATTRIBUTES_OF_FORM),
        *(torch.is_floating_point, torch.is_complex, torch.numel, torch.result_type),
        *_LAYOUT,
    )
)


def is_known(function: Function) -> bool:
    """Whether a function is PyTorch's or this package's, so that what it does depends on its arguments alone."""
    if isinstance(function, _OPERATORS):
        return _packet(function)._qualified_op_name.partition("::")[0] in _LIBRARIES
    if isinstance(function, FunctionType):
        return function.__globals__.get("__name__", "").partition(".")[0] in ("torch", _PACKAGE)
    return isinstance(function, _COMPILED)


def may_wrap(function: Function) -> bool:
    """Whether a function may wrap one of PyTorch's and have its name, by which that tells a mode of itself."""
    return not is_known(function) and not isinstance(function, _OPERATORS)


def is_metadata(function: Function) -> bool:
    """Whether a function tells of a tensor's form and not of its contents."""
    return is_known(function) and function in _METADATA


def tells_layout(function: Function) -> bool:
    """Whether one of metadata tells what a stand-in, without memory and gradient, would answer otherwise."""
    return function in _LAYOUT


def meaning(function: Function) -> str | None:
    """One word for all functions of PyTorch's that compute the same, where it matters here; None for the others."""
    if not is_known(function):
        return None
    if isinstance(function, _OPERATORS):
        space, _, name = _packet(function)._qualified_op_name.partition("::")
        return _MEANINGS_OF_OPERATORS.get(name) if space == "aten" else None
    return _MEANINGS.get(function)


def name_of(function: Function) -> str:
    """What to call a function in a message."""
    if isinstance(function, _OPERATORS):
        return str(_packet(function))
    resolved = _resolved(function) if is_known(function) else None
    return resolved or str(getattr(function, "__name__", function))


_resolved = functools.lru_cache(1024)(resolve_name)  # which takes a tenth of a millisecond


def arguments(function: Function, args: Arguments, kwargs: Options) -> Options:
    """All arguments of a call, by name, of one of PyTorch's functions written in Python or of one with a meaning."""
    parameters = _parameters(function)
    return parameters | dict(zip(parameters, args, strict=False)) | kwargs


def unusual(function: Function, args: Arguments, kwargs: Options) -> Options:
    """Those after the first that are not what they are where nobody gives them."""
    parameters = _parameters(function)
    first = next(iter(parameters))
    given = dict(zip(parameters, args, strict=False)) | kwargs
    return {name: value for name, value in given.items() if name != first and value != parameters.get(name)}


@functools.cache
def _parameters(function: Function) -> Options:
    """What every argument of a function is where nobody gives it, in order."""
    if isinstance(function, FunctionType):
        if isinstance(inspect.unwrap(function), _COMPILED):  # such as Tensor.__pow__, which has no signature
            return {}
        return {p.name: p.default for p in inspect.signature(function).parameters.values()}
    if isinstance(function, OpOverload):
        schema = function._schema
    else:
        schema = getattr(torch.ops.aten, name_of(function).rpartition(".")[2]).default._schema
    return {a.name: a.default_value for a in schema.arguments}


def out_of_place(function: Function, args: Arguments, kwargs: Options) -> tuple[Function, Arguments, Options] | None:
    """The call that computes, as a tensor of its own, what a call writes over its first argument; None for others."""
    if (other := _OUT_OF_PLACE.get(function)) is not None:
        return other, args, kwargs
    if assigns(function):
        return with_item, args, kwargs
    if _has_option(function, args, kwargs):
        return function, (), arguments(function, args, kwargs) | {"inplace": False}
    return None


def with_item(t: Tensor, index: Any, value: Any) -> Tensor:
    """A tensor of its own that is what another would be after ``t[index] = value``."""
    t = t.clone()
    t[index] = value
    return t


def assigns(function: Function) -> bool:
    """Whether a function is that of ``t[index] = value``."""
    return function == Tensor.__setitem__


def works_in_place(function: Function, args: Arguments, kwargs: Options) -> bool:
    """Whether a call of one of PyTorch's functions writes to a tensor, as its name and options tell."""
    name = name_of(function).rpartition(".")[2]
    return (
        (name.endswith("_") and not name.endswith("__") and not name.startswith("_"))
        or name in ("__setitem__", "__set__")
        or function in _OUT_OF_PLACE
        or kwargs.get("out") is not None
        or _has_option(function, args, kwargs)
    )


def _has_option(function: Function, args: Arguments, kwargs: Options) -> bool:
    if not isinstance(function, FunctionType) or "inplace" not in _parameters(function):
        return False
    return bool(arguments(function, args, kwargs)["inplace"])


def _packet(function: OpOverload | OpOverloadPacket) -> OpOverloadPacket:
    return function.overloadpacket if isinstance(function, OpOverload) else function
