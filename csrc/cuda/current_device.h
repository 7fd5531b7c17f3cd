#pragma once

// What device.cu tells the host functions of the device, since they do without CUDA's headers.

namespace pyromancy::cuda {

void set_device(int device);

struct DeviceLimits {
  int multiprocessors;
  int shared_bytes; // of a block
  int cluster;      // blocks of one, at most
};

// Of the current device.
DeviceLimits device_limits();

} // namespace pyromancy::cuda
