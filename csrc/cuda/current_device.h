#pragma once

// What device.cu tells the host functions of the device, since they do without CUDA's headers.

#include <iterator>

namespace pyromancy::cuda {

void set_device(int device);

inline constexpr int kClusters[] = {1, 2, 4, 8}; // sizes; a portable cluster has up to 8 blocks

struct DeviceLimits {
  int multiprocessors;
  int shared_bytes; // of a block
  // Clusters of each size that run at the same time, of blocks with all of that; 0 where there are
  // none of it. They lie within a group of multiprocessors each, which leaves some of those over.
  int at_once[std::size(kClusters)];
};

// Of the current device.
DeviceLimits device_limits();

} // namespace pyromancy::cuda
