#pragma once

// Activations, one line each. Their order is that of plan/activations.py, and so are their numbers
// in plans. A formula is read in the words of activate.h: p is the parameter, C the type of
// numbers.

#include <cstdint>

namespace pyromancy {

// ROW(name, f(x), f'(x) given also y = f(x))
//   leaky_relu: p is the negative slope. elu: alpha. softplus: beta; linear beyond beta x = 20, as
//   in torch. clipped_relu: the upper bound, 6 for ReLU6. hardtanh: the bound on both sides.
// Comparisons are such that NaN stays.
// clang-format off
#define PYROMANCY_ACTIVATIONS(ROW)                                                             \
  ROW(identity, x, one)                                                                        \
  ROW(relu, x < zero ? zero : x, y > zero ? one : zero)                                        \
  ROW(leaky_relu, x > zero ? x : x * p, x > zero ? one : p)                                    \
  ROW(elu, x > zero ? x : p * expm1<C>(x), x > zero ? one : y + p)                             \
  ROW(silu, silu<C>(x), silu_slope<C>(x))                                                      \
  ROW(gelu, x * normal(x).below, gelu_slope<C>(x))                                             \
  ROW(gelu_tanh, x * gelu_gate<C>(x), gelu_tanh_slope<C>(x))                                   \
  ROW(tanh, tanh(x), one - y * y)                                                              \
  ROW(sigmoid, sigmoid<C>(x), y * (one - y))                                                   \
  ROW(softplus, softplus<C>(x, p), x * p > C(20) ? one : sigmoid<C>(x * p))                    \
  ROW(clipped_relu, x < zero ? zero : (x > p ? p : x), y > zero ? (y < p ? one : zero) : zero) \
  ROW(hardtanh, x < -p ? -p : (x > p ? p : x), y > -p ? (y < p ? one : zero) : zero)           \
  ROW(selu, selu<C>(x), x > zero ? splat<C>(kSeluScale) : y + C(kSeluDepth))
// clang-format on

#define PYROMANCY_NAME(name, value, slope) name,
enum class Activation : int64_t { PYROMANCY_ACTIVATIONS(PYROMANCY_NAME) };
#undef PYROMANCY_NAME

#define PYROMANCY_ONE(name, value, slope) +1
inline constexpr int64_t kActivations = 0 PYROMANCY_ACTIVATIONS(PYROMANCY_ONE);
#undef PYROMANCY_ONE

struct Nonlinearity {
  Activation kind = Activation::identity;
  double parameter = 0;
};

} // namespace pyromancy
