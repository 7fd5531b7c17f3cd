"""Pictures: what is drawn is what was given; figures of one's own; without matplotlib, and without pyplot."""

import itertools
import math

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import forks
import pyromancy as pyro
from pyromancy import plots
from pyromancy.nodes import (
    FactorizedGaussianNode,
    FixedNode,
    IsotropicGaussianNode,
    LaplaceNode,
    MultivariateGaussianNode,
)


def recorded(depth=2):
    net = pyro.networks.mlp([5, *[6] * depth, 3], "tanh")
    net.start(torch.randn(4, 5), torch.randn(4, 3))
    loop = pyro.InferenceLoop(net.energy, net.e_params(), lr=0.1)
    return loop, loop.run(10, record=True)


def lines(ax):
    return {line.get_label(): torch.tensor(line.get_ydata(), dtype=torch.float64) for line in ax.get_lines()}


class TestEnergies:
    def test_a_line_for_every_node_and_one_for_all(self):
        _, trace = recorded()
        ax = trace.plot()
        drawn = lines(ax)
        assert [*drawn] == [*trace.names, "all"] == ["nodes.1", "nodes.2", "nodes.3", "all"]
        for i, name in enumerate(trace.names):
            torch.testing.assert_close(drawn[name], trace.energies[:, i].double())
        torch.testing.assert_close(drawn["all"], trace.energies.double().sum(1))
        assert [*ax.get_lines()[0].get_xdata()] == [*range(11)]
        assert ax.get_yscale() == "log"
        assert ax.get_ylim()[0] >= 1e-6 * trace.energies.max()
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("E-steps", "energy per sample (nats)")

    def test_negative_energies_have_a_linear_scale(self):
        trace = pyro.run.Trace(1, torch.tensor([[-1.0], [-100.0]]), names=("a",))
        ax = plots.energies(trace)
        assert ax.get_yscale() == "linear"
        assert [*lines(ax)] == ["a"]

    def test_into_axes_that_are_given(self):
        _, trace = recorded(9)
        figure = Figure()
        left, right = figure.subplots(1, 2)
        assert trace.plot(ax=right) is right
        assert not left.get_lines()
        colours = {line.get_color() for line in right.get_lines()}
        assert len(colours) == 11
        figure.canvas.draw()

    def test_without_energies(self):
        loop, _ = recorded()
        with pytest.raises(ValueError, match=r"trace must have energies, of run\(steps, record=True\), got none"):
            loop.run(1).plot()
        with pytest.raises(TypeError, match=r"trace must be what run\(steps, record=True\) returns, got int"):
            plots.energies(3)


class TestHistory:
    def test_means_of_tensors_and_numbers(self):
        rows = [{"a": torch.tensor([1.0, 3.0]), "b": 5}, {"a": torch.tensor([4.0, 6.0]), "b": 7}]
        ax = plots.history(rows, ylabel="what")
        assert {name: line.tolist() for name, line in lines(ax).items()} == {"a": [2.0, 5.0], "b": [5.0, 7.0]}
        assert [*ax.get_lines()[0].get_xdata()] == [1, 2]
        assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("epoch", "what", "linear")

    @pytest.mark.parametrize("rows", [[], [{}]])
    def test_of_nothing(self, rows):
        with pytest.raises(ValueError, match="rows must hold numbers of one epoch at least, got none"):
            plots.history(rows)

    def test_of_other_names(self):
        with pytest.raises(ValueError, match=r"same names, got \['a'\] first and \['b'\] in row 1"):
            plots.history([{"a": 1.0}, {"b": 1.0}])


class TestErrors:
    @pytest.mark.parametrize(("steps", "kind"), [({"low": torch.zeros(2, 2)}, "dict"), (None, "NoneType")])
    def test_one_step_alone(self, steps, kind):
        with pytest.raises(
            TypeError, match=f"steps must be a list of mappings, the errors of one step in each, got {kind}"
        ):
            plots.errors(steps)

    def test_root_mean_squares(self):
        steps = [
            {"low": torch.zeros(2, 2), "top": torch.tensor([[3.0, 4.0]])},
            {"low": torch.ones(2, 2), "top": torch.ones(1, 2)},
        ]
        ax = plots.errors(steps)
        shown = ax.get_images()[0].get_array()
        assert shown.mask.tolist() == [[True, False], [False, False]] or math.isnan(shown[0, 0])
        assert float(shown[1, 0]) == pytest.approx(math.sqrt(12.5))
        assert float(shown[0, 1]) == 1.0
        assert [t.get_text() for t in ax.get_yticklabels()] == ["low", "top"]

    def test_of_a_loop(self):
        loop, _ = recorded(30)
        steps = [loop.errors()]
        for _ in range(3):
            loop.run(1)
            steps.append(loop.errors())
        ax = plots.errors(steps)
        assert ax.get_images()[0].get_array().shape == (31, 4)
        assert len(ax.get_yticks()) <= 20
        ax.figure.canvas.draw()

    @pytest.mark.parametrize("value", [0.0, 2.0, math.inf, math.nan])
    def test_of_one_value_can_be_drawn(self, value):
        plots.errors([{"a": torch.full((2, 3), value)}]).figure.canvas.draw()

    def test_of_nothing_and_of_other_nodes(self):
        with pytest.raises(ValueError, match="steps must hold the errors of one step at least, got none"):
            plots.errors([])
        with pytest.raises(ValueError, match=r"same nodes, got \['a'\] first and \['b'\] in step 1"):
            plots.errors([{"a": torch.ones(1)}, {"b": torch.ones(1)}])


class TestVariances:
    def test_of_all_kinds(self):
        nodes = [
            FixedNode(2), IsotropicGaussianNode(3, variance=0.25),
            FactorizedGaussianNode(3, variance=torch.tensor([1.0, 2.0, 3.0])),
            MultivariateGaussianNode(2, covariance=torch.tensor([[2.0, 0.5], [0.5, 4.0]])), LaplaceNode(2, scale=0.5),
        ]  # fmt: skip
        edges = [torch.nn.Linear(a.size, b.size) for a, b in itertools.pairwise(nodes)]
        ax = plots.variances(pyro.networks.PCN(nodes, edges))
        drawn = lines(ax)
        assert drawn["nodes.1, all components"].tolist() == pytest.approx([0.25, 0.25])
        assert drawn["nodes.2"].tolist() == pytest.approx([1.0, 2.0, 3.0])
        assert drawn["nodes.3"].tolist() == pytest.approx([2.0, 4.0])
        assert drawn["nodes.4 (scale)"].tolist() == pytest.approx([0.5, 0.5])
        assert ax.get_yscale() == "log"

    def test_of_none(self):
        with pytest.raises(ValueError, match="net must have nodes with a variance or a scale, got a PCN without"):
            plots.variances(pyro.networks.mlp([2, 3, 1]))
        with pytest.raises(TypeError, match=r"net must be a torch.nn.Module, got int"):
            plots.variances(3)


class TestImages:
    def test_where_every_image_is(self):
        x = torch.arange(5 * 6).float().view(5, 6) / 30
        ax = plots.images(x, shape=(2, 3), columns=2)
        grid = torch.tensor(ax.get_images()[0].get_array().filled(math.nan))
        assert grid.shape == (3 * 3 - 1, 2 * 4 - 1)
        for k in range(5):
            top, left = 3 * (k // 2), 4 * (k % 2)
            assert torch.equal(grid[top : top + 2, left : left + 3], x[k].view(2, 3))
        assert grid[6:8, 4:7].isnan().all()
        assert grid[2].isnan().all()
        assert ax.get_images()[0].get_clim() == (0.0, 1.0)

    def test_rows_by_name(self):
        ax = plots.images({"seen": torch.rand(4, 1, 5, 5), "made": 2 * torch.rand(3, 5, 5)})
        assert [t.get_text() for t in ax.get_yticklabels()] == ["seen", "made"]
        assert ax.get_images()[0].get_array().shape == (11, 23)
        assert ax.get_images()[0].get_clim()[1] > 1

    def test_a_dictionary_has_the_columns_each_to_its_largest(self):
        weight = torch.tensor([[1.0, 0.0, -8.0], [0.0, 0.0, 4.0], [-2.0, 0.0, 0.0], [0.5, 0.0, 0.0]])
        ax = plots.dictionary(weight.requires_grad_(), columns=3)
        grid = ax.get_images()[0].get_array()
        assert grid[:, :2].tolist() == [[0.5, 0.0], [-1.0, 0.25]]
        assert grid[:, 3:5].tolist() == [[0.0, 0.0], [0.0, 0.0]]
        assert grid[:, 6:].tolist() == [[-1.0, 0.5], [0.0, 0.0]]
        assert ax.get_images()[0].get_clim() == (-1.0, 1.0)

    @pytest.mark.parametrize(
        ("rows", "options", "error", "message"),
        [
            ([[1.0]], {}, TypeError, "rows must be a tensor, got list"),
            ({"a": 3}, {}, TypeError, "a must be a tensor, got int"),
            ({}, {}, ValueError, "rows must hold at least one image, got none"),
            (torch.zeros(2, 5), {}, ValueError, r"square images without shape=\(height, width\), got 5 pixels"),
            (torch.zeros(2, 6), {"shape": (2, 2)}, ValueError, r"must have 4 pixels of shape \(2, 2\), got 6"),
            (torch.zeros(2, 3, 2, 2), {}, ValueError, r"got shape \(2, 3, 2, 2\)"),
            (torch.zeros(0, 4), {}, ValueError, r"got shape \(0, 2, 2\)"),
            (torch.zeros(2, 4), {"columns": 0}, ValueError, "columns must be positive, got 0"),
            ({"a": torch.zeros(1, 4), "b": torch.zeros(1, 9)}, {}, ValueError, r"one size, got \(2, 2\), \(3, 3\)"),
        ],
    )
    def test_what_cannot_be_drawn(self, rows, options, error, message):
        with pytest.raises(error, match=message):
            plots.images(rows, **options)

    def test_what_is_no_dictionary(self):
        with pytest.raises(ValueError, match=r"weight must be a matrix, \[pixels, units\], got shape \(4,\)"):
            plots.dictionary(torch.zeros(4))
        with pytest.raises(TypeError, match="weight must be a tensor, got list"):
            plots.dictionary([])


def test_axes_are_returned():
    assert isinstance(plots.images(torch.rand(2, 4)), Axes)


SCRIPT = """
import sys
import torch, pyromancy as pyro
assert "matplotlib" not in sys.modules, "loaded at once"
sys.modules["matplotlib"] = None
try:
    pyro.plots.images(torch.rand(2, 4))
except ModuleNotFoundError as error:
    print(error)
del sys.modules["matplotlib"]
pyro.plots.images(torch.rand(2, 4)).figure.canvas.draw()
assert "matplotlib.pyplot" not in sys.modules
print("done")
"""


def test_matplotlib_is_loaded_when_it_is_needed_and_pyplot_never():
    printed = forks.python("-c", SCRIPT, package=False).splitlines()
    assert printed == ["pyromancy.plots needs matplotlib: pip install matplotlib", "done"]
