#pragma once

// As much of CUDA as the kernels of csrc/cuda use, for a CPU. A block's threads are contexts that
// take turns: each runs up to the next barrier, where it waits for its warp, its block or its
// cluster, so that what they exchange through shared memory and shuffles is what a device would
// exchange. Clusters run one after the other. PYROMANCY_EMULATION_REVERSED=1 runs the threads in
// the opposite order, which changes the result of a kernel that lacks a barrier.

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static // blocks do not overlap
#define __launch_bounds__(...)
#define __grid_constant__
#define __noinline__ __attribute__((noinline))
#define PYROMANCY_SHARED_MEMORY(name) float4* const name = emulation::block.shared()

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
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline uint32_t __float_as_uint(float x) {
  return std::bit_cast<uint32_t>(x);
}
inline float __uint_as_float(uint32_t x) {
  return std::bit_cast<float>(x);
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline double __dsub_rn(double a, double b) {
  return a - b;
}

// The device is as large as the environment says, and another one where that says otherwise.
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin
};
inline cudaError_t cudaGetDevice(int* device) {
  static std::vector<std::string> seen;
  std::string now;
  for (const char* name : {"CAPABILITY", "MULTIPROCESSORS", "SHARED_BYTES", "PTX", "CLUSTER"}) {
    const char* const set = std::getenv((std::string("PYROMANCY_EMULATED_") + name).c_str());
    now += std::string(set ? set : "") + ' ';
  }
  const auto at = std::find(seen.begin(), seen.end(), now);
  *device = static_cast<int>(at - seen.begin());
  if (at == seen.end())
    seen.push_back(now);
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  static constexpr const char* names[] = {"PYROMANCY_EMULATED_CAPABILITY",
                                          "PYROMANCY_EMULATED_MULTIPROCESSORS",
                                          "PYROMANCY_EMULATED_SHARED_BYTES"};
  static constexpr int usual[] = {9, 132, 232448};
  const char* const set = std::getenv(names[attribute]);
  *value = set ? std::atoi(set) : usual[attribute];
  return cudaSuccess;
}

struct cudaFuncAttributes {
  int ptxVersion;
};
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  const char* const compiled = std::getenv("PYROMANCY_EMULATED_PTX");
  attributes->ptxVersion = compiled ? std::atoi(compiled) : 90;
  return cudaSuccess;
}
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline cudaError_t cudaFuncSetAttribute(const void*, int, int) {
  return cudaSuccess;
}
enum { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  int id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  const cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

// Launches with dynamic shared memory, by the size of their clusters, for the tests to look at.
extern "C" {
__attribute__((visibility("default"), used)) inline int64_t emulated_launches[9];
}

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

inline constexpr int kWarp = 32;

// Threads that wait for each other: those of some warps.
struct Barrier {
  int first = 0, warps = 0, arrived = 0;
  unsigned generation = 0;
};

struct Thread {
  std::unique_ptr<char[]> stack;
  void* state[5]; // of __builtin_setjmp, which saves the least
};

using Row = double [[gnu::vector_size(64)]];

// What the lanes of a warp give each other: a number each, or blocks of matrices and their product.
struct Exchange {
  double numbers[kWarp], a[16][16];
  Row b[16], c[16];
};

// The blocks of a cluster, all of their threads at the same time.
class Block {
public:
  void run(unsigned first, int blocks, int threads, size_t shared_bytes, void (*body)(void*),
           void* argument) {
    reversed_ = std::getenv("PYROMANCY_EMULATION_REVERSED") != nullptr;
    body_ = body;
    argument_ = argument;
    threads_of_block_ = threads;
    first_ = first;
    count_ = left_ = blocks * threads;
    const int warps = threads / kWarp;
    if (threads % kWarp || count_ > kWarps * kWarp)
      fail("blocks of this size are not emulated");
    while (static_cast<int>(threads_.size()) < count_)
      add_thread();
    shared_size_ = (shared_bytes + sizeof(float4) - 1) / sizeof(float4);
    // what nobody has written is not a number
    const float nan = std::numeric_limits<float>::quiet_NaN();
    shared_.assign(shared_size_ * blocks, {nan, nan, nan, nan});
    cluster_ = {0, warps * blocks, 0, 0};
    for (int b = 0; b < blocks; ++b)
      whole_[b] = {b * warps, warps, 0, 0};
    for (int w = 0; w < warps * blocks; ++w)
      warps_[w] = {w, 1, 0, 0};
    open(cluster_);
    current_ = next();
    go_on(scheduler_);
  }

  void wait_for_cluster() {
    wait(cluster_, [] {});
  }
  void wait_for_block() {
    wait(whole_[rank()], [] {});
  }
  // The last lane to come calls f() for all.
  template <class F>
  void wait_for_warp(F f) {
    wait(warps_[current_ / kWarp], f);
  }
  int rank() const {
    return current_ / threads_of_block_;
  }
  int lane() const {
    return current_ % kWarp;
  }
  float4* shared() {
    return shared_.data() + rank() * shared_size_;
  }
  template <class T>
  T* peer(T* p, int to) {
    return reinterpret_cast<T*>(reinterpret_cast<char*>(p) +
                                (to - rank()) *
                                    static_cast<ptrdiff_t>(shared_size_ * sizeof(float4)));
  }
  // Where the lanes of this warp leave what they exchange. There are two, which take turns with the
  // warp's barriers: a lane that is past the next one writes where no other lane still reads.
  Exchange& exchange() {
    const int warp = current_ / kWarp;
    return exchanges_[warp][warps_[warp].generation % 2];
  }

private:
  static constexpr size_t kStack = 64 << 10;
  static constexpr int kBlocks = 8, kWarps = 64;

  static void fail(const char* why) {
    std::fprintf(stderr, "%s\n", why);
    std::abort();
  }

  void add_thread() {
    current_ = static_cast<int>(threads_.size());
    Thread& thread = threads_.emplace_back(std::make_unique_for_overwrite<char[]>(kStack));
    ucontext_t begin;
    getcontext(&begin);
    begin.uc_stack.ss_sp = thread.stack.get();
    begin.uc_stack.ss_size = kStack;
    begin.uc_link = nullptr;
    makecontext(&begin, &Block::enter, 0);
    if (!__builtin_setjmp(scheduler_))
      setcontext(&begin);
  }

  static void enter(); // and never leave: a thread serves one kernel after the other

  // The first thread in the order that can go on. Of a block's threads each runs as far as it can
  // before the next one does, of warps too, and of blocks, so that a barrier that is missing shows.
  int next() const {
    const int warps = count_ / kWarp;
    for (int i = 0; i < warps; ++i) {
      const int w = reversed_ ? warps - 1 - i : i;
      if (const uint32_t ready = ready_[w])
        return w * kWarp + (reversed_ ? 31 - std::countl_zero(ready) : std::countr_zero(ready));
    }
    fail("deadlock: all threads wait at barriers");
    return 0;
  }

  // From a thread, or from the scheduler, to the current thread.
  void go_on(void** from) {
    threadIdx.x = current_ % threads_of_block_;
    blockIdx.x = first_ + rank();
    change(from, threads_[current_].state);
  }
  static void change(void** from, void** to) {
    if (!__builtin_setjmp(from))
      jump(to);
  }
  // Not inlined: a jump to where the function itself has set one never ends.
  [[gnu::noinline]] static void jump(void** to) {
    __builtin_longjmp(to, 1);
  }

  void open(Barrier& barrier) {
    barrier.arrived = 0;
    ++barrier.generation;
    std::fill_n(ready_ + barrier.first, barrier.warps, ~0u);
  }

  template <class F>
  void wait(Barrier& barrier, F f) {
    const int self = current_;
    ready_[self / kWarp] &= ~(1u << self % kWarp);
    if (++barrier.arrived == barrier.warps * kWarp) {
      f();
      open(barrier);
    }
    current_ = next();
    if (current_ != self)
      go_on(threads_[self].state);
  }

  std::vector<Thread> threads_;
  std::vector<float4> shared_;
  uint32_t ready_[kWarps]; // lanes that wait for nobody
  Barrier cluster_, whole_[kBlocks], warps_[kWarps];
  Exchange exchanges_[kWarps][2];
  void* scheduler_[5];
  int current_ = 0, count_ = 0, left_ = 0, threads_of_block_ = kWarp;
  bool reversed_ = false;
  unsigned first_ = 0;
  size_t shared_size_ = 0;
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
};

inline Block block;

inline void Block::enter() {
  const int self = block.current_;
  change(block.threads_[self].state, block.scheduler_);
  for (;;) {
    block.body_(block.argument_);
    block.ready_[self / kWarp] &= ~(1u << self % kWarp);
    if (--block.left_ == 0) {
      change(block.threads_[self].state, block.scheduler_);
    } else {
      block.current_ = block.next();
      block.go_on(block.threads_[self].state);
    }
  }
}

template <class T>
T exchanged(T x, int from) {
  static_assert(sizeof(T) <= sizeof(double));
  double* const numbers = block.exchange().numbers;
  *reinterpret_cast<T*>(numbers + block.lane()) = x;
  block.wait_for_warp([] {});
  return *reinterpret_cast<T*>(numbers + from);
}

// c += a b^T by the layout of the instruction: lane 4 g + t holds rows g and g + 8 of a, column g
// of b, and of c columns 2 t and 2 t + 1. f(word, k) is the number that a word has for k of `each`.
template <int each, class F>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], F f) {
  Exchange& all = block.exchange();
  const int g = block.lane() / 4, t = block.lane() % 4;
  for (int half = 0; half < 2; ++half)
    for (int k = 0; k < each; ++k) {
      const int at = (half * 4 + t) * each + k;
      all.a[g][at] = f(a[2 * half], k);
      all.a[g + 8][at] = f(a[2 * half + 1], k);
      all.b[at][g] = f(b[half], k);
    }
  block.wait_for_warp([&] {
    for (int row = 0; row < 16; ++row) {
      Row sum{};
      for (int k = 0; k < 8 * each; ++k)
        sum += all.a[row][k] * all.b[k];
      all.c[row] = sum;
    }
  });
  for (int i = 0; i < 2; ++i) {
    c[i] += static_cast<float>(all.c[g][2 * t + i]);
    c[2 + i] += static_cast<float>(all.c[g + 8][2 * t + i]);
  }
}

} // namespace emulation

inline void __syncthreads() {
  emulation::block.wait_for_block();
}
inline void __syncwarp() {
  emulation::block.wait_for_warp([] {});
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

inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulation::mma<1>(c, a, b, [](uint32_t x, int) {
    return static_cast<double>(std::bit_cast<float>(x & 0xffffe000u));
  });
}
inline void mma_bfloat16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulation::mma<2>(c, a, b, [](uint32_t x, int k) {
    return static_cast<double>(std::bit_cast<float>(k ? x & 0xffff0000u : x << 16));
  });
}
inline uint32_t nearest_tf32(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  return std::isfinite(x) ? (u + 0x1000u) & 0xffffe000u : u;
}
inline uint32_t two_bfloat16(float low, float high) {
  const auto round = [](float x) {
    const uint32_t u = std::bit_cast<uint32_t>(x);
    return std::isnan(x) ? 0x7fffu : (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  };
  return round(low) | round(high) << 16;
}

inline cudaError_t cudaOccupancyMaxPotentialClusterSize(int* size, const void*,
                                                        const cudaLaunchConfig_t*) {
  const char* const set = std::getenv("PYROMANCY_EMULATED_CLUSTER");
  *size = set ? std::atoi(set) : 8;
  return cudaSuccess;
}

// Of four multiprocessors in 33 no cluster has use, as on devices whose groups are of odd sizes.
inline cudaError_t cudaOccupancyMaxActiveClusters(int* count, const void*,
                                                  const cudaLaunchConfig_t* config) {
  int multiprocessors;
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0);
  *count = (multiprocessors - multiprocessors / 33 * 4) /
           static_cast<int>(config->attrs->val.clusterDim.x);
  return cudaSuccess;
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
  const unsigned cluster = config->numAttrs ? config->attrs->val.clusterDim.x : 1;
  emulated_launches[cluster] += config->dynamicSmemBytes > 0;
  for (unsigned b = 0; b < config->gridDim.x; b += cluster)
    emulation::block.run(
        b, static_cast<int>(cluster), static_cast<int>(blockDim.x), config->dynamicSmemBytes,
        [](void* p) {
          std::apply(static_cast<Call*>(p)->kernel, static_cast<Call*>(p)->arguments);
        },
        &call);
  return cudaSuccess;
}
