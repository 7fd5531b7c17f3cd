#pragma once

#include <cstdint>

namespace pyromancy {

// Which free nodes descend at a step.
enum class UpdateOrder : int64_t {
  together,
  alternate,  // every other one from the first on, then those between, by their new states
  one_by_one, // from the last on, one at every step
};
inline constexpr int64_t kUpdateOrders = 3;

} // namespace pyromancy
