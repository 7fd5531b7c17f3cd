#pragma once

#include "../layout.h"
#include "isa.h"

namespace pyromancy {

// Inner products of a step s, of the gradients g at its end and h at its start, and of y = g - h.
enum SecantProduct : int { kGG, kGS, kGY, kHH, kHS, kHY, kSS, kSY, kYY, kSecantProducts };

struct SecantArgs {
  Layout layout; // of gradient, before and step
  const void* gradient;
  const void* before;
  const void* step;
  // Work is cut into items [row, chunk]: `chunk` positions of one row, `chunks` of them to a row.
  int64_t chunk, chunks;
};

struct SecantKernels {
  // The products of items [begin, end): sums [item, kSecantProducts].
  void (*products)(const SecantArgs& args, double* sums, int64_t begin, int64_t end);
};

PYROMANCY_DECLARE_KERNELS(SecantKernels, secant_kernels)

} // namespace pyromancy
