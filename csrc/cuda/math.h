#pragma once

// A thread's numbers under the names that the CPU's vectors have: see arithmetic.h.

#include <cuda_runtime.h>

#include <cmath>

namespace pyromancy::cuda {

template <class C>
using Vec = C;
template <class V>
using Number = V;

template <class C>
__device__ inline C splat(C x) {
  return x;
}
template <class C>
__device__ inline C fma(C a, C b, C c) {
  return std::fma(a, b, c);
}
// c - a b
template <class C>
__device__ inline C fnma(C a, C b, C c) {
  return std::fma(-a, b, c);
}
template <class C>
__device__ inline C divide(C a, C b) {
  return a / b;
}
template <class C>
__device__ inline C square_root(C x) {
  return std::sqrt(x);
}
// Never fused with the product that a or b may be.
__device__ inline float subtract(float a, float b) {
  return __fsub_rn(a, b);
}
__device__ inline double subtract(double a, double b) {
  return __dsub_rn(a, b);
}
template <class C>
__device__ inline C exp(C x) {
  return std::exp(x);
}
template <class C>
__device__ inline C expm1(C x) {
  return std::expm1(x);
}
// log(1 + u) for u in [0, 1]
template <class C>
__device__ inline C log1p_unit(C u) {
  return std::log1p(u);
}
// log x for x >= 1
template <class C>
__device__ inline C log_upwards(C x) {
  return std::log(x);
}
template <class C>
__device__ inline C log_any(C x) {
  return std::log(x);
}
template <class C>
__device__ inline C log1p(C x) {
  return std::log1p(x);
}
template <class C>
__device__ inline C tanh(C x) {
  return std::tanh(x);
}

// Of the normal distribution what lies below x, and e^(-x^2 / 2).
template <class C>
struct Normal {
  C below, bell;
};
template <class C>
__device__ inline Normal<C> normal(C x) {
  return {C(0.5) * (std::erf(x * C(0.70710678118654752440)) + C(1)), exp<C>(C(-0.5) * x * x)};
}

} // namespace pyromancy::cuda
