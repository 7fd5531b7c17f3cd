"""A plugin of pytest for Triton's interpreter, which does once what this does with every call of a kernel.

It looks through the whole language for what to replace there, and puts that back after a launch: with kernels as small
as those of tests, a third of their time. A version of Triton that goes about it otherwise is left alone.
"""

from triton.runtime import interpreter

if hasattr(interpreter, "_patch_lang") and hasattr(interpreter, "_LangPatchScope"):
    replace, done = interpreter._patch_lang, set()

    def once(function):
        """In the place of `_patch_lang`: nothing is to be put back."""
        if id(function.__globals__) not in done:
            replace(function)
            done.add(id(function.__globals__))
        return interpreter._LangPatchScope()

    interpreter._patch_lang = once
