"""The command line: ``PYTHONPATH=tests python -m fuzz --seed 1 --budget 60``.

A process for each instruction set that this machine has, and one for the reference, share the budget. In it networks
with a short history take turns with long histories. The first failure of a process is shrunk, printed as a script, and
ends it.
"""

import argparse
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from .cases import Case
from .draw import cases
from .pair import available, check, counts

ROUND = 50  # cases, between the two kinds
SHRINKING = 60  # seconds beyond the budget


class Campaign:
    """Draws and carries out cases until the time is up, or one fails."""

    def __init__(self, start: int, budget: float) -> None:
        self.seed, self.end = start, time.monotonic() + budget
        self.ran: Counter[str] = Counter()
        self.failing: tuple[Case, Exception] | None = None  # the smallest yet

    def round(self, what: str, most_actions: int) -> None:
        """A number of cases of a kind."""

        @seed(self.seed)
        @settings(
            max_examples=ROUND, deadline=None, database=None, derandomize=False, print_blob=False,
            report_multiple_bugs=False,
            phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(cases(most_actions))
        def carry_out(case):
            late = time.monotonic() > self.end + (SHRINKING if self.failing else 0)
            if late and (self.failing is None or case != self.failing[0]):
                return
            try:
                self.ran[f"{what}, {check(case)}"] += 1
            except Exception as error:
                self.failing = case, error
                raise

        self.seed += 1
        carry_out()

    def run(self) -> bool:
        """Whether all went well."""
        while time.monotonic() < self.end:
            for what, most in (("networks", 3), ("interleavings", 14)):
                try:
                    self.round(what, most)
                except Exception:
                    if self.failing is None:
                        raise
                    case, error = self.failing
                    print(f"\n{''.join(traceback.format_exception_only(error)[:1])}{script(case)}\n")
                    return False
        return True


def script(case: Case) -> str:
    """A case as a program that carries it out."""
    setting = [
        f"{name}={os.environ[name]} " for name in ("ATEN_CPU_CAPABILITY", "PYROMANCY_NATIVE") if name in os.environ
    ]
    return f"""\
# {"".join(setting)}PYTHONPATH=tests python SCRIPT
from fuzz.cases import *
from fuzz.pair import check

check({case!r})"""


def main() -> int:
    p = argparse.ArgumentParser(description="Random networks and histories against float64 autograd.")
    p.add_argument("--seed", type=int, default=0, help="of the cases (0)")
    p.add_argument("--budget", type=float, default=60.0, metavar="SECONDS", help="all processes together (60)")
    p.add_argument("--kernels", choices=available(), help="one instruction set, or the reference (all, in turn)")
    p.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    warnings.simplefilter("ignore")
    if args.here:
        torch.set_num_threads(1)
        campaign = Campaign(args.seed * 10**6, args.budget)
        well = campaign.run()
        print(", ".join(f"{n} {what}" for what, n in sorted((campaign.ran + counts).items())))
        return 0 if well else 1
    kinds = [args.kernels] if args.kernels else available()
    failed = 0
    for i, kind in enumerate(kinds):
        print(f"{kind}: ", end="", flush=True)
        how = {"PYROMANCY_NATIVE": "0"} if kind == "reference" else {"ATEN_CPU_CAPABILITY": kind}
        command = [
            sys.executable,
            "-m",
            "fuzz",
            "--here",
            "--seed",
            str(len(kinds) * args.seed + i),
            "--budget",
            str(args.budget / len(kinds)),
        ]
        failed += subprocess.run(command, env={**os.environ, "FUZZ_BEST": available()[0], **how}).returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
