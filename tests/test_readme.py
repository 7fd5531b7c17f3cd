"""What the documents say: code in them runs and prints what they show, files and commands in them are there."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

import forks
import pyromancy
from pyromancy import backends

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/api/*.md"), *ROOT.glob("examples/*.md")]
)


def named(path):
    return str(path.relative_to(ROOT))


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)


def test_the_classifier_reads_digits_that_it_has_not_learned_from():
    """Nine in ten at least, where a guess has one; and a batch is one call, as the text says."""
    code = next(code for code in blocks(ROOT / "README.md", "python") if "load_digits" in code)
    scope = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, "README.md", "exec"), scope)
    held_out = sorted(scope["test"].tolist())
    assert len(held_out) == 360
    assert not {*held_out} & {*scope["train"].tolist()}
    with torch.no_grad():
        guesses = scope["net"].predict(scope["x"][held_out]).argmax(1)
    assert (guesses == scope["labels"][held_out]).float().mean() > 0.92
    assert "a batch: one call of an operator" in scope["em"].explain()


def test_the_network_of_ones_own_learns():
    """After its 50 batches it predicts its targets better than their mean does."""
    code = next(code for code in blocks(ROOT / "README.md", "python") if "energy = lambda" in code)
    scope = {}
    exec(compile(code, "README.md", "exec"), scope)
    y = scope["y"]
    prediction = scope["top"](scope["up"](scope["x"]))
    assert (y - prediction).square().mean() < (y - y.mean(0)).square().mean()
    assert scope["energy"]().shape == (len(y),)


def test_digits_that_the_cookbook_draws_are_new_and_of_the_kind_asked_for(tmp_path, monkeypatch):
    """By a judge that has seen real images alone; and they are spread as these are, and as far from those learned."""
    monkeypatch.chdir(tmp_path)
    found = blocks(ROOT / "docs" / "cookbook.md", "python")
    scope = {}
    for code in (found[0], next(code for code in found if "def draw(" in code)):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, "cookbook.md", "exec"), scope)
    x, labels, train, drawn = (scope[name] for name in ("x", "labels", "train", "drawn"))
    learned, held_out = x[train], x[scope["test"]]
    assert not {*train.tolist()} & {*scope["test"].tolist()}
    read = labels[train][torch.cdist(drawn, learned).argmin(2)]  # by the nearest image, [10, 100]
    right = (read == torch.arange(10).unsqueeze(1)).float().mean(1)
    assert right.min() > 0.7
    assert right.mean() > 0.88
    nearest, of_real = (torch.cdist(images, learned).min(1)[0].mean() for images in (drawn.flatten(0, 1), held_out))
    assert of_real < nearest < 1.3 * of_real
    spread = torch.stack([learned[labels[train] == kind].std(0).mean() for kind in range(10)])
    assert (drawn.std(1).mean(1) > 0.75 * spread).all()


# tests/test_integrations.py runs the one on other tools by sections
@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d.name != "integrations.md"], ids=named)
def test_python_in_documents_runs(document, tmp_path, monkeypatch):
    """And prints the text that is shown right below it."""
    monkeypatch.chdir(tmp_path)  # where they may write
    scope = {}
    for code, shown in re.findall(
        r"^```python\n(.*?)^```$(?:\n```text\n(.*?)^```$)?", document.read_text(), re.DOTALL | re.MULTILINE
    ):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, named(document), "exec"), scope)
        # what tells of one operator may be what only compiled kernels have in one
        if shown and (backends.available("native")[0] or "operator" not in shown):
            assert comparable(printed.getvalue()) == comparable(shown)
            assert percents(printed.getvalue()) == pytest.approx(percents(shown), abs=3)


def test_a_prediction_outlives_the_states():
    """As the page on nodes makes one: it is no state, which a target given later would overwrite."""
    scope = {}
    for code in blocks(ROOT / "docs" / "nodes.md", "python")[:3]:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, "nodes.md", "exec"), scope)
    net, x, y, prediction = (scope[name] for name in ("net", "x", "y", "prediction"))
    net.sweep(x)
    assert torch.equal(prediction, net.above.value)
    net.above.init(y)
    assert torch.equal(prediction, net.top(net.up(x)))
    assert not torch.equal(prediction, y)


def test_accuracies_are_of_predictions_and_not_of_targets():
    """By the recipe of the page on nodes, of labels that are drawn, of which no network knows more than chance.

    A recipe that reads the state of the output reads the targets there, and finds all of them.
    """
    page = ROOT / "docs" / "nodes.md"
    recipe = re.search(r"the accuracy is `(.*?)`", page.read_text())[1]
    scope = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(blocks(page, "python")[0], "nodes.md", "exec"), scope)
    net, generator = scope["net"], torch.Generator().manual_seed(0)
    x, labels = torch.rand(2000, 8, generator=generator), torch.randint(3, (2000,), generator=generator)
    net.sweep(x)
    state = net.above.init(torch.nn.functional.one_hot(labels, 3).float())
    assert (state.argmax(1) == labels).all()
    accuracy = eval(recipe, {"net": net, "x": x, "labels": labels})
    right = torch.stack([net.top(net.up(row)).argmax() for row in x.split(1)]) == labels
    assert accuracy == right.float().mean()
    assert abs(accuracy - 1 / 3) < 5 * (2 / 9 / 2000) ** 0.5  # five standard errors


def comparable(text):
    """Printed text, less what depends on rounding, on a build, and on PyTorch's version: the calls of a gradient."""
    text = re.sub(r"^ *run dry before every run: there is no compiled module .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\d+ (operator calls at every step), \d+", r"N \1, N", text)
    return re.sub(r"[\d.]+%", "%", text)


def percents(text):
    """Accuracies that a network comes to, which follow the rounding of a machine's instruction set."""
    return [float(number) for number in re.findall(r"([\d.]+)%", text)]


INFERENCE = ROOT / "docs" / "inference-loop.md"


def test_reasons_that_are_quoted_are_given():
    """The table of what keeps an energy from an executor quotes the messages of the package."""
    package = Path(pyromancy.__file__).parent
    sources = "".join(path.read_text() for layer in ("capture", "run") for path in (package / layer).glob("*.py"))
    table = INFERENCE.read_text().split("| your energy | executor | because |")[1].split("\n\n")[0]
    quoted = re.findall(r"\| (chain|graph|autograd) \| `(.*)` \|$", table, re.MULTILINE)
    assert len(quoted) == len(table.strip().splitlines()) - 1
    assert [reason for _, reason in quoted if reason not in sources] == []


@pytest.mark.slow
def test_what_the_command_prints_is_shown():
    """Lines and operators; versions, backends and instruction sets are those of one machine."""
    shown = next(
        text for text in blocks(ROOT / "docs" / "api" / "backends.md", "text") if text.startswith("pyromancy ")
    )
    printed = forks.python("-m", "pyromancy", package=False)

    def form(text):
        head, cpu = text.split("\ncpu:\n")
        operators = [line.split()[:2] for line in cpu.split("\n\n")[0].splitlines()]
        assert {backend for _, backend in operators} <= {*pyromancy.backends.BACKENDS}
        return [line.split()[0] for line in head.splitlines() if line], [name for name, _ in operators]

    assert form(printed) == form(shown)


def test_every_example_is_listed():
    """Each script that runs by itself."""
    table = (ROOT / "examples" / "README.md").read_text()
    scripts = [path.name for path in (ROOT / "examples").glob("*.py") if "__main__" in path.read_text()]
    assert sorted(re.findall(r"^\| `(\w+\.py)` \|", table, re.MULTILINE)) == sorted(scripts)


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
    if document == ROOT / "README.md":
        assert {"digits", "test"} <= used
