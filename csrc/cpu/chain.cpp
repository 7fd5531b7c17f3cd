#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "packed_chain.h"

namespace pyromancy {
namespace {

constexpr auto kHashType = torch::headeronly::ScalarType::Long;

Tensors infer_chain_(const Tensors& states, const Tensors& weights, const MaybeTensors& biases,
                     const MaybeTensors& precisions, const std::optional<Tensor>& prior,
                     const MaybeTensors& grams, const std::vector<int64_t>& activations,
                     const std::vector<double>& parameters, const std::vector<bool>& predicted,
                     const std::vector<bool>& free, int64_t steps, double lr,
                     const Tensors& velocities, double momentum, double dampening, bool nesterov,
                     bool resume, const std::optional<Tensor>& energies,
                     const std::string& matmul_precision) {
  const ChainOperands operands{states, weights,     biases,     precisions,
                               prior,  activations, parameters, predicted};
  PackedChain chain(operands);
  check_inference(operands, {grams, free, steps, lr, velocities, momentum, dampening, nesterov,
                             resume, energies, matmul_precision});
  ChainArgs& args = chain.args;
  args.steps = steps;
  chain.prepare_inference(free, grams);
  for (int64_t l = 0; l < args.nodes; ++l)
    if (free[l] && !velocities.empty())
      args.node[l].velocity = velocities[l].data_ptr();
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
  chain.run(Aim::inference);
  const int64_t count = static_cast<int64_t>(edges.size());
  const std::vector<int64_t> hashes = chain.content_hashes(edges);
  const int64_t sizes[] = {count, 2};
  const Tensor& table = kept.emplace_back(torch::stable::empty(Sizes(sizes, 2), kHashType));
  for (int64_t e = 0; e < count; ++e) {
    data<int64_t>(table)[2 * e] = edges[e];
    data<int64_t>(table)[2 * e + 1] = hashes[e];
  }
  return kept;
}

// Uses the predictions that `infer_chain_` returned where what they were made of is still the same.
void take_known_predictions(PackedChain& chain, const Tensors& known) {
  if (known.empty())
    return;
  ChainArgs& args = chain.args;
  const Tensor& table = known.back(); // of edges and hashes
  const int64_t count = static_cast<int64_t>(known.size()) - 1;
  STD_TORCH_CHECK(table.dim() == 2 && table.size(0) == count && table.size(1) == 2 &&
                      table.is_contiguous() && table.scalar_type() == kHashType,
                  "known must be what infer_chain_ returned");
  const int64_t* then = data<const int64_t>(table);
  std::vector<int64_t> edges;
  for (int64_t e = 0; e < count; ++e) {
    const int64_t l = then[2 * e];
    if (l < 0 || l >= args.nodes - 1 || !chain.keeps_prediction(l))
      return; // another chain's
    edges.push_back(l);
  }
  const std::vector<int64_t> now = chain.content_hashes(edges);
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
  PackedChain chain(operands);
  check_wanted(operands, for_weight, for_bias, for_precision);
  ChainArgs& args = chain.args;
  const ChainKernels& kernels = chain.kernels;
  args.every_error = true;
  take_known_predictions(chain, known);
  chain.prepare_errors();
  // of a matrix: the moment of the errors is one, too
  const auto full = [&](int64_t node) { return precisions[node] && precisions[node]->dim() == 2; };
  for (int64_t l = 0; l < args.nodes; ++l) {
    ChainNode& node = args.node[l];
    if (l > 0 && (for_weight[l - 1] || for_bias[l - 1]))
      node.delta = chain.scratch(args.batch * node.n);
    if (for_precision[l])
      (full(l) ? node.error : node.square) = chain.scratch(args.batch * node.n);
  }
  chain.run(Aim::errors);

  struct Outer { // columns [begin, end) of out = scale a^T f(b) [m, n]
    const void *a, *b;
    Nonlinearity f;
    int64_t m, n;
    double scale;
    int64_t begin, end;
    void* out;
  };
  struct Sum { // out = scale * the sum of a's rows [n]
    const void* a;
    int64_t n;
    double scale;
    void* out;
  };
  std::vector<Outer> outers;
  std::vector<Sum> sums;
  Tensors results;
  const double mean = args.batch ? 1.0 / static_cast<double>(args.batch) : 0;
  const auto add_outer = [&](const void* a, const void* b, Nonlinearity f, int64_t m, int64_t n,
                             double scale) {
    const int64_t sizes[] = {m, n};
    void* const out = results.emplace_back(allocate(Sizes(sizes, 2), states.front())).data_ptr();
    a = chain.pack_wide(a, m, args.batch, 1, m);
    for (int64_t j = 0; j < n; j += kernels.columns)
      outers.push_back({a, b, f, m, n, scale, j, std::min(n, j + kernels.columns), out});
  };
  const auto add_sum = [&](const void* a, int64_t n, double scale) {
    void* const out = results.emplace_back(allocate(Sizes(&n, 1), states.front())).data_ptr();
    sums.push_back({a, n, scale, out});
  };
  for (int64_t l = 0; l + 1 < args.nodes; ++l)
    if (const ChainNode &source = args.node[l], &target = args.node[l + 1]; for_weight[l])
      add_outer(target.delta, source.state, args.edge[l].before, target.n, source.n, -mean);
  for (int64_t l = 0; l + 1 < args.nodes; ++l)
    if (for_bias[l])
      add_sum(args.node[l + 1].delta, args.node[l + 1].n, -mean);
  for (int64_t l = 0; l < args.nodes; ++l)
    if (const ChainNode& node = args.node[l]; for_precision[l]) {
      if (full(l))
        add_outer(node.error, node.error, {}, node.n, node.n, mean);
      else
        add_sum(node.square, node.n, mean);
    }
  chain.pack_all();
  const int64_t bytes = kernels.panel * states.front().element_size();
  const int64_t count = static_cast<int64_t>(outers.size());
  share_out(count + static_cast<int64_t>(sums.size()), bytes, [&](void* panel, int64_t task) {
    if (task < count) {
      const Outer& t = outers[task];
      kernels.outer(t.a, t.b, t.f, args.batch, t.m, t.n, t.scale, t.begin, t.end, panel, t.out);
    } else {
      const Sum& t = sums[task - count];
      kernels.sum_rows(t.a, args.batch, t.n, t.scale, t.out);
    }
  });
  return results;
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CPU, m) {
  m.impl("infer_chain_", TORCH_BOX(&infer_chain_));
  m.impl("chain_mstep", TORCH_BOX(&chain_mstep));
}

} // namespace
} // namespace pyromancy
