#include "chain_learn.h"

namespace pyromancy::cuda {

Learner::Learner(const Chain& chain, const std::vector<Gradient>& wanted)
    : lessons(chain.nodes), chain_(chain), wanted_(wanted),
      mean_(chain.batch ? 1.0 / static_cast<double>(chain.batch) : 0) {
  for (const Gradient& gradient : wanted) {
    Lesson& lesson = lessons[gradient.node];
    const bool of_theta = gradient.what == Learned::logvar;
    if (of_theta)
      lesson.normalizer = gradient.scale;
    MaybeTensor& room = of_theta ? lesson.moment : lesson.delta;
    if (!room)
      room = chain.like_state(gradient.node);
  }
}

void Learner::learn() {
  for (int64_t l = 0; l < chain_.nodes; ++l) {
    const Lesson& lesson = lessons[l];
    if (!lesson.delta && !lesson.moment)
      continue;
    const MaybeTensor source = l > 0 ? MaybeTensor(chain_.activated(l - 1)) : MaybeTensor();
    if (!lesson.given)
      study(l, source);
    for (const Gradient& gradient : wanted_)
      if (gradient.node == l)
        write(gradient, source);
  }
}

void Learner::study(int64_t l, const MaybeTensor& source) {
  MaybeTensor product, error;
  if (l > 0) {
    product = chain_.like_state(l);
    multiply(*product, *source, transposed(chain_.weights[l - 1]));
  }
  const int64_t row = chain_.prior && chain_.prior->size(0) == 1 ? 0 : chain_.width(l);
  ErrorArgs args =
      l > 0 ? chain_.error_args(l, *product) : chain_.error_args(l, pointer(chain_.prior), row);
  if (const MaybeTensor& matrix = chain_.matrices[l]) {
    const Tensor residual = chain_.like_state(l);
    args.residual = residual.data_ptr();
    launch_error(args, chain_.stream());
    args.residual = nullptr;
    error = chain_.like_state(l);
    multiply(*error, residual, *matrix);
    args.weighed = error->data_ptr();
  }
  args.scale = -mean_;
  args.delta = pointer(lessons[l].delta);
  args.moment = pointer(lessons[l].moment);
  args.normalizer = lessons[l].normalizer;
  launch_error(args, chain_.stream());
}

void Learner::write(const Gradient& gradient, const MaybeTensor& source) const {
  const Lesson& lesson = lessons[gradient.node];
  if (gradient.what != Learned::logvar) {
    if (gradient.what == Learned::weight)
      multiply(gradient.to, transposed(*lesson.delta), *source);
    else
      sum_first(gradient.to, *lesson.delta);
    if (gradient.scale != 1) {
      Tensor to = gradient.to;
      torch::stable::copy_(to, scaled(to, gradient.scale));
    }
    return;
  }
  const int64_t n = chain_.width(gradient.node), first = 0;
  if (gradient.to.size(0) == n)
    return sum_first(gradient.to, *lesson.moment);
  const Tensor moment = allocate(Sizes(&n, 1), chain_.states[0]); // one theta serves all neurons
  sum_first(moment, *lesson.moment);
  Tensor to = gradient.to;
  torch::stable::copy_(to, torch::stable::sum(moment, Sizes(&first, 1), true));
}

} // namespace pyromancy::cuda
