#pragma once

// What a plan does from its first batch to its last, on every device.

#include "plan.h"

namespace pyromancy {

// One batch: pass(first, steps, resume, learn) takes so many E-steps from step `first` on, of which
// the first comes after the sweep, and learns from their errors.
template <class Pass>
void run_batch(Plan& plan, Pass pass) {
  const auto run = [&](int64_t first, int64_t steps, Learn learn) {
    pass(first, steps, plan.method.resume || first > 0, learn);
    if (learn != Learn::never)
      for (Rule& rule : plan.rules)
        rule.fresh = false;
  };
  const bool at_the_end = plan.learning == Learning::at_the_end;
  if (plan.learning == Learning::never || at_the_end || plan.steps == 0)
    return run(0, plan.steps, at_the_end ? Learn::after : Learn::never);
  for (int64_t t = 0; t < plan.steps; ++t)
    run(t, 1, plan.learning == Learning::with_each_step ? Learn::before : Learn::after);
}

// One batch, or those of an order, `rows` in the host's memory: before each of these
// gather(first, batch) sets its states from the rows from `first` on.
template <class Gather, class Pass>
void run_batches(Plan& plan, const Operands& operands, const int64_t* rows, Gather gather,
                 Pass pass) {
  const Tensor* order = operands.find(plan.order);
  if (!order)
    return run_batch(plan, pass);
  const int64_t batch = operands[plan.nodes.front().state].size(0);
  for (int64_t i = 0; i < order->numel(); ++i)
    for (const PlanNode& node : plan.nodes)
      if (const Tensor* data = operands.find(node.data))
        STD_TORCH_CHECK(rows[i] >= 0 && rows[i] < data->size(0), "order[", i,
                        "] must be from 0 to ", data->size(0) - 1, ", got ", rows[i]);
  for (int64_t first = 0; batch && first < order->numel(); first += batch) {
    gather(first, batch);
    run_batch(plan, pass);
  }
}

} // namespace pyromancy
