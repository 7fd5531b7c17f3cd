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
  DeviceLimits limits{
      get(cudaDevAttrMultiProcessorCount), get(cudaDevAttrMaxSharedMemoryPerBlockOptin), {}};
  const bool has_clusters = get(cudaDevAttrComputeCapabilityMajor) >= 9;
  for (size_t i = 0; i < std::size(kClusters); ++i)
    limits.at_once[i] = kClusters[i] == 1 ? limits.multiprocessors
                        : has_clusters    ? clusters_at_once(kClusters[i], limits.shared_bytes)
                                          : 0;
  return limits;
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
