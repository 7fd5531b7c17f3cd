#pragma once

// A network's inference and learning as a value, the C++ half of the codec in
// python/pyromancy/plan: `run_plan_` takes two lists of tensors, and a plan that refers to them by
// number, first those written, then those read.

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "activations.h"
#include "check.h"
#include "laws/expression.h"
#include "laws/law.h"
#include "methods/stepper.h"
#include "methods/update_order.h"
#include "rules/rule.h"

namespace pyromancy {

using Tensors = std::vector<Tensor>;

inline constexpr int64_t kNothing = -1; // in the place of a tensor's number

enum class MatmulPrecision : int64_t { highest, high, medium };

// When weights learn.
enum class Learning : int64_t {
  never,
  at_the_end,      // once, after all E-steps
  after_each_step, // from the states that the step has made
  with_each_step,  // from the errors that move the states, too
};
inline constexpr int64_t kLearnings = 4;

// What a step does of a free node beside what the method does: its rate over the method's; a weight
// of |z - towards| in the energy, of which it takes the proximal step; limits, infinite where open;
// and, of any method, a mask, bool [1 or B, n], of elements of the state that hold still.
struct NodeStep {
  double relative_rate = 1, shrink = 0, towards = 0;
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  int64_t known = kNothing;

  bool constrains() const {
    return shrink > 0 || std::isfinite(low) || std::isfinite(high);
  }
};

struct PlanNode {
  int64_t state; // [B, n], contiguous; written where free
  bool free;
  bool swept; // starts at its prediction, whatever its state was
  Law law;
  int64_t theta, prior;   // prior: constant prediction [1 or B, n], or a part of it
  int64_t velocity;       // [B, n], of a momentum; of a stepper, s
  int64_t kept;           // [B, n], of a stepper, h; of lbfgs, h and pairs, each such;
                          // of fixed predictions, the first states
  int64_t data;           // [N, n], of which `order` picks the state, or the
                          // classes [N] of categorical ones, which are one-hot
  int64_t sample_weights; // [B], more factors of its energy
  int64_t factor;         // [2, n, n], L of the inverse of a full precision, and L^-1
  double weight;          // of its energy
  double law_parameter;
  Expression expression; // of a law that is one
  NodeStep way;          // of steps at a rate
  bool predicted;
  int64_t in = kNothing, out = kNothing; // edges, once `join_chains` has found them
};

// A part of a prediction, mu = after(prior + sum over edges of scale W before(z) + bias_scale b +
// skip z), whose edges have one `after`.
struct PlanEdge {
  int64_t source, target; // nodes
  int64_t weight, bias;
  int64_t mask; // like the weight, which it multiplies
  Nonlinearity before, after;
  bool gram;       // its feedback is W^T P (z' - b) - (W^T P W) before(z)
  bool transposed; // W is the transpose of the weight, [in, out]
  // Of the columns of z that it takes, as many as W has, or without it the target; or all. Without
  // a weight it passes them on: its part is scale before(z).
  int64_t first;
  bool sweeps; // a target that is swept starts by it
  double scale, bias_scale, skip;
};

enum class Learned : int64_t { weight, bias, logvar };
inline constexpr int64_t kLearned = 3;

// A use of what is learned; of several of one tensor the gradients are added up.
struct Target {
  Learned what;
  int64_t owner; // an edge, or a node
  int64_t rule;
  int64_t tensor; // the parameter, or where its gradient goes
  int64_t slots[kSlots];
};

// How states move: descending all at once by a rate, as torch.optim.SGD has it, or by a stepper.
struct Method {
  double lr, momentum, dampening;
  bool nesterov;
  UpdateOrder update_order;
  int64_t first; // steps before, by which the order of updates goes on
  bool fixed;    // predictions and their derivatives stay those of the first states
  bool resume;   // velocities hold those of steps before, and so does what goes on
  bool settle;   // states that are their predictions but for rounding begin as these

  bool has_stepper;
  Stepper stepper;
  int64_t outcome;  // [B, 2] steps taken, and whether it stopped
  int64_t progress; // [B, kProgress] of float64: what goes on to another call
};

struct Plan {
  int64_t steps;
  Method method;
  int64_t energies; // [steps, nodes, B] before each step, without log-determinants
  int64_t order;    // [batches * B] samples of `data`, for one batch after another
  MatmulPrecision precision;
  Learning learning;
  int64_t diverged; // [1], set to 1 where a free state ends as NaN or infinite, if a device looks
  double max_norm;  // that steps at a rate scale a node's gradient down to, of a sample; 0: none
  std::vector<double> factors; // of their rate in every step, or none
  std::vector<PlanNode> nodes;
  std::vector<PlanEdge> edges;
  std::vector<Rule> rules;
  std::vector<Target> targets;
};

// The two lists of tensors, as a plan numbers them.
class Operands {
public:
  Operands(const Tensors& written, const Tensors& read) : written_(written), read_(read) {}

  const Tensor& operator[](int64_t i) const {
    const int64_t first = writable();
    return i < first ? written_[i] : read_[i - first];
  }
  const Tensor* find(int64_t i) const {
    return i == kNothing ? nullptr : &(*this)[i];
  }
  int64_t writable() const {
    return static_cast<int64_t>(written_.size());
  }
  int64_t size() const {
    return writable() + static_cast<int64_t>(read_.size());
  }

private:
  const Tensors &written_, &read_;
};

// Reads a plan and checks it against its tensors: every index, shape, dtype and device, and that
// what is written overlaps nothing else.
Plan decode(const std::vector<int64_t>& plan, const std::vector<double>& numbers,
            const Operands& operands);

// Whether data are the classes of samples, each of which a row of one 1 and zeros stands for.
inline bool holds_classes(const Tensor& data) {
  return data.scalar_type() == torch::headeronly::ScalarType::Long;
}

inline bool passes(const PlanEdge& edge) {
  return edge.weight == kNothing &&
         (edge.before.kind != Activation::identity || edge.first != kNothing);
}

inline bool are_same(const Nonlinearity& f, const Nonlinearity& g) {
  return f.kind == g.kind && f.parameter == g.parameter;
}

// Whether theta may be one number per element.
inline bool takes_theta(const PlanNode& node) {
  return node.law == Law::expression ? node.expression.has_theta : has_scale(node.law);
}

// Whether the energy of a node, if there is one, is one of z - mu.
inline bool moves_by_errors(const PlanNode& node) {
  if (node.law == Law::expression)
    return node.expression.is_of_distance();
  return node.law == Law::none || is_of_distance(node.law);
}

// For devices whose kernels take chains alone: finds the edges of nodes in order, where an edge has
// a matrix and leads to a later node, and no node has two on either side; or refuses.
void join_chains(Plan& plan);

inline int64_t width(const Plan& plan, const Operands& operands, int64_t node) {
  return operands[plan.nodes[node].state].size(1);
}

} // namespace pyromancy
