"""The tables of a result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .result import REFERENCES, Result, Row, grouped, short, unique


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


def tables(result: Result) -> list[Table]:
    """A table for each kind of figure that the run measured; KeyError or the like where a figure lacks."""
    compared = [row for row in result.of("em-batch") if row["over_pyromancy_ai"] is not None]
    kinds: list[tuple[Any, Any]] = [
        (_operators, result.of("operator")),
        (_batches, result.batches()),
        (_over_pyromancy_ai, compared),
        (_scaling, result.of("scaling")),
        (_general, result.of("general")),
        (_incremental, result.of("incremental")),
    ]
    return [make(rows) for make, rows in kinds if rows]


def _operators(rows: list[Row]) -> Table:
    names = unique(row["contender"] for row in rows)
    ours = [n for n in names if n not in REFERENCES]
    others = [n for n in names if n != "eager"]
    header = ["operator", "size", "eager", *(f"{n} over eager" for n in others)]
    best = ours[-1:]
    header += [f"{n}: {what}" for n in best for what in ("time", "rate", "of ceiling")]
    lines = []
    for (case, size), group in grouped(rows, lambda row: (row["case"], tuple(row["size"]))).items():
        by = {row["contender"]: row for row in group}
        line = [case, " x ".join(map(str, size)), _cell(by, "eager", lambda r: _time(r["seconds"]))]
        line += [_cell(by, n, lambda r: f"{r['over_eager']:.3g}x") for n in others]
        for n in best:
            line.append(_cell(by, n, lambda r: _time(r["seconds"])))
            line.append(_cell(by, n, lambda r: f"{r['rate']:.1f} {r['unit']}"))
            line.append(_cell(by, n, lambda r: "" if r["fraction"] is None else f"{r['fraction']:.2f}"))
        lines.append(line)
    return Table("Operators", header, lines)


def _batches(groups: dict[tuple[str, str], list[Row]]) -> Table:
    names = unique(row["loop"] for group in groups.values() for row in group)
    header = ["EM batch", "ideal", *names]
    lines = []
    for at, group in groups.items():
        by = {row["loop"]: row for row in group}
        line = [", ".join(filter(None, at)), _time(group[0]["ideal_seconds"])]
        line += [_cell(by, n, lambda r: f"{_time(r['seconds'])} = {short(r['multiple_of_ideal'])}x") for n in names]
        lines.append(line)
    return Table("EM batch, and how many times the ideal time it takes", header, lines)


def _over_pyromancy_ai(rows: list[Row]) -> Table:
    names = unique(row["loop"] for row in rows)
    lines = []
    for setting, group in grouped(rows, lambda row: row["setting"]).items():
        by = {row["loop"]: row for row in group}
        lines.append([setting, *(_cell(by, n, lambda r: f"{r['over_pyromancy_ai']:.3g}x") for n in names)])
    return Table("EM batch, and how many times faster than pyromancy-ai it is", ["EM batch", *names], lines)


def _scaling(rows: list[Row]) -> Table:
    header = ["varied", "ideal", "InferenceLoop", "of ideal", "plain", "plain over InferenceLoop"]
    lines = [
        [
            f"{variable} {value}",
            _time(row["ideal_seconds"]),
            _time(row["seconds"]),
            f"{short(row['seconds'] / row['ideal_seconds'])}x",
            _time(row["plain_seconds"]),
            f"{row['over_plain']:.3g}x",
        ]
        for variable, points in sweeps(rows).items()
        for value, row in points
    ]
    return Table(f"EM batch, one thing varied around {rows[0]['base']}", header, lines)


def _general(rows: list[Row]) -> Table:
    header = ["EM batch of no chain", "plain", "InferenceLoop", "plain over InferenceLoop", "executor"]
    lines = [
        [
            f"{row['network']}, batch {row['batch']}, {row['steps']} E-steps",
            _time(row["plain_seconds"]),
            _time(row["seconds"]),
            f"{row['over_plain']:.3g}x",
            row["executor"],
        ]
        for row in rows
    ]
    return Table("EM batch of networks that are no chain", header, lines)


def _incremental(rows: list[Row]) -> Table:
    header = ["T E-steps and T M-steps", "E-steps in a row", "by turns", "more by turns", "more, of the E-steps' time"]
    lines = [
        [
            f"{row['setting']}, {row['loop']}, T = {row['steps']}",
            _time(row["in_a_row_seconds"]),
            _time(row["seconds"]),
            f"{100 * row['overhead_of_step']:.3g}%",
            f"{100 * row['overhead_of_estep']:.3g}%",
        ]
        for row in rows
    ]
    return Table("Incremental inference learning, and what an M-step after every E-step adds", header, lines)


def sweeps(rows: list[Row]) -> dict[str, list[tuple[int, Row]]]:
    """By what is varied, the points in order."""
    found = [(variable, value, row) for row in rows for variable, value in row["at"].items()]
    return {
        variable: sorted(((value, row) for _, value, row in points), key=lambda point: point[0])
        for variable, points in grouped(found, lambda point: point[0]).items()
    }


def _cell(by: dict[str, Row], name: str, text: Any) -> str:
    return text(by[name]) if name in by else ""


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
