"""What setup.py decides before it compiles anything, and what is compiled for other processors."""

import os
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
if not (ROOT / "setup.py").exists():
    pytest.skip("this copy has no setup.py", allow_module_level=True)
pytest.importorskip("setuptools")

CXX = os.environ.get("CXX", "c++")
has_compiler = pytest.mark.skipif(shutil.which(CXX) is None, reason="no C++ compiler")


@pytest.fixture
def wants_cuda(monkeypatch, tmp_path):
    """What setup.py says of CUDA, where no nvcc is on the PATH and torch is a folder without libraries."""
    for name in [n for n in os.environ if n.startswith(("PYROMANCY_", "CUDA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    decide = runpy.run_path(str(ROOT / "setup.py"))["wants_cuda"]

    def ask(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return decide(tmp_path / "torch")

    return ask


def toolkit(folder, release="12.1"):
    """An nvcc that says its release, and no more."""
    (folder / "bin").mkdir()
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\n[ $1 = --version ] && echo 'Cuda compilation tools, release {release}, V1'\n")
    nvcc.chmod(0o755)
    return folder


@pytest.mark.parametrize("choice", ["auto", "0"])
def test_without_nvcc_there_is_no_cuda(wants_cuda, choice):
    assert not wants_cuda(PYROMANCY_CUDA=choice)


def test_cuda_without_nvcc_stops_with_one_sentence(wants_cuda):
    with pytest.raises(SystemExit) as stop:
        wants_cuda(PYROMANCY_CUDA="1")
    assert stop.value.code == "pyromancy: PYROMANCY_CUDA=1, but nvcc is neither on the PATH nor in CUDA_HOME."


@pytest.mark.parametrize("place", ["PATH", "CUDA_HOME"])
def test_cuda_with_a_torch_for_cpus_stops_with_one_sentence(wants_cuda, tmp_path, place):
    home = toolkit(tmp_path)
    where = {"PATH": str(home / "bin")} if place == "PATH" else {"CUDA_HOME": str(home)}
    with pytest.raises(SystemExit) as stop:
        wants_cuda(PYROMANCY_CUDA="1", **where)
    assert stop.value.code == "pyromancy: PYROMANCY_CUDA=1, but the installed torch is a CPU build."
    assert not wants_cuda(PYROMANCY_CUDA="auto", **where)


def test_with_both_there_is_cuda(wants_cuda, tmp_path):
    (tmp_path / "torch" / "lib" / "libtorch_cuda.so").touch()
    assert wants_cuda(CUDA_HOME=str(toolkit(tmp_path)))
    assert not wants_cuda(PYROMANCY_CUDA="0")


@pytest.mark.parametrize("release", ["11.8", "12.0"])
def test_cuda_with_an_old_nvcc_stops_with_one_sentence(wants_cuda, tmp_path, release):
    (tmp_path / "torch" / "lib" / "libtorch_cuda.so").touch()
    home = str(toolkit(tmp_path, release))
    with pytest.raises(SystemExit) as stop:
        wants_cuda(PYROMANCY_CUDA="1", CUDA_HOME=home)
    assert stop.value.code == f"pyromancy: PYROMANCY_CUDA=1, but nvcc is {release}, and 12.1 is needed."
    assert not wants_cuda(PYROMANCY_CUDA="auto", CUDA_HOME=home)


@pytest.mark.parametrize("release", ["12.10", "13.0"])
def test_releases_compare_by_their_numbers(wants_cuda, tmp_path, release):
    (tmp_path / "torch" / "lib" / "libtorch_cuda.so").touch()
    assert wants_cuda(PYROMANCY_CUDA="1", CUDA_HOME=str(toolkit(tmp_path, release)))


def test_unknown_choice(wants_cuda):
    with pytest.raises(SystemExit) as stop:
        wants_cuda(PYROMANCY_CUDA="yes")
    assert stop.value.code == "pyromancy: PYROMANCY_CUDA must be auto, 0 or 1, got 'yes'."


@pytest.mark.slow
def test_a_source_distribution_has_what_a_build_and_its_tests_need(tmp_path):
    """Made by an interpreter that cannot see torch, or anything else but setuptools."""
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns("build", "dist", ".*", "*.so", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignored)
    without_torch = (
        "import sys; sys.modules['torch'] = None\n"
        "from setuptools import build_meta\n"
        f"print(build_meta.build_sdist({str(tmp_path)!r}))"
    )
    made = subprocess.run([sys.executable, "-c", without_torch], cwd=copy, check=True, capture_output=True, text=True)
    with tarfile.open(tmp_path / made.stdout.split()[-1]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    needed = {
        str(path.relative_to(copy))
        for folder in ("csrc", "python", "tests", "examples", "docs")
        for path in (copy / folder).rglob("*")
        if path.is_file() and "egg-info" not in str(path) and not path.is_relative_to(copy / "docs" / "generated")
    }
    assert not any(name.startswith("docs/generated") for name in held)
    assert needed - held == set()
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "Makefile"} <= held


@has_compiler
def test_pybind11_is_not_the_copy_that_torch_may_have(tmp_path):
    """The one of torch 2.11, for one, refuses who keeps to the stable ABI."""
    pytest.importorskip("pybind11")
    mine = tmp_path / "include" / "torch" / "csrc" / "stable" / "version.h"
    copy = tmp_path / "include" / "pybind11" / "pybind11.h"
    for file, text in ((mine, ""), (copy, "#error not this one")):
        file.parent.mkdir(parents=True)
        file.write_text(text)
    rules = runpy.run_path(str(ROOT / "setup.py"))["rules"](tmp_path, cuda=False)
    flags = [value for line in rules for name, _, value in [line.partition(" = ")] if name in ("flags", "of_torch")]
    assert len(flags) == 2
    command = [CXX, *shlex.split(" ".join(flags).replace("$$", "$")), "-M", "csrc/module.cpp"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert str(mine) in run.stdout
    assert "pybind11/pybind11.h" in run.stdout


@has_compiler
@pytest.mark.parametrize("x86", [0, 1])
def test_other_processors_are_asked_for_no_x86_instructions(x86):
    """Whether the file that chooses between instruction sets asks for them, by the switch that setup.py sets."""
    command = [CXX, "-std=c++20", "-E", f"-DPYROMANCY_X86_ISAS={x86}", "csrc/cpu/isa.cpp"]
    text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert ("__builtin_cpu_supports" in text) == bool(x86)


@pytest.mark.parametrize("sanitizers", ["", "address,undefined"])
def test_sanitizers_are_asked_for_where_it_compiles_and_links(monkeypatch, tmp_path, sanitizers):
    pytest.importorskip("pybind11")
    monkeypatch.setenv("PYROMANCY_SANITIZE", sanitizers)
    rules = runpy.run_path(str(ROOT / "setup.py"))["rules"](tmp_path, cuda=False)
    values = {name: value for line in rules for name, _, value in [line.partition(" = ")]}
    for name in ("flags", "libs"):
        assert (
            (f"-fsanitize={sanitizers}" in values[name].split()) == ("-fsanitize" in values[name]) == bool(sanitizers)
        )
