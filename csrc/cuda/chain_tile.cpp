#include "chain_tile.h"

namespace pyromancy::cuda {

Precision precision_of(const Inference& inference) {
  switch (inference.precision) {
  case MatmulPrecision::highest:
    return Precision::highest;
  case MatmulPrecision::high:
    return Precision::high;
  default:
    return Precision::medium;
  }
}

TileArgs tile_args(const Chain& chain, const Inference& inference, const Schedule& schedule,
                   const std::vector<Lesson>& lessons) {
  TileArgs args{};
  args.batch = chain.batch;
  args.steps = inference.steps;
  args.nodes = static_cast<int>(chain.nodes);
  args.lr = static_cast<float>(inference.lr);
  args.momentum = static_cast<float>(inference.momentum);
  args.undamped = static_cast<float>(1 - inference.dampening);
  args.nesterov = inference.nesterov;
  args.starts = !inference.resume;
  args.mean = static_cast<float>(1.0 / static_cast<double>(chain.batch));
  args.energies = static_cast<float*>(pointer(inference.energies));
  int own_laws = 0;
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
      node.delta = floats(lessons[l].delta);
      node.moment = floats(lessons[l].moment);
      node.normalizer = static_cast<float>(lessons[l].normalizer);
      node.gives = node.delta || node.moment;
      args.gives |= node.gives;
      node.swept = inference.swept[l];
      args.sweeps += node.swept;
    }
    node.law = chain.laws[l];
    node.law_parameter = static_cast<float>(chain.law_parameters[l]);
    node.weight = static_cast<float>(chain.energy_weights[l]);
    node.own_law = kAbsent;
    if (const Expression* const own = chain.expressions[l]) {
      node.own_law = own_laws++;
      args.own_law[node.own_law] = *own;
    }
    node.rate = floats(chain.rates[l]);
    node.sample_weights = floats(chain.sample_weights[l]);
    node.constant = floats(schedule.constant[l]);
    node.constant_row = schedule.constant_row[l];
    node.constant_feedback = floats(schedule.constant_feedback[l]);
    node.state = floats(chain.states[l]);
    node.velocity = floats(inference.velocities[l]);
  }
  return args;
}

void run_tiles(const Chain& chain, const Inference& inference, TileArgs& args,
               std::vector<Lesson>& lessons) {
  PackArgs packing{};
  int product_of[kProducts]; // that reads matrix i of packing
  int64_t floats = 0;
  const auto pack = [&](int product, const Tensor& matrix, bool is_transposed) {
    if (product == kAbsent)
      return;
    const TileProduct& p = args.product[product];
    product_of[packing.count] = product;
    packing.matrix[packing.count++] = {static_cast<const float*>(matrix.data_ptr()),
                                       matrix.stride(is_transposed),
                                       matrix.stride(!is_transposed),
                                       static_cast<int>(matrix.size(is_transposed)),
                                       static_cast<int>(matrix.size(!is_transposed)),
                                       p.tiles * args.cluster,
                                       p.blocks,
                                       floats};
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
  for (int i = 0; i < packing.count; ++i)
    args.product[product_of[i]].packed = packing.packed + packing.matrix[i].to;
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
  for (int l = 0; l < args.nodes; ++l)
    lessons[l].given = args.node[l].gives;
}

} // namespace pyromancy::cuda
