"""Both packages write to the folder `pyromancy`; whoever installs one over the other is told."""

import importlib.metadata
import shutil
import warnings

import pytest

import forks
import oracle_package
import processes
from pyromancy import distributions

LOUD = "import warnings; warnings.simplefilter('error', RuntimeWarning)\n"
IMPORT = ("-c", LOUD + "import pyromancy; print(pyromancy.__version__)")
BOTH = "pyromancy-ai 0.0.1 is installed over pyromancy-kernels"


@pytest.fixture
def installed(tmp_path):
    """A folder that says pyromancy-ai is installed in it."""
    metadata = tmp_path / "pyromancy_ai-0.0.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: pyromancy-ai\nVersion: 0.0.1\n")
    return tmp_path


@pytest.fixture
def mixed(installed):
    """The same with files: ours, and then those of pyromancy-ai laid over them as pip does."""
    theirs = oracle_package.folder()
    shutil.copytree(processes.PACKAGE, installed / "pyromancy", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(theirs, installed / "pyromancy", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return installed


@pytest.mark.slow
def test_warns_of_the_metadata(installed):
    text = forks.python(*IMPORT, package=False, path=[installed], expect=1)
    assert f"RuntimeWarning: {BOTH}" in text
    assert "pip uninstall pyromancy-ai" in text
    assert "install pyromancy-kernels again" in text


@pytest.mark.slow
def test_warns_with_the_files_mixed(mixed):
    text = forks.python(*IMPORT, package=False, path=[mixed], expect=1)
    assert f"RuntimeWarning: {BOTH}" in text
    assert str(mixed / "pyromancy") in text


@pytest.mark.slow
def test_the_mixture_imports_all_the_same(mixed):
    program = "import pyromancy; print(pyromancy.nodes.StandardGaussianNode(3))"
    text = forks.python("-c", program, package=False, path=[mixed])
    assert BOTH in text
    assert "StandardGaussianNode(3)" in text


@pytest.mark.slow
def test_is_silent_without_the_other():
    # the environment of the tests may have the other installed; a finder of nothing stands for one that has not
    nothing = "import importlib.metadata as m; m.MetadataPathFinder.find_distributions = lambda *a, **k: iter(())\n"
    text = forks.python("-c", nothing + IMPORT[-1], package=False)
    assert text.strip().count(".") == 2


def test_function(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", {"pyromancy-ai": "0.0.9"}.__getitem__)
    with pytest.warns(RuntimeWarning, match="pyromancy-ai 0.0.9 is installed over pyromancy-kernels"):
        distributions.warn_if_shadowed()

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distributions.warn_if_shadowed()
