"""How E-steps move: methods as values, which `InferenceLoop` takes as ``method``.

Each is a class of one file: what it computes of one sample depends on no other sample, and not on how an energy is
evaluated. docs/methods.md says what they compute and which to take.
"""

from .accelerated import Accelerated
from .adam import Adam
from .base import Evaluation, Method, Objective
from .constraints import Known, Range, Shrink
from .descent import Descent
from .fixed_prediction import FixedPrediction
from .heun import Heun
from .langevin import Langevin
from .lbfgs import LBFGS
from .rated import Rated
from .sequential import Sequential
from .stop import Stop
from .zil import ZIL

__all__ = [
    "LBFGS",
    "ZIL",
    "Accelerated",
    "Adam",
    "Descent",
    "Evaluation",
    "FixedPrediction",
    "Heun",
    "Known",
    "Langevin",
    "Method",
    "Objective",
    "Range",
    "Rated",
    "Sequential",
    "Shrink",
    "Stop",
]
