#pragma once

// The elementwise work of one E-step of a chain, between the library's matrix products; float32 and
// float64, everything [rows, n] and contiguous. A pointer that is null is left out.

#include "../activations.h"
#include "../dtype.h"
#include "../laws/expression.h"
#include "../laws/law.h"

namespace pyromancy::cuda {

// From a prediction to what the step and the M-step need of its error.
struct ErrorArgs {
  DType dtype;
  int64_t rows, n;
  Nonlinearity after;
  const void* product; // W before(z), [rows, n]: mu = after(product + bias + skip source)
  const void* bias;    // [n]
  const void* source;  // [rows, n]
  double skip;
  const void* given; // or mu itself, its rows given_row apart
  int64_t given_row;
  const void* state; // z; null where only mu is wanted
  Law law;
  double law_parameter, weight; // of the law and of its energy
  const Expression* expression; // of a law that is one, on the host
  const void* rate;             // the law's, [n]; null is 1
  const void* theta;            // of an expression that has one, its elements so far apart; or null
  int64_t theta_row, theta_column;
  const void* weighed;        // P (z - mu) in the law's place, where P is a matrix
  const void* sample_weights; // [rows], of all that comes of the energy; null is 1
  double scale;               // of delta; of moment its negative
  double normalizer;          // that the energy has times theta
  void* prediction;           // mu
  void* residual;             // z - mu
  void* error;                // what the energy grows by with z; of a law of rows delta, unscaled
  void* deviation;            // the energy without its normalizer
  void* delta;                // scale after' times what the energy shrinks by with mu
  void* moment;               // -scale times what it grows by with theta
};
void launch_error(const ErrorArgs& args, void* stream);

// The descent of a state, and f(z) afterwards for the next product.
struct UpdateArgs {
  DType dtype;
  int64_t size;
  Nonlinearity before;
  void* state;
  void* velocity;                // momentum only
  const void* error;             // e
  const void* feedback;          // d W
  const void* constant_feedback; // or constant_feedback - feedback in its place
  const void* delta;             // of what the state itself is a part of, times skip
  double skip;
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

} // namespace pyromancy::cuda
