#pragma once

#include "../nonlinearity.h"
#include "isa.h"

namespace pyromancy {

// A matrix in the form that a tile's products read: for thin tiles columns `stride` apart, for wide
// ones contiguous rows `stride` apart, or panels, where that is 0. Panels may lie beyond the
// second-level cache, `far`.
struct PackedMatrix {
  const void* data = nullptr;
  int64_t stride = 0;
  bool far = false;
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

// A piece of the work on a tile. Pieces of one tile follow one another; within a piece rows may be
// split at will, as different tiles may.
enum class Work : int {
  predict_once, // the prediction of a node whose source is clamped
  drive,        // what of W^T e no E-step changes, where W^T P W serves
  err,          // the error of a node
  weigh,        // that error by a full precision
  descend,      // the update of a node, whose rows the errors that it needs have been found for
  turn,         // puts the activations to come in the place of those that are over
  record,       // energies before the step
};

struct Stage {
  Work work;
  int64_t node, step;
};

// stage(s) for all that lies between loading the states and the first E-step, in order.
template <class F>
void stages_once(const ChainArgs& args, F stage) {
  for (int64_t l = 1; l < args.nodes; ++l) {
    const ChainNode& node = args.node[l];
    if (node.predicted && !node.prediction_varies && !node.prediction_known)
      stage(Stage{Work::predict_once, l, 0});
    if (args.edge[l - 1].gram)
      stage(Stage{Work::drive, l - 1, 0});
  }
}

// stage(s) for the error of node l, where a step needs it.
template <class F>
void stages_of_error(const ChainArgs& args, int64_t l, F stage) {
  const ChainNode& node = args.node[l];
  if (!node.predicted)
    return;
  if (node.prediction_varies ? !args.edge[l - 1].gram : node.full_precision || args.every_error)
    stage(Stage{Work::err, l, 0});
  if (node.full_precision)
    stage(Stage{Work::weigh, l, 0});
}

// stage(s) for everything that an inference does, in order.
template <class F>
void stages_of_inference(const ChainArgs& args, F stage) {
  const auto descend = [&](int64_t l, int64_t t) {
    if (!args.node[l].free)
      return;
    stage(Stage{Work::descend, l, t});
    if (l + 1 < args.nodes && args.edge[l].gram)
      stage(Stage{Work::turn, l, t});
  };
  stages_once(args, stage);
  for (int64_t t = 0; t < args.steps; ++t) {
    // A node's update follows the error that feeds back into it while that is in the cache.
    for (int64_t l = 0; l < args.nodes; ++l) {
      stages_of_error(args, l, stage);
      if (l > 0)
        descend(l - 1, t);
    }
    descend(args.nodes - 1, t);
    if (args.energies)
      stage(Stage{Work::record, 0, t});
  }
}

// stage(s) for every node's error, in order.
template <class F>
void stages_of_errors(const ChainArgs& args, F stage) {
  stages_once(args, stage);
  for (int64_t l = 0; l < args.nodes; ++l)
    stages_of_error(args, l, stage);
}

// What is done with a chain's tiles.
enum class Aim : int { inference, errors };

// Rows [begin, end) of a matrix or of what a tile keeps for a node.
struct Rows {
  int64_t begin, end;
};

// How a tile keeps its samples. Wide tiles have a sample per lane; thin ones a neuron per lane.
// No sample's result depends on the choice, in any bit.
enum class TileKind : int { wide2, wide1, thin4, thin1 };
inline constexpr int kTileKinds = 4;

struct ChainKernels {
  int lanes;               // of a vector; biases and precisions are padded to a multiple of it
  int samples[kTileKinds]; // of a tile
  int block[kTileKinds];   // rows of a stage are split at multiples of it
  int64_t panel_rows;      // a matrix may be packed in pieces that begin at multiples of it
  // Elements that a matrix with this many rows and columns takes, packed.
  int64_t (*packed_size)(TileKind kind, int64_t rows, int64_t depth);
  int64_t (*packed_stride)(TileKind kind, int64_t rows);
  // A matrix that is not worth packing where each tile or step that reads it is one of the passes,
  // or null. Element (i, k) is w[i * row_stride + k * depth_stride].
  PackedMatrix (*as_it_is)(TileKind kind, const void* w, int64_t rows, int64_t row_stride,
                           int64_t depth_stride, int64_t passes);
  void (*pack)(TileKind kind, const void* w, int64_t rows, int64_t depth, int64_t row_stride,
               int64_t depth_stride, Rows wanted, void* packed);
  // Bytes that a tile needs, and that a thread needs which works on so many at a time.
  int64_t (*workspace_size)(const ChainArgs& args, TileKind kind);
  int64_t (*partial_size)(TileKind kind, int64_t tiles);
  // All of the work on one tile. `partial` is a thread's.
  void (*run)(const ChainArgs& args, TileKind kind, Aim aim, void* workspace, void* partial,
              int64_t tile);
  // The same in pieces: first and last, for one tile each; in between stages, for some rows of
  // consecutive tiles, whose workspaces lie one behind the other.
  void (*begin)(const ChainArgs& args, TileKind kind, void* workspace, int64_t tile);
  void (*stage)(const ChainArgs& args, TileKind kind, Stage stage, Rows wanted, void* workspaces,
                void* partial, int64_t tile, int64_t tiles);
  void (*end)(const ChainArgs& args, TileKind kind, Aim aim, void* workspace, int64_t tile);
  int64_t (*rows)(const ChainArgs& args, TileKind kind, Stage stage);
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
