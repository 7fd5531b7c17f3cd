"""The command line: ``PYTHONPATH=tests python -m fuzz --seed 1 --budget 60``.

A process for each instruction set that this machine has, and one for the reference, share the budget. In it networks
with a few actions take turns with long histories. What fails is shrunk and printed as a program, with the line that
runs it again.
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

from .cases import Case, Step
from .draw import drawn, features
from .pair import available, check, counts
from .shrink import shrunk

TURN = 8  # networks, and then one history
SHRINKING = 60  # seconds of a failure
MOST_SHRUNK = 3  # failures


class Campaign:
    """Draws and carries out cases until the time is up."""

    def __init__(self, seed: int, budget: float, kernels: str = "") -> None:
        self.seed, self.end, self.kernels = seed, time.monotonic() + budget, kernels
        self.ran: Counter[str] = Counter()
        self.features: Counter[str] = Counter()
        self.failing: list[Case] = []  # as small as they have become

    def run(self) -> bool:
        """Whether all went well."""
        number = 0
        while time.monotonic() < self.end:
            self.case(number)
            number += 1
        return not self.failing

    def case(self, number: int) -> None:
        """Carry out the case of a number."""
        history = number % (TURN + 1) == TURN
        case = drawn(self.seed, number, history)
        self.features.update(features(case))
        try:
            came = check(case)
        except Exception as error:
            came = "FAILED"
            self.found(number, case, error)
        self.ran[f"{'histories' if history else 'networks'}, {came}"] += 1

    def found(self, number: int, case: Case, error: Exception) -> None:
        """Tell of a failure."""
        again = f"PYTHONPATH=tests python -m fuzz --seed {self.seed} --kernels {self.kernels} --case {number}"
        print(f"\n# {again}\n# {''.join(traceback.format_exception_only(error)).strip()}", flush=True)
        if len(self.failing) < MOST_SHRUNK:
            case = shrunk(case, lambda less: type(failure(less)) is type(error), SHRINKING)
            error = failure(case) or error
            print(script(case) + f"\n# {''.join(traceback.format_exception_only(error)).strip()}\n", flush=True)
        self.failing.append(case)


def failure(case: Case) -> Exception | None:
    """What a case raises."""
    try:
        check(case)
    except Exception as error:
        return error
    return None


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
    p.add_argument("--case", type=int, metavar="NUMBER", help="this one only")
    p.add_argument("--features", action="store_true", help="count what was in the cases")
    p.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    warnings.simplefilter("ignore")
    if args.here:
        torch.set_num_threads(1)
        check(Case(actions=(Step(),)))  # what PyTorch imports at first use takes seconds
        campaign = Campaign(args.seed, args.budget, args.kernels)
        if args.case is None:
            campaign.run()
        else:
            campaign.case(args.case)
        print(", ".join(f"{n} {what}" for what, n in sorted((campaign.ran + counts).items())))
        if args.features:
            print("\n".join(f"  {n:6} {what}" for what, n in sorted(campaign.features.items())))
        return 1 if campaign.failing else 0
    kinds, failed = [args.kernels] if args.kernels else available(), 0
    for kind in kinds:
        print(f"{kind}: ", end="", flush=True)
        how = {"PYROMANCY_NATIVE": "0"} if kind == "reference" else {"ATEN_CPU_CAPABILITY": kind}
        command = [sys.executable, "-m", "fuzz", "--here", *sys.argv[1:], "--kernels", kind]
        command += ["--budget", str(args.budget / len(kinds))]
        environment = {**os.environ, "FUZZ_BEST": available()[0], **how}
        failed += subprocess.run(command, env=environment).returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
