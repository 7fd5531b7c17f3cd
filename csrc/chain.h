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
  const std::string& precision; // of matrix products: "highest", "high" or "medium"
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
    const Name name{"states", l};
    STD_TORCH_CHECK(state.dim() == 2, name, " must have shape (B, n), got ",
                    to_string(state.sizes()));
    check_like(name, state, {"states", 0}, first);
    STD_TORCH_CHECK(state.size(0) == first.size(0), name, " must have shape (", first.size(0), ", ",
                    state.size(1), "), got ", to_string(state.sizes()));
    check_contiguous(name, state);
    if (!chain.precisions[l])
      continue;
    const Tensor& p = *chain.precisions[l];
    const int64_t n = state.size(1);
    check_like({"precisions", l}, p, {"states", 0}, first);
    const bool fits = p.dim() == 1   ? p.size(0) == n
                      : p.dim() == 2 ? p.size(0) == n && p.size(1) == n
                                     : false;
    STD_TORCH_CHECK(fits, "precisions[", l, "] must have shape (", n, ",) or (", n, ", ", n,
                    "), got ", to_string(p.sizes()));
  }
  for (int64_t l = 0; l < edges; ++l) {
    const int64_t in = chain.width(l), out = chain.width(l + 1);
    const Tensor& weight = chain.weights[l];
    check_like({"weights", l}, weight, {"states", 0}, first);
    STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == out && weight.size(1) == in, "weights[",
                    l, "] must have shape (", out, ", ", in, "), got ", to_string(weight.sizes()));
    if (const auto& bias = chain.biases[l]) {
      check_like({"biases", l}, *bias, {"states", 0}, first);
      STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == out, "biases[", l, "] must have shape (",
                      out, ",), got ", to_string(bias->sizes()));
    }
  }
  for (const int64_t kind : chain.activations)
    STD_TORCH_CHECK(kind >= 0 && kind < kActivations, "activations must be from 0 to ",
                    kActivations - 1, ", got ", kind);
  if (chain.prior) {
    check_like("prior", *chain.prior, {"states", 0}, first);
    const Tensor& p = *chain.prior;
    STD_TORCH_CHECK(p.dim() == 2 && (p.size(0) == 1 || p.size(0) == chain.batch()) &&
                        p.size(1) == chain.width(0),
                    "prior must have shape (1, ", chain.width(0), ") or (", chain.batch(), ", ",
                    chain.width(0), "), got ", to_string(p.sizes()));
  }
  STD_TORCH_CHECK(chain.predicted[0] == chain.prior.has_value(),
                  "predicted[0] must be true exactly where there is a prior");
}

// What is written must share no memory with anything else: tiles and steps read it at will.
inline void check_apart(const ChainOperands& chain, const Inference& inference) {
  struct Operand {
    Name name;
    const Tensor* tensor;
    bool written;
    Bytes bytes;
  };
  std::vector<Operand> operands;
  const auto add = [&](const char* name, int64_t l, const Tensor& t, bool written) {
    operands.push_back({{name, l}, &t, written, Bytes(t)});
  };
  for (int64_t l = 0; l < chain.nodes(); ++l) {
    add("states", l, chain.states[l], inference.free[l]);
    if (inference.free[l] && !inference.velocities.empty())
      add("velocities", l, inference.velocities[l], true);
    if (chain.precisions[l])
      add("precisions", l, *chain.precisions[l], false);
  }
  for (int64_t l = 0; l + 1 < chain.nodes(); ++l) {
    add("weights", l, chain.weights[l], false);
    if (chain.biases[l])
      add("biases", l, *chain.biases[l], false);
    if (inference.grams[l])
      add("grams", l, *inference.grams[l], false);
  }
  if (chain.prior)
    add("prior", -1, *chain.prior, false);
  if (inference.energies)
    add("energies", -1, *inference.energies, true);
  for (const Operand& a : operands)
    for (const Operand& b : operands)
      if (a.written && &a != &b && a.bytes.meets(b.bytes))
        check_no_partial_overlap(a.name, *a.tensor, b.name, *b.tensor, false);
}

// After `check_chain`.
inline void check_inference(const ChainOperands& chain, const Inference& inference) {
  const Tensor& first = chain.states.front();
  const int64_t nodes = chain.nodes();
  check_finite("lr", inference.lr);
  check_finite("momentum", inference.momentum);
  check_finite("dampening", inference.dampening);
  STD_TORCH_CHECK(inference.steps >= 0, "steps must not be negative, got ", inference.steps);
  const std::string& p = inference.precision;
  STD_TORCH_CHECK(p == "highest" || p == "high" || p == "medium",
                  "matmul_precision must be highest, high or medium, got ", p);
  check_length("grams", inference.grams.size(), nodes - 1, chain);
  check_length("free", inference.free.size(), nodes, chain);
  if (!inference.velocities.empty())
    check_length("velocities", inference.velocities.size(), nodes, chain);
  for (int64_t l = 0; l < nodes; ++l)
    if (inference.free[l] && !inference.velocities.empty()) {
      check_same({"velocities", l}, inference.velocities[l], {"states", l}, chain.states[l]);
      check_contiguous({"velocities", l}, inference.velocities[l]);
    }
  for (int64_t l = 0; l + 1 < nodes; ++l) {
    if (!inference.grams[l])
      continue;
    STD_TORCH_CHECK(!inference.energies, "grams[", l,
                    "] must be None where energies are recorded, which take the errors");
    check_like({"grams", l}, *inference.grams[l], {"states", 0}, first);
    check_square({"grams", l}, *inference.grams[l], chain.width(l));
    const auto& precision = chain.precisions[l + 1];
    STD_TORCH_CHECK(inference.free[l] && !inference.free[l + 1] && chain.predicted[l + 1] &&
                        chain.activations[2 * l + 1] == 0 && !(precision && precision->dim() == 2),
                    "grams[", l,
                    "] needs a free source, a clamped target that is predicted and has no matrix "
                    "for its precision, and no activation after the product");
  }
  if (const auto& energies = inference.energies) {
    check_like("energies", *energies, {"states", 0}, first);
    STD_TORCH_CHECK(energies->dim() == 3 && energies->size(0) == inference.steps &&
                        energies->size(1) == nodes && energies->size(2) == chain.batch(),
                    "energies must have shape (", inference.steps, ", ", nodes, ", ", chain.batch(),
                    "), got ", to_string(energies->sizes()));
    check_contiguous("energies", *energies);
  }
  check_apart(chain, inference);
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
    if (chain.predicted[l])
      continue;
    const auto check = [&](Name name, bool wanted) {
      STD_TORCH_CHECK(!wanted, name, " needs a predicted node, and node ", l, " is not");
    };
    if (l > 0) {
      check({"for_weight", l - 1}, for_weight[l - 1]);
      check({"for_bias", l - 1}, for_bias[l - 1]);
    }
    check({"for_precision", l}, for_precision[l]);
  }
}

} // namespace pyromancy
