#include "chain_kernel.h"

#include <torch/csrc/stable/library.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <vector>

#include "../chain.h"
#include "host.h"

namespace pyromancy {
namespace {

using torch::stable::parallel_for;
constexpr auto kStampType = torch::headeronly::ScalarType::Long;

// f(scratch, task) for every task, each thread taking the next one as it comes free. Every thread
// has `bytes` of scratch memory. The tasks must not depend on one another.
template <class F>
void share_out(int64_t tasks, int64_t bytes, F f) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), tasks);
  const auto work = [&](int64_t, int64_t) {
    Scratch scratch(bytes);
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
      f(scratch.as<void>(), task);
  };
  if (threads > 1)
    parallel_for(0, threads, 1, work);
  else if (tasks > 0)
    work(0, 1);
}

// Operands of a call, checked, in the kernel's terms; matrices are packed for it.
class Chain {
public:
  explicit Chain(const ChainOperands& operands)
      : kernels(select(operands)), states_(operands.states), weights_(operands.weights) {
    const int64_t count = operands.nodes();
    args.batch = operands.batch();
    args.nodes = count;
    nodes_.resize(count);
    edges_.resize(count - 1);
    args.node = nodes_.data();
    args.edge = edges_.data();
    kind = choose_kind(operands);
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
        return Nonlinearity{static_cast<Activation>(operands.activations[i]),
                            operands.parameters[i]};
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

  // The edges from clamped nodes whose prediction an M-step can take over as it is.
  bool keeps_prediction(int64_t edge) const {
    return !args.node[edge].free && args.node[edge + 1].predicted && stampable(edge) &&
           args.edge[edge].after.kind == Activation::identity;
  }

  // Of what the predictions of these edges are made of, contents included.
  void stamp(const std::vector<int64_t>& edges, int64_t* stamps) const {
    struct Piece {
      const char* bytes;
      int64_t count;
      size_t edge;
    };
    constexpr int64_t kPiece = 1 << 16;
    const int64_t size = states_.front().element_size();
    std::vector<Piece> pieces;
    for (size_t e = 0; e < edges.size(); ++e) {
      const int64_t l = edges[e];
      const auto add = [&](const void* data, int64_t elements) {
        const char* bytes = static_cast<const char*>(data);
        for (int64_t at = 0; at < elements * size; at += kPiece)
          pieces.push_back({bytes + at, std::min(kPiece, elements * size - at), e});
      };
      add(states_[l].data_ptr(), states_[l].numel());
      add(weights_[l].data_ptr(), weights_[l].numel());
      add(args.edge[l].bias, args.node[l + 1].n);
    }
    std::vector<uint64_t> parts(pieces.size());
    share_out(static_cast<int64_t>(pieces.size()), 0, [&](void*, int64_t i) {
      parts[i] = kernels.stamp(pieces[i].bytes, pieces[i].count, static_cast<uint64_t>(i));
    });
    for (size_t e = 0; e < edges.size(); ++e) {
      const Nonlinearity before = args.edge[edges[e]].before;
      std::vector<uint64_t> own{static_cast<uint64_t>(before.kind), 0};
      std::memcpy(&own[1], &before.parameter, sizeof own[1]);
      for (size_t i = 0; i < pieces.size(); ++i)
        if (pieces[i].edge == e)
          own.push_back(parts[i]);
      stamps[e] = static_cast<int64_t>(
          kernels.stamp(own.data(), static_cast<int64_t>(own.size() * sizeof own[0]), 0));
    }
  }

  // Packs the matrices that inference needs, once it is known which nodes are free.
  void pack_for_inference(const MaybeTensors& grams) {
    for (int64_t l = 0; l + 1 < args.nodes; ++l) {
      ChainEdge& edge = args.edge[l];
      const ChainNode &source = args.node[l], &target = args.node[l + 1];
      if (!target.predicted)
        continue;
      if (grams[l]) {
        edge.gram = pack(*grams[l], false);
      } else {
        edge.weight = pack(weights_[l], false);
      }
      if (source.free)
        edge.transposed = pack(weights_[l], true);
    }
  }

  void pack_for_errors() {
    for (int64_t l = 0; l + 1 < args.nodes; ++l)
      if (args.node[l + 1].predicted && !args.node[l + 1].prediction_known)
        args.edge[l].weight = pack(weights_[l], false);
  }

  // A matrix as wide tiles read it, once `pack_panels` has run.
  const void* pack_wide(const void* matrix, int64_t rows, int64_t depth, int64_t row,
                        int64_t column) {
    constexpr TileKind wide = TileKind::wide2;
    const int64_t size = states_.front().element_size();
    const char* const from = static_cast<const char*>(matrix);
    char* const to = static_cast<char*>(scratch(kernels.packed_size(wide, rows, depth)));
    for (int64_t i = 0; i < rows; i += kernels.panel_rows)
      packing_.push_back({from + i * row * size, std::min(kernels.panel_rows, rows - i), depth, row,
                          column, to + kernels.packed_size(wide, i, depth) * size});
    return to;
  }

  void pack_panels() {
    share_out(static_cast<int64_t>(packing_.size()), 0, [&](void*, int64_t i) {
      const Packing& p = packing_[i];
      kernels.pack(TileKind::wide2, p.from, p.rows, p.depth, p.row_stride, p.depth_stride, p.to);
    });
    packing_.clear();
  }

  // Every tile runs on one thread. A sample's result depends neither on the kind of its tile nor
  // on the samples beside it.
  template <class F>
  void for_each_tile(F f) {
    pack_panels();
    const int64_t samples = kernels.samples[static_cast<int>(kind)];
    share_out(ceil_div(args.batch, samples), kernels.workspace_size(args, kind),
              [&](void* workspace, int64_t tile) { f(args, kind, workspace, tile); });
  }

  const Tensor& state(int64_t node) const {
    return states_[node];
  }

  // Elements of the states' dtype, for as long as the chain lives.
  void* scratch(int64_t elements) {
    return scratch_.emplace_back(elements * states_.front().element_size()).as<void>();
  }

  const ChainKernels& kernels;
  ChainArgs args{};
  TileKind kind;

private:
  static const ChainKernels& select(const ChainOperands& operands) {
    check_chain(operands);
    const DType dtype = dtype_of("states", operands.states.front());
    return PYROMANCY_SELECT_KERNELS(chain_kernels, dtype);
  }

  // The kind with which the busiest thread is done first. Narrow tiles share out a small batch more
  // evenly, but a sample of theirs takes longer (in units of the widest's, fitted to what chains
  // 64 to 300 wide took at batches of 1 to 100 on an AVX-512 machine), above all where an E-step's
  // matrices, which every tile reads, do not stay in a core's cache.
  TileKind choose_kind(const ChainOperands& operands) const {
    int64_t elements = 0;
    for (int64_t l = 1; l + 1 < operands.nodes(); ++l)
      elements += 2 * operands.width(l) * operands.width(l + 1);
    const bool cached = elements * states_.front().element_size() <= second_level_cache() * 3 / 4;
    constexpr double from_cache[kTileKinds] = {1, 1.5, 1.35, 2.6};
    constexpr double from_afar[kTileKinds] = {1, 1.35, 2.8, 9};
    const double* per_sample = cached ? from_cache : from_afar;
    const int64_t threads = torch::stable::get_num_threads();
    int best = 0;
    double least = 0;
    for (int k = 0; k < kTileKinds; ++k) {
      const int64_t samples = kernels.samples[k];
      const double cost =
          ceil_div(ceil_div(args.batch, samples), threads) * samples * per_sample[k];
      if (k == 0 || cost < least)
        best = k, least = cost;
    }
    return static_cast<TileKind>(best);
  }

  // In bytes, of one core; a guess where the system does not tell. Asked once: on a virtual machine
  // the answer may take the hypervisor.
  static int64_t second_level_cache() {
    static const int64_t bytes = [] {
      long told = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
      told = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
      return told > 0 ? told : 1L << 20;
    }();
    return bytes;
  }

  bool stampable(int64_t edge) const {
    return weights_[edge].is_contiguous();
  }

  // t, contiguous, for as long as the chain lives
  const Tensor& keep(const Tensor& t) {
    return kept_.emplace_back(t.is_contiguous() ? t : torch::stable::contiguous(t));
  }

  // The n elements of t, or zeros, and zeros up to a whole vector.
  const void* pad(const Tensor* t, int64_t n) {
    const int64_t bytes = states_.front().element_size();
    const int64_t padded = ceil_div(n, kernels.lanes) * kernels.lanes;
    char* const copy = static_cast<char*>(scratch(padded));
    std::fill(copy, copy + padded * bytes, 0);
    if (t) {
      const char* from = static_cast<const char*>(keep(*t).data_ptr());
      std::copy(from, from + n * bytes, copy);
    }
    return copy;
  }

  PackedMatrix pack(const Tensor& matrix, bool transposed) {
    const int64_t rows = matrix.size(transposed), depth = matrix.size(!transposed);
    const int64_t row = matrix.stride(transposed), column = matrix.stride(!transposed);
    if (kind == TileKind::thin1 || kind == TileKind::thin4)
      return kernels.pack(kind, matrix.data_ptr(), rows, depth, row, column,
                          scratch(kernels.packed_size(kind, rows, depth)));
    return {pack_wide(matrix.data_ptr(), rows, depth, row, column), 0};
  }

  struct Packing {
    const void* from;
    int64_t rows, depth, row_stride, depth_stride;
    void* to;
  };

  const Tensors &states_, &weights_;
  std::vector<ChainNode> nodes_;
  std::vector<ChainEdge> edges_;
  std::vector<Packing> packing_;
  std::deque<Tensor> kept_;
  std::deque<Scratch> scratch_;
};

Tensors infer_chain_(const Tensors& states, const Tensors& weights, const MaybeTensors& biases,
                     const MaybeTensors& precisions, const std::optional<Tensor>& prior,
                     const MaybeTensors& grams, const std::vector<int64_t>& activations,
                     const std::vector<double>& parameters, const std::vector<bool>& predicted,
                     const std::vector<bool>& free, int64_t steps, double lr,
                     const Tensors& velocities, double momentum, double dampening, bool nesterov,
                     bool resume, const std::optional<Tensor>& energies,
                     const std::string& precision) {
  const ChainOperands operands{states, weights,     biases,     precisions,
                               prior,  activations, parameters, predicted};
  Chain chain(operands);
  check_inference(operands, {grams, free, steps, lr, velocities, momentum, dampening, nesterov,
                             resume, energies, precision});
  ChainArgs& args = chain.args;
  for (int64_t l = 0; l < args.nodes; ++l) {
    args.node[l].free = free[l];
    if (free[l] && !velocities.empty())
      args.node[l].velocity = velocities[l].data_ptr();
  }
  chain.pack_for_inference(grams);
  args.steps = steps;
  args.lr = lr;
  args.momentum = momentum;
  args.dampening = dampening;
  args.nesterov = nesterov;
  args.resume = resume;
  if (energies) {
    args.energies = energies->data_ptr();
    args.every_error = true;
  }
  std::vector<int64_t> edges;
  Tensors kept;
  for (int64_t l = 0; l + 1 < args.nodes; ++l)
    if (chain.keeps_prediction(l)) {
      edges.push_back(l);
      args.node[l + 1].prediction =
          kept.emplace_back(allocate(states[l + 1].sizes(), states.front())).data_ptr();
    }
  chain.for_each_tile(chain.kernels.run);
  const int64_t count = static_cast<int64_t>(edges.size());
  std::vector<int64_t> stamps(edges.size());
  chain.stamp(edges, stamps.data());
  const int64_t sizes[] = {count, 2};
  const Tensor& table = kept.emplace_back(
      torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(sizes, 2), kStampType));
  for (int64_t e = 0; e < count; ++e) {
    data<int64_t>(table)[2 * e] = edges[e];
    data<int64_t>(table)[2 * e + 1] = stamps[e];
  }
  return kept;
}

// Uses the predictions that `infer_chain_` returned where what they were made of is still the same.
void take_known_predictions(Chain& chain, const Tensors& known) {
  if (known.empty())
    return;
  ChainArgs& args = chain.args;
  const Tensor& stamps = known.back();
  const int64_t count = static_cast<int64_t>(known.size()) - 1;
  STD_TORCH_CHECK(stamps.dim() == 2 && stamps.size(0) == count && stamps.size(1) == 2 &&
                      stamps.is_contiguous() && stamps.scalar_type() == kStampType,
                  "known must be what infer_chain_ returned");
  const int64_t* then = data<const int64_t>(stamps);
  std::vector<int64_t> edges, now(count);
  for (int64_t e = 0; e < count; ++e) {
    const int64_t l = then[2 * e];
    if (l < 0 || l + 1 >= args.nodes || !chain.keeps_prediction(l))
      return; // another chain's
    edges.push_back(l);
  }
  chain.stamp(edges, now.data());
  for (int64_t e = 0; e < count; ++e) {
    if (now[e] != then[2 * e + 1])
      continue;
    ChainNode& target = args.node[edges[e] + 1];
    check_same("known", known[e], "their states", chain.state(edges[e] + 1));
    STD_TORCH_CHECK(known[e].is_contiguous(), "known must be contiguous");
    target.prediction = known[e].data_ptr();
    target.prediction_known = true;
  }
}

Tensors chain_mstep(const Tensors& states, const Tensors& weights, const MaybeTensors& biases,
                    const MaybeTensors& precisions, const std::optional<Tensor>& prior,
                    const std::vector<int64_t>& activations, const std::vector<double>& parameters,
                    const std::vector<bool>& predicted, const std::vector<bool>& for_weight,
                    const std::vector<bool>& for_bias, const std::vector<bool>& for_precision,
                    const Tensors& known) {
  const ChainOperands operands{states, weights,     biases,     precisions,
                               prior,  activations, parameters, predicted};
  Chain chain(operands);
  check_wanted(operands, for_weight, for_bias, for_precision);
  ChainArgs& args = chain.args;
  const ChainKernels& kernels = chain.kernels;
  args.every_error = true;
  take_known_predictions(chain, known);
  const auto needs_delta = [&](int64_t edge) { return for_weight[edge] || for_bias[edge]; };
  for (int64_t l = 0; l < args.nodes; ++l) {
    ChainNode& node = args.node[l];
    // nothing follows from this here but that its prediction is computed as one that varies
    node.free = l + 1 == args.nodes || !args.node[l + 1].prediction_known;
    if (l > 0 && needs_delta(l - 1))
      node.delta = chain.scratch(args.batch * node.n);
    if (for_precision[l])
      (node.full_precision ? node.error : node.square) = chain.scratch(args.batch * node.n);
  }
  chain.pack_for_errors();
  chain.for_each_tile(kernels.errors);

  // out = scale a^T f(b), by column panels; or out = scale * the sum of a's rows, where n is -1
  struct Task {
    const void *a, *b;
    Nonlinearity f;
    int64_t m, n;
    double scale;
    int64_t begin, end;
    void* out;
  };
  std::vector<Task> tasks;
  Tensors results;
  const double mean = args.batch ? 1.0 / static_cast<double>(args.batch) : 0;
  const auto add = [&](const void* a, const void* b, Nonlinearity f, int64_t m, int64_t n,
                       double scale) {
    const int64_t sizes[] = {m, n};
    const Tensor& out = results.emplace_back(allocate(Sizes(sizes, n < 0 ? 1 : 2), states.front()));
    if (n >= 0) {
      a = chain.pack_wide(a, m, args.batch, 1, m);
      for (int64_t j = 0; j < n; j += kernels.columns)
        tasks.push_back(
            {a, b, f, m, n, scale, j, std::min(n, j + kernels.columns), out.data_ptr()});
    } else
      tasks.push_back({a, b, f, m, n, scale, 0, m, out.data_ptr()});
  };
  for (int64_t l = 0; l + 1 < args.nodes; ++l)
    if (const ChainNode &source = args.node[l], &target = args.node[l + 1]; for_weight[l])
      add(target.delta, source.state, args.edge[l].before, target.n, source.n, -mean);
  for (int64_t l = 0; l + 1 < args.nodes; ++l)
    if (for_bias[l])
      add(args.node[l + 1].delta, nullptr, {}, args.node[l + 1].n, -1, -mean);
  for (int64_t l = 0; l < args.nodes; ++l)
    if (const ChainNode& node = args.node[l]; for_precision[l]) {
      if (node.full_precision)
        add(node.error, node.error, {}, node.n, node.n, mean);
      else
        add(node.square, nullptr, {}, node.n, -1, mean);
    }
  chain.pack_panels();
  const int64_t bytes = kernels.panel * states.front().element_size();
  share_out(static_cast<int64_t>(tasks.size()), bytes, [&](void* panel, int64_t task) {
    const Task& t = tasks[task];
    if (t.n >= 0)
      kernels.outer(t.a, t.b, t.f, args.batch, t.m, t.n, t.scale, t.begin, t.end, panel, t.out);
    else
      kernels.sum_rows(t.a, args.batch, t.m, t.scale, t.out);
  });
  return results;
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CPU, m) {
  m.impl("infer_chain_", TORCH_BOX(&infer_chain_));
  m.impl("chain_mstep", TORCH_BOX(&chain_mstep));
}

} // namespace
} // namespace pyromancy
