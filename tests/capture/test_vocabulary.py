"""PyTorch's functions are known by identity, under all of their names; other libraries' are not taken for them."""

from types import FunctionType

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary

import pyromancy as pyro
from descent import assert_as_autograd, free
from pyromancy.capture import vocabulary
from pyromancy.functional import gaussian_energy

aten = torch.ops.aten
LIBRARY = torch.library.Library("namesakes", "DEF")
for schema, kernel in {
    "linear(Tensor x, Tensor w, Tensor b) -> Tensor": lambda x, w, b: 2 * (x @ w.mT) + b,
    "tanh(Tensor x) -> Tensor": lambda x: x.clamp(-0.3, 0.3),
    "add(Tensor a, Tensor b) -> Tensor": lambda a, b: a + a * b,
    "sub(Tensor a, Tensor b) -> Tensor": lambda a, b: a + b,
    "neg(Tensor a) -> Tensor": lambda a: 2 * a,
    "mul(Tensor a, float b) -> Tensor": lambda a, b: a * b * b,
    "ones_like(Tensor a) -> Tensor": lambda a: 0.5 * a,
    "matmul(Tensor a, Tensor b) -> Tensor": lambda a, b: a @ b + 1,
}.items():
    LIBRARY.define(schema)
    LIBRARY.impl(schema.partition("(")[0], kernel, "CompositeImplicitAutograd")
namesakes = torch.ops.namesakes


class Chain:
    """A free state between data and a target, in float64."""

    def __init__(self):
        self.z, self.edge = free(4, 6), nn.Linear(6, 3).double()
        self.x, self.y = torch.randn(4, 6).double(), torch.randn(4, 3).double()

    def below(self):
        return gaussian_energy(self.z, self.x)

    def above(self, prediction):
        return gaussian_energy(self.y, prediction)

    def check(self, energy):
        return assert_as_autograd(lambda: energy(self), [self.z], list(self.edge.parameters()))


NAMESAKES = {
    "linear": lambda c: c.below() + c.above(namesakes.linear(c.z, c.edge.weight, c.edge.bias)),
    "tanh": lambda c: c.below() + c.above(c.edge(namesakes.tanh(c.z))),
    "tanh.default": lambda c: c.below() + c.above(c.edge(namesakes.tanh.default(c.z))),
    "add": lambda c: namesakes.add(c.below(), c.above(c.edge(c.z))),
    "sub": lambda c: namesakes.sub(c.below(), c.above(c.edge(c.z))),
    "neg": lambda c: namesakes.neg(c.below()) + c.above(c.edge(c.z)),
    "mul": lambda c: c.below() + namesakes.mul(c.above(c.edge(c.z)), 0.5),
    "ones_like": lambda c: c.below() + c.above(c.edge(namesakes.ones_like(c.z))),
    "matmul": lambda c: c.below() + c.above(namesakes.matmul(c.z, c.edge.weight.mT)),
}


@pytest.mark.parametrize("name", NAMESAKES)
def test_operators_of_other_libraries_are_not_taken_for_their_namesakes(name):
    c = Chain()
    explained = assert_as_autograd(lambda: NAMESAKES[name](c), [c.z], [c.edge.weight])
    assert f"namesakes.{name.removesuffix('.default')} is no function of PyTorch's" in explained


sharpness = 1.0


def sharp(z):
    """A function that follows PyTorch's protocol, and computes what the moment wants."""
    if has_torch_function_unary(z):
        return handle_torch_function(sharp, (z,), z)
    return torch.tanh(sharpness * z)


class Sharp:
    """One that cannot be hashed."""

    __hash__ = None

    def __call__(self, z):
        if has_torch_function_unary(z):
            return handle_torch_function(self, (z,), z)
        return torch.tanh(sharpness * z)


@pytest.mark.parametrize("function", [sharp, Sharp()], ids=["function", "object"])
def test_overridable_functions_of_others_are_run_every_time(function, monkeypatch):
    c = Chain()
    energy = lambda: c.below() + c.above(c.edge(function(c.z)))  # noqa: E731
    loop = pyro.InferenceLoop(energy, [c.z], lr=0.1)
    for value in (1.0, 3.0):
        monkeypatch.setitem(globals(), "sharpness", value)
        expected = c.z.detach() - 0.1 * torch.autograd.grad(energy().sum(), c.z)[0]
        loop.run(1)
        torch.testing.assert_close(c.z.detach(), expected, rtol=1e-12, atol=1e-12)
    assert "is no function of PyTorch's" in loop.explain()


def test_a_function_called_as_pytorchs_is_not_it():
    def relu(z):
        if has_torch_function_unary(z):
            return handle_torch_function(relu, (z,), z)
        return z.clamp(0, 0.5)

    relu.__module__ = "torch.nn.functional"
    c = Chain()
    assert c.check(lambda c: c.below() + c.above(c.edge(relu(c.z)))).startswith("executor: autograd")


SLOPE = torch.tensor([-0.3], dtype=torch.float64)

# Every way to write an activation or a linear edge that is a chain's, and those that look like it.
CHAINS = {
    "F.relu": F.relu,
    "F.relu(inplace=False)": lambda z: F.relu(z, False),
    "torch.relu": torch.relu,
    "Tensor.relu": lambda z: z.relu(),
    "aten.relu": aten.relu,
    "aten.relu.default": aten.relu.default,
    "F.tanh": F.tanh,
    "aten.tanh": aten.tanh,
    "Tensor.sigmoid": lambda z: z.sigmoid(),
    "nn.SiLU": nn.SiLU(),
    "aten.silu": aten.silu,
    "nn.GELU": nn.GELU(),
    "gelu-tanh": nn.GELU("tanh"),
    "aten.gelu-tanh": lambda z: aten.gelu(z, approximate="tanh"),
    "nn.LeakyReLU": nn.LeakyReLU(0.2),
    "leaky_relu-keyword": lambda z: F.leaky_relu(input=z, negative_slope=0.3),
    "aten.leaky_relu": lambda z: aten.leaky_relu(z, 0.3),
    "nn.PReLU": nn.PReLU(init=0.2).double().requires_grad_(False),
    "F.prelu": lambda z: F.prelu(z, SLOPE),
    "prelu-keyword": lambda z: torch.prelu(weight=SLOPE, input=z),
    "Tensor.prelu": lambda z: z.prelu(SLOPE.abs()[0]),
    "aten.prelu": lambda z: aten.prelu(z, SLOPE),
    "nn.ELU": nn.ELU(0.7),
    "aten.elu": lambda z: aten.elu(z, 0.7),
    "elu-all-arguments": lambda z: aten.elu(z, 0.7, 1, 1.0),
    "nn.Softplus": nn.Softplus(2.0),
    "softplus-default-threshold": lambda z: aten.softplus(z, 2.0, 20),
    "nn.SELU": nn.SELU(),
    "selu": torch.selu,
    "aten.selu": aten.selu,
    "nn.ReLU6": nn.ReLU6(),
    "relu6": F.relu6,
    "aten.relu6": aten.relu6,
    "hardtanh": F.hardtanh,
    "nn.Hardtanh": nn.Hardtanh(-0.5, 0.5),
    "nn.Hardtanh-from-0": nn.Hardtanh(0, 0.5),
    "hardtanh-keyword": lambda z: F.hardtanh(z, min_val=0.0),
    "aten.hardtanh": lambda z: aten.hardtanh(z, -0.3, 0.3),
}
NO_CHAINS = {
    "elu-scale": lambda z: aten.elu(z, 1.0, 2.0),
    "elu-input-scale": lambda z: aten.elu.default(z, 0.7, 1.0, 0.5),
    "elu-scale-keyword": lambda z: torch._C._nn.elu(z, scale=2.0),
    "softplus-threshold": lambda z: F.softplus(z, 1.0, 0.5),
    "softplus-threshold-keyword": lambda z: F.softplus(z, threshold=0.5),
    "nn.Hardtanh-bounds": nn.Hardtanh(-1.0, 2.0),
    "hardtanh-upper": lambda z: F.hardtanh(z, max_val=0.5),
    "hardtanh-positive": lambda z: F.hardtanh(z, 0.1, 0.5),
    "hardtanh-negative": lambda z: F.hardtanh(z, -1.0, 0.0),
    "clamp": lambda z: z.clamp(-1.0, 1.0),
    "nn.PReLU-of-features": nn.PReLU(6).double(),
    "prelu-of-a-state": lambda z: F.prelu(z, z.mean().reshape(1)),
}


@pytest.mark.parametrize("name", [*CHAINS, *NO_CHAINS])
def test_activations_under_all_of_their_names(name):
    function = CHAINS.get(name) or NO_CHAINS[name]
    explained = Chain().check(lambda c: c.below() + c.above(c.edge(function(c.z))))
    assert explained.startswith("executor: chain" if name in CHAINS else "executor: graph")


IN_PLACE = {
    "relu6": lambda x: F.relu6(x, inplace=True),
    "selu": torch.selu_,
    "selu-option": nn.SELU(inplace=True),
    "hardtanh": F.hardtanh_,
    "hardtanh-option": nn.Hardtanh(0.0, 2.0, inplace=True),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_activations_that_write_over_a_product(name):
    assert Chain().check(lambda c: c.below() + c.above(IN_PLACE[name](c.edge(c.z)))).startswith("executor: chain")


LINEAR = {
    "F.linear": lambda c: F.linear(c.z, c.edge.weight, c.edge.bias),
    "keywords": lambda c: F.linear(bias=c.edge.bias, weight=c.edge.weight, input=c.z),
    "aten.linear": lambda c: aten.linear(c.z, c.edge.weight, c.edge.bias),
    "aten.linear.default": lambda c: aten.linear.default(c.z, c.edge.weight, bias=c.edge.bias),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_edges_under_all_of_their_names(name):
    assert Chain().check(lambda c: c.below() + c.above(LINEAR[name](c))).startswith("executor: chain")


STATISTICS = {
    "F.batch_norm": lambda z, m, v: F.batch_norm(z, m, v, training=True),
    "torch.batch_norm": lambda z, m, v: torch.batch_norm(z, None, None, m, v, True, 0.1, 1e-5, False),
    "aten.batch_norm": lambda z, m, v: aten.batch_norm(z, None, None, m, v, True, 0.1, 1e-5, False),
    "F.instance_norm": lambda z, m, v: F.instance_norm(z.unsqueeze(2).expand(-1, -1, 3), m, v).sum(2),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_running_statistics_are_updated_at_every_step(name):
    z = free(5, 4)
    mean, variance = torch.zeros(4).double(), torch.ones(4).double()
    loop = pyro.InferenceLoop(lambda: STATISTICS[name](z, mean, variance).pow(3).sum(1), [z], lr=0.01)
    loop.run(1)
    assert "running statistics" in loop.explain()
    mean.zero_()
    loop.run(1)
    assert mean.ne(0).all()


OTHER, PLACES = torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64), torch.tensor([2, 0, 1])
BESIDE = {  # what operators take beside the tensor that they write
    **dict.fromkeys(("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "pow"), (OTHER,)),
    **dict.fromkeys(("clamp", "clip", "clamp_min", "clamp_max"), (0.0,)),
    **dict.fromkeys(("index_add", "index_copy", "scatter", "scatter_add"), (0, PLACES, OTHER)),
    **dict.fromkeys(("addcmul", "addcdiv"), (OTHER, OTHER + 1)),
    "threshold": (0.1, 2.0), "lerp": (OTHER, 0.3), "masked_fill": (OTHER > 2.5, 7.0), "cumsum": (0,),
    "masked_scatter": (OTHER > 2.5, OTHER), "index_fill": (0, PLACES[:2], 7.0), "index_put": ((PLACES,), OTHER),
}  # fmt: skip


def test_every_operator_that_writes_has_a_counterpart_with_the_same_values():
    for writing, pure in vocabulary._OUT_OF_PLACE.items():
        name = vocabulary.name_of(pure).rpartition(".")[2]
        written = torch.tensor([0.5, -1.5, 2.0], dtype=torch.float64)
        if name in ("tril", "triu"):
            written = written.outer(OTHER)
        expected = pure(written, *BESIDE.get(name, ()))
        assert expected is not written
        result = writing(written, *BESIDE.get(name, ()))
        assert result is written, name
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


def test_a_tensor_with_an_item_is_another():
    before = OTHER.clone()
    found = vocabulary.with_item(OTHER, slice(1, None), 7.0)
    assert found.tolist() == [2.0, 7.0, 7.0]
    assert torch.equal(OTHER, before)


POWERS = {
    "operator": lambda c: 0.1 * (c.z**2).sum(1),
    "number-first": lambda c: 0.1 * (2.0**c.z).sum(1),
    "in-place": lambda c: 0.1 * (c.z + 1.0).__ipow__(2).sum(1),
}


@pytest.mark.parametrize("name", POWERS)
def test_powers_written_as_operators(name):
    """Tensor.__pow__ is a Python function without a signature of its own."""
    c = Chain()
    c.check(lambda c: c.above(c.edge(c.z)) + POWERS[name](c))


def test_every_function_can_be_asked_for_its_options():
    places = torch, torch.Tensor, F
    functions = [f for place in places for f in vars(place).values() if isinstance(f, FunctionType)]
    assert torch.Tensor.__pow__ in functions
    for f in functions:
        assert vocabulary.works_in_place(f, (), {"inplace": True}) >= vocabulary.works_in_place(f, (), {})
