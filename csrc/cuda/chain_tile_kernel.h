#pragma once

// All E-steps of a chain in one kernel: a cluster of thread blocks keeps a tile of samples in
// shared memory from the first step to the last, and every block of it computes a share of every
// node's neurons. float32 only.
//
// Lengths and offsets in shared memory count floats. Neurons come in tiles of 8, of which a block
// owns `tiles` of every node, one after the other. Per sample tile there are kept
//   slices: [tiles][16 M samples][8], of the block's own neurons;
//   panels: all neurons of a node, as the tensor cores read them (see mma.h): the sums of a product
//           run over these, and every block has them all.
// A step goes through the edges in rounds, from the first edge to the last, because the panels of
// all edges may not fit at the same time. A node moves in the round of the edge from it: by then
// its error is known, and no later edge asks for the state it had.

#include <cstdint>

#include "../activations.h"
#include "../laws/expression.h"
#include "../laws/law.h"

namespace pyromancy::cuda {

inline constexpr int kWarps = 8;                  // of a block
inline constexpr int kTileNodes = 32;             // at most, of a chain
inline constexpr int kProducts = 3 * kTileNodes;  // forward, feedback and precision
inline constexpr int kNeurons = 8, kSamples = 16; // of a tile
inline constexpr int kDepth = 16;                 // neurons summed at a time
inline constexpr int kBlock = kNeurons * kDepth;  // floats of a block of a packed matrix
inline constexpr int kGroup = 2;                  // tiles of neurons that a warp computes at a time
inline constexpr int kSampleTiles[] = {1, 2, 4};  // M
inline constexpr int kOwnLaws = 4;                // at most, laws of one's own in a chain
inline constexpr int kAbsent = -1;

// out = panel matrix^T, for the block's own tiles of the matrix's rows. The sums are cut into
// parts, which whoever reads `out` adds; a warp computes a group of tiles in one part.
struct TileProduct {
  const float* packed; // [tiles of all blocks][blocks][kBlock]
  int tiles, blocks, groups, parts;
  int units;    // of work in the products of this round and phase before this one
  int resident; // where the block's share of `packed` is in shared memory, or kAbsent: read from L2
  int panel, out;
};

enum class Feedback : int { none, product, gram };

struct TileNode {
  int n, tiles;
  bool free;
  bool swept;                  // starts at its prediction, which `into` makes
  bool computes_error;         // at every step
  bool gives;                  // delta or moment, of a prediction that `into` makes
  int error_round, move_round; // when that is, and when a free node moves
  Nonlinearity before, after;  // of the edges from here and to here
  Feedback feedback;
  Law law;
  float law_parameter, weight; // of the law and of its energy
  int own_law;                 // of a law of one's own, its place, or kAbsent
  float normalizer;            // that the energy has times theta

  const float *bias, *rate, *constant_feedback; // [n], [n] or null, [rows, n]
  const float* sample_weights;                  // [rows], of the energy, or null
  const float* constant;                        // prediction that no product makes, or null
  int64_t constant_row;                         // its rows lie so far apart
  float *state, *velocity;                      // [rows, n]; velocity may be null
  float *delta, *moment; // after the steps, of the mean energy: after' times what it grows by with
                         // mu, and what it grows by with theta, [rows, n], or null

  int into, weigh, back; // products: the prediction, the precision matrix, the feedback; or kAbsent
  int z, e, mu, v, constant_feedback_at; // slices, or kAbsent: e is what the law pulls with
  int deviation;                         // slice of what is recorded, or kAbsent
  int bias_at, rate_at;                  // [8 tiles], or kAbsent
  int samples_at;                        // [16 M] weights of samples, or kAbsent
  int h, d, residual; // panels: before(z), after' times the push, z - mu for a precision matrix
};

struct TileArgs {
  int64_t batch, steps;
  int nodes, cluster, sample_tiles, rounds; // sample_tiles is M
  int phase[kTileNodes][4]; // where each phase's products begin in a round, and the last one's end
  int units[kTileNodes][3]; // of work in a phase of a round
  int shared;               // floats of shared memory
  float lr, momentum, undamped; // 1 - dampening
  bool nesterov, starts;        // starts: the first gradient is the velocity
  float* energies;              // [cluster, steps, nodes, batch], or null
  int sweeps;                   // of predictions, before the steps: one for each that is swept
  bool gives;                   // of any node
  float mean;                   // 1 / batch
  TileNode node[kTileNodes];
  TileProduct product[kProducts];
  Expression own_law[kOwnLaws];
};

// Of float32 products, as in torch.set_float32_matmul_precision.
enum class Precision : int {
  highest, // a = a1 + a2 in two TF32 numbers, b too; all but a2 b2, at most 2^-22 of the product
  high,    // TF32
  medium,  // bfloat16
};
// How many clusters of a size run at the same time on the current device, which knows clusters, of
// blocks with so much shared memory.
int clusters_at_once(int size, int shared_bytes);

void launch_chain_tile(const TileArgs& args, Precision precision, void* stream);

// A matrix into blocks: element (row, k) of it is at row * row_stride + k * depth_stride.
struct Packing {
  const float* from;
  int64_t row_stride, depth_stride;
  int rows, depth; // of the matrix; what lies beyond is zero
  int tiles, blocks;
  int64_t to; // offset in the packed memory
};
struct PackArgs {
  int count;
  float* packed;
  Packing matrix[kProducts];
};
void launch_pack(const PackArgs& args, void* stream);

} // namespace pyromancy::cuda
