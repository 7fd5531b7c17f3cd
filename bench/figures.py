"""The pictures of results, each result a row of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import matplotlib

from .result import COLOURS, Result, Row, grouped, short, unique
from .tables import MARK, sweeps

if TYPE_CHECKING:
    from pathlib import Path

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SPARE_COLOURS = ("#31a354", "#756bb1", "#dd1c77", "#8c6d31")
VARIED = {  # what the scaling benchmark varies, in the words of the axes
    "width": "width of every hidden layer",
    "depth": "hidden layers",
    "batch": "samples in the batch",
    "steps": "E-steps",
}


def speed(results: list[Result], path: Path) -> None:
    """Operators as fractions of a ceiling, EM batches as multiples of the ideal time."""
    bars = max(max(len(_with_fraction(r)), sum(map(len, r.batches().values()))) for r in results)

    def draw(part: Any, result: Result) -> None:
        left, right = part.subplots(1, 2)
        _bars(
            left,
            grouped(_with_fraction(result), lambda row: f"{row['case']}\n{row['size']}"),
            name="contender",
            figure="fraction",
            title="Operators: fraction of the rate that the machine allows",
            axis="of the copy rate (of the matrix-product rate for [256, 256]); more is better",
        )
        _bars(
            right,
            {"\n".join(filter(None, at)): rows for at, rows in result.batches().items()},
            name="loop",
            figure="multiple_of_ideal",
            title="EM batch, and its E-steps alone: multiples of the ideal time",
            axis="time / ideal time, logarithmic; less is better",
            log=True,
        )

    _save(results, path, (15, 2.2 + 0.17 * bars), draw)


def scaling(results: list[Result], path: Path) -> None:
    """How the time of an EM batch grows, in four panels: what is varied in each, the rest as in the base."""

    def draw(part: Any, result: Result) -> None:
        rows = result.of("scaling")
        found = sweeps(rows)
        for axes, (variable, words) in zip(part.subplots(2, 2, sharey=True).flat, VARIED.items(), strict=True):
            axes.set_title(f"{variable.capitalize()}", loc="left", fontsize=11, fontweight="bold")
            axes.set_xlabel(words, fontsize=9)
            if variable not in found:
                _not_measured(axes)
                continue
            at = [value for value, _ in found[variable]]
            for label, figure, style in (
                ("plain", "plain_seconds", {"color": COLOURS["plain, native"], "marker": "o"}),
                ("InferenceLoop", "seconds", {"color": COLOURS["InferenceLoop, native"], "marker": "o"}),
                ("ideal", "ideal_seconds", {"color": "black", "linestyle": "--", "linewidth": 0.8}),
            ):
                axes.plot(at, [1e3 * row[figure] for _, row in found[variable]], label=label, **style)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(at, [str(value) for value in at])
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_ylabel("ms per EM batch", fontsize=9)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(fontsize=8, loc="upper left")
        if rows:
            part.supxlabel(f"one thing varied around {rows[0]['base']}; logarithmic; less is better", fontsize=9)

    _save(results, path, (11, 9), draw)


# who is in the picture of equilibria: in words, and its colour
RACERS = {
    "Accelerated()": ("pyromancy, Accelerated()", "#d95f0e"),
    "descent, best rate": ("pyromancy, descent at its best rate", "#fdae6b"),
    "JAX descent, same rate": ("JAX, descent at that rate", "#4d5359"),
    "diffrax Heun, PID": ("diffrax, Heun with a PID controller", "#7d848d"),
}


def equilibrium(results: list[Result], path: Path) -> None:
    """How the gap to the minimum closes over time, on the first problem of each result; dots are what was timed."""

    def draw(part: Any, result: Result) -> None:
        axes, rows = part.subplots(), result.of("equilibrium")
        rows = [row for row in rows if row["problem"] == rows[0]["problem"] and row["contender"] in RACERS]
        rows = [row for row in rows if any(row["seconds"].values())]
        if not rows:
            _not_measured(axes)
            return
        for row in rows:
            label, colour = RACERS[row["contender"]]
            timed = [(row["sweeps"][gap], 1e3 * s) for gap, s in row["seconds"].items() if s is not None]
            sweeps_at, ms = zip(*timed, strict=True)
            if row["seconds"].get("0.01"):
                mark = MARK if row["disturbed"] else ""
                label = f"{label}: {mark}{short(1e3 * row['seconds']['0.01'])} ms to 1%"
            along = [(n, gap) for n, gap in row["curve"] if 0 < n <= sweeps_at[-1]]
            at = [_between(n, (0, *sweeps_at), (0.0, *ms)) for n, _ in along]
            axes.plot(at, [gap for _, gap in along], color=colour, label=label)
            axes.plot(ms, [dict(along)[n] for n in sweeps_at], "o", color=colour, markersize=4)
        axes.set_title(f"Inference to equilibrium: {rows[0]['problem']}", loc="left", fontsize=11, fontweight="bold")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("ms since the forward sweep", fontsize=9)
        axes.set_ylabel("share of the gap F - F* that is left", fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, loc="lower right", framealpha=0.95)

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pyromancy"}):
        _save(results, path, (8, 4.5), draw)


def _between(x: float, xs: tuple[float, ...], ys: tuple[float, ...]) -> float:
    """On the line through these points, the first of which has the least x."""
    for i in range(1, len(xs)):
        if x <= xs[i]:
            return ys[i - 1] + (ys[i] - ys[i - 1]) * (x - xs[i - 1]) / max(xs[i] - xs[i - 1], 1)
    return ys[-1]


def _save(results: list[Result], path: Path, size: tuple[float, float], draw: Callable[[Any, Result], None]) -> None:
    figure = plt.figure(figsize=(size[0], size[1] * len(results)), layout="constrained")
    parts = figure.subfigures(len(results), 1, squeeze=False)
    for result, part in zip(results, parts.flat, strict=True):
        part.suptitle(f"{result.title}\n{result.ceilings}", fontsize=11)
        draw(part, result)
    figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _with_fraction(result: Result) -> list[Row]:
    return [row for row in result.of("operator") if row["fraction"] is not None]


def _not_measured(axes: Any) -> None:
    axes.text(0.5, 0.5, "not measured in this run", ha="center", va="center", transform=axes.transAxes)
    axes.set_axis_off()


def _bars(
    axes: Any,
    groups: dict[str, list[Row]],
    *,
    name: str,
    figure: str,
    title: str,
    axis: str,
    log: bool = False,
) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    if not groups:
        _not_measured(axes)
        return
    names = unique(row[name] for rows in groups.values() for row in rows)
    spare = iter(SPARE_COLOURS * len(names))
    colours = {n: COLOURS.get(n) or next(spare) for n in names}
    places: dict[str, list[tuple[float, float]]] = {n: [] for n in names}  # from the top, and length
    ticks, end = [], 0.0
    for rows in groups.values():
        for i, row in enumerate(sorted(rows, key=lambda row: names.index(row[name]))):
            places[row[name]].append((end + i, row[figure]))
        ticks.append(end + (len(rows) - 1) / 2)
        end += len(rows) + 1  # a gap as wide as a bar
    for n in names:
        drawn = axes.barh(*zip(*places[n], strict=True), height=0.92, color=colours[n], label=n)
        background = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
        axes.bar_label(drawn, fmt=short if log else "%.2f", padding=3, fontsize=7, bbox=background)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        lengths = [row[figure] for rows in groups.values() for row in rows]
        axes.set_xlim(min(0.5, *lengths) / 2, max(2, *lengths) * 2.5)  # room for the figures
    axes.axvline(1, color="black", linewidth=0.8, linestyle="--", zorder=0.5)
    axes.set_yticks(ticks, groups, fontsize=9)
    axes.set_ylim(end - 1, -1)
    axes.set_xlabel(axis, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="lower right", framealpha=0.95)
