"""Every operator, on each backend, against plain eager PyTorch and `torch.compile` of the same formula."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyromancy import backends
from pyromancy.ops import schema

from . import timing
from .conftest import usable_backends
from .operators import BY_NAME, CASES, FLOAT, OPERATORS, SIZES, Case, bind, check, results

if TYPE_CHECKING:
    from collections.abc import Callable


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "contender" in metafunc.fixturenames:
        small = metafunc.config.getoption("--sizes") == "small"
        metafunc.parametrize(
            ("name", "size", "contender"),
            [
                pytest.param(case.name, size, contender, id=f"{case.name}-{size}-{contender}".replace(" ", ""))
                for case in CASES
                for size in case.sizes
                if not (small and size == "large")
                for contender in ("eager", "torch.compile", *usable_backends())
            ],
        )


@functools.lru_cache(maxsize=1)
def expectation(case: Case, size: str) -> tuple[list[Tensor], list[Tensor]]:
    """Arguments, and what the formula makes of them in float64."""
    inputs = case.inputs(*SIZES[size])
    return inputs, results(case, case.formula, [t.double() for t in inputs])


class Called(TorchDispatchMode):
    """Collects the names of this package's operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == schema.NAMESPACE:
            self.names.add(func._schema.name.removeprefix(f"{schema.NAMESPACE}::"))
        return func(*args, **(kwargs or {}))


def test_every_operator_is_timed() -> None:
    assert [name for name, cases in OPERATORS.items() if not cases] == []
    for case in CASES:
        with Called() as called:
            bind(case, case.ours, case.inputs(*SIZES["matrix"]))()  # small energies take PyTorch's own operators
        assert called.names == set(case.operators), case.name


@pytest.fixture(scope="module")
def copy() -> Callable[[], object]:
    return timing.copier()


@pytest.mark.filterwarnings("ignore::FutureWarning:torch")  # from inside torch.compile
def test_operator(
    name: str,
    size: str,
    contender: str,
    copy: Callable[[], object],
    ceilings: timing.Ceilings,
    benchmark: Any,
    record: Callable[..., None],
) -> None:
    case, (batch, width) = BY_NAME[name], SIZES[size]
    benchmark.group = f"{name} [{batch}, {width}]"
    inputs, expected = expectation(case, size)
    function = case.formula if contender in ("eager", "torch.compile") else case.ours
    if contender == "torch.compile":
        torch._dynamo.reset()
        function = torch.compile(case.formula, fullgraph=True, dynamic=False)
    with backends.use(contender) if function is case.ours else nullcontext():
        try:
            got = results(case, function, inputs)
        except Exception as reason:
            if contender == "torch.compile":  # needs a compiler
                pytest.skip(f"torch.compile does not run here: {type(reason).__name__}: {reason}"[:200])
            raise
        check(got, expected, max(batch, width))
        del got

        own = [t.detach().clone() for t in inputs]
        baselines = {} if contender == "eager" else {"eager": bind(case, case.formula, own)}
        if size == "large":
            baselines["copy"] = copy
        timed = timing.alternate(benchmark, bind(case, function, own), baselines)
    if timed is None:
        return

    rate = (case.flops * batch * width**2 or case.streams * FLOAT * batch * width) / timed.seconds
    fraction = None  # of a ceiling; small tensors stay in the cache, and calling costs more than moving them
    if case.flops:
        fraction = rate / ceilings.product
    elif size == "large":
        fraction = timed.ratios["copy"] * case.streams * FLOAT * batch * width / timing.COPY_BYTES
    record(
        kind="operator",
        case=case.name,
        size=[batch, width],
        contender=contender,
        seconds=timed.seconds,
        rate=rate / 1e9,
        unit="GFLOP/s" if case.flops else "GB/s",
        fraction=fraction,
        over_eager=timed.ratios.get("eager", 1.0),
    )
