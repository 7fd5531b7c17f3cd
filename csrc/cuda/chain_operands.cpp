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
    : states(operands.states), weights(operands.weights), predicted(operands.predicted),
      nodes(static_cast<int64_t>(states.size())), batch(states[0].size(0)),
      dtype(dtype_of("states", states[0])), context_(states[0]), before_(operands.before),
      after_(operands.after) {
  for (int64_t l = 0; l < nodes; ++l) {
    const MaybeTensor& p = operands.precisions[l];
    const bool full = p && p->dim() == 2;
    diagonals.push_back(full ? MaybeTensor() : dense(p));
    matrices.push_back(full ? p : MaybeTensor());
  }
  for (const MaybeTensor& bias : operands.biases)
    biases.push_back(dense(bias));
  prior = dense(operands.prior);
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
  args.precision = pointer(diagonals[node]);
  args.scale = 1;
  return args;
}

} // namespace pyromancy::cuda
