#pragma once

#include "../nonlinearity.h"
#include "device.h"

namespace pyromancy::cuda {

inline constexpr double kSqrtHalf = 0.70710678118654752440;
inline constexpr double kInvSqrt2Pi = 0.39894228040143267794;
inline constexpr double kGeluScale = 0.79788456080286535588; // sqrt(2 / pi)
inline constexpr double kGeluCubic = 0.044715;

template <class C>
__device__ inline C logistic(C x) {
  const C e = std::exp(x < 0 ? x : -x);
  return (x < 0 ? e : C(1)) / (e + C(1));
}

// f(x). The kind is the same for all threads of a warp.
template <class C>
__device__ inline C activate(const Nonlinearity& f, C x) {
  const C p = static_cast<C>(f.parameter);
  switch (f.kind) {
  case Activation::identity:
    return x;
  case Activation::relu:
    return x > 0 || x != x ? x : C(0); // as torch, NaN stays
  case Activation::leaky_relu:
    return x > 0 ? x : p * x;
  case Activation::elu:
    return x > 0 ? x : p * std::expm1(x);
  case Activation::silu:
    return x * logistic(x);
  case Activation::gelu:
    return C(0.5) * x * (C(1) + std::erf(x * C(kSqrtHalf)));
  case Activation::gelu_tanh:
    return C(0.5) * x * (C(1) + std::tanh(C(kGeluScale) * (x + C(kGeluCubic) * x * x * x)));
  case Activation::tanh:
    return std::tanh(x);
  case Activation::sigmoid:
    return logistic(x);
  case Activation::softplus: {
    const C y = x * p;
    return y > 20 ? x : ((y > 0 ? y : C(0)) + std::log1p(std::exp(y < 0 ? y : -y))) / p;
  }
  }
  return x;
}

// f'(x), given also y = f(x)
template <class C>
__device__ inline C slope(const Nonlinearity& f, C x, C y) {
  const C p = static_cast<C>(f.parameter);
  switch (f.kind) {
  case Activation::identity:
    return C(1);
  case Activation::relu:
    return y > 0 ? C(1) : C(0);
  case Activation::leaky_relu:
    return x > 0 ? C(1) : p;
  case Activation::elu:
    return x > 0 ? C(1) : y + p;
  case Activation::silu: {
    const C s = logistic(x);
    return s * (C(1) + x * (C(1) - s));
  }
  case Activation::gelu:
    return C(0.5) * (C(1) + std::erf(x * C(kSqrtHalf))) +
           x * C(kInvSqrt2Pi) * std::exp(C(-0.5) * x * x);
  case Activation::gelu_tanh: {
    const C t = std::tanh(C(kGeluScale) * (x + C(kGeluCubic) * x * x * x));
    return C(0.5) * (C(1) + t) +
           C(0.5) * x * (C(1) - t * t) * C(kGeluScale) * (C(1) + C(3 * kGeluCubic) * x * x);
  }
  case Activation::tanh:
    return C(1) - y * y;
  case Activation::sigmoid:
    return y * (C(1) - y);
  case Activation::softplus:
    return x * p > 20 ? C(1) : logistic(x * p);
  }
  return C(1);
}

} // namespace pyromancy::cuda
