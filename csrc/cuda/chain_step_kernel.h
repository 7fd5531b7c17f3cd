#pragma once

// The elementwise work of one E-step of a chain, between the library's matrix products; float32 and
// float64, everything [rows, n] and contiguous. A pointer that is null is left out.

#include "../activations.h"
#include "../dtype.h"

namespace pyromancy::cuda {

// From a prediction to what the step and the M-step need of its error.
struct ErrorArgs {
  DType dtype;
  int64_t rows, n;
  Nonlinearity after;
  const void* product; // W before(z), [rows, n]: mu = after(product + bias)
  const void* bias;    // [n]
  const void* given;   // or mu itself, its rows given_row apart
  int64_t given_row;
  const void* state;     // z; null where only mu is wanted
  const void* precision; // the diagonal of P, [n]; null is 1
  const void* weighed;   // e = P (z - mu) itself, where P is a matrix
  double scale;          // of delta; of square its negative
  void* prediction;      // mu
  void* residual;        // z - mu
  void* error;           // e
  void* delta;           // scale after' e
  void* square;          // -scale e (z - mu)
};
void launch_error(const ErrorArgs& args, void* stream);

// The descent of a state, and f(z) afterwards for the next product.
struct UpdateArgs {
  DType dtype;
  int64_t size;
  Nonlinearity before;
  void* state;
  void* velocity;       // momentum only
  const void* error;    // e
  const void* feedback; // d W
  const void* drive;    // or drive - feedback in its place
  double lr, momentum, dampening;
  bool nesterov;
  bool starts; // the velocity is the gradient
  void* activated;
};
void launch_update(const UpdateArgs& args, void* stream);

// out = f(in)
struct ActivateArgs {
  DType dtype;
  int64_t size;
  Nonlinearity f;
  const void* in;
  void* out;
};
void launch_activate(const ActivateArgs& args, void* stream);

// out[row] = 1/2 the scalar product of the rows of two matrices
struct HalfDotArgs {
  DType dtype;
  int64_t rows, n;
  const void *a, *b;
  void* out;
};
void launch_half_dot(const HalfDotArgs& args, void* stream);

} // namespace pyromancy::cuda
