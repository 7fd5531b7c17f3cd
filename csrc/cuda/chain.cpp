#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string_view>

#include "chain_learn.h"
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
bool run_tiles_if_faster(const Chain& chain, const Inference& inference, const Schedule& schedule,
                         std::vector<Lesson>& lessons) {
  // Tiles know of no skips and of no theta in a program, a cluster shares out rows, and few
  // programs fit into arguments.
  const bool refused =
      std::any_of(chain.skips.begin(), chain.skips.end(), [](double skip) { return skip != 0; }) ||
      std::any_of(chain.laws.begin(), chain.laws.end(), is_rowwise) ||
      std::count(chain.laws.begin(), chain.laws.end(), Law::expression) > kOwnLaws ||
      std::any_of(chain.thetas.begin(), chain.thetas.end(),
                  [](const MaybeTensor& theta) { return theta.has_value(); });
  if (inference.steps == 0 || chain.dtype != DType::float32 || chain.nodes > kTileNodes || refused)
    return false;
  const char* const asked = std::getenv("PYROMANCY_CUDA_CHAIN");
  if (asked && std::string_view(asked) != "tile")
    return false;
  const Precision precision = precision_of(inference);
  const DeviceLimits device = device_limits();
  TileArgs args = tile_args(chain, inference, schedule, lessons);
  const double time = plan_chain_tile(args, precision, device, asked_layout);
  const bool fits = std::isfinite(time);
  STD_TORCH_CHECK(fits || !asked_layout.any(), "the chain must fit the layout that is asked for, ",
                  asked_layout.rounds, " rounds, clusters of ", asked_layout.cluster, " and ",
                  asked_layout.sample_tiles, " sample tiles, and it does not");
  if (!(asked || asked_layout.any() ? fits : time < steps_estimate(args, precision, device)))
    return false;
  run_tiles(chain, inference, args, lessons);
  return true;
}

} // namespace

void run_chain(const ChainOperands& operands, const Inference& inference, Learn learn,
               const std::vector<Gradient>& wanted) {
  const Chain chain(operands);
  Learner learner(chain, wanted);
  const bool sweeps =
      std::find(inference.swept.begin(), inference.swept.end(), true) != inference.swept.end();
  const bool before = learn == Learn::before && chain.batch > 0;
  if (chain.batch > 0 && (inference.steps > 0 || sweeps)) {
    const Schedule schedule(chain, inference);
    schedule.sweep_constant();
    // What is learned before a step is not what its kernel can give.
    if (before || !run_tiles_if_faster(chain, inference, schedule, learner.lessons)) {
      sweep(chain, inference, schedule);
      if (before)
        learner.learn();
      run_steps(chain, inference, schedule);
    }
  }
  if (learn != Learn::never && !before)
    learner.learn();
}

} // namespace pyromancy::cuda

// For benchmarks and tests, which load it by this name: from now on every chain that can runs in
// one kernel laid out so, or is an error where it does not fit; 0 leaves a part to the plan, three
// zeros all of it. Not while another thread runs chains.
extern "C" __attribute__((visibility("default"))) void
pyromancy_ask_chain_layout(int rounds, int cluster, int sample_tiles) {
  pyromancy::cuda::asked_layout = {rounds, cluster, sample_tiles};
}
