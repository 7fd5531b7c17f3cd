"""Every operator on the CUDA kernels, which are compiled for the CPU here; run as a script with their library.

Prints how many calls agreed with float64, and a digest of all bits that came out.
"""

import hashlib
import math
import sys

import pytest
import torch

import operators
from numerics import (
    DENSE,
    FLOATS,
    LOW,
    OVERLAPPING,
    assert_as_good_as_eager,
    assert_near,
    contiguous,
    rows,
    saying,
    transposed,
)
from pyromancy.ops import schema

FLOAT = torch.float32


def inputs(operator, value, **others):
    """A case of a Gaussian operator with many terms."""
    grad = {"grad": torch.randn(value.shape[0]).double()} if "backward" in operator else {}
    length = value.numel() if "logvar" in operator else value[0].numel()
    return operators.Case(operator, "large", {**grad, "value": value, "pred": value.flip(0) + 1, **others}, length)


def large_cases():
    """Sums of several chunks, of rows in several ranges, and of slices, for each way of sharing logvar."""
    torch.manual_seed(8)
    for shape in ((2, 20_000), (2, 20_004), (70, 4096), (1030, 3), (40, 5, 4, 6), (1, 40_004)):
        value = torch.randn(shape, dtype=torch.float64)
        for logvar in operators.logvars(shape[1:]).values():
            yield inputs("gaussian_energy", value, logvar=logvar)
            if logvar is not None:
                yield inputs("gaussian_energy_backward_logvar", value, logvar=logvar)
    matrices = ((600, 1, 64), (70, 9, 33), (3, 1, 257), (1, 40, 300))
    for name in operators.OPERATORS:
        if name.startswith("multivariate"):
            yield from operators.cases(name, matrices=matrices)


def calls():
    """Cases with a dtype and a layout or several."""
    for case in operators.CASES:
        for dtype in FLOATS + LOW:
            yield case, dtype, contiguous
    for case in operators.LAYOUT_CASES:
        for layout in (*DENSE[1:], *OVERLAPPING, (contiguous, transposed), (*reversed(DENSE), *OVERLAPPING)):
            for dtype in (FLOAT, torch.float16):
                yield case, dtype, layout
    for case in large_cases():
        for dtype in (FLOAT, torch.bfloat16):
            for layout in (contiguous, rows):
                yield case, dtype, layout


def refuses_wrong_arguments():
    for name in operators.OPERATORS:
        arguments = next(iter(operators.cases(name, ((3, (5,)),), ((3, 5, 7),)))).arguments(FLOAT)
        for key, x in arguments.items():
            if isinstance(x, torch.Tensor) and x.dim() > 0:
                for wrong in (x.double(), x.int(), x[None, None], torch.cat([x, x])):
                    with pytest.raises(RuntimeError, match=r"must (have|be|broadcast)"), saying(f"{name}, {key}"):
                        getattr(torch.ops.pyromancy, name).default(**arguments | {key: wrong})


def main(library):
    """Run everything."""
    torch.ops.load_library(library)
    for name in schema.SCHEMAS:
        if name not in operators.ELSEWHERE:
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pyromancy::{name}", "CPU"), name
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # with NaN: who forgets to write is found out
    assert math.isnan(torch.empty(7)[3])
    torch.manual_seed(20)
    digest, count = hashlib.sha256(), 0
    for case, dtype, layout in calls():
        arguments = case.arguments(dtype, layout)
        expected = case.expected(arguments)
        coarse = FLOAT if case.operator in operators.NO_HALF_SOLVER else dtype
        eager = case.expected(arguments, coarse) if dtype in LOW else expected
        outputs = operators.run(case, arguments)
        with saying(f"{case.operator}, {case.id}, {dtype}, {layout}"):
            for output, exact, approximation in zip(outputs, expected, eager, strict=True):
                assert output.dtype == dtype
                assert_near(output, exact, case.length)
                if dtype in LOW:
                    assert_as_good_as_eager(output, approximation.to(dtype), exact)
                integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[output.element_size()]
                digest.update(output.contiguous().view(integer).numpy().tobytes())
        count += 1
    refuses_wrong_arguments()
    print(count, digest.hexdigest(), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
