#pragma once

#include <deque>
#include <map>
#include <optional>
#include <tuple>
#include <vector>

#include "../plan.h"
#include "chain/kernels.h"
#include "host.h"

namespace pyromancy {

// How a chain's samples are cut up, and whether the threads share out tiles, each of which runs
// from beginning to end on one, or the rows of every stage; and whether what a thread reads at
// every step is more than its second-level cache holds.
struct Tiling {
  TileKind kind;
  bool together, far;
};

// A plan's operands in the terms of the kernels: padded, packed into panels, and with the kind of
// tile chosen that they run in. Good for one pass: some E-steps, and what learning wants after
// them or before the last.
class PackedChain {
public:
  PackedChain(const Plan& plan, const Operands& operands);
  PackedChain(const PackedChain&) = delete; // which points at itself

  // Lays out the pass and packs the matrices that it needs.
  void prepare(int64_t steps, bool sweeps, Learn learn);

  // A matrix as wide tiles read it, once `pack_all` has run. Element (i, k) is at
  // matrix[i * row + k * column].
  const void* pack_wide(const void* matrix, int64_t rows, int64_t depth, int64_t row,
                        int64_t column);
  void pack_all();

  // Does the work on all samples. No result depends on the kind of tile, on the samples beside a
  // sample or on how the work is shared out, in any bit.
  void run();

  // Elements of the states' dtype, for as long as the chain lives.
  void* scratch(int64_t elements);

  const ChainKernels& kernels;
  ChainArgs args{};
  int diverged = 0; // 1 once a state has ended as NaN or infinite

private:
  const TileKernels& tiles() const {
    return *kernels.tiles[static_cast<int>(tiling_.kind)];
  }
  // t, contiguous, for as long as the chain lives
  const Tensor& keep(const Tensor& t);
  // The n elements of t, or zeros, and zeros up to a multiple of a number.
  const void* pad(const Tensor* t, int64_t n, int64_t multiple);
  const void* pad(const Tensor* t, int64_t n) {
    return pad(t, n, kernels.lanes);
  }
  // weight * exp(-theta) of a node's law, padded, or null where that is 1.
  const void* rate(const PlanNode& node, int64_t n);
  // A theta [n], or one number as often.
  const void* row_of(const Tensor& t, int64_t n);
  // Bools as numbers, contiguous.
  const void* mask(const Tensor& t);
  // t, contiguous, times a number, and element by element a mask, if there is one
  Tensor scaled(const Tensor& t, double scale, const Tensor* mask = nullptr);
  // A matrix [out, columns of an edge] among zeros, [out, in]; or where there is none, what passes
  // columns on, times a number.
  Tensor placed(const std::optional<Tensor>& matrix, int64_t edge) const;
  PackedMatrix gram(const Tensor& weight, const ChainEdge& out);
  void find_what_moves();
  // Which edges lead to nodes and away from them, and what follows of that.
  void join();
  Numbers keep_numbers(std::vector<int64_t> numbers);
  // The sum of what edges to a node of width n have, padded.
  const void* bias(const std::vector<int64_t>& edges, int64_t n);
  // Which states may be their predictions but for rounding, since whoever set them computed these
  // in another order: the gradients of what no error has reached are zero then, as they are for
  // who computes both in one way.
  void find_what_settles();
  // Packed if it must be, as one of several that are added up is, or if that is worth it where each
  // tile reads it so many times.
  PackedMatrix pack(const Tensor& matrix, bool transposed, int64_t reads, bool alone = true);
  PackedMatrix pack(const void* matrix, int64_t rows, int64_t depth, int64_t row, int64_t column,
                    int64_t reads, bool alone = true);
  const void* pack(const TileKernels& tiles, const void* matrix, int64_t rows, int64_t depth,
                   int64_t row, int64_t column);
  void run_together();
  void run_together(char* workspaces, int64_t size, int64_t first, int64_t count);

  // A product that is done again and again.
  struct Product {
    int64_t rows, depth;
  };

  // The tiling with which the busiest thread is done first. Narrow tiles share out a small batch
  // more evenly, but a sample of theirs takes longer (in units of the widest's, fitted to what
  // chains 128 to 2048 wide took at batches of 1 to 128 on an AVX-512 machine), above all where the
  // matrices, which every tile reads, do not stay in a core's cache. The rows of stages can always
  // be shared out evenly, but after each stage the threads wait for one another.
  Tiling choose(const std::vector<Product>& products) const;

  // A piece of a matrix for one thread to pack.
  struct Packing {
    const TileKernels& tiles;
    const void* from;
    int64_t rows, depth, row_stride, depth_stride;
    Rows wanted;
    void* to;
  };

  const Plan& plan_;
  const Operands& operands_;
  const int64_t element_size_;
  Tiling tiling_{};
  std::vector<ChainNode> nodes_;
  std::vector<ChainEdge> edges_;
  std::vector<Packing> packing_;
  using Matrix = std::tuple<const void*, int64_t, int64_t, int64_t, int64_t>; // as `pack` takes it
  std::map<Matrix, PackedMatrix> packed_;
  // of the edges, as products take them: [out, in], times the scale; none of those without a matrix
  std::vector<std::optional<Tensor>> weights_;
  std::deque<std::vector<int64_t>> numbers_;
  std::deque<std::vector<Through>> through_;
  std::deque<Tensor> kept_;
  std::deque<Scratch> scratch_;
};

} // namespace pyromancy
