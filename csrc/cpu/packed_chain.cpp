#include "packed_chain.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace pyromancy {
namespace {

constexpr int64_t kTogether = 8;      // tiles that a thread takes through a product side by side
constexpr int64_t kAtOnce = 64 << 20; // bytes of tiles whose stages are shared out

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

} // namespace

Plan PackedChain::plan(const std::vector<Product>& products) const {
  constexpr double from_cache[kTileKinds] = {1, 1.42, 1.45, 2.95};
  constexpr double from_afar[kTileKinds] = {1, 1.35, 4, 11};
  // In multiply-adds of a core: half of what it could do while the threads meet, about 5 us.
  const double meeting = 12000.0 * kernels.lanes;
  const int64_t threads = torch::stable::get_num_threads();
  int64_t elements = 0;
  for (const Product& p : products)
    elements += p.rows * p.depth;
  const int64_t bytes = elements * element_size_, cache = second_level_cache();
  // Of matrices that are read over and over a part stays in a cache that is a little too small.
  const auto is_far = [&](int64_t read_by_one) { return read_by_one > cache * 5 / 4; };
  const bool far = is_far(bytes), far_shared = is_far(bytes / threads);
  // Matrices that come from memory for every tile hold up even the widest.
  const double held_up = bytes > 16 * cache ? 1.1 : 1;
  Plan best{};
  double least = 0;
  for (int k = 0; k < kTileKinds; ++k) {
    const auto kind = static_cast<TileKind>(k);
    const bool thin = kind == TileKind::thin4 || kind == TileKind::thin1;
    const int64_t block = kernels.block[k] * (thin ? kernels.lanes : 1); // neurons
    const int64_t samples = kernels.samples[k], tiles = ceil_div(args.batch, samples);
    const double of_tile = static_cast<double>(samples) * (far ? from_afar : from_cache)[k];
    const double of_shared =
        static_cast<double>(samples) * (far_shared ? from_afar : from_cache)[k];
    const auto consider = [&](bool together, double cost) {
      if ((k == 0 && !together) || cost < least)
        best = {kind, together, together ? far_shared : far}, least = cost;
    };
    consider(false, static_cast<double>(ceil_div(tiles, threads) * elements) * of_tile * held_up);
    double cost = 0;
    for (const Product& p : products) {
      const int64_t pieces = ceil_div(tiles, kTogether) * ceil_div(p.rows, block);
      cost += meeting + static_cast<double>(tiles * p.rows * p.depth) * of_shared /
                            static_cast<double>(std::min(threads, pieces));
    }
    consider(true, cost);
  }
  return best;
}

PackedChain::PackedChain(const ChainOperands& operands)
    : kernels(select(operands)), states_(operands.states), weights_(operands.weights),
      precisions_(operands.precisions), element_size_(states_.front().element_size()) {
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
  std::vector<Product> products;
  for (int64_t l = 0; l < args.nodes; ++l) {
    ChainNode& node = args.node[l];
    node.free = free[l];
    node.prediction_varies = l > 0 && free[l - 1];
    if (!node.predicted || !node.prediction_varies)
      continue;
    const int64_t source = args.node[l - 1].n;
    products.push_back({source, grams[l - 1] ? source : node.n});
    if (!grams[l - 1])
      products.push_back({node.n, source});
  }
  plan_ = plan(products);
  pack_precisions();
  for (int64_t l = 0; l + 1 < args.nodes; ++l) {
    ChainEdge& edge = args.edge[l];
    const ChainNode &source = args.node[l], &target = args.node[l + 1];
    if (!target.predicted)
      continue;
    if (grams[l])
      edge.gram = pack(*grams[l], false, args.steps);
    else
      edge.weight = pack(weights_[l], false, target.prediction_varies ? args.steps : 1);
    if (source.free)
      edge.transposed = pack(weights_[l], true, grams[l] ? 1 : args.steps);
  }
}

void PackedChain::prepare_errors() {
  std::vector<Product> products;
  for (int64_t l = 0; l + 1 < args.nodes; ++l) {
    ChainNode& target = args.node[l + 1];
    target.prediction_varies = !target.prediction_known;
    if (target.predicted && target.prediction_varies)
      products.push_back({target.n, args.node[l].n});
  }
  plan_ = plan(products);
  pack_precisions();
  for (int64_t l = 0; l + 1 < args.nodes; ++l)
    if (args.node[l + 1].predicted && args.node[l + 1].prediction_varies)
      args.edge[l].weight = pack(weights_[l], false, 1);
}

void PackedChain::pack_precisions() {
  for (int64_t l = 0; l < args.nodes; ++l)
    if (const std::optional<Tensor>& p = precisions_[l]; p && p->dim() == 2)
      args.node[l].full_precision = pack(*p, false, args.steps);
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
  return pack(TileKind::wide2, matrix, rows, depth, row, column);
}

void PackedChain::pack_all() {
  share_out(static_cast<int64_t>(packing_.size()), 0, [&](void*, int64_t i) {
    const Packing& p = packing_[i];
    kernels.pack(p.kind, p.from, p.rows, p.depth, p.row_stride, p.depth_stride, p.wanted, p.to);
  });
  packing_.clear();
}

void PackedChain::run(Aim aim) {
  pack_all();
  const TileKind kind = plan_.kind;
  if (plan_.together)
    return run_together(aim);
  const int64_t samples = kernels.samples[static_cast<int>(kind)];
  const int64_t size = kernels.workspace_size(args, kind);
  share_out(ceil_div(args.batch, samples), size + kernels.partial_size(kind, 1),
            [&](void* memory, int64_t tile) {
              kernels.run(args, kind, aim, memory, static_cast<char*>(memory) + size, tile);
            });
}

void PackedChain::run_together(Aim aim) {
  const int64_t tiles = ceil_div(args.batch, kernels.samples[static_cast<int>(plan_.kind)]);
  const int64_t size = kernels.workspace_size(args, plan_.kind);
  // Samples do not interact, so that a large batch may take its turns.
  const int64_t most = std::clamp<int64_t>(kAtOnce / size, kTogether, tiles + kTogether);
  const Scratch workspaces(std::min(most, tiles) * size);
  for (int64_t first = 0; first < tiles; first += most)
    run_together(aim, workspaces.as<char>(), size, first, std::min(most, tiles - first));
}

void PackedChain::run_together(Aim aim, char* workspaces, int64_t size, int64_t first,
                               int64_t tiles) {
  const TileKind kind = plan_.kind;
  const int64_t block = kernels.block[static_cast<int>(kind)];
  const int64_t groups = ceil_div(tiles, kTogether);
  const int64_t threads = torch::stable::get_num_threads();
  const auto stage = [&](Stage stage) {
    const int64_t rows = kernels.rows(args, kind, stage);
    // A few pieces for every thread, so that none waits long for another.
    const int64_t blocks = ceil_div(rows, block);
    const int64_t height = block * std::clamp<int64_t>(blocks * groups / (3 * threads), 1, 8);
    const int64_t pieces = ceil_div(rows, height);
    share_out(pieces * groups, kernels.partial_size(kind, kTogether),
              [&](void* partial, int64_t task) {
                const int64_t top = task % pieces * height, tile = task / pieces * kTogether;
                kernels.stage(args, kind, stage, {top, std::min(top + height, rows)},
                              workspaces + tile * size, partial, first + tile,
                              std::min(kTogether, tiles - tile));
              });
  };
  share_out(tiles, 0, [&](void*, int64_t tile) {
    kernels.begin(args, kind, workspaces + tile * size, first + tile);
  });
  if (aim == Aim::inference)
    stages_of_inference(args, stage);
  else
    stages_of_errors(args, stage);
  share_out(tiles, 0, [&](void*, int64_t tile) {
    kernels.end(args, kind, aim, workspaces + tile * size, first + tile);
  });
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

PackedMatrix PackedChain::pack(const Tensor& matrix, bool transposed, int64_t reads) {
  const int64_t rows = matrix.size(transposed), depth = matrix.size(!transposed);
  const int64_t row = matrix.stride(transposed), column = matrix.stride(!transposed);
  const int64_t tiles = ceil_div(args.batch, kernels.samples[static_cast<int>(plan_.kind)]);
  const void* const data = matrix.data_ptr();
  if (const PackedMatrix same =
          kernels.as_it_is(plan_.kind, data, rows, row, column, reads * tiles))
    return same;
  return {pack(plan_.kind, data, rows, depth, row, column), kernels.packed_stride(plan_.kind, rows),
          plan_.far};
}

const void* PackedChain::pack(TileKind kind, const void* matrix, int64_t rows, int64_t depth,
                              int64_t row, int64_t column) {
  void* const to = scratch(kernels.packed_size(kind, rows, depth));
  for (int64_t i = 0; i < rows; i += kernels.panel_rows)
    packing_.push_back(
        {kind, matrix, rows, depth, row, column, {i, std::min(i + kernels.panel_rows, rows)}, to});
  return to;
}

} // namespace pyromancy
