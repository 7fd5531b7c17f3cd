#include "chain_operands.h"

namespace pyromancy::cuda {
namespace {

// Of scale / 2 (E[P (z - mu)^2] + log-variance), given the first mean: summed where one
// log-variance serves all neurons.
void write_logvar(const Gradient& wanted, const Tensor& moment, bool any) {
  const int64_t n = moment.size(0), first = 0;
  const bool one = wanted.to.size(0) != n;
  const Tensor total = one ? torch::stable::sum(moment, Sizes(&first, 1), true) : moment;
  const double served = one ? static_cast<double>(n) : 1;
  Tensor to = wanted.to;
  torch::stable::fill_(to, any ? wanted.scale * served / 2 : 0);
  torch::stable::copy_(to, torch::stable::subtract(to, total, 0.5));
}

} // namespace

void learn(const ChainOperands& operands, const std::vector<Gradient>& all_wanted) {
  const Chain chain(operands);
  const double mean = chain.batch ? 1.0 / static_cast<double>(chain.batch) : 0;
  for (int64_t l = 0; l < chain.nodes; ++l) {
    std::vector<Gradient> wanted;
    bool needs_delta = false, needs_square = false;
    for (const Gradient& gradient : all_wanted) {
      if (gradient.node != l)
        continue;
      wanted.push_back(gradient);
      (gradient.what == Learned::logvar ? needs_square : needs_delta) = true;
    }
    if (wanted.empty())
      continue;
    MaybeTensor source, product;
    if (l > 0) {
      source = chain.activated(l - 1);
      product = chain.like_state(l);
      multiply(*product, *source, transposed(chain.weights[l - 1]));
    }
    const int64_t row = chain.prior && chain.prior->size(0) == 1 ? 0 : chain.width(l);
    ErrorArgs args =
        l > 0 ? chain.error_args(l, *product) : chain.error_args(l, pointer(chain.prior), row);
    MaybeTensor error, delta, square;
    if (const MaybeTensor& matrix = chain.matrices[l]) {
      const Tensor residual = chain.like_state(l);
      args.residual = residual.data_ptr();
      launch_error(args, chain.stream());
      args.residual = nullptr;
      error = chain.like_state(l);
      multiply(*error, residual, *matrix);
      args.weighed = error->data_ptr();
    }
    if (needs_delta)
      delta = chain.like_state(l);
    if (needs_square)
      square = chain.like_state(l);
    args.scale = -mean;
    args.delta = pointer(delta);
    args.square = pointer(square);
    launch_error(args, chain.stream());
    for (const Gradient& gradient : wanted) {
      if (gradient.what == Learned::weight) {
        multiply(gradient.to, transposed(*delta), *source);
      } else if (gradient.what == Learned::bias) {
        sum_first(gradient.to, *delta);
      } else {
        const int64_t n = chain.width(l);
        const Tensor moment = allocate(Sizes(&n, 1), chain.states[0]);
        sum_first(moment, *square);
        write_logvar(gradient, moment, chain.batch > 0);
      }
    }
  }
}

} // namespace pyromancy::cuda
