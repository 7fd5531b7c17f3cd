"""Up to what size errors of states may be rounding alone."""

from __future__ import annotations

import torch
from torch import Tensor


def rest(state: Tensor, share: float) -> Tensor:
    """Up to what size an error of a state may be rounding alone, times a share.

    That is what a sum of products of a sample's size may be rounded by. Samples are looked at by themselves: what one
    is changes no bit of another.
    """
    if not state.numel():
        return state
    if state.dim() > 1:
        inwards = sorted(range(1, state.dim()), key=state.stride, reverse=True)
        rows = state.permute(0, *inwards).flatten(1)  # as they lie
        most = torch.maximum(rows.amax(1), rows.amin(1).neg_()).view(-1, *[1] * (state.dim() - 1))
    else:
        most = state.abs()
    most.mul_(8 * torch.finfo(state.dtype).eps * share)
    return most.masked_fill_(most.isinf(), -1.0).expand_as(state)  # an infinite state goes where its gradient takes it
