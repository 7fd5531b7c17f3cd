#include "secant_kernel.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "host.h"

namespace pyromancy {
namespace {

// Positions of one row that are summed in one piece of work: shapes alone decide how a sum is cut,
// so that results do not depend on the number of threads.
constexpr int64_t kChunk = 65536;

void secant_products_(Tensor out, const Tensor& gradient, const Tensor& before,
                      const Tensor& step) {
  const DType dtype = check_secant_products(out, gradient, before, step);
  const Sizes sizes = gradient.sizes();
  STD_TORCH_CHECK(sizes.size() <= kMaxDims, "gradient must have at most ", kMaxDims,
                  " dimensions, got ", sizes.size());
  SecantArgs args;
  args.layout =
      make_layout(sizes.data(), sizes.size(), true,
                  {gradient.strides().data(), before.strides().data(), step.strides().data()});
  args.gradient = gradient.data_ptr();
  args.before = before.data_ptr();
  args.step = step.data_ptr();
  args.chunk = kChunk;
  args.chunks = std::max<int64_t>(1, ceil_div(args.layout.size, kChunk));
  const int64_t rows = args.layout.rows, items = rows * args.chunks;
  const SecantKernels& kernels = PYROMANCY_SELECT_KERNELS(secant_kernels, dtype);
  Scratch scratch(items * kSecantProducts * int64_t(sizeof(double)));
  double* const sums = scratch.as<double>();
  const int64_t grain =
      std::max<int64_t>(1, kGrain / std::clamp<int64_t>(args.layout.size, 1, kChunk));
  torch::stable::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
    kernels.products(args, sums, begin, end);
  });
  double* const to = data<double>(out);
  for (int k = 0; k < kSecantProducts; ++k)
    for (int64_t row = 0; row < rows; ++row) {
      double total = 0;
      for (int64_t c = 0; c < args.chunks; ++c)
        total += sums[(row * args.chunks + c) * kSecantProducts + k];
      to[k * rows + row] = total;
    }
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CPU, m) {
  m.impl("secant_products_", TORCH_BOX(&secant_products_));
}

} // namespace
} // namespace pyromancy
