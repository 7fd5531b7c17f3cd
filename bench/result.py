"""A result file of ``pytest bench --benchmark-json=RESULT.json``, and the order and colours of who is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]  # the figures of one benchmark

DISTURBED = 0.3  # a benchmark is, when the interquartile range of its times exceeds this part of their median
REFERENCES = ("eager", "torch.compile", "backprop", "pyromancy-ai", "JAX")  # everything else is served by this package
COLOURS = {
    "eager": "#b8bcc2",
    "torch.compile": "#7d848d",
    "backprop": "#b8bcc2",
    "pyromancy-ai": "#7d848d",
    "JAX": "#4d5359",
    "reference": "#9ecae1",
    "plain, reference": "#9ecae1",
    "native": "#d95f0e",
    "plain, native": "#fdae6b",
    "InferenceLoop, reference": "#4292c6",
    "InferenceLoop, native": "#d95f0e",
    "EM, reference": "#2171b5",
    "EM, native": "#a63603",
    "EM.epoch, reference": "#08519c",
    "EM.epoch, native": "#7f2704",
}


@dataclass(frozen=True)
class Result:
    """One result file.

    Attributes:
        machine: device, versions, measured ceilings.
        date: of the run.
        rows: the figures by kind of benchmark, and in each under "disturbed" whether its times scatter too much.
    """

    machine: dict[str, Any]
    date: str
    rows: dict[str, list[Row]]

    @staticmethod
    def parse(content: dict[str, Any]) -> Result:
        """Pick this suite's figures out of what pytest-benchmark writes; KeyError or the like where they lack."""
        machine = content["machine_info"]["bench"]
        rows = [{**bench["extra_info"], "disturbed": _disturbed(bench.get("stats"))} for bench in content["benchmarks"]]
        return Result(machine, content["datetime"][:10], grouped(rows, lambda row: row["kind"]))

    def of(self, kind: str) -> list[Row]:
        """The figures of one kind; none where the run did not measure it."""
        return self.rows.get(kind, [])

    @property
    def title(self) -> str:
        """Device, versions and date."""
        m = self.machine
        versions = f"pyromancy {m['pyromancy']}, torch {m['torch']}" + (f", jax {m['jax']}" if m.get("jax") else "")
        return f"{m['device']} ({m['instruction_set']}), {m['threads']} threads; {versions}; {self.date}"

    @property
    def ceilings(self) -> str:
        """What the machine could do in that run."""
        m = self.machine
        return f"copy rate {m['copy_gb_per_s']:.1f} GB/s, matrix-product rate {m['product_gflop_per_s']:.0f} GFLOP/s"

    def batches(self) -> dict[tuple[str, str], list[Row]]:
        """EM batches by setting, each followed by its E-steps alone: by setting and which of the two."""
        parts = {"em-batch": "", "e-steps": "E-steps alone"}
        found = [(row["setting"], parts[kind], row) for kind in parts for row in self.of(kind)]
        settings = list(dict.fromkeys(setting for setting, _, _ in found))
        found.sort(key=lambda entry: settings.index(entry[0]))
        return {at: [row for _, _, row in rows] for at, rows in grouped(found, lambda entry: entry[:2]).items()}


def _disturbed(stats: dict[str, float] | None) -> bool:
    """Whether a figure is no measurement, because the times of its rounds lie too far apart."""
    return stats is not None and stats["iqr"] > DISTURBED * stats["median"]


def unique(names: Iterable[str]) -> list[str]:
    """In the order of the picture: references first, then ours from slow to fast."""
    order = list(COLOURS)
    return sorted(dict.fromkeys(names), key=lambda n: order.index(n) if n in order else len(order))


def grouped(rows: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
