"""States: how they are set, returned, forgotten, and what is refused."""

import copy
import io
import pickle

import pytest
import torch

import pyromancy
from nodes_common import EVERY, GAUSSIAN, STATEFUL
from numerics import FLOATS, LOW, assert_near, name
from pyromancy import nodes

stateful = pytest.mark.parametrize("kind", STATEFUL)


class TestAbstract:
    @pytest.mark.parametrize("name", ["Node", "PredictiveNode", "VariationalNode", "AbstractGaussianNode"])
    def test_bases_have_no_instances(self, name):
        cls = getattr(nodes, name)
        with pytest.raises(TypeError, match="abstract"):
            cls(3)

    def test_own_nodes_need_energy_error_and_no_more(self):
        class Laplace(nodes.PredictiveNode):
            def error(self, pred):
                return (self.value - pred).sign()

            def energy(self, pred):
                return (self.value - pred).abs().flatten(1).sum(1)

        node = Laplace(2, None)
        node(torch.ones(3, 2, 4))
        assert torch.equal(node.energy(torch.zeros(3, 2, 4)), torch.full((3,), 8.0))
        assert [k for k, _ in pyromancy.get_named_estep_params(node)] == ["value"]

    @pytest.mark.parametrize("kind", EVERY)
    def test_their_dimensions_are_printed(self, kind):
        node = EVERY[kind](4, None, 3)
        assert repr(node) == f"{type(node).__name__}(4, None, 3)"

    @pytest.mark.parametrize("kind", EVERY)
    def test_shapes_exclude_the_batch(self, kind):
        node = EVERY[kind](4, None, 3)
        assert node.shapeobj == (None, 4, None, 3)
        assert node.shape == (4, None, 3)
        assert node.bshape == (4, 1, 3)
        assert node.size == 12
        for bad, error in (((0,), ValueError), ((-1,), ValueError), ((2.0,), TypeError)):
            with pytest.raises(error, match="shape"):
                EVERY[kind](*bad)


@stateful
class TestInit:
    def test_copies(self, kind):
        value = torch.randn(3, 5)
        node = STATEFUL[kind](5)
        state = node.init(value)
        assert state is node.value
        assert torch.equal(state, value)
        value.zero_()
        assert node.value.all()

    @pytest.mark.parametrize("dtype", [*FLOATS, *LOW], ids=name)
    def test_in_the_nodes_dtype(self, kind, dtype):
        node = STATEFUL[kind](5).to(dtype)
        value = torch.randn(3, 5)
        assert node.init(value).dtype == dtype
        assert torch.equal(node.value, value.to(dtype))

    def test_of_any_layout(self, kind):
        node = STATEFUL[kind](2, None, 4)
        for value in (torch.randn(4, 5, 2, 3).permute(3, 2, 1, 0), torch.randn(1, 2, 5, 1).expand(3, 2, 5, 4)):
            assert torch.equal(node.init(value), value)
            assert node.value.is_contiguous()

    def test_of_another_batch_size_needs_no_reset(self, kind):
        node = STATEFUL[kind](5)
        for batch in (3, 1, 7):
            assert node.init(torch.randn(batch, 5)).shape == (batch, 5)

    def test_from_a_prediction_with_a_graph(self, kind):
        source = torch.randn(3, 5, requires_grad=True)
        node = STATEFUL[kind](5)
        state = node.init(2 * source)
        assert state.grad_fn is None
        assert torch.equal(state, 2 * source)

    def test_voids_graphs_over_the_old_state(self, kind):
        node = STATEFUL[kind](5)
        node.init(torch.randn(3, 5))
        weight = torch.ones(3, 5, requires_grad=True)
        product = (weight * node.value).sum()
        node.init(torch.randn(3, 5))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()

    def test_of_a_wrong_shape(self, kind):
        node = STATEFUL[kind](5)
        node.init(torch.ones(3, 5))
        for shape in ((3, 4), (5,), (3, 5, 1)):
            with pytest.raises(ValueError, match=r"value must fit the node's shape \(None, 5\), got \("):
                node.init(torch.zeros(shape))
        with pytest.raises(
            ValueError, match=r"got \(5,\); the first dimension is the batch, as of value.unsqueeze\(0\)"
        ):
            node.init(torch.zeros(5))
        assert torch.equal(node.value, torch.ones(3, 5))

    def test_of_an_empty_batch(self, kind):
        with pytest.raises(ValueError, match="must have a row per sample, and one at least, got shape"):
            STATEFUL[kind](5).init(torch.zeros(0, 5))

    @pytest.mark.parametrize("bad", [None, 1.0, [[0.0] * 5]], ids=["none", "number", "list"])
    def test_of_no_tensor(self, kind, bad):
        with pytest.raises(TypeError, match=r"value must be a tensor, got (NoneType|float|list)"):
            STATEFUL[kind](5).init(bad)

    def test_in_inference_mode(self, kind):
        node = STATEFUL[kind](5)
        with torch.inference_mode():
            node.init(torch.ones(2, 5))
        node.init(torch.ones(3, 5))
        assert node.error(torch.zeros(3, 5)).sum() == 15


@stateful
class TestOnMeta:
    """States are in no checkpoint, so that loading one leaves them where the node was built."""

    def built(self, kind):
        def make():
            return torch.nn.ModuleList([STATEFUL[kind](5), torch.nn.Linear(5, 5)])

        with torch.device("meta"):
            net = make()
        loaded = make()
        net.load_state_dict(loaded.state_dict(), assign=True)
        return net, loaded

    def test_init_brings_the_state_to_its_data(self, kind):
        net, loaded = self.built(kind)
        node, value = net[0], torch.randn(3, 5)
        declared = dict(pyromancy.get_named_estep_params(net)).keys()
        state = node.init(value)
        assert state is node.value
        assert state.device == value.device
        assert torch.equal(state, value)
        assert dict(pyromancy.get_named_estep_params(net)).keys() == declared
        assert state.requires_grad is (kind != "fixed")
        assert [*net.state_dict()] == [*loaded.state_dict()]
        assert node.init(value) is state
        loaded[0].init(value)
        pred = net[1](torch.randn(3, 5))
        assert torch.equal(node.error(pred), loaded[0].error(pred))

    def test_moves_with_its_module(self, kind):
        net, _ = self.built(kind)
        assert net.double().to("cpu")[0].value.device.type == "cpu"
        assert net[0].init(torch.randn(3, 5)).dtype == torch.float64
        with torch.device("meta"):
            node = STATEFUL[kind](5)
        assert node.half().value.is_meta
        assert node.to_empty(device="cpu").value.shape == (0,)
        assert not node.value.is_meta

    def test_stays_with_data_on_meta(self, kind):
        with torch.device("meta"):
            node = STATEFUL[kind](5)
            state = node.value
            assert node.init(torch.ones(3, 5)) is state
        assert state.is_meta


def test_states_collected_on_meta_are_refused():
    with torch.device("meta"):
        node = nodes.StandardGaussianNode(5)
    state = node.value
    with pytest.raises(ValueError, match=r"params must hold data, got one of shape \(0,\) on meta; collect it after"):
        pyromancy.InferenceLoop(lambda: node.energy(torch.ones(3, 5)), [state], lr=0.1)


@stateful
class TestForward:
    def test_in_training_mode_sets_the_state(self, kind):
        node, value = STATEFUL[kind](5).train(), torch.randn(3, 5)
        assert node(value) is node.value
        assert torch.equal(node.value, value)
        assert node.value.requires_grad is (kind != "fixed")

    def test_in_evaluation_mode_passes_through(self, kind):
        node, value = STATEFUL[kind](5).eval(), torch.randn(3, 4, requires_grad=True)
        assert node(value) is value
        assert node.value.numel() == 0

    def test_reset(self, kind):
        node = STATEFUL[kind](5)
        state = node(torch.randn(3, 5))
        node.error(torch.randn(3, 5, requires_grad=True)).sum().backward()
        node.reset()
        assert node.value is state
        assert state.shape == (0,)
        assert all(p.grad is None for p in node.parameters())
        node.reset()

    @pytest.mark.parametrize("method", ["error", "energy"])
    def test_before_init(self, kind, method):
        node = STATEFUL[kind](5)
        if not hasattr(node, method) or (kind, method) == ("float", "energy"):  # which is of its prior
            return
        name = rf"{type(node).__name__}\(5\)"
        with pytest.raises(
            RuntimeError,
            match=rf"{name}\.{method}\(\) needs a state and there is none: call init\(value\) of the {name}",
        ):
            getattr(node, method)(torch.zeros(3, 5))


class TestCopies:
    def clone(self, how, node):
        if how == "deepcopy":
            return copy.deepcopy(node)
        if how == "pickle":
            return pickle.loads(pickle.dumps(node))
        buffer = io.BytesIO()
        torch.save(node, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=False)

    @pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
    @pytest.mark.parametrize("kind", GAUSSIAN)
    def test_are_independent(self, kind, how):
        node = GAUSSIAN[kind](3)
        node.init(torch.randn(2, 3))
        pred = torch.randn(2, 3)
        before = node.energy(pred).detach()  # fills whatever the node remembers
        twin = self.clone(how, node)
        assert torch.equal(twin.energy(pred), before)
        with torch.no_grad():
            twin.value.add_(1)
            if kind != "standard":
                twin.covariance = 4.0
        assert torch.equal(node.energy(pred), before)
        assert_near(twin.energy(pred), (twin.value - pred).double().square().sum(1) / (2 if kind == "standard" else 8)
                    + (0 if kind == "standard" else 1.5 * torch.tensor(4.0).log()), 3)  # fmt: skip
        twin.energy(pred).sum().backward()
        assert all(p.grad is None for p in node.parameters())

    def test_an_unseen_state_is_copied_too(self):
        node = nodes.FactorizedGaussianNode(3)
        twin = copy.deepcopy(node)
        twin.init(torch.ones(2, 3))
        assert node.value.numel() == 0
