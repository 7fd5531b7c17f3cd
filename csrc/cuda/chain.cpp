#include <torch/csrc/stable/library.h>

#include <cmath>
#include <cstdlib>

#include "chain_plan.h"
#include "chain_steps.h"
#include "chain_tile.h"

namespace pyromancy::cuda {
namespace {

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
  run_steps(chain, inference, schedule);
  return {};
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CUDA, m) {
  m.impl("infer_chain_", TORCH_BOX(&infer_chain_));
}

} // namespace
} // namespace pyromancy::cuda
