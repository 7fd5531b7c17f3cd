#pragma once

#include <deque>
#include <vector>

#include "../chain.h"
#include "chain_kernel.h"
#include "host.h"

namespace pyromancy {

// A call's operands, checked, in the terms of the kernels: padded, packed into panels, and with the
// kind of tile chosen that they run in.
class PackedChain {
public:
  explicit PackedChain(const ChainOperands& operands);

  // Says which nodes E-steps move, and packs the matrices that these need.
  void prepare_inference(const std::vector<bool>& free, const MaybeTensors& grams);

  // Packs the matrices that the errors need; after the known predictions have been put in.
  void prepare_errors();

  // The edges from clamped nodes whose prediction an M-step can take over as it is.
  bool keeps_prediction(int64_t edge) const;

  // Of each of these edges a hash of all that its prediction is made of: states, weights and biases
  // by their contents, and the activation.
  std::vector<int64_t> content_hashes(const std::vector<int64_t>& edges) const;

  // A matrix as wide tiles read it, once `pack_panels` has run. Element (i, k) is at
  // matrix[i * row + k * column].
  const void* pack_wide(const void* matrix, int64_t rows, int64_t depth, int64_t row,
                        int64_t column);
  void pack_panels();

  // Every tile runs on one thread. A sample's result depends neither on the kind of its tile nor
  // on the samples beside it.
  template <class F>
  void for_each_tile(F f) {
    pack_panels();
    const int64_t samples = kernels.samples[static_cast<int>(kind_)];
    share_out(ceil_div(args.batch, samples), kernels.workspace_size(args, kind_),
              [&](void* workspace, int64_t tile) { f(args, kind_, workspace, tile); });
  }

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
  PackedMatrix pack(const Tensor& matrix, bool transposed);

  // A piece of a matrix for one thread to pack.
  struct Packing {
    const void* from;
    int64_t rows, depth, row_stride, depth_stride;
    void* to;
  };

  const Tensors &states_, &weights_;
  const int64_t element_size_;
  TileKind kind_;
  std::vector<ChainNode> nodes_;
  std::vector<ChainEdge> edges_;
  std::vector<Packing> packing_;
  std::deque<Tensor> kept_;
  std::deque<Scratch> scratch_;
};

} // namespace pyromancy
