#include "../chain.h"

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <cstdlib>

#include "chain_plan.h"
#include "chain_step_kernel.h"
#include "library.h"

namespace pyromancy::cuda {

DeviceLimits device_limits(); // device.cu

namespace {

using MaybeTensor = std::optional<Tensor>;

void* pointer(const MaybeTensor& t) {
  return t ? t->data_ptr() : nullptr;
}

MaybeTensor dense(const MaybeTensor& t) {
  if (!t || t->is_contiguous())
    return t;
  return torch::stable::contiguous(*t);
}

// A chain's operands, dense, and the steps that inference and learning share.
class Chain {
public:
  explicit Chain(const ChainOperands& operands)
      : states(operands.states), weights(operands.weights), predicted(operands.predicted),
        nodes(operands.nodes()), batch(operands.batch()), dtype(dtype_of("states", states[0])),
        context_(states[0]), activations_(operands.activations), parameters_(operands.parameters) {
    for (int64_t l = 0; l < nodes; ++l) {
      const MaybeTensor& p = operands.precisions[l];
      const bool full = p && p->dim() == 2;
      diagonals.push_back(full ? MaybeTensor() : dense(p));
      matrices.push_back(full ? p : MaybeTensor());
    }
    for (const MaybeTensor& bias : operands.biases)
      biases.push_back(dense(bias));
    prior = dense(operands.prior);
  }

  int64_t width(int64_t node) const {
    return states[node].size(1);
  }

  Nonlinearity before(int64_t edge) const {
    return nonlinearity(2 * edge);
  }
  Nonlinearity after(int64_t edge) const {
    return nonlinearity(2 * edge + 1);
  }

  Tensor like_state(int64_t node) const {
    return allocate(states[node].sizes(), states[0]);
  }

  // before(z) of an edge's source, which is the state itself where there is no activation; to be
  // computed again with `activate` when the state has changed.
  Tensor activated(int64_t edge) const {
    if (before(edge).kind == Activation::identity)
      return states[edge];
    const Tensor to = like_state(edge);
    launch_activate(
        {dtype, states[edge].numel(), before(edge), states[edge].data_ptr(), to.data_ptr()},
        stream());
    return to;
  }

  // Arguments for the error of a node whose prediction an edge makes.
  ErrorArgs error_args(int64_t node, const Tensor& product) const {
    ErrorArgs args = state_args(node);
    args.after = after(node - 1);
    args.product = product.data_ptr();
    args.bias = pointer(biases[node - 1]);
    return args;
  }

  // Arguments for the error of a node whose prediction is known.
  ErrorArgs error_args(int64_t node, const void* given, int64_t row) const {
    ErrorArgs args = state_args(node);
    args.given = given;
    args.given_row = row;
    return args;
  }

  void* stream() const {
    return context_.stream;
  }

  const Tensors &states, &weights;
  const std::vector<bool>& predicted;
  MaybeTensors biases, diagonals, matrices; // the two kinds of precision
  MaybeTensor prior;
  const int64_t nodes, batch;
  const DType dtype;

private:
  Nonlinearity nonlinearity(int64_t i) const {
    return {static_cast<Activation>(activations_[i]), parameters_[i]};
  }

  ErrorArgs state_args(int64_t node) const {
    ErrorArgs args{};
    args.dtype = dtype;
    args.rows = batch;
    args.n = width(node);
    args.state = states[node].data_ptr();
    args.precision = pointer(diagonals[node]);
    args.scale = 1;
    return args;
  }

  NoGrad no_grad_;
  Context context_;
  const std::vector<int64_t>& activations_;
  const std::vector<double>& parameters_;
};

// What inference computes once, and what it has to compute at every step.
class Schedule {
public:
  Schedule(const Chain& chain, const Inference& inference) : chain_(chain), inference_(inference) {
    const int64_t nodes = chain.nodes;
    constant.resize(nodes);
    constant_row.resize(nodes);
    drive.resize(nodes);
    for (int64_t l = 0; l < nodes; ++l) {
      const bool has_gram = l > 0 && inference.grams[l - 1];
      live.push_back(l > 0 && chain.predicted[l] && inference.free[l - 1] && !has_gram);
      computes_error.push_back(chain.predicted[l] && !has_gram &&
                               (inference.free[l] || live[l] || inference.energies));
      if (computes_error[l] && !live[l])
        predict(l);
    }
    for (int64_t l = 0; l + 1 < nodes; ++l)
      if (inference.grams[l])
        drive[l] = driven(l);
  }

  Feedback feedback(int64_t node) const {
    if (node + 1 == chain_.nodes || !inference_.free[node])
      return Feedback::none;
    if (inference_.grams[node])
      return Feedback::gram;
    return live[node + 1] ? Feedback::product : Feedback::none;
  }

  std::vector<bool> live;           // an edge from a free node predicts this one
  std::vector<bool> computes_error; // of this node, at every step
  MaybeTensors constant;            // predictions that no step changes
  std::vector<int64_t> constant_row;
  MaybeTensors drive; // W^T P (z - b), of edges with a gram

private:
  void predict(int64_t node) {
    if (node == 0) {
      constant[0] = chain_.prior;
      constant_row[0] = chain_.prior->size(0) == 1 ? 0 : chain_.width(0);
      return;
    }
    const Tensor mu = chain_.like_state(node);
    multiply(mu, chain_.activated(node - 1), transposed(chain_.weights[node - 1]));
    ErrorArgs args = chain_.error_args(node, mu);
    args.state = nullptr;
    args.prediction = mu.data_ptr();
    launch_error(args, chain_.stream());
    constant[node] = mu;
    constant_row[node] = chain_.width(node);
  }

  Tensor driven(int64_t edge) const {
    const int64_t target = edge + 1;
    const Tensor weighed = chain_.like_state(target);
    const MaybeTensor& bias = chain_.biases[edge];
    const Tensor given = bias ? *bias : zeros_like_row(target);
    ErrorArgs args = chain_.error_args(target, given.data_ptr(), 0);
    args.error = weighed.data_ptr();
    launch_error(args, chain_.stream());
    const Tensor result = chain_.like_state(edge);
    multiply(result, weighed, chain_.weights[edge]);
    return result;
  }

  Tensor zeros_like_row(int64_t node) const {
    const int64_t n = chain_.width(node);
    Tensor zeros = allocate(Sizes(&n, 1), chain_.states[0]);
    torch::stable::zero_(zeros);
    return zeros;
  }

  const Chain& chain_;
  const Inference& inference_;
};

// ---- a product and a kernel at a time

class Steps {
public:
  Steps(const Chain& chain, const Inference& inference, const Schedule& schedule)
      : chain_(chain), inference_(inference), schedule_(schedule) {
    for (int64_t l = 0; l < chain.nodes; ++l) {
      Node& node = nodes_.emplace_back();
      const bool feeds = schedule.feedback(l) != Feedback::none;
      if (feeds)
        node.activated = chain.activated(l);
      if (feeds)
        node.feedback = chain.like_state(l);
      if (!schedule.computes_error[l])
        continue;
      node.error = chain.like_state(l);
      const bool full = chain.matrices[l].has_value();
      if (full || inference.energies)
        node.residual = chain.like_state(l);
      if (!schedule.live[l])
        continue;
      node.product = chain.like_state(l);
      node.weight = transposed(chain.weights[l - 1]);
      // where nothing is to be multiplied with the error, it is the delta itself
      node.delta =
          chain.after(l - 1).kind == Activation::identity ? node.error : chain.like_state(l);
    }
  }

  void run() {
    for (int64_t step = 0; step < inference_.steps; ++step) {
      for (int64_t l = 0; l < chain_.nodes; ++l)
        if (schedule_.computes_error[l])
          find_error(l, step);
      for (int64_t l = 0; l < chain_.nodes; ++l)
        if (schedule_.feedback(l) == Feedback::gram)
          multiply(*nodes_[l].feedback, *nodes_[l].activated, *inference_.grams[l]);
        else if (schedule_.feedback(l) == Feedback::product)
          multiply(*nodes_[l].feedback, *nodes_[l + 1].delta, chain_.weights[l]);
      for (int64_t l = 0; l < chain_.nodes; ++l)
        if (inference_.free[l])
          descend(l, step);
    }
  }

private:
  struct Node {
    MaybeTensor activated, feedback, product, weight, residual, error, delta;
  };

  void find_error(int64_t l, int64_t step) {
    const Node& node = nodes_[l];
    const bool full = chain_.matrices[l].has_value();
    if (schedule_.live[l])
      multiply(*node.product, *nodes_[l - 1].activated, *node.weight);
    ErrorArgs args = schedule_.live[l] ? chain_.error_args(l, *node.product)
                                       : chain_.error_args(l, schedule_.constant[l]->data_ptr(),
                                                           schedule_.constant_row[l]);
    void* const error = node.error->data_ptr();
    void* const delta = pointer(node.delta);
    args.residual = pointer(node.residual);
    if (!full) {
      args.error = error;
      args.delta = delta == error ? nullptr : delta;
    }
    launch_error(args, chain_.stream());
    if (full) {
      multiply(*node.error, *node.residual, *chain_.matrices[l]);
      if (delta && delta != error) {
        args.residual = nullptr;
        args.weighed = error;
        args.delta = delta;
        launch_error(args, chain_.stream());
      }
    }
    if (inference_.energies) {
      char* const to = static_cast<char*>(inference_.energies->data_ptr());
      launch_half_dot(
          {chain_.dtype, chain_.batch, chain_.width(l), node.residual->data_ptr(), error,
           to + (step * chain_.nodes + l) * chain_.batch * inference_.energies->element_size()},
          chain_.stream());
    }
  }

  void descend(int64_t l, int64_t step) {
    const Node& node = nodes_[l];
    UpdateArgs args{};
    args.dtype = chain_.dtype;
    args.size = chain_.states[l].numel();
    args.state = chain_.states[l].data_ptr();
    args.error = pointer(node.error);
    args.lr = inference_.lr;
    if (!inference_.velocities.empty()) {
      args.velocity = inference_.velocities[l].data_ptr();
      args.momentum = inference_.momentum;
      args.dampening = inference_.dampening;
      args.nesterov = inference_.nesterov;
      args.starts = step == 0 && !inference_.resume;
    }
    if (node.feedback) {
      args.before = chain_.before(l);
      args.feedback = node.feedback->data_ptr();
      args.drive = pointer(schedule_.drive[l]);
      args.activated = args.before.kind == Activation::identity ? nullptr : pointer(node.activated);
    }
    launch_update(args, chain_.stream());
  }

  const Chain& chain_;
  const Inference& inference_;
  const Schedule& schedule_;
  std::vector<Node> nodes_;
};

// ---- all steps in one kernel

Precision precision_of(const Inference& inference) {
  return inference.precision == "highest" ? Precision::highest
         : inference.precision == "high"  ? Precision::high
                                          : Precision::medium;
}

TileArgs tile_args(const Chain& chain, const Inference& inference, const Schedule& schedule) {
  TileArgs args{};
  args.batch = chain.batch;
  args.steps = inference.steps;
  args.nodes = static_cast<int>(chain.nodes);
  args.lr = static_cast<float>(inference.lr);
  args.momentum = static_cast<float>(inference.momentum);
  args.fresh = static_cast<float>(1 - inference.dampening);
  args.nesterov = inference.nesterov;
  args.starts = !inference.resume;
  args.energies = static_cast<float*>(pointer(inference.energies));
  const auto floats = [](const MaybeTensor& t) { return static_cast<float*>(pointer(t)); };
  for (int64_t l = 0; l < chain.nodes; ++l) {
    TileNode& node = args.node[l];
    node.n = static_cast<int>(chain.width(l));
    node.free = inference.free[l];
    node.computes_error = schedule.computes_error[l];
    node.feedback = schedule.feedback(l);
    node.into = schedule.live[l] ? 0 : kAbsent;
    node.weigh = schedule.computes_error[l] && chain.matrices[l] ? 0 : kAbsent;
    if (l + 1 < chain.nodes)
      node.before = chain.before(l);
    if (schedule.live[l]) {
      node.after = chain.after(l - 1);
      node.bias = floats(chain.biases[l - 1]);
    }
    node.precision = floats(chain.diagonals[l]);
    node.constant = floats(schedule.constant[l]);
    node.constant_row = schedule.constant_row[l];
    node.drive = floats(schedule.drive[l]);
    node.state = floats(chain.states[l]);
    if (node.free && !inference.velocities.empty())
      node.velocity = floats(inference.velocities[l]);
  }
  return args;
}

// Whether a kernel of its own serves the chain better than the library, or at all where the
// environment asks for it (PYROMANCY_CUDA_CHAIN=tile or steps: for tests and benchmarks).
bool fits_better(TileArgs& args, Precision precision) {
  const DeviceLimits device = device_limits();
  const double steps_time = steps_estimate(args, precision, device);
  const double tile_time = plan_chain_tile(args, precision, device);
  if (const char* asked = std::getenv("PYROMANCY_CUDA_CHAIN"))
    return std::string(asked) == "tile" && std::isfinite(tile_time);
  return tile_time < steps_time;
}

void run_tiles(const Chain& chain, const Inference& inference, TileArgs& args) {
  PackArgs packing{};
  int64_t floats = 0;
  const auto pack = [&](int product, const Tensor& matrix, bool is_transposed) {
    if (product == kAbsent)
      return;
    const TileProduct& p = args.product[product];
    packing.matrix[packing.count++] = {static_cast<const float*>(matrix.data_ptr()),
                                       matrix.stride(is_transposed),
                                       matrix.stride(!is_transposed),
                                       static_cast<int>(matrix.size(is_transposed)),
                                       static_cast<int>(matrix.size(!is_transposed)),
                                       p.tiles * args.cluster,
                                       p.blocks,
                                       floats};
    args.product[product].packed = reinterpret_cast<const float*>(floats); // an offset as yet
    floats += int64_t{p.tiles} * args.cluster * p.blocks * kBlock;
  };
  for (int l = 0; l < args.nodes; ++l) {
    const TileNode& node = args.node[l];
    if (node.into != kAbsent)
      pack(node.into, chain.weights[l - 1], false);
    if (node.weigh != kAbsent)
      pack(node.weigh, *chain.matrices[l], false);
    if (node.feedback == Feedback::gram)
      pack(node.back, *inference.grams[l], false);
    else if (node.feedback == Feedback::product)
      pack(node.back, chain.weights[l], true);
  }
  const Tensor packed = allocate(Sizes(&floats, 1), chain.states[0]);
  packing.packed = static_cast<float*>(packed.data_ptr());
  for (int i = 0; i < args.phase[args.rounds - 1][3]; ++i)
    args.product[i].packed = packing.packed + reinterpret_cast<intptr_t>(args.product[i].packed);
  launch_pack(packing, chain.stream());

  MaybeTensor of_blocks;
  if (inference.energies && args.cluster > 1) {
    const int64_t sizes[] = {args.cluster, args.steps, args.nodes, args.batch};
    of_blocks = allocate(Sizes(sizes, 4), chain.states[0]);
    args.energies = static_cast<float*>(of_blocks->data_ptr());
  }
  launch_chain_tile(args, precision_of(inference), chain.stream());
  if (of_blocks)
    sum_first(*inference.energies, *of_blocks);
}

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
  const Inference inference{grams,     free,     steps,  lr,       velocities, momentum,
                            dampening, nesterov, resume, energies, precision};
  check_chain(operands);
  check_inference(operands, inference);
  const Chain chain(operands);
  if (chain.batch == 0 || steps == 0)
    return {};
  const Schedule schedule(chain, inference);
  if (chain.dtype == DType::float32 && chain.nodes <= kTileNodes) {
    TileArgs args = tile_args(chain, inference, schedule);
    if (fits_better(args, precision_of(inference))) {
      run_tiles(chain, inference, args);
      return {};
    }
  }
  if (energies) { // of nodes without an energy
    Tensor all = *energies;
    torch::stable::zero_(all);
  }
  Steps(chain, inference, schedule).run();
  return {};
}

Tensors chain_mstep(const Tensors& states, const Tensors& weights, const MaybeTensors& biases,
                    const MaybeTensors& precisions, const std::optional<Tensor>& prior,
                    const std::vector<int64_t>& activations, const std::vector<double>& parameters,
                    const std::vector<bool>& predicted, const std::vector<bool>& for_weight,
                    const std::vector<bool>& for_bias, const std::vector<bool>& for_precision,
                    const Tensors& /*known: nothing, on a GPU*/) {
  const ChainOperands operands{states, weights,     biases,     precisions,
                               prior,  activations, parameters, predicted};
  check_chain(operands);
  check_wanted(operands, for_weight, for_bias, for_precision);
  const Chain chain(operands);
  const double mean = chain.batch ? 1.0 / static_cast<double>(chain.batch) : 0;
  Tensors of_weights, of_biases, moments;
  for (int64_t l = 0; l < chain.nodes; ++l) {
    const bool needs_delta = l > 0 && (for_weight[l - 1] || for_bias[l - 1]);
    if (!needs_delta && !for_precision[l])
      continue;
    MaybeTensor source, product;
    if (l > 0) {
      source = chain.activated(l - 1);
      product = chain.like_state(l);
      multiply(*product, *source, transposed(weights[l - 1]));
    }
    const int64_t row = prior && prior->size(0) == 1 ? 0 : chain.width(l);
    ErrorArgs args =
        l > 0 ? chain.error_args(l, *product) : chain.error_args(l, pointer(chain.prior), row);
    const int64_t n = chain.width(l);
    const bool full = chain.matrices[l].has_value();
    MaybeTensor error, delta, square;
    if (full) {
      const Tensor residual = chain.like_state(l);
      args.residual = residual.data_ptr();
      launch_error(args, chain.stream());
      args.residual = nullptr;
      error = chain.like_state(l);
      multiply(*error, residual, *chain.matrices[l]);
      args.weighed = error->data_ptr();
    }
    if (needs_delta)
      delta = chain.like_state(l);
    if (for_precision[l] && !full)
      square = chain.like_state(l);
    args.scale = -mean;
    args.delta = pointer(delta);
    args.square = pointer(square);
    if (delta || square)
      launch_error(args, chain.stream());
    if (square) {
      sum_first(moments.emplace_back(allocate(Sizes(&n, 1), states[0])), *square);
    } else if (for_precision[l]) {
      const Tensor scaled = chain.like_state(l);
      ErrorArgs scaling = chain.error_args(l, states[l].data_ptr(), n);
      scaling.weighed = error->data_ptr();
      scaling.scale = mean;
      scaling.delta = scaled.data_ptr();
      launch_error(scaling, chain.stream());
      const int64_t sizes[] = {n, n};
      multiply(moments.emplace_back(allocate(Sizes(sizes, 2), states[0])), transposed(scaled),
               *error);
    }
    if (!needs_delta)
      continue;
    if (for_weight[l - 1])
      multiply(of_weights.emplace_back(allocate(weights[l - 1].sizes(), states[0])),
               transposed(*delta), *source);
    if (for_bias[l - 1])
      sum_first(of_biases.emplace_back(allocate(Sizes(&n, 1), states[0])), *delta);
  }
  Tensors results = std::move(of_weights);
  results.insert(results.end(), of_biases.begin(), of_biases.end());
  results.insert(results.end(), moments.begin(), moments.end());
  return results;
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CUDA, m) {
  m.impl("infer_chain_", TORCH_BOX(&infer_chain_));
  m.impl("chain_mstep", TORCH_BOX(&chain_mstep));
}

} // namespace
} // namespace pyromancy::cuda
