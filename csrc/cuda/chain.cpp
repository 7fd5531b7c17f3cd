#include <torch/csrc/stable/library.h>

#include <cmath>
#include <cstdlib>
#include <string_view>

#include "chain_plan.h"
#include "chain_steps.h"
#include "chain_tile.h"

namespace pyromancy::cuda {
namespace {

// Takes all steps in one kernel where that is expected to be faster than the library's products.
// The environment can ask for it wherever it is possible, or never (PYROMANCY_CUDA_CHAIN=tile or
// steps: for tests and benchmarks). Returns whether it has.
bool run_tiles_if_faster(const Chain& chain, const Inference& inference, const Schedule& schedule) {
  if (chain.dtype != DType::float32 || chain.nodes > kTileNodes)
    return false;
  const char* const asked = std::getenv("PYROMANCY_CUDA_CHAIN");
  if (asked && std::string_view(asked) != "tile")
    return false;
  const Precision precision = precision_of(inference);
  const DeviceLimits device = device_limits();
  TileArgs args = tile_args(chain, inference, schedule);
  const double time = plan_chain_tile(args, precision, device);
  if (!(asked ? std::isfinite(time) : time < steps_estimate(args, precision, device)))
    return false;
  run_tiles(chain, inference, args);
  return true;
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
  if (!run_tiles_if_faster(chain, inference, schedule))
    run_steps(chain, inference, schedule);
  return {};
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CUDA, m) {
  m.impl("infer_chain_", TORCH_BOX(&infer_chain_));
}

} // namespace
} // namespace pyromancy::cuda
