"""Processes that learn one network, each from samples of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor

from ..arguments import kind_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# what keeps parts of a network in every process, or averages gradients by itself; each is in a module of its own
_WRAPPERS = (
    ("torch.nn.parallel", "DistributedDataParallel"),
    ("torch.nn.parallel", "DataParallel"),
    ("torch.distributed.fsdp", "FullyShardedDataParallel"),
)


class Group:
    """The processes of a group, of which this is one. All make the same calls in the same order.

    Args:
        group: None is that of all processes.

    Raises:
        ValueError: this process is not in it.
    """

    def __init__(self, group: ProcessGroup | None) -> None:
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("distributed must be a group that this process is in, got one of others")

    def begin(self, parameters: Sequence[Tensor]) -> None:
        """Give all processes the parameters of the first.

        Raises:
            ValueError: they have others; in all processes.
        """
        self._device = parameters[0].device  # of all that is exchanged: not every backend takes what is elsewhere
        forms: list[Any] = [None] * self.size
        dist.all_gather_object(forms, [(tuple(p.shape), p.dtype) for p in parameters], group=self._group)
        for rank, form in enumerate(forms):
            if form != forms[0]:
                told = f"{len(form)} of {sum(_size(shape) for shape, _ in form)} numbers in process {rank}"
                first = f"{len(forms[0])} of {sum(_size(shape) for shape, _ in forms[0])} in process 0"
                raise ValueError(f"optimizer must hold the same parameters in all processes, got {told}, {first}")
        with torch.no_grad():
            for p in parameters:
                whole = p.detach().contiguous()
                dist.broadcast(whole, group=self._group, group_src=0)
                p.copy_(whole)

    def average(self, parameters: Sequence[Tensor], samples: int) -> None:
        """Make every gradient the mean over the samples of all processes, by one all-reduce.

        Args:
            parameters: whose gradients are means over this process's samples; one that has none counts as zero.
            samples: how many these are, which may be none.
        """
        double = any(p.dtype == torch.float64 for p in parameters)
        dtype = torch.float64 if double else torch.float32
        with torch.no_grad():
            parts = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in parameters]
            weight = torch.ones(1, dtype=dtype, device=self._device)
            flat = torch.cat([*(part.reshape(-1).to(dtype) for part in parts), weight]) * samples
            dist.all_reduce(flat, group=self._group)
            *sums, total = flat.split([*(p.numel() for p in parameters), 1])
            for p, of in zip(parameters, sums, strict=True):
                p.grad = (of / total).to(p.dtype).view(p.shape)

    def order(self, order: Tensor) -> Tensor:
        """That of the first process."""
        count = torch.tensor([len(order)], device=self._device)
        dist.broadcast(count, group=self._group, group_src=0)
        found = order.to(self._device) if int(count) == len(order) else count.new_empty(int(count))
        dist.broadcast(found, group=self._group, group_src=0)
        return found.to(order.device)

    def slowest(self, seconds: float) -> float:
        """The most that one of them has taken."""
        most = torch.tensor([seconds], device=self._device)
        dist.all_reduce(most, dist.ReduceOp.MAX, group=self._group)
        return float(most)

    def __deepcopy__(self, memo: Mapping[int, Any]) -> Group:
        return self

    def __reduce__(self) -> Any:
        raise TypeError("an EM of several processes cannot be pickled: save its state_dict, which is that of all")


def group_of(distributed: bool | ProcessGroup | None) -> Group | None:
    """The processes that an `EM` learns with; None where it learns alone.

    Raises:
        TypeError: it is neither None, True, False nor a group.
        ValueError: there are no processes, or this one is not in the group.
    """
    if distributed is None or distributed is False:
        return None
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            "distributed needs processes that know of each other: call torch.distributed.init_process_group() first, "
            "in a program that torchrun has started"
        )
    if distributed is not True and not isinstance(distributed, dist.ProcessGroup):
        if distributed is dist.GroupMember.NON_GROUP_MEMBER:
            raise ValueError("distributed must be a group that this process is in, got one of others")
        raise TypeError(
            f"distributed must be None, True, False or a group of torch.distributed, got {kind_of(distributed)}"
        )
    group = Group(None if distributed is True else distributed)
    return group if group.size > 1 else None


def others() -> int:
    """How many other processes `torch.distributed` knows of."""
    return dist.get_world_size() - 1 if dist.is_available() and dist.is_initialized() else 0


def check_whole(what: str, modules: Iterable[nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Raise where a network is not whole in this process, or others average its gradients.

    Raises:
        TypeError: a module is wrapped, or a tensor is a `DTensor`.
    """
    kinds = tuple(getattr(sys.modules[path], name) for path, name in _WRAPPERS if hasattr(sys.modules.get(path), name))
    for module in modules:
        if isinstance(module, kinds):
            raise TypeError(
                f"{what} must be of the network itself, got {type(module).__name__}, which waits for a backward of "
                "autograd that there is none of: leave the wrapper out, and give EM(distributed=True)"
            )
    sharded = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    if sharded is None:
        return
    for name, t in tensors.items():
        if isinstance(t, sharded):
            raise TypeError(
                f"{what} must be of whole tensors, got {name}, a DTensor of shape {tuple(t.shape)}: every process "
                "keeps all of a network here; leave out fully_shard and parallelize_module, and give "
                "EM(distributed=True)"
            )


def _size(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()
