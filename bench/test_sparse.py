"""Sparse codes of image patches by FISTA, and scikit-learn's, to the same duality gap."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
import torch

from . import sparse, timing
from .exact import require

if TYPE_CHECKING:
    from collections.abc import Callable

MOST = 4000  # steps


@functools.cache
def problem(count: int) -> tuple[Any, Any]:
    data = sparse.patches(count)
    return data, sparse.dictionary(data)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("count", [500 if metafunc.config.getoption("--sizes") == "small" else 10_000])


@pytest.mark.parametrize("algorithm", ["lasso_cd", "lasso_lars"])
def test_sparse_codes(count: int, algorithm: str, benchmark: Any, record: Callable[..., None]) -> None:
    """Times as many steps as bring the gap below scikit-learn's, in float64 as that computes."""
    from sklearn.decomposition import sparse_encode

    benchmark.group = f"sparse codes of {count} patches"
    data, atoms = problem(count)
    encode = functools.partial(sparse_encode, data, atoms, algorithm=algorithm, alpha=sparse.WEIGHT)
    allowed = sparse.gap(encode(), data, atoms)
    codes = sparse.Codes(data, atoms, torch.float64)

    def reached(steps: int) -> float:
        return sparse.gap(codes.run(steps).numpy(), data, atoms)

    least, most = 0, 64
    while most < MOST and reached(most) > allowed:
        least, most = most, 2 * most
    while most - least > max(1, most // 50):
        middle = (least + most) // 2
        least, most = (least, middle) if reached(middle) <= allowed else (middle, most)
    require(reached(most), allowed, f"after {most} steps the gap is")
    timed = timing.alternate(
        benchmark, functools.partial(codes.run, most), {algorithm: encode}, budget=3.0, rounds=(2, 20)
    )
    if timed is None:
        return
    record(
        kind="sparse",
        problem=f"{count:,} patches of {sparse.SIDE} x {sparse.SIDE}, {sparse.ATOMS} atoms",
        contender=algorithm,
        gap=allowed,
        steps=most,
        seconds=timed.seconds,
        theirs=timed.baselines[algorithm],
        over=timed.ratios[algorithm],
    )
