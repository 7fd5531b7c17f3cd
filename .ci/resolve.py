"""Whether pip finds all that a wheel needs, with the oldest and the newest torch; nothing is installed.

    python .ci/resolve.py WHEEL...        # in an environment with a pip of 24 or later

A wheel that any Python takes is tried for the oldest and the newest Python that the project names. A torch older than
the project allows must be refused. Dependencies are read from the ends of remote files, which are not downloaded.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--dry-run", "--ignore-installed"]
# What Linux with glibc 2.28 takes, which pip does not work out for another Python.
PLATFORMS = [f"--platform=manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)]
PLATFORMS += ["--platform=manylinux2014_x86_64", "--platform=manylinux2010_x86_64", "--platform=linux_x86_64"]


def resolve(wheel: str, torch: str, python: str | None) -> tuple[bool, str]:
    """The torch that is found, or what pip says in the place of one."""
    foreign = [*PLATFORMS, "--only-binary=:all:", "--target=none", f"--python-version={python}"]
    options = ["--use-feature=fast-deps", "--report=-", *(foreign if python else [])]
    done = subprocess.run([*PIP, *options, wheel, torch], capture_output=True, text=True)
    if done.returncode:
        return False, " ".join(re.findall(r"^ERROR: (.*)", done.stderr, re.MULTILINE))
    found = {p["metadata"]["name"]: p["metadata"]["version"] for p in json.loads(done.stdout)["install"]}
    return True, found["torch"]


def main(wheels: list[str]) -> int:
    """Print a line for every combination, and return how many fail."""
    (oldest,) = re.findall(r"^torch>=(\d+\.\d+)$", "\n".join(PROJECT["dependencies"]), re.MULTILINE)
    major, minor = map(int, oldest.split("."))
    pythons = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", c)]
    cases = [
        (wheel, torch, python)
        for wheel in wheels
        for python in ((pythons[0], pythons[-1]) if wheel.endswith("-any.whl") else (None,))
        for torch in (f"torch=={oldest}.*", "torch")
    ]
    refused = cases[0][0], f"torch=={major}.{minor - 1}.*", cases[0][2]
    wrong = 0
    with ThreadPoolExecutor(4) as pool:  # which wait for the network
        for case, (resolved, told) in zip(
            [*cases, refused], pool.map(lambda c: resolve(*c), [*cases, refused]), strict=True
        ):
            right = resolved if case is not refused else not resolved and "ResolutionImpossible" in told
            wrong += not right
            wheel, torch, python = case
            on = f"Python {python}" if python else "this Python"
            print(
                f"{'ok' if right else 'WRONG':5} {Path(wheel).name}, {on}, {torch}:",
                told if resolved else f"refused: {told}",
            )
    return wrong


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
