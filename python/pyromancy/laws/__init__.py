"""The laws that energies follow, by their place in the vocabulary: each a module of functions of tensors."""

from __future__ import annotations

from types import ModuleType

from ..plan import Law
from . import bernoulli, categorical, expression, full_gaussian, gaussian, huber, laplace, poisson, student

LAWS: dict[Law, ModuleType] = {
    Law.GAUSSIAN: gaussian,
    Law.FULL_GAUSSIAN: full_gaussian,
    Law.LAPLACE: laplace,
    Law.BERNOULLI: bernoulli,
    Law.POISSON: poisson,
    Law.STUDENT: student,
    Law.HUBER: huber,
    Law.CATEGORICAL: categorical,
    Law.EXPRESSION: expression,
}
