"""Every operator against its formula in float64: all backends, dtypes, odd sizes and memory layouts."""

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
    name,
    negated,
    saying,
    transposed,
)
from operators import CASES, LAYOUT_CASES, NO_HALF_SOLVER

pytestmark = pytest.mark.usefixtures("backend")


def case_id(case):
    return f"{case.operator}-{case.id}"


def check(case, dtype, layout=None):
    arguments = case.arguments(dtype, layout)
    exact = case.expected(arguments)
    coarse = torch.float32 if case.operator in NO_HALF_SOLVER else dtype
    eager = case.expected(arguments, coarse) if dtype in LOW else exact
    outputs = operators.run(case, arguments)
    assert len(outputs) == len(exact)
    for output, truth, approximation in zip(outputs, exact, eager, strict=True):
        assert output.dtype == dtype
        assert_near(output, truth, case.length)
        if dtype in LOW:
            assert_as_good_as_eager(output, approximation.to(dtype), truth)


@pytest.mark.parametrize("dtype", FLOATS + LOW, ids=name)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_value(case, dtype):
    check(case, dtype)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.bfloat16], ids=name)
@pytest.mark.parametrize("case", LAYOUT_CASES, ids=case_id)
def test_layouts(case, dtype):
    for layout in (*DENSE[1:], *OVERLAPPING, negated):
        with saying(layout.__name__):
            check(case, dtype, layout)


@pytest.mark.parametrize("case", LAYOUT_CASES, ids=case_id)
def test_mixed_layouts(case):
    check(case, torch.float32, (contiguous, transposed))
    check(case, torch.float32, (*reversed(DENSE), *OVERLAPPING))


@pytest.mark.parametrize("case", LAYOUT_CASES, ids=case_id)
def test_inputs_stay_as_they_are(case):
    arguments = case.arguments()
    before = {k: v.clone() for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    operators.run(case, arguments)
    for key, old in before.items():
        if key not in case.written:
            torch.testing.assert_close(arguments[key], old, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", [case for case in LAYOUT_CASES if case.written], ids=case_id)
def test_gaps_between_written_elements_stay_as_they_are(case):
    arguments = case.arguments()
    for key in case.written:
        wide = torch.full((2, *arguments[key].shape, 3), 7.0, dtype=torch.float64)
        wide[1, ..., 1] = arguments[key]
        arguments[key] = wide[1, ..., 1]
    operators.run(case, arguments)
    for key in case.written:
        wide = arguments[key]._base
        wide[1, ..., 1] = 7.0
        assert (wide == 7.0).all()
