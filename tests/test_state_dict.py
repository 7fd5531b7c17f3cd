"""Checkpoints: what is learned is in them, what is transient is not."""

import copy
import io

import pytest
import torch

import networks
from networks import KINDS
from nodes_common import STATEFUL


def chain(kind="MultivariateGaussianNode"):
    return networks.Chain(("FixedNode", "StandardGaussianNode", kind), (3, 4, 2))


LEARNED = {
    "StandardGaussianNode": [],
    "IsotropicGaussianNode": ["nodes.2.logvar"],
    "FactorizedGaussianNode": ["nodes.2.logvar"],
    "MultivariateGaussianNode": ["nodes.2.covar_cf_logdiag", "nodes.2.covar_cf_offtril"],
}
EDGES = [f"edges.{i}.{name}" for i in (0, 1) for name in ("weight", "bias")]


@pytest.fixture
def batch():
    return torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_holds_what_is_learned(kind, batch):
    pcn = chain(kind)
    assert sorted(pcn.state_dict()) == sorted(EDGES + LEARNED[kind])
    pcn.init(*batch)
    assert sorted(pcn.state_dict(prefix="net.")) == sorted(f"net.{k}" for k in EDGES + LEARNED[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_through_a_file(kind, batch):
    pcn, other, file = chain(kind), chain(kind), io.BytesIO()
    if kind != "StandardGaussianNode":
        pcn.nodes[2].covariance = networks.covariance_of(2)
    torch.save(pcn.state_dict(), file)
    file.seek(0)
    for net in (pcn, other):
        net.init(*batch)
    states = [node.value.detach().clone() for node in other.nodes]
    before = other.energy().detach()
    result = other.load_state_dict(torch.load(file, weights_only=True))
    assert result.missing_keys == result.unexpected_keys == []
    for node, state in zip(other.nodes, states, strict=True):
        assert torch.equal(node.value, state)  # loading is no inference
    assert not torch.equal(other.energy(), before)
    other.init(*batch)
    assert torch.equal(other.energy(), pcn.energy())


@pytest.mark.parametrize("kind", STATEFUL)
@pytest.mark.parametrize("initialised", [False, True], ids=["fresh", "initialised"])
def test_states_in_old_checkpoints_are_dropped(kind, initialised):
    node = STATEFUL[kind](3)
    if initialised:
        node.init(torch.ones(2, 3))
    checkpoint = {**node.state_dict(), "value": torch.zeros(7, 3)}
    kept = copy.copy(checkpoint)
    node.load_state_dict(checkpoint)
    assert [*checkpoint] == [*kept]
    assert node.value.shape == ((2, 3) if initialised else (0,))
    assert not initialised or node.value.all()


@pytest.mark.parametrize("kind", STATEFUL)
def test_other_keys_are_still_checked(kind):
    node = STATEFUL[kind](3)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*novel"):
        node.load_state_dict({**node.state_dict(), "novel": torch.zeros(3)})
    result = node.load_state_dict({"values": torch.zeros(3)}, strict=False)
    assert result.unexpected_keys == ["values"]
    assert result.missing_keys == [*node.state_dict()]


def test_parameters_named_value_of_other_modules_are_kept():
    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.value = torch.nn.Parameter(torch.ones(2))

    net = torch.nn.Sequential(Scale(), STATEFUL["isotropic"](3))
    assert [*net.state_dict()] == ["0.value", "1.logvar"]
    net.load_state_dict({"0.value": torch.zeros(2), "1.logvar": torch.zeros([]), "1.value": torch.zeros(2, 3)})
    assert not net[0].value.any()
