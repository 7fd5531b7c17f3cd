#include "plan.h"

#include <algorithm>
#include <set>
#include <tuple>

#include "methods/methods.h"

namespace pyromancy {
namespace {

// Takes one entry after another, each of which must lie within its bounds.
class Reader {
public:
  Reader(const std::vector<int64_t>& plan, const std::vector<double>& numbers,
         const Operands& operands)
      : plan_(plan), numbers_(numbers), operands_(operands) {}

  int64_t number(const char* what, int64_t least, int64_t end) {
    STD_TORCH_CHECK(at_ < plan_.size(), "plan ends before its ", what);
    const int64_t value = plan_[at_++];
    STD_TORCH_CHECK(value >= least && value < end, "plan[", at_ - 1, "], the ", what,
                    ", must be from ", least, " to ", end - 1, ", got ", value);
    return value;
  }
  bool flag(const char* what) {
    return number(what, 0, 2) != 0;
  }
  int64_t count(const char* what) {
    return number(what, 0, static_cast<int64_t>(plan_.size()) + 1);
  }
  int64_t tensor(const char* what) {
    return number(what, 0, operands_.size());
  }
  int64_t written(const char* what) {
    return number(what, 0, operands_.writable());
  }
  int64_t maybe_tensor(const char* what) {
    return number(what, kNothing, operands_.size());
  }
  int64_t maybe_written(const char* what) {
    return number(what, kNothing, operands_.writable());
  }
  double real(const char* what) {
    STD_TORCH_CHECK(real_at_ < numbers_.size(), "numbers end before the ", what);
    const double value = numbers_[real_at_++];
    check_finite(what, value);
    return value;
  }
  void finish() const {
    STD_TORCH_CHECK(at_ == plan_.size(), "plan must have ", at_, " entries, got ", plan_.size());
    STD_TORCH_CHECK(real_at_ == numbers_.size(), "numbers must have ", real_at_, " entries, got ",
                    numbers_.size());
  }

private:
  const std::vector<int64_t>& plan_;
  const std::vector<double>& numbers_;
  const Operands& operands_;
  size_t at_ = 0, real_at_ = 0;
};

Method read_method(Reader& read) {
  Method method{};
  method.outcome = method.progress = kNothing;
  const int64_t kind = read.number("method", 0, kStepperKinds + 1);
  method.has_stepper = kind > 0;
  if (!method.has_stepper) {
    method.nesterov = read.flag("nesterov");
    method.resume = read.flag("resume");
    method.settle = read.flag("settle");
    method.update_order = static_cast<UpdateOrder>(read.number("update order", 0, kUpdateOrders));
    method.first = read.number("first step", 0, INT64_MAX);
    method.fixed = read.flag("fixed");
    for (double* number : {&method.lr, &method.momentum, &method.dampening})
      *number = read.real("number of a method");
    return method;
  }
  Stepper& stepper = method.stepper;
  stepper.kind = static_cast<StepperKind>(kind - 1);
  stepper.errors = read.flag("errors");
  stepper.option = read.flag("option");
  method.resume = read.flag("resume");
  method.outcome = read.maybe_written("outcome");
  method.progress = read.maybe_written("progress");
  for (double* number :
       {&stepper.lr, &stepper.first, &stepper.second, &stepper.third, &stepper.tol}) {
    *number = read.real("number of a method");
    const bool any =
        stepper.kind == StepperKind::momentum && number == &stepper.second; // a dampening
    STD_TORCH_CHECK(any || *number >= 0, "numbers of a method must not be negative, got ", *number);
  }
  const double pairs = pairs_of(stepper);
  STD_TORCH_CHECK(stepper.kind != StepperKind::lbfgs || (pairs == std::floor(pairs) && pairs >= 1 &&
                                                         pairs <= static_cast<double>(kMostPairs)),
                  "memory must be a whole number from 1 to ", kMostPairs, ", got ", pairs);
  return method;
}

Expression read_expression(Reader& read) {
  Expression of{};
  of.has_theta = read.flag("theta of an expression");
  of.constants = static_cast<int>(read.number("number of constants", 0, kMostConstants + 1));
  of.count = static_cast<int>(read.number("number of instructions", 0, kMostInstructions + 1));
  of.slopes = static_cast<int>(read.number("number of instructions for slopes", 0, of.count + 1));
  for (int i = 0; i < of.count; ++i) {
    Instruction& to = of.code[i];
    to.op = static_cast<Op>(read.number("instruction", 0, kOps));
    for (uint8_t* value : {&to.a, &to.b, &to.c})
      *value = static_cast<uint8_t>(read.number("value of an instruction", 0, of.first() + i));
  }
  of.deviation = static_cast<int>(read.number("value of a deviation", 0, of.first() + of.count));
  for (int* value : {&of.pull, &of.push})
    *value = static_cast<int>(read.number("value of a slope", 0, of.first() + of.slopes));
  if (of.has_theta)
    of.moment = static_cast<int>(read.number("value of a moment", 0, of.first() + of.count));
  for (int i = 0; i < of.constants; ++i)
    of.numbers[i] = read.real("constant");
  return of;
}

NodeStep read_way(Reader& read) {
  NodeStep way;
  way.known = read.maybe_tensor("mask");
  const bool has_low = read.flag("low"), has_high = read.flag("high");
  way.relative_rate = read.real("relative rate");
  way.shrink = read.real("shrink");
  way.towards = read.real("towards");
  const double low = read.real("low"), high = read.real("high");
  if (has_low)
    way.low = low;
  if (has_high)
    way.high = high;
  return way;
}

// Rates of nodes, schedules, norms and constraints are of steps at a rate, constraints of those
// that move states; masks are of any.
void check_ways(const Plan& plan, const Operands& operands) {
  const Stepper& stepper = plan.method.stepper;
  const bool rated = plan.method.has_stepper && is_rated(stepper);
  STD_TORCH_CHECK(rated || (plan.max_norm == 0 && plan.factors.empty()),
                  "max_norm and factors need steps at a rate, without a velocity");
  STD_TORCH_CHECK(plan.max_norm >= 0, "max_norm must not be negative, got ", plan.max_norm);
  for (double factor : plan.factors)
    STD_TORCH_CHECK(factor >= 0, "factors must not be negative, got ", factor);
  for (size_t l = 0; l < plan.nodes.size(); ++l) {
    const NodeStep& way = plan.nodes[l].way;
    STD_TORCH_CHECK((way.relative_rate == 1 && !way.constrains()) || (rated && plan.nodes[l].free),
                    "way of node ", l,
                    " needs steps at a rate, without a velocity, and a free node");
    STD_TORCH_CHECK(!way.constrains() || !stepper.errors, "constraints of node ", l,
                    " need steps that move states");
    STD_TORCH_CHECK(way.relative_rate >= 0 && way.shrink >= 0, "relative rate and shrink of node ",
                    l, " must not be negative, got ", way.relative_rate, " and ", way.shrink);
    STD_TORCH_CHECK(way.low <= way.high, "low of node ", l, " must not be above its high, got ",
                    way.low, " and ", way.high);
    const Tensor* known = operands.find(way.known);
    if (!known)
      continue;
    STD_TORCH_CHECK(plan.nodes[l].free, "mask of node ", l, " needs a free node");
    const Tensor& state = operands[plan.nodes[l].state];
    STD_TORCH_CHECK(
        known->scalar_type() == torch::headeronly::ScalarType::Bool && known->dim() == 2 &&
            (known->size(0) == 1 || known->size(0) == state.size(0)) &&
            known->size(1) == state.size(1),
        "mask of node ", l, " must be bool of shape (1, ", state.size(1), ") or (", state.size(0),
        ", ", state.size(1), "), got ", torch::headeronly::toString(known->scalar_type()), " of ",
        to_string(known->sizes()));
    STD_TORCH_CHECK(device_key(*known) == device_key(state), "mask of node ", l,
                    " must be on the device of the states");
  }
}

// What is looked at only once may lie on the CPU for plans of other devices.
void check_near(Name name, const Tensor& t, const Tensor& state) {
  int32_t type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  STD_TORCH_CHECK(type == aoti_torch_device_type_cpu() || device_key(t) == device_key(state), name,
                  " must be on the CPU or on the device of the states, got another");
}

// Energies are of the predictions of states as they are, which nobody finds where these stay.
void check_fixed(const Plan& plan) {
  STD_TORCH_CHECK(plan.method.update_order == UpdateOrder::together,
                  "fixed needs states that move at once");
  STD_TORCH_CHECK(plan.learning == Learning::never || plan.learning == Learning::at_the_end,
                  "weights must learn at the end, not in every step, where predictions are fixed");
  STD_TORCH_CHECK(plan.energies == kNothing, "energies must not be recorded, as fixed predictions "
                                             "are not those of the states");
  for (size_t e = 0; e < plan.edges.size(); ++e)
    STD_TORCH_CHECK(!plan.edges[e].gram, "gram of edge ", e, " needs predictions that move");
  for (const PlanNode& node : plan.nodes) {
    STD_TORCH_CHECK(node.velocity == kNothing, "velocities need predictions that move");
    STD_TORCH_CHECK(
        !plan.method.resume || !node.free || node.kept != kNothing,
        "resume needs the first states, kept of all free nodes, where predictions are fixed");
  }
}

// What moves in error coordinates is the error of the one prediction that every free node has,
// whose law must not care where z and mu are, but how far apart.
void check_method(const Plan& plan, const Operands& operands, int64_t batch) {
  const Method& method = plan.method;
  if (method.update_order != UpdateOrder::together) {
    STD_TORCH_CHECK(plan.learning == Learning::never || plan.learning == Learning::at_the_end,
                    "weights must learn at the end, not in every step, where states take turns");
    for (size_t e = 0; e < plan.edges.size(); ++e)
      STD_TORCH_CHECK(!plan.edges[e].gram, "gram of edge ", e, " needs states that move at once");
    for (const PlanNode& node : plan.nodes)
      STD_TORCH_CHECK(node.velocity == kNothing, "velocities need states that move at once");
  }
  if (method.fixed)
    check_fixed(plan);
  for (const PlanNode& node : plan.nodes)
    STD_TORCH_CHECK(node.kept == kNothing || method.has_stepper || method.fixed,
                    "kept of a node needs a stepper, or fixed predictions");
  if (!method.has_stepper)
    return;
  STD_TORCH_CHECK(
      plan.learning == Learning::never || plan.learning == Learning::at_the_end,
      "weights must learn at the end, not in every step, of a method but plain descent");
  for (size_t e = 0; e < plan.edges.size(); ++e)
    STD_TORCH_CHECK(!plan.edges[e].gram, "gram of edge ", e, " needs plain descent");
  Stepper stepper = method.stepper;
  complete(stepper);
  for (size_t e = 0; stepper.errors && e < plan.edges.size(); ++e)
    STD_TORCH_CHECK(plan.edges[e].source < plan.edges[e].target,
                    "errors move where every edge leads "
                    "to a later node, got ",
                    plan.edges[e].source, " -> ", plan.edges[e].target);
  STD_TORCH_CHECK(stepper.kind != StepperKind::sequential || !stepper.errors,
                  "errors must not be what moves where states take turns");
  for (size_t l = 0; l < plan.nodes.size(); ++l) {
    const PlanNode& node = plan.nodes[l];
    const bool goes_on = node.free && method.progress != kNothing;
    STD_TORCH_CHECK((node.velocity != kNothing) == goes_on &&
                        (node.kept != kNothing) == (goes_on && stepper.keeps),
                    "node ", l, " must have a velocity, and what is kept, where a method goes on, ",
                    "and only there");
    const bool measured = stepper.errors && stepper.measures;
    STD_TORCH_CHECK(!measured || !node.free || node.law != Law::full_gaussian ||
                        (node.factor != kNothing && node.way.known == kNothing),
                    "errors of node ", l, " need its factor to be measured, and no mask");
    STD_TORCH_CHECK(!stepper.errors || !node.free || moves_by_errors(node),
                    "errors move where the law of a free node is one of its distance from the "
                    "prediction");
  }
  STD_TORCH_CHECK(!method.resume || method.progress != kNothing, "resume needs a progress");
  if (const Tensor* progress = operands.find(method.progress)) {
    check_contiguous("progress", *progress);
    check_near("progress", *progress, operands[plan.nodes.front().state]);
    STD_TORCH_CHECK(dtype_of("progress", *progress) == DType::float64 && progress->dim() == 2 &&
                        progress->size(0) == batch && progress->size(1) == kProgress,
                    "progress must be float64 of shape (", batch, ", ", kProgress, "), got ",
                    to_string(progress->sizes()));
    STD_TORCH_CHECK(plan.order == kNothing, "progress must not be asked for over many batches");
  }
  if (const Tensor* outcome = operands.find(method.outcome)) {
    check_like("outcome", *outcome, "states", operands[plan.nodes.front().state]);
    check_contiguous("outcome", *outcome);
    STD_TORCH_CHECK(outcome->dim() == 2 && outcome->size(0) == batch && outcome->size(1) == 2,
                    "outcome must have shape (", batch, ", 2), got ", to_string(outcome->sizes()));
    STD_TORCH_CHECK(plan.order == kNothing, "outcome must not be asked for over many batches");
  }
}

// What edges have in common.
void join(Plan& plan) {
  const auto& edges = plan.edges;
  for (PlanNode& node : plan.nodes)
    node.predicted = node.prior != kNothing;
  std::vector<const PlanEdge*> into(plan.nodes.size());
  for (size_t e = 0; e < edges.size(); ++e) {
    const PlanEdge& edge = edges[e];
    plan.nodes[edge.target].predicted = true;
    STD_TORCH_CHECK(edge.weight != kNothing ||
                        ((edge.scale == 1 || passes(edge)) && !edge.transposed && !edge.gram),
                    "edge ", e, " has no weight, and so no scale or form of it");
    const PlanEdge*& first = into[edge.target];
    if (!first)
      first = &edge;
    STD_TORCH_CHECK(are_same(first->after, edge.after), "edge ", e,
                    " must have the activation after the product that others to node ", edge.target,
                    " have");
  }
}

void check_width(Name name, const Tensor& t, int64_t n) {
  STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == n, name, " must have shape (", n, ",), got ",
                  to_string(t.sizes()));
}

void check_node(const Plan& plan, const Operands& operands, int64_t l) {
  const PlanNode& node = plan.nodes[l];
  const Tensor& first = operands[plan.nodes.front().state];
  const Tensor& state = operands[node.state];
  const Name name{"state of node", l}, first_name{"state of node", 0};
  STD_TORCH_CHECK(state.dim() == 2, name, " must have shape (B, n), got ",
                  to_string(state.sizes()));
  check_like(name, state, first_name, first);
  const int64_t batch = first.size(0), n = state.size(1);
  STD_TORCH_CHECK(state.size(0) == batch, name, " must have shape (", batch, ", ", n, "), got ",
                  to_string(state.sizes()));
  check_contiguous(name, state);
  STD_TORCH_CHECK(!node.free || node.state < operands.writable(), name,
                  " is moved, and must be among the tensors written");
  const bool predicted = node.predicted;
  STD_TORCH_CHECK(predicted == (node.law != Law::none), "node ", l,
                  " must have a law where it has a prediction, and only there");
  STD_TORCH_CHECK(!node.swept || (node.free && predicted), "node ", l,
                  " must be free and predicted to start at its prediction");
  STD_TORCH_CHECK(node.law != Law::categorical || (!node.free && node.theta == kNothing), "node ",
                  l, " must be clamped and have no theta, as its law is categorical");
  if (const Tensor* theta = operands.find(node.theta)) {
    const Name theta_name{"theta of node", l};
    check_like(theta_name, *theta, first_name, first);
    STD_TORCH_CHECK(takes_theta(node) || node.law == Law::full_gaussian, theta_name,
                    " needs a law that has one");
    const bool of_elements = node.law == Law::expression && theta->dim() == 2;
    if (node.law == Law::full_gaussian)
      check_square(theta_name, *theta, n);
    else if (of_elements)
      check_same(theta_name, *theta, name, state);
    else
      STD_TORCH_CHECK(theta->dim() <= 1 && (theta->numel() == n || theta->numel() == 1), theta_name,
                      " must have shape (", n, ",) or (1,) or (), got ", to_string(theta->sizes()));
  } else {
    STD_TORCH_CHECK(node.law != Law::full_gaussian, "theta of node ", l, " must be its precision");
    STD_TORCH_CHECK(node.law != Law::expression || !node.expression.has_theta, "theta of node ", l,
                    " must be there, as its expression takes one");
  }
  if (const Tensor* factor = operands.find(node.factor)) {
    const Name factor_name{"factor of node", l};
    check_like(factor_name, *factor, first_name, first);
    check_contiguous(factor_name, *factor);
    STD_TORCH_CHECK(node.free && node.law == Law::full_gaussian, factor_name,
                    " needs a free node of a full precision");
    STD_TORCH_CHECK(
        factor->dim() == 3 && factor->size(0) == 2 && factor->size(1) == n && factor->size(2) == n,
        factor_name, " must have shape (2, ", n, ", ", n, "), got ", to_string(factor->sizes()));
  }
  STD_TORCH_CHECK(!has_parameter(node.law) || node.law_parameter > 0,
                  "parameter of the law of node ", l, " must be positive, got ",
                  node.law_parameter);
  if (const Tensor* prior = operands.find(node.prior)) {
    const Name prior_name{"prior of node", l};
    check_like(prior_name, *prior, first_name, first);
    STD_TORCH_CHECK(prior->dim() == 2 && (prior->size(0) == 1 || prior->size(0) == batch) &&
                        prior->size(1) == n,
                    prior_name, " must have shape (1, ", n, ") or (", batch, ", ", n, "), got ",
                    to_string(prior->sizes()));
  }
  if (const Tensor* velocity = operands.find(node.velocity)) {
    STD_TORCH_CHECK(node.free, "node ", l, " must be free to have a velocity");
    check_same({"velocity of node", l}, *velocity, name, state);
    check_contiguous({"velocity of node", l}, *velocity);
  }
  if (const Tensor* kept = operands.find(node.kept)) {
    STD_TORCH_CHECK(node.free, "node ", l, " must be free to have kept anything");
    const Name kept_name{"kept of node", l};
    if (plan.method.has_stepper && plan.method.stepper.kind == StepperKind::lbfgs) {
      const int64_t vectors = 1 + 2 * static_cast<int64_t>(pairs_of(plan.method.stepper));
      check_like(kept_name, *kept, name, state);
      STD_TORCH_CHECK(kept->dim() == 3 && kept->size(0) == vectors && kept->size(1) == batch &&
                          kept->size(2) == n,
                      kept_name, " must have shape (", vectors, ", ", batch, ", ", n, "), got ",
                      to_string(kept->sizes()));
    } else {
      check_same(kept_name, *kept, name, state);
    }
    check_contiguous(kept_name, *kept);
  }
  if (const Tensor* data = operands.find(node.data)) {
    const Name data_name{"data of node", l};
    if (node.law == Law::categorical && holds_classes(*data)) {
      STD_TORCH_CHECK(data->dim() == 1 && data->is_contiguous() &&
                          device_key(*data) == device_key(first),
                      data_name,
                      " must be contiguous classes of shape (N,) on the device of the "
                      "states, got ",
                      to_string(data->sizes()));
    } else {
      check_like(data_name, *data, first_name, first);
      STD_TORCH_CHECK(data->dim() == 2 && data->size(1) == n && data->is_contiguous(), data_name,
                      " must be contiguous of shape (N, ", n, "), got ", to_string(data->sizes()));
    }
    STD_TORCH_CHECK(plan.order != kNothing, data_name, " needs an order");
    STD_TORCH_CHECK(node.state < operands.writable(), name,
                    " is set from data, and must be among the tensors written");
  }
  if (const Tensor* weights = operands.find(node.sample_weights)) {
    const Name weights_name{"sample weights of node", l};
    check_like(weights_name, *weights, first_name, first);
    STD_TORCH_CHECK(predicted, weights_name, " need a law");
    check_width(weights_name, *weights, batch);
  }
}

void check_edge(const Plan& plan, const Operands& operands, int64_t e) {
  const PlanEdge& edge = plan.edges[e];
  const PlanNode &source = plan.nodes[edge.source], &target = plan.nodes[edge.target];
  const Tensor& first = operands[plan.nodes.front().state];
  const Name first_name{"state of node", 0};
  const int64_t whole = operands[source.state].size(1), out = operands[target.state].size(1);
  int64_t in = passes(edge) ? out : whole; // columns that it takes
  if (const Tensor* of = operands.find(edge.weight)) {
    const Tensor& weight = *of;
    check_like({"weight of edge", e}, weight, first_name, first);
    if (edge.first != kNothing && weight.dim() == 2)
      in = weight.size(!edge.transposed);
    const int64_t rows = edge.transposed ? in : out, columns = edge.transposed ? out : in;
    STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == rows && weight.size(1) == columns,
                    Name("weight of edge", e), " must have shape (", rows, ", ", columns, "), got ",
                    to_string(weight.sizes()));
  }
  STD_TORCH_CHECK(
      (edge.weight == kNothing && !passes(edge)) ||
          (edge.first == kNothing ? in == whole : in <= whole && edge.first <= whole - in),
      "edge ", e, " takes ", in, " columns from ", edge.first == kNothing ? 0 : edge.first,
      " on, of ", whole);
  if (const Tensor* mask = operands.find(edge.mask)) {
    STD_TORCH_CHECK(edge.weight != kNothing, "mask of edge ", e, " needs a weight");
    check_same({"mask of edge", e}, *mask, {"weight of edge", e}, operands[edge.weight]);
  }
  if (const Tensor* bias = operands.find(edge.bias)) {
    check_like({"bias of edge", e}, *bias, first_name, first);
    check_width({"bias of edge", e}, *bias, out);
  }
  STD_TORCH_CHECK(edge.skip == 0 || whole == out, "skip of edge ", e,
                  " needs nodes of one width, got ", whole, " and ", out);
  STD_TORCH_CHECK(target.law != Law::categorical || edge.after.kind == Activation::identity,
                  "edge ", e, " must have no activation after the product: it makes logits");
  const auto is_alone = [&] {
    for (const PlanEdge& other : plan.edges)
      if (&other != &edge && (other.source == edge.source || other.target == edge.target))
        return false;
    return target.prior == kNothing;
  };
  STD_TORCH_CHECK(!target.swept || !edge.sweeps || edge.source < edge.target, "node ", edge.target,
                  " starts at its prediction, and edge ", e,
                  " must lead to it from an earlier one, got ", edge.source);
  const auto sweeps = [&](const PlanEdge& other) {
    return other.sweeps && other.target == edge.target;
  };
  STD_TORCH_CHECK(edge.sweeps || !plan.method.has_stepper || !plan.method.stepper.errors, "edge ",
                  e, " must sweep, as errors move");
  STD_TORCH_CHECK(std::any_of(plan.edges.begin(), plan.edges.end(), sweeps), "edge ", e,
                  " must sweep, or another to node ", edge.target);
  STD_TORCH_CHECK(!edge.gram || is_alone(), "gram of edge ", e,
                  " needs a source and a target without other edges, and no prior beside it");
  STD_TORCH_CHECK(!edge.gram ||
                      (source.free && !target.free && edge.after.kind == Activation::identity &&
                       edge.skip == 0 && target.law == Law::gaussian &&
                       target.sample_weights == kNothing && plan.energies == kNothing),
                  "gram of edge ", e,
                  " needs a free source, a clamped target without a matrix for its precision or "
                  "sample weights, no activation after the product, no skip, and no energies "
                  "recorded");
}

const char* noun(Learned what) {
  return what == Learned::weight ? "weight of edge"
         : what == Learned::bias ? "bias of edge"
                                 : "theta of node";
}

void check_target(const Plan& plan, const Operands& operands, size_t i) {
  const Target& target = plan.targets[i];
  const Rule& rule = plan.rules[target.rule];
  const bool of_node = target.what == Learned::logvar;
  const int64_t of = of_node                          ? plan.nodes[target.owner].theta
                     : target.what == Learned::weight ? plan.edges[target.owner].weight
                                                      : plan.edges[target.owner].bias;
  const Name name{noun(target.what), target.owner};
  STD_TORCH_CHECK(of != kNothing, name, " is to be learned, and there is none");
  STD_TORCH_CHECK(!of_node || takes_theta(plan.nodes[target.owner]), name,
                  " must be log-variances or log-scales to be learned");
  STD_TORCH_CHECK(!of_node || operands[of].dim() <= 1, name,
                  " must be the same for all samples to be learned");
  const Tensor &parameter = operands[of], &written = operands[target.tensor];
  const Name written_name{"targets", static_cast<int64_t>(i)};
  check_same(written_name, written, name, parameter);
  check_contiguous(written_name, written);
  STD_TORCH_CHECK((rule.kind == RuleKind::gradient) == (target.tensor != of), written_name,
                  " must be the parameter itself where a rule moves it, and another tensor where "
                  "its gradient is wanted");
  for (int64_t s = 0; s < kSlots; ++s) {
    if (target.slots[s] == kNothing)
      continue;
    const Tensor& slot = operands[target.slots[s]];
    if (counts_steps(rule.kind) && s == 0) {
      const DType dtype = dtype_of("step", slot);
      STD_TORCH_CHECK(slot.numel() == 1 && (dtype == DType::float32 || dtype == DType::float64),
                      "step of target ", i, " must be one float32 or float64 number, got shape ",
                      to_string(slot.sizes()));
      check_near({"step of target", static_cast<int64_t>(i)}, slot, parameter);
      continue;
    }
    check_same({"slot of target", static_cast<int64_t>(i)}, slot, written_name, written);
    check_contiguous({"slot of target", static_cast<int64_t>(i)}, slot);
  }
  const int64_t needed = slots_needed(rule);
  for (int64_t s = 0; s < needed; ++s)
    STD_TORCH_CHECK(target.slots[s] != kNothing, "target ", i, " needs ", needed, " slots");
}

// What is written serves one purpose; what a rule moves is its owner's parameter too.
void check_uses(const Plan& plan, const Operands& operands) {
  struct Uses {
    int64_t count = 0, most = INT64_MAX;
  };
  std::vector<Uses> uses(operands.size());
  const auto read = [&](int64_t i) {
    if (i != kNothing)
      ++uses[i].count;
  };
  const auto write = [&](int64_t i, int64_t most = 1) {
    read(i);
    if (i != kNothing)
      uses[i].most = std::min(uses[i].most, most);
  };
  for (const PlanNode& node : plan.nodes) {
    for (int64_t i :
         {node.theta, node.prior, node.data, node.sample_weights, node.factor, node.way.known})
      read(i);
    write(node.velocity);
    write(node.kept);
    write(node.state, node.free || node.data != kNothing ? 1 : INT64_MAX);
  }
  for (const PlanEdge& edge : plan.edges) {
    read(edge.weight);
    read(edge.bias);
    read(edge.mask);
  }
  std::vector<const Target*> firsts(operands.size()); // of the targets of a tensor
  std::set<std::tuple<int64_t, Learned, int64_t>> learned;
  for (const Target& target : plan.targets) {
    const bool moves = plan.rules[target.rule].kind != RuleKind::gradient;
    const Target*& first = firsts[target.tensor];
    STD_TORCH_CHECK(
        learned.emplace(target.tensor, target.what, target.owner).second &&
            (!first || (target.rule == first->rule &&
                        std::equal(first->slots, first->slots + kSlots, target.slots))),
        "targets of one tensor must have one rule, the same slots, and other uses of it, got "
        "another for the ",
        noun(target.what), " ", target.owner);
    if (first) {
      uses[target.tensor].most += moves;
      continue;
    }
    first = &target;
    write(target.tensor, moves ? 2 : 1);
    for (int64_t slot : target.slots)
      write(slot);
  }
  write(plan.energies);
  write(plan.diverged);
  write(plan.method.outcome);
  write(plan.method.progress);
  for (int64_t i = 0; i < operands.writable(); ++i)
    STD_TORCH_CHECK(uses[i].count <= uses[i].most, Name("written", i),
                    " is what a plan writes, and must be used for nothing else");
}

// What is written must share no memory with anything else: tiles and steps read it at will. Sorted
// by where they begin, operands are compared pair by pair only if any two meet.
void check_apart(const Operands& operands) {
  struct Place {
    Bytes bytes;
    int64_t operand;
  };
  const int64_t count = operands.size(), written = operands.writable();
  std::vector<Place> places;
  places.reserve(count);
  for (int64_t i = 0; i < count; ++i)
    places.push_back({Bytes(operands[i]), i});
  std::sort(places.begin(), places.end(),
            [](const Place& a, const Place& b) { return a.bytes.begin < b.bytes.begin; });
  uintptr_t reached = 0, reached_written = 0;
  bool meet = false;
  for (const auto& [bytes, i] : places) {
    meet |= bytes.begin < (i < written ? reached : reached_written) && bytes.end > bytes.begin;
    reached = std::max(reached, bytes.end);
    if (i < written)
      reached_written = std::max(reached_written, bytes.end);
  }
  const auto name = [&](int64_t i) {
    return i < written ? Name{"written", i} : Name{"read", i - written};
  };
  for (int64_t a = 0; meet && a < written; ++a)
    for (int64_t b = 0; b < count; ++b)
      if (a != b)
        check_no_partial_overlap(name(a), operands[a], name(b), operands[b], false);
}

} // namespace

void join_chains(Plan& plan) {
  for (size_t e = 0; e < plan.edges.size(); ++e) {
    const PlanEdge& edge = plan.edges[e];
    PlanNode &source = plan.nodes[edge.source], &target = plan.nodes[edge.target];
    STD_TORCH_CHECK(edge.weight != kNothing && edge.mask == kNothing && edge.first == kNothing,
                    "edge ", e, " must have a weight here, without a mask, of all columns");
    STD_TORCH_CHECK(edge.source < edge.target, "edge ", e, " must lead to a later node here, got ",
                    edge.source, " -> ", edge.target);
    STD_TORCH_CHECK(target.in == kNothing && target.prior == kNothing, "node ", edge.target,
                    " must have one prediction here, got edge ", e, " beside another");
    STD_TORCH_CHECK(source.out == kNothing, "node ", edge.source,
                    " must predict one node here, got edge ", e, " beside another");
    source.out = target.in = static_cast<int64_t>(e);
  }
  std::set<int64_t> learned;
  for (const Target& target : plan.targets)
    STD_TORCH_CHECK(learned.insert(target.tensor).second, "the ", noun(target.what), " ",
                    target.owner, " must learn from no other use here");
}

Plan decode(const std::vector<int64_t>& ints, const std::vector<double>& numbers,
            const Operands& operands) {
  Reader read(ints, numbers, operands);
  Plan plan{};
  plan.nodes.resize(read.count("number of nodes"));
  plan.edges.resize(read.count("number of edges"));
  plan.rules.resize(read.count("number of rules"));
  plan.targets.resize(read.count("number of targets"));
  STD_TORCH_CHECK(!plan.nodes.empty(), "plan must have nodes");
  plan.steps = read.number("number of steps", 0, INT64_MAX);
  plan.method = read_method(read);
  plan.energies = read.maybe_written("tensor of energies");
  plan.order = read.maybe_tensor("tensor of an order");
  plan.precision = static_cast<MatmulPrecision>(read.number("precision of products", 0, 3));
  plan.learning = static_cast<Learning>(read.number("time of learning", 0, kLearnings));
  plan.diverged = read.maybe_written("tensor that tells of divergence");
  const bool scheduled = read.flag("schedule");
  plan.max_norm = read.real("max_norm");
  for (int64_t t = 0; scheduled && t < plan.steps; ++t)
    plan.factors.push_back(read.real("factor"));
  const int64_t nodes = static_cast<int64_t>(plan.nodes.size());
  const int64_t edges = static_cast<int64_t>(plan.edges.size());
  for (PlanNode& node : plan.nodes) {
    node.state = read.tensor("state");
    node.free = read.flag("free");
    node.swept = read.flag("swept");
    node.law = static_cast<Law>(read.number("law", 0, kLaws));
    node.theta = read.maybe_tensor("theta");
    node.prior = read.maybe_tensor("prior");
    node.velocity = read.maybe_written("velocity");
    node.kept = read.maybe_written("kept");
    node.data = read.maybe_tensor("tensor of data");
    node.sample_weights = read.maybe_tensor("tensor of sample weights");
    node.factor = read.maybe_tensor("factor");
    node.weight = read.real("weight");
    node.law_parameter = read.real("parameter of a law");
    if (read.flag("way"))
      node.way = read_way(read);
    if (node.law == Law::expression)
      node.expression = read_expression(read);
  }
  for (PlanEdge& edge : plan.edges) {
    edge.source = read.number("source", 0, nodes);
    edge.target = read.number("target", 0, nodes);
    edge.weight = read.maybe_tensor("weight");
    edge.bias = read.maybe_tensor("bias");
    edge.mask = read.maybe_tensor("mask of a weight");
    for (Nonlinearity* f : {&edge.before, &edge.after}) {
      f->kind = static_cast<Activation>(read.number("activation", 0, kActivations));
      f->parameter = read.real("parameter");
    }
    edge.gram = read.flag("gram");
    edge.transposed = read.flag("transposed");
    edge.first = read.number("first column", kNothing, INT64_MAX);
    edge.sweeps = read.flag("sweeps");
    edge.scale = read.real("scale");
    edge.bias_scale = read.real("scale of a bias");
    edge.skip = read.real("skip");
  }
  for (Rule& rule : plan.rules) {
    rule.kind = static_cast<RuleKind>(read.number("rule", 0, kRules));
    rule.maximize = read.flag("maximize");
    rule.nesterov = read.flag("nesterov");
    rule.decoupled = read.flag("decoupled weight decay");
    rule.fresh = read.flag("fresh");
    for (double* number : {&rule.lr, &rule.weight_decay, &rule.first, &rule.second, &rule.epsilon})
      *number = read.real("number of a rule");
  }
  for (Target& target : plan.targets) {
    target.what = static_cast<Learned>(read.number("learned", 0, kLearned));
    target.owner = read.number("owner", 0, target.what == Learned::logvar ? nodes : edges);
    target.rule = read.number("rule", 0, static_cast<int64_t>(plan.rules.size()));
    target.tensor = read.written("target");
    for (int64_t& slot : target.slots)
      slot = read.maybe_written("slot");
  }
  read.finish();

  join(plan);
  const DType dtype = dtype_of("states", operands[plan.nodes.front().state]);
  STD_TORCH_CHECK(dtype == DType::float32 || dtype == DType::float64,
                  "states must be float32 or float64, got ",
                  torch::headeronly::toString(operands[plan.nodes.front().state].scalar_type()));
  for (int64_t l = 0; l < nodes; ++l)
    check_node(plan, operands, l);
  for (int64_t e = 0; e < edges; ++e)
    check_edge(plan, operands, e);
  STD_TORCH_CHECK(plan.targets.empty() == (plan.learning == Learning::never),
                  "plan must have targets where something learns, and only there");
  for (size_t i = 0; i < plan.targets.size(); ++i)
    check_target(plan, operands, i);
  const int64_t batch = operands[plan.nodes.front().state].size(0);
  check_method(plan, operands, batch);
  check_ways(plan, operands);
  if (const Tensor* energies = operands.find(plan.energies)) {
    check_like("energies", *energies, "states", operands[plan.nodes.front().state]);
    STD_TORCH_CHECK(energies->dim() == 3 && energies->size(0) == plan.steps &&
                        energies->size(1) == nodes && energies->size(2) == batch,
                    "energies must have shape (", plan.steps, ", ", nodes, ", ", batch, "), got ",
                    to_string(energies->sizes()));
    check_contiguous("energies", *energies);
  }
  if (const Tensor* diverged = operands.find(plan.diverged)) {
    check_like("diverged", *diverged, "states", operands[plan.nodes.front().state]);
    STD_TORCH_CHECK(diverged->dim() == 1 && diverged->size(0) == 1,
                    "diverged must have shape (1,), got ", to_string(diverged->sizes()));
  }
  if (const Tensor* order = operands.find(plan.order)) {
    STD_TORCH_CHECK(order->dim() == 1 && order->is_contiguous() &&
                        order->scalar_type() == torch::headeronly::ScalarType::Long &&
                        (batch ? order->size(0) % batch == 0 : order->size(0) == 0),
                    "order must be contiguous int64 of shape (batches * ", batch, ",), got ",
                    to_string(order->sizes()));
    check_near("order", *order, operands[plan.nodes.front().state]);
    STD_TORCH_CHECK(plan.energies == kNothing, "energies must not be recorded over many batches");
  }
  check_uses(plan, operands);
  check_apart(operands);
  return plan;
}

} // namespace pyromancy
