"""What the documents say: code in them runs, files and commands in them are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def named(path):
    return str(path.relative_to(ROOT))


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)


def test_the_example_learns():
    """After its 50 batches the README's network predicts its targets better than their mean does."""
    code, *_ = blocks(ROOT / "README.md", "python")
    scope = {}
    exec(compile(code, "README.md", "exec"), scope)
    y = scope["y"]
    prediction = scope["top"](scope["up"](scope["x"]))
    assert (y - prediction).square().mean() < (y - y.mean(0)).square().mean()
    assert scope["energy"]().shape == (len(y),)


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_python_in_documents_runs(document):
    scope = {}
    for code in blocks(document, "python"):
        exec(compile(code, named(document), "exec"), scope)


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{named(document)} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_make_targets_are_there(document):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = set(re.findall(r"(?:`|^)make ([a-z]+)", document.read_text(), re.MULTILINE))
    assert used <= targets
    if document.name == "README.md":
        assert {"digits", "test"} <= used
