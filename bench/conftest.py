"""Options of the suite, what it measures once per run, and what it writes into result files."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cpuinfo
import pytest
import torch

import pyromancy
from pyromancy import backends

from . import report, rivals, timing
from .result import Result

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

ORACLE = pytest.StashKey["ModuleType | None"]()
CEILINGS = pytest.StashKey[timing.Ceilings]()
ROWS = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pyromancy")
    group.addoption(
        "--oracle", type=Path, metavar="DIR", help="folder with the package `pyromancy` of pyromancy-ai 0.0.1"
    )
    group.addoption("--sizes", choices=("small", "full"), default="full", help="small: a quick look")
    group.addoption(
        "--equilibria",
        choices=("one", "all"),
        default="one",
        help="all: every depth, activation and batch; about ten minutes",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.option.benchmark_columns is None:  # the tables at the end of the run say the rest
        config.option.benchmark_columns = ["min", "median", "iqr", "rounds"]
    folder = config.getoption("--oracle")
    config.stash[ORACLE] = None if folder is None else _load_oracle(folder)
    config.stash[ROWS] = []


def _load_oracle(folder: Path) -> ModuleType:
    """pyromancy-ai under the name ``pyromancy_ai``, beside ours."""
    package = folder / "pyromancy"
    if not (package / "__init__.py").is_file() or package.samefile(Path(pyromancy.__file__).parent):
        raise pytest.UsageError(
            f"--oracle needs a folder that holds the package of pyromancy-ai, got {folder}; make one with "
            "`pip install --no-deps --target DIR pyromancy-ai==0.0.1` (it imports einops)"
        )
    spec = importlib.util.spec_from_file_location(
        "pyromancy_ai", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def oracle(pytestconfig: pytest.Config) -> ModuleType | None:
    """pyromancy-ai, or None without ``--oracle``."""
    return pytestconfig.stash[ORACLE]


@pytest.fixture(scope="session", autouse=True)
def ceilings(pytestconfig: pytest.Config) -> timing.Ceilings:
    """Copy rate and matrix-product rate of this machine, now."""
    return pytestconfig.stash.setdefault(CEILINGS, timing.measure_ceilings())


@pytest.fixture
def record(request: pytest.FixtureRequest, benchmark: Any) -> Callable[..., None]:
    """Keeps the figures of a benchmark for the result file and the tables at the end of the run."""

    def keep(**figures: Any) -> None:
        benchmark.extra_info.update(figures)
        stats = benchmark.stats.stats
        scatter = {"iqr": stats.iqr, "median": stats.median}
        request.config.stash[ROWS].append({"extra_info": figures, "stats": scatter})

    return keep


def usable_backends() -> list[str]:
    """Backends that can serve the CPU here."""
    return [name for name in backends.BACKENDS if backends.available(name, "cpu")[0]]


def _machine(config: pytest.Config) -> dict[str, Any]:
    serving = next(s for s in backends.report() if s.device == "cpu")
    ceilings = config.stash.get(CEILINGS, None)
    return {
        "device": cpuinfo.get_cpu_info().get("brand_raw", "unknown CPU"),
        "instruction_set": serving.detail if serving.backend == "native" else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "pyromancy": pyromancy.__version__,
        "torch": torch.__version__,
        "jax": rivals.version_of_jax(),
        "copy_gb_per_s": ceilings and ceilings.copy / 1e9,
        "product_gflop_per_s": ceilings and ceilings.product / 1e9,
    }


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    for key in ("node", "processor", "python_build", "release", "cpu"):  # whose machine it is says nothing about speed
        machine_info.pop(key, None)
    machine_info["bench"] = _machine(config)


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    output_json["commit_info"] = {k: output_json["commit_info"].get(k) for k in ("id", "time", "dirty")}
    for bench in output_json["benchmarks"]:
        del bench["options"]
        bench["stats"].pop("data", None)  # single rounds: most of the file


def pytest_terminal_summary(config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, None)
    if rows:
        today = time.strftime("%Y-%m-%d")
        result = {"machine_info": {"bench": _machine(config)}, "datetime": today, "benchmarks": rows}
        report.show([Result.parse(result)])
