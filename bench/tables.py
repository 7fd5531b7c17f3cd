"""The tables of a result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from .result import DISTURBED, REFERENCES, Result, Row, grouped, short, unique

MARK = "~"


@dataclass(frozen=True)
class Table:
    """A table of text."""

    title: str
    header: list[str]
    rows: list[list[str]]

    @property
    def note(self) -> str:
        """What the mark means, where the table has one."""
        if not any(cell.startswith(MARK) for row in self.rows for cell in row):
            return ""
        return f"{MARK} disturbed: the interquartile range of the times exceeds {DISTURBED} of their median"

    def markdown(self) -> str:
        """The table under a heading."""
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        text = f"### {self.title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{text}\n\n{self.note}" if self.note else text


def tables(result: Result) -> list[Table]:
    """A table for each kind of figure that the run measured; KeyError or the like where a figure lacks."""
    kinds: list[tuple[Any, Any]] = [
        (_operators, result.of("operator")),
        (_batches, result.batches()),
        (partial(_over, "pyromancy-ai", "over_pyromancy_ai"), _having(result.of("em-batch"), "over_pyromancy_ai")),
        (partial(_over, "JAX", "over_jax"), _having(result.of("em-batch"), "over_jax")),
        (partial(_over, "InferenceLoop", "over_inference_loop"), _having(result.of("em-batch"), "over_inference_loop")),
        (_scaling, result.of("scaling")),
        (_general, result.of("general")),
        (_incremental, result.of("incremental")),
        (_equilibrium, result.of("equilibrium")),
        (_sweep_cost, result.of("sweep-cost")),
        (_sparse, result.of("sparse")),
        (_laws, result.of("laws")),
        (_networks, _having(result.of("network"), "over_jax")),
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


def _having(rows: list[Row], ratio: str) -> list[Row]:
    """The rows with a ratio; files of before it was measured have none."""
    return [row for row in rows if row.get(ratio) is not None]


def _over(baseline: str, ratio: str, rows: list[Row]) -> Table:
    names = unique(row["loop"] for row in rows)
    lines = []
    for setting, group in grouped(rows, lambda row: row["setting"]).items():
        by = {row["loop"]: row for row in group}
        lines.append([setting, *(_cell(by, n, lambda r: f"{r[ratio]:.3g}x") for n in names)])
    return Table(f"EM batch, and how many times faster than {baseline} it is", ["EM batch", *names], lines)


def _scaling(rows: list[Row]) -> Table:
    header = ["varied", "ideal", "InferenceLoop", "of ideal", "plain", "plain over InferenceLoop"]
    lines = [
        [
            f"{variable} {value}",
            _time(row["ideal_seconds"]),
            *_marked(
                row,
                _time(row["seconds"]),
                f"{short(row['seconds'] / row['ideal_seconds'])}x",
                _time(row["plain_seconds"]),
                f"{row['over_plain']:.3g}x",
            ),
        ]
        for variable, points in sweeps(rows).items()
        for value, row in points
    ]
    return Table(f"EM batch, one thing varied around {rows[0]['base']}", header, lines)


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3g}x"


def _general(rows: list[Row]) -> Table:
    header = [
        "EM batch",
        "plain",
        "InferenceLoop",
        "plain over InferenceLoop",
        "EM",
        "plain over EM",
        "in processor time",
        "compiled over EM",
        "E-steps, plain",
        "E-steps, compiled",
        "executor",
    ]
    lines = [
        [
            f"{row['network']}, batch {row['batch']}, {row['steps']} E-steps",
            *_marked(
                row,
                _time(row["plain_seconds"]),
                _time(row["seconds"]),
                f"{row['over_plain']:.3g}x",
                _time(row["em_seconds"]) if "em_seconds" in row else "-",  # which older results lack
                *(_times(row.get(name)) for name in ("plain_over_em", "processor_over_em")),
                _times(row.get("batches_over", {}).get("torch.compile")),
                *(_times(row.get("esteps_over", {}).get(name)) for name in ("autograd", "torch.compile")),
            ),
            row["executor"],
        ]
        for row in rows
    ]
    return Table("EM batch of networks other than chains", header, lines)


def _incremental(rows: list[Row]) -> Table:
    header = ["T E-steps and T M-steps", "back to back", "interleaved", "overhead", "overhead, of the E-steps' time"]
    lines = [
        [
            f"{row['setting']}, {row['loop']}, T = {row['steps']}",
            *_marked(
                row,
                _time(row["in_a_row_seconds"]),
                _time(row["seconds"]),
                f"{100 * row['overhead_of_step']:.3g}%",
                f"{100 * row['overhead_of_estep']:.3g}%",
            ),
        ]
        for row in rows
    ]
    return Table("Incremental inference learning, and what an M-step after every E-step adds", header, lines)


def _equilibrium(rows: list[Row]) -> Table:
    gaps = list(rows[0]["sweeps"])
    header = ["problem", "method", "rate", *(f"to {gap}" for gap in gaps), "a sweep", "over Accelerated(), to 0.01"]
    lines = []
    for row in rows:
        given_up = f"> {row['given_up']:,.0f}"
        reached = [
            given_up if n is None else f"{n:,.0f} = {_time(row['seconds'][gap])}" for gap, n in row["sweeps"].items()
        ]
        over = "" if row["of_ours"] is None else f"{short(row['of_ours'])}x"
        rate = "" if row["rate"] is None else f"{row['rate']:.3g}"
        lines.append([row["problem"], row["contender"], rate, *_marked(row, *reached, _time(row["per_sweep"]), over)])
    return Table("Sweeps and time to a share of the gap to the minimum", header, lines)


def _sweep_cost(rows: list[Row]) -> Table:
    header = ["problem", "E-step of descent", "sweep of Accelerated()", "over descent"]
    lines = [
        [
            row["problem"],
            *_marked(row, _time(row["descent_seconds"]), _time(row["seconds"]), f"{row['over_descent']:.3g}x"),
        ]
        for row in rows
    ]
    return Table("What a sweep costs", header, lines)


def _sparse(rows: list[Row]) -> Table:
    header = ["sparse codes", "gap", "FISTA's steps", "FISTA", "scikit-learn's", "scikit-learn over FISTA"]
    lines = [
        [
            f"{row['problem']}, {row['contender']}",
            f"{row['gap']:.2g}",
            f"{row['steps']}",
            *_marked(row, _time(row["seconds"]), _time(row["theirs"]), f"{row['over']:.3g}x"),
        ]
        for row in rows
    ]
    return Table("Sparse codes to the duality gap of scikit-learn's", header, lines)


def _laws(rows: list[Row]) -> Table:
    header = ["EM batch", "a node's law", "EM", "all Gaussian", "over that", "JAX over EM"]
    has_jax = bool(_having(rows, "over_jax"))
    lines = []
    for row in rows:
        over = [f"{row['over_jax']:.3g}x"] if has_jax else []
        times = _time(row["seconds"]), _time(row["gaussian_seconds"])
        lines.append([row["setting"], row["law"], *_marked(row, *times, f"{row['over_gaussian']:.2f}", *over)])
    return Table("EM batch with another law, beside Gaussian nodes", header[: len(lines[0])], lines)


def _networks(rows: list[Row]) -> Table:
    header = ["EM batch", "EM", "JAX over EM", "processor time", "without E-steps", "JAX's", "JAX's over EM's"]
    header += ["products of an E-step", "XLA's count of it", "rate of E-steps"]
    least = "processor_seconds_of_products_and_adam"
    has_least = bool(_having(rows, least))
    header += ["products and Adam alone", "JAX's over these"] if has_least else []
    lines = []
    for row in rows:
        own, theirs, without = (
            row[f"{of}processor_seconds{end}"] for of, end in (("", ""), ("jax_", ""), ("", "_without_steps"))
        )
        rate = row["products"] * row["steps"] / (own - without)
        lines.append(
            [
                f"{row['network']}, batch {row['batch']}, {row['steps']} E-steps",
                *_marked(row, _time(row["seconds"]), f"{row['over_jax']:.3g}x"),
                *map(_time, (own, without, theirs)),
                f"{theirs / own:.3g}x",
                *(f"{row[count] / 1e6:.1f} Mflop" for count in ("products", "jax_flops")),
                f"{rate / 1e9:.0f} GFLOP/s",
                *([_time(row[least]), f"{theirs / row[least]:.3g}x"] if has_least else []),
            ]
        )
    return Table("Networks of Linear layers beside the JAX scan", header, lines)


def sweeps(rows: list[Row]) -> dict[str, list[tuple[int, Row]]]:
    """By what is varied, the points in order."""
    found = [(variable, value, row) for row in rows for variable, value in row["at"].items()]
    return {
        variable: sorted(((value, row) for _, value, row in points), key=lambda point: point[0])
        for variable, points in grouped(found, lambda point: point[0]).items()
    }


def _cell(by: dict[str, Row], name: str, text: Callable[[Row], str]) -> str:
    return _marked(by[name], text(by[name]))[0] if name in by else ""


def _marked(row: Row, *figures: str) -> list[str]:
    """Figures of a row, with the mark before each where the row is disturbed."""
    return [MARK + figure if row["disturbed"] and figure else figure for figure in figures]


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
