"""Every case where this package differs from pyromancy-ai 0.0.1 on purpose, by its number in docs/differences.md."""

import copy
import importlib
import importlib.metadata
import pkgutil
import warnings

import pytest
import torch
import torch.nn as nn

import forks
import formulas
import oracle_package
import pyromancy
from networks import KINDS, LEARNED, Chain, covariance_of, node

oracle = oracle_package.load()
pytestmark = pytest.mark.usefixtures("backend")


STATEFUL = [*KINDS, "FloatNode", "FixedNode", "BiasNode"]


def both(kind, *dims, **options):
    return [node(kind, *dims, package=package.nodes, **options) for package in (pyromancy, oracle)]


@pytest.mark.parametrize("kind", KINDS)
def test_1_a_sample_lies_around_its_mean(kind):
    ours, theirs = both(kind, 3)
    mean = torch.full((20_000, 3), 100.0, dtype=torch.float64)
    assert (ours.sample(mean).mean(0) - 100).abs().max() < 0.1
    assert theirs.sample(mean).mean(0).abs().max() < 0.1


@pytest.mark.parametrize("kind", LEARNED)
class Test2:
    """With P positions the log-determinant counts P times."""

    def test_energy_is_the_log_density(self, kind):
        covariance = covariance_of(3)
        ours, theirs = both(kind, 3, None, covariance=covariance)
        value, pred = torch.randn(2, 4, 3, 5, dtype=torch.float64)
        energies = [which.init(value) is not None and which.energy(pred) for which in (ours, theirs)]
        truth = formulas.multivariate_normal_energy(value.mT, pred.mT, ours.covariance.detach())
        torch.testing.assert_close(energies[0], truth, rtol=1e-12, atol=1e-12)
        missing = 4 * 0.5 * torch.linalg.slogdet(ours.covariance).logabsdet
        torch.testing.assert_close(energies[1], truth - missing, rtol=1e-12, atol=1e-12)

    def test_optimum_is_the_sample_covariance(self, kind):
        # residuals of variance 4 at 8 x 8 positions: the mean energy's gradient vanishes at 4 here, at 4 * 64 there
        residual = torch.randn(50, 3, 64, dtype=torch.float64)
        residual = residual - residual.mean((0, 2), keepdim=True)
        second = torch.einsum("bip,bjp->ij", residual, residual) / (50 * 64)
        residual = torch.einsum("ij,bjp->bip", torch.linalg.inv(torch.linalg.cholesky(second)), 2 * residual)
        for which, variance in zip(both(kind, 3, None, None), (4.0, 256.0), strict=True):
            which.covariance = variance
            which.init(residual.reshape(50, 3, 8, 8))
            which.energy(torch.zeros(50, 3, 8, 8, dtype=torch.float64)).mean().backward()
            for name, p in which.named_parameters():
                assert name == "value" or p.grad.abs().max() < 1e-9, name


class Test3:
    """States stay out of checkpoints."""

    @pytest.mark.parametrize("name", [*KINDS, "FloatNode", "FixedNode"])
    def test_not_saved(self, name):
        for package, saved in ((pyromancy, False), (oracle, True)):
            which = getattr(package.nodes, name)(3)
            which.init(torch.randn(2, 3))
            assert ("value" in which.state_dict()) is saved

    @pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_old_checkpoints_with_states_inside_load(self, kind, strict):
        theirs = Chain(("StandardGaussianNode", kind, kind), (3, 4, 2), package=oracle.nodes)
        theirs.init(torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64))
        saved = theirs.state_dict()
        assert saved["nodes.1.value"].shape == (5, 4)
        ours = Chain(("StandardGaussianNode", kind, kind), (3, 4, 2))
        ours.init(torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64))
        state = ours.nodes[1].value.detach().clone()
        result = ours.load_state_dict(saved, strict=strict)
        assert result.missing_keys == result.unexpected_keys == []
        assert "nodes.1.value" in saved
        assert torch.equal(ours.nodes[1].value, state)
        for name, p in ours.named_parameters():
            assert name.endswith("value") or torch.equal(p, saved[name])
        with pytest.raises(RuntimeError, match="value"):
            Chain(("StandardGaussianNode", kind, kind), (3, 4, 2), package=oracle.nodes).load_state_dict(saved)


@pytest.mark.parametrize("kind", KINDS)
def test_4_init_clears_a_stale_gradient(kind):
    ours, theirs = both(kind, 3)
    for which in (ours, theirs):
        which.init(torch.ones(5, 3))
        which.energy(torch.zeros(5, 3, dtype=torch.float64)).sum().backward()
        which.init(torch.ones(2, 3))
    assert ours.value.grad is None
    assert theirs.value.grad.shape == (5, 3)
    ours.energy(torch.zeros(2, 3, dtype=torch.float64)).sum().backward()
    torch.testing.assert_close(ours.value.grad, torch.ones(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("name", [*KINDS, "FloatNode", "FixedNode"])
def test_5_energy_and_error_need_a_state(name):
    which = getattr(pyromancy.nodes, name)(3)
    for method in ("energy", "error"):
        if not hasattr(which, method) or (name, method) == ("FloatNode", "energy"):  # which is of its prior
            continue
        for _ in range(2):
            with pytest.raises(
                RuntimeError,
                match=rf"{name}\(3\)\.{method}\(\) needs a state .* call init\(value\) of the {name}\(3\) first",
            ):
                getattr(which, method)(torch.zeros(2, 3))
            which.init(torch.zeros(2, 3))
            getattr(which, method)(torch.zeros(2, 3))
            which.reset()
    silent = getattr(oracle.nodes, name)(1)
    assert silent.error(torch.zeros(2, 1)).numel() == 0 if name != "MultivariateGaussianNode" else True


@pytest.mark.parametrize("kind", LEARNED)
def test_6_covariances_must_be_symmetric_and_finite(kind):
    skew = torch.tensor([[2.0, 0.9], [-0.5, 1.0]])
    for bad in (skew, float("inf"), torch.tensor([1.0, float("inf")])):
        ours, theirs = both(kind, 2)
        before = {k: v.clone() for k, v in ours.named_parameters()}
        with pytest.raises(ValueError, match=r"covariance must be (symmetric|finite)"):
            ours.covariance = bad
        assert all(torch.equal(v, before[k]) for k, v in ours.named_parameters())
        theirs.covariance = bad  # taken without a word


class Test7:
    """Stacked decorators merge, and a parameter that no step would touch is named."""

    def stacked(self, package):
        @package.eparameters("a")
        @package.eparameters("b")
        class Stacked(nn.Module):
            pass

        return Stacked

    def test_stacked_decorators_merge(self):
        assert [*self.stacked(pyromancy)._e_params_] == ["a", "b"]
        assert [*self.stacked(oracle)._e_params_] == ["b"]

    def test_a_parameter_in_neither_set_is_named_once(self):
        def make(package):
            @package.eparameters("state")
            @package.mparameters("weight")
            class Forgetful(nn.Module):
                def __init__(self):
                    super().__init__()
                    for name in ("state", "weight", "gain"):
                        self.register_parameter(name, nn.Parameter(torch.zeros(1)))

            return Forgetful()

        ours, theirs = make(pyromancy), make(oracle)
        with pytest.warns(UserWarning, match="Forgetful declares .* but leaves 'gain' out of both") as caught:
            found = [name for get in (pyromancy.get_named_mstep_params,) * 2 for name, _ in get(ours)]
        assert len(caught) == 1
        assert found == ["weight", "weight"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert "gain" not in dict(oracle.get_named_mstep_params(theirs))


def test_8_import_warns_of_the_other_distribution(monkeypatch):
    # with real files and a real import in tests/test_distributions.py
    monkeypatch.setattr(importlib.metadata, "version", {"pyromancy-ai": "0.0.1"}.__getitem__)
    with pytest.warns(RuntimeWarning, match="pyromancy-ai 0.0.1 is installed over pyromancy-kernels"):
        pyromancy.distributions.warn_if_shadowed()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Files that pyromancy-ai wrote under its own name, in a process where that is `pyromancy`."""
    folder = tmp_path_factory.mktemp("saved")
    write = (
        "import sys, torch, pyromancy\n"
        "for name in sys.argv[2:]:\n"
        "    node = getattr(pyromancy.nodes, name)(3)\n"
        "    torch.save(node, f'{sys.argv[1]}/{name}.module')\n"
        "    torch.save(node.state_dict(), f'{sys.argv[1]}/{name}.state_dict')\n"
        "torch.save(pyromancy.Shape(3), f'{sys.argv[1]}/Shape.object')\n"
    )
    forks.python("-c", write, folder, *STATEFUL, package=False, path=[oracle_package.folder().parent])
    return folder


class Test9:
    """Objects pickled by 0.0.1 do not load; the parameters of the same network do."""

    @pytest.mark.parametrize("name", [f"{name}.module" for name in STATEFUL] + ["Shape.object"])
    def test_objects_do_not_load(self, saved, name):
        with pytest.raises(AttributeError, match="Shape"):
            torch.load(saved / name, weights_only=False)

    @pytest.mark.parametrize("name", STATEFUL)
    def test_parameters_load(self, saved, name):
        result = getattr(pyromancy.nodes, name)(3).load_state_dict(torch.load(saved / f"{name}.state_dict"))
        assert result.missing_keys == result.unexpected_keys == []


@pytest.mark.parametrize("kind", KINDS)
def test_11_one_state_for_many_predictions_is_told(kind):
    ours, theirs = both(kind, 3)
    for each in (ours, theirs):
        each.init(torch.ones(1, 3, dtype=torch.float64))
    pred = torch.randn(5, 3, dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"the state has shape \(1, 3\) and its prediction \(5, 3\)"):
        energy = ours.energy(pred)
    torch.testing.assert_close(energy, theirs.energy(pred))


def test_12_an_exclude_that_leaves_nothing_out_is_told():
    network, other = Chain(["StandardGaussianNode"] * 3, (3, 4, 2)), nn.Linear(2, 2)
    with pytest.warns(UserWarning, match="exclude holds a Linear that is not in the Chain"):
        found = [*pyromancy.get_mstep_params(network, exclude=[other])]
    assert [id(p) for p in found] == [id(p) for p in oracle.get_mstep_params(network, exclude=[other])]


def test_shapes_are_hashable():
    assert hash(pyromancy.Shape(2, None)) == hash((2, None))
    with pytest.raises(TypeError, match="unhashable"):
        hash(oracle.Shape(2, None))


MODULES = ["", *(f".{module.name}" for module in pkgutil.iter_modules(oracle.__path__))]
MODULES += [f".nodes.{module.name}" for module in pkgutil.iter_modules(oracle.nodes.__path__)]


@pytest.mark.parametrize("path", MODULES)
def test_modules_have_the_same_names(path):
    """Every name that a module of 0.0.1 defines, or has in its `__all__`, can be imported from the same place."""
    theirs, ours = (importlib.import_module(package.__name__ + path) for package in (oracle, pyromancy))
    own = {name for name, v in vars(theirs).items() if getattr(v, "__module__", None) == theirs.__name__}
    public = {name for name in own if not name.startswith("_")} - {"T"}  # a type variable
    missing = (public | {*getattr(theirs, "__all__", ())}) - {*dir(ours)}
    assert not missing
    for name in public:
        assert getattr(ours, name) is getattr(pyromancy, name, None) or getattr(ours, name) is getattr(
            pyromancy.nodes, name
        )


@pytest.mark.slow
def test_modules_are_attributes():
    """As after ``import pyromancy`` alone."""
    assert {"infra", "nodes", "utils"} <= {*vars(oracle)}
    program = "import pyromancy; print(pyromancy.utils.__name__, pyromancy.infra.Shape(2))"
    assert forks.python("-c", program, package=False) == "pyromancy.utils Shape(2)\n"


def test_everything_else_has_the_same_names():
    public = {n for n in oracle.__all__ if n != "nodes"}
    assert public <= set(pyromancy.__all__)
    assert set(oracle.nodes.__all__) <= set(pyromancy.nodes.__all__)
    for name in oracle.nodes.__all__:
        theirs, ours = getattr(oracle.nodes, name), getattr(pyromancy.nodes, name)
        assert {m for m in vars(theirs) if not m.startswith("_")} <= set(dir(ours))
        assert [c.__name__ for c in theirs.__mro__ if c.__module__.startswith(oracle.__name__)] == [
            c.__name__ for c in ours.__mro__ if c.__module__.startswith("pyromancy") and c.__name__ != "StateNode"
        ]
        for kind in ("_e_params_", "_m_params_"):
            assert copy.copy(getattr(theirs, kind)) == getattr(ours, kind)
