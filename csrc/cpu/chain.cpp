#include "chain_kernel.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "host.h"

namespace pyromancy {
namespace {

using torch::stable::parallel_for;
using MaybeTensors = std::vector<std::optional<Tensor>>;

// Operands of the call, checked, in the kernel's terms; matrices are packed for it.
class Chain {
public:
  Chain(const std::vector<Tensor>& states, const std::vector<Tensor>& weights,
        const MaybeTensors& biases, const MaybeTensors& precisions,
        const std::optional<Tensor>& prior, const MaybeTensors& grams,
        const std::vector<int64_t>& activations, const std::vector<double>& parameters,
        const std::vector<bool>& predicted, const std::vector<bool>& free,
        const std::vector<Tensor>& velocities)
      : states_(states), weights_(weights), kernels_(select(states)) {
    const int64_t count = static_cast<int64_t>(states.size());
    const auto check_length = [&](const char* name, size_t length, int64_t expected) {
      STD_TORCH_CHECK(static_cast<int64_t>(length) == expected, name, " must have ", expected,
                      " entries for ", count, " states, got ", length);
    };
    check_length("weights", weights.size(), count - 1);
    check_length("biases", biases.size(), count - 1);
    check_length("grams", grams.size(), count - 1);
    check_length("activations", activations.size(), 2 * (count - 1));
    check_length("parameters", parameters.size(), 2 * (count - 1));
    check_length("precisions", precisions.size(), count);
    check_length("predicted", predicted.size(), count);
    check_length("free", free.size(), count);
    if (!velocities.empty())
      check_length("velocities", velocities.size(), count);

    const Tensor& first = states.front();
    args.batch = first.size(0);
    args.nodes = count;
    nodes_.resize(count);
    edges_.resize(count - 1);
    for (int64_t l = 0; l < count; ++l) {
      const Tensor& state = states[l];
      STD_TORCH_CHECK(state.dim() == 2 && state.size(0) == args.batch && state.is_contiguous(),
                      "states[", l, "] must be contiguous with shape (", args.batch, ", n), got ",
                      to_string(state.sizes()));
      check_like("states", state, "states[0]", first);
      ChainNode& node = nodes_[l];
      node = {state.size(1), free[l], predicted[l], state.data_ptr(), nullptr, nullptr, nullptr};
      if (!velocities.empty() && free[l]) {
        check_same("velocities", velocities[l], "their states", state);
        STD_TORCH_CHECK(velocities[l].is_contiguous(), "velocities must be contiguous");
        node.velocity = velocities[l].data_ptr();
      }
    }
    for (int64_t l = 0; l < count; ++l) {
      if (!precisions[l])
        continue;
      const Tensor& p = *precisions[l];
      const int64_t n = nodes_[l].n;
      check_like("precisions", p, "states[0]", first);
      if (p.dim() == 1) {
        STD_TORCH_CHECK(p.size(0) == n, "precisions[", l, "] must have shape (", n, ",) or (", n,
                        ", ", n, "), got ", to_string(p.sizes()));
        nodes_[l].precision = keep(p).data_ptr();
      } else {
        check_square("precisions", p, n);
        nodes_[l].full_precision = pack(p, false);
      }
    }
    for (int64_t l = 0; l + 1 < count; ++l) {
      ChainEdge& edge = edges_[l];
      const int64_t in = nodes_[l].n, out = nodes_[l + 1].n;
      const Tensor& weight = weights[l];
      check_like("weights", weight, "states[0]", first);
      STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == out && weight.size(1) == in,
                      "weights[", l, "] must have shape (", out, ", ", in, "), got ",
                      to_string(weight.sizes()));
      edge = {};
      if (biases[l]) {
        check_like("biases", *biases[l], "states[0]", first);
        STD_TORCH_CHECK(biases[l]->dim() == 1 && biases[l]->size(0) == out, "biases[", l,
                        "] must have shape (", out, ",), got ", to_string(biases[l]->sizes()));
        edge.bias = keep(*biases[l]).data_ptr();
      }
      edge.before = nonlinearity(activations[2 * l], parameters[2 * l]);
      edge.after = nonlinearity(activations[2 * l + 1], parameters[2 * l + 1]);
      if (!nodes_[l + 1].predicted)
        continue;
      if (grams[l]) {
        check_like("grams", *grams[l], "states[0]", first);
        check_square("grams", *grams[l], in);
        STD_TORCH_CHECK(free[l] && !free[l + 1] && edge.after.kind == Activation::identity &&
                            !nodes_[l + 1].full_precision,
                        "grams[", l,
                        "] needs a free source, a clamped target with a diagonal "
                        "precision, and no activation after the product");
        edge.gram = pack(*grams[l], false);
      } else {
        edge.weight = pack(weight, false);
      }
      if (free[l])
        edge.transposed = pack(weight, true);
      else
        edge.prediction =
            predictions.emplace_back(allocate(states[l + 1].sizes(), first)).data_ptr();
    }
    if (prior) {
      check_like("prior", *prior, "states[0]", first);
      const Tensor& p = keep(*prior);
      STD_TORCH_CHECK(p.dim() == 2 && (p.size(0) == 1 || p.size(0) == args.batch) &&
                          p.size(1) == nodes_[0].n,
                      "prior must have shape (1 or ", args.batch, ", ", nodes_[0].n, "), got ",
                      to_string(p.sizes()));
      args.prior = p.data_ptr();
      args.prior_stride = p.size(0) == 1 ? 0 : nodes_[0].n;
    }
    STD_TORCH_CHECK(predicted[0] == prior.has_value(),
                    "predicted[0] must be true exactly where there is a prior");
    args.node = nodes_.data();
    args.edge = edges_.data();
  }

  // Every tile runs all its steps on one thread. A sample's result depends neither on the width of
  // its tile nor on the samples beside it.
  void run() const {
    if (args.batch == 0)
      return;
    const int64_t threads = torch::stable::get_num_threads();
    const auto rounds = [&](int vectors) {
      return ceil_div(ceil_div(args.batch, vectors * kernels_.lanes), threads);
    };
    // A narrow tile keeps the multipliers less busy, but shares out a small batch more evenly.
    const int widest = kernels_.max_vectors;
    const int vectors = 8 * rounds(1) < 7 * widest * rounds(widest) ? 1 : widest;
    const int64_t bytes = kernels_.workspace_size(args, vectors);
    parallel_for(0, ceil_div(args.batch, vectors * kernels_.lanes), 1,
                 [&](int64_t begin, int64_t end) {
                   Scratch workspace(bytes);
                   kernels_.run(args, vectors, workspace.as<void>(), begin, end);
                 });
  }

  ChainArgs args{};
  std::vector<Tensor> predictions;

private:
  static const ChainKernels& select(const std::vector<Tensor>& states) {
    STD_TORCH_CHECK(!states.empty(), "states must not be empty");
    const DType dtype = dtype_of("states", states.front());
    STD_TORCH_CHECK(dtype == DType::float32 || dtype == DType::float64,
                    "states must be float32 or float64, got ",
                    torch::headeronly::toString(states.front().scalar_type()));
    return PYROMANCY_SELECT_KERNELS(chain_kernels, dtype);
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

  const void* pack(const Tensor& matrix, bool transposed) {
    const int64_t rows = matrix.size(transposed), depth = matrix.size(!transposed);
    const int64_t elements = std::max<int64_t>(1, kernels_.packed_size(rows, depth));
    const Tensor& packed = kept_.emplace_back(allocate({&elements, 1}, matrix));
    kernels_.pack(matrix.data_ptr(), rows, depth, matrix.stride(transposed),
                  matrix.stride(!transposed), packed.data_ptr());
    return packed.data_ptr();
  }

  const std::vector<Tensor>&states_, &weights_;
  const ChainKernels& kernels_;
  std::vector<ChainNode> nodes_;
  std::vector<ChainEdge> edges_;
  std::vector<Tensor> kept_;
};

std::vector<Tensor> infer_chain_(const std::vector<Tensor>& states,
                                 const std::vector<Tensor>& weights, const MaybeTensors& biases,
                                 const MaybeTensors& precisions, const std::optional<Tensor>& prior,
                                 const MaybeTensors& grams, const std::vector<int64_t>& activations,
                                 const std::vector<double>& parameters,
                                 const std::vector<bool>& predicted, const std::vector<bool>& free,
                                 int64_t steps, double lr, const std::vector<Tensor>& velocities,
                                 double momentum, double dampening, bool nesterov, bool resume,
                                 const std::optional<Tensor>& energies) {
  check_finite("lr", lr);
  STD_TORCH_CHECK(steps >= 0, "steps must not be negative, got ", steps);
  Chain chain(states, weights, biases, precisions, prior, grams, activations, parameters, predicted,
              free, velocities);
  ChainArgs& args = chain.args;
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
  }
  chain.run();
  return chain.predictions;
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CPU, m) {
  m.impl("infer_chain_", TORCH_BOX(&infer_chain_));
}

} // namespace
} // namespace pyromancy
