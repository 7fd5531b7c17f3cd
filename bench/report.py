#!/usr/bin/env python3
"""Turn result files of ``pytest bench --benchmark-json=RESULT.json`` into tables and pictures.

python bench/report.py RESULT.json [MORE.json] --table out.md --picture out.png --scaling growth.png
python bench/report.py RESULT.json --equilibrium race.svg
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

if not __package__:  # run as a script, it must still find its siblings (PEP 366)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = "bench"

from .result import Result
from .tables import tables


class ReportError(Exception):
    """A file that cannot be reported, with the reason."""


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
        _ = result.title, result.ceilings, tables(result)  # every figure that these need is there
    except (KeyError, TypeError, AttributeError) as error:
        raise ReportError(
            f"{path}: not a result file of this suite ({type(error).__name__}: {error}); "
            f"`pytest bench --benchmark-json={path}` writes one"
        ) from None
    if not tables(result):
        raise ReportError(f"{path}: holds no benchmarks; was its run interrupted, or timing disabled?")
    return result


def markdown(results: list[Result]) -> str:
    parts = []
    for result in results:
        parts += [f"## {result.title}", f"Measured in the run: {result.ceilings}."]
        parts += [table.markdown() for table in tables(result)]
    return "\n\n".join(parts) + "\n"


def show(results: list[Result]) -> None:
    """Print the tables."""
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(width=None if sys.stdout.isatty() else 180)
    for result in results:
        console.print(f"\n[bold]{result.title}[/bold]\n{result.ceilings}")
        for table in tables(result):
            rich = RichTable(title=table.title, title_justify="left", caption=table.note, caption_justify="left")
            for i, name in enumerate(table.header):
                rich.add_column(name, justify="right" if i else "left")
            for row in table.rows:
                rich.add_row(*row)
            console.print(rich)


def draw(results: list[Result], picture: Path | None, scaling: Path | None, equilibrium: Path | None) -> None:
    if picture or scaling or equilibrium:
        from . import figures

        if picture:
            figures.speed(results, picture)
        if scaling:
            figures.scaling(results, scaling)
        if equilibrium:
            figures.equilibrium(results, equilibrium)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Tables and pictures of result files of `pytest bench`.")
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    parser.add_argument("--table", type=Path, metavar="OUT.md", help="write the tables here, as markdown")
    parser.add_argument("--picture", type=Path, metavar="OUT.png", help="draw operators and EM batches here")
    parser.add_argument("--scaling", type=Path, metavar="OUT.png", help="draw how the time of an EM batch grows here")
    parser.add_argument(
        "--equilibrium", type=Path, metavar="OUT.svg", help="draw how the gap to the minimum closes here"
    )
    args = parser.parse_args(argv)
    try:
        results = [load(path) for path in args.results]
        show(results)
        try:
            if args.table:
                args.table.write_text(markdown(results))
            draw(results, args.picture, args.scaling, args.equilibrium)
        except OSError as error:
            raise ReportError(f"{error.filename}: cannot be written: {error.strerror}") from None
    except ReportError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
