"""Every layer of the package knows those below it and none above, and imports do not go round in circles."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pyromancy

ROOT = Path(pyromancy.__file__).parent
LAYERS = (
    {"arguments", "distributions", "native", "operands", "registration", "shape", "version"},
    {"plan"},
    {"laws", "rules"},
    {"ops"},
    {"backends", "functional"},
    {"diagnose", "methods", "nodes"},
    {"capture", "plots"},  # pictures know what they draw by its attributes, and only nodes by their class
    {"run"},
    {"networks"},
    {"command"},
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if path.name == "__init__.py" else parts


def statements(tree):
    """Imports that are run, at once or later, as opposed to those for annotations."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from statements(node)


def imported(path, modules):
    """The modules of the package that one imports, and the packages around them, which run first."""
    module = name_of(path)
    package = module if path.name == "__init__.py" else module[:-1]
    for node in statements(ast.parse(path.read_text())):
        absolute = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        if not getattr(node, "level", 0):
            assert not any(name.split(".")[0] == "pyromancy" for name in absolute), (
                f"{path} imports it by its full name"
            )
            continue
        source = (*package[: len(package) + 1 - node.level], *(node.module.split(".") if node.module else ()))
        for alias in node.names:
            target = (*source, alias.name) if (*source, alias.name) in modules else source
            yield target
            yield from (target[:n] for n in range(1, len(target)) if target[:n] != module[:n])


@pytest.fixture(scope="module")
def imports():
    modules = {name_of(path): path for path in ROOT.rglob("*.py")}
    return {module: {*imported(path, modules)} for module, path in modules.items()}


@pytest.mark.slow
def test_every_module_has_a_layer(imports):
    """But those that only gather what others define."""
    assert {module[0] for module in imports if module} == {*RANKS, "__main__", "infra", "utils"}


@pytest.mark.slow
def test_layers_know_none_above(imports):
    upward = {
        (".".join(module), ".".join(other))
        for module, others in imports.items()
        for other in others
        if module and module[0] in RANKS and not (other and RANKS.get(other[0], len(LAYERS)) <= RANKS[module[0]])
    }
    assert upward == set()


def test_imports_make_no_circle(imports):
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(".".join(module) for module in error.args[1]))


@pytest.mark.parametrize(
    ("folder", "files"),
    [
        ("run", "python/pyromancy/run/*.py"),
        ("capture", "python/pyromancy/capture/*.py"),
        ("csrc/cpu/chain", "csrc/cpu/chain/*.h"),
    ],
)
def test_the_map_of_folders_has_every_module_once(folder, files):
    root = Path(__file__).parents[1]
    page = (root / "CONTRIBUTING.md").read_text()
    table = re.split(rf"\| `{folder}/` \| \w+ \|\n", page)[1].split("\n\n")[0]
    named = re.findall(r"`(\w+)`", table)
    modules = {path.stem for path in root.glob(files)} - {"__init__"}
    assert len(named) == len({*named})
    assert {*named} - modules == set(), "are named in CONTRIBUTING.md, and gone"
    assert modules - {*named} == set(), "are to be named in CONTRIBUTING.md, in the table of their folder"


def test_files_that_the_architecture_names_are_there():
    root = Path(__file__).parents[1]
    page = (root / "CONTRIBUTING.md").read_text().split("## Architecture")[1].split("### Layers")[0]
    named = re.findall(r"`([\w/]+\.(?:py|cpp))`", page)
    assert len(named) > 10
    places = root, ROOT, root / "csrc" / "cpu"
    assert [name for name in named if not any((place / name).exists() for place in places)] == []
