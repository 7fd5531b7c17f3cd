#pragma once

// What the host functions of the CPU kernels share.

#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <new>

#include "../check.h"

namespace pyromancy {

// Elements of elementwise work that are worth waking another thread for.
inline constexpr int64_t kGrain = 32768;

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

// Memory for one call, aligned to a cache line: on the stack where it is small.
class Scratch {
public:
  explicit Scratch(int64_t bytes)
      : data_(bytes <= kInline ? inline_ : std::aligned_alloc(64, ceil_div(bytes, 64) * 64)) {
    if (!data_)
      throw std::bad_alloc();
  }
  ~Scratch() {
    if (data_ != inline_)
      std::free(data_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* as() {
    return static_cast<T*>(data_);
  }

private:
  static constexpr int64_t kInline = 4096;
  alignas(64) unsigned char inline_[kInline];
  void* data_;
};

// torch.empty(sizes), dtype and device as in `like`.
Tensor allocate(Sizes sizes, const Tensor& like);

// torch.empty_like(like), its dense strides kept.
Tensor allocate_like(const Tensor& like);

} // namespace pyromancy
