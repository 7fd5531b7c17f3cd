"""Tapes of Triton's interpreter: what a function asks of NumPy is written down, and played when it is called again.

The interpreter goes through a kernel's Python for every program of every launch. That Python sees types, shapes, the
integers that kernels are given, and constants; numbers that are loaded pass it by in handles, from one method of the
builder to the next. So a function that is called with the same of the former calls the same methods: its tape has
them. Operators of the language, functions of kernels and kernels have tapes, each of which goes into the caller's.

What no tape can hold runs as it does without: where Python asks for a number that varies, prints one, or gets handles
from elsewhere than the builder.
"""

import collections
import contextlib
import functools
import inspect

import triton.language as tl
from triton.runtime import interpreter

_VARYING = "load", "store", "atomic", "descriptor", "program", "print"  # methods that do more than compute
_CONSTANTS = int, bool, str, type(None), type(tl.PropagateNan.ALL)


class _Unknown(Exception):
    """Something of which it is not known whether it varies."""


class _Slot(int):
    """Where a tape has a value that varies: first those that it is given, then the results of its steps."""


class Tape:
    written = None  # the innermost that is being written

    def __init__(self, given):
        self.given, self.steps, self.holds, self.code = given, [], True, None

    def step(self, function, arguments, computes, result=None):
        """Write a step, unless it computes a constant; return the slot of its result, or that constant."""
        if computes and not any(type(x) is _Slot for x in arguments):
            return _aside(function, *arguments) if result is None else result
        self.steps.append((function, arguments, computes))
        return _Slot(self.given + len(self.steps) - 1)

    def steps_of(self, tape, given):
        """Write the steps of another tape; return what stands here for each of its slots."""
        here = [*given]
        for function, arguments, computes in tape.steps:
            here.append(self.step(function, [here[x] if type(x) is _Slot else x for x in arguments], computes))
        return here

    def place(self, x):
        """The slot of a handle that varies; what does not is its own place."""
        if type(x) is interpreter.TensorHandle:
            tape, at = getattr(x, "place", (None, None))
            if tape is not self:
                raise _Unknown
            return x if at is None else at
        if isinstance(x, (list, tuple)) and any(type(y) is interpreter.TensorHandle for y in x):
            raise _Unknown
        return x

    def put(self, handle, at):
        if handle is not None:  # of what returns nothing
            handle.place = self, at if type(at) is _Slot else None

    def varies(self, handle):
        try:
            return type(self.place(handle)) is _Slot
        except _Unknown:
            return True

    def assign(self):
        """Registers, used again after the last who reads them, as a kernel's values are too many to keep."""
        ends = self.ends
        last = {x: i for i, (_, arguments, _) in enumerate(self.steps) for x in arguments if type(x) is _Slot}
        last.update((x, len(self.steps)) for x in ends if type(x) is _Slot)
        at, unused, self.most, self.code = {_Slot(i): i for i in range(self.given)}, [], self.given, []
        for i, (function, arguments, _) in enumerate(self.steps):
            varying = tuple(type(x) is _Slot for x in arguments)
            call = _call(varying)(function, *(at[x] if v else x for x, v in zip(arguments, varying, strict=True)))
            unused += {at[x] for x, v in zip(arguments, varying, strict=True) if v and last[x] == i}
            if not unused:
                unused.append(self.most)
                self.most += 1
            result = _Slot(self.given + i)
            at[result] = unused.pop() if result in last else unused[-1]
            self.code.append((at[result], call))
        self.registers = [at[x] if type(x) is _Slot else None for x in ends]

    def play(self, given):
        if self.code is None:
            self.assign()
        values = given + [None] * (self.most - self.given)
        for at, call in self.code:
            values[at] = call(values)
        return [_copy(x) if at is None else values[at] for at, x in zip(self.registers, self.ends, strict=True)]


def _copy(handle):
    return None if handle is None else interpreter.TensorHandle(handle.data, handle.dtype, handle.attr)


@functools.cache
def _call(varying):
    """Binds a function and its arguments, which are registers where they vary."""
    names = ", ".join(f"x{i}" for i in range(len(varying)))
    values = ", ".join(f"values[x{i}]" if v else f"x{i}" for i, v in enumerate(varying))
    return eval(f"lambda function, {names}: lambda values: function({values})")


def _aside(function, *arguments):
    """Run it with nothing written of it."""
    Tape.written, tape = None, Tape.written
    try:
        return function(*arguments)
    finally:
        Tape.written = tape


def _as_step(function, arguments, computes=True):
    """Run a function that takes handles, and returns one or nothing, as a step."""
    tape, result = Tape.written, _aside(function, *arguments)
    if tape is not None and tape.holds:
        try:
            at = tape.step(function, [tape.place(x) for x in arguments], computes, result)
            if type(result) is interpreter.TensorHandle:
                tape.put(result, at)
            elif result is not None:
                raise _Unknown
        except _Unknown:
            tape.holds = False
    return result


def _method(method, name):
    """Of the builder."""
    computes = not any(word in name for word in _VARYING)

    def step(self, *arguments, **options):
        if Tape.written is None:
            return method(self, *arguments, **options)
        function = functools.partial(method, **options) if options else method
        return _as_step(function, (self, *arguments), computes)

    return step


def _reduction(apply):
    def step(self, tensor):
        if Tape.written is None or type(tensor) is not tl.tensor:
            return apply(self, tensor)
        kinds = []

        def reduce(handle):
            result = apply(self, tl.tensor(handle, tensor.type))
            kinds.append(result.type)
            return result.handle

        return tl.tensor(_as_step(reduce, (tensor.handle,)), kinds[0])

    return step


def _asked(ask, name):
    """Python asks a tensor for its number, or prints it; a block is true whatever it holds."""

    def asked(self):
        tape = Tape.written
        if tape is not None and (name != "__bool__" or self.handle.data.size == 1):
            tape.holds = tape.holds and not tape.varies(self.handle)
        return ask(self)

    return asked


def _replaced(x, kind, by):
    """With something else for all of a kind."""
    if type(x) is kind:
        return by(x)
    return type(x)(_replaced(y, kind, by) for y in x) if type(x) in (tuple, list) else x


class _Given:
    """What a function is given or returns: a key of what must be the same, and the tensors beside it.

    Integers that are no blocks are part of the key where that goes by values.
    """

    def __init__(self, x, by_value=False):
        self.varying, self.fixed, self.by_value = [], [], by_value
        self.key = self.of(x)

    def is_fixed(self, x):
        return self.by_value and not x.type.is_block() and x.type.is_int()

    def of(self, x):
        kind = type(x)
        if kind is tl.tensor:
            if self.is_fixed(x):
                self.fixed.append(x)
                return x.type.name, x.handle.data.item()
            self.varying.append(x)
            return x.type.name
        if kind in _CONSTANTS or isinstance(x, interpreter.InterpretedFunction) or inspect.isfunction(x):
            return kind, x
        if kind is tuple or kind is list:
            return kind, *map(self.of, x)
        if kind is float:
            return kind, repr(x)  # of NaN and of zeros
        if kind is tl.constexpr:
            return kind, self.of(x.value)
        if kind is slice:
            return kind, self.of((x.start, x.stop, x.step))
        if isinstance(x, tl.dtype):
            return kind, x.name
        raise _Unknown


class _Kind:
    """Stands for a tensor of a type."""

    def __init__(self, tensor):
        self.of = tensor.type


def taped(function, by_value=False):
    """The function, with a tape for whatever it is given; one of a kernel's is worth it from the third time on."""
    tapes, times = {}, collections.Counter()

    def call(*arguments, **options):
        options.pop("_semantic", None)  # there is but one
        outer = Tape.written
        try:
            given = _Given((arguments, tuple(options), tuple(options.values())), by_value)
        except _Unknown:
            return function(*arguments, **options)
        tape = tapes.get(given.key)
        if tape is False or (outer is not None and any(outer.varies(x.handle) for x in given.fixed)):
            return function(*arguments, **options)  # it becomes part of the outer tape, if of any
        if tape is None and by_value and outer is None and times[given.key] < 2:
            times[given.key] += 1
            return function(*arguments, **options)
        if tape is None:
            result = write(given, arguments, options)
            tape = tapes[given.key]
        else:
            handles = iter(_aside(tape.play, [x.handle for x in given.varying]))
            result = _replaced(tape.result, _Kind, lambda kind: tl.tensor(next(handles), kind.of))
        if outer is not None and outer.holds:
            outer.holds = tape is not False and into(outer, tape, given, result)
        return result

    def write(given, arguments, options):
        tape, outer = Tape(len(given.varying)), Tape.written
        slots = iter(range(tape.given))

        def own(x):  # as one may have been given twice
            handle = _copy(x.handle)
            tape.put(handle, None if given.is_fixed(x) else _Slot(next(slots)))
            return tl.tensor(handle, x.type)

        arguments, values = _replaced((arguments, tuple(options.values())), tl.tensor, own)
        Tape.written = tape
        try:
            result = function(*arguments, **dict(zip(options, values, strict=True)))
        finally:
            Tape.written = outer
        tapes[given.key] = False
        if tape.holds:
            with contextlib.suppress(_Unknown):
                tape.ends = [tape.place(x.handle) for x in _Given(result).varying]
                tape.result = _replaced(result, tl.tensor, _Kind)
                tapes[given.key] = tape
        return result

    def into(outer, tape, given, result):
        """Whether it can be written there."""
        try:
            here = outer.steps_of(tape, [outer.place(x.handle) for x in given.varying])
        except _Unknown:
            return False
        for x, end in zip(_Given(result).varying, tape.ends, strict=True):
            outer.put(x.handle, here[end] if type(end) is _Slot else end)
        return True

    return call


def fit():
    """Whether this version of Triton goes about it in the way that tapes take for granted."""
    scope = getattr(interpreter, "_LangPatchScope", None)
    parts = (
        (interpreter, "TensorHandle"), (interpreter, "InterpreterBuilder"), (interpreter, "InterpretedFunction"),
        (getattr(interpreter, "ReduceScanOpInterface", None), "apply"),
        (getattr(interpreter, "InterpretedFunction", None), "rewrite"),
    )  # fmt: skip
    return scope is not None and hasattr(scope(), "_changes") and all(hasattr(*part) for part in parts)


def install():
    """Have the interpreter use tapes; `language` must be told what it has replaced there."""
    for name, method in [*vars(interpreter.InterpreterBuilder).items()]:
        if name.startswith(("create_", "get_")) and not name.endswith("_ty"):
            setattr(interpreter.InterpreterBuilder, name, _method(method, name))
    for owner, name, by in (
        (interpreter.ReduceScanOpInterface, "apply", _reduction),
        (interpreter.InterpretedFunction, "rewrite", _rewritten),
    ):
        setattr(owner, name, by(getattr(owner, name)))


def _rewritten(rewrite):
    known = {}

    def rewritten(self):
        if self.fn not in known:
            function = rewrite(self)
            known[self.fn] = functools.wraps(function)(taped(function, by_value=True))
            known[self.fn].__signature__ = inspect.signature(function)
        return known[self.fn]

    return rewritten


def language(scope):
    """Have tapes of what has been replaced in the language."""
    for owner, name, original in scope._changes:
        replaced = getattr(owner, name)
        if tl.core.is_builtin(original):
            setattr(owner, name, taped(replaced))
        elif name in ("__bool__", "__index__", "__repr__", "__str__"):
            setattr(owner, name, _asked(replaced, name))
