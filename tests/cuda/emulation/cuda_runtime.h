#pragma once

// As much of CUDA as the kernels of csrc/cuda use, for a CPU. A block's threads are contexts that
// take turns: each runs up to the next barrier, where it waits for its warp or its block, so that
// what they exchange through shared memory and shuffles is what a device would exchange. Blocks run
// one after the other. PYROMANCY_EMULATION_REVERSED=1 runs the threads in the opposite order, which
// changes the result of a kernel that lacks a barrier.

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <tuple>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static // blocks do not overlap
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned n) : x(n) {}
};

using cudaStream_t = void*;
using cudaError_t = int;
inline constexpr cudaError_t cudaSuccess = 0;
inline const char* cudaGetErrorString(cudaError_t) {
  return "emulated";
}
inline cudaError_t cudaSetDevice(int) {
  return cudaSuccess;
}
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

inline constexpr int kWarp = 32;

// Threads that wait for each other.
struct Barrier {
  int size = 0, arrived = 0;
  unsigned generation = 0;
};

struct Thread {
  std::unique_ptr<char[]> stack;
  ucontext_t first;
  jmp_buf state;
  bool started = false, done = false;
};

class Block {
public:
  void run(int threads, void (*body)(void*), void* argument) {
    static const bool reversed = std::getenv("PYROMANCY_EMULATION_REVERSED") != nullptr;
    body_ = body;
    argument_ = argument;
    while (static_cast<int>(threads_.size()) < threads)
      threads_.push_back({std::make_unique<char[]>(kStack), {}, {}, false, false});
    whole_ = {threads, 0, 0};
    for (int w = 0; w * kWarp < threads; ++w)
      warps_[w] = {threads - w * kWarp < kWarp ? threads - w * kWarp : kWarp, 0, 0};
    for (int i = 0; i < threads; ++i)
      threads_[i].started = threads_[i].done = false;
    for (int left = threads; left > 0;)
      for (int i = 0; i < threads; ++i) {
        current_ = reversed ? threads - 1 - i : i;
        Thread& thread = threads_[current_];
        if (thread.done)
          continue;
        resume(thread);
        left -= thread.done;
      }
  }

  void wait_for_block() {
    wait(whole_);
  }
  void wait_for_warp() {
    wait(warps_[current_ / kWarp]);
  }
  int lane() const {
    return current_ % kWarp;
  }
  // where the lanes of this warp leave what they exchange
  double* exchange() {
    return slots_[current_ / kWarp];
  }

private:
  static constexpr size_t kStack = 64 << 10;

  void resume(Thread& thread) {
    threadIdx = dim3(current_);
    threadIdx.x = current_;
    if (_setjmp(scheduler_) != 0)
      return;
    if (thread.started)
      _longjmp(thread.state, 1);
    thread.started = true;
    getcontext(&thread.first);
    thread.first.uc_stack.ss_sp = thread.stack.get();
    thread.first.uc_stack.ss_size = kStack;
    thread.first.uc_link = nullptr;
    makecontext(&thread.first, &Block::enter, 0);
    setcontext(&thread.first);
  }

  static void enter();

  void yield() {
    Thread& thread = threads_[current_];
    if (_setjmp(thread.state) == 0)
      _longjmp(scheduler_, 1);
  }

  void wait(Barrier& barrier) {
    const unsigned generation = barrier.generation;
    if (++barrier.arrived == barrier.size) {
      barrier.arrived = 0;
      ++barrier.generation;
    }
    while (barrier.generation == generation)
      yield();
  }

  std::vector<Thread> threads_;
  Barrier whole_, warps_[32];
  double slots_[32][kWarp];
  jmp_buf scheduler_;
  int current_ = 0;
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
};

inline Block block;

inline void Block::enter() {
  block.body_(block.argument_);
  block.threads_[block.current_].done = true;
  _longjmp(block.scheduler_, 1);
}

template <class T>
T exchanged(T x, int from) {
  static_assert(sizeof(T) <= sizeof(double));
  double* slots = block.exchange();
  *reinterpret_cast<T*>(slots + block.lane()) = x;
  block.wait_for_warp();
  x = *reinterpret_cast<T*>(slots + from);
  block.wait_for_warp();
  return x;
}

} // namespace emulation

inline void __syncthreads() {
  emulation::block.wait_for_block();
}
inline void __syncwarp() {
  emulation::block.wait_for_warp();
}
template <class T>
T __shfl_sync(unsigned, T x, int from) {
  return emulation::exchanged(x, from);
}
template <class T>
T __shfl_down_sync(unsigned, T x, int step) {
  const int lane = emulation::block.lane();
  return emulation::exchanged(x, lane + step < emulation::kWarp ? lane + step : lane);
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  } call{kernel, {arguments...}};
  blockDim = config->blockDim;
  gridDim = config->gridDim;
  for (unsigned b = 0; b < config->gridDim.x; ++b) {
    blockIdx.x = b;
    emulation::block.run(
        blockDim.x,
        [](void* p) {
          std::apply(static_cast<Call*>(p)->kernel, static_cast<Call*>(p)->arguments);
        },
        &call);
  }
  return cudaSuccess;
}
