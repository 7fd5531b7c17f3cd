#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace pyromancy {
namespace {

Isa detect() {
#if PYROMANCY_X86_ISAS
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  const Isa best = has_avx512 ? Isa::avx512 : has_avx2 ? Isa::avx2 : Isa::baseline;
  const char* wanted = std::getenv("ATEN_CPU_CAPABILITY");
  if (wanted && !std::strcmp(wanted, "default"))
    return Isa::baseline;
  if (wanted && !std::strcmp(wanted, "avx2") && has_avx2)
    return Isa::avx2;
  return best;
#else
  return Isa::baseline;
#endif
}

} // namespace

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

const char* isa_name() {
  switch (isa()) {
  case Isa::avx512:
    return "avx512";
  case Isa::avx2:
    return "avx2";
  default:
    return "default";
  }
}

bool multiplies_bfloat16() {
#if PYROMANCY_X86_ISAS
  static const bool has = isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
  return has;
#else
  return false;
#endif
}

} // namespace pyromancy
