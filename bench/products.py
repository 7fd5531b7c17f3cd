"""The products and the optimizer's step of an EM batch by PyTorch alone: what is left where all else costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .jax_general import modules
from .settings import ADAM_RATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from .general import General


def products_and_adam(general: General) -> Callable[[], None]:
    """All products that a batch of Linear edges takes if none is left out, and PyTorch's fused Adam.

    They are those of a library, `torch.mm`, each into memory that is there. A weight whose source is clamped predicts
    once a batch. Any other predicts once for every E-step, the first of which begins at the start's predictions, and
    for the errors at the end, and takes errors back once for every E-step. Each makes a gradient once.
    """
    _, edges, *_ = general.parts()
    steps: list[tuple[Tensor, Tensor, Tensor]] = []
    once: list[tuple[Tensor, Tensor, Tensor]] = []
    for place, edge in enumerate(edges, 1):
        for source, module in modules(edge, place):
            for weight in (p.detach() for p in module.parameters() if p.dim() == 2):
                state, error = (torch.rand(general.batch, n) for n in weight.shape[::-1])
                up, down = (state, weight.t(), torch.empty_like(error)), (error, weight, torch.empty_like(state))
                once += [up, (error.t(), state, torch.empty_like(weight))]
                if 0 < source < len(edges):
                    steps += [up, down]
    parameters = list(edges.parameters())
    for p in parameters:
        p.grad = torch.rand_like(p)
    adam = torch.optim.Adam(parameters, lr=ADAM_RATE, fused=True)

    def run() -> None:
        for _ in range(general.steps):
            for a, b, out in steps:
                torch.mm(a, b, out=out)
        for a, b, out in once:
            torch.mm(a, b, out=out)
        adam.step()

    return run
