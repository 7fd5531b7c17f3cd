#include "../batches.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "chain.h"
#include "library.h"
#include "rule.h"

namespace pyromancy::cuda {
namespace {

Tensor call(const char* name, const char* overload, const Tensor& a) {
  StableIValue stack[] = {torch::stable::detail::from(a)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

MaybeTensor maybe(const Tensor* t) {
  return t ? MaybeTensor(*t) : MaybeTensor();
}

// The same memory, with one dimension where there is none.
Tensor as_vector(const Tensor& t) {
  return t.dim() == 0 ? torch::stable::unsqueeze(t, 0) : t;
}

// Of a law, a node's weight included, but where it is a matrix.
MaybeTensor rate_of(const PlanNode& node, const Operands& operands) {
  const Tensor* theta = has_scale(node.law) ? operands.find(node.theta) : nullptr;
  const bool weighted = is_elementwise(node.law) || is_rowwise(node.law);
  if (!weighted || (!theta && node.weight == 1))
    return {};
  const Tensor& state = operands[node.state];
  const int64_t n = state.size(1);
  MaybeTensor result;
  if (theta)
    result = as_vector(call("aten::exp", "", call("aten::neg", "", *theta)));
  if (result && node.weight == 1 && result->size(0) == n)
    return result;
  const Tensor weights = allocate(Sizes(&n, 1), state);
  torch::stable::fill_(weights, node.weight);
  return result ? product(weights, *result) : weights;
}

// W^T P W, given P's diagonal
Tensor gram_of(const Tensor& weight, const MaybeTensor& precision) {
  const int64_t n = weight.size(1), sizes[] = {n, n};
  const Tensor gram = allocate(Sizes(sizes, 2), weight);
  Tensor weighed = weight;
  if (precision)
    weighed = product(torch::stable::unsqueeze(*precision, 1), weight);
  multiply(gram, transposed(weight), weighed);
  return gram;
}

// The path along edges that starts at a node.
class Path {
public:
  Path(const Plan& plan, const Operands& operands, int64_t first)
      : plan_(plan), operands_(operands) {
    if (const Tensor* prior = operands.find(plan.nodes[first].prior))
      chain_.prior = *prior;
    for (int64_t place = first;;) {
      add(place);
      const int64_t out = plan.nodes[place].out;
      if (out == kNothing)
        break;
      const PlanEdge& edge = plan.edges[out];
      edges_.push_back(out);
      const Tensor& weight = operands[edge.weight];
      chain_.weights.push_back(scaled(edge.transposed ? transposed(weight) : weight, edge.scale));
      const Tensor* bias = operands.find(edge.bias);
      chain_.biases.push_back(bias ? MaybeTensor(scaled(*bias, edge.bias_scale)) : MaybeTensor());
      chain_.before.push_back(edge.before);
      chain_.after.push_back(edge.after);
      chain_.skips.push_back(edge.skip);
      place = edge.target;
    }
  }

  // Some E-steps from step `first` on, and what weights learn of them.
  void pass(int64_t first, int64_t steps, bool resume, Learn learn) const {
    Inference inference = descent(first == 0, steps, resume);
    const bool has_all = places_.size() == plan_.nodes.size();
    MaybeTensor energies;
    if (const Tensor* all = operands_.find(plan_.energies)) {
      Tensor of_all = *all;
      energies = torch::stable::narrow(of_all, 0, first, steps);
      const int64_t sizes[] = {steps, static_cast<int64_t>(places_.size()), all->size(2)};
      inference.energies = has_all ? energies : allocate(Sizes(sizes, 3), *all);
    }
    std::vector<Moved> moved;
    std::vector<Gradient> wanted;
    if (learn != Learn::never)
      wanted = gradients(moved);
    run_chain(chain_, inference, learn, wanted);
    for (const auto& [target, gradient] : moved)
      apply_rule(plan_.rules[target->rule], operands_, *target, gradient);
    for (size_t l = 0; energies && !has_all && l < places_.size(); ++l) {
      Tensor to = torch::stable::select(*energies, 1, places_[l]);
      torch::stable::copy_(to,
                           torch::stable::select(*inference.energies, 1, static_cast<int64_t>(l)));
    }
  }

private:
  struct Moved {
    const Target* target;
    Tensor gradient;
  };

  void add(int64_t place) {
    const PlanNode& node = plan_.nodes[place];
    places_.push_back(place);
    chain_.states.push_back(operands_[node.state]);
    chain_.laws.push_back(node.law);
    chain_.law_parameters.push_back(node.law_parameter);
    chain_.energy_weights.push_back(node.weight);
    chain_.expressions.push_back(node.law == Law::expression ? &node.expression : nullptr);
    chain_.rates.push_back(rate_of(node, operands_));
    const Tensor* const theta = node.law == Law::expression ? operands_.find(node.theta) : nullptr;
    chain_.thetas.push_back(theta ? MaybeTensor(as_vector(*theta)) : MaybeTensor());
    chain_.matrices.push_back(node.law == Law::full_gaussian ? maybe(operands_.find(node.theta))
                                                             : MaybeTensor());
    chain_.sample_weights.push_back(maybe(operands_.find(node.sample_weights)));
  }

  Inference descent(bool sweeps, int64_t steps, bool resume) const {
    Inference inference{{},
                        {},
                        {},
                        {},
                        steps,
                        plan_.method.lr,
                        plan_.method.momentum,
                        plan_.method.dampening,
                        plan_.method.nesterov,
                        resume,
                        {},
                        plan_.precision};
    for (int64_t place : places_) {
      const PlanNode& node = plan_.nodes[place];
      inference.free.push_back(node.free);
      inference.swept.push_back(sweeps && node.swept);
      inference.velocities.push_back(maybe(operands_.find(node.velocity)));
    }
    for (size_t l = 0; l < edges_.size(); ++l)
      inference.grams.push_back(plan_.edges[edges_[l]].gram
                                    ? MaybeTensor(gram_of(chain_.weights[l], chain_.rates[l + 1]))
                                    : MaybeTensor());
    return inference;
  }

  // What this path's targets want: rules that move parameters take gradients from elsewhere.
  std::vector<Gradient> gradients(std::vector<Moved>& moved) const {
    std::vector<Gradient> wanted;
    for (const Target& target : plan_.targets) {
      const int64_t owner =
          target.what == Learned::logvar ? target.owner : plan_.edges[target.owner].target;
      const auto at = std::find(places_.begin(), places_.end(), owner);
      if (at == places_.end())
        continue;
      Tensor to = operands_[target.tensor];
      if (plan_.rules[target.rule].kind != RuleKind::gradient) {
        to = allocate(to.sizes(), to);
        moved.push_back({&target, to});
      }
      const PlanNode& node = plan_.nodes[owner];
      Gradient gradient{target.what, at - places_.begin(), node.weight * normalizer(node.law),
                        as_vector(to)};
      if (target.what != Learned::logvar) {
        const PlanEdge& edge = plan_.edges[target.owner];
        gradient.scale = target.what == Learned::weight ? edge.scale : edge.bias_scale;
        if (target.what == Learned::weight && edge.transposed)
          gradient.to = transposed(to);
      }
      wanted.push_back(gradient);
    }
    return wanted;
  }

  const Plan& plan_;
  const Operands& operands_;
  ChainOperands chain_;
  std::vector<int64_t> places_, edges_; // in the plan
};

// Rows of data into the states of one batch.
void gather(const Plan& plan, const Operands& operands, const Tensor& rows) {
  for (const PlanNode& node : plan.nodes)
    if (const Tensor* data = operands.find(node.data)) {
      using torch::stable::detail::from;
      StableIValue stack[] = {from(*data), from(int64_t{0}), from(rows),
                              from(operands[node.state])};
      TORCH_ERROR_CODE_CHECK(
          torch_call_dispatcher("aten::index_select", "out", stack, TORCH_ABI_VERSION));
      (void)torch::stable::detail::to<Tensor>(stack[0]); // another handle of the state
    }
}

void run_plan_(const Tensors& written, const Tensors& read, const std::vector<int64_t>& ints,
               const std::vector<double>& numbers) {
  const Operands operands(written, read);
  Plan plan = decode(ints, numbers, operands);
  join_chains(plan);
  STD_TORCH_CHECK(!plan.method.has_stepper && plan.method.update_order == UpdateOrder::together &&
                      !plan.method.fixed,
                  "E-steps other than plain descent are the compiled CPU kernels' alone in a plan");
  for (const PlanNode& node : plan.nodes) {
    STD_TORCH_CHECK(node.way.known == kNothing, "masks are the CPU's alone in a plan");
    if (const Tensor* data = operands.find(node.data))
      STD_TORCH_CHECK(!holds_classes(*data), "data must be rows of states here, got classes");
  }
  const NoGrad no_grad;
  const Tensor& first_state = operands[plan.nodes.front().state];
  // An order is looked at here, which waits for a device that has it, and goes by rows there.
  MaybeTensor here, there;
  if (const Tensor* order = operands.find(plan.order)) {
    here = is_on_host(*order) ? *order
                              : torch::stable::to(*order, {torch::headeronly::DeviceType::CPU});
    there = is_on_host(*order) ? torch::stable::to(*order, first_state.device()) : *order;
  }
  run_batches(
      plan, operands, here ? static_cast<const int64_t*>(here->data_ptr()) : nullptr,
      [&](int64_t first, int64_t batch) {
        gather(plan, operands, torch::stable::narrow(*there, 0, first, batch));
      },
      [&](int64_t first, int64_t steps, bool resume, Learn learn) {
        for (size_t l = 0; l < plan.nodes.size(); ++l)
          if (plan.nodes[l].in == kNothing)
            Path(plan, operands, static_cast<int64_t>(l)).pass(first, steps, resume, learn);
      });
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CUDA, m) {
  m.impl("run_plan_", TORCH_BOX(&run_plan_));
}

} // namespace
} // namespace pyromancy::cuda
