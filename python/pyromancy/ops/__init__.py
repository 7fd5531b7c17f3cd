"""The ``torch.ops.pyromancy`` operators: schemas, the eager reference, gradients, and the kernels of this install."""

from __future__ import annotations

import torch

from .. import native  # adds the compiled kernels to the operators that `schema` defined
from . import autograd, checks, in_place, reference, schema, triton

SERVED_BY_TRITON = triton.register()  # on GPUs: what the compiled kernels leave

gaussian_energy = torch.ops.pyromancy.gaussian_energy.default
gaussian_error = torch.ops.pyromancy.gaussian_error.default
cholesky_factor = torch.ops.pyromancy.cholesky_factor.default
multivariate_energy = torch.ops.pyromancy.multivariate_energy.default
multivariate_error = torch.ops.pyromancy.multivariate_error.default
estep_ = in_place.bound("estep_")
run_plan_ = in_place.bound("run_plan_")
elementwise_ = in_place.bound("elementwise_")
attention_ = in_place.bound("attention_")
attention_backward_ = in_place.bound("attention_backward_")
layer_norm_ = in_place.bound("layer_norm_")
layer_norm_backward_ = in_place.bound("layer_norm_backward_")
secant_products_ = in_place.bound("secant_products_")

__all__ = [
    "SERVED_BY_TRITON",
    "attention_",
    "attention_backward_",
    "autograd",
    "checks",
    "cholesky_factor",
    "elementwise_",
    "estep_",
    "gaussian_energy",
    "gaussian_error",
    "in_place",
    "layer_norm_",
    "layer_norm_backward_",
    "multivariate_energy",
    "multivariate_error",
    "native",
    "reference",
    "schema",
    "secant_products_",
    "triton",
]
