#pragma once

// A plan's chains, one at a time, as the host functions of their kernels take them.

#include <optional>
#include <vector>

#include "../plan.h"

namespace pyromancy::cuda {

using MaybeTensor = std::optional<Tensor>;
using MaybeTensors = std::vector<MaybeTensor>;

// What inference and learning have in common; edge l leads from node l to node l + 1.
struct ChainOperands {
  Tensors states, weights;
  MaybeTensors biases;
  std::vector<Law> laws;                              // by node
  std::vector<double> law_parameters, energy_weights; // of them
  std::vector<const Expression*> expressions;         // of laws that are one, or null
  MaybeTensors rates;                                 // of laws of elements, [n], or 1
  MaybeTensors thetas;                                // of expressions: [n], [1] or [B, n]
  MaybeTensors matrices;                              // precisions that are one, [n, n]
  MaybeTensors sample_weights;                        // by node, [B], or 1
  MaybeTensor prior;
  std::vector<Nonlinearity> before, after; // by edge
  std::vector<double> skips;               // by edge: what of the state its prediction has besides
};

// What inference alone takes.
struct Inference {
  MaybeTensors grams;            // by edge: W^T P W
  std::vector<bool> free, swept; // by node
  MaybeTensors velocities;       // by node
  int64_t steps;
  double lr, momentum, dampening;
  bool nesterov, resume;
  MaybeTensor energies; // [steps, nodes, B]
  MatmulPrecision precision;
};

// A gradient of the mean energy, and where it goes.
struct Gradient {
  Learned what;
  int64_t node; // of an edge its target
  double scale; // of a node's theta beside the deviation, or of what an edge makes of a parameter
  Tensor to;
};

// The sweep and E-steps, in place on the free states, and gradients before the steps or after them.
void run_chain(const ChainOperands& operands, const Inference& inference, Learn learn,
               const std::vector<Gradient>& wanted);

} // namespace pyromancy::cuda
