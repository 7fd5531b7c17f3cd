#pragma once

// A chain's operands as inference and learning use them.

#include "chain.h"
#include "chain_step_kernel.h"
#include "library.h"

namespace pyromancy::cuda {

inline void* pointer(const MaybeTensor& t) {
  return t ? t->data_ptr() : nullptr;
}

// A chain's operands, dense, and the steps that inference and learning share.
class Chain {
public:
  explicit Chain(const ChainOperands& operands);

  bool predicted(int64_t node) const {
    return laws[node] != Law::none;
  }
  int64_t width(int64_t node) const {
    return states[node].size(1);
  }

  Nonlinearity before(int64_t edge) const {
    return before_[edge];
  }
  Nonlinearity after(int64_t edge) const {
    return after_[edge];
  }

  Tensor like_state(int64_t node) const {
    return allocate(states[node].sizes(), states[0]);
  }

  // before(z) of an edge's source, which is the state itself where there is no activation; a step
  // that moves the state computes it again (`UpdateArgs::activated`).
  Tensor activated(int64_t edge) const;

  // Arguments for the error of a node whose prediction an edge makes.
  ErrorArgs error_args(int64_t node, const Tensor& product) const;

  // Arguments for the error of a node whose prediction is known.
  ErrorArgs error_args(int64_t node, const void* given, int64_t row) const;

  void* stream() const {
    return context_.stream;
  }

  const Tensors &states, &weights;
  const std::vector<Law>& laws;
  const std::vector<double>&law_parameters, &energy_weights;
  const std::vector<const Expression*>& expressions;
  const std::vector<double>& skips;
  const MaybeTensors& matrices;
  MaybeTensors biases, rates, thetas, sample_weights;
  const MaybeTensor prior;
  const int64_t nodes, batch;
  const DType dtype;

private:
  ErrorArgs state_args(int64_t node) const;

  Context context_;
  const std::vector<Nonlinearity>&before_, &after_;
};

} // namespace pyromancy::cuda
