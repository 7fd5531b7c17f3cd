#include "rule.h"

#include "host.h"
#include "rule_kernel.h"

namespace pyromancy::cuda {
namespace {

double count_on_host(const Tensor& count) {
  if (dtype_of("step", count) == DType::float64)
    return *static_cast<double*>(count.data_ptr()) += 1;
  return *static_cast<float*>(count.data_ptr()) += 1;
}

} // namespace

void apply_rule(const Rule& rule, const Operands& operands, const Target& target,
                const Tensor& gradient) {
  const Tensor& parameter = operands[target.tensor];
  const Context context(parameter);
  const bool counts = counts_steps(rule.kind);
  const Tensor* const count = counts ? &operands[target.slots[0]] : nullptr;
  const bool counts_here = count && is_on_host(*count);
  RuleArgs args{dtype_of("parameter", parameter),
                parameter.numel(),
                LearnStep(rule, counts_here ? count_on_host(*count) : 1),
                nullptr,
                gradient.data_ptr(),
                parameter.data_ptr(),
                {}};
  for (int64_t s = counts; s < kSlots; ++s)
    if (const Tensor* slot = operands.find(target.slots[s]))
      args.slots[s] = slot->data_ptr();
  std::optional<Tensor> counted; // lives until the kernel that reads it is launched
  if (count && !counts_here) {
    const auto size = static_cast<int64_t>(sizeof(LearnStep) / count->element_size());
    counted = allocate(Sizes(&size, 1), *count);
    const auto there = static_cast<LearnStep*>(counted->data_ptr());
    launch_count({dtype_of("step", *count), count->data_ptr(), rule, there}, context.stream);
    args.counted = there;
  }
  launch_rule(args, context.stream);
}

} // namespace pyromancy::cuda
