"""Tells without running it that a function must do what it did, as nothing has changed that it depends on.

A dry run notices whatever a function does differently, and takes as long as the function's own Python. Where all that
a function can reach is of kinds that are known here, these objects themselves are compared instead, in the compiled
module: what the dictionaries of instances, modules and classes held, lists, closures, and the globals that code names.
Anything that may have a state of its own, or code that has effects, cannot be watched: the function is run dry as ever.

What is not looked at is what tensors hold, which no capture depends on. Calls of PyTorch's functions were all seen when
the function was recorded; those that a capture cannot see, such as `torch.is_grad_enabled`, are none of the known ones.
"""

from __future__ import annotations

import builtins
import dis
import functools
import math
import types
from abc import ABCMeta
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.nn.modules import module as _module
from torch.overrides import get_overridable_functions

from .. import functional, native, nodes
from ..nodes.base import predicting, sweeping
from ..shape import Shape
from .program import form_of

# How the compiled module looks at an entry: what kind of object it is.
_DICT, _NAMES, _LIST, _CELL, _FUNCTION, _CLASS, _INSTANCE = range(7)
Entry = tuple[int, Any, tuple[Any, ...]]  # and the object, and what it held
_ANY, _MISSING = object(), object()  # in the place of what may be anything, and of what is not there

_ATOMS = frozenset(
    (
        *(bool, int, float, complex, str, bytes, type(None), type(...), type(NotImplemented), range, Shape),
        *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, torch.no_grad, torch.enable_grad),
        *(predicting, sweeping),
    )
)
_BUILTINS = frozenset(
    getattr(builtins, name)
    for name in (
        *("abs", "all", "any", "bool", "divmod", "enumerate", "filter", "float", "int", "isinstance", "len"),
        *("list", "map", "max", "min", "pow", "range", "reversed", "round", "slice", "sorted", "sum", "super"),
        *("tuple", "zip"),
    )
) | {error for error in vars(builtins).values() if isinstance(error, type) and issubclass(error, BaseException)}
_KNOWN = _BUILTINS | _ATOMS | {Tensor, nn.Parameter}
_PURE = frozenset(
    (
        *(f for f in (*vars(math).values(), *vars(functional).values()) if callable(f)),
        *(torch.zeros, torch.ones, torch.full, torch.eye, torch.arange, torch.linspace),  # which a recording sees
    )
)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
# Modules whose code depends on what they hold alone.
_LAYERS = (
    *(nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity, nn.Flatten, nn.Unflatten, nn.Linear, nn.Bilinear),
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.ELU, nn.CELU, nn.Softplus, nn.Softsign, nn.Mish),
    *(nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.SELU, nn.PReLU, nn.LogSigmoid, nn.Tanhshrink, nn.GLU),
    *(nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.ZeroPad2d),
    *(kind for kind in vars(nodes).values() if isinstance(kind, type)),
)
_CALLED = {
    name
    for kind in _LAYERS
    for base in kind.__mro__
    for code in vars(base).values()
    if isinstance(code, types.FunctionType)
    for name in code.__code__.co_names
}
_OF_LAYERS = {n: f for n, f in vars(F).items() if n in _CALLED and isinstance(f, _FUNCTIONS)}  # what their code calls
_TRUSTED = frozenset(base for kind in _LAYERS for base in kind.__mro__) - {object}
_ORIGINAL = {
    kind: [(name, v) for name, v in vars(kind).items() if isinstance(v, types.FunctionType | property)]
    for kind in _TRUSTED
}
_UNREAD = frozenset(n for n in vars(nn.Module()) if "state_dict" in n or n == "_non_persistent_buffers_set")
_OF_MODULES = frozenset(vars(nn.Module())) - _UNREAD | {"forward", "_call_impl", "_wrapped_call_impl", "_slow_forward"}
# What is not looked at: gradients, what is named in text, and what modules change elsewhere.
_HIDING = frozenset(
    (
        *("grad", "format", "format_map", "state_dict", "load_state_dict", "apply", "_apply", "train", "eval"),
        "compile",
        *("requires_grad_", "share_memory", "add_module", "register_module", "register_parameter", "register_buffer"),
        *(name for name in dir(nn.Module) if name.endswith(("_hook", "extra_state"))),
    )
)
_OF_BUFFERS = vars(nn.Buffer(torch.empty(0))).keys()
_HOOKS = tuple(v for name, v in vars(_module).items() if name.startswith("_global") and isinstance(v, dict))
_WALKING = frozenset(
    (
        *("children", "named_children", "modules", "named_modules", "parameters", "named_parameters", "zero_grad"),
        *("_modules", "get_submodule", "get_parameter", "get_buffer", "buffers", "named_buffers"),
    )
)
_DECORATED = torch.no_grad()(lambda: None).__code__
_IS_PYTHONS = 1 << 9  # Py_TPFLAGS_HEAPTYPE
_COMPILED = (
    *(types.MethodDescriptorType, types.WrapperDescriptorType, types.MemberDescriptorType),
    *(types.GetSetDescriptorType, types.ClassMethodDescriptorType),
)
_MOST_OBJECTS = 10_000  # beyond which a dry run is as fast
_FIRST, _MOST = 4, 1024  # dry runs before a function is watched
PROVEN_AFTER = _FIRST + 1  # dry runs, at least
_CHANGED = "what it can reach has changed meanwhile: an attribute, an item, a global, or a tensor's form"
_JUMPS = frozenset((*dis.hasjrel, *dis.hasjabs))
_LOADS = frozenset(("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"))
_EFFECTS = frozenset(
    (
        *("STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL", "STORE_SUBSCR", "DELETE_SUBSCR"),
        *("STORE_SLICE", "STORE_NAME", "IMPORT_NAME", "LOAD_BUILD_CLASS"),
        # and what calls code, or reads attributes, that it does not name
        *("DICT_MERGE", "DICT_UPDATE"),
        *("MATCH_CLASS", "MATCH_KEYS", "MATCH_MAPPING"),
    )
)
_FORMATS = frozenset(("FORMAT_VALUE", "FORMAT_SIMPLE", "FORMAT_WITH_SPEC", "CONVERT_VALUE"))  # which also call code
# Special methods that nothing calls but what makes, copies or shows an object.
_UNUSED = frozenset(
    (
        *("__abstractmethods__", "__annotate__", "__annotate_func__", "__annotations__"),
        *("__annotations_cache__", "__copy__", "__dataclass_fields__", "__dataclass_params__", "__deepcopy__"),
        *("__del__", "__delattr__", "__dict__", "__dir__", "__doc__", "__firstlineno__", "__format__"),
        *("__getstate__", "__init__", "__init_subclass__", "__match_args__", "__module__", "__new__"),
        *("__orig_bases__", "__parameters__", "__qualname__", "__reduce__", "__reduce_ex__", "__replace__"),
        *("__repr__", "__set_name__", "__setattr__", "__setstate__", "__sizeof__", "__slots__"),
        *("__static_attributes__", "__str__", "__subclasshook__", "__type_params__", "__weakref__"),
        *("_abc_impl",),
    )
)

_TELLING = frozenset(("__str__", "__repr__"))  # of these, what `str` calls


@functools.cache
def _seen_by_recordings() -> frozenset[Any]:
    """PyTorch's functions that tell a mode when they are called."""
    return frozenset(f for functions in get_overridable_functions().values() for f in functions)


class _Unknown(Exception):
    """Something is reached that may have a state of its own."""


class Watch:
    """What a function depends on, as it is now.

    Args:
        function: to be watched.
        known: tensors whose forms others look at.

    Attributes:
        entries: what objects hold that it reaches.

    Raises:
        CannotWatch: it reaches what may have a state of its own, or has effects; or there is no compiled module.
    """

    def __init__(self, function: Callable[..., Any], known: Iterable[Tensor]) -> None:
        if native.MODULE is None:
            raise CannotWatch("there is no compiled module to compare with")
        names = set[str]()
        while True:  # what code names decides what is looked at, and there is more code
            reach = _Reach(names)
            try:
                reach.all_from(function)
            except Exception as reason:  # or whatever looking at a stranger's objects raises
                raise CannotWatch(str(reason)) from None
            if reach.named <= names:
                break
            names |= reach.named
        if hiding := {
            n
            for n in names
            if n in _HIDING or (_is_special(n) and n not in ("__call__", "__class__", "__init__", *_TELLING))
        }:
            raise CannotWatch(f"its code names {min(hiding)}, and what that holds or does is not looked at")
        self.entries = reach.entries
        self._contents = contents(reach.entries)
        # where it zeroes gradients, there must be none: its code is not run
        self._without_gradient = [t for t in reach.tensors if t.is_leaf] if "zero_grad" in names else []
        of_others = {id(t) for t in known}
        self._forms = [(t, form_of(t), t.requires_grad) for t in reach.tensors if id(t) not in of_others]

    def holds(self) -> bool:
        """Whether all is as it was."""
        return self._contents.same() and self.holds_beside()

    def holds_beside(self) -> bool:
        """Whether all is as it was that is no entry."""
        return (
            all(form_of(t) == form and t.requires_grad == grad for t, form, grad in self._forms)
            and all(t.grad is None for t in self._without_gradient)
        )  # fmt: skip


def contents(entries: list[Entry]) -> Any:
    """Of the compiled module, what entries say that objects held: its ``same()`` tells whether they still do.

    The entries must be kept for as long.
    """
    return native.MODULE.Contents(entries, _ANY, _MISSING)  # type: ignore[union-attr]


def named_in(held: dict[str, Any], *names: str) -> Entry:
    """What a dictionary has under these names."""
    return _NAMES, held, tuple(x for name in names for x in (name, held.get(name, _MISSING)))


def items_of(held: dict[Any, Any] | list[Any]) -> Entry:
    """What a dictionary or a list holds, and in which order."""
    if isinstance(held, list):
        return _LIST, held, tuple(held)
    return _DICT, held, tuple(x for item in held.items() for x in item)


def attributes_of(thing: Any) -> tuple[Entry, Entry]:
    """An object's class and attributes."""
    return (_INSTANCE, thing, (type(thing), vars(thing))), items_of(vars(thing))


class CannotWatch(Exception):
    """A function cannot be watched; the message says why."""


class _Reach:
    """What a function can reach, where code names these attributes.

    Attributes:
        entries: a kind, an object and what it held.
        named: attributes that the code names.
        tensors: that were met.
    """

    def __init__(self, names: set[str]) -> None:
        self._names = names
        self.entries: list[Entry] = []
        self.named = set[str]()
        self.tensors: list[Tensor] = []
        self._seen: dict[Any, Any] = {}  # by id, so that no id is used twice
        self._stack: list[Any] = []

    def all_from(self, start: Any) -> None:
        self._stack.append(start)
        while self._stack:
            thing = self._stack.pop()
            if id(thing) not in self._seen and type(thing) not in _ATOMS:
                self._seen[id(thing)] = thing
                self._visit(thing)
                if len(self._seen) + len(self._stack) > _MOST_OBJECTS:
                    raise _Unknown(f"it reaches more than {_MOST_OBJECTS} objects")

    def _visit(self, thing: Any) -> None:
        kind = type(thing)
        if isinstance(thing, Tensor):
            if kind not in (Tensor, nn.Parameter) or vars(thing).keys() - _OF_BUFFERS:
                raise _Unknown(f"a tensor of type {kind.__name__}, or with attributes of its own")
            self._dict(vars(thing))
            self.tensors.append(thing)
        elif kind is slice:
            self._stack += (thing.start, thing.stop, thing.step)
        elif kind in (tuple, frozenset):
            self._stack.extend(thing)
        elif kind is list:
            self.entries.append(items_of(thing))
            self._stack.extend(thing)
        elif kind is dict or (kind is OrderedDict and not thing):
            self._dict(thing)
        elif kind is types.CellType:
            self._cell(thing)
        elif kind is types.MethodType:
            self._stack += (thing.__func__, thing.__self__)
        elif kind is types.FunctionType:
            self._function(thing)
        elif kind is types.ModuleType:
            self._module(thing)
        elif kind in (staticmethod, classmethod):
            self._stack.append(thing.__func__)
        elif kind is property:
            self._stack.append(thing.fget)
        elif kind is functools.partial:
            self._stack += (thing.func, thing.args, thing.keywords)
            self._attributes(thing)
        elif thing is str:
            self.named |= _TELLING
        elif isinstance(thing, type):
            if thing not in _KNOWN:
                self._class(thing)
        elif not self._is_pure(thing):
            if isinstance(thing, types.BuiltinFunctionType):
                name = ".".join(filter(None, (thing.__module__, thing.__qualname__)))
                raise _Unknown(f"{name}, a compiled function of which nothing is known")
            self._instance(thing)

    @staticmethod
    def _is_pure(thing: Any) -> bool:
        """Whether it is a function of its arguments alone, or one whose calls a recording sees."""
        if isinstance(thing, OpOverload | OpOverloadPacket):
            return True
        if not isinstance(thing, types.BuiltinFunctionType | types.MethodDescriptorType | types.FunctionType):
            return False
        return thing in _BUILTINS or thing in _PURE or thing in _seen_by_recordings()

    def _dict(self, held: dict[Any, Any], wanted: Iterable[Any] | None = None) -> None:
        """What a dictionary holds, and in which order; of other values than those wanted only that they are there."""
        keys = held.keys() if wanted is None else held.keys() & set(wanted)
        items = ((key, value if key in keys else _ANY) for key, value in held.items())
        self.entries.append((_DICT, held, tuple(x for item in items for x in item)))
        self._stack.extend(held.keys() if wanted is None else ())
        self._stack.extend(held[key] for key in keys)

    def _lookups(self, held: dict[str, Any], names: Iterable[str], compared: Collection[str] = ()) -> None:
        """What a dictionary that holds much else has under names, some of which are of classes that make nothing."""
        entry = named_in(held, *sorted(names))
        self.entries.append(entry)
        for name, value in zip(entry[2][::2], entry[2][1::2], strict=True):
            if name in compared and isinstance(value, type):
                if value not in _KNOWN:
                    self._class(value, makes=False)
            elif value is not _MISSING:
                self._stack.append(value)

    def _module(self, module: types.ModuleType) -> None:
        held = vars(module)
        if "__getattr__" in held and module.__name__.partition(".")[0] != "torch":
            raise _Unknown(f"{module.__name__}, a module that makes its attributes")
        self._lookups(held, self._names)

    def _cell(self, cell: types.CellType) -> None:
        try:
            content = cell.cell_contents
        except ValueError:  # it is empty
            self.entries.append((_CELL, cell, (_MISSING,)))
            return
        self.entries.append((_CELL, cell, (content,)))
        self._stack.append(content)

    def _function(self, function: types.FunctionType) -> None:
        if self._is_pure(function):
            return
        parts = (function.__code__, function.__defaults__, function.__kwdefaults__, function.__closure__)
        self.entries.append((_FUNCTION, function, tuple(_MISSING if p is None else p for p in parts)))
        self._stack += (p for p in parts[1:] if p is not None)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name == "__class__" and isinstance(kind := getattr(cell, "cell_contents", None), type):
                self._own_class(function.__code__, cell, kind)
        self._attributes(function)
        if function.__code__ is not _DECORATED:
            self._code(function.__code__, function.__globals__)

    def _own_class(self, code: types.CodeType, cell: types.CellType, kind: type) -> None:
        """The class that code is of, which `super()` asks for and makes nothing of."""
        self._seen[id(cell)] = cell
        self.entries.append((_CELL, cell, (kind,)))
        if _loads_its_class(code):
            self._stack.append(kind)
        else:
            self._class(kind, makes=False)

    def _attributes(self, thing: Any) -> None:
        self.entries.append((_INSTANCE, thing, (type(thing), vars(thing))))
        self._dict(vars(thing), self._names)

    def _code(self, code: types.CodeType, names: dict[str, Any]) -> None:
        globally, used = set[str](), set[str]()
        steps = [*dis.get_instructions(code)]
        for at, step in enumerate(steps):
            if step.opname in _FORMATS:
                raise _Unknown(f"{code.co_name} formats text, in an f-string: name beforehand what it looks up")
            if step.opname == "BINARY_OP" and step.argrepr in ("%", "%="):
                raise _Unknown(f"{code.co_name} may format text, by %")
            if step.opname in _EFFECTS or (
                step.opname in ("STORE_DEREF", "DELETE_DEREF") and step.argval in code.co_freevars
            ):
                raise _Unknown(f"{code.co_name} has effects, or calls what it does not name: {step.opname.lower()}")
            if step.opname in _LOADS:
                self.named.add(step.argval)
            elif step.opname == "LOAD_GLOBAL":
                globally.add(step.argval)
                if not _is_compared(steps, at):
                    used.add(step.argval)
            elif step.opname == "LOAD_NAME":
                raise _Unknown(f"{code.co_name} is no function's code")
        compared = () if "isinstance" in names else globally - used
        self._lookups(names, globally, compared)
        self._lookups(vars(builtins), globally - names.keys(), compared)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant, names)

    def _class(self, kind: type, makes: bool = True) -> None:
        """A class, with what code can reach of it."""
        # what an abstract class is asked about may be registered elsewhere
        if type(kind) is not type and not (type(kind) is ABCMeta and (nn.Module in kind.__mro__ or not makes)):
            raise _Unknown(f"{kind.__name__}, a class of another kind")
        # a module's text is for people: code makes text of numbers and names, as in messages and keys
        told = frozenset() if nn.Module in kind.__mro__ else _TELLING & self._names
        of_library = any(base in _TRUSTED and base is not nn.Module for base in kind.__mro__)
        for base in kind.__mro__:
            if base is object or ("class", id(base), makes) in self._seen:
                continue
            self._seen["class", id(base), makes] = base
            held = dict(vars(base))
            if base in _TRUSTED:
                if any(held.get(name) is not code and not _is_torchs(held.get(name)) for name, code in _ORIGINAL[base]):
                    raise _Unknown(f"{base.__name__}, which has been patched")
            else:
                compiled = [
                    n for n, v in held.items() if isinstance(v, _COMPILED) and n not in ("__dict__", "__weakref__")
                ]
                if compiled or not base.__flags__ & _IS_PYTHONS or base.__module__.partition(".")[0] == "torch":
                    raise _Unknown(f"{base.__name__}, which may hold more than can be looked at")
                used = (
                    n for n in held
                    if (n not in _UNUSED or n in told)
                    and (of_library or n in self._names or n == "forward" or _is_special(n))
                )  # fmt: skip
                self._stack.extend(held[name] for name in used)
                if makes:
                    self._stack.extend(held[name] for name in ("__init__", "__new__") if name in held)
            self.entries.append((_CLASS, base, (base.__mro__, *(x for item in held.items() for x in item))))

    def _instance(self, thing: Any) -> None:
        kind = type(thing)
        self._class(kind, makes=False)
        held = vars(thing)
        self.entries.append((_INSTANCE, thing, (kind, held)))
        if not isinstance(thing, nn.Module):
            self._dict(held, self._names)
            return
        self._stack.extend(_HOOKS)
        entry = named_in(vars(F), *_OF_LAYERS)
        self.entries.append(entry)
        found = zip(_OF_LAYERS.values(), entry[2][1::2], strict=True)
        self._stack.extend(f for original, f in found if f is not original and f is not _MISSING)
        if any(base in _TRUSTED and base is not nn.Module for base in kind.__mro__):  # whose code reads what it will
            self._dict(held, held.keys() - _UNREAD)
            return
        self._dict(held, (self._names | _OF_MODULES) - {"_modules"})
        self.entries.append((_NAMES, held, ("_modules", thing._modules)))
        self._dict(thing._modules, None if self._names & _WALKING else self._names)


def _loads_its_class(code: types.CodeType) -> bool:
    """Whether code takes the class that it is of, otherwise than by `super()`."""
    steps = [*dis.get_instructions(code)]
    by_super = ("LOAD_SUPER_ATTR" in (s.opname for s in steps[at + 1 : at + 3]) for at in range(len(steps)))
    loads = any(
        s.opname == "LOAD_DEREF" and s.argval == "__class__" and not of for s, of in zip(steps, by_super, strict=True)
    )
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return loads or any("__class__" in c.co_freevars for c in inner)


def _is_compared(steps: Sequence[dis.Instruction], at: int) -> bool:
    """Whether all that is done with what a step loads is that `isinstance` takes it for a class, last."""
    call = next(s for s in steps[at + 1 :] if s.opname != "PRECALL")
    if (call.opname, call.arg) != ("CALL", 2):
        return False
    depth = 0
    for i in range(at - 1, 0, -1):  # back over what makes the first argument, to the function
        step = steps[i]
        if step.is_jump_target or step.opcode in _JUMPS:
            return False
        depth += dis.stack_effect(step.opcode, step.arg, jump=False)
        if depth == 1:
            return (steps[i - 1].opname, steps[i - 1].argval) == ("LOAD_GLOBAL", "isinstance")
    return False


def _is_torchs(thing: Any) -> bool:
    """Whether it is a function of PyTorch's own, as its compiler puts one in the place of another."""
    return isinstance(thing, types.FunctionType) and thing.__globals__.get("__name__", "").startswith("torch.")


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


class Guard:
    """Whether a function has to be run dry: not where a watch of it has proven itself and holds.

    Beginning to watch takes as long as ten dry runs or so, so that it begins after a few that found nothing, and after
    ever more where what is watched changes again and again. A watch has proven itself when a dry run has not changed
    what it looks at.

    Args:
        function: what is guarded.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._watch: Watch | None = None
        self._proven = False
        self._held = self._failures = 0
        self._wait = _FIRST
        self._traces = self._refusal = ""

    def holds(self) -> bool:
        """Whether the function must do what it did in its last dry run."""
        if not (self._proven and self._watch is not None):
            return False
        if not self._watch.holds():
            self._give_up(_CHANGED)
            return False
        self._held += 1
        return True

    @property
    def obstacle(self) -> str:
        """Why it goes on being run dry, where there is a reason but that it is new."""
        return "" if self._proven else self._traces or self._refusal

    @property
    def watch(self) -> Watch | None:
        """What tells that the function must do what it did, where there is that."""
        return self._watch if self._proven else None

    def has_held(self, times: int) -> None:
        """Count what others have found of the watch."""
        self._held += times

    def ran(self, known: Iterable[Tensor], traces: str) -> None:
        """After a dry run that found no change.

        Args:
            known: tensors whose forms others look at.
            traces: why it had to be made whatever a watch would tell, as the function stores what it computes; or none.
        """
        self._traces = traces
        if self._watch is not None and not traces and self._watch.holds():
            self._proven = True
            return
        if self._watch is not None:
            self._give_up("" if traces else _CHANGED)
        self._wait -= 1
        if self._wait > 0 or traces:
            return
        try:
            self._watch, self._refusal = Watch(self._function, known), ""
        except CannotWatch as reason:
            self._wait, self._refusal = _MOST, str(reason)

    def _give_up(self, reason: str) -> None:
        self._failures = 0 if self._held > _MOST else self._failures + 1
        self._watch, self._proven, self._held, self._refusal = None, False, 0, reason
        self._wait = min(_FIRST << self._failures, _MOST)
