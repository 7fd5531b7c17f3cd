#include "packed_chain.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace pyromancy {
namespace {

const ChainKernels& select(const ChainOperands& operands) {
  check_chain(operands);
  const DType dtype = dtype_of("states", operands.states.front());
  return PYROMANCY_SELECT_KERNELS(chain_kernels, dtype);
}

// In bytes, of one core; a guess where the system does not tell. Asked once: on a virtual machine
// the answer may take the hypervisor.
int64_t second_level_cache() {
  static const int64_t bytes = [] {
    long told = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    told = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return told > 0 ? told : 1L << 20;
  }();
  return bytes;
}

// The kind with which the busiest thread is done first. Narrow tiles share out a small batch more
// evenly, but a sample of theirs takes longer (in units of the widest's, fitted to what chains
// 64 to 300 wide took at batches of 1 to 100 on an AVX-512 machine), above all where an E-step's
// matrices, which every tile reads, do not stay in a core's cache.
TileKind choose_kind(const ChainKernels& kernels, const ChainOperands& operands) {
  int64_t elements = 0;
  for (int64_t l = 1; l + 1 < operands.nodes(); ++l)
    elements += 2 * operands.width(l) * operands.width(l + 1);
  const bool cached = elements * static_cast<int64_t>(operands.states.front().element_size()) <=
                      second_level_cache() * 3 / 4;
  constexpr double from_cache[kTileKinds] = {1, 1.5, 1.35, 2.6};
  constexpr double from_afar[kTileKinds] = {1, 1.35, 2.8, 9};
  const double* per_sample = cached ? from_cache : from_afar;
  const int64_t threads = torch::stable::get_num_threads();
  int best = 0;
  double least = 0;
  for (int k = 0; k < kTileKinds; ++k) {
    const int64_t samples = kernels.samples[k];
    const double cost =
        ceil_div(ceil_div(operands.batch(), samples), threads) * samples * per_sample[k];
    if (k == 0 || cost < least)
      best = k, least = cost;
  }
  return static_cast<TileKind>(best);
}

} // namespace

PackedChain::PackedChain(const ChainOperands& operands)
    : kernels(select(operands)), states_(operands.states), weights_(operands.weights),
      element_size_(states_.front().element_size()), kind_(choose_kind(kernels, operands)) {
  const int64_t count = operands.nodes();
  args.batch = operands.batch();
  args.nodes = count;
  nodes_.resize(count);
  edges_.resize(count - 1);
  args.node = nodes_.data();
  args.edge = edges_.data();
  for (int64_t l = 0; l < count; ++l) {
    ChainNode& node = args.node[l];
    node.n = operands.width(l);
    node.predicted = operands.predicted[l];
    node.state = states_[l].data_ptr();
    const std::optional<Tensor>& p = operands.precisions[l];
    if (p && p->dim() == 1)
      node.precision = pad(&*p, node.n);
    else if (p)
      node.full_precision = pack(*p, false);
  }
  for (int64_t l = 0; l + 1 < count; ++l) {
    ChainEdge& edge = args.edge[l];
    const std::optional<Tensor>& bias = operands.biases[l];
    edge.bias = pad(bias ? &*bias : nullptr, args.node[l + 1].n);
    const auto nonlinearity = [&](int64_t i) {
      return Nonlinearity{static_cast<Activation>(operands.activations[i]), operands.parameters[i]};
    };
    edge.before = nonlinearity(2 * l);
    edge.after = nonlinearity(2 * l + 1);
  }
  if (operands.prior) {
    const Tensor& p = keep(*operands.prior);
    args.prior = p.data_ptr();
    args.prior_stride = p.size(0) == 1 ? 0 : args.node[0].n;
  }
}

void PackedChain::prepare_inference(const std::vector<bool>& free, const MaybeTensors& grams) {
  for (int64_t l = 0; l < args.nodes; ++l) {
    args.node[l].free = free[l];
    args.node[l].prediction_varies = l > 0 && free[l - 1];
  }
  for (int64_t l = 0; l + 1 < args.nodes; ++l) {
    ChainEdge& edge = args.edge[l];
    const ChainNode &source = args.node[l], &target = args.node[l + 1];
    if (!target.predicted)
      continue;
    if (grams[l])
      edge.gram = pack(*grams[l], false);
    else
      edge.weight = pack(weights_[l], false);
    if (source.free)
      edge.transposed = pack(weights_[l], true);
  }
}

void PackedChain::prepare_errors() {
  for (int64_t l = 0; l + 1 < args.nodes; ++l) {
    ChainNode& target = args.node[l + 1];
    target.prediction_varies = !target.prediction_known;
    if (target.predicted && target.prediction_varies)
      args.edge[l].weight = pack(weights_[l], false);
  }
}

bool PackedChain::keeps_prediction(int64_t edge) const {
  return !args.node[edge].free && args.node[edge + 1].predicted && weights_[edge].is_contiguous() &&
         args.edge[edge].after.kind == Activation::identity;
}

std::vector<int64_t> PackedChain::content_hashes(const std::vector<int64_t>& edges) const {
  struct Piece {
    const char* bytes;
    int64_t count;
    size_t edge;
  };
  constexpr int64_t kPiece = 1 << 16;
  std::vector<Piece> pieces;
  for (size_t e = 0; e < edges.size(); ++e) {
    const int64_t l = edges[e];
    const auto add = [&](const void* data, int64_t elements) {
      const char* bytes = static_cast<const char*>(data);
      for (int64_t at = 0; at < elements * element_size_; at += kPiece)
        pieces.push_back({bytes + at, std::min(kPiece, elements * element_size_ - at), e});
    };
    add(states_[l].data_ptr(), states_[l].numel());
    add(weights_[l].data_ptr(), weights_[l].numel());
    add(args.edge[l].bias, args.node[l + 1].n);
  }
  std::vector<uint64_t> parts(pieces.size());
  share_out(static_cast<int64_t>(pieces.size()), 0, [&](void*, int64_t i) {
    parts[i] = kernels.content_hash(pieces[i].bytes, pieces[i].count, static_cast<uint64_t>(i));
  });
  std::vector<int64_t> hashes(edges.size());
  for (size_t e = 0; e < edges.size(); ++e) {
    const Nonlinearity before = args.edge[edges[e]].before;
    std::vector<uint64_t> own{static_cast<uint64_t>(before.kind), 0};
    std::memcpy(&own[1], &before.parameter, sizeof own[1]);
    for (size_t i = 0; i < pieces.size(); ++i)
      if (pieces[i].edge == e)
        own.push_back(parts[i]);
    hashes[e] = static_cast<int64_t>(
        kernels.content_hash(own.data(), static_cast<int64_t>(own.size() * sizeof own[0]), 0));
  }
  return hashes;
}

const void* PackedChain::pack_wide(const void* matrix, int64_t rows, int64_t depth, int64_t row,
                                   int64_t column) {
  constexpr TileKind wide = TileKind::wide2;
  const char* const from = static_cast<const char*>(matrix);
  char* const to = static_cast<char*>(scratch(kernels.packed_size(wide, rows, depth)));
  for (int64_t i = 0; i < rows; i += kernels.panel_rows)
    packing_.push_back({from + i * row * element_size_, std::min(kernels.panel_rows, rows - i),
                        depth, row, column,
                        to + kernels.packed_size(wide, i, depth) * element_size_});
  return to;
}

void PackedChain::pack_panels() {
  share_out(static_cast<int64_t>(packing_.size()), 0, [&](void*, int64_t i) {
    const Packing& p = packing_[i];
    kernels.pack(TileKind::wide2, p.from, p.rows, p.depth, p.row_stride, p.depth_stride, p.to);
  });
  packing_.clear();
}

void* PackedChain::scratch(int64_t elements) {
  return scratch_.emplace_back(elements * element_size_).as<void>();
}

const Tensor& PackedChain::keep(const Tensor& t) {
  return kept_.emplace_back(t.is_contiguous() ? t : torch::stable::contiguous(t));
}

const void* PackedChain::pad(const Tensor* t, int64_t n) {
  const int64_t padded = ceil_div(n, kernels.lanes) * kernels.lanes;
  char* const copy = static_cast<char*>(scratch(padded));
  std::fill(copy, copy + padded * element_size_, 0);
  if (t) {
    const char* from = static_cast<const char*>(keep(*t).data_ptr());
    std::copy(from, from + n * element_size_, copy);
  }
  return copy;
}

PackedMatrix PackedChain::pack(const Tensor& matrix, bool transposed) {
  const int64_t rows = matrix.size(transposed), depth = matrix.size(!transposed);
  const int64_t row = matrix.stride(transposed), column = matrix.stride(!transposed);
  if (kind_ == TileKind::thin1 || kind_ == TileKind::thin4)
    return kernels.pack(kind_, matrix.data_ptr(), rows, depth, row, column,
                        scratch(kernels.packed_size(kind_, rows, depth)));
  return {pack_wide(matrix.data_ptr(), rows, depth, row, column), 0};
}

} // namespace pyromancy
