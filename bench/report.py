#!/usr/bin/env python3
"""Turn result files of ``pytest bench --benchmark-json=RESULT.json`` into one table and one picture.

python bench/report.py RESULT.json [MORE.json] --table out.md --picture out.png
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REFERENCES = ("eager", "torch.compile", "backprop", "pyromancy-ai")  # everything else is served by this package
COLOURS = {
    "eager": "#b8bcc2",
    "torch.compile": "#7d848d",
    "backprop": "#b8bcc2",
    "pyromancy-ai": "#7d848d",
    "reference": "#9ecae1",
    "plain, reference": "#9ecae1",
    "native": "#d95f0e",
    "plain, native": "#fdae6b",
    "InferenceLoop, reference": "#4292c6",
    "InferenceLoop, native": "#d95f0e",
}
SPARE_COLOURS = ("#31a354", "#756bb1", "#dd1c77", "#8c6d31")


class ReportError(Exception):
    """A file that cannot be reported, with the reason."""


@dataclass(frozen=True)
class Table:
    """A table of text."""

    title: str
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table under a heading."""
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        return f"### {self.title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass(frozen=True)
class Result:
    """One result file.

    Attributes:
        machine: device, versions, measured ceilings.
        date: of the run.
        operators: figures of the operators, one dict per row.
        batches: figures of the EM batches.
    """

    machine: dict[str, Any]
    date: str
    operators: list[dict[str, Any]]
    batches: list[dict[str, Any]]

    @staticmethod
    def load(path: Path) -> Result:
        """Read a result file.

        Raises:
            ReportError: there is none, or something else wrote it.
        """
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError:
            raise ReportError(f"{path}: no such file; `pytest bench --benchmark-json={path}` writes one") from None
        except OSError as error:
            raise ReportError(f"{path}: cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ReportError(f"{path}: not a result file, because it is not JSON: {error}") from None
        try:
            result = Result.parse(content)
            _ = result.title, result.ceilings, result.tables()  # every figure that these need is there
        except (KeyError, TypeError, AttributeError) as error:
            raise ReportError(
                f"{path}: not a result file of this suite ({type(error).__name__}: {error}); "
                f"`pytest bench --benchmark-json={path}` writes one"
            ) from None
        if not (result.operators or result.batches):
            raise ReportError(f"{path}: holds no benchmarks; was its run interrupted, or timing disabled?")
        return result

    @staticmethod
    def parse(content: dict[str, Any]) -> Result:
        """Pick this suite's figures out of what pytest-benchmark writes; KeyError or the like where they lack."""
        machine = content["machine_info"]["bench"]
        rows = [bench["extra_info"] for bench in content["benchmarks"]]
        return Result(
            machine=machine,
            date=content["datetime"][:10],
            operators=[row for row in rows if row["kind"] == "operator"],
            batches=[row for row in rows if row["kind"] == "em-batch"],
        )

    @property
    def title(self) -> str:
        """Device, versions and date."""
        m = self.machine
        return (
            f"{m['device']} ({m['instruction_set']}), {m['threads']} threads; "
            f"pyromancy {m['pyromancy']}, torch {m['torch']}; {self.date}"
        )

    @property
    def ceilings(self) -> str:
        """What the machine could do in that run."""
        m = self.machine
        return f"copy rate {m['copy_gb_per_s']:.1f} GB/s, matrix-product rate {m['product_gflop_per_s']:.0f} GFLOP/s"

    def tables(self) -> list[Table]:
        """A table for each kind of figure that the run measured."""
        compared = [row for row in self.batches if row["over_pyromancy_ai"] is not None]
        kinds = ((_operators, self.operators), (_batches, self.batches), (_over_pyromancy_ai, compared))
        return [make(rows) for make, rows in kinds if rows]


def _operators(rows: list[dict[str, Any]]) -> Table:
    names = _unique(row["contender"] for row in rows)
    ours = [n for n in names if n not in REFERENCES]
    others = [n for n in names if n != "eager"]
    header = ["operator", "size", "eager", *(f"{n} over eager" for n in others)]
    best = ours[-1:]
    header += [f"{n}: {what}" for n in best for what in ("time", "rate", "of ceiling")]
    lines = []
    for (case, size), group in _grouped(rows, lambda row: (row["case"], tuple(row["size"]))).items():
        by = {row["contender"]: row for row in group}
        line = [case, " x ".join(map(str, size)), _cell(by, "eager", lambda r: _time(r["seconds"]))]
        line += [_cell(by, n, lambda r: f"{r['over_eager']:.3g}x") for n in others]
        for n in best:
            line.append(_cell(by, n, lambda r: _time(r["seconds"])))
            line.append(_cell(by, n, lambda r: f"{r['rate']:.1f} {r['unit']}"))
            line.append(_cell(by, n, lambda r: "" if r["fraction"] is None else f"{r['fraction']:.2f}"))
        lines.append(line)
    return Table("Operators", header, lines)


def _batches(rows: list[dict[str, Any]]) -> Table:
    names = _unique(row["loop"] for row in rows)
    header = ["EM batch", "ideal", *names]
    lines = []
    for setting, group in _grouped(rows, lambda row: row["setting"]).items():
        by = {row["loop"]: row for row in group}
        line = [setting, _time(group[0]["ideal_seconds"])]
        line += [_cell(by, n, lambda r: f"{_time(r['seconds'])} = {_short(r['multiple_of_ideal'])}x") for n in names]
        lines.append(line)
    return Table("EM batch, and how many times the ideal time it takes", header, lines)


def _over_pyromancy_ai(rows: list[dict[str, Any]]) -> Table:
    names = _unique(row["loop"] for row in rows)
    lines = []
    for setting, group in _grouped(rows, lambda row: row["setting"]).items():
        by = {row["loop"]: row for row in group}
        lines.append([setting, *(_cell(by, n, lambda r: f"{r['over_pyromancy_ai']:.3g}x") for n in names)])
    return Table("EM batch, and how many times faster than pyromancy-ai it is", ["EM batch", *names], lines)


def _unique(names: Any) -> list[str]:
    """In the order of the picture: references first, then ours from slow to fast."""
    order = list(COLOURS)
    return sorted(dict.fromkeys(names), key=lambda n: order.index(n) if n in order else len(order))


def _grouped(rows: list[dict[str, Any]], key: Any) -> dict[Any, list[dict[str, Any]]]:
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _cell(by: dict[str, dict[str, Any]], name: str, text: Any) -> str:
    return text(by[name]) if name in by else ""


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def markdown(results: list[Result]) -> str:
    parts = []
    for result in results:
        parts += [f"## {result.title}", f"Measured in the run: {result.ceilings}."]
        parts += [table.markdown() for table in result.tables()]
    return "\n\n".join(parts) + "\n"


def show(results: list[Result]) -> None:
    """Print the tables."""
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(width=None if sys.stdout.isatty() else 180)
    for result in results:
        console.print(f"\n[bold]{result.title}[/bold]\n{result.ceilings}")
        for table in result.tables():
            rich = RichTable(title=table.title, title_justify="left")
            for i, name in enumerate(table.header):
                rich.add_column(name, justify="right" if i else "left")
            for row in table.rows:
                rich.add_row(*row)
            console.print(rich)


def picture(results: list[Result], path: Path) -> None:
    """Draw, one row per result: operators as fractions of a ceiling, EM batches as multiples of the ideal time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    bars = max(max(len(_with_fraction(r)), len(r.batches)) for r in results)
    height = 2.2 + 0.17 * bars
    figure = plt.figure(figsize=(15, height * len(results)), layout="constrained")
    for result, part in zip(results, _as_list(figure.subfigures(len(results), 1)), strict=True):
        part.suptitle(f"{result.title}\n{result.ceilings}", fontsize=11)
        left, right = part.subplots(1, 2)
        _draw(
            left,
            _grouped(_with_fraction(result), _operator_label),
            name="contender",
            figure="fraction",
            title="Operators: fraction of the rate that the machine allows",
            axis="of the copy rate (of the matrix-product rate for [256, 256]); more is better",
        )
        _draw(
            right,
            _grouped(result.batches, lambda row: row["setting"]),
            name="loop",
            figure="multiple_of_ideal",
            title="EM batch: multiples of the ideal time",
            axis="time / ideal time, logarithmic; less is better",
            log=True,
        )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _with_fraction(result: Result) -> list[dict[str, Any]]:
    return [row for row in result.operators if row["fraction"] is not None]


def _operator_label(row: dict[str, Any]) -> str:
    return f"{row['case']}\n{row['size']}"


def _as_list(parts: Any) -> list[Any]:
    return list(parts) if hasattr(parts, "__len__") else [parts]


def _draw(
    axes: Any,
    groups: dict[str, list[dict[str, Any]]],
    *,
    name: str,
    figure: str,
    title: str,
    axis: str,
    log: bool = False,
) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    if not groups:
        axes.text(0.5, 0.5, "not measured in this run", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    names = _unique(row[name] for rows in groups.values() for row in rows)
    spare = iter(SPARE_COLOURS * len(names))
    colours = {n: COLOURS.get(n) or next(spare) for n in names}
    thick = 0.8 / len(names)
    for i, n in enumerate(names):
        at, lengths = [], []
        for g, rows in enumerate(groups.values()):
            for row in rows:
                if row[name] == n:
                    at.append(g - 0.4 + (i + 0.5) * thick)
                    lengths.append(row[figure])
        drawn = axes.barh(at, lengths, height=0.92 * thick, color=colours[n], label=n)
        background = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
        axes.bar_label(drawn, fmt=_short if log else "%.2f", padding=3, fontsize=7, bbox=background)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        lengths = [row[figure] for rows in groups.values() for row in rows]
        axes.set_xlim(min(0.5, *lengths) / 2, max(2, *lengths) * 2.5)  # room for the figures
    axes.axvline(1, color="black", linewidth=0.8, linestyle="--", zorder=0.5)
    axes.set_yticks(range(len(groups)), groups, fontsize=9)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlabel(axis, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="lower right", framealpha=0.95)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Tables and a picture of result files of `pytest bench`.")
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    parser.add_argument("--table", type=Path, metavar="OUT.md", help="write the tables here, as markdown")
    parser.add_argument("--picture", type=Path, metavar="OUT.png", help="draw the picture here")
    args = parser.parse_args(argv)
    try:
        results = [Result.load(path) for path in args.results]
        show(results)
        try:
            if args.table:
                args.table.write_text(markdown(results))
            if args.picture:
                picture(results, args.picture)
        except OSError as error:
            raise ReportError(f"{error.filename}: cannot be written: {error.strerror}") from None
    except ReportError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
