"""What declares and collects parameters, under the module path that it has in `pyromancy-ai`."""

from .registration import (
    eparameters,
    get_estep_params,
    get_mstep_params,
    get_named_estep_params,
    get_named_mstep_params,
    mparameters,
)

__all__ = [
    "eparameters",
    "get_estep_params",
    "get_mstep_params",
    "get_named_estep_params",
    "get_named_mstep_params",
    "mparameters",
]
