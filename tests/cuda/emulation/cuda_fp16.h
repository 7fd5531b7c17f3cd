#pragma once

#include <bit>
#include <cstdint>

using __half = _Float16;
inline __half __ushort_as_half(uint16_t bits) {
  return std::bit_cast<__half>(bits);
}
inline uint16_t __half_as_ushort(__half x) {
  return std::bit_cast<uint16_t>(x);
}
inline float __half2float(__half x) {
  return x;
}
inline __half __float2half_rn(float x) {
  return static_cast<__half>(x);
}
