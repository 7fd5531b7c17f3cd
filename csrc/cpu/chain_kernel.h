#pragma once

#include "isa.h"

namespace pyromancy {

enum class Activation : int64_t {
  identity,
  relu,
  leaky_relu, // parameter: negative slope
  elu,        // parameter: alpha
  silu,
  gelu,
  gelu_tanh,
  tanh,
  sigmoid,
  softplus, // parameter: beta; linear beyond beta x = 20, as in torch
};
inline constexpr int64_t kActivations = 10;

struct Nonlinearity {
  Activation kind = Activation::identity;
  double parameter = 0;
};

// A chain of nodes 0 .. nodes-1, edge l going from node l to node l + 1:
//   mu[l+1] = after(W before(z[l]) + b),   e[l] = P (z[l] - mu[l]),
// and E-steps z[l] -= lr (e[l] - before'(z[l]) W^T (after' e[l+1])) on the free nodes, all at once.
struct ChainNode {
  int64_t n;
  bool free, predicted;
  void* state;                // [B, n], contiguous; overwritten where free
  void* velocity;             // [B, n] where there is momentum and the node is free, else null
  const void* precision;      // the diagonal of P [n]; null is 1
  const void* full_precision; // P [n, n] packed, or null
};

struct ChainEdge {
  const void* weight;     // W packed
  const void* transposed; // W^T packed; null where its source is clamped, or the gram serves
  const void* gram;       // W^T P W packed, for a clamped target: its feedback is drive - gram f(z)
  const void* bias;       // [out] or null
  Nonlinearity before, after;
  void* prediction; // [B, out], written where the source is clamped
};

struct ChainArgs {
  int64_t batch, nodes;
  ChainNode* node;
  ChainEdge* edge;
  const void* prior; // prediction of node 0, rows prior_stride apart; null where it has none
  int64_t prior_stride;
  int64_t steps;
  double lr, momentum, dampening;
  bool nesterov;
  bool resume;    // velocities hold those of steps before
  void* energies; // [steps, nodes, B] before each step, without log-determinants; or null
};

struct ChainKernels {
  int lanes, max_vectors; // of a tile, whose samples lie side by side in vectors * lanes lanes
  // Elements of a matrix with this many rows and columns, packed.
  int64_t (*packed_size)(int64_t rows, int64_t depth);
  // Element (i, k) of the matrix is w[i * row_stride + k * depth_stride].
  void (*pack)(const void* w, int64_t rows, int64_t depth, int64_t row_stride, int64_t depth_stride,
               void* packed);
  int64_t (*workspace_size)(const ChainArgs& args, int vectors);
  // All steps for the samples of tiles [begin, end).
  void (*run)(const ChainArgs& args, int vectors, void* workspace, int64_t begin, int64_t end);
};

// float32 and float64 only
PYROMANCY_DECLARE_KERNELS(ChainKernels, chain_kernels)

} // namespace pyromancy
