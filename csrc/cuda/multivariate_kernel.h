#pragma once

#include "../dtype.h"
#include "operands.h"

namespace pyromancy::cuda {

// A state [B, P, n] as `rows` = B P rows of n elements; row r is position r % P of sample r / P.
struct States {
  const void* data;
  int64_t sample, position, element; // strides
};

struct Factor {
  const void* data; // L [n, n]; only its lower triangle is read
  int64_t row, column;
};

struct SolveArgs {
  DType dtype;
  int64_t rows, positions, n;
  States value, pred; // the right-hand side is value - pred, or value where there is no pred,
  const void* weight; // times one number per sample, or 1
  int64_t weight_stride;
  Factor factor;
  void* work;     // the solution [rows, n], in compute precision
  void* out;      // the same in the element type, where that is another
  void* negative; // and its negative, always in the element type; may be absent
  void* energy;   // 1/2 |u|^2 + log det L of each row [rows], in compute precision; forward only
};

enum class Solve : int {
  forward,  // L u = rhs
  backward, // L^T y = rhs
  both,     // L L^T y = rhs
};

void launch_solve(Solve solve, const SolveArgs& args, void* stream);

// The gradient for L: -tril(grad_value^T whitened) + P sum(grad) diag(1 / diag(L)).
struct OuterArgs {
  DType dtype;
  int64_t batch, positions, n;
  States grad_value, whitened;
  const void* grad; // [B]
  int64_t grad_stride;
  Factor factor;
  int64_t segments; // pieces that the rows are cut into, by shapes alone
  void* partial;    // [segments, n, n] in compute precision
  void* total;      // the sum of grad, in compute precision
  void* out;        // [n, n]
};

void launch_outer(const OuterArgs& args, void* stream);

} // namespace pyromancy::cuda
