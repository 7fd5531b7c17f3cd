"""Every operator once, in every dtype, in a process of its own: run as a script, it says what served and what failed.

For settings that are read when the package is loaded: instruction sets, and whether there are compiled kernels.
"""

import sys

import torch

import chains
import operators
from numerics import FLOATS, LOW, assert_near, contiguous, sliced, transposed
from pyromancy import backends


def main():
    torch.manual_seed(20)
    calls = 0
    for case in operators.CASES[::3] + operators.LAYOUT_CASES:
        for dtype in FLOATS + LOW:
            for layout in (contiguous, (sliced, transposed)) if dtype in FLOATS else (sliced,):
                arguments = case.arguments(dtype, layout)
                expected = case.expected(arguments)
                for output, exact in zip(operators.run(case, arguments), expected, strict=True):
                    assert_near(output, exact, case.length)
                calls += 1
    for options in chains.OPTIONS.values():
        for dtype in FLOATS:
            chains.check(chains.problem((5, 33, 7, 6, 3), 17, dtype=dtype, **options))
            chains.check_mstep(chains.problem((5, 33, 7, 6, 3), 17, dtype=dtype, **options))
            calls += 2
    serving = {(s.backend, s.detail) for s in backends.report() if s.device == "cpu"}
    print(calls, *(" ".join(pair) for pair in sorted(serving)), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
