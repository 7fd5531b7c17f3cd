#include "current_device.h"

#include <map>
#include <mutex>

#include "chain_tile_kernel.h"
#include "launch.h"

namespace pyromancy::cuda {
namespace {

DeviceLimits limits_of(int device) {
  const auto get = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, device));
    return value;
  };
  const int shared_bytes = get(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const bool has_clusters = get(cudaDevAttrComputeCapabilityMajor) >= 9;
  return {get(cudaDevAttrMultiProcessorCount), shared_bytes,
          has_clusters ? largest_cluster(shared_bytes) : 1};
}

} // namespace

void set_device(int device) {
  check(cudaSetDevice(device));
}

// Asked for at every call, and found out once.
DeviceLimits device_limits() {
  static std::mutex mutex;
  static std::map<int, DeviceLimits> known;
  int device = 0;
  check(cudaGetDevice(&device));
  const std::lock_guard lock(mutex);
  auto at = known.find(device);
  if (at == known.end())
    at = known.emplace(device, limits_of(device)).first;
  return at->second;
}

} // namespace pyromancy::cuda
