#pragma once

#include <cstdint>

namespace pyromancy {

// The element types of the kernels. A value is the index of its type in every kernel table.
enum class DType : int { float32, float64, bfloat16, float16 };
inline constexpr int kDTypes = 4;

// Storage only: arithmetic is done in Compute<T>.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

// The same of a dtype: the type that its elements are computed in.
inline DType computed_in(DType dtype) {
  return dtype == DType::float64 ? DType::float64 : DType::float32;
}

} // namespace pyromancy
