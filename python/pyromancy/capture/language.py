"""What a law of one's own is made of that the language of laws lacks."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .. import functional
from ..nodes.law import ElementLaw, language
from .capture import capture
from .chains import NotAChain
from .lowering import lower
from .normal import normal
from .recording import NotCapturable


def lacks(law: ElementLaw, width: int) -> str:
    """Why chains do not take an energy of elements, or "".

    Args:
        law: of a state and a prediction, both ``[2, width]``.
        width: of the state.
    """
    z, below = (torch.zeros(2, n, requires_grad=True) for n in (width, 3))
    nothing, weight = torch.zeros(2, 3), torch.zeros(width, 3)
    try:
        program = capture(
            lambda: functional.gaussian_energy(below, nothing) + law(z, F.linear(below, weight)).sum(1), [z, below]
        )
        lower(normal(program, 2))
    except NotCapturable as reason:
        return f"cannot be captured: {reason}"
    except ValueError:
        return "does not depend on the state"
    except NotAChain as reason:
        return next((t.lacks for t in program.terms if t.lacks), f"is none of an element: {reason}")
    return ""


language.lacks = lacks
