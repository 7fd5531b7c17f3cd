#include "chain_steps.h"

namespace pyromancy::cuda {
namespace {

class Steps {
public:
  Steps(const Chain& chain, const Inference& inference, const Schedule& schedule)
      : chain_(chain), inference_(inference), schedule_(schedule) {
    for (int64_t l = 0; l < chain.nodes; ++l) {
      Node& node = nodes_.emplace_back();
      const bool feeds = schedule.feedback(l) != Feedback::none;
      if (feeds)
        node.activated = chain.activated(l);
      if (feeds)
        node.feedback = chain.like_state(l);
      if (!schedule.computes_error[l])
        continue;
      node.error = chain.like_state(l);
      const bool full = chain.matrices[l].has_value();
      if (full)
        node.residual = chain.like_state(l);
      if (inference.energies)
        node.deviation = chain.like_state(l);
      if (!schedule.live[l])
        continue;
      node.product = chain.like_state(l);
      node.weight = transposed(chain.weights[l - 1]);
      node.delta = pushes_apart(l) ? chain.like_state(l) : node.error;
    }
  }

  void run() {
    for (int64_t step = 0; step < inference_.steps; ++step) {
      for (int64_t l = 0; l < chain_.nodes; ++l)
        if (schedule_.computes_error[l])
          find_error(l, step);
      for (int64_t l = 0; l < chain_.nodes; ++l)
        if (schedule_.feedback(l) == Feedback::gram)
          multiply(*nodes_[l].feedback, *nodes_[l].activated, *inference_.grams[l]);
        else if (schedule_.feedback(l) == Feedback::product)
          multiply(*nodes_[l].feedback, *nodes_[l + 1].delta, chain_.weights[l]);
      for (int64_t l = 0; l < chain_.nodes; ++l)
        if (inference_.free[l])
          descend(l, step);
    }
  }

private:
  struct Node {
    MaybeTensor activated, feedback, product, weight, residual, error, deviation, delta;
  };

  // Whether the delta is another than what the law pulls with.
  bool pushes_apart(int64_t l) const {
    return chain_.after(l - 1).kind != Activation::identity ||
           pyromancy::pushes_apart(chain_.laws[l]);
  }

  void find_error(int64_t l, int64_t step) {
    const Node& node = nodes_[l];
    const bool full = chain_.matrices[l].has_value();
    if (schedule_.live[l])
      multiply(*node.product, *nodes_[l - 1].activated, *node.weight);
    ErrorArgs args = schedule_.live[l] ? chain_.error_args(l, *node.product)
                                       : chain_.error_args(l, schedule_.constant[l]->data_ptr(),
                                                           schedule_.constant_row[l]);
    const bool apart = node.delta && pushes_apart(l);
    if (full) {
      args.residual = node.residual->data_ptr();
      launch_error(args, chain_.stream());
      multiply(*node.error, *node.residual, *chain_.matrices[l]);
      args.residual = nullptr;
      args.weighed = node.error->data_ptr();
    }
    if (!full || args.sample_weights)
      args.error = node.error->data_ptr();
    args.deviation = pointer(node.deviation);
    args.delta = apart ? node.delta->data_ptr() : nullptr;
    if (args.error || args.deviation || args.delta)
      launch_error(args, chain_.stream());
    if (node.deviation)
      sum_along(torch::stable::select(torch::stable::select(*inference_.energies, 0, step), 0, l),
                *node.deviation, 1);
  }

  void descend(int64_t l, int64_t step) {
    const Node& node = nodes_[l];
    UpdateArgs args{};
    args.dtype = chain_.dtype;
    args.size = chain_.states[l].numel();
    args.state = chain_.states[l].data_ptr();
    args.error = pointer(node.error);
    args.lr = inference_.lr;
    if (const MaybeTensor& velocity = inference_.velocities[l]) {
      args.velocity = velocity->data_ptr();
      args.momentum = inference_.momentum;
      args.dampening = inference_.dampening;
      args.nesterov = inference_.nesterov;
      args.starts = step == 0 && !inference_.resume;
    }
    if (node.feedback) {
      args.before = chain_.before(l);
      args.feedback = node.feedback->data_ptr();
      args.constant_feedback = pointer(schedule_.constant_feedback[l]);
      args.activated = args.before.kind == Activation::identity ? nullptr : pointer(node.activated);
      args.skip = chain_.skips[l];
      args.delta = args.skip != 0 ? pointer(nodes_[l + 1].delta) : nullptr;
    }
    launch_update(args, chain_.stream());
  }

  const Chain& chain_;
  const Inference& inference_;
  const Schedule& schedule_;
  std::vector<Node> nodes_;
};

} // namespace

void sweep(const Chain& chain, const Inference& inference, const Schedule& schedule) {
  for (int64_t l = 0; l < chain.nodes; ++l) {
    if (!inference.swept[l] || !schedule.live[l])
      continue;
    const Tensor product = chain.like_state(l);
    multiply(product, chain.activated(l - 1), transposed(chain.weights[l - 1]));
    ErrorArgs args = chain.error_args(l, product);
    args.state = nullptr;
    args.prediction = chain.states[l].data_ptr();
    launch_error(args, chain.stream());
  }
}

void run_steps(const Chain& chain, const Inference& inference, const Schedule& schedule) {
  if (inference.energies) { // of nodes without an energy
    Tensor all = *inference.energies;
    torch::stable::zero_(all);
  }
  Steps(chain, inference, schedule).run();
}

} // namespace pyromancy::cuda
