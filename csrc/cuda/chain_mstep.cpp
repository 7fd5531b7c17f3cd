#include <torch/csrc/stable/library.h>

#include "chain_operands.h"

namespace pyromancy::cuda {
namespace {

Tensors chain_mstep(const Tensors& states, const Tensors& weights, const MaybeTensors& biases,
                    const MaybeTensors& precisions, const std::optional<Tensor>& prior,
                    const std::vector<int64_t>& activations, const std::vector<double>& parameters,
                    const std::vector<bool>& predicted, const std::vector<bool>& for_weight,
                    const std::vector<bool>& for_bias, const std::vector<bool>& for_precision,
                    const Tensors& /*known: nothing, on a GPU*/) {
  const ChainOperands operands{states, weights,     biases,     precisions,
                               prior,  activations, parameters, predicted};
  check_chain(operands);
  check_wanted(operands, for_weight, for_bias, for_precision);
  const Chain chain(operands);
  const double mean = chain.batch ? 1.0 / static_cast<double>(chain.batch) : 0;
  Tensors of_weights, of_biases, moments;
  for (int64_t l = 0; l < chain.nodes; ++l) {
    const bool needs_delta = l > 0 && (for_weight[l - 1] || for_bias[l - 1]);
    if (!needs_delta && !for_precision[l])
      continue;
    MaybeTensor source, product;
    if (l > 0) {
      source = chain.activated(l - 1);
      product = chain.like_state(l);
      multiply(*product, *source, transposed(weights[l - 1]));
    }
    const int64_t row = prior && prior->size(0) == 1 ? 0 : chain.width(l);
    ErrorArgs args =
        l > 0 ? chain.error_args(l, *product) : chain.error_args(l, pointer(chain.prior), row);
    const int64_t n = chain.width(l);
    const bool full = chain.matrices[l].has_value();
    MaybeTensor error, delta, square, scaled;
    if (full) {
      const Tensor residual = chain.like_state(l);
      args.residual = residual.data_ptr();
      launch_error(args, chain.stream());
      args.residual = nullptr;
      error = chain.like_state(l);
      multiply(*error, residual, *chain.matrices[l]);
      args.weighed = error->data_ptr();
    }
    if (needs_delta)
      delta = chain.like_state(l);
    if (for_precision[l])
      (full ? scaled : square) = chain.like_state(l);
    args.scale = -mean;
    args.delta = pointer(delta);
    args.square = pointer(square);
    args.scaled = pointer(scaled);
    launch_error(args, chain.stream());
    if (square) {
      sum_first(moments.emplace_back(allocate(Sizes(&n, 1), states[0])), *square);
    } else if (scaled) {
      const int64_t sizes[] = {n, n};
      multiply(moments.emplace_back(allocate(Sizes(sizes, 2), states[0])), transposed(*scaled),
               *error);
    }
    if (!needs_delta)
      continue;
    if (for_weight[l - 1])
      multiply(of_weights.emplace_back(allocate(weights[l - 1].sizes(), states[0])),
               transposed(*delta), *source);
    if (for_bias[l - 1])
      sum_first(of_biases.emplace_back(allocate(Sizes(&n, 1), states[0])), *delta);
  }
  Tensors results = std::move(of_weights);
  results.insert(results.end(), of_biases.begin(), of_biases.end());
  results.insert(results.end(), moments.begin(), moments.end());
  return results;
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CUDA, m) {
  m.impl("chain_mstep", TORCH_BOX(&chain_mstep));
}

} // namespace
} // namespace pyromancy::cuda
