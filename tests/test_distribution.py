"""What is published: the configuration of wheels, the workflows, the citation, and what the compiled module links."""

import itertools
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from pyromancy import native
from pyromancy.version import __version__

ROOT = Path(__file__).parents[1]
if not (ROOT / ".github").exists():
    pytest.skip("this copy has no .github", allow_module_level=True)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WHEELS = PROJECT["tool"]["cibuildwheel"]
OF_WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# Libraries and functions that glibc 2.28 has elsewhere, in an older version, or does without;
# CUDA's static runtime, which nvcc links with -lrt, takes shm_open from there.
MOVED = re.compile(r"dl\w+|pthread_\w+|sem_\w+|shm_\w+|exp|log|pow|__libc_single_threaded")


def symbols_of(module):
    if shutil.which("objdump") is None:
        pytest.skip("no objdump")
    return subprocess.run(["objdump", "-T", module], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def compiled():
    found = sorted(Path(native.__file__).parent.glob("_C*.so"))
    if not found:
        pytest.skip("nothing is compiled")
    return found[0]


def test_no_symbol_is_newer_than_the_image_but_those_that_moved(compiled):
    assert WHEELS["manylinux-x86_64-image"] == "manylinux_2_28"
    found = re.findall(r"\(?GLIBC_(\d+)\.(\d+)[.\d]*\)?\s+(\w+)", symbols_of(compiled))
    assert found
    newer = {name for major, minor, name in found if (int(major), int(minor)) > (2, 28)}
    assert {name for name in newer if not MOVED.fullmatch(name)} == set()


def test_what_torch_brings_stays_out_of_a_wheel(compiled):
    if shutil.which("readelf") is None:
        pytest.skip("no readelf")
    dynamic = subprocess.run(["readelf", "-d", compiled], check=True, capture_output=True, text=True).stdout
    needed = set(re.findall(r"NEEDED.*\[(.+)\]", dynamic))
    words = shlex.split(WHEELS["repair-wheel-command"])
    excluded = {word for option, word in itertools.pairwise(words) if option == "--exclude"}
    of_torch = {name for name in needed if name.startswith(("libtorch", "libc10"))}
    assert of_torch
    assert of_torch <= excluded


def test_cibuildwheel_builds_for_python_3_11_to_3_14_and_manylinux_alone():
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", "linux", str(ROOT)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert printed == [f"cp3{minor}-manylinux_x86_64" for minor in (11, 12, 13, 14)]


def test_workflows_call_what_there_is():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = set()
    assert [path.name for path in OF_WORKFLOWS] == ["tests.yml", "wheels.yml"]
    for path in OF_WORKFLOWS:
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            for step in job["steps"]:
                if "uses" in step:
                    assert re.fullmatch(r"[\w.-]+/[\w.-]+@v\d+", step["uses"]), step
                elif step["run"].startswith("make "):
                    called.add(step["run"].split()[1])
    assert called
    assert called <= targets


def test_issues_ask_for_what_the_command_line_prints():
    forms = {p.stem: yaml.safe_load(p.read_text()) for p in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")}
    assert set(forms) == {"bug", "feature"}
    assert all({"name", "description", "body"} <= set(form) for form in forms.values())
    asked = " ".join(field["attributes"]["label"] for field in forms["bug"]["body"])
    assert "`python -m pyromancy`" in asked
    assert "`python -m pyromancy doctor`" in asked


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)  # what the format asks for
    assert cited["cff-version"] == "1.2.0"
    assert str(cited["version"]) == __version__
    assert cited["license"] == PROJECT["project"]["license"]
    assert cited["keywords"] == PROJECT["project"]["keywords"]
    assert cited["title"].startswith(PROJECT["project"]["name"])
