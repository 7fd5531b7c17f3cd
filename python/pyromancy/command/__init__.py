"""The command line, ``python -m pyromancy``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..backends import describe
from . import doctor, quick

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, of `sys.argv` by default.

    Returns:
        The exit status: 0; 1 where `doctor` has found something, or results of `bench` differ; 2 where an argument is
        wrong, as argparse has it.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command == "doctor":
        machine = doctor.Machine.here()
        findings = doctor.examine(machine)
        print(doctor.report(machine, findings))
        return int(any(f.kind != "note" for f in findings))
    if args.command == "bench":
        if args.plot is not None and not args.plot.parent.is_dir():
            parser.error(f"argument --plot: {args.plot.parent} is not a folder")
        return quick.bench(args.setting or [*quick.SETTINGS], args.seconds, args.threads, args.plot)
    print(describe())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyromancy", description="Without a command: what serves each operator on this machine."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("backends", help="what serves each operator on this machine")
    commands.add_parser("doctor", help="what is slow or wrong with this installation, and what mends it")
    bench = commands.add_parser(
        "bench", help="whole EM batches against plain PyTorch on this machine, in under a minute"
    )
    bench.add_argument(
        "--setting", action="append", choices=[*quick.SETTINGS], help="one network; may be given again (all)"
    )
    bench.add_argument("--seconds", type=_positive(float), default=40.0, help="for all of it, about (40)")
    bench.add_argument("--threads", type=_positive(int), help="on the CPU (PyTorch's own choice)")
    bench.add_argument(
        "--plot", type=Path, default=Path("pyromancy-bench.png"), metavar="FILE",
        help="picture, which needs matplotlib (pyromancy-bench.png)",
    )  # fmt: skip
    bench.add_argument("--no-plot", action="store_const", const=None, dest="plot", help="draw no picture")
    return parser


def _positive(kind: type) -> type:
    """A number above 0, as argparse converts it."""

    def convert(text: str) -> float:
        number: float = kind(text)
        if not 0 < number < sys.maxsize:
            raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
        return number

    convert.__name__ = kind.__name__
    return convert  # type: ignore[return-value]
