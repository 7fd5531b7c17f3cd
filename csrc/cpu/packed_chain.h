#pragma once

#include <deque>
#include <vector>

#include "../chain.h"
#include "chain_kernel.h"
#include "host.h"

namespace pyromancy {

// How a chain's samples are cut up, and whether the threads share out tiles, each of which runs
// from beginning to end on one, or the rows of every stage; and whether what a thread reads at
// every step is more than its second-level cache holds.
struct Plan {
  TileKind kind;
  bool together, far;
};

// A call's operands, checked, in the terms of the kernels: padded, packed into panels, and with the
// kind of tile chosen that they run in.
class PackedChain {
public:
  explicit PackedChain(const ChainOperands& operands);

  // Says which nodes E-steps move, and packs the matrices that these need; after the number of
  // steps has been set.
  void prepare_inference(const std::vector<bool>& free, const MaybeTensors& grams);

  // Packs the matrices that the errors need; after the known predictions have been put in.
  void prepare_errors();

  // The edges from clamped nodes whose prediction an M-step can take over as it is.
  bool keeps_prediction(int64_t edge) const;

  // Of each of these edges a hash of all that its prediction is made of: states, weights and biases
  // by their contents, and the activation.
  std::vector<int64_t> content_hashes(const std::vector<int64_t>& edges) const;

  // A matrix as wide tiles read it, once `pack_all` has run. Element (i, k) is at
  // matrix[i * row + k * column].
  const void* pack_wide(const void* matrix, int64_t rows, int64_t depth, int64_t row,
                        int64_t column);
  void pack_all();

  // Does the work on all samples. No result depends on the kind of tile, on the samples beside a
  // sample or on how the work is shared out, in any bit.
  void run(Aim aim);

  const Tensor& state(int64_t node) const {
    return states_[node];
  }

  // Elements of the states' dtype, for as long as the chain lives.
  void* scratch(int64_t elements);

  const ChainKernels& kernels;
  ChainArgs args{};

private:
  // t, contiguous, for as long as the chain lives
  const Tensor& keep(const Tensor& t);
  // The n elements of t, or zeros, and zeros up to a whole vector.
  const void* pad(const Tensor* t, int64_t n);
  // Packed if it must be, or if that is worth it where each tile reads it so many times.
  PackedMatrix pack(const Tensor& matrix, bool transposed, int64_t reads);
  const void* pack(TileKind kind, const void* matrix, int64_t rows, int64_t depth, int64_t row,
                   int64_t column);
  void pack_precisions();
  void run_together(Aim aim);
  void run_together(Aim aim, char* workspaces, int64_t size, int64_t first, int64_t tiles);

  // A product that is done again and again.
  struct Product {
    int64_t rows, depth;
  };

  // The plan with which the busiest thread is done first. Narrow tiles share out a small batch more
  // evenly, but a sample of theirs takes longer (in units of the widest's, fitted to what chains
  // 128 to 2048 wide took at batches of 1 to 128 on an AVX-512 machine), above all where the
  // matrices, which every tile reads, do not stay in a core's cache. The rows of stages can always
  // be shared out evenly, but after each stage the threads wait for one another.
  Plan plan(const std::vector<Product>& products) const;

  // A piece of a matrix for one thread to pack.
  struct Packing {
    TileKind kind;
    const void* from;
    int64_t rows, depth, row_stride, depth_stride;
    Rows wanted;
    void* to;
  };

  const Tensors &states_, &weights_;
  const MaybeTensors& precisions_;
  const int64_t element_size_;
  Plan plan_{};
  std::vector<ChainNode> nodes_;
  std::vector<ChainEdge> edges_;
  std::vector<Packing> packing_;
  std::deque<Tensor> kept_;
  std::deque<Scratch> scratch_;
};

} // namespace pyromancy
