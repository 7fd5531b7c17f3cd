#pragma once

// The activations of a chain's edges by number, in the order of plan/activations.py.

#include <cstdint>

namespace pyromancy {

enum class Activation : int64_t {
  identity,
  relu,
  leaky_relu, // parameter: negative slope
  elu,        // parameter: alpha
  silu,
  gelu,
  gelu_tanh,
  tanh,
  sigmoid,
  softplus, // parameter: beta; linear beyond beta x = 20, as in torch
};
inline constexpr int64_t kActivations = 10;

struct Nonlinearity {
  Activation kind = Activation::identity;
  double parameter = 0;
};

} // namespace pyromancy
