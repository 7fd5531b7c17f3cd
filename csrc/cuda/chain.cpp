#include <torch/csrc/stable/library.h>

#include <cmath>
#include <cstdlib>
#include <string_view>

#include "chain_plan.h"
#include "chain_steps.h"
#include "chain_tile.h"

namespace pyromancy::cuda {
namespace {

AskedLayout asked_layout;

// Takes all steps in one kernel where that is expected to be faster than the library's products.
// The environment can ask for it wherever it is possible, or never (PYROMANCY_CUDA_CHAIN=tile or
// steps: for tests and benchmarks), and `pyromancy_ask_chain_layout` for a layout. Returns whether
// it has.
bool run_tiles_if_faster(const Chain& chain, const Inference& inference, const Schedule& schedule) {
  if (chain.dtype != DType::float32 || chain.nodes > kTileNodes)
    return false;
  const char* const asked = std::getenv("PYROMANCY_CUDA_CHAIN");
  if (asked && std::string_view(asked) != "tile")
    return false;
  const Precision precision = precision_of(inference);
  const DeviceLimits device = device_limits();
  TileArgs args = tile_args(chain, inference, schedule);
  const double time = plan_chain_tile(args, precision, device, asked_layout);
  const bool fits = std::isfinite(time);
  STD_TORCH_CHECK(fits || !asked_layout.any(), "the chain must fit the layout that is asked for, ",
                  asked_layout.rounds, " rounds, clusters of ", asked_layout.cluster, " and ",
                  asked_layout.sample_tiles, " sample tiles, and it does not");
  if (!(asked || asked_layout.any() ? fits : time < steps_estimate(args, precision, device)))
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

// For benchmarks and tests, which load it by this name: from now on every chain that can runs in
// one kernel laid out so, or is an error where it does not fit; 0 leaves a part to the plan, three
// zeros all of it. Not while another thread runs chains.
extern "C" __attribute__((visibility("default"))) void
pyromancy_ask_chain_layout(int rounds, int cluster, int sample_tiles) {
  pyromancy::cuda::asked_layout = {rounds, cluster, sample_tiles};
}
