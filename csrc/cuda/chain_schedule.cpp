#include "chain_schedule.h"

namespace pyromancy::cuda {

Schedule::Schedule(const Chain& chain, const Inference& inference)
    : chain_(chain), inference_(inference) {
  const int64_t nodes = chain.nodes;
  constant.resize(nodes);
  constant_row.resize(nodes);
  constant_feedback.resize(nodes);
  for (int64_t l = 0; l < nodes; ++l) {
    const bool has_gram = l > 0 && inference.grams[l - 1];
    live.push_back(l > 0 && chain.predicted(l) && inference.free[l - 1] && !has_gram);
    computes_error.push_back(chain.predicted(l) && !has_gram &&
                             (inference.free[l] || live[l] || inference.energies));
    if (computes_error[l] && !live[l])
      predict(l);
  }
  for (int64_t l = 0; l + 1 < nodes; ++l)
    if (inference.grams[l])
      constant_feedback[l] = constant_feedback_of(l);
}

Feedback Schedule::feedback(int64_t node) const {
  if (node + 1 == chain_.nodes || !inference_.free[node])
    return Feedback::none;
  if (inference_.grams[node])
    return Feedback::gram;
  return live[node + 1] ? Feedback::product : Feedback::none;
}

void Schedule::sweep_constant() const {
  for (int64_t l = 0; l < chain_.nodes; ++l)
    if (inference_.swept[l] && !live[l]) {
      Tensor to = chain_.states[l];
      torch::stable::copy_(to, *constant[l]);
    }
}

void Schedule::predict(int64_t node) {
  if (node == 0) {
    constant[0] = chain_.prior;
    constant_row[0] = chain_.prior->size(0) == 1 ? 0 : chain_.width(0);
    return;
  }
  const Tensor mu = chain_.like_state(node);
  multiply(mu, chain_.activated(node - 1), transposed(chain_.weights[node - 1]));
  ErrorArgs args = chain_.error_args(node, mu);
  args.state = nullptr;
  args.prediction = mu.data_ptr();
  launch_error(args, chain_.stream());
  constant[node] = mu;
  constant_row[node] = chain_.width(node);
}

Tensor Schedule::constant_feedback_of(int64_t edge) const {
  const int64_t target = edge + 1;
  const Tensor weighed = chain_.like_state(target);
  const MaybeTensor& bias = chain_.biases[edge];
  const Tensor given = bias ? *bias : zeros_like_row(target);
  ErrorArgs args = chain_.error_args(target, given.data_ptr(), 0);
  args.error = weighed.data_ptr();
  launch_error(args, chain_.stream());
  const Tensor result = chain_.like_state(edge);
  multiply(result, weighed, chain_.weights[edge]);
  return result;
}

Tensor Schedule::zeros_like_row(int64_t node) const {
  const int64_t n = chain_.width(node);
  Tensor zeros = allocate(Sizes(&n, 1), chain_.states[0]);
  torch::stable::zero_(zeros);
  return zeros;
}

} // namespace pyromancy::cuda
