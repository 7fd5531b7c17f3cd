"""What PyTorch is in the middle of, and what is attached to states, that keeps energies from being captured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext


def obstacle(free: Sequence[Tensor]) -> str | None:
    """Why nothing can be captured, or run from a capture, in the state that PyTorch and the states are in."""
    if torch.is_autocast_enabled(free[0].device.type):
        return "autocast is on, and chooses dtypes call by call"
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return "hooks on saved tensors are on"
    if DistributedDataParallel._active_ddp_module is not None:
        return "it runs within DistributedDataParallel"
    if torch._C._len_torch_dispatch_stack() or any(
        not isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack()
    ):
        return "a mode is on that may change what PyTorch's functions do"
    if torch.is_anomaly_enabled():
        return "anomaly detection is on, which watches autograd"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "it runs within a transform of torch.func"
    if torch._C._is_tracing():
        return "it is being traced"
    if parametrize._cache_enabled:
        return "torch.nn.utils.parametrize.cached() is on, and would keep what a dry run computes"
    if any(map(has_hooks, free)):
        return "a state has a gradient hook"
    return None


def has_hooks(t: Tensor) -> bool:
    """Whether something wants to see, or change, a tensor's gradient, or to act on it at once."""
    hooks = t._backward_hooks or getattr(t, "_post_accumulate_grad_hooks", None)
    return bool(hooks) or "_in_backward_optimizers" in vars(t)
