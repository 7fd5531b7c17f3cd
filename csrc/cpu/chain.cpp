#include "chain_kernel.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <vector>

#include "host.h"

namespace pyromancy {
namespace {

using torch::stable::parallel_for;
using Tensors = std::vector<Tensor>;
constexpr auto kStampType = torch::headeronly::ScalarType::Long;
using MaybeTensors = std::vector<std::optional<Tensor>>;

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
  Chain(const Tensors& states, const Tensors& weights, const MaybeTensors& biases,
        const MaybeTensors& precisions, const std::optional<Tensor>& prior,
        const std::vector<int64_t>& activations, const std::vector<double>& parameters,
        const std::vector<bool>& predicted)
      : kernels(select(states)), states_(states), weights_(weights) {
    const int64_t count = static_cast<int64_t>(states.size());
    check_length("weights", weights.size(), count - 1);
    check_length("biases", biases.size(), count - 1);
    check_length("activations", activations.size(), 2 * (count - 1));
    check_length("parameters", parameters.size(), 2 * (count - 1));
    check_length("precisions", precisions.size(), count);
    check_length("predicted", predicted.size(), count);

    const Tensor& first = states.front();
    args.batch = first.size(0);
    args.nodes = count;
    nodes_.resize(count);
    edges_.resize(count - 1);
    args.node = nodes_.data();
    args.edge = edges_.data();
    kind = choose_kind();
    for (int64_t l = 0; l < count; ++l) {
      const Tensor& state = states[l];
      STD_TORCH_CHECK(state.dim() == 2 && state.size(0) == args.batch && state.is_contiguous(),
                      "states[", l, "] must be contiguous with shape (", args.batch, ", n), got ",
                      to_string(state.sizes()));
      check_like("states", state, "states[0]", first);
      ChainNode& node = args.node[l];
      node.n = state.size(1);
      node.predicted = predicted[l];
      node.state = state.data_ptr();
      if (!precisions[l])
        continue;
      const Tensor& p = *precisions[l];
      check_like("precisions", p, "states[0]", first);
      if (p.dim() == 1) {
        STD_TORCH_CHECK(p.size(0) == node.n, "precisions[", l, "] must have shape (", node.n,
                        ",) or (", node.n, ", ", node.n, "), got ", to_string(p.sizes()));
        node.precision = pad(&p, node.n);
      } else {
        check_square("precisions", p, node.n);
        node.full_precision = pack(p, false);
      }
    }
    for (int64_t l = 0; l + 1 < count; ++l) {
      ChainEdge& edge = args.edge[l];
      const int64_t in = args.node[l].n, out = args.node[l + 1].n;
      const Tensor& weight = weights[l];
      check_like("weights", weight, "states[0]", first);
      STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == out && weight.size(1) == in,
                      "weights[", l, "] must have shape (", out, ", ", in, "), got ",
                      to_string(weight.sizes()));
      if (biases[l]) {
        check_like("biases", *biases[l], "states[0]", first);
        STD_TORCH_CHECK(biases[l]->dim() == 1 && biases[l]->size(0) == out, "biases[", l,
                        "] must have shape (", out, ",), got ", to_string(biases[l]->sizes()));
      }
      edge.bias = pad(biases[l] ? &*biases[l] : nullptr, out);
      edge.before = nonlinearity(activations[2 * l], parameters[2 * l]);
      edge.after = nonlinearity(activations[2 * l + 1], parameters[2 * l + 1]);
    }
    if (prior) {
      check_like("prior", *prior, "states[0]", first);
      const Tensor& p = keep(*prior);
      STD_TORCH_CHECK(p.dim() == 2 && (p.size(0) == 1 || p.size(0) == args.batch) &&
                          p.size(1) == args.node[0].n,
                      "prior must have shape (1 or ", args.batch, ", ", args.node[0].n, "), got ",
                      to_string(p.sizes()));
      args.prior = p.data_ptr();
      args.prior_stride = p.size(0) == 1 ? 0 : args.node[0].n;
    }
    STD_TORCH_CHECK(predicted[0] == prior.has_value(),
                    "predicted[0] must be true exactly where there is a prior");
  }

  void check_length(const char* name, size_t length, int64_t expected) const {
    STD_TORCH_CHECK(static_cast<int64_t>(length) == expected, name, " must have ", expected,
                    " entries for ", states_.size(), " states, got ", length);
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
        check_like("grams", *grams[l], "states[0]", states_.front());
        check_square("grams", *grams[l], source.n);
        STD_TORCH_CHECK(source.free && !target.free && edge.after.kind == Activation::identity &&
                            !target.full_precision,
                        "grams[", l,
                        "] needs a free source, a clamped target with a diagonal "
                        "precision, and no activation after the product");
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
  static const ChainKernels& select(const Tensors& states) {
    STD_TORCH_CHECK(!states.empty(), "states must not be empty");
    const DType dtype = dtype_of("states", states.front());
    STD_TORCH_CHECK(dtype == DType::float32 || dtype == DType::float64,
                    "states must be float32 or float64, got ",
                    torch::headeronly::toString(states.front().scalar_type()));
    return PYROMANCY_SELECT_KERNELS(chain_kernels, dtype);
  }

  // The kind with which the busiest thread is done first. Narrow tiles keep the multipliers less
  // busy, but share out a small batch more evenly.
  TileKind choose_kind() const {
    constexpr double per_sample[kTileKinds] = {1, 1.12, 1.25, 2.2};
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

  bool stampable(int64_t edge) const {
    return weights_[edge].is_contiguous();
  }

  static Nonlinearity nonlinearity(int64_t kind, double parameter) {
    STD_TORCH_CHECK(kind >= 0 && kind < kActivations, "activations must be from 0 to ",
                    kActivations - 1, ", got ", kind);
    return {static_cast<Activation>(kind), parameter};
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
                     bool resume, const std::optional<Tensor>& energies) {
  check_finite("lr", lr);
  STD_TORCH_CHECK(steps >= 0, "steps must not be negative, got ", steps);
  Chain chain(states, weights, biases, precisions, prior, activations, parameters, predicted);
  ChainArgs& args = chain.args;
  chain.check_length("grams", grams.size(), args.nodes - 1);
  chain.check_length("free", free.size(), args.nodes);
  if (!velocities.empty())
    chain.check_length("velocities", velocities.size(), args.nodes);
  for (int64_t l = 0; l < args.nodes; ++l) {
    args.node[l].free = free[l];
    if (velocities.empty() || !free[l])
      continue;
    check_same("velocities", velocities[l], "their states", states[l]);
    STD_TORCH_CHECK(velocities[l].is_contiguous(), "velocities must be contiguous");
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
    check_like("energies", *energies, "states[0]", states.front());
    STD_TORCH_CHECK(energies->dim() == 3 && energies->size(0) == steps &&
                        energies->size(1) == args.nodes && energies->size(2) == args.batch &&
                        energies->is_contiguous(),
                    "energies must be contiguous with shape (", steps, ", ", args.nodes, ", ",
                    args.batch, "), got ", to_string(energies->sizes()));
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
  Chain chain(states, weights, biases, precisions, prior, activations, parameters, predicted);
  ChainArgs& args = chain.args;
  const ChainKernels& kernels = chain.kernels;
  chain.check_length("for_weight", for_weight.size(), args.nodes - 1);
  chain.check_length("for_bias", for_bias.size(), args.nodes - 1);
  chain.check_length("for_precision", for_precision.size(), args.nodes);
  args.every_error = true;
  take_known_predictions(chain, known);
  const auto needs_delta = [&](int64_t edge) { return for_weight[edge] || for_bias[edge]; };
  for (int64_t l = 0; l < args.nodes; ++l) {
    ChainNode& node = args.node[l];
    // nothing follows from this here but that its prediction is computed as one that varies
    node.free = l + 1 == args.nodes || !args.node[l + 1].prediction_known;
    if (l > 0 && needs_delta(l - 1)) {
      STD_TORCH_CHECK(node.predicted, "for_weight and for_bias need predicted nodes, and node ", l,
                      " is not");
      node.delta = chain.scratch(args.batch * node.n);
    }
    if (!for_precision[l])
      continue;
    STD_TORCH_CHECK(node.predicted, "for_precision needs predicted nodes, and node ", l, " is not");
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
