"""Processes that learn one network come to what one process comes to on all their samples."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist

import forks
import pyromancy as pyro
import ranks

pytestmark = pytest.mark.slow  # processes that all load torch


@pytest.fixture(scope="module", params=[2, 4], ids="{} processes".format)
def several(request, tmp_path_factory):
    """What each of them has come to."""
    folder = tmp_path_factory.mktemp("ranks")
    forks.python(ranks.__file__, folder, request.param)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("kind", ranks.KINDS)
def test_they_learn_as_one_does(kind, several):
    """From parts of 1 to 9 samples, and in an epoch whose last batch has fewer samples than there are processes."""
    one = ranks.Training(kind, distributed=False)
    before = [p.detach().clone() for p in one.net.m_params()]
    torch.manual_seed(7)
    expected = one.run()
    for result in several:
        assert result[kind]["batches"] == expected["batches"] == ranks.STEPS + 8
        for ours, theirs, first in zip(result[kind]["learned"], expected["learned"], before, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)
            assert (theirs - first).abs().max() > 1e-3
        assert all(map(torch.equal, result[kind]["learned"], several[0][kind]["learned"]))  # to the bit


def test_it_is_told(several):
    told = [result["plain"]["told"].splitlines() for result in several]
    for rank, lines in enumerate(told):
        assert lines[0] == "a batch: one call of an operator, then the optimizer"
        assert lines[1] == "  the optimizer is called: gradients of all processes are averaged first"
        assert lines[2] == (
            f"  process {rank} of {len(several)}: gradients, 271 numbers, are averaged over all in one all-reduce "
            "per batch"
        )
    assert "all-reduce per E-step" in several[0]["incremental"]["told"]


def test_what_differs_is_refused_everywhere(several):
    """Otherwise those that do not see it would wait for the others."""
    for rank, result in enumerate(several):
        assert result["refused"]["shapes"] == (
            "ValueError: optimizer must hold the same parameters in all processes, got 4 of 30 numbers in process 1, "
            "4 of 23 in process 0"
        )
        if rank:
            assert result["refused"]["group"].startswith("ValueError: distributed must be a group that this process is")


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A process that has been initialised by itself."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_one_process_is_as_none(alone):
    one, other = ranks.Training("plain", distributed=True), ranks.Training("plain")
    torch.manual_seed(7)
    result = one.run()
    torch.manual_seed(7)
    assert all(map(torch.equal, result["learned"], other.run()["learned"]))
    assert result["told"].startswith("a batch: one call of an operator\n")


def test_processes_must_have_been_made():
    with pytest.raises(ValueError, match=r"call torch.distributed.init_process_group\(\) first"):
        ranks.Training("plain", distributed=True)


def test_what_is_no_group_is_refused(alone):
    with pytest.raises(TypeError, match=r"distributed must be None, True, False or a group of .*, got str"):
        ranks.Training("plain", distributed="gloo")


def test_to_be_alone_is_told_where_there_are_others(alone, monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 4)
    with pytest.warns(UserWarning, match="this EM learns by itself, beside 3 other processes"):
        ranks.Training("plain")
    ranks.Training("plain", distributed=False)


def test_a_copy_has_the_processes_and_no_file_does(alone, monkeypatch):
    monkeypatch.setattr("pyromancy.run.distributed.dist.get_world_size", lambda group=None: 2)
    monkeypatch.setattr("pyromancy.run.distributed.Group.begin", lambda self, parameters: None)
    em = ranks.Training("plain", distributed=True).em
    assert copy.deepcopy(em)._group is em._group
    with pytest.raises(TypeError, match="an EM of several processes cannot be pickled: save its state_dict"):
        pickle.dumps(em)


def em_of(net, energy):
    optimizer = torch.optim.SGD(net.m_params(), 0.1)
    return pyro.EM(energy, net.e_params(), optimizer, start=net.start, steps=1, lr=0.1, distributed=True)


def test_a_wrapped_network_is_refused(alone):
    net = pyro.networks.mlp([4, 3, 2])
    wrapped = torch.nn.parallel.DistributedDataParallel(net)
    with pytest.raises(TypeError, match="energy must be of the network itself, got DistributedDataParallel"):
        em_of(net, lambda: wrapped.module.energy())


def test_a_network_in_parts_is_refused(alone):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, distribute_module

    message = r"energy must be of whole tensors, got edges\.0\.weight, a DTensor of shape \(3, 4\)"
    mesh = init_device_mesh("cpu", (1,))
    sharded, spread = pyro.networks.mlp([4, 3, 2]), pyro.networks.mlp([4, 3, 2])
    fully_shard(sharded.edges[0], mesh=mesh)
    distribute_module(spread.edges[0], mesh)
    assert spread.edges[0].weight.placements == (Replicate(),)
    for net in (sharded, spread):
        with pytest.raises(TypeError, match=message):
            em_of(net, net.energy)
    plain = pyro.networks.mlp([4, 3, 2])
    with pytest.raises(TypeError, match=r"optimizer must be of whole tensors, got one, a DTensor"):
        pyro.EM(
            plain.energy, plain.e_params(), torch.optim.SGD(spread.edges[0].parameters(), 0.1), start=plain.start,
            steps=1, lr=0.1,
        )  # fmt: skip
