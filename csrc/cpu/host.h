#pragma once

// What the host functions of the CPU kernels share.

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "../ceil_div.h"
#include "../check.h"

namespace pyromancy {

// Elements of elementwise work that are worth waking another thread for.
inline constexpr int64_t kGrain = 32768;

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

// Memory for one call, aligned to a cache line: on the stack where it is small, else from a store
// that every thread keeps, since fresh memory costs a page fault per 4 KiB at every call.
class Scratch {
public:
  explicit Scratch(int64_t bytes)
      : size_(bytes <= kInline ? 0 : bytes), data_(size_ ? borrow(size_) : inline_) {}
  ~Scratch() {
    if (size_)
      give_back(data_, size_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

private:
  // `bytes` becomes what there is
  static void* borrow(int64_t& bytes);
  static void give_back(void* data, int64_t bytes);

  static constexpr int64_t kInline = 4096;
  alignas(64) unsigned char inline_[kInline];
  int64_t size_;
  void* data_;
};

// While it lives, this thread takes numbers below the smallest normal one for zero. Moving averages
// of gradients that have ended decay to such numbers and never leave them again, at a hundred times
// the time of others.
class FlushDenormals {
public:
#if !defined(__SSE__)
  FlushDenormals() {}
#else
  FlushDenormals() : before_(_mm_getcsr()) {
    _mm_setcsr(before_ | 0x8040); // results, and operands
  }
  ~FlushDenormals() {
    _mm_setcsr(before_);
  }

private:
  const unsigned before_;
#endif
};

// f(scratch, task) for every task, each thread taking the next one as it comes free. Every thread
// has `bytes` of scratch memory. The tasks must not depend on one another.
template <class F>
void share_out(int64_t tasks, int64_t bytes, F f) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), tasks);
  const auto work = [&](int64_t, int64_t) {
    const FlushDenormals flush;
    Scratch scratch(bytes);
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
      f(scratch.as<void>(), task);
  };
  if (threads > 1)
    torch::stable::parallel_for(0, threads, 1, work);
  else if (tasks > 0)
    work(0, 1);
}

// f(element) with a zero of the tensors' element type.
template <class F>
void with_element(DType dtype, F f) {
  switch (dtype) {
  case DType::float32:
    return f(float());
  case DType::float64:
    return f(double());
  case DType::bfloat16:
    return f(torch::headeronly::BFloat16());
  case DType::float16:
    return f(torch::headeronly::Half());
  }
}

// f(element) with a zero of the type that elements are computed in.
template <class F>
void with_computed(DType dtype, F f) {
  if (computed_in(dtype) == DType::float64)
    f(double());
  else
    f(float());
}

// torch.empty(sizes), dtype and device as in `like`.
Tensor allocate(Sizes sizes, const Tensor& like);

// torch.empty_like(like), its dense strides kept.
Tensor allocate_like(const Tensor& like);

} // namespace pyromancy
