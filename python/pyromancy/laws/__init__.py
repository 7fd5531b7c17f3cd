"""The laws that energies follow, by their place in the vocabulary: each a module of functions of tensors."""

from __future__ import annotations

from types import ModuleType

from ..plan import Law
from . import categorical, full_gaussian, gaussian, laplace

LAWS: dict[Law, ModuleType] = {
    Law.GAUSSIAN: gaussian,
    Law.FULL_GAUSSIAN: full_gaussian,
    Law.LAPLACE: laplace,
    Law.CATEGORICAL: categorical,
}
