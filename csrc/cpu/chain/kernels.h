#pragma once

// What the kernels of chains do, as host functions call them.

#include "../isa.h"
#include "stages.h"

namespace pyromancy {

// How a tile keeps its samples. Wide tiles have a sample per lane; thin ones a neuron per lane.
// No sample's result depends on the choice, in any bit.
enum class TileKind : int { wide2, wide1, thin4, thin1 };
inline constexpr int kTileKinds = 4;

// What is done on tiles of one kind.
struct TileKernels {
  int samples; // of a tile
  int block;   // rows of a stage are split at multiples of it
  // Elements that a matrix with this many rows and columns takes, packed.
  int64_t (*packed_size)(int64_t rows, int64_t depth);
  int64_t (*packed_stride)(int64_t rows);
  // A matrix that is not worth packing where each tile or step that reads it is one of the passes,
  // or null. Element (i, k) is w[i * row_stride + k * depth_stride].
  PackedMatrix (*as_it_is)(const void* w, int64_t rows, int64_t row_stride, int64_t depth_stride,
                           int64_t passes);
  void (*pack)(const void* w, int64_t rows, int64_t depth, int64_t row_stride, int64_t depth_stride,
               Rows wanted, void* packed);
  // Bytes that a tile needs, and that a thread needs which works on so many at a time.
  int64_t (*workspace_size)(const ChainArgs& args);
  int64_t (*partial_size)(int64_t tiles);
  // All of the work on one tile. `partial` is a thread's.
  void (*run)(const ChainArgs& args, void* workspace, void* partial, int64_t tile);
  // The same in pieces: first and last, for one tile each; in between stages, for some rows of
  // consecutive tiles, whose workspaces lie one behind the other.
  void (*begin)(const ChainArgs& args, void* workspace, int64_t tile);
  void (*stage)(const ChainArgs& args, Stage stage, Rows wanted, void* workspaces, void* partial,
                int64_t tile, int64_t tiles);
  void (*end)(const ChainArgs& args, void* workspace, int64_t tile);
  // Whether a stepper has come to its end with all samples of a tile.
  bool (*done)(const ChainArgs& args, void* workspace, int64_t tile);
  // Whether one that searches has found the length of the step of each.
  bool (*settled)(const ChainArgs& args, void* workspace, int64_t tile);
  int64_t (*rows)(const ChainArgs& args, Stage stage);
};

struct ChainKernels {
  int lanes;           // of a vector; biases and precisions are padded to a multiple of it
  int columns_at_once; // of a matrix, that one multiply-add takes
  int64_t panel_rows;  // a matrix may be packed in pieces that begin at multiples of it
  const TileKernels* tiles[kTileKinds];
  int64_t columns; // of b that `outer` takes at a time
  int64_t panel;   // elements of its scratch memory
  // out[m, end - begin] = scale a^T f(b) for columns [begin, end) of b [batch, n], contiguous; a^T
  // [m, batch] packed for wide tiles. Rows of `out` are `stride` apart.
  void (*outer)(const void* a, const void* b, Nonlinearity f, int64_t batch, int64_t m, int64_t n,
                double scale, int64_t begin, int64_t end, void* panel, void* out, int64_t stride);
  // out[i] = scale * the norm of a matrix's row i
  void (*row_norms)(const void* w, int64_t rows, int64_t depth, int64_t row_stride,
                    int64_t depth_stride, double scale, void* out);
  // out[n] = scale * the sum of the rows of a [batch, n]
  void (*sum_rows)(const void* a, int64_t batch, int64_t n, double scale, void* out);
  // Moves `rows` runs of `columns` elements of a parameter, `stride` apart, by their gradients
  // [rows, columns], as a rule does; the slots lie as the parameter does.
  void (*learn)(const LearnStep& step, int64_t rows, int64_t columns, const void* gradient,
                void* parameter, void* const* slots, int64_t stride);
};

// float32 and float64 only
PYROMANCY_DECLARE_KERNELS(ChainKernels, chain_kernels)

// Of float32, with products of numbers rounded to bfloat16; `multiplies_bfloat16` tells whether
// this processor has it.
#if PYROMANCY_X86_ISAS
namespace avx512_bf16 {
extern const ChainKernels bfloat16_chain_kernels;
}
#endif

} // namespace pyromancy
