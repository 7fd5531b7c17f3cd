#pragma once

// What activations, laws and rules are written in, once for CPU and GPU: Vec<C> is a vector of the
// instruction set that a file is compiled for, or one number of a GPU's thread, and operators,
// conditions included, go element by element. exp, expm1, tanh, normal, log1p_unit,
// log_upwards, divide, subtract, fma and fnma are what each has, and Number<V> the type of a
// vector's numbers.

#if defined(PYROMANCY_ISA)
#include "cpu/math.h"
#define PYROMANCY_TARGET PYROMANCY_ISA
#define PYROMANCY_FORMULA PYROMANCY_INLINE
#else
#include "cuda/math.h"
#define PYROMANCY_TARGET cuda
#define PYROMANCY_FORMULA __device__ inline
#endif
