"""A plugin of pytest for Triton's interpreter, which does once what this does with every call of a kernel or operator.

With kernels as small as those of tests it spends its time on what does not depend on the numbers: it looks through the
whole language for what to replace there, and puts that back after a launch; it makes the types and shapes of every
result anew; it computes whether integers overflow, and then tells nobody; and it runs all Python of a kernel in every
program, for which there are `tapes`. What comes out is the same, and what is refused. A version of Triton that goes
about it otherwise is left alone.
"""

import functools
import inspect

import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter, jit

import tapes


def _once(replace):
    """In the place of `_patch_lang`: nothing is to be put back."""
    done = set()

    def once(function):
        function = inspect.unwrap(function)
        if id(function.__globals__) not in done:
            scope = replace(function)
            if tapes.fit():
                tapes.language(scope)
            done.add(id(function.__globals__))
        return interpreter._LangPatchScope()

    return once


def _remembered(of_type):
    """A function of a type, which its name tells."""
    known = {}

    def remembered(kind):
        if kind.name not in known:
            known[kind.name] = of_type(kind)
        return known[kind.name]

    return remembered


def _known_sizes(fits):
    """Whether an array's elements fit a type, which is asked of every result more than once."""
    known = {}

    def fit(array, kind):
        key = array.itemsize, kind.name
        if key not in known:
            known[key] = fits(array, kind)
        return known[key]

    return fit


def _made_once(make, key, given):
    """An `__init__` after which all attributes but those given are the same for the same key."""
    known = {}

    def init(self, *arguments):
        at = key(*arguments)
        if at not in known:
            make(self, *arguments)
            known[at] = {name: x for name, x in vars(self).items() if name not in given}
        else:
            vars(self).update(known[at])
            vars(self).update(zip(given, arguments, strict=False))

    return init


def _unless_alike(broadcast):
    """Blocks of one shape are left as they are."""

    def broadcast_impl_value(self, lhs, rhs):
        if lhs.type.is_block() and rhs.type.is_block() and [*lhs.type.shape] == [*rhs.type.shape]:
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    return broadcast_impl_value


def _if_asserted(refuse):
    """Whether integers overflow is not computed where the interpreter asserts nothing, and so tells nobody."""

    def binary_op_sanitize_overflow_impl(self, *arguments):
        if self.builder.options.debug:
            refuse(self, *arguments)

    return binary_op_sanitize_overflow_impl


def _replace(owner, name, by, *arguments):
    if hasattr(owner, name):
        setattr(owner, name, by(getattr(owner, name), *arguments))


if hasattr(interpreter, "_LangPatchScope"):
    _replace(interpreter, "_patch_lang", _once)
_replace(interpreter, "_get_np_dtype", _remembered)
_replace(interpreter, "_validate_np_data_size", _known_sizes)
_replace(tl, "str_to_ty", functools.cache)
_replace(jit, "_normalize_ty", functools.cache)
_replace(tl.block_type, "__init__", _made_once, lambda element, shape: (element.name, *shape), ("element_ty",))
_replace(tl.tensor, "__init__", _made_once, lambda handle, kind: kind.name, ("handle", "type"))
_replace(TritonSemantic, "broadcast_impl_value", _unless_alike)
if hasattr(interpreter.interpreter_builder.options, "debug"):
    _replace(TritonSemantic, "binary_op_sanitize_overflow_impl", _if_asserted)
if tapes.fit():
    tapes.install()
