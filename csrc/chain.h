#pragma once

// What the operators on chains share on every device: activations by number, and the checks of
// their arguments.

#include <cstdint>
#include <string>
#include <vector>

#include "check.h"
#include "nonlinearity.h"

namespace pyromancy {

using Tensors = std::vector<Tensor>;
using MaybeTensors = std::vector<std::optional<Tensor>>;

// The operands that `infer_chain_` and `chain_mstep` have in common, as ops/chain.py tells them.
struct ChainOperands {
  const Tensors& states;
  const Tensors& weights;
  const MaybeTensors& biases;
  const MaybeTensors& precisions;
  const std::optional<Tensor>& prior;
  const std::vector<int64_t>& activations;
  const std::vector<double>& parameters;
  const std::vector<bool>& predicted;

  int64_t nodes() const {
    return static_cast<int64_t>(states.size());
  }
  int64_t batch() const {
    return states.front().size(0);
  }
  int64_t width(int64_t node) const {
    return states[node].size(1);
  }
};

// What `infer_chain_` alone takes.
struct Inference {
  const MaybeTensors& grams;
  const std::vector<bool>& free;
  int64_t steps;
  double lr;
  const Tensors& velocities; // none without momentum
  double momentum, dampening;
  bool nesterov, resume;
  const std::optional<Tensor>& energies;
  const std::string& precision; // "highest", "high" or "medium"
};

inline void check_length(const char* name, size_t length, int64_t expected,
                         const ChainOperands& chain) {
  STD_TORCH_CHECK(static_cast<int64_t>(length) == expected, name, " must have ", expected,
                  " entries for ", chain.states.size(), " states, got ", length);
}

inline void check_chain(const ChainOperands& chain) {
  STD_TORCH_CHECK(!chain.states.empty(), "states must not be empty");
  const Tensor& first = chain.states.front();
  const DType dtype = dtype_of("states", first);
  STD_TORCH_CHECK(dtype == DType::float32 || dtype == DType::float64,
                  "states must be float32 or float64, got ",
                  torch::headeronly::toString(first.scalar_type()));
  const int64_t nodes = chain.nodes(), edges = nodes - 1;
  check_length("weights", chain.weights.size(), edges, chain);
  check_length("biases", chain.biases.size(), edges, chain);
  check_length("activations", chain.activations.size(), 2 * edges, chain);
  check_length("parameters", chain.parameters.size(), 2 * edges, chain);
  check_length("precisions", chain.precisions.size(), nodes, chain);
  check_length("predicted", chain.predicted.size(), nodes, chain);
  for (int64_t l = 0; l < nodes; ++l) {
    const Tensor& state = chain.states[l];
    STD_TORCH_CHECK(state.dim() == 2 && state.size(0) == first.size(0) && state.is_contiguous(),
                    "states[", l, "] must be contiguous with shape (",
                    first.dim() > 0 ? first.size(0) : 0, ", n), got ", to_string(state.sizes()));
    check_like("states", state, "states[0]", first);
    if (!chain.precisions[l])
      continue;
    const Tensor& p = *chain.precisions[l];
    check_like("precisions", p, "states[0]", first);
    if (p.dim() != 1)
      check_square("precisions", p, state.size(1));
    STD_TORCH_CHECK(p.size(0) == state.size(1), "precisions[", l, "] must have shape (",
                    state.size(1), ",) or (", state.size(1), ", ", state.size(1), "), got ",
                    to_string(p.sizes()));
  }
  for (int64_t l = 0; l < edges; ++l) {
    const int64_t in = chain.width(l), out = chain.width(l + 1);
    const Tensor& weight = chain.weights[l];
    check_like("weights", weight, "states[0]", first);
    STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == out && weight.size(1) == in, "weights[",
                    l, "] must have shape (", out, ", ", in, "), got ", to_string(weight.sizes()));
    if (const auto& bias = chain.biases[l]) {
      check_like("biases", *bias, "states[0]", first);
      STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == out, "biases[", l, "] must have shape (",
                      out, ",), got ", to_string(bias->sizes()));
    }
  }
  for (const int64_t kind : chain.activations)
    STD_TORCH_CHECK(kind >= 0 && kind < kActivations, "activations must be from 0 to ",
                    kActivations - 1, ", got ", kind);
  if (chain.prior) {
    check_like("prior", *chain.prior, "states[0]", first);
    const Tensor& p = *chain.prior;
    STD_TORCH_CHECK(p.dim() == 2 && (p.size(0) == 1 || p.size(0) == chain.batch()) &&
                        p.size(1) == chain.width(0),
                    "prior must have shape (1 or ", chain.batch(), ", ", chain.width(0), "), got ",
                    to_string(p.sizes()));
  }
  STD_TORCH_CHECK(chain.predicted[0] == chain.prior.has_value(),
                  "predicted[0] must be true exactly where there is a prior");
}

// After `check_chain`.
inline void check_inference(const ChainOperands& chain, const Inference& inference) {
  const Tensor& first = chain.states.front();
  const int64_t nodes = chain.nodes();
  check_finite("lr", inference.lr);
  STD_TORCH_CHECK(inference.steps >= 0, "steps must not be negative, got ", inference.steps);
  const std::string& p = inference.precision;
  STD_TORCH_CHECK(p == "highest" || p == "high" || p == "medium",
                  "precision must be highest, high or medium, got ", p);
  check_length("grams", inference.grams.size(), nodes - 1, chain);
  check_length("free", inference.free.size(), nodes, chain);
  if (!inference.velocities.empty())
    check_length("velocities", inference.velocities.size(), nodes, chain);
  for (int64_t l = 0; l < nodes; ++l)
    if (inference.free[l] && !inference.velocities.empty()) {
      check_same("velocities", inference.velocities[l], "their states", chain.states[l]);
      STD_TORCH_CHECK(inference.velocities[l].is_contiguous(), "velocities must be contiguous");
    }
  for (int64_t l = 0; l + 1 < nodes; ++l) {
    if (!inference.grams[l])
      continue;
    STD_TORCH_CHECK(!inference.energies, "grams[", l,
                    "] must be None where energies are recorded, which take the errors");
    check_like("grams", *inference.grams[l], "states[0]", first);
    check_square("grams", *inference.grams[l], chain.width(l));
    const auto& precision = chain.precisions[l + 1];
    STD_TORCH_CHECK(inference.free[l] && !inference.free[l + 1] && chain.predicted[l + 1] &&
                        chain.activations[2 * l + 1] == 0 && !(precision && precision->dim() == 2),
                    "grams[", l,
                    "] needs a free source, a clamped, predicted target with a diagonal "
                    "precision, and no activation after the product");
  }
  if (const auto& energies = inference.energies) {
    check_like("energies", *energies, "states[0]", first);
    STD_TORCH_CHECK(energies->dim() == 3 && energies->size(0) == inference.steps &&
                        energies->size(1) == nodes && energies->size(2) == chain.batch() &&
                        energies->is_contiguous(),
                    "energies must be contiguous with shape (", inference.steps, ", ", nodes, ", ",
                    chain.batch(), "), got ", to_string(energies->sizes()));
  }
}

// After `check_chain`.
inline void check_wanted(const ChainOperands& chain, const std::vector<bool>& for_weight,
                         const std::vector<bool>& for_bias,
                         const std::vector<bool>& for_precision) {
  const int64_t nodes = chain.nodes();
  check_length("for_weight", for_weight.size(), nodes - 1, chain);
  check_length("for_bias", for_bias.size(), nodes - 1, chain);
  check_length("for_precision", for_precision.size(), nodes, chain);
  for (int64_t l = 0; l < nodes; ++l) {
    STD_TORCH_CHECK(chain.predicted[l] || l == 0 || !(for_weight[l - 1] || for_bias[l - 1]),
                    "for_weight and for_bias need predicted nodes, and node ", l, " is not");
    STD_TORCH_CHECK(chain.predicted[l] || !for_precision[l],
                    "for_precision needs predicted nodes, and node ", l, " is not");
  }
}

} // namespace pyromancy
