"""Predictive coding networks trained by expectation-maximization."""

from . import backends, functional, methods, networks, nodes, plots
from . import infra as infra  # not needed here, but `pyromancy.infra` and `pyromancy.utils` are there in pyromancy-ai
from . import utils as utils
from .diagnose import Diagnosis, diagnose, max_rate
from .registration import (
    eparameters,
    get_estep_params,
    get_mstep_params,
    get_named_estep_params,
    get_named_mstep_params,
    mparameters,
)
from .run import EM, InferenceLoop
from .shape import Shape
from .version import __version__

__all__ = [
    "EM",
    "Diagnosis",
    "InferenceLoop",
    "Shape",
    "__version__",
    "backends",
    "diagnose",
    "eparameters",
    "functional",
    "get_estep_params",
    "get_mstep_params",
    "get_named_estep_params",
    "get_named_mstep_params",
    "max_rate",
    "methods",
    "mparameters",
    "networks",
    "nodes",
    "plots",
]
