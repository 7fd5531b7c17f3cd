"""What `EM.load_state_dict` asks of what it is given, before anything is loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_saved(state: Any, like: dict[str, Any]) -> None:
    """Raise where an `EM` cannot go on from a state.

    Args:
        state: what `EM.state_dict` of another gave, or so.
        like: what that of this one gives.

    Raises:
        TypeError: it is no dictionary.
        ValueError: an entry is missing, cannot be of a `state_dict`, or is of another method.
    """
    if not isinstance(state, dict):
        raise TypeError(f"state must be a dictionary, as state_dict gives it, got {type(state).__name__}")
    if missing := like.keys() - state.keys():
        raise ValueError(f"state must have the entries of state_dict, got none for {', '.join(sorted(missing))}")
    if reason := _no_order(state["order"]):
        raise ValueError(f"order must be None or int64 numbers of samples, each once, got {reason}")
    for name in ("generator", "noise"):
        drawn = state[name]
        if drawn is not None and not (isinstance(drawn, Tensor) and drawn.dtype == torch.uint8):
            what = drawn.dtype if isinstance(drawn, Tensor) else type(drawn).__name__
            raise ValueError(f"{name} must be None or what torch.Generator.get_state gives, got {what}")
    done, method, options = state["batches"], like["method"], like["options"]
    if not isinstance(done, int) or isinstance(done, bool) or done < 0:
        raise ValueError(f"batches must be how many are done, got {done!r}")
    if state["method"] != method:
        raise ValueError(f"method must be that of this EM, {method}, got {state['method']!r}")
    if (state["noise"] is None) != (like["noise"] is None):
        told = "has none" if like["noise"] is None else "has one"
        raise ValueError(f"noise must be of a method's generator where this EM's method has one, and it {told}")
    if not isinstance(state["options"], dict) or state["options"].keys() != options.keys():
        raise ValueError(f"options must be those of state_dict, {', '.join(options)}, got {state['options']!r}")


def _no_order(order: Any) -> str | None:
    """Why this cannot be what is left of an epoch."""
    if order is None:
        return None
    if not isinstance(order, Tensor):
        return type(order).__name__
    if order.dtype != torch.int64 or order.dim() != 1:
        return f"{order.dtype} of shape {tuple(order.shape)}"
    if len(order) and int(order.min()) < 0:
        return f"{int(order.min())}"
    return None if len(order.unique()) == len(order) else "one of them twice"
