#pragma once

#include "../dtype.h"

#ifndef PYROMANCY_X86_ISAS
#error "PYROMANCY_X86_ISAS must be 1 (kernels for AVX2 and AVX-512 too) or 0; see setup.py"
#endif

namespace pyromancy {

enum class Isa : int { baseline, avx2, avx512 };

// The instruction set that every kernel of this process uses: the best one that was compiled in
// and that the processor has, or a lower one that ATEN_CPU_CAPABILITY asks for.
Isa isa();

// Its name in ATen's vocabulary: "default", "avx2" or "avx512".
const char* isa_name();

// Whether float32 products may be taken of bfloat16, in the kernels that know how.
bool multiplies_bfloat16();

} // namespace pyromancy

// A kernel table holds one entry per dtype and exists once per instruction set, in a namespace
// named after it. DECLARE goes into the header that the kernels share with their host functions,
// SELECT into host functions only.
#if PYROMANCY_X86_ISAS
#define PYROMANCY_DECLARE_KERNELS(Table, name)                                                     \
  namespace baseline {                                                                             \
  extern const Table name[kDTypes];                                                                \
  }                                                                                                \
  namespace avx2 {                                                                                 \
  extern const Table name[kDTypes];                                                                \
  }                                                                                                \
  namespace avx512 {                                                                               \
  extern const Table name[kDTypes];                                                                \
  }
#define PYROMANCY_SELECT_KERNELS(name, dtype)                                                      \
  ((isa() == Isa::avx512 ? avx512::name                                                            \
    : isa() == Isa::avx2 ? avx2::name                                                              \
                         : baseline::name)[static_cast<int>(dtype)])
#else
#define PYROMANCY_DECLARE_KERNELS(Table, name)                                                     \
  namespace baseline {                                                                             \
  extern const Table name[kDTypes];                                                                \
  }
#define PYROMANCY_SELECT_KERNELS(name, dtype) (baseline::name[static_cast<int>(dtype)])
#endif
