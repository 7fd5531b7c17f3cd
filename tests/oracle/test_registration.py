"""The four generators beside the oracle's, over arbitrary class hierarchies and module trees."""

import warnings

import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st

import networks
import oracle_package
import pyromancy

oracle = oracle_package.load()

NAMES = ("a", "b", "c")
declarations = st.none() | st.lists(st.sampled_from(NAMES), max_size=2, unique=True)


@st.composite
def hierarchies(draw):
    """Bases, declarations of either kind, and whether they are put in by hand, of a few classes."""
    classes = []
    for i in range(draw(st.integers(1, 5))):
        bases = draw(st.lists(st.integers(0, i - 1), max_size=2, unique=True)) if i else []
        classes.append((sorted(bases, reverse=True), draw(declarations), draw(declarations), draw(st.booleans())))
    return classes


@st.composite
def trees(draw, count, depth=2):
    """For every module: its class, the parameters it holds, and its children; -1 is a module of `torch.nn`."""
    children = draw(st.lists(trees(count, depth - 1), max_size=2)) if depth else []
    held = draw(st.lists(st.sampled_from((*NAMES, "none", "shared")), max_size=4, unique=True))
    return draw(st.integers(-1, count - 1)), held, children, draw(st.booleans())


def build_classes(package, hierarchy):
    """The classes, decorated by `package`; None where Python has no method resolution order for them."""
    classes = []
    for i, (bases, estep, mstep, by_hand) in enumerate(hierarchy):
        try:
            cls = type(f"C{i}", tuple(classes[b] for b in bases) or (nn.Module,), {})
        except TypeError:
            return None
        for kind, names, decorator in (
            ("_e_params_", estep, package.eparameters),
            ("_m_params_", mstep, package.mparameters),
        ):
            if names is None:
                continue
            if by_hand:
                setattr(cls, kind, dict.fromkeys(names))
            else:
                cls = decorator(*names)(cls)
        classes.append(cls)
    return classes


def build_module(classes, tree, shared):
    cls, held, children, again = tree
    if cls < 0:
        module = nn.Linear(1, 1)
    else:
        module = classes[cls]()
        for name in held:
            parameter = {"none": None, "shared": shared}.get(name, nn.Parameter(torch.zeros(1)))
            module.register_parameter("a" if name == "shared" else name, parameter)
    built = [build_module(classes, child, shared) for child in children]
    for i, child in enumerate(built):
        module.add_module(f"m{i}", child)
        if again:
            module.add_module(f"again{i}", child)
    return module


@pytest.mark.slow
@settings(max_examples=150)
@given(st.data())
def test_names_and_order(data):
    hierarchy = data.draw(hierarchies())
    ours, theirs = (build_classes(p, hierarchy) for p in (pyromancy, oracle))
    if theirs is None:
        return
    tree = data.draw(trees(len(theirs)))
    shared = nn.Parameter(torch.zeros(1))
    modules = [build_module(classes, tree, shared) for classes in (ours, theirs)]
    picked = data.draw(st.lists(st.integers(0, 20), max_size=2))
    options = {
        "default": data.draw(st.booleans()),
        "prefix": data.draw(st.sampled_from(["", "net", "a.b"])),
        "recurse": data.draw(st.booleans()),
        "remove_duplicate": data.draw(st.booleans()),
    }
    for step in ("estep", "mstep"):
        found = []
        for package, module in zip((pyromancy, oracle), modules, strict=True):
            candidates = [*module.parameters(), *module.modules()]
            exclude = [candidates[i % len(candidates)] for i in picked]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                named = [*getattr(package, f"get_named_{step}_params")(module, exclude=exclude, **options)]
                plain = [*getattr(package, f"get_{step}_params")(module, exclude=exclude, recurse=options["recurse"])]
            order = {p: i for i, p in enumerate(module.parameters())}
            found.append(([(name, order[p]) for name, p in named], [order[p] for p in plain]))
        assert found[0] == found[1]


@pytest.mark.slow
@given(hierarchies())
def test_declared_names(hierarchy):
    ours, theirs = (build_classes(p, hierarchy) for p in (pyromancy, oracle))
    for a, b in zip(ours or (), theirs or (), strict=True):
        for kind in ("_e_params_", "_m_params_"):
            assert [*getattr(a, kind, {})] == [*getattr(b, kind, {})]


@pytest.mark.parametrize("default", [None, False, True], ids=str)
@pytest.mark.parametrize("step", ["estep", "mstep"])
def test_defaults_on_the_packages_own_nodes(step, default):
    options = {} if default is None else {"default": default}
    found = []
    for package in (pyromancy, oracle):
        net = nn.ModuleDict({"Linear": nn.Linear(3, 2)})
        for kind in ("BiasNode", "FixedNode", "FloatNode", *networks.KINDS):
            net[kind] = getattr(package.nodes, kind)(2)
        found.append([name for name, _ in getattr(package, f"get_named_{step}_params")(net, **options)])
    assert found[0] == found[1]


@pytest.mark.parametrize("bad", [("value",), (torch.zeros(1),), (None,)], ids=["name", "tensor", "none"])
def test_exclude_of_something_else(bad):
    for package in (pyromancy, oracle):
        for step in ("estep", "mstep"):
            with pytest.raises(TypeError, match="exclude"):
                [*getattr(package, f"get_{step}_params")(nn.Linear(1, 1), exclude=bad)]
