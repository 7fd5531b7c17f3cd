#include "chain_operands.h"

namespace pyromancy::cuda {
namespace {

MaybeTensor dense(const MaybeTensor& t) {
  if (!t || t->is_contiguous())
    return t;
  return torch::stable::contiguous(*t);
}

} // namespace

Chain::Chain(const ChainOperands& operands)
    : states(operands.states), weights(operands.weights), laws(operands.laws),
      law_parameters(operands.law_parameters), energy_weights(operands.energy_weights),
      expressions(operands.expressions), skips(operands.skips), matrices(operands.matrices),
      prior(dense(operands.prior)), nodes(static_cast<int64_t>(states.size())),
      batch(states[0].size(0)), dtype(dtype_of("states", states[0])), context_(states[0]),
      before_(operands.before), after_(operands.after) {
  for (const MaybeTensor& rate : operands.rates)
    rates.push_back(dense(rate));
  for (const MaybeTensor& theta : operands.thetas)
    thetas.push_back(dense(theta));
  for (const MaybeTensor& of_samples : operands.sample_weights)
    sample_weights.push_back(dense(of_samples));
  for (const MaybeTensor& bias : operands.biases)
    biases.push_back(dense(bias));
}

Tensor Chain::activated(int64_t edge) const {
  if (before(edge).kind == Activation::identity)
    return states[edge];
  const Tensor to = like_state(edge);
  launch_activate(
      {dtype, states[edge].numel(), before(edge), states[edge].data_ptr(), to.data_ptr()},
      stream());
  return to;
}

ErrorArgs Chain::error_args(int64_t node, const Tensor& product) const {
  ErrorArgs args = state_args(node);
  args.after = after(node - 1);
  args.product = product.data_ptr();
  args.bias = pointer(biases[node - 1]);
  args.skip = skips[node - 1];
  args.source = args.skip != 0 ? states[node - 1].data_ptr() : nullptr;
  return args;
}

ErrorArgs Chain::error_args(int64_t node, const void* given, int64_t row) const {
  ErrorArgs args = state_args(node);
  args.given = given;
  args.given_row = row;
  return args;
}

ErrorArgs Chain::state_args(int64_t node) const {
  ErrorArgs args{};
  args.dtype = dtype;
  args.rows = batch;
  args.n = width(node);
  args.state = states[node].data_ptr();
  args.law = laws[node];
  args.law_parameter = law_parameters[node];
  args.weight = energy_weights[node];
  args.expression = expressions[node];
  args.rate = pointer(rates[node]);
  if (const MaybeTensor& theta = thetas[node]) {
    args.theta = theta->data_ptr();
    args.theta_row = theta->dim() == 2 ? args.n : 0;
    args.theta_column = theta->size(theta->dim() - 1) == args.n;
  }
  args.sample_weights = pointer(sample_weights[node]);
  args.scale = 1;
  return args;
}

} // namespace pyromancy::cuda
