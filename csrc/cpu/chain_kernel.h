#pragma once

#include "../nonlinearity.h"
#include "isa.h"

namespace pyromancy {

// A matrix in the form that a tile's products read; the rows of a thin tile's are `stride` apart.
struct PackedMatrix {
  const void* data = nullptr;
  int64_t stride = 0;
  explicit operator bool() const {
    return data != nullptr;
  }
};

// A chain of nodes 0 .. nodes-1, edge l going from node l to node l + 1:
//   mu[l+1] = after(W before(z[l]) + b),   e[l] = P (z[l] - mu[l]),
// and E-steps z[l] -= lr (e[l] - before'(z[l]) W^T (after' e[l+1])) on the free nodes, all at once.
struct ChainNode {
  int64_t n;
  bool free, predicted;
  bool prediction_varies;      // from step to step; the M-step computes such a prediction anew
  void* state;                 // [B, n], contiguous; overwritten where free
  void* velocity;              // [B, n] where there is momentum and the node is free, else null
  const void* precision;       // the diagonal of P [n], padded with zeros; null is 1
  PackedMatrix full_precision; // P [n, n], or null

  // [B, n]: the prediction from a clamped node. E-steps write it, for the M-step to read; or null.
  void* prediction;
  bool prediction_known;

  // What the M-step wants of this node, each [B, n], or null.
  void* error;  // e
  void* delta;  // after' e: minus the energy's gradient for W before(z) + b
  void* square; // e (z - mu), element by element
};

struct ChainEdge {
  PackedMatrix weight;     // W
  PackedMatrix transposed; // W^T; null where its source is clamped
  PackedMatrix gram;       // W^T P W, for a clamped target: its feedback is drive - gram f(z)
  const void* bias;        // [out], padded with zeros
  Nonlinearity before, after;
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
  bool resume;      // velocities hold those of steps before
  bool every_error; // keep residual and error of every node
  void* energies;   // [steps, nodes, B] before each step, without log-determinants; or null
};

// How a tile keeps its samples. Wide tiles have a sample per lane; thin ones a neuron per lane.
// No sample's result depends on the choice, in any bit.
enum class TileKind : int { wide2, wide1, thin4, thin1 };
inline constexpr int kTileKinds = 4;

struct ChainKernels {
  int lanes;               // of a vector; biases and precisions are padded to a multiple of it
  int samples[kTileKinds]; // of a tile
  int64_t panel_rows; // into panels of which matrices for wide tiles are cut, one after the other
  // Elements that a matrix with this many rows and columns takes, packed.
  int64_t (*packed_size)(TileKind kind, int64_t rows, int64_t depth);
  // Element (i, k) of the matrix is w[i * row_stride + k * depth_stride]. `packed` may stay unused:
  // thin tiles read some matrices as they are.
  PackedMatrix (*pack)(TileKind kind, const void* w, int64_t rows, int64_t depth,
                       int64_t row_stride, int64_t depth_stride, void* packed);
  int64_t (*workspace_size)(const ChainArgs& args, TileKind kind);
  // All steps for the samples of one tile.
  void (*run)(const ChainArgs& args, TileKind kind, void* workspace, int64_t tile);
  // What the M-step wants, for the samples of one tile.
  void (*errors)(const ChainArgs& args, TileKind kind, void* workspace, int64_t tile);
  int64_t columns; // of b that `outer` takes at a time
  int64_t panel;   // elements of its scratch memory
  // out[m, n] = scale a^T f(b) for columns [begin, end) of b [batch, n], contiguous; a^T [m, batch]
  // packed for wide tiles.
  void (*outer)(const void* a, const void* b, Nonlinearity f, int64_t batch, int64_t m, int64_t n,
                double scale, int64_t begin, int64_t end, void* panel, void* out);
  // out[n] = scale * the sum of the rows of a [batch, n]
  void (*sum_rows)(const void* a, int64_t batch, int64_t n, double scale, void* out);
  // A number that every change within one 8-byte word changes. Changes of several words that were
  // not chosen to leave it as it is do so about once in 2^64. It depends on the instruction set.
  uint64_t (*content_hash)(const void* bytes, int64_t count, uint64_t seed);
};

// float32 and float64 only
PYROMANCY_DECLARE_KERNELS(ChainKernels, chain_kernels)

} // namespace pyromancy
