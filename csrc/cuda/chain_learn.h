#pragma once

#include "chain_operands.h"

namespace pyromancy::cuda {

// What weights learn from of a node's error, each [B, n], or null where none does.
struct Lesson {
  MaybeTensor delta;     // 1/B after' times what the energy grows by with mu
  MaybeTensor moment;    // 1/B what it grows by with theta
  double normalizer = 0; // that it has times theta
  bool given = false;    // by the steps
};

// The gradients that are wanted of a chain.
class Learner {
public:
  Learner(const Chain& chain, const std::vector<Gradient>& wanted);

  void learn();

  std::vector<Lesson> lessons; // by node

private:
  void study(int64_t node, const MaybeTensor& source);
  void write(const Gradient& gradient, const MaybeTensor& source) const;

  const Chain& chain_;
  const std::vector<Gradient>& wanted_;
  const double mean_;
};

} // namespace pyromancy::cuda
