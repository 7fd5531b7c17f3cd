#pragma once

#include "chain_operands.h"
#include "chain_tile_kernel.h"

namespace pyromancy::cuda {

// What inference computes once, and what it has to compute at every step.
class Schedule {
public:
  Schedule(const Chain& chain, const Inference& inference);

  Feedback feedback(int64_t node) const;

  // Sets the states that start at a prediction which no step changes.
  void sweep_constant() const;

  std::vector<bool> live;           // an edge from a free node predicts this one
  std::vector<bool> computes_error; // of this node, at every step
  MaybeTensors constant;            // predictions that no step changes
  std::vector<int64_t> constant_row;
  MaybeTensors constant_feedback; // W^T P (z - b), of edges with a gram

private:
  void predict(int64_t node);
  Tensor constant_feedback_of(int64_t edge) const;
  Tensor zeros_like_row(int64_t node) const;

  const Chain& chain_;
  const Inference& inference_;
};

} // namespace pyromancy::cuda
