"""Which step a parameter belongs to: declarations, inheritance, resolution."""

import warnings

import pytest
import torch
import torch.nn as nn

import pyromancy
from pyromancy import (
    eparameters,
    get_estep_params,
    get_mstep_params,
    get_named_estep_params,
    get_named_mstep_params,
    mparameters,
    nodes,
)


class Holder(nn.Module):
    """Holds the parameters it is told to."""

    def __init__(self, *names):
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.zeros(1)))


def estep(module, **options):
    return [name for name, _ in get_named_estep_params(module, **options)]


def mstep(module, **options):
    return [name for name, _ in get_named_mstep_params(module, **options)]


class TestManual:
    """What the manual of expectation-maximization says."""

    def test_its_example_of_names(self):
        module = nn.ModuleList([nn.Linear(784, 256), nodes.FactorizedGaussianNode(256)])
        assert estep(module) == ["1.value"]
        assert mstep(module) == ["0.weight", "0.bias", "1.logvar"]

    def test_its_example_of_inheritance(self):
        cls = nodes.MultivariateGaussianNode
        assert cls._e_params_ == {"value": None}
        assert [*cls._m_params_] == ["covar_cf_logdiag", "covar_cf_offtril"]
        assert "_e_params_" not in vars(cls)  # by the method resolution order, not by a copy
        assert estep(cls(2)) == ["value"]
        assert mstep(cls(2)) == ["covar_cf_logdiag", "covar_cf_offtril"]

    def test_undeclared_parameters_are_learned(self):
        linear = nn.Linear(2, 2)
        assert mstep(linear) == ["weight", "bias"]
        assert estep(linear) == []
        assert mstep(linear, default=False) == []
        assert estep(linear, default=True) == ["weight", "bias"]

    def test_parameters_come_in_the_order_of_named_parameters(self):
        module = nn.Sequential(nodes.IsotropicGaussianNode(2), nn.Linear(2, 2), nodes.BiasNode(2))
        named = dict(module.named_parameters())
        assert sorted(estep(module) + mstep(module), key=[*named].index) == [*named]
        for name, p in (*get_named_estep_params(module), *get_named_mstep_params(module)):
            assert named[name] is p
        assert [*get_mstep_params(module)] == [p for _, p in get_named_mstep_params(module)]
        assert [*get_estep_params(module)] == [module[0].value]


class TestDeclaration:
    def test_fills_a_dict_in_the_order_of_the_names(self):
        @eparameters("b", "a")
        class Declared(nn.Module):
            pass

        assert Declared._e_params_ == {"b": None, "a": None}
        assert [*Declared._e_params_] == ["b", "a"]
        assert not hasattr(Declared, "_m_params_")

    def test_adds_what_superclasses_declared_in_resolution_order(self):
        @eparameters("a")
        class A(nn.Module):
            pass

        @eparameters("b")
        class B(nn.Module):
            pass

        @eparameters("c")
        class C(A, B):
            pass

        @eparameters()
        class D(B):
            pass

        assert [*C._e_params_] == ["c", "a", "b"]
        assert [*D._e_params_] == ["b"]
        assert [*A._e_params_] == ["a"]

    def test_stacked_decorators_merge(self):
        @eparameters("a")
        @mparameters("w")
        @eparameters("b", "a")
        @mparameters("v")
        class Stacked(nn.Module):
            pass

        assert [*Stacked._e_params_] == ["a", "b"]
        assert [*Stacked._m_params_] == ["w", "v"]

    def test_diamonds(self):
        @eparameters("top")
        class Top(nn.Module):
            pass

        @eparameters("left")
        class Left(Top):
            pass

        @mparameters("right")
        class Right(Top):
            pass

        class Bottom(Left, Right):
            def __init__(self):
                super().__init__()
                for name in ("right", "left", "top"):
                    self.register_parameter(name, nn.Parameter(torch.zeros(1)))

        assert estep(Bottom()) == ["left", "top"]
        assert mstep(Bottom()) == ["right"]

    def test_plain_mixins_that_set_the_attribute_by_hand(self):
        class Mixin:
            _e_params_ = {"extra": None}  # noqa: RUF012 (as one would write it)

        class ListMixin:
            _m_params_ = ["gain"]  # noqa: RUF012

        class Mixed(Mixin, ListMixin, nodes.IsotropicGaussianNode):
            def __init__(self):
                super().__init__(2)
                self.extra, self.gain = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

        assert estep(Mixed()) == ["value", "extra"]
        assert mstep(Mixed()) == ["logvar", "gain"]

        @eparameters("more")
        class Again(Mixed):
            def __init__(self):
                super().__init__()
                self.more = nn.Parameter(torch.zeros(1))

        assert [*Again._e_params_] == ["more", "extra", "value"]

    def test_a_subclass_may_move_a_parameter_to_both(self):
        @eparameters("logvar")
        class Inferred(nodes.IsotropicGaussianNode):
            pass

        assert estep(Inferred(2)) == ["value", "logvar"]
        assert mstep(Inferred(2)) == ["logvar"]

    @pytest.mark.parametrize("decorator", [eparameters, mparameters], ids=["eparameters", "mparameters"])
    class TestRefusals:
        @pytest.mark.parametrize("name", [1, None, ("value",)], ids=str)
        def test_names_that_are_no_strings(self, decorator, name):
            with pytest.raises(TypeError, match="parameter names must be strings, got"):
                decorator("fine", name)

        @pytest.mark.parametrize("name", ["", "edge.weight", "."], ids=repr)
        def test_names_that_no_parameter_can_have(self, decorator, name):
            with pytest.raises(ValueError, match=f"must be a non-empty attribute name without '.', got {name!r}"):
                decorator(name)

        def test_use_without_parentheses(self, decorator):
            with pytest.raises(TypeError, match=r"parameter names must be strings, got <class .*; write @eparameters"):

                @decorator
                class Bare(nn.Module):
                    pass

        @pytest.mark.parametrize(
            "target", [int, object, len, nn.Linear(1, 1)], ids=["int", "object", "function", "instance"]
        )
        def test_what_has_no_parameters(self, decorator, target):
            with pytest.raises(TypeError, match=r"only subclasses of torch.nn.Module have parameters to declare, got"):
                decorator("value")(target)


# for a parameter p and another q: E-step names, M-step names, and where p is then
TABLE = {
    "neither": ((), (), None),
    "in-estep": (("p",), (), "estep"),
    "in-mstep": ((), ("p",), "mstep"),
    "in-both": (("p",), ("p",), "both"),
    "other-in-estep": (("q",), (), "mstep-by-default"),
    "other-in-mstep": ((), ("q",), "estep-by-default"),
    "other-in-both": (("q",), ("q",), "nowhere"),
}


class TestResolution:
    """For one parameter p: who declared what, and what comes of it."""

    @pytest.mark.parametrize("default", [False, True], ids=["default-no", "default-yes"])
    @pytest.mark.parametrize("case", TABLE)
    def test_table(self, case, default):
        e, m, outcome = TABLE[case]
        cls = type("Holding", (Holder,), {})
        cls = eparameters(*e)(mparameters(*m)(cls))
        module = cls("p", "q")
        in_e = {"estep": True, "both": True, "estep-by-default": default, None: default}.get(outcome, False)
        in_m = {"mstep": True, "both": True, "mstep-by-default": default, None: default}.get(outcome, False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert ("p" in estep(module, default=default)) is in_e
            assert ("p" in mstep(module, default=default)) is in_m

    def test_parameters_that_are_none_are_left_out(self):
        linear = nn.Linear(2, 2, bias=False)
        assert mstep(linear) == ["weight"]

    def test_prefix_and_recurse(self):
        module = nn.Sequential(nodes.IsotropicGaussianNode(2))
        assert estep(module, prefix="net") == ["net.0.value"]
        assert estep(module, recurse=False) == []
        assert estep(module[0], recurse=False, prefix="node") == ["node.value"]
        assert [*get_mstep_params(module, recurse=False)] == []

    def test_duplicates(self):
        node = nodes.IsotropicGaussianNode(2)
        module = nn.Sequential(node, node)
        assert estep(module) == ["0.value"]
        assert estep(module, remove_duplicate=False) == ["0.value", "1.value"]
        assert len([*get_estep_params(module)]) == 1
        tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        tied[1].weight = tied[0].weight
        assert mstep(tied) == ["0.weight", "0.bias", "1.bias"]

    def test_exclude(self):
        module = nn.ModuleList([nodes.IsotropicGaussianNode(2), nodes.IsotropicGaussianNode(2), nn.Linear(2, 2)])
        assert estep(module, exclude=(module[0],)) == ["1.value"]
        assert estep(module, exclude=[module[1].value]) == ["0.value"]
        assert mstep(module, exclude=iter([module[0], module[2].bias])) == ["1.logvar", "2.weight"]
        assert estep(module, exclude=(module,), remove_duplicate=False) == []
        assert estep(module, exclude=()) == ["0.value", "1.value"]

    @pytest.mark.parametrize("bad", ["0", None, torch.zeros(1)], ids=["name", "none", "tensor"])
    def test_exclude_of_something_else(self, bad):
        module = nn.Linear(1, 1)
        for get in (get_named_estep_params, get_named_mstep_params, get_estep_params, get_mstep_params):
            with pytest.raises(TypeError, match=f"exclude must hold parameters and modules, got {type(bad).__name__}"):
                [*get(module, exclude=[bad])]

    def test_exclude_of_what_is_elsewhere(self):
        """It leaves nothing out, as of a node that has been replaced since."""
        inside, outside = nn.Sequential(nodes.IsotropicGaussianNode(3), nn.Tanh()), nn.Linear(2, 3)
        for get in (get_estep_params, get_mstep_params, get_named_estep_params):
            for item, what in ((outside, "a Linear"), (outside.weight, r"a parameter of shape \(3, 2\)")):
                with pytest.warns(UserWarning, match=rf"exclude holds {what} that is not in the Sequential"):
                    found = [*get(inside, exclude=[item])]
                assert len(found) == len([*get(inside)])
        for known in (inside[1], inside[0], nn.ModuleList([inside[0]])):
            [*get_estep_params(inside, exclude=[known], recurse=False)]

    def test_exclude_without_a_list(self):
        module = nn.Linear(1, 1)
        for get in (get_named_estep_params, get_named_mstep_params, get_estep_params, get_mstep_params):
            with pytest.raises(
                TypeError, match="exclude must be an iterable of parameters and modules, got one Linear"
            ):
                get(module, exclude=module)


class TestWarnings:
    def test_a_parameter_in_neither_set(self):
        @mparameters("w")
        @eparameters("z")
        class Forgotten(Holder):
            pass

        with pytest.warns(
            UserWarning, match="Forgotten declares E-step and M-step .* leaves 'gain' out of both"
        ) as caught:
            mstep(Forgotten("z", "w", "gain"))
        assert caught[0].filename == __file__
        mstep(Forgotten("z", "w", "gain"))  # once for the class: another warning would be an error
        estep(Forgotten("z", "w", "gain"))

    def test_a_name_that_does_not_exist(self):
        @eparameters("vlaue")
        class Typo(Holder):
            pass

        with pytest.warns(UserWarning, match="Typo declares the E-step parameter 'vlaue', but has no such attribute"):
            assert estep(Typo("value")) == []
        assert estep(Typo("value")) == []

    def test_nothing_to_warn_of(self):
        @mparameters("w")
        @eparameters("z")
        class Fine(Holder):
            pass

        module = nn.ModuleList(
            [Fine("z", "w"), *(cls(2) for cls in (nodes.BiasNode, nodes.FixedNode, nodes.FloatNode))]
        )
        for default in (True, False):
            estep(module, default=default)
            mstep(module, default=default)

    def test_an_attribute_that_is_no_parameter_yet(self):
        @eparameters("z")
        class Later(Holder):
            z = None

        assert estep(Later()) == []


def test_public_names():
    for name in pyromancy.__all__:
        assert hasattr(pyromancy, name)
    assert pyromancy.__version__.count(".") == 2
